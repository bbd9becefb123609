"""Samples: finished texts, many of them, with how likely the model finds them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from songci import lookahead
from songci.alternatives import Place, alternatives
from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary
from songci.forms.poems import TITLE
from songci.forms.writer import FormRules
from songci.generation import DEFAULT, Controls, Text, generate
from songci.text import read_text
from songci.training.checkpoint import Trained
from songci.training.device import seed_of
from songci.training.threads import threads_for


@dataclass(frozen=True)
class Sample:
    """A finished text, and the number of its new tokens.

    mean_log_likelihood: in nats over these, by the model itself: temperature 1, nothing dropped; free_log_likelihood:
    over those of them at which the form left a choice. None where there are no such tokens, or nothing was measured.
    draft: the text with blanks (□) for the characters that the model chose, None without a form.
    """

    text: str
    tokens: int
    mean_log_likelihood: float | None
    free_log_likelihood: float | None
    draft: str | None = None
    alternatives: list[Place] = field(default_factory=list)


def samples(
    trained: Trained,
    start: str,
    num_samples: int,
    max_new_tokens: int,
    *,
    seed: int = 1,
    batch: int = 100,
    controls: Controls = DEFAULT,
    poem: bool = False,
    rules: FormRules | None = None,
    best_of: int = 1,
    particles: int = 1,
    measure: bool = False,
    others: int = 0,
) -> Iterator[Sample]:
    """`num_samples` continuations of `start`, `batch` texts at a time. The same seed gives the same texts.

    max_new_tokens, poem, rules: see Text. best_of: each is the likeliest of this many, by free_log_likelihood.
    particles: see lookahead.py, with rules. measure: fills in the log-likelihoods, which costs some time.
    others: fills in so many alternatives for each character, with rules; see alternatives.py.
    """
    total, batch = num_samples * best_of, max(1, batch // particles)

    def tries() -> Iterator[Sample]:
        for first in range(0, total, batch):
            seeds = [seed_of(seed, i // best_of, i % best_of) for i in range(first, min(first + batch, total))]
            texts = [Text(trained, start, own_seed, max_new_tokens, poem, rules) for own_seed in seeds]
            yield from finished(trained, texts, controls, measure or best_of > 1, particles, others)

    made = tries()
    for _ in range(num_samples):
        yield max(islice(made, best_of), key=lambda sample: sample.free_log_likelihood or 0.0)


def finished(
    trained: Trained,
    texts: list[Text],
    controls: Controls,
    measure: bool = False,
    particles: int = 1,
    others: int = 0,
) -> list[Sample]:
    """Writes texts to their ends, and with `measure` sums up how likely the model finds them. As samples()."""
    ahead = particles > 1 and texts[0].form is not None
    write = partial(lookahead.generate, particles=particles) if ahead else generate
    with threads_for(trained.model, len(texts) * (particles if ahead else 1)):
        for step in write(trained.model, texts, controls):
            if measure:
                step.record()
    return [
        Sample(
            str(text),
            len(text.new),
            mean([log_prob for log_prob, _, _ in text.records]),
            mean([log_prob for log_prob, _, free in text.records if free]),
            text.start + text.form.outline if text.form else None,
            alternatives(trained, text, others) if others else [],
        )
        for text in texts
    ]


def mean(values: list[float]) -> float | None:
    """None of no values."""
    return sum(values) / len(values) if values else None


def read_start(start: str) -> str:
    """The text that --start stands for: FILE:path is read, \\n typed in a shell is a line end.

    Raises UserError if it is empty or the file cannot be read.
    """
    if start.startswith("FILE:"):
        start = read_text(Path(start.removeprefix("FILE:")))
        last = start[:-1].rpartition("\n")[2]
        if start.endswith("\n") and last and not TITLE.match(last):  # the editor's: the model is to go on with the line
            start = start[:-1]
    else:
        start = start.replace("\\n", "\n")
    if not start:
        raise UserError('--start is empty: give at least one character, such as "\\n" or +++清平乐')
    return start


def possible_start(vocabulary: Vocabulary, *wished: str) -> str:
    """The first of these texts, or else of a few marks, that a corpus has the characters for; else one of these."""
    known = set(vocabulary.chars)
    possible = (text for text in (*wished, "\n", "。", " ") if set(text) <= known)
    return next(possible, vocabulary.chars[len(vocabulary) // 2])
