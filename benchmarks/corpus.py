"""How the corpora are cleaned: the shi in the spelling of 全宋词, and poems that stand twice.

python benchmarks/corpus.py --part spelling
python benchmarks/corpus.py --part doubles

Both read npm's archive, which prepare.py has left beside --data_root.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import yitizi
from opencc import OpenCC

from songci.corpus import quansongci, shi
from songci.corpus.chinese_poetry import SHORTEST_POEM, defect, kept_text
from songci.corpus.doubles import doubles
from songci.corpus.spelling import learn_spelling

SOME = 4  # every fourth poem is looked at
MUCH = 10  # times that a spelling is in a context in 全宋词 and the one that was chosen is not, or a tenth as often


def against(poems: list[str], text: str, chars: set[str]) -> tuple[float, list]:
    """Of 100,000 characters, those of which 全宋词 prefers a variant between the same neighbours; the commonest."""
    simplify, marks, wrong = OpenCC("t2s").convert, set("，。、\n"), Counter()
    pairs = {pair: times for pair, times in Counter(map(str.__add__, text, text[1:])).items() if not marks & {*pair}}
    variants = {}
    for char in chars - marks:
        others = [*yitizi.get(char), *map(simplify, yitizi.get(char)), simplify(char)]
        variants[char] = ({*others} & chars) - {char}
    joined = "\n".join(poems)
    for (before, char, after), times in Counter(zip(joined, joined[1:], joined[2:], strict=False)).items():
        for own in variants.get(char, ()):
            often, seldom = (pairs.get(before + x, 0) + pairs.get(x + after, 0) for x in (own, char))
            if often >= MUCH and often >= MUCH * seldom:
                wrong[char + own] += times
                break
    return 1e5 * wrong.total() / sum(char not in marks for char in joined), wrong.most_common(8)


def spelling(data_root: Path) -> None:
    text = (data_root / "input.txt").read_text(encoding="utf-8")
    source = kept_text(shi.SOURCE, data_root)
    clean = [poem for poem in dict.fromkeys(source.split("\n")) if not defect(poem)]
    chars = set(text)
    print(f"{len(clean):,} clean shi\n")
    print("| spelling | poems in the vocabulary | M characters | against usage, of 100,000 | |\n|---|---|---|---|---|")
    own, other = learn_spelling(text), learn_spelling(text, "\n".join(clean))
    for name, spelled in {
        "t2s": OpenCC("t2s").convert("\n".join(clean)).split("\n"),
        "what 全宋词 lacks by t2s, or its commonest variant": [poem.translate(str.maketrans(own)) for poem in clean],
        "by the neighbours": [poem.translate(str.maketrans(other)) for poem in clean],
    }.items():
        poems = [poem for poem in spelled if chars.issuperset(poem)]
        share, commonest = against(poems[::SOME], text, chars)
        shown = " ".join(f"{pair} {n}" for pair, n in commonest)
        print(f"| {name} | {len(poems):,} | {sum(map(len, poems)) / 1e6:.1f} | {share:.0f} | {shown} |", flush=True)


def doubles_table(data_root: Path) -> None:
    texts = [re.sub("[，。、]", "", text) for text in kept_text(quansongci.SOURCE, data_root).split("\n")]
    texts = list(dict.fromkeys(text for text in texts if len(text) >= SHORTEST_POEM and not set("□（…") & set(text)))
    print("| share of the 7-grams | poems dropped | of all |\n|---|---|---|")
    for share in (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 0.95):
        print(f"| {share:.0%} | {(found := len(doubles(texts, share)))} | {found / len(texts):.1%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", required=True, choices=["spelling", "doubles"])
    parser.add_argument("--data_root", type=Path, default=Path("data/quansongci"))
    args = parser.parse_args()
    {"spelling": spelling, "doubles": doubles_table}[args.part](args.data_root)
