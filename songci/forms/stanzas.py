"""Where the second stanza of a ci (下片) begins, which 全宋词's files do not say: its end repeats that of the first."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from songci.forms.poems import pattern, read_clauses

Pattern = tuple[tuple[int, str], ...]  # number of characters and mark of each clause
SHORTEST = 36  # characters of a poem of two stanzas
UNEVEN = 1 / 7  # of the characters by which the stanzas may differ
ALIKE = 0.1  # patterns of a tune whose lengths differ by no more than this share are divided at the same place


def cuts(clauses: Pattern) -> Iterator[tuple[int, int, int]]:
    """(clauses before it, characters before it, characters after it) for each 。 within a poem."""
    before, total = 0, sum(length for length, _ in clauses)
    for i, (length, mark) in enumerate(clauses[:-1], start=1):
        before += length
        if mark == "。":
            yield i, before, total - before


def find_break(clauses: Pattern) -> int | None:
    """The number of clauses in the first stanza; None if the poem is a single one.

    Of all 。 the one whose two sides end most alike: counted are the characters of the last clauses that they have in
    common, less half the difference of their lengths.
    """

    def likeness(cut: tuple[int, int, int]) -> float:
        first, before, after = cut
        alike = 0
        for one, other in zip(clauses[:first][::-1], clauses[first:][::-1], strict=False):
            if one != other:
                break
            alike += one[0]
        return alike - abs(before - after) / 2

    first, before, after = max(cuts(clauses), key=likeness, default=(0, 0, 0))
    total = before + after
    return first if total >= SHORTEST and abs(before - after) <= UNEVEN * total else None


def breaks(patterns: Counter[Pattern]) -> dict[Pattern, int | None]:
    """For the patterns of a tune, with the number of poems of each: what find_break() tells of the commonest.

    A rarer pattern of about the length of a commoner one is divided as much like that one as it can be.
    """
    found: dict[Pattern, tuple[int, int] | None] = {}  # the characters of both stanzas
    first: dict[Pattern, int | None] = {}
    for clauses, _ in patterns.most_common():
        size = sum(length for length, _ in clauses)
        sizes = {i: (before, after) for i, before, after in cuts(clauses)}
        model = next((p for p in first if abs(sum(n for n, _ in p) - size) <= ALIKE * size), None)
        if model is None:
            first[clauses] = find_break(clauses)
        elif found[model] is None:
            first[clauses] = None
        else:
            a, b = found[model]
            first[clauses] = min(sizes, key=lambda i: abs(sizes[i][0] - a) + abs(sizes[i][1] - b), default=None)
        found[clauses] = sizes.get(first[clauses])
    return first


def in_stanzas(poems: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """(tune, text) of poems whose text is a line → the same, with a line a stanza."""
    forms = [pattern(read_clauses(text)) for _, text in poems]
    of_tune = defaultdict(Counter)
    for (tune, _), form in zip(poems, forms, strict=True):
        of_tune[tune][form] += 1
    first = {tune: breaks(patterns) for tune, patterns in of_tune.items()}
    return [(tune, _cut(text, first[tune][form])) for (tune, text), form in zip(poems, forms, strict=True)]


def _cut(text: str, first: int | None) -> str:
    """The text with a line end after its first clauses."""
    if first is None:
        return text
    end = [match.end() for match in re.finditer("[。，]", text)][first - 1]
    return f"{text[:end]}\n{text[end:]}"
