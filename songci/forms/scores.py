"""Scores of a set of poems: form, rhyme, diversity, and how much is copied from the training text.

A poem is a pair (tune, text). Han characters only are counted where n-grams are.
"""

from collections import Counter

import numpy as np

from songci.forms.check import Check, check, rhyme_pairs
from songci.forms.poems import pattern, read_clauses
from songci.forms.templates import Forms

Poem = tuple[str, str]
NOVELTY_SIZES = range(3, 8)
COPIED_CLAUSE = 7  # characters from which on a clause that stands in the training text counts as copied


def is_han(char: str) -> bool:
    """Whether it is a Chinese character, of the basic plane's blocks or beyond."""
    return "\u3400" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff" or "\U00020000" <= char <= "\U0003ffff"


def han(text: str) -> str:
    """Its Han characters."""
    return "".join(filter(is_han, text))


def mean(values) -> float:
    """NaN of no values."""
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def form_scores(poems: list[Poem], forms: Forms) -> dict[str, float]:
    """Shares of poems and of clauses that keep their tune's form and rhymes.

    format precision, recall, F1: of SongNet (Li et al. 2020), the shares of the poem's and of the template's clauses
    that have the same length and mark at the same place; means over the poems. A poem that ends early lacks the rest
    of its template's clauses, which lowers the recall.
    """
    checks = [check(tune, body, forms) for tune, body in poems]
    toned = [result for result in checks if result.tone is not None]
    matches = [format_match(body, result) for (_, body), result in zip(poems, checks, strict=True)]
    rhymes = [same for result in checks for same in rhyme_pairs(result, forms)]
    return {
        "in form": mean(result.form for result in checks),
        "in form, but cut otherwise": mean(result.cut for result in checks),
        "in the tune's commonest form": mean(result.form and commonest(result, forms) for result in checks),
        "distance of the forms from the training poems'": distance(checks, forms),
        "as many stanzas as the form": mean(
            len(body.strip().split("\n")) == 1 + len(result.template.breaks)
            for (_, body), result in zip(poems, checks, strict=True)
            if result.form
        ),
        "format precision": mean(p for p, _ in matches),
        "format recall": mean(r for _, r in matches),
        "format F1": mean(2 * p * r / (p + r) if p + r else 0.0 for p, r in matches),
        "rhyming pairs": mean(rhymes),
        "in form and rhyme": mean(result.rhyme for result in checks),
        "fixed tones kept": mean(keeps for result in toned for *_, keeps in result.tones),
        "no tone wrong": mean(not result.wrong for result in toned),
        "at most one tone wrong": mean(len(result.wrong) <= 1 for result in toned),
    }


def commonest(result: Check, forms: Forms) -> bool:
    """Whether the clauses of a poem's template are those of the tune's commonest."""
    return result.template.clauses == forms.tunes[result.tune][0].clauses


def distance(checks: list[Check], forms: Forms) -> float:
    """The total variation between the clauses of poems in form and those of the training poems of the same tunes.

    0: each tune's clauses in the same shares; 1: none in common. Few poems of many tunes are some way from 0 even
    if drawn from the same shares: compare it with that of people's poems.
    """
    found = Counter((result.tune, result.template.clauses) for result in checks if result.form)
    tunes = Counter()
    for (tune, _), count in found.items():
        tunes[tune] += count
    due = Counter()
    for tune, count in tunes.items():
        total = sum(template.support for template in forms.tunes[tune])
        for template in forms.tunes[tune]:
            due[tune, template.clauses] += count * template.support / total
    return sum(abs(found[key] - due[key]) for key in due) / 2 / max(1, found.total())


def format_match(body: str, result: Check) -> tuple[float, float]:
    """Precision and recall of a poem's clauses against its best template."""
    found, due = pattern(read_clauses(body)), result.template.clauses if result.template else ()
    matches = sum(a == b for a, b in zip(found, due, strict=False))
    return matches / max(1, len(found)), matches / max(1, len(due))


