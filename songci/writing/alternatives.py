"""What else could stand in the places of a poem: characters that keep its form, by what stands before and after."""

from typing import NamedTuple

import torch
from torch import Tensor

from songci.forms.poems import BLANK
from songci.generation import Context, Text
from songci.training.checkpoint import Trained

CANDIDATES = (
    4  # for each that is asked for, since what stands after may favour one that came late by what stands before
)


class Place(NamedTuple):
    """at: the place in the text; char, probability: what stands there, and how probable; others: the likeliest."""

    at: int
    char: str
    probability: float
    others: list[tuple[str, float]]


@torch.inference_mode()
def alternatives(trained: Trained, text: Text, count: int) -> list[Place]:
    """For each character that was written of a finished poem in form, the `count` likeliest others.

    Probabilities are given all that stands before and the rest of the sentence: by Bayes' rule in proportion to
    p(character and the rest | before), among the candidates: of what the form allows, the likeliest by what stands
    before; and what stands there.
    """
    chars, form = trained.vocabulary.chars, text.form.again()
    whole = str(text)
    body = max(0, whole.index("\n", whole.rindex("+++")) + 1 - len(text.start))  # where it begins in text.new
    context = Context(trained.model.config.max_seq_len, trained.title, text.prompt)
    places = []
    for i, token in enumerate(text.new):
        if i >= body:
            if text.form.outline[i] == BLANK:
                ends = [j for j in range(i, len(text.new)) if chars[text.new[j]] == "。"]
                rest = text.new[i + 1 : ends[0] + 1]
                allowed = form.allowed()
                allowed[token] = True
                found = weighed(trained, context.ids, rest, allowed, token, CANDIDATES * count)
                others = [(chars[other], p) for other, p in found.items() if other != token]
                places.append(Place(len(text.start) + i, chars[token], found[token], others[:count]))
            form.append(token)
        context.append(token)
    return places


def weighed(trained: Trained, before: list[int], rest: list[int], allowed: Tensor, token: int, most: int) -> dict:
    """{candidate: probability}, likeliest first, between the tokens `before` and `rest`; `token` is among them.

    allowed: (V,) True for those that may stand there.
    """
    size = trained.model.config.max_seq_len
    before = before[max(0, len(before) + 1 + len(rest) - size) :]  # a window that holds the sentence
    first = trained.model(torch.tensor([before], device=trained.model.device))[0][0, -1].cpu()
    candidates = first.masked_fill(~allowed, -torch.inf).topk(min(most, int(allowed.sum()))).indices.tolist()
    candidates += [token] * (token not in candidates)
    rows = torch.tensor([[*before, candidate, *rest] for candidate in candidates], device=trained.model.device)
    log_probs = trained.model(rows)[0][:, len(before) - 1 : -1].float().log_softmax(-1)  # (candidates, 1 + rest, V)
    scores = log_probs.gather(-1, rows[:, len(before) :, None]).sum((1, 2))
    shares = dict(zip(candidates, scores.softmax(0).tolist(), strict=True))
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))
