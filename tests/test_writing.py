"""How a trained model writes: its logits against model.py's, the choice of a character against its definition."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_model import NO_POS, NO_RES, SIZES, make

from model import PRESETS, GPTConfig
from songci.corpus.vocabulary import Vocabulary
from songci.forms.poems import is_character
from songci.forms.rules import FormRules
from songci.forms.templates import Forms
from songci.machine import seed_of
from songci.runs import Trained, as_gpt, load_trained
from songci.training.checkpoint import trained_of
from songci.writing.decoder import Decoder, product
from songci.writing.generation import Controls, Text, Window, choose, generate, log_softmax, next_logits, penalised
from songci.writing.samples import Request, samples

TITLE = (0, 1, 1, 1)
GREEDY = Controls(temperature=0)
LONG = dataclasses.replace(SIZES[1], max_seq_len=200)


def trained_with(model, title=()) -> Trained:
    """With a vocabulary of its size, in which 0 is the line end and 1 a +."""
    vocabulary = Vocabulary("\n+" + "".join(map(chr, range(0x4E00, 0x4E00 + model.config.vocab_size - 2))))
    return trained_of(model, vocabulary, title, "")


def decoder_of(trained: Trained) -> Decoder:
    return Decoder(trained.config, trained.weights)


def texts_of(trained, prompts, steps, seeds=range(99), **options) -> list[Text]:
    decode = trained.vocabulary.decode
    return [Text(trained, decode(ids), seeds[i], steps, **options) for i, ids in enumerate(prompts)]


def written(trained, prompts, steps, controls=GREEDY, **seeds) -> list[list[int]]:
    texts = texts_of(trained, prompts, steps, **seeds)
    assert len(list(generate(decoder_of(trained), texts, controls))) == steps
    return [text.new for text in texts]


# --- the decoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [*SIZES, NO_POS, NO_RES, LONG])
@torch.inference_mode()
def test_the_decoders_logits_are_those_of_model_py(config):
    """At every step up to max_seq_len, for prompts of several lengths that are read together."""
    model = make(config)
    decoder, generator = decoder_of(trained_with(model)).with_cache(4), torch.Generator().manual_seed(0)
    tokens = torch.randint(5, config.vocab_size, (4, config.max_seq_len), generator=generator).tolist()
    windows = [Window(config.max_seq_len, (), ids[: 3 * i + 1]) for i, ids in enumerate(tokens)]
    expected = model(torch.tensor(tokens))[0].numpy()  # (4, L, V): at each position, those of what follows
    for _ in range(config.max_seq_len - 10):
        logits = next_logits(decoder, windows, [0, 1, 2, 3], config.vocab_size)
        assert logits.dtype == np.float32
        for row, window in enumerate(windows):
            np.testing.assert_allclose(logits[row], expected[row, len(window.ids) - 1], atol=1e-4, rtol=0)
            assert window.cached == len(window.ids)  # nothing is read twice
            window.append(tokens[row][len(window.ids)])


def test_what_is_known_of_a_text_can_be_copied():
    """Then its copy goes on with another token, and reads nothing again."""
    trained = trained_with(make(SIZES[1]))
    decoder, windows = decoder_of(trained).with_cache(3), [[3, 4, 5], [6, 7, 8]]
    decoder.next_logits(windows, [0, 0], [0, 2])
    decoder.copy([2, 0], [1, 2])
    again = [[6, 7, 8, 9], [3, 4, 5, 10]]
    expected = decoder_of(trained).with_cache(2).next_logits(again, [0, 0], [0, 1])
    np.testing.assert_allclose(decoder.next_logits(again, [3, 3], [1, 2]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [*SIZES[:2], NO_POS, NO_RES])
@pytest.mark.parametrize("title", [(), TITLE])
@torch.no_grad()
def test_greedy_text_past_the_window_is_what_the_definition_gives(config, title):
    """Of a full window, half is kept; with titles, it begins at the newest one."""
    model, size = make(config), config.max_seq_len

    def window(ids):
        starts = [i for i in range(len(ids) - 2) if ids[i : i + 3] == [1, 1, 1] and (i == 0 or ids[i - 1] == 0)]
        ids = ids[starts[-1] :] if starts and title else ids
        while len(ids) > size:
            ids = ids[size // 2 :]
        return ids

    prompts = [[3, 4, 5], [7] * 9, [1, 1, 1, 7, 8, 0], [5, 0, 0, 1, 1, 1, 9], [1, 1, 1, *range(2, size + 20)]]
    for ids, new in zip(prompts, written(trained_with(model, title), prompts, 60), strict=True):
        for token in new:
            assert token == model(torch.tensor([window(ids)]))[0][0, -1].argmax()
            ids.append(token)


def test_a_new_title_begins_a_new_window_and_follows_a_text_of_line_ends():
    model = make(SIZES[0])
    window = Window(SIZES[0].max_seq_len, TITLE, [1, 1, 1, 7, 0, 8, 9])
    window.cached = 7
    for token in (0, 0, 1, 1):
        window.append(token)
    assert window.ids == [1, 1, 1, 7, 0, 8, 9, 0, 0, 1, 1] and window.cached == 7
    window.append(1)
    assert window.ids == [1, 1, 1] and window.cached == 0
    second = model(torch.tensor([[1]]))[0][0, -1].argmax().item()
    assert written(trained_with(model, TITLE), [[0], [0, 0]], 2) == [[1, second]] * 2


def test_a_text_stops_at_the_next_title_and_the_others_go_on(monkeypatch):
    """With tokens dictated in the place of sampled ones."""
    trained = trained_with(make(SIZES[0]), TITLE)
    dictated = [[1, 1, 1, 5, 0, 1, 1, 1, 9, 9], [7, 0, 1, 1, 1, 9, 9, 9, 9, 9], [4] * 10]
    texts = texts_of(trained, ([0], [1, 1, 1], [1, 1, 1]), 10, stop_at_poem_end=True)

    def dictate(logits, *_):
        ids = [ids[len(text.new)] for ids, text in zip(dictated, texts, strict=True) if not text.done]
        return np.array(ids), np.zeros(len(ids))

    monkeypatch.setattr("songci.writing.generation.choose", dictate)
    steps = list(generate(decoder_of(trained), texts))
    assert [text.new for text in texts] == [dictated[0][:8], dictated[1][:5], dictated[2]]
    assert [len(step.texts) for step in steps] == [3] * 5 + [2] * 3 + [1] * 2 and steps[6].texts == texts[::2]
    assert [str(text) for text in texts] == ["\n+++七\n", "+++丅\n", "+++" + "丂" * 10]


# --- the same seed, the same samples ----------------------------------------------------------------------------------

WRITE = """
import json, pickle, sys
from songci.writing.samples import Request, samples
request, trained = pickle.load(open(sys.argv[1], "rb"))
print(json.dumps([(sample.text, sample.mean_log_likelihood.hex()) for sample in samples(trained, request)]))
"""


def samples_by(path, threads: int, trained, count: int, length: int, batch: int) -> list[list[str]]:
    """Texts and likelihoods, from a process whose products have so many threads."""
    request = Request("\n", count, length, seed=3, batch=batch, with_likelihood=True)
    path.write_bytes(pickle.dumps((request, trained)))
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", WRITE, str(path)]
    return json.loads(subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True).stdout)


def products_are_exact() -> bool:
    """Whether BLAS computes a row alike wherever it stands, as it does with AVX-512, and not with AVX2."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((40, 128), (128, 512)))
    whole = product(x, weight)
    return all((product(x[i : i + n], weight) == whole[i : i + n]).all() for n in (1, 2, 7) for i in range(0, 40, n))


