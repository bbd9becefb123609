"""Level and oblique tones (平仄), learned from where characters stand, without a dictionary.

Poets put level characters (平) into some places of a tune and oblique ones (仄) into others. So two classes of
characters explain which of them stand where, and EM finds these classes as `hmm.py --fit` finds the states of an HMM.
The model is a mixture, P(place, char) = Σ_z P(z) P(place | z) P(char | z) (Hofmann 1999), over the places of all forms,
a form being a tune and a number of characters.

Some forms have several patterns: a regulated verse may begin 平平 or 仄仄, and then all that follows is the other way
round. So its places tell nothing until its poems are divided into variants, which takes the tones. Each makes the other
clearer: tones and variants are found in turn.
"""

import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

LEVEL, OBLIQUE, EITHER = "平仄中"
NAMES = {LEVEL: "level", OBLIQUE: "oblique"}
ITERATIONS = 30
ROUNDS, MORE = 3, 10  # of variants and tones in turn, and the iterations of EM in each
# All that is told: which of the two classes is to be called level. EM starts from these, too, for from elsewhere it may
# find other classes in verse of many variants, such as the characters that begin words and those that end them
LEVEL_CHARACTERS = "人风花天春山云年时香"
CLEAR = 0.1  # P(level) within this of 0 or 1: a character of one tone
MIN_POEMS = 10  # of a form or a variant, for the tones of its places to be told
MIN_PART = 0.02  # of a form's poems, for a variant
WORTH = 1.8  # bits that two variants must save for each that tells which of them a poem has
MIN_CLEAR, MIN_AGREEMENT = 8, 0.9  # clear characters in a place, and the share of one tone that makes it fixed
MIN_CHECKED = 100  # fixed places in held-out poems
MAX_WRONG = 0.2  # the share of them that is wrong, against that with the characters of each poem in random order

Poem = tuple[str, str]  # tune, characters without marks
Form = tuple[str, int]  # tune, number of characters


def learn_tones(poems: list[Poem]) -> tuple[dict[str, float], dict[Form, list[str]]]:
    """P(level | char) of each character, and of each variant of each form 平, 仄 or 中 for each place.

    Both are empty where the poems are too few or too irregular to tell. EM finds two classes in anything; so what it
    finds in nine tenths of the poems must be kept by the last tenth, and not by the same characters in another order.
    """
    level, variants = explain(by_form(poem for i, poem in enumerate(poems) if i % 10))
    tones = fixed(variants, level)
    rng, held_out, by_chance = random.Random(1), [], []
    for tune, text in poems[::10]:
        known = tones.get((tune, len(text)), [""])
        for chars, same in ((text, held_out), ("".join(rng.sample(text, len(text))), by_chance)):
            same += kept(chars, nearest(chars, known, level), level)
    wrong, chance = (1 - sum(same) / max(1, len(same)) for same in (held_out, by_chance))
    if len(held_out) < MIN_CHECKED or wrong >= MAX_WRONG * chance:
        return {}, {}
    level, variants = explain(by_form(poems), level)
    return level, fixed(variants, level)


def by_form(poems: Iterable[Poem]) -> dict[Form, list[str]]:
    """The poems of each form that has several."""
    forms = defaultdict(list)
    for tune, text in poems:
        forms[tune, len(text)].append(text)
    return {form: texts for form, texts in forms.items() if len(texts) > 1}


def explain(
    forms: dict[Form, list[str]], level: dict[str, float] | None = None
) -> tuple[dict[str, float], dict[Form, list[list[str]]]]:
    """P(level | char) of each character, and the poems of each form by variant.

    level: what is known of the characters, if it is; else it is found first.
    """
    rounds = 1 if level else ROUNDS
    level, variants = level or estimate(forms.values()), {}
    for _ in range(rounds):
        values = np.full(sys.maxunicode + 1, 0.5, np.float32)
        values[[*map(ord, level)]] = [*level.values()]
        variants = {form: divide(texts, values, max(MIN_POEMS, MIN_PART * len(texts))) for form, texts in forms.items()}
        level = estimate((texts for parts in variants.values() for texts in parts), level)
    return level, variants


def divide(texts: list[str], values: np.ndarray, least: float) -> list[list[str]]:
    """The poems of a form by variant, of `least` poems or more: halved as long as that makes for a shorter description.

    values: P(level) by code point. Two halves save bits if their tones are less uncertain, place by place, than those
    of all poems together. They cost bits too, to say which of them a poem has and how their places are.
    """
    if len(texts) < 2 * least:
        return [texts]
    x = values[codes(texts)].reshape(len(texts), -1)
    side = halves(x)
    saved = bits(x) - bits(x[side]) - bits(x[~side]) - x.shape[1] * np.log2(len(x)) / 2
    if min(side.sum(), (~side).sum()) < least or saved < WORTH * bits(side[:, None]):
        return [texts]
    parts = ([text for text, own in zip(texts, side, strict=True) if own == which] for which in (True, False))
    return [variant for part in parts for variant in divide(part, values, least)]


