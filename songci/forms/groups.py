"""Which classes the groups of rhymes of a form have together: those of 西江月 are of one 部, those of 清平乐 are free.

A form's joint counts are {(class of group a, of group b, …): number of poems}; -1 stands for a class that is not known.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import permutations

from songci.forms.tones import MIN_POEMS

Joint = dict[tuple[int, ...], int]

BOUND = 0.8  # share of the poems in which the class of a group must tell that of another
RARE = 0.1  # share of the poems with a class in one group below which a class in the other does not go with it
MIN_KNOWN = 3  # poems with a class in a group that tell which classes of another go with it


def pairs(joint: Joint, i: int, j: int) -> Counter:
    """{(class of group i, of group j): number of poems}, as far as both are known."""
    counts = Counter()
    for classes, number in joint.items():
        if -1 not in (classes[i], classes[j]):
            counts[classes[i], classes[j]] += number
    return counts


def bound(joint: Joint) -> list[tuple[int, int]]:
    """The pairs of groups of which one tells the other: (the one, the other).

    A poem's class is told if among the other poems with the same class in the one group none is commoner in the other.
    Where nearly all poems have one class in the other, nothing tells it.
    """
    count = len(next(iter(joint), ()))
    found = []
    for i, j in permutations(range(count), 2):
        known, told, commonest = pairs(joint, i, j), 0, Counter()
        for (one, other), number in known.items():
            rivals = [n for (a, b), n in known.items() if a == one and b != other]
            told += number * (number - 1 >= max([1, *rivals]))
            commonest[other] += number
        least = BOUND * known.total()
        if known.total() >= MIN_POEMS and max(commonest.values()) < least <= told and (j, i) not in found:
            found.append((i, j))
    return found


def apart(classes: Sequence[int], joint: Joint, of: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of groups, of those in `of`, whose classes do not go together in the poems counted."""
    found = []
    for i, j in of:
        known = pairs(joint, i, j)
        total = sum(number for (one, _), number in known.items() if one == classes[i])
        if classes[j] >= 0 and total >= MIN_KNOWN and known[classes[i], classes[j]] < RARE * total:
            found.append((i, j))
    return found


def kin(joint: Joint, of: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """The pairs of classes that go together in bound groups, in both orders."""
    fits = (
        (classes[i], classes[j])
        for classes in joint
        for i, j in of
        if -1 not in (classes[i], classes[j]) and not apart(classes, joint, [(i, j)])
    )
    return {pair for a, b in fits for pair in ((a, b), (b, a))}
