"""What else could stand in the places of a poem: characters that keep its form, by what stands before and after."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from songci.forms.poems import BLANK, MARKS
from songci.runs import Trained
from songci.writing.generation import Model, Text, Window, log_softmax

CANDIDATES = 400  # the suffix may favour a candidate that the prefix ranks low; these hold nearly all of the mass
BATCH = 100  # candidates read at a time; bounds the memory


class Place(NamedTuple):
    """at: the place in the text; char, probability: what stands there, and how probable; others: the likeliest."""

    at: int
    char: str
    probability: float
    others: list[tuple[str, float]]


def alternatives(trained: Trained, model: Model, text: Text, count: int) -> list[Place]:
    """For each character that was written of a finished poem in form, the `count` likeliest others.

    Probabilities are given all that stands before and the rest of the sentence; see candidate_posterior().
    """
    chars, form = trained.vocabulary.chars, text.form.again()
    whole = str(text)
    body = max(0, whole.index("\n", whole.rindex("+++")) + 1 - len(text.start))  # where it begins in text.new
    window = Window(trained.max_seq_len, trained.title, text.prompt)
    places = []
    for i, token in enumerate(text.new):
        if i >= body:
            if text.form.outline[i] == BLANK:
                rest = rest_of_sentence(chars, text.new[i + 1 :])
                found = candidate_posterior(model, window.ids, rest, form.allowed(), token, trained.max_seq_len)
                others = [(chars[other], p) for other, p in found.items() if other != token]
                places.append(Place(len(text.start) + i, chars[token], found[token], others[:count]))
            form.append(token)
        window.append(token)
    return places


def rest_of_sentence(chars: str, tokens: Sequence[int]) -> list[int]:
    """The first of the tokens, up to the mark that ends a sentence; chars: the vocabulary's."""
    ends = [i for i, token in enumerate(tokens) if MARKS.get(chars[token]) == "。"]
    return list(tokens[: ends[0] + 1] if ends else tokens)


def candidate_posterior(
    model: Model, before: Sequence[int], rest: Sequence[int], allowed: np.ndarray, token: int, max_seq_len: int
) -> dict[int, float]:
    """{candidate: its probability between the tokens `before` and `rest`}, likeliest first.

    By Bayes' rule in proportion to p(candidate and rest | before), among CANDIDATES: the likeliest after `before` of
    those allowed, (V,) True, and the token that stands there.
    """
    rest = list(rest[: max_seq_len - 1])
    before = list(before[len(rest) - max_seq_len :])  # so that one window holds the sentence, but for its last token
    model = model.with_cache(BATCH)
    prior = log_softmax(model.next_logits([before], [0], [0]))[0]
    order = np.argsort(np.where(allowed, -prior, np.inf), kind="stable")
    candidates = order[: min(CANDIDATES, np.count_nonzero(allowed))].tolist()
    candidates += [] if token in candidates else [token]
    model.copy([0] * (BATCH - 1), range(1, BATCH))  # what was read of `before`
    scores = prior[candidates]
    for first in range(0, len(candidates), BATCH):
        own = candidates[first : first + BATCH]
        windows = [[*before, candidate] for candidate in own]
        for following in rest:
            cached = [len(windows[0]) - 1] * len(own)
            log_probs = log_softmax(model.next_logits(windows, cached, range(len(own))))
            scores[first : first + BATCH] += log_probs[:, following]
            windows = [[*window, following] for window in windows]
    shares = np.exp(scores - scores.max())
    found = zip(candidates, (shares / shares.sum()).tolist(), strict=True)
    return dict(sorted(found, key=lambda pair: -pair[1]))
