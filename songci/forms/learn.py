"""Learns the forms of tunes from a corpus: the patterns of each tune, tones, rhyme classes, which clauses rhyme."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from songci.forms.poems import pattern, read_clauses
from songci.forms.templates import Forms, Template
from songci.forms.tones import EITHER, contrary, fixed_tone, learn_tones, tone_of

MIN_SUPPORT = 2  # poems that share a pattern before it counts as a form: a single one may be a scribe's error
MAX_ENDINGS = 1000  # poems of a template whose rhymes are looked at: plenty, and memory stays bounded
REFRAIN = 0.2  # share of the poems that repeat a rhyme character from which on this counts as the tune's way
MIN_RHYMES = 3  # characters of one tone in a group of rhymes that tell the group's
AGREEMENT = 0.6  # share of the poems in which a clause must be in the class of a group to join it


@dataclass
class _Seen:
    """What the poems of one tune and one pattern were like."""

    support: int = 0
    pauses: set = field(default_factory=set)
    breaks: Counter = field(default_factory=Counter)
    endings: list[str] = field(default_factory=list)  # of each poem, the characters before 。


def learn(poems: Iterable[tuple[str, str]]) -> Forms:
    """The forms of a corpus, from its (tune, text) pairs; no forms if it has none."""
    seen: dict[tuple, _Seen] = defaultdict(_Seen)
    neighbours: Counter = Counter()
    plain = []
    for tune, body in poems:
        clauses = read_clauses(body)
        if not clauses or not clauses[-1].mark:
            continue
        entry = seen[tune, pattern(clauses)]
        entry.support += 1
        entry.pauses |= {(i, n) for i, clause in enumerate(clauses) for n in clause.pauses if 0 < n < len(clause.text)}
        entry.breaks.update(i for i, clause in enumerate(clauses[:-1]) if clause.line_break)
        ending = "".join(clause.text[-1] for clause in clauses if clause.mark == "。")
        neighbours.update(pairwise(ending))
        if entry.support <= MAX_ENDINGS:
            entry.endings.append(ending)
        plain.append((tune, "".join(clause.text for clause in clauses)))
    level, tones = learn_tones(plain)
    classes = rhyme_classes(neighbours, level)
    shared = {tune for (tune, _), entry in seen.items() if entry.support >= MIN_SUPPORT}
    tunes = defaultdict(list)
    for (tune, clauses), entry in sorted(seen.items(), key=lambda item: -item[1].support):
        if entry.support >= MIN_SUPPORT or tune not in shared:  # of a tune without a shared form, all that there is
            breaks = frozenset(i for i, count in entry.breaks.items() if count > entry.support / 2)
            scheme, repeats = rhyme_scheme(entry.endings, classes), refrains(clauses, entry.endings)
            places = frozenset(entry.pauses), breaks, repeats
            of_form = tones.get((tune, sum(length for length, _ in clauses)), "")
            of_form = of_form or rhyme_tones(clauses, scheme, entry.endings, level)
            tunes[tune].append(Template(clauses, entry.support, scheme, *places, of_form))
    return Forms(dict(tunes), classes, level)


def rhyme_tones(clauses: tuple[tuple[int, str], ...], scheme: str, endings: list[str], level: dict[str, float]) -> str:
    """The tones of a template of too few poems for places of their own: of its rhymes, by the characters of a group.

    "" if nothing is known of tones.
    """
    if not level:
        return ""
    tone = {}
    for letter in set(scheme) - {"-"}:
        chars = [ending[i] for ending in endings for i, other in enumerate(scheme) if other == letter]
        tone[letter] = fixed_tone((tone_of(char, level) for char in chars), MIN_RHYMES)
    letters = iter(scheme)
    ends = [tone.get(next(letters), EITHER) if mark == "。" else EITHER for _, mark in clauses]
    return "".join(EITHER * (length - 1) + end for (length, _), end in zip(clauses, ends, strict=True))


def refrains(clauses: tuple[tuple[int, str], ...], endings: list[str]) -> frozenset[int]:
    """The clauses whose last character repeats that of an earlier 。 in at least REFRAIN of the poems."""
    places = [i for i, (_, mark) in enumerate(clauses) if mark == "。"]
    shares = [sum(ending[i] in ending[:i] for ending in endings) / len(endings) for i in range(len(places))]
    return frozenset(place for place, share in zip(places, shares, strict=True) if share >= REFRAIN)


def rhyme_classes(neighbours: Counter, level: dict[str, float]) -> dict[str, int]:
    """Classes of characters that rhyme, from how often two of them end neighbouring 。-clauses: {(a, b): times}.

    The communities of the graph of these pairs (Louvain: Blondel et al. 2008), since most neighbours rhyme; pairs of
    different tones, by the characters' P(level), do not. The largest class is number 0, and in a class the characters
    that rhyme most come first.
    """
    from networkx import Graph  # here, for it takes a while to import and sampling does not need it
    from networkx.algorithms.community import louvain_communities

    graph = Graph()
    for (a, b), times in sorted(neighbours.items()):
        if a != b and not contrary(tone_of(a, level), tone_of(b, level)):
            before = graph.get_edge_data(a, b, {"weight": 0})["weight"]
            graph.add_edge(a, b, weight=before + times)
    if not graph:
        return {}
    communities = sorted(louvain_communities(graph, seed=1), key=lambda chars: (-len(chars), min(chars)))
    weight = dict(graph.degree(weight="weight"))
    return {c: i for i, chars in enumerate(communities) for c in sorted(chars, key=lambda c: (-weight[c], c))}


def rhyme_scheme(endings: list[str], classes: dict[str, int]) -> str:
    """Which clauses rhyme in the poems of a template, such as "aabb" or "aa-a".

    endings: of each poem, the characters before 。; classes: those of rhyme_classes().
    A clause joins the group with which it agrees best, if it does so clearly more often than not.
    """
    columns = [[classes.get(char) for char in column] for column in zip(*endings, strict=True)]

    def agreement(i: int, j: int) -> float:  # of two clauses
        pairs = [(a, b) for a, b in zip(columns[i], columns[j], strict=True) if a is not None and b is not None]
        return (sum(a == b for a, b in pairs) + 1) / (len(pairs) + 2)  # Laplace's rule: few poems prove little

    groups: list[list[int]] = []
    for i in range(len(columns)):
        shares = [sum(agreement(i, j) for j in group) / len(group) for group in groups]
        if shares and max(shares) > AGREEMENT:
            groups[shares.index(max(shares))].append(i)
        else:
            groups.append([i])
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    scheme = ["-"] * len(columns)
    for group in groups:
        letter = next(letters, "-") if len(group) > 1 else "-"
        for i in group:
            scheme[i] = letter
    return "".join(scheme)
