"""How a trained model writes: a character at a time, many texts at once.

generate() is the loop, choose() the choice of a character from the model's logits, Text what is known of a text under
way. A learned position ties a token to its place in the window, so when a window is full, its later half moves to the
front and is read again; that happens once in many tokens, so the mean cost of a token is the same however long the
text.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from songci.forms.poems import BLANK, is_character
from songci.forms.rules import FormRules
from songci.forms.writer import FormWriter
from songci.runs import Trained


@dataclass(frozen=True)
class Controls:
    """How a token is chosen; see choose()."""

    temperature: float = 0.8
    top_k: int | None = 200
    top_p: float | None = None
    repetition_penalty: float = 1.0


DEFAULT = Controls()
# Held to a form, the model repeats characters more often than poets do; the penalty mends that (docs/results.md).
FORM_CONTROLS = replace(DEFAULT, repetition_penalty=1.2)


class Model(Protocol):
    """What gives the logits: the Decoder in numpy, or model.py on a device (sample.py)."""

    def with_cache(self, rows: int) -> "Model":
        """The model, ready for so many new texts."""

    def next_logits(self, windows: Sequence[list[int]], cached: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        """The logits (R, V), float32, of the token that follows each of R windows; see Decoder.next_logits()."""

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies what is known of the texts in some rows into other rows."""


class Record(NamedTuple):
    """What the model thought of a token: by itself, at temperature 1, with nothing dropped."""

    log_prob: float
    penalised: float  # the same, with the repetition penalty
    log_mass: float  # of all that the form allowed
    free: bool  # whether that was more than one token


class Step(NamedTuple):
    """What generate() has chosen in one step: a token for each of the R texts that were not done.

    logits: (R, V), the model's own; lowered: by the repetition penalty; allowed: (R, V), True for the tokens that their
    forms allow, None without forms; ids: (R,).
    """

    texts: list["Text"]
    logits: np.ndarray
    lowered: np.ndarray
    allowed: np.ndarray | None
    ids: np.ndarray

    def record(self) -> None:
        """Adds a Record to each text."""
        rows = np.arange(len(self.ids))
        log_probs = log_softmax(self.logits)
        chosen = log_probs[rows, self.ids]
        penalised = chosen if self.lowered is self.logits else log_softmax(self.lowered)[rows, self.ids]
        log_mass, free = np.zeros(len(rows)), np.ones(len(rows), dtype=bool)
        if self.allowed is not None:
            log_mass = np.log((np.exp(log_probs) * self.allowed).sum(-1))
            free = self.allowed.sum(-1) > 1
        for text, *record in zip(self.texts, chosen, penalised, log_mass, free, strict=True):
            text.records.append(Record(*record))


def generate(model: Model, texts: list["Text"], controls: Controls = DEFAULT) -> Iterator[Step]:
    """Writes texts, all together, a token of each in a step, until all are done.

    What a text becomes does not depend on the texts beside it.
    """
    model = model.with_cache(len(texts))
    while rows := [row for row, text in enumerate(texts) if not text.done]:
        step, _ = write_next(model, [texts[row] for row in rows], rows, controls)
        yield step


def write_next(model: Model, texts: list["Text"], rows: list[int], controls: Controls) -> tuple[Step, np.ndarray]:
    """Adds a token to each of R texts, whose rows in the model's cache are given.

    Returns the step, and the log (R,) of the probability of all that the forms allowed, see choose().
    """
    logits = next_logits(model, [text.window for text in texts], rows, len(texts[0].vocabulary))  # (R, V)
    allowed = np.stack([text.form.allowed() for text in texts]) if texts[0].form else None  # (R, V)
    lowered = penalised(logits, [text.seen for text in texts], controls.repetition_penalty)
    ids, log_mass = choose(lowered, allowed, controls, [text.rng for text in texts])
    for text, token in zip(texts, ids.tolist(), strict=True):
        text.append(token)
    return Step(texts, logits, lowered, allowed, ids), log_mass


