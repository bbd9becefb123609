"""Look ahead: what particles write, against full enumeration of p(poem | form)."""

import dataclasses
import random
from itertools import product

import numpy as np
import pytest
import torch

from model import GPT, GPTConfig
from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary
from songci.forms.check import check
from songci.forms.poems import BLANK, is_character
from songci.forms.rules import FormRules
from songci.forms.templates import Forms, Template
from songci.forms.writer import FormWriter
from songci.machine import seed_of
from songci.runs import Trained, as_gpt, load_trained
from songci.training.checkpoint import trained_of
from songci.writing import generation, smc
from songci.writing.alternatives import alternatives
from songci.writing.decoder import Decoder
from songci.writing.generation import Controls, Text, Window
from songci.writing.samples import Request, samples

CHARS = "\n+。小令东红月天"
TEMPLATE = Template(((2, "。"), (2, "。"), (2, "。")), 2, "aaa", joint={(0,): 2})
FORMS = Forms({"小令": [TEMPLATE]}, dict.fromkeys("东红月天", (0,)), {})
CONTROLS = Controls(0.8, None, None, 1.2)
CUT = Controls(0.8, 4, 0.9, 1.2)  # of nine characters; bites, and at times leaves nothing that the form allows
START = "+++小令\n"


@pytest.fixture(scope="module")
def toy() -> Trained:
    """A model of nine characters that has strong opinions: of one that has not, every poem is as good as another."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(len(CHARS), 32, n_layer=2, n_head=2, n_embd=16)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(12 if p.dim() > 1 else 1)
    return trained_of(model, Vocabulary(CHARS), (), "")


def fits(poem: str, draft: str) -> bool:
    """Whether it has the form, its rhymes are different, and it has what the draft gives."""
    rhymes = [poem[1], poem[4], poem[7]]
    same = all(char in (other, "□") for char, other in zip(draft, poem, strict=False))
    return same and set(rhymes) <= set("东红月天") and len(set(rhymes)) == 3


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def sampled_as(logits: np.ndarray, seen: set[int], controls: Controls) -> np.ndarray:
    """The probabilities (V,) of one step as guide.md defines them: penalty, temperature, top-k, top-p."""
    penalty = controls.repetition_penalty
    logits = [x if i not in seen else x / penalty if x > 0 else x * penalty for i, x in enumerate(logits.tolist())]
    probs = np.exp(log_softmax(np.array(logits) / controls.temperature))
    likeliest = sorted(range(len(probs)), key=lambda i: -probs[i])[: controls.top_k]
    total, kept = sum(probs[i] for i in likeliest), []
    for i in likeliest:
        if sum(probs[j] for j in kept) < (controls.top_p or 1) * total:
            kept.append(i)
    own = np.zeros(len(probs))
    own[kept] = probs[kept]
    return own / own.sum(), probs


@torch.inference_mode()
def exact(trained: Trained, draft: str = "", controls: Controls = CONTROLS) -> dict[str, float]:
    """p(poem | form, draft) by its definition, of all poems that are possible.

    Step by step, over what the form allows: its probability in the model as it is sampled; where that is 0 for all, the
    likeliest has that which it had before top-k, and the others none.
    """
    every = (f"{a}{x}。{b}{y}。{c}{z}。" for a, x, b, y, c, z in product(CHARS[3:], repeat=6))
    poems = [poem for poem in every if fits(poem, draft)]
    ids = [[CHARS.index(char) for char in START + poem] for poem in poems]
    logits, begin = as_gpt(trained)(torch.tensor(ids))[0].double().numpy(), len(START)
    following = {}  # what the form allows after a beginning
    for poem in poems:
        for i, char in enumerate(poem):
            following.setdefault(poem[:i], set()).add(CHARS.index(char))
    steps, weights = {}, []
    for row, poem in enumerate(poems):
        weight = 1.0
        for i in range(len(poem)):
            if poem[:i] not in steps:
                seen = {t for t in ids[row][: begin + i] if is_character(CHARS[t])}
                own, before = sampled_as(logits[row, begin + i - 1], seen, controls)
                allowed = np.isin(np.arange(len(CHARS)), list(following[poem[:i]]))
                if not own[allowed].any():
                    best = np.where(allowed, before, 0).argmax()
                    own = np.where(np.arange(len(CHARS)) == best, before, 0)
                steps[poem[:i]] = own
            weight *= steps[poem[:i]][ids[row][begin + i]]
        weights.append(weight)
    total = sum(weights)
    return {poem: weight / total for poem, weight in zip(poems, weights, strict=True)}


def decoder_of(trained: Trained) -> Decoder:
    return Decoder(trained.config, trained.weights)


def drawn(
    trained: Trained, particles: int, draft: str = "", controls: Controls = CONTROLS, count: int = 600
) -> list[str]:
    rules = FormRules(FORMS, trained.vocabulary)
    texts = [Text(trained, START + draft, seed_of(1, i, 0), rules=rules) for i in range(count)]
    for _ in smc.generate(decoder_of(trained), texts, controls, particles):
        pass
    return [str(text).removeprefix(START).rstrip() for text in texts]


def distance(poems: list[str], due: dict[str, float]) -> float:
    """The total variation between what was drawn and what is due."""
    return sum(abs(poems.count(poem) / len(poems) - p) for poem, p in due.items()) / 2


@pytest.mark.slow
@pytest.mark.parametrize("controls", [CONTROLS, CUT], ids=str)
@pytest.mark.parametrize("draft", ["", "□□。□□。小月。", "□□。小□"])
def test_with_more_particles_poems_come_nearer_to_the_model_given_the_form_and_the_draft(toy, draft, controls):
    """The model as it is sampled, with top-k and top-p too."""
    due = exact(toy, draft, controls)
    chance = distance(list(np.random.default_rng(1).choice(list(due), 600, p=list(due.values()))), due)
    one, four, many = (distance(drawn(toy, n, draft, controls), due) for n in (1, 4, 16))
    print(
        f"{draft or 'no draft'}: {one:.2f} with a particle, {four:.2f} with 4, {many:.2f} with 16, chance {chance:.2f}"
    )
    assert one > four > many and many < chance + 0.25 * (one - chance)


def test_poems_of_particles_depend_on_the_seed_alone(tuned_root, tuned_ckpt):
    """Not on the poems beside them; also where the model writes the title."""
    trained = load_trained(tuned_ckpt)
    rules = FormRules(Forms.load(tuned_root), trained.vocabulary)
    for start in ("+++清平乐\n", "\n"):
        texts = [
            [sample.text for sample in samples(trained, Request(start, 6, rules=rules, particles=4, batch=batch))]
            for batch in (1, 8, 100)
        ]
        assert texts[0] == texts[1] == texts[2] and len(set(texts[0])) == 6


@torch.inference_mode()
def test_particles_that_are_drawn_anew_take_with_them_what_was_read_and_seen(tuned_root, tuned_ckpt, monkeypatch):
    """Likelihoods are the model's without a cache; those penalised are the characters of the text."""
    asked, penalised = [], generation.penalised
    monkeypatch.setattr(
        generation, "penalised", lambda *args: asked.append(list(map(set, args[1]))) or penalised(*args)
    )
    monkeypatch.setattr(smc, "ESS_THRESHOLD", 2.0)  # anew at the end of each clause
    trained = load_trained(tuned_ckpt)
    model, rules, chars = (
        as_gpt(trained),
        FormRules(Forms.load(tuned_root), trained.vocabulary),
        trained.vocabulary.chars,
    )
    texts = [Text(trained, "+++清平乐\n", seed_of(1, i, 0), rules=rules) for i in range(5)]
    for step in smc.generate(decoder_of(trained), texts, CONTROLS, 8):
        step.record()
        for text, seen in zip(step.texts, asked[-1], strict=True):
            assert seen == {token for token in (*text.prompt, *text.new[:-1]) if is_character(chars[token])}
    for text in texts:
        window = Window(16, trained.title, text.prompt)
        for token, record in zip(text.new, text.records, strict=True):
            plain = model(torch.tensor([window.ids]))[0][0, -1].log_softmax(-1)
            assert record.log_prob == pytest.approx(plain[token].item(), abs=1e-4)
            window.append(token)