exact = pytest.mark.skipif(not products_are_exact(), reason="BLAS rounds a row by its place on this processor")


@exact
@pytest.mark.parametrize(("vocab_size", "title"), [(500, ()), (5, TITLE)])
def test_the_same_seed_gives_the_same_samples_whatever_stands_beside_them(tmp_path, vocab_size, title):
    """Bit for bit, in windows of more than 128, the longest in which numpy adds all in one order.

    With titles, which a vocabulary of five makes often, each text of a batch has a window of its own length.
    """
    trained = trained_with(make(dataclasses.replace(LONG, vocab_size=vocab_size)), title)
    usual = samples_by(tmp_path / "asked", 1, trained, 100, 150, 100)
    assert len(dict(usual)) == 100
    for threads, count, batch in (2, 100, 100), (1, 14, 7), (1, 4, 2), (1, 2, 1):
        assert samples_by(tmp_path / "asked", threads, trained, count, 150, batch) == usual[:count]


@exact
@pytest.mark.slow
def test_a_thousand_texts_are_the_same_in_all_batches(tmp_path):
    """Of the sizes of the default model; of small batches, which take long, the first texts only."""
    trained = trained_with(make(GPTConfig(1000, **PRESETS["mini"])))
    usual = samples_by(tmp_path / "asked", 1, trained, 1000, 300, 100)
    for threads, count, batch in (2, 1000, 100), (1, 700, 7), (2, 70, 7), (1, 100, 2), (1, 50, 1):
        assert samples_by(tmp_path / "asked", threads, trained, count, 300, batch) == usual[:count]


