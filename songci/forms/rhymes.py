"""Rhyme classes (韵部), learned from which characters poets rhyme: each of one tone; a character may be of several.

Two steps. First the characters of one clear tone are divided into the communities of the graph of neighbouring rhymes:
characters of two readings (看, 思, 过) would tie level and oblique together, so they are left out. Then the groups of
rhymes in the poems are read: each time that a character stands in a group, the other rhymes there say which class it
has there. So a character of two readings gets both its classes, and one that poets rhyme in two ways, such as 否, too.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from songci.forms.tones import EITHER, LEVEL, OBLIQUE, tone_of

Classes = dict[str, tuple[int, ...]]  # the rhyme classes of each character, the one in which it rhymes most first

RESOLUTIONS = 3, 2, 1  # of Louvain's method; the classes are the same from 2.5 to 3, whatever the seed: docs/results.md
COVERED = 0.9  # share of the neighbouring rhymes that must lie within the classes, else a resolution is too fine
ROUNDS = 3  # of groups and characters in turn
MIN_SHARE = 0.03  # of the groups with a character, for it to be of a second class
MIN_LIFT = 2.0  # how many times as often as the characters of its first class do, for poets also cross classes freely
READING = 0.03  # P(tone) from which on a character may have a second class of that tone


def communities(neighbours: Counter, level: dict[str, float]) -> dict[str, int]:
    """A class for each character of one clear tone, from how often two end neighbouring 。-clauses: {(a, b): times}.

    The communities of the graph of these pairs (Louvain: Blondel et al. 2008), since most neighbours rhyme. Without
    tones (`level` is empty) all characters count. The largest class is number 0.
    """
    from networkx import Graph  # here, for it takes a while to import and sampling does not need it
    from networkx.algorithms.community import louvain_communities

    graph = Graph()
    for (a, b), times in sorted(neighbours.items()):
        tones = {tone_of(a, level), tone_of(b, level)}
        if a != b and len(tones) == 1 and (not level or tones != {EITHER}):
            before = graph.get_edge_data(a, b, {"weight": 0})["weight"]
            graph.add_edge(a, b, weight=before + times)
    total, found = graph.size("weight"), []
    for resolution in RESOLUTIONS if graph else ():
        found = louvain_communities(graph, resolution=resolution, seed=1)
        if sum(graph.subgraph(chars).size("weight") for chars in found) >= COVERED * total:
            break
    ordered = sorted(found, key=lambda chars: (-len(chars), min(chars)))
    return {char: i for i, chars in enumerate(ordered) for char in sorted(chars)}


def attach(first: dict[str, int], groups: Sequence[str], level: dict[str, float]) -> Classes:
    """All classes of each character, from the classes of communities() and the groups of rhymes in the poems.

    groups: the characters of each. A class keeps its tone: a character of the other tone is never of it. In a class
    the characters that rhyme most come first.
    """
    if not first:
        return {}
    chars = sorted(set(first).union(*groups))
    number = {char: i for i, char in enumerate(chars)}
    count = max(first.values()) + 1
    fits = _readings(chars, first, level)
    share = np.zeros((len(chars), count))  # P(class | character)
    share[[number[char] for char in first], [*first.values()]] = 1
    # A group has each character once: a repeated one proves nothing
    places = [(i, number[char]) for i, group in enumerate(groups) for char in dict.fromkeys(group)]
    group, char = np.array(places, dtype=int).reshape(-1, 2).T
    times = share.copy()  # (chars, classes) in how many groups a character rhymes with each class
    for _ in range(ROUNDS):
        sums = np.zeros((len(groups), count))
        np.add.at(sums, group, share[char])
        others = (sums[group] - share[char]) * fits[char]
        told = others.max(1) > 1e-9
        times = np.zeros_like(share)
        np.add.at(times, (char[told], others.argmax(1)[told]), 1)
        seen = times.sum(1, keepdims=True)
        share = np.where(seen > 0, times / np.maximum(seen, 1), share)
    main = np.where(share.any(1), share.argmax(1), -1)
    usual = np.array([times[main == k].sum(0) for k in range(count)])
    usual /= np.maximum(usual.sum(1, keepdims=True), 1)
    also = (times > 0) & (share >= np.maximum(MIN_SHARE, MIN_LIFT * usual[main]))
    also[np.arange(len(chars)), main] = True
    classes = {}
    for i in sorted(np.flatnonzero(main >= 0), key=lambda i: (-times[i].sum(), chars[i])):
        others = [int(k) for k in np.flatnonzero(also[i]) if k != main[i]]
        classes[chars[i]] = (int(main[i]), *others)
    return classes


def _readings(chars: list[str], first: dict[str, int], level: dict[str, float]) -> np.ndarray:
    """(chars, classes) True where a character has a reading in the tone of the class."""
    tones = class_tones({char: (number,) for char, number in first.items()}, level)
    p = np.array([level.get(char, 0.5) for char in chars])
    readings = {LEVEL: p >= READING, OBLIQUE: p <= 1 - READING, EITHER: np.ones(len(chars), bool)}
    return np.stack([readings[tone] for tone in tones], axis=1)


def class_tones(classes: Classes, level: dict[str, float]) -> list[str]:
    """The tone of each class: of most of the characters that have it as their first and are of one tone."""
    found = [Counter() for _ in range(1 + max((k for of_char in classes.values() for k in of_char), default=-1))]
    for char, (main, *_) in classes.items():
        found[main][tone_of(char, level)] += 1
    for counts in found:
        del counts[EITHER]
    return [counts.most_common(1)[0][0] if counts else EITHER for counts in found]


def common_class(chars: Sequence[str], classes: Classes, preferred: Sequence[int] = ()) -> int | None:
    """The class that most of these characters have, None if none is known of them.

    Of equals one of the preferred, then the one that is most often a first class, then the one met first.
    """
    fits, firsts = Counter(), Counter()
    for char in chars:
        fits.update(classes.get(char, ()))
        firsts.update(classes.get(char, ())[:1])
    return max(fits, key=lambda k: (fits[k], k in preferred, firsts[k]), default=None)