def next_logits(model: Model, windows: list["Window"], rows: list[int], vocab_size: int) -> np.ndarray:
    """The logits (R, V) of the token that follows each of the R windows, whose rows in the model's cache are given."""
    # Those that have as much to read together: beside longer ones, a window's last bits would be others
    groups: dict[int, list[int]] = {}
    for i, window in enumerate(windows):
        groups.setdefault(len(window.ids) - window.cached, []).append(i)
    empty = groups.pop(0, [])
    parts = []
    for group in groups.values():
        own = [windows[i] for i in group]
        parts.append(model.next_logits([w.ids for w in own], [w.cached for w in own], [rows[i] for i in group]))
    if len(parts) == 1 and not empty:
        logits = parts[0]
    else:
        logits = np.full((len(windows), vocab_size), -np.inf, dtype=np.float32)
        for group, part in zip(groups.values(), parts, strict=True):
            logits[group] = part
    for window in windows:
        window.cached = len(window.ids)
    for row in empty:  # a window of poems begins with a title mark
        logits[row, windows[row].title[1]] = 0.0
    return logits


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(R, V) in double precision."""
    logits = (logits - logits.max(-1, keepdims=True)).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def penalised(logits: np.ndarray, seen: Sequence[Sequence[int]], penalty: float) -> np.ndarray:
    """The logits (R, V), lowered for the tokens that each of the R texts has already: the repetition penalty.

    Positive ones are divided by it, negative ones multiplied (Keskar et al. 2019). So it depends on where the model
    puts 0, though the softmax does not.
    """
    if penalty == 1.0:
        return logits
    rows = np.repeat(np.arange(len(seen)), [len(ids) for ids in seen])
    ids = np.concatenate([np.asarray(own, dtype=np.int64) for own in seen])
    lowered, own = logits.copy(), logits[rows, ids]
    lowered[rows, ids] = np.where(own > 0, own / np.float32(penalty), own * np.float32(penalty))
    return lowered


def choose(
    logits: np.ndarray, allowed: np.ndarray | None, controls: Controls, rngs: Sequence[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses a token in each row of logits (R, V); returns their ids (R,).

    1. The repetition penalty has been applied; see penalised().
    2. All logits are divided by the temperature; 0 means the likeliest token, always.
    3. All but the top_k likeliest are dropped, and those less likely than the last of them.
    4. Of these, all but the fewest whose probabilities reach top_p (Holtzman et al. 2020).
    5. Of these, all that the form does not allow: allowed (R, V). If none is left, the likeliest that it allows is
       taken.
    6. One is drawn by probability, by a race: each arrives after a random time, exponential at the rate of its
       probability, and the first is taken. rngs: a generator for each row.

    Returns also the logs (R,) of the probabilities that what the form allows had before step 5: by these, particles are
    weighted (smc.py). Where nothing was left, it is the probability of the token that is taken, before step 3.
    """
    R, V = logits.shape
    if controls.temperature == 0:
        return (logits if allowed is None else np.where(allowed, logits, -np.inf)).argmax(-1), np.zeros(R)
    logits = logits - logits.max(-1, keepdims=True)  # so that no temperature, however small, gives infinities
    k = min(controls.top_k or V, V)
    bound = np.partition(logits, V - k, axis=-1)[:, V - k] if k < V else np.full(R, -np.inf)
    places = np.flatnonzero(logits >= bound[:, None])  # row · V + token of all that is left, row after row
    rows = places // V
    starts = np.searchsorted(rows, np.arange(R))
    with np.errstate(over="ignore"):
        weights = np.exp(logits.ravel()[places].astype(np.float64) / controls.temperature)
    if controls.top_p is not None:
        for own in np.split(np.arange(len(places)), starts[1:]):
            order = own[np.argsort(-weights[own], kind="stable")]
            cumulated = weights[order].cumsum()
            weights[order[np.searchsorted(cumulated, controls.top_p * cumulated[-1]) + 1 :]] = 0
    log_mass = np.zeros(R)
    if allowed is not None:
        total = np.add.reduceat(weights, starts)
        weights *= allowed.ravel()[places]
        log_mass = np.log(np.maximum(np.add.reduceat(weights, starts), 1e-300) / total)
    counts = np.diff(starts, append=len(places))
    arrivals = np.concatenate([rng.standard_exponential(n) for rng, n in zip(rngs, counts, strict=True)])
    with np.errstate(divide="ignore"):
        arrivals /= weights
    first = np.minimum.reduceat(arrivals, starts)
    ids = np.zeros(R, dtype=np.int64)
    winners = places[arrivals == first[rows]]
    ids[winners // V] = winners % V
    for row in np.flatnonzero(np.isinf(first)):  # nothing that is allowed is left
        ids[row] = np.where(allowed[row], logits[row], -np.inf).argmax()
        with np.errstate(over="ignore"):
            probs = np.exp(logits[row].astype(np.float64) / controls.temperature)
        log_mass[row] = np.log(max(probs[ids[row]], 1e-300) / probs.sum())
    return ids, log_mass


class Text:
    """A text that generate() writes.

    start: its beginning, with rules up to its first blank (□); prompt: the token ids of that; new: those that followed.
    It is done after max_new_tokens; with stop_at_poem_end, also when the mark of another title line has been written;
    with rules, when it is a whole poem that keeps a form, and only then. seed: of its random numbers.
    seen: the different tokens of characters (no marks, no line ends) in it, for the repetition penalty.
    records: of each new token, by Step.record().
    """

    def __init__(
        self,
        trained: Trained,
        start: str,
        seed: int,
        max_new_tokens: int = 500,
        stop_at_poem_end: bool = False,
        rules: FormRules | None = None,
    ):
        self.rng = np.random.default_rng(seed)
        self.form = None
        if rules:
            trained.vocabulary.encode(start.replace(BLANK, ""))
            self.form = FormWriter(rules, start, self.rng.random)
            start = start.partition(BLANK)[0]  # the form knows what is given after it
        self.start, self.max_new_tokens, self.stop_at_poem_end = start, max_new_tokens, stop_at_poem_end
        self.vocabulary = trained.vocabulary
        self.prompt: list[int] = trained.vocabulary.encode(start).tolist()
        self.new: list[int] = []
        self.seen: list[int] = []
        self.records: list[Record] = []
        self.window = Window(trained.max_seq_len, trained.title)
        for token in self.prompt:
            self._read(token)

    def _read(self, token: int) -> None:
        self.window.append(token)
        if token not in self.seen and is_character(self.vocabulary.chars[token]):
            self.seen.append(token)

    def append(self, token: int) -> None:
        """Goes on with a token."""
        self.new.append(token)
        self._read(token)
        if self.form is not None:
            self.form.append(token)

    def fork(self) -> "Text":
        """A copy with random numbers of its own."""
        other = copy.copy(self)
        other.rng = np.random.default_rng(self.rng.integers(2**63))
        other.copy_state_from(self)
        return other

    def copy_state_from(self, other: "Text") -> None:
        """Takes over what another text has become; goes on with its own random numbers."""
        self.new, self.seen, self.records = [*other.new], [*other.seen], [*other.records]
        self.window = other.window.copy()
        self.form = other.form.copy(self.rng.random) if other.form else None

    @property
    def done(self) -> bool:
        if self.form is not None:
            return self.form.done
        return len(self.new) >= self.max_new_tokens or self.at_next_title

    @property
    def at_next_title(self) -> bool:
        """Whether it is to end with its poem, and does: the next title mark was written, all of it by the model."""
        title = self.window.title
        return self.stop_at_poem_end and len(self.new) >= len(title) and tuple(self.window.tail) == title

    def __str__(self) -> str:
        """Its start and what followed; a finished poem ends with a line end, without the title mark after it."""
        new = self.vocabulary.decode(self.new)
        if self.form is not None or self.at_next_title:
            new = new.removesuffix("+++").rstrip("\n") + "\n"
        return self.start + new


class Window:
    """The part of a growing text that the model sees, as it saw texts in training: `ids`, at most max_seq_len tokens.

    Trained on windows of poems, whose mark is `title`: from the newest mark on. When the window is full, its older half
    is dropped. cached: the number of ids that the model's cache holds. tail: the newest tokens, to find a mark by.
    """

    def __init__(self, max_seq_len: int, title: tuple[int, ...], prompt: Sequence[int] = ()):
        self.max_seq_len, self.title = max_seq_len, title
        self.ids: list[int] = []
        self.cached = 0
        self.tail = list(title[:1])  # a title line begins the text or follows a line end
        for token in prompt:
            self.append(token)

    def append(self, token: int) -> None:
        """Adds the next token of the text, and moves the window on where training would."""
        title, size = self.title, self.max_seq_len
        if title:
            self.tail = [*self.tail, token][-len(title) :]
            if tuple(self.tail) == title:
                self.ids, self.cached = list(title[1:])[-size:], 0
                return
            if not self.ids and token == title[0]:
                return  # no window begins with a line end
        self.ids.append(token)
        if len(self.ids) > size:
            self.ids, self.cached = self.ids[max(1, size // 2) :], 0

    def copy(self) -> "Window":
        other = copy.copy(self)
        other.ids, other.tail = [*self.ids], [*self.tail]
        return other
