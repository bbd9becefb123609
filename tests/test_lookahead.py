"""Look ahead: what particles write, against full enumeration of p(poem | form)."""

import random
from itertools import product

import numpy as np
import pytest
import torch
from songci.alternatives import alternatives
from songci.generation import Context, Controls, Text, penalised
from songci.samples import samples

from model import GPT, GPTConfig
from songci import lookahead
from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary
from songci.forms.check import check
from songci.forms.poems import BLANK, is_character
from songci.forms.templates import Forms, Template
from songci.forms.writer import FormRules, FormWriter
from songci.training.checkpoint import Trained, load_model
from songci.training.device import seed_of

CHARS = "\n+。小令东红月天"
TEMPLATE = Template(((2, "。"), (2, "。"), (2, "。")), 2, "aaa", joint={(0,): 2})
FORMS = Forms({"小令": [TEMPLATE]}, dict.fromkeys("东红月天", (0,)), {})
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


def fits(poem: str, draft: str) -> bool:
    """Whether it has the form, its rhymes are different, and it has what the draft gives."""
    rhymes = [poem[1], poem[4], poem[7]]
    same = all(char in (other, "□") for char, other in zip(draft, poem, strict=False))
    return same and set(rhymes) <= set("东红月天") and len(set(rhymes)) == 3


@torch.inference_mode()
def exact(trained: Trained, draft: str = "") -> dict[str, float]:
    """p(poem | form, draft) by its definition, of all poems that are possible."""
    every = (f"{a}{x}。{b}{y}。{c}{z}。" for a, x, b, y, c, z in product(CHARS[3:], repeat=6))
    poems = [poem for poem in every if fits(poem, draft)]
    ids = torch.tensor([[CHARS.index(char) for char in START + poem] for poem in poems])
    logits, begin = trained.model(ids)[0], len(START)
    total = torch.zeros(len(ids), dtype=torch.double)
    for i in range(begin, ids.size(1)):
        seen = torch.zeros(len(ids), len(CHARS), dtype=torch.bool).scatter_(1, ids[:, :i], True)
        log_probs = (penalised(logits[:, i - 1], CONTROLS, seen) / CONTROLS.temperature).double().log_softmax(-1)
        total += log_probs.gather(1, ids[:, i : i + 1])[:, 0]
    return dict(zip(poems, total.softmax(0).tolist(), strict=True))


def drawn(trained: Trained, particles: int, draft: str = "", count: int = 600) -> list[str]:
    rules = FormRules(FORMS, trained.vocabulary)
    texts = [Text(trained, START + draft, seed_of(1, i, 0), rules=rules) for i in range(count)]
    for _ in lookahead.generate(trained.model, texts, CONTROLS, particles):
        pass
    return [str(text).removeprefix(START).rstrip() for text in texts]


def distance(poems: list[str], due: dict[str, float]) -> float:
    """The total variation between what was drawn and what is due."""
    return sum(abs(poems.count(poem) / len(poems) - p) for poem, p in due.items()) / 2


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["", "□□。□□。小月。", "□□。小□"])
def test_with_more_particles_poems_come_nearer_to_the_model_given_the_form_and_the_draft(toy, draft):
    due = exact(toy, draft)
    chance = distance(list(np.random.default_rng(1).choice(list(due), 600, p=list(due.values()))), due)
    one, four, many = (distance(drawn(toy, n, draft), due) for n in (1, 4, 16))
    print(
        f"{draft or 'no draft'}: {one:.2f} with a particle, {four:.2f} with 4, {many:.2f} with 16, chance {chance:.2f}"
    )
    assert one > four > many and many < chance + 0.25 * (one - chance)


def test_poems_of_particles_depend_on_the_seed_alone(tuned_root, tuned_ckpt):
    """Not on the poems beside them; also where the model writes the title."""
    trained = load_model(tuned_ckpt)
    rules = FormRules(Forms.load(tuned_root), trained.vocabulary)
    for start in ("+++清平乐\n", "\n"):
        texts = [
            [sample.text for sample in samples(trained, start, 6, 0, rules=rules, particles=4, batch=batch)]
            for batch in (1, 8, 100)
        ]
        assert texts[0] == texts[1] == texts[2] and len(set(texts[0])) == 6


