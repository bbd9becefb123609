#!/usr/bin/env bash
# chinese-poetry 2.0.1 (npm): the names of tunes in 全宋词 have lost the characters that GB2312 lacks, without a mark.
#
# 大酺 is "大" in nine poems and whole in six, 殢人娇 "人娇" in 22; the texts of the same files have 5,864 such characters.
# In these, 翛 is the kana け. One would have guessed that names and texts come in one encoding, or that a lost character
# leaves a □, as it does elsewhere in these files.
# Seen: of characters beyond GB2312 the names have 酺 alone, six times; け 35 times in the texts, as in け然.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm pack chinese-poetry@2.0.1 --silent --ignore-scripts > /dev/null
tar xzf chinese-poetry-2.0.1.tgz package/dist/songci
python3 - <<'PYTHON'
import json
from collections import Counter


def beyond_gb2312(text):
    return Counter(char for char in text if "\u4e00" <= char <= "\u9fff" and not char.encode("gb2312", "ignore"))


items = []
for first in range(0, 22000, 1000):
    with open(f"package/dist/songci/ci.song.{first}.json", encoding="utf-8") as file:
        items += json.load(file)
names, text = Counter(item["rhythmic"] for item in items), "".join("".join(item["paragraphs"]) for item in items)
in_names, in_text = dict(beyond_gb2312("".join(names.elements()))), beyond_gb2312(text).total()
print(f"chinese-poetry 2.0.1: beyond GB2312 the names have {in_names}, the texts {in_text} characters")
print({name: names[name] for name in ("大", "大酺", "人娇", "殢人娇")}, f"け {text.count('け')} times in the texts")
assert in_names == {"酺": 6} and (names["大"], names["人娇"], text.count("け")) == (9, 22, 35), "this has changed"
PYTHON