def test_a_text_does_not_depend_on_the_texts_beside_it():
    trained = trained_with(make(SIZES[1]))
    prompts, controls = [[3, 4], [5], [6] * 30, [7]], Controls(0.9, 40, 0.95)
    together = written(trained, prompts, 70, controls)
    alone = [written(trained, [ids], 70, controls, seeds=[seed])[0] for seed, ids in enumerate(prompts)]
    assert together == alone and len({tuple(new) for new in together}) == 4


# --- likelihoods ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_likelihoods_and_what_a_form_allows_are_exact(tuned_root, tuned_ckpt):
    """Against the model's own softmax over the whole vocabulary, recomputed for each step of a poem."""
    trained = load_trained(tuned_ckpt)
    model, vocabulary = as_gpt(trained), trained.vocabulary
    rules, start, controls = FormRules(Forms.load(tuned_root), vocabulary), "+++清平乐\n", Controls(0.8, 50, None, 1.5)
    [sample] = samples(trained, Request(start, rules=rules, seed=3, controls=controls, with_likelihood=True))
    text, twin = (Text(trained, start, seed_of(3, 0, 0), rules=rules) for _ in range(2))
    form, window = twin.form, Window(16, trained.title, text.prompt)  # the same rhymes are drawn
    own, penal, mass, free = [], [], [], []
    for step in generate(decoder_of(trained), [text], controls):
        logits, token = model(torch.tensor([window.ids]))[0][0, -1].double(), text.new[-1]
        np.testing.assert_allclose(step.logits[0], logits, atol=1e-4, rtol=0)
        assert (step.allowed[0] == form.allowed()).all() and step.allowed[0, token]
        lowered = logits.clone()
        for i in {*text.prompt, *text.new[:-1]}:
            if is_character(vocabulary.chars[i]):
                lowered[i] = logits[i] / 1.5 if logits[i] > 0 else logits[i] * 1.5
        own.append(logits.log_softmax(-1)[token].item())
        penal.append(lowered.log_softmax(-1)[token].item())
        mass.append(logits.log_softmax(-1)[torch.from_numpy(form.allowed())].logsumexp(-1).item())
        free.append(bool(form.allowed().sum() > 1))
        step.record()
        form.append(token)
        window.append(token)
    assert form.done and str(text) == sample.text and sample.tokens == len(own) > 16 and 0 < sum(free) < len(free)
    for i, due in enumerate((own, penal, mass, free)):
        assert [record[i] for record in text.records] == pytest.approx(due, abs=1e-4)
    free_of_penal = [p for p, is_free in zip(penal, free, strict=True) if is_free]
    assert sample.mean_log_likelihood == pytest.approx(np.mean(own), abs=1e-4)
    assert sample.free_log_likelihood == pytest.approx(np.mean(free_of_penal), abs=1e-4) and own != penal


