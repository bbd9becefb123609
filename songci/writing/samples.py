"""Samples: complete texts, many of them, with how likely the model finds them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from songci.forms.rules import FormRules
from songci.machine import seed_of
from songci.runs import Trained
from songci.writing import smc
from songci.writing.alternatives import Place, alternatives
from songci.writing.decoder import Decoder
from songci.writing.generation import DEFAULT, Controls, Model, Text, generate


@dataclass(frozen=True)
class Request:
    """What is to be written."""

    start: str
    num_samples: int = 1
    max_new_tokens: int = 500
    stop_at_poem_end: bool = False
    rules: FormRules | None = None  # of the form that each sample is to keep; then it is a whole poem
    controls: Controls = DEFAULT
    seed: int = 1
    batch: int = 100  # texts written at a time
    particles: int = 1  # for each poem in form, see smc.py
    best_of: int = 1  # each sample is the likeliest of this many
    with_likelihood: bool = False  # fills in the log-likelihoods, which costs some time
    num_alternatives: int = 0  # for each character, with rules; see alternatives.py

    @property
    def texts_at_once(self) -> int:
        return max(1, self.batch // self.particles)


@dataclass(frozen=True)
class Sample:
    """A complete text."""

    text: str
    tokens: int  # new ones
    # In nats a new token, by the model itself: temperature 1, nothing dropped. None if there are none, or not asked for
    mean_log_likelihood: float | None = None
    # The same with the repetition penalty, of those tokens at which the form left a choice: for best_of
    free_log_likelihood: float | None = None
    draft: str | None = None  # the text with blanks (□) for the characters that the model chose; None without a form
    alternatives: list[Place] = field(default_factory=list)


def samples(trained: Trained, request: Request, model: Model | None = None) -> Iterator[Sample]:
    """What the request asks for, one sample after another. The same seed gives the same texts.

    model: what gives the logits; if left out, the decoder in numpy.
    """
    model = model or Decoder(trained.config, trained.weights)

    def tries() -> Iterator[tuple[Sample, Text]]:
        total, size = request.num_samples * request.best_of, request.texts_at_once
        for first in range(0, total, size):
            numbers = range(first, min(first + size, total))
            seeds = [seed_of(request.seed, i // request.best_of, i % request.best_of) for i in numbers]
            own = request.max_new_tokens, request.stop_at_poem_end, request.rules
            texts = [Text(trained, request.start, seed, *own) for seed in seeds]
            yield from zip(complete(model, texts, request), texts, strict=True)

    made = tries()
    for _ in range(request.num_samples):
        sample, text = max(islice(made, request.best_of), key=lambda one: one[0].free_log_likelihood or 0.0)
        if request.num_alternatives:
            sample = replace(sample, alternatives=alternatives(trained, model, text, request.num_alternatives))
        yield sample


def complete(model: Model, texts: list[Text], request: Request) -> list[Sample]:
    """Writes texts to their ends."""
    particles = request.particles if texts[0].form is not None else 1
    write = partial(smc.generate, particles=particles) if particles > 1 else generate
    for step in write(model, texts, request.controls):
        if request.with_likelihood or request.best_of > 1:
            step.record()
    return [
        Sample(
            str(text),
            len(text.new),
            mean([record.log_prob for record in text.records]),
            mean([record.penalised for record in text.records if record.free]),
            text.start + text.form.outline if text.form else None,
        )
        for text in texts
    ]


def mean(values: list[float]) -> float | None:
    """None of no values."""
    return sum(values) / len(values) if values else None