def halves(x: np.ndarray) -> np.ndarray:
    """(poems,) True for those of one of two kinds, by their P(level) in each place: (poems, places).

    First by the sign of the first principal component (power iteration: a decomposition takes a hundred times as long),
    then by the likelier of two independent models of the places.
    """
    centred, component = x - x.mean(0), np.random.default_rng(1).normal(size=x.shape[1]).astype(x.dtype)
    for _ in range(ITERATIONS):
        component = centred.T @ (centred @ component)
        component /= np.linalg.norm(component) or 1
    side = centred @ component > 0
    for _ in range(ITERATIONS):
        p, q = ((x[which].sum(0) + 1) / (which.sum() + 2) for which in (side, ~side))
        before, prior = side, (side.sum() + 1) / (len(x) + 2)
        side = x @ np.log(p / q) + (1 - x) @ np.log((1 - p) / (1 - q)) + np.log(prior / (1 - prior)) > 0
        if (side == before).all():
            break
    return side


def bits(x: np.ndarray) -> float:
    """What it takes to write yes or no for each poem and place: (poems, places) of probabilities."""
    p = (x.sum(0) + 0.5) / (len(x) + 1)
    return -len(x) * (p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum()


def codes(texts: Iterable[str]) -> np.ndarray:
    """The code points of all characters, one text after another."""
    return np.frombuffer("".join(texts).encode("utf-32-le"), "<u4").astype(np.int64)


def estimate(groups: Iterable[list[str]], start: dict[str, float] | None = None) -> dict[str, float]:
    """P(level | char) of each character, by EM on how often it stands in each place of groups of like poems.

    start: what EM starts from, if something is known.
    """
    places, texts, first = [np.zeros(0, np.int64)], [], 0  # of each character
    for group in groups:
        length = len(group[0])
        places.append(np.tile(np.arange(first, first + length), len(group)))
        texts += group
        first += length
    if not first:
        return {}
    pairs, n = np.unique(np.concatenate(places) << 21 | codes(texts), return_counts=True)  # how often each in each
    place, (chars, char) = pairs >> 21, np.unique(pairs & (1 << 21) - 1, return_inverse=True)
    level = np.random.default_rng(1).uniform(0.45, 0.55, len(chars))  # P(level | char)
    told = start or dict.fromkeys(LEVEL_CHARACTERS, 1 - CLEAR / 2)
    level = np.array([told.get(chr(c), p) for c, p in zip(chars, level, strict=True)])
    level_there, mean = np.bincount(place, n * level[char]) / np.bincount(place, n), 0.5  # P(level | place), P(level)
    for _ in range(MORE if start else ITERATIONS):
        yes = level_there[place] * level[char] / mean
        no = (1 - level_there[place]) * (1 - level[char]) / (1 - mean)
        g = n * yes / (yes + no)  # E-step: how many of each pair are level
        # M-step, as if each character and each place had been seen once more
        mean = np.clip(g.sum() / n.sum(), 1e-9, 1 - 1e-9)
        level = (np.bincount(char, g) + mean) / (np.bincount(char, n) + 1)
        level_there = (np.bincount(place, g) + mean) / (np.bincount(place, n) + 1)
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


def fixed(variants: dict[Form, list[list[str]]], level: dict[str, float]) -> dict[Form, list[str]]:
    """For each form of enough poems, and each of its variants, the tones that its places ask for."""
    table = {ord(char): tone_of(char, level) for char in level}
    return {
        form: [
            "".join(map(fixed_tone, zip(*(text.translate(table) for text in texts), strict=True))) for texts in parts
        ]
        for form, parts in variants.items()
        if len(parts[0]) >= MIN_POEMS
    }


def kept(text: str, tones: str, level: dict[str, float]) -> list[bool]:
    """For each fixed place of `tones` with a character of one tone: whether it has the tone of the place."""
    pairs = ((due, tone_of(char, level)) for char, due in zip(text, tones, strict=False))
    return [due == tone for due, tone in pairs if EITHER not in (due, tone)]


def nearest(text: str, variants: list[str], level: dict[str, float]) -> str:
    """Of the tones of variants those that the text keeps best, the first of equals."""
    return max(variants, key=lambda tones: nearness(text, tones, level)) if len(variants) > 1 else variants[0]


def nearness(text: str, tones: str, level: dict[str, float]) -> float:
    """How many bits likelier a text is where nine tenths keep the fixed places of `tones` than where half do."""
    same = kept(text, tones, level)
    right = sum(same)
    return right * math.log2(2 * MIN_AGREEMENT) + (len(same) - right) * math.log2(2 * (1 - MIN_AGREEMENT))
