"""全宋词, the Complete Song Ci, as a clean text."""

import re
from collections import Counter

from songci.corpus import shi
from songci.corpus.chinese_poetry import HAN, Cleaned, Source, defect, text_of
from songci.corpus.doubles import without_doubles

SOURCE = Source(
    name="全宋词",
    files=tuple(f"ci.song.{first}.json" for first in range(0, 22000, 1000)),
    sha256="b37d1c0fb6d448139b62ef6300ddae1148c3b13e0409fb136b54d18bad503f8a",
    in_package="songci",
    on_github="宋词",
)
# Names of tunes in the source → as 唐圭璋's 全宋词 (中华书局, 1965), which it has typed in, prints them
LOST_NAMES = {  # without the characters that GB2312 lacks, or with others in their places
    **{"大": "大酺", "人娇": "殢人娇", "乃词": "欸乃词", "马索": "罥马索", "双": "双鸂鶒", "凌": "凌歊"},
    **{"菩萨": "菩萨鬘", "奉礼歌": "奉禋歌"},
}
MISPRINTS = {  # that forms.names.misprints() cannot tell, for the right name is as rare or not there
    **{"红林擒近": "红林檎近", "渔夫舞": "渔父舞", "杨州慢": "扬州慢", "雨淋铃": "雨霖铃"},
    **{"杯倾乐": "倾杯乐", "撷坊词": "撷芳词"},
}
NAMES = LOST_NAMES | MISPRINTS
SPELLED_OTHERWISE = shi.SOURCE  # a text of the same language, to learn how this one spells what others write otherwise
LOST = str.maketrans("け", "翛")  # whose place the kana has in the source's code: け然 is 翛然


def clean(items: list[dict], spelling: dict[str, str] | None = None) -> Cleaned:
    """Items of the source → poems (other name, tune, text).

    `A・B` names a tune: A as the poet called it, B as it is canonically called. The source's order is kept; of a poem
    that stands twice, the first copy. spelling: not used.
    """
    kept, dropped, found = {}, Counter(), Counter()
    for item in items:
        names = item["rhythmic"].split("・")
        other, tune = (NAMES.get(name, name) for name in (names[0] if len(names) > 1 else "", names[-1]))
        text = text_of(item).translate(LOST)
        reason = _defect(tune, text) or ("exact duplicate" if (tune, text) in kept else None)
        if reason:
            dropped[reason] += 1
            continue
        found.update(f"{name} → {NAMES[name]}" for name in names if name in NAMES)
        kept[tune, text] = other if re.fullmatch(f"[{HAN}]+", other) else ""
    poems = without_doubles([(other, tune, text) for (tune, text), other in kept.items()], dropped)
    return Cleaned(poems, dropped, {"names of tunes that the source lost or misprinted": found})


def _defect(tune: str, text: str) -> str | None:
    """Why a poem is not fit to learn from, or None."""
    return defect(text) if tune != "失调名" and re.fullmatch(f"[{HAN}]+", tune) else "tune's name lost"