def test_the_best_of_several_is_the_likeliest_of_what_was_free_with_the_penalty(tuned_root, tuned_ckpt, monkeypatch):
    trained, controls = load_trained(tuned_ckpt), Controls(repetition_penalty=3.0)
    rules, due, plain, asked = FormRules(Forms.load(tuned_root), trained.vocabulary), [], [], []
    for i in range(6):
        texts = [Text(trained, "\n", seed_of(1, i, attempt), rules=rules) for attempt in range(5)]
        for step in generate(decoder_of(trained), texts, controls):
            step.record()
        due.append(str(max(texts, key=lambda text: np.mean([r.penalised for r in text.records if r.free]))))
        plain.append(str(max(texts, key=lambda text: np.mean([r.log_prob for r in text.records if r.free]))))
    assert due != plain  # else the test would not see the penalty
    request = Request("\n", 6, rules=rules, controls=controls, best_of=5, num_alternatives=1)
    monkeypatch.setattr("songci.writing.samples.alternatives", lambda *args: asked.append(str(args[2])))
    for batch in (4, 100):
        asked.clear()
        found = samples(trained, dataclasses.replace(request, batch=batch))
        assert [sample.text for sample in found] == due
        assert asked == due  # of no try that is thrown away


# --- the choice of a character ----------------------------------------------------------------------------------------

LOGITS = np.log([0.4, 0.3, 0.2, 0.1])
SOME, LAST = np.array([False, True, False, True]), np.array([False, False, False, True])


def chosen(logits=LOGITS, allowed=None, n: int = 20_000, **controls) -> tuple[np.ndarray, np.ndarray]:
    """Shares (V,) of the tokens in n draws, their standard deviation at most 0.004, and exp(log_mass) of each draw."""
    rows = np.tile(np.float32(logits), (n, 1))
    mask = None if allowed is None else np.tile(allowed, (n, 1))
    own = Controls(**{"temperature": 1.0, "top_k": None} | controls)
    ids, log_mass = choose(rows, mask, own, [np.random.default_rng(1)] * n)
    assert np.isfinite(log_mass).all()
    return np.bincount(ids, minlength=len(logits)) / n, np.exp(log_mass)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 1e-300}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),  # squares
        ({"temperature": 1e300}, [0.25] * 4),
        ({"top_k": 3}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_k": 99}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.0}, [1, 0, 0, 0]),
        ({"top_p": 0.69}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.71}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 1.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5, "top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),  # 16 : 9, and 16/25 reaches 0.6
    ],
)
def test_a_token_is_drawn_from_the_distribution_that_the_controls_define(controls, expected):
    shares, masses = chosen(**controls)
    assert shares == pytest.approx(expected, abs=0.015) and ((shares > 0) == (np.array(expected) > 0)).all()
    assert (masses == 1).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("controls", "allowed", "expected", "mass"),
    [
        ({}, SOME, [0, 0.75, 0, 0.25], 0.4),
        ({"temperature": 0.5}, SOME, [0, 0.9, 0, 0.1], 10 / 30),
        ({"top_k": 2}, SOME, [0, 1, 0, 0], 3 / 7),
        ({"top_p": 0.95}, SOME, [0, 0.75, 0, 0.25], 0.4),
        ({"top_p": 0.85}, SOME, [0, 1, 0, 0], 3 / 9),
        ({"top_p": 0.69}, SOME, [0, 1, 0, 0], 3 / 7),
        # Nothing that is allowed is left: the likeliest that is, with its probability before top-k
        ({"top_k": 1}, SOME, [0, 1, 0, 0], 0.3),
        ({"top_p": 0.3}, SOME, [0, 1, 0, 0], 0.3),
        ({"temperature": 0.5, "top_k": 3}, LAST, [0, 0, 0, 1], 1 / 30),
        ({"temperature": 1e-300}, SOME, [0, 1, 0, 0], 0.0),
        ({"temperature": 1e-300, "top_k": 1}, LAST, [0, 0, 0, 1], 0.0),
        ({"temperature": 0}, SOME, [0, 1, 0, 0], 1.0),
    ],
)
def test_what_a_form_allows_is_drawn_from_what_is_left_and_weighs_what_it_had_there(controls, allowed, expected, mass):
    shares, masses = chosen(allowed=allowed, **controls)
    assert shares == pytest.approx(expected, abs=0.015) and set(np.flatnonzero(shares)) <= set(np.flatnonzero(allowed))
    assert masses == pytest.approx(mass, abs=1e-6)


