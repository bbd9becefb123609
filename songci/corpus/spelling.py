"""How a corpus spells: for characters that others write, traditional ones and variants, those that it has for them.

餘 is 馀 in 全宋词 and not 余, 簷 is 檐, and 樽, which it has, stays 樽. Candidates are OpenCC's simplified form and the
variants that the package yitizi knows; which of them is right, the neighbours tell: what stands before and after the
character in another text, and before and after each candidate in the corpus.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import chain

import numpy as np

from songci.corpus.vocabulary import code_points, distinct

HAN = [chr(code) for code in chain([0x3007], range(0x3400, 0xA000), range(0x20000, 0x323B0))]
SMOOTHING = 200  # neighbours that each candidate gets beforehand, distributed as those of all characters
COMMONNESS = 0.2  # weight of the logarithm of a candidate's count
CLEAR = 0.5  # nats a neighbour by which another candidate must be the likelier to be taken
SEEN = 10  # neighbours without which nothing is clear

SIZE = 0x110000  # of a table by code points


def learn_spelling(text: str, other: str = "") -> dict[str, str]:
    """{character: the one that the corpus has for it}, for all characters that it lacks and has a variant of.

    text: the corpus; other: a text of the same language in its own spelling. With it, the table has also what the
    corpus has, but clearly writes otherwise. Without it, or where it does not tell, a character becomes its simplified
    form, or if the corpus lacks that, its commonest variant.
    """
    counts = Counter(text)
    options = _options(counts)
    spelling = {char: of[0] for char, of in options.items()}
    if other:
        spelling |= _told(text, other, counts, options, spelling)
    return {char: own for char, own in spelling.items() if own != char}


def described(spelling: dict[str, str], text: str, other: str, most: int = 20) -> str:
    """How the text spells what is commonest in the other one, besides simplifying it."""
    own, counts = distinct(text), Counter(other)
    simple = _simplified(spelling)
    lacks = sorted((char for char in spelling if char not in own), key=lambda char: -counts[char])
    has = sorted((char for char in spelling if char in own), key=lambda char: -counts[char])
    told = [char for char in lacks if spelling[char] != simple[char]]
    parts = [
        f"{len(of):,}{what}, such as {' '.join(char + spelling[char] for char in of[:most])}"
        for of, what in ((told, " of them not simplified forms"), (has, " for what the text has, but seldom"))
    ]
    return f"{len(lacks):,} spellings that the text lacks, and its own: {'; and '.join(parts)}"


def _simplified(chars: Iterable[str]) -> dict[str, str]:
    """{character: its simplified form, or itself}."""
    from opencc import OpenCC  # here, because it reads dictionaries

    chars = list(chars)
    return dict(zip(chars, OpenCC("t2s").convert("\n".join(chars)).split("\n"), strict=True))


def _options(counts: Counter) -> dict[str, list[str]]:
    """{character: itself, its simplified form and its variants, the commonest first}, of those that the corpus has."""
    import yitizi  # here, because it reads a dictionary

    options = {}
    for char, simple in _simplified(HAN).items():
        variants = sorted(yitizi.get(char), key=lambda variant: (-counts[variant], variant))
        options[char] = [own for own in dict.fromkeys([char, simple, *variants]) if own in counts]
    return {char: own for char, own in options.items() if own}


def _told(text: str, other: str, counts: Counter, options: dict, spelling: dict[str, str]) -> dict[str, str]:
    """{character: the candidate that is clearly likelier than its first one}, by the neighbours in the other text.

    Of each candidate the mean of log P(neighbour | candidate) / P(neighbour) counts, and that it is common.
    """
    chars = [char for char, own in options.items() if len(own) > 1]
    width = max(map(len, options.values()), default=0)
    candidates = np.array(
        [[ord(options[char][min(i, len(options[char]) - 1)]) for i in range(width)] for char in chars]
    )
    number, own = np.full(SIZE, -1), np.arange(SIZE)
    number[[ord(char) for char in chars]] = np.arange(len(chars))
    own[[ord(char) for char in spelling]] = [ord(char) for char in spelling.values()]
    count = np.zeros(SIZE)
    count[[ord(char) for char in options]] = [counts[char] for char in options]
    points, others = code_points(text).astype(np.int64), code_points(other).astype(np.int64)
    likelihood, seen = np.zeros(candidates.shape), np.zeros(len(chars))
    for before in (True, False):
        side = slice(None, None, -1 if before else 1)  # a text that is read backwards has the neighbour before after it
        pairs, times = _pairs(points[side], count)
        with_near = np.bincount(pairs // SIZE, times, SIZE)
        chance = np.bincount(pairs % SIZE, times, SIZE) / times.sum()
        read = others[side]
        shown = np.stack([number[read[:-1]], own[read[1:]]])[:, (number[read[:-1]] >= 0) & (chance[own[read[1:]]] > 0)]
        shown, weight = np.unique(shown[0] * SIZE + shown[1], return_counts=True)
        which, near = np.divmod(shown, SIZE)
        seen += np.bincount(which, weight, len(chars))
        for i in range(width):
            wanted = candidates[which, i] * SIZE + near
            place = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
            together = np.where(pairs[place] == wanted, times[place], 0)
            share = (together / chance[near] + SMOOTHING) / (with_near[candidates[which, i]] + SMOOTHING)
            likelihood[:, i] += np.bincount(which, weight * np.log(share), len(chars))
    score = likelihood / np.maximum(seen, 1)[:, None] + COMMONNESS * np.log(count[candidates])
    best = score.argmax(axis=1)
    clear = (score.max(axis=1) - score[:, 0] >= CLEAR) & (seen >= SEEN)
    return {chars[i]: chr(candidates[i, best[i]]) for i in np.flatnonzero(clear)}


def _pairs(points: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of neighbouring characters of a text, as first * SIZE + second, ascending, and how often each is there."""
    known = count[points] > 0
    both = known[:-1] & known[1:]
    return np.unique(points[:-1][both] * SIZE + points[1:][both], return_counts=True)
