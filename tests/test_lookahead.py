"""Look ahead: what particles write, against full enumeration of p(poem | form)."""

from itertools import product

import numpy as np
import pytest
import torch

from model import GPT, GPTConfig
from songci import lookahead
from songci.corpus.vocabulary import Vocabulary
from songci.forms.templates import Forms, Template
from songci.forms.writer import FormRules
from songci.generation import Controls, Text, penalised
from songci.training.checkpoint import Trained
from songci.training.device import seed_of

CHARS = "\n+。小令东红月天"
TEMPLATE = Template(((2, "。"), (2, "。"), (2, "。")), 2, "aaa")
FORMS = Forms({"小令": [TEMPLATE]}, {"东": 0, "红": 0, "月": 0}, {})
CONTROLS = Controls(0.8, None, None, 1.2)
START = "+++小令\n"


@pytest.fixture(scope="module")
def toy() -> Trained:
    """A model of nine characters that has strong opinions: of one that has not, every poem is as good as another."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(len(CHARS), 32, n_layer=2, n_head=2, n_embd=16)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(12 if p.dim() > 1 else 1)
    return Trained(model, Vocabulary(CHARS), ())


@torch.inference_mode()
def exact(trained: Trained) -> dict[str, float]:
    """p(poem | form) by its definition, of all poems in the form."""
    free, rhyming = CHARS[3:], "东红月"
    poems = {}
    for a, b, c in product(free, repeat=3):
        for x, y, z in product(rhyming, repeat=3):
            if len({x, y, z}) == 3:  # a rhyme does not repeat a character
                poems[f"{a}{x}。{b}{y}。{c}{z}。"] = 0.0
    ids = torch.tensor([[CHARS.index(char) for char in START + poem] for poem in poems])
    logits, begin = trained.model(ids)[0], len(START)
    total = torch.zeros(len(ids), dtype=torch.double)
    for i in range(begin, ids.size(1)):
        seen = torch.zeros(len(ids), len(CHARS), dtype=torch.bool).scatter_(1, ids[:, :i], True)
        log_probs = (penalised(logits[:, i - 1], CONTROLS, seen) / CONTROLS.temperature).double().log_softmax(-1)
        total += log_probs.gather(1, ids[:, i : i + 1])[:, 0]
    return dict(zip(poems, total.softmax(0).tolist(), strict=True))


def drawn(trained: Trained, particles: int, count: int = 1500) -> list[str]:
    rules = FormRules(FORMS, trained.vocabulary)
    texts = [Text(trained, START, seed_of(1, i, 0), rules=rules) for i in range(count)]
    for _ in lookahead.generate(trained.model, texts, CONTROLS, particles):
        pass
    return [str(text).removeprefix(START).rstrip() for text in texts]


def distance(poems: list[str], due: dict[str, float]) -> float:
    """The total variation between what was drawn and what is due."""
    return sum(abs(poems.count(poem) / len(poems) - p) for poem, p in due.items()) / 2


def test_with_more_particles_poems_come_nearer_to_the_model_given_the_form(toy):
    due = exact(toy)
    chance = distance(list(np.random.default_rng(1).choice(list(due), 1500, p=list(due.values()))), due)
    one, four, many = (distance(drawn(toy, n), due) for n in (1, 4, 32))
    print(one, four, many, chance)
    assert one > four > many and many < chance + 0.25 * (one - chance)
