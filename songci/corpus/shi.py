"""The shi (诗) of Tang and Song as a clean text, nine times 全宋词: what a poet of ci had read."""

import re
from collections import Counter

from songci.corpus.chinese_poetry import NORMALISE, Source, defect

SOURCE = Source(
    name="the shi of Tang and Song",
    files=tuple(
        f"poet.{age}.{first}.json" for age, end in (("tang", 58000), ("song", 255000)) for first in range(0, end, 1000)
    ),
    sha256="1b806beabbf9e595b136aec69124f16f822d51414bd31d574e16233f963d37fc",
    in_package="quantangshi",
    on_github="全唐诗",
)
LENGTHS = {5: "五言", 6: "六言", 7: "七言"}  # characters of each clause
CLAUSES = {4: "绝句", 8: "律诗"}


def clean(items: list[dict]) -> tuple[list[tuple[str, str]], dict[str, str], Counter]:
    """Items of the source → poems [(kind, text)] in simplified characters, {} and {reason: poems dropped}.

    As quansongci.clean(), but that kinds have no other names.
    """
    from opencc import OpenCC  # here, because it reads dictionaries

    texts = "\n".join("".join(item["paragraphs"]).translate(NORMALISE) for item in items)
    poems, dropped = {}, Counter()
    for text in OpenCC("t2s").convert(texts).split("\n"):
        reason = defect(text) or ("exact duplicate" if text in poems else None)
        if reason:
            dropped[reason] += 1
        else:
            poems[text] = None  # a dict keeps the order
    return [(kind(text), text) for text in poems], {}, dropped


def kind(text: str) -> str:
    """七言律诗, 五言绝句 … by the number and the length of a poem's clauses; 古体诗 for all that have no such name.

    Their tones are not looked at: an old-style poem of that shape has the name too.
    """
    lengths = [len(clause) for clause in re.findall("[^，。、]+", text)]
    alike = len(set(lengths)) == 1 and lengths[0] in LENGTHS and len(lengths) in CLAUSES
    return LENGTHS[lengths[0]] + CLAUSES[len(lengths)] if alike else "古体诗"
