"""全宋词, the Complete Song Ci, as a clean text."""

import re
from collections import Counter, defaultdict

from songci.corpus.chinese_poetry import HAN, NORMALISE, Source, defect

SOURCE = Source(
    name="全宋词",
    files=tuple(f"ci.song.{first}.json" for first in range(0, 22000, 1000)),
    sha256="b37d1c0fb6d448139b62ef6300ddae1148c3b13e0409fb136b54d18bad503f8a",
    in_package="songci",
    on_github="宋词",
)


def clean(items: list[dict]) -> tuple[list[tuple[str, str]], dict[str, str], Counter]:
    """Items of the source → poems [(tune, text)], aliases {other name: canonical tune}, {reason: poems dropped}.

    `A・B` names a tune: A as the poet called it, B as it is canonically called. The source's order is kept.
    """
    poems, dropped, other_names = {}, Counter(), defaultdict(Counter)
    for item in items:
        *names, tune = item["rhythmic"].split("・")
        text = "".join(item["paragraphs"]).translate(NORMALISE)
        reason = _defect(tune, text) or ("exact duplicate" if (tune, text) in poems else None)
        if reason:
            dropped[reason] += 1
            continue
        poems[tune, text] = None  # a dict keeps the order
        for name in names:
            if re.fullmatch(f"[{HAN}]+", name):
                other_names[name][tune] += 1
    tunes = {tune for tune, _ in poems}
    # A name that is also a tune of its own (渔父) stays that tune.
    aliases = {name: c.most_common(1)[0][0] for name, c in sorted(other_names.items()) if name not in tunes}
    return list(poems), aliases, dropped


def _defect(tune: str, text: str) -> str | None:
    """Why a poem is not fit to learn from, or None."""
    return defect(text) if tune != "失调名" and re.fullmatch(f"[{HAN}]+", tune) else "tune's name lost"
