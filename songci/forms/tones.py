"""Level and oblique tones (平仄), learned from where characters stand, without a dictionary.

Poets put level characters (平) into some places of a tune and oblique ones (仄) into others. So two classes of
characters explain which of them stand where, and EM finds these classes as `hmm.py --fit` finds the states of an HMM.
The model is a mixture, P(place, char) = Σ_z P(z) P(place | z) P(char | z) (Hofmann 1999), over the places of all forms,
a form being a tune and a number of characters.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

LEVEL, OBLIQUE, EITHER = "平仄中"
ITERATIONS = 30
LEVEL_CHARACTERS = "人风花天春山云年时香"  # all that is told: which of the two classes is to be called level
CLEAR = 0.1  # P(level) within this of 0 or 1: a character of one tone
MIN_POEMS = 10  # of a form, for the tones of its places to be told
MIN_CLEAR, MIN_AGREEMENT = 8, 0.9  # clear characters in a place, and the share of one tone that makes it fixed
MIN_CHECKED, MIN_KEPT = 100, 0.9  # fixed places in held-out poems, and the share that must be kept; chance keeps half

Poem = tuple[str, str]  # tune, characters without marks
Form = tuple[str, int]  # tune, number of characters


def learn_tones(poems: list[Poem]) -> tuple[dict[str, float], dict[Form, str]]:
    """P(level | char) of each character, and 平, 仄 or 中 for each place of each form.

    Both are empty where the poems are too few or too irregular to tell. EM finds two classes in anything; so what it
    finds in nine tenths of the poems must be kept by the last tenth.
    """
    most = by_form(poem for i, poem in enumerate(poems) if i % 10)
    level = estimate(most)
    tones = fixed(most, level)
    held_out = [same for tune, text in poems[::10] for same in kept(text, tones.get((tune, len(text)), ""), level)]
    if sum(held_out) < MIN_KEPT * max(len(held_out), MIN_CHECKED):
        return {}, {}
    level = estimate(by_form(poems))
    return level, fixed(by_form(poems), level)


def by_form(poems: Iterable[Poem]) -> dict[Form, list[str]]:
    """The poems of each form that has several."""
    forms = defaultdict(list)
    for tune, text in poems:
        forms[tune, len(text)].append(text)
    return {form: texts for form, texts in forms.items() if len(texts) > 1}


def estimate(forms: dict[Form, list[str]], seed: int = 1) -> dict[str, float]:
    """P(level | char) of each character, by EM on how often it stands in each place."""
    if not forms:
        return {}
    codes = np.frombuffer("".join(map("".join, forms.values())).encode("utf-32-le"), "<u4").astype(np.int64)
    places, first = [], 0  # of each character in `codes`
    for (_, length), texts in forms.items():
        places.append(np.tile(np.arange(first, first + length), len(texts)))
        first += length
    pairs, n = np.unique(np.concatenate(places) << 21 | codes, return_counts=True)  # how often each in each
    place, (chars, char) = pairs >> 21, np.unique(pairs & (1 << 21) - 1, return_inverse=True)
    level = np.random.default_rng(seed).uniform(0.4, 0.6, len(chars))  # P(level | char)
    level_there, mean = np.full(first, 0.5), 0.5  # P(level | place), P(level)
    for _ in range(ITERATIONS):
        yes = level_there[place] * level[char] / mean
        no = (1 - level_there[place]) * (1 - level[char]) / (1 - mean)
        g = n * yes / (yes + no)  # E-step: how many of each pair are level
        mean = g.sum() / n.sum()  # M-step, as if each character and each place had been seen once more
        level = (np.bincount(char, g) + mean) / (np.bincount(char, n) + 1)
        level_there = (np.bincount(place, g, first) + mean) / (np.bincount(place, n, first) + 1)
    found = dict(zip(map(chr, chars), level.tolist(), strict=True))
    named = [found[c] > 0.5 for c in LEVEL_CHARACTERS if c in found]
    return found if 2 * sum(named) >= len(named) else {c: 1 - p for c, p in found.items()}


def tone_of(char: str, level: dict[str, float]) -> str:
    """平 or 仄 for a character of one tone; 中 for one of two, or of none that is known."""
    p = level.get(char, 0.5)
    return LEVEL if p > 1 - CLEAR else OBLIQUE if p < CLEAR else EITHER


def contrary(a: str, b: str) -> bool:
    """Whether one is level and the other oblique."""
    return {a, b} == {LEVEL, OBLIQUE}


def fixed_tone(tones: Iterable[str], least: int = MIN_CLEAR) -> str:
    """The tone of nine tenths or more of those that are no 中, if there are at least so many, else 中."""
    counts = Counter(tones)
    del counts[EITHER]
    most = max(counts, key=counts.get, default=EITHER)
    return most if counts.total() >= least and counts[most] >= MIN_AGREEMENT * counts.total() else EITHER


def fixed(forms: dict[Form, list[str]], level: dict[str, float]) -> dict[Form, str]:
    """For each form of enough poems the tones that its places ask for."""
    table = {ord(char): tone_of(char, level) for char in level}
    enough = {
        form: [text.translate(table) for text in texts] for form, texts in forms.items() if len(texts) >= MIN_POEMS
    }
    return {form: "".join(map(fixed_tone, zip(*texts, strict=True))) for form, texts in enough.items()}


def kept(text: str, tones: str, level: dict[str, float]) -> list[bool]:
    """For each fixed place of `tones` with a character of one tone: whether it has the tone of the place."""
    pairs = ((due, tone_of(char, level)) for char, due in zip(text, tones, strict=False))
    return [due == tone for due, tone in pairs if EITHER not in (due, tone)]
