"""Misprinted names of tunes in a corpus."""

from collections import defaultdict

from songci.forms.poems import pattern, read_clauses

COMMON = 10  # poems of a tune from which on its name is known
RARER = 3  # times as rare must a misprint be
SAME = 1 / 3  # of its poems must have clauses as long as those of some poem of the tune
LONG = 5  # characters of a name that no other tune's will resemble by chance


def misprints(poems: list[tuple[str, str]]) -> dict[str, str]:
    """{misprinted name: the tune's name} for (tune, text) pairs.

    A misprint differs in one character from the name of a commoner tune, and a third of its poems or more have clauses
    of the same lengths as poems of that tune.
    """
    lengths = defaultdict(list)  # of the clauses of each poem
    for tune, text in poems:
        lengths[tune].append(tuple(length for length, _ in pattern(read_clauses(text))))
    common = sorted((t for t in lengths if len(lengths[t]) >= COMMON), key=lambda tune: -len(lengths[tune]))
    found = {}
    for name, own in lengths.items():
        for tune in common:
            alike = len(name) == len(tune) > 2 and sum(a != b for a, b in zip(name, tune, strict=True)) == 1
            if alike and RARER * len(own) <= len(lengths[tune]):
                same = sum(form in lengths[tune] for form in own)
                if len(name) >= LONG or same >= SAME * len(own):
                    found.setdefault(name, tune)
    return found
