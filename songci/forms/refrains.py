"""Refrains (叠句): clauses that repeat another one, or how it begins or ends, such as 知否。知否。 in 如梦令."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

MIN_POEMS = 3  # with the same refrain, for it to count as the form's
MIN_SHARE = 0.05  # the share of the form's poems
ALWAYS = 0.9  # the share from which on a refrain belongs to the form: it is always written, and missed where it lacks
MIN_LENGTH = 2  # characters of a refrain that is not a whole clause: one of them, as a rhyme, may be the same by chance


class Refrain(NamedTuple):
    """The last characters of a clause, or its first, repeat those of an earlier one.

    clause, of: the places of the two clauses; length: the number of characters; at_end: the last ones, not the first;
    poems: how many have it.
    """

    clause: int
    of: int
    length: int
    at_end: bool
    poems: int

    def part(self, text: str) -> str:
        """The characters of a clause that are repeated, or that repeat."""
        return text[len(text) - self.length :] if self.at_end else text[: self.length]

    def places(self, lengths: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """((clause, place in it) of a character, the same of the one that repeats it), by the clauses' lengths."""
        first, again = (lengths[i] - self.length if self.at_end else 0 for i in (self.of, self.clause))
        return [((self.of, first + n), (self.clause, again + n)) for n in range(self.length)]

    def kept(self, clauses: Sequence[str]) -> bool:
        return self.part(clauses[self.clause]) == self.part(clauses[self.of])


def learn_refrains(poems: Sequence[Sequence[str]]) -> tuple[Refrain, ...]:
    """For each clause the refrain that most poems of a form have there, if enough have one; poems: their clauses.

    Its length is the greatest that half as many poems have as have any refrain of these clauses.
    """
    best: dict[int, Refrain] = {}
    for of, clause in combinations(range(len(poems[0])), 2):
        for at_end in (False, True):
            alike = [_alike(poem[of], poem[clause], at_end) for poem in poems]
            least = min(MIN_LENGTH, len(poems[0][clause]))
            having = sorted((n for n in alike if n >= least), reverse=True)
            if len(having) < max(MIN_POEMS, MIN_SHARE * len(poems)):
                continue
            length = having[(len(having) - 1) // 2]
            found = Refrain(clause, of, length, at_end, sum(n >= length for n in alike))
            if clause not in best or _order(best[clause]) <= _order(found):
                best[clause] = found
    return tuple(found for _, found in sorted(best.items()) if found.poems >= max(MIN_POEMS, MIN_SHARE * len(poems)))


def _alike(one: str, other: str, at_end: bool) -> int:
    """How many of their last characters, or first ones, are the same."""
    pairs = zip(*((text[::-1] if at_end else text) for text in (one, other)), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _order(refrain: Refrain) -> tuple[int, int, int]:
    return refrain.poems, refrain.length, refrain.of  # of equals the longer, then the nearer


def always(refrains: Iterable[Refrain], support: int) -> list[Refrain]:
    """Those that belong to a form of `support` poems."""
    return [refrain for refrain in refrains if refrain.poems >= ALWAYS * support]
