"""The shi (诗) of Tang and Song as a clean text, nine times 全宋词: what a poet of ci had read."""

import re
from collections import Counter

from songci.corpus.chinese_poetry import Cleaned, Source, defect, text_of
from songci.corpus.doubles import without_doubles

SOURCE = Source(
    name="the shi of Tang and Song",
    files=tuple(
        f"poet.{age}.{first}.json" for age, end in (("tang", 58000), ("song", 255000)) for first in range(0, end, 1000)
    ),
    sha256="1b806beabbf9e595b136aec69124f16f822d51414bd31d574e16233f963d37fc",
    in_package="quantangshi",
    on_github="全唐诗",
)
SPELLED_OTHERWISE = None
LENGTHS = {5: "五言", 6: "六言", 7: "七言"}  # characters of each clause
CLAUSES = {4: "绝句", 8: "律诗"}


def clean(items: list[dict], spelling: dict[str, str] | None = None) -> Cleaned:
    """Items of the source → poems ("", kind, text), in the source's order; of a poem that stands twice, the first copy.

    spelling: {character: what to write for it}; without it, they are put into simplified characters.
    """
    texts = "\n".join(map(text_of, items))
    poems, dropped = {}, Counter()
    for text in (texts.translate(str.maketrans(spelling)) if spelling else _simplified(texts)).split("\n"):
        reason = defect(text) or ("exact duplicate" if text in poems else None)
        if reason:
            dropped[reason] += 1
        else:
            poems[text] = None  # a dict keeps the order
    return Cleaned(without_doubles([("", kind(text), text) for text in poems], dropped), dropped, {})


def _simplified(text: str) -> str:
    from opencc import OpenCC  # here, because it reads dictionaries

    return OpenCC("t2s").convert(text)


def kind(text: str) -> str:
    """七言律诗, 五言绝句 … by the number and the length of a poem's clauses; 古体诗 for all that have no such name.

    Their tones are not looked at: an old-style poem of that shape has the name too.
    """
    lengths = [len(clause) for clause in re.findall("[^，。、]+", text)]
    alike = len(set(lengths)) == 1 and lengths[0] in LENGTHS and len(lengths) in CLAUSES
    return LENGTHS[lengths[0]] + CLAUSES[len(lengths)] if alike else "古体诗"
