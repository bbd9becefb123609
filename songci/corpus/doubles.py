"""Poems that stand twice in a corpus, a few characters apart: under two poets, say."""

from collections import Counter
from itertools import count

import numpy as np

from songci.corpus.vocabulary import code_points

GRAM = 7  # characters: so many in a row are seldom common to two poems by chance
SHARE = 0.2  # of the grams of the shorter poem: from there on most pairs are one poem; see docs/results.md


def without_doubles(poems: list[tuple[str, ...]], dropped: Counter) -> list[tuple[str, ...]]:
    """The poems without doubles() of their texts, which stand last in each; these are counted as dropped."""
    twice = set(doubles([text for *_, text in poems]))
    if twice:
        dropped["near-duplicate"] += len(twice)
    return [poem for i, poem in enumerate(poems) if i not in twice]


def doubles(texts: list[str], share: float = SHARE) -> list[int]:
    """The places of the texts that share so many of their 7-grams with one that stands before them, and stays.

    Marks do not count. In a corpus that is split in its own order, the training split keeps what both splits have.
    """
    points = code_points("".join(texts))
    owner = np.repeat(np.arange(len(texts)), np.fromiter(map(len, texts), int))
    marks = np.isin(points, code_points("，。、\n"))
    points, owner = points[~marks].astype(np.uint64), owner[~marks]
    places = max(0, len(points) - GRAM + 1)
    grams = np.zeros(places, np.uint64)
    for i in range(GRAM):  # a hash of 64 bits
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + points[i : i + places]
    within = owner[:places] == owner[GRAM - 1 :]  # not from one poem into the next
    grams, owner = grams[within], owner[:places][within]
    order = np.lexsort((owner, grams))
    grams, owner = grams[order], owner[order]
    new = np.r_[True, (grams[1:] != grams[:-1]) | (owner[1:] != owner[:-1])][: len(grams)]  # once a poem
    grams, owner = grams[new], owner[new]
    sizes = np.bincount(owner, minlength=len(texts))
    pairs, common = np.unique(_pairs(grams, owner, len(texts)), return_counts=True)
    earlier, later = np.divmod(pairs, len(texts))
    alike = common >= share * np.minimum(sizes[earlier], sizes[later])
    dropped = set()
    for first, second in sorted(
        zip(earlier[alike].tolist(), later[alike].tolist(), strict=True), key=lambda p: p[::-1]
    ):
        if first not in dropped:
            dropped.add(second)
    return sorted(dropped)


def _pairs(grams: np.ndarray, owner: np.ndarray, n: int) -> np.ndarray:
    """earlier * n + later of each two poems that share a gram, for each gram; grams and, in them, owners ascend."""
    pairs = [np.zeros(0, np.int64)]
    for distance in count(1):
        same = np.flatnonzero(grams[distance:] == grams[:-distance])
        if len(same) == 0:
            return np.concatenate(pairs)
        pairs.append(owner[same] * n + owner[same + distance])