def test_all_that_are_as_likely_as_the_last_of_top_k_stay():
    logits = np.array([1.0, 2.0, 1.0, 1.0])
    assert chosen(logits, top_k=2)[0] == pytest.approx(np.exp(log_softmax(logits[None])[0]), abs=0.015)
    assert chosen(logits, top_k=1)[0].tolist() == [0, 1, 0, 0]


def test_rows_of_different_numbers_that_are_left_do_not_disturb_each_other():
    """Some with few characters left, some with many, some with nothing that is allowed."""
    rng = np.random.default_rng(0)
    logits, allowed = rng.normal(size=(50, 30)).astype(np.float32), rng.random((50, 30)) < 0.2
    logits[::3] = np.round(logits[::3])  # ties
    allowed[np.arange(50), rng.integers(30, size=50)] = True
    for controls in (Controls(1.0, 3, None), Controls(0.5, 8, 0.7), Controls(1.0, None, 0.4)):
        together = choose(logits, allowed, controls, [np.random.default_rng(i) for i in range(50)])
        for i in range(50):
            alone = choose(logits[i : i + 1], allowed[i : i + 1], controls, [np.random.default_rng(i)])
            assert alone[0][0] == together[0][i] and alone[1][0] == together[1][i] and allowed[i, alone[0][0]]


def test_the_repetition_penalty_lowers_what_was_seen():
    logits = np.array([[2.0, 2.0, -1.0, -1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]], dtype=np.float32)
    lowered = penalised(logits, [[0, 2, 4], []], 2.0)
    assert lowered.tolist() == [[1.0, 2.0, -2.0, -1.0, 0.0], [1.0] * 5] and logits[0, 0] == 2.0
    assert penalised(logits, [[0, 1, 2, 3, 4], [0]], 1.0) is logits


def test_the_repetition_penalty_counts_prompt_and_new_tokens():
    [new] = written(trained_with(make(SIZES[1])), [[3, 4]], 60, dataclasses.replace(GREEDY, repetition_penalty=1e9))
    characters = [3, 4, *(token for token in new if token > 1)]  # 0 and 1 are line end and +
    assert len(set(characters)) == len(characters) > 30  # none comes twice


@pytest.mark.parametrize(("char", "again"), [("。", True), ("\n", True), ("+", True), ("春", False), ("a", False)])
def test_the_repetition_penalty_spares_what_is_no_character(char, again):
    """Of a model that always wants the same token, which is this one: a poem repeats its marks, and has to end."""
    model = make(SIZES[1])
    [plain] = written(trained_with(model), [[3, 4]], 60)
    favourite = plain[-1]
    assert plain.count(favourite) > 10
    chars = [*map(chr, range(0x5000, 0x5000 + model.config.vocab_size))]
    chars[favourite] = char
    trained = trained_of(model, Vocabulary("".join(chars)), (), "")
    text = Text(trained, chars[3], 1, 60)
    list(generate(decoder_of(trained), [text], dataclasses.replace(GREEDY, repetition_penalty=1e9)))
    assert (text.new.count(favourite) > 1) is again