def test_particles_begin_alike_when_the_title_is_written(tuned_root, tuned_ckpt, monkeypatch):
    """Whatever the title of which they are made weighs."""
    groups, resample = [], smc.ParticleGroup.resample

    def spied(group):
        before = len(group.texts)
        pairs = resample(group)
        if len(group.texts) > before:
            groups.append((before, group.log_weights.tolist(), pairs))
        return pairs

    monkeypatch.setattr(smc.ParticleGroup, "resample", spied)
    trained = load_trained(tuned_ckpt)
    rules = FormRules(Forms.load(tuned_root), trained.vocabulary)
    for start in ("\n", "+++清平乐\n"):
        list(smc.generate(decoder_of(trained), [Text(trained, start, 1, rules=rules)], CONTROLS, 4))
    assert groups == [(1, [0.0] * 4, [(0, 1), (0, 2), (0, 3)])] * 2


def test_where_top_k_leaves_nothing_the_likeliest_that_the_form_allows_is_written(toy):
    """A poem comes to its end, in form, though the model alone would never write it."""
    due = exact(toy, controls=Controls(0.8, 1, None, 1.2))
    for particles in (1, 16):
        poems = drawn(toy, particles, controls=Controls(0.8, 1, None, 1.2), count=30)
        assert all(fits(poem, "") for poem in poems)
        assert {poem for poem, p in due.items() if p} == set(poems)  # one only