def diversity(poems: list[Poem]) -> dict[str, float]:
    """Distinct-n (Li et al. 2016): different n-grams as a share of all, mean over poems, and over all poems pooled."""
    scores = {}
    for n in (1, 2):
        grams = [[text[i : i + n] for i in range(len(text) - n + 1)] for text in (han(body) for _, body in poems)]
        scores[f"distinct-{n} per poem"] = mean(len(set(of_poem)) / len(of_poem) for of_poem in grams if of_poem)
        pooled = Counter(gram for of_poem in grams for gram in of_poem)
        scores[f"distinct-{n} pooled"] = len(pooled) / max(1, pooled.total())
    return scores


class Grams:
    """The n-grams that lie within one of the texts, for n = 0, then for n one larger after each extend().

    starts, hashes: where each begins in the joined texts, and a 64-bit hash of it; both shrink with keep().
    """

    def __init__(self, texts: list[str]):
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self.codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
        self.owner = np.repeat(np.arange(len(texts)), lengths)  # (characters,) the text of each
        self.ends = lengths.cumsum()  # (texts,)
        self.n = 0
        self.starts = np.arange(len(self.codes))
        self.hashes = np.zeros(len(self.codes), dtype=np.uint64)

    def extend(self) -> None:
        """Makes each n-gram one character longer; those that would leave their text are dropped."""
        self.keep(self.starts + self.n < self.ends[self.owner[self.starts]])
        # Polynomial, modulo 2^64; n-grams of a few million collide with a probability of 1e-6
        self.hashes = (self.hashes + self.codes[self.starts + self.n]) * np.uint64(0x9E3779B97F4A7C15)
        self.hashes ^= self.hashes >> np.uint64(29)
        self.n += 1

    def keep(self, which: np.ndarray) -> None:
        """which: booleans, True for the n-grams that stay."""
        self.starts, self.hashes = self.starts[which], self.hashes[which]


def copied_runs(texts: list[str], training: list[str]) -> tuple[np.ndarray, dict[int, int]]:
    """(texts,) the length of the longest run that each has copied from a training text; {n: n-grams copied} of all."""
    source, copied = Grams(training), Grams(texts)
    longest = np.zeros(len(texts), dtype=int)
    counts = dict.fromkeys(NOVELTY_SIZES, 0)
    while len(copied.starts):
        source.extend()
        copied.extend()
        # What is not shared cannot begin a longer run that is, so few n-grams are left after a few rounds
        copied.keep(np.isin(copied.hashes, source.hashes))
        source.keep(np.isin(source.hashes, copied.hashes))
        longest[copied.owner[copied.starts]] = copied.n
        if copied.n in counts:
            counts[copied.n] = len(copied.starts)
    return longest, counts


def novelty(sets: dict[str, list[Poem]], training: list[Poem]) -> dict[str, dict[str, float]]:
    """For each named set of poems: the share of n-grams new against the training poems (NaN if no poem has n
    characters), the longest runs copied, and the share of poems with a copied clause."""
    source = [han(body) for _, body in training]
    clauses = {clause for _, body in training for clause in long_clauses(body)}
    scores = {}
    for name, poems in sets.items():
        texts = [han(body) for _, body in poems]
        longest, counts = copied_runs(texts, source)
        totals = {n: sum(max(0, len(text) - n + 1) for text in texts) for n in NOVELTY_SIZES}
        scores[name] = {f"new {n}-grams": 1 - counts[n] / totals[n] if totals[n] else float("nan") for n in totals} | {
            "longest run copied, median": float(np.median(longest)),
            "longest run copied, 95 %": float(np.percentile(longest, 95)),
            "longest run copied, maximum": float(longest.max()),
            f"with a copied clause of {COPIED_CLAUSE} or more": mean(
                not clauses.isdisjoint(long_clauses(body)) for _, body in poems
            ),
        }
    return scores


def long_clauses(body: str) -> list[str]:
    """The clauses of a poem that have COPIED_CLAUSE Han characters or more, without anything else."""
    return [text for clause in read_clauses(body) if len(text := han(clause.text)) >= COPIED_CLAUSE]
