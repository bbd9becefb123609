"""Scores of a set of poems: form, rhyme, diversity, and how much is copied from the training text.

A poem is a pair (tune, text). Han characters only are counted where n-grams are.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from forms import Check, Forms, check, rhyme_pairs
from poems import pattern, read_clauses

Poem = tuple[str, str]
NOVELTY_SIZES = range(3, 8)
COPIED_CLAUSE = 7  # characters from which on a clause that stands in the training text counts as copied


def is_han(char: str) -> bool:
    """Whether it is a Chinese character, of the basic plane's blocks or beyond."""
    return "\u3400" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff" or "\U00020000" <= char <= "\U0003ffff"


def han(text: str) -> str:
    return "".join(filter(is_han, text))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def form_scores(poems: list[Poem], forms: Forms) -> dict[str, float]:
    """Shares of poems and of clauses that keep their tune's form and rhymes.

    format precision, recall, F1: of SongNet (Li et al. 2020), the shares of the poem's and of the template's clauses
    that have the same length and mark at the same place; means over the poems. A poem that ends early lacks the rest
    of its template's clauses, which lowers the recall.
    """
    checks = [check(tune, body, forms) for tune, body in poems]
    matches = [format_match(body, result) for (_, body), result in zip(poems, checks, strict=True)]
    rhymes = [same for result in checks for same in rhyme_pairs(result, forms)]
    return {
        "in form": mean(result.form for result in checks),
        "format precision": mean(p for p, _ in matches),
        "format recall": mean(r for _, r in matches),
        "format F1": mean(2 * p * r / (p + r) if p + r else 0.0 for p, r in matches),
        "rhyming pairs": mean(rhymes),
        "in form and rhyme": mean(result.rhyme for result in checks),
    }


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


@dataclass(frozen=True)
class Grams:
    """Texts as one array of code points, with which text each position belongs to."""

    codes: np.ndarray  # (characters,) uint64
    owner: np.ndarray  # (characters,)

    @classmethod
    def of(cls, texts: list[str]) -> "Grams":
        codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
        return cls(codes, np.repeat(np.arange(len(texts)), [len(text) for text in texts]))

    def hashes(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """A 64-bit hash of each n-gram within a text, and the number of its text."""
        count = max(0, len(self.codes) - n + 1)
        values = np.zeros(count, dtype=np.uint64)
        for i in range(n):  # polynomial, modulo 2^64; n-grams of a few million collide with a probability of 1e-6
            values = (values + self.codes[i : i + count]) * np.uint64(0x9E3779B97F4A7C15)
            values ^= values >> np.uint64(29)
        inside = self.owner[:count] == self.owner[n - 1 :]
        return values[inside], self.owner[:count][inside]


def contained(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Whether each value is in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


def novelty(sets: dict[str, list[Poem]], training: list[Poem]) -> dict[str, dict[str, float]]:
    """For each named set of poems: the share of n-grams new against the training poems, and the longest runs copied."""
    source = Grams.of([han(body) for _, body in training])
    grams = {name: Grams.of([han(body) for _, body in poems]) for name, poems in sets.items()}
    longest = {name: np.zeros(len(poems), dtype=int) for name, poems in sets.items()}
    scores = {name: {} for name in sets}
    n, going = 1, set(sets)
    while going or n <= max(NOVELTY_SIZES):
        known = np.sort(source.hashes(n)[0])
        for name in sorted(going) if n > max(NOVELTY_SIZES) else sets:
            values, owner = grams[name].hashes(n)
            copied = contained(values, known)
            longest[name][owner[copied]] = n
            if n in NOVELTY_SIZES:
                scores[name][f"new {n}-grams"] = 1 - float(copied.mean()) if len(copied) else float("nan")
            if not copied.any():
                going.discard(name)
        n += 1
    clauses = np.sort(clause_hashes(training)[0])
    for name, poems in sets.items():
        values, owner = clause_hashes(poems)
        with_copies = len(set(owner[contained(values, clauses)].tolist()))
        scores[name] |= {
            "longest run copied, median": float(np.median(longest[name])),
            "longest run copied, 95 %": float(np.percentile(longest[name], 95)),
            "longest run copied, maximum": float(longest[name].max()),
            f"with a copied clause of {COPIED_CLAUSE} or more": with_copies / len(poems),
        }
    return scores


def clause_hashes(poems: list[Poem]) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each clause of COPIED_CLAUSE characters or more, and the number of its poem."""
    pairs = [(i, han(clause.text)) for i, (_, body) in enumerate(poems) for clause in read_clauses(body)]
    by_length: dict[int, list[tuple[int, str]]] = {}
    for i, text in pairs:
        if len(text) >= COPIED_CLAUSE:
            by_length.setdefault(len(text), []).append((i, text))
    values, owner = [np.zeros(0, np.uint64)], [np.zeros(0, int)]
    for length, members in by_length.items():
        values.append(Grams.of([text for _, text in members]).hashes(length)[0])
        owner.append(np.array([i for i, _ in members]))
    return np.concatenate(values), np.concatenate(owner)