@torch.inference_mode()
def test_particles_that_are_drawn_anew_take_with_them_what_was_read_and_seen(tuned_root, tuned_ckpt, monkeypatch):
    """Likelihoods are the model's without a cache; those penalised are the characters of the text."""
    asked = []
    monkeypatch.setattr(lookahead, "penalised", lambda *args: asked.append(args[2]) or penalised(*args))
    monkeypatch.setattr(lookahead, "EFFECTIVE", 2.0)  # anew at the end of each clause
    trained = load_model(tuned_ckpt)
    rules, chars = FormRules(Forms.load(tuned_root), trained.vocabulary), trained.vocabulary.chars
    texts = [Text(trained, "+++清平乐\n", seed_of(1, i, 0), rules=rules) for i in range(5)]
    for step in lookahead.generate(trained.model, texts, CONTROLS, 8):
        step.record()
        for text, seen in zip(step.texts, asked[-1], strict=True):
            characters = {token for token in (*text.prompt, *text.new[:-1]) if is_character(chars[token])}
            assert set(seen.nonzero().flatten().tolist()) == characters
    for text in texts:
        context = Context(16, trained.title, text.prompt)
        for token, (log_prob, _, _) in zip(text.new, text.records, strict=True):
            plain = trained.model(torch.tensor([context.ids]))[0][0, -1].log_softmax(-1)
            assert log_prob == pytest.approx(plain[token].item(), abs=1e-4)
            context.append(token)


def test_alternatives_have_the_probabilities_of_bayes_rule(toy):
    """Against the model's probabilities of whole sentences."""
    rules = FormRules(FORMS, toy.vocabulary)
    text = Text(toy, START + "□□。□月。", 3, rules=rules)
    for _ in lookahead.generate(toy.model, [text], CONTROLS, 4):
        pass
    poem, begin = str(text).removeprefix(START).rstrip(), len(START)
    places = alternatives(toy, text, 9)
    assert "".join(place.char for place in places) == poem[:2] + poem[3] + poem[6:8]
    for place in places:
        i = place.at - begin
        assert (START + poem)[place.at] == place.char
        end = poem.index("。", i) + 1
        free = set(CHARS[3:]) if i % 3 == 0 else set("东红月天") - {poem[1], poem[4], poem[7]} | {place.char}
        scores = {}
        for char in free:
            ids = [CHARS.index(c) for c in START + poem[:i] + char + poem[i + 1 : end]]
            log_probs = toy.model(torch.tensor([ids]))[0][0].log_softmax(-1)
            scores[char] = sum(log_probs[j - 1, ids[j]].item() for j in range(begin + i, len(ids)))
        due = {char: np.exp(score) / sum(map(np.exp, scores.values())) for char, score in scores.items()}
        found = dict([(place.char, place.probability), *place.others])
        assert found == pytest.approx(due, abs=1e-4)
        assert [p for _, p in place.others] == sorted((p for _, p in place.others), reverse=True)


def test_what_a_draft_gives_stays_and_the_rest_is_written_in_form(tuned_root, tuned_ckpt):
    """Of the corpus's own poems, with blanks at random; the draft of a sample says what was written."""
    trained, rng = load_model(tuned_ckpt), random.Random(1)
    forms = Forms.load(tuned_root)
    rules = FormRules(forms, trained.vocabulary)
    poems = (tuned_root / "input.txt").read_text(encoding="utf-8").strip().split("\n\n")
    for poem in rng.sample(poems, 30):
        title, body = poem.split("\n")
        draft = "".join(BLANK if is_character(char) and rng.random() < 0.5 else char for char in body)
        draft = draft[: rng.randint(draft.index(BLANK) + 1, len(draft))] if BLANK in draft else draft
        [sample] = samples(trained, f"{title}\n{draft}", 1, 0, rules=rules, particles=2)
        written = sample.text.partition("\n")[2].rstrip()
        assert len(written) >= len(draft) and all(a in (b, BLANK) for a, b in zip(draft, written, strict=False))
        assert check(title[3:], written, forms).form
        shown = sample.draft.partition("\n")[2]
        assert shown.startswith(draft) and all(a in (b, BLANK) for a, b in zip(shown, written, strict=False))


def test_given_characters_need_no_tone_and_a_given_rhyme_decides_those_before_it():
    template = Template(((2, "。"), (2, "。")), 9, "aa", tones="平平平平", joint={(0,): 9})
    forms = Forms(
        {"小令": [template]},
        {"东": (0,), "红": (0,), "天": (1,), "年": (1,)},
        {**dict.fromkeys("东红天年小", 0.99), "月": 0.01},
    )
    rules = FormRules(forms, Vocabulary("\n+。东令天小年月红"))
    writer = FormWriter(rules, "+++小令\n□□。月年。", lambda: 0.5)
    written = ""
    while not writer.done:
        allowed = [rules.vocabulary.chars[i] for i in writer.allowed().nonzero()]
        written += allowed[0]
        writer.append(rules.vocabulary.chars.index(allowed[0]))
    assert written == "东天。月年。" and writer.outline == "□□。月年。"
    with pytest.raises(UserError, match="fits no template of 小令: clause 1 may be 2。"):
        FormWriter(rules, "+++小令\n□□□。", lambda: 0.5)
    with pytest.raises(UserError, match="月 does not rhyme there"):
        FormWriter(rules, "+++小令\n□□。□月", lambda: 0.5)
    with pytest.raises(UserError, match="has a blank"):
        FormWriter(rules, "+++小□\n", lambda: 0.5)