def due_alternatives(trained: Trained, before: list[int], rest: list[int], free: set[str]) -> dict[str, float]:
    """By Bayes' rule, from model.py's probabilities of what stands between and after."""
    scores, model, chars = {}, as_gpt(trained), trained.vocabulary.chars
    for char in free:
        ids = [*before, chars.index(char), *rest]
        log_probs = model(torch.tensor([ids[:-1]]))[0][0].double().log_softmax(-1)
        scores[char] = sum(log_probs[i - 1, ids[i]].item() for i in range(len(before), len(ids)))
    total = sum(map(np.exp, scores.values()))
    return {char: np.exp(score) / total for char, score in scores.items()}


def in_form(trained: Trained, forms: Forms, start: str) -> Text:
    text = Text(trained, start, 3, rules=FormRules(forms, trained.vocabulary))
    list(smc.generate(decoder_of(trained), [text], CONTROLS, 4))
    return text


@pytest.mark.parametrize("end", "。！．")
@torch.inference_mode()
def test_alternatives_have_the_probabilities_of_bayes_rule(toy, end):
    """Against the model's probabilities of whole sentences, over all that the form allows; however many are asked for.

    In a corpus whose sentences end so.
    """
    trained = dataclasses.replace(toy, vocabulary=Vocabulary(CHARS.replace("。", end)))
    text = in_form(trained, FORMS, f"{START}□□{end}□月{end}")
    poem = str(text).rstrip()
    body = poem.removeprefix(START)
    places = alternatives(trained, decoder_of(trained), text, 9)
    assert "".join(place.char for place in places) == body[:2] + body[3] + body[6:8]
    for place in places:
        i = place.at - len(START)
        assert poem[place.at] == place.char
        free = set("小令东红月天") if i % 3 == 0 else set("东红月天") - {*body[1::3]} | {place.char}
        ids, stop = trained.vocabulary.encode(poem).tolist(), poem.index(end, place.at) + 1
        due = due_alternatives(trained, ids[: place.at], ids[place.at + 1 : stop], free)
        assert dict([(place.char, place.probability), *place.others]) == pytest.approx(due, abs=1e-4)
        assert [p for _, p in place.others] == sorted((p for _, p in place.others), reverse=True)
    for count in (0, 1, 2, 5):
        fewer = alternatives(trained, decoder_of(trained), text, count)
        assert fewer == [place._replace(others=place.others[:count]) for place in places]


@pytest.mark.parametrize("size", [1, 2, 6])
@torch.inference_mode()
def test_alternatives_in_a_sentence_that_is_longer_than_the_window(toy, size):
    """By as much of the sentence as a window holds."""
    forms = Forms({"小令": [Template(((12, "。"),), 2, "a", joint={(0,): 2})]}, FORMS.classes, {})
    weights = {name: weight[:size] if "position" in name else weight for name, weight in toy.weights.items()}
    trained = dataclasses.replace(toy, config={**toy.config, "max_seq_len": size}, weights=weights)
    text = in_form(trained, forms, START)
    ids, places = [*text.prompt, *text.new], alternatives(trained, decoder_of(trained), text, 9)
    assert len(places) == 12
    for place in places[:-1]:
        before, rest = Window(size, (), ids[: place.at]).ids, ids[place.at + 1 : len(START) + 13][: size - 1]
        due = due_alternatives(trained, before[-(size - len(rest)) :], rest, set("小令东红月天"))
        assert dict([(place.char, place.probability), *place.others]) == pytest.approx(due, abs=1e-4)


def test_what_a_draft_gives_stays_and_the_rest_is_written_in_form(tuned_root, tuned_ckpt):
    """Of the corpus's own poems, with blanks at random; the draft of a sample says what was written."""
    trained, rng = load_trained(tuned_ckpt), random.Random(1)
    forms = Forms.load(tuned_root)
    rules = FormRules(forms, trained.vocabulary)
    poems = (tuned_root / "input.txt").read_text(encoding="utf-8").strip().split("\n\n")
    for poem in rng.sample(poems, 30):
        title, body = poem.split("\n")
        draft = "".join(BLANK if is_character(char) and rng.random() < 0.5 else char for char in body)
        draft = draft[: rng.randint(draft.index(BLANK) + 1, len(draft))] if BLANK in draft else draft
        [sample] = samples(trained, Request(f"{title}\n{draft}", rules=rules, particles=2))
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
        allowed = [rules.vocabulary.chars[i] for i in np.flatnonzero(writer.allowed())]
        written += allowed[0]
        writer.append(rules.vocabulary.chars.index(allowed[0]))
    assert written == "东天。月年。" and writer.outline == "□□。月年。"
    with pytest.raises(UserError, match="fits no template of 小令: clause 1 may be 2。"):
        FormWriter(rules, "+++小令\n□□□。", lambda: 0.5)
    with pytest.raises(UserError, match="月 does not rhyme there"):
        FormWriter(rules, "+++小令\n□□。□月", lambda: 0.5)
    with pytest.raises(UserError, match="has a blank"):
        FormWriter(rules, "+++小□\n", lambda: 0.5)
