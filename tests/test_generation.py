import dataclasses

import pytest
import torch
from test_model import SIZES, make

from songci.cache import KVCache
from songci.corpus.vocabulary import Vocabulary
from songci.forms.templates import Forms
from songci.forms.writer import FormRules
from songci.generation import Context, Controls, Text, generate, next_logits, sample_next
from songci.samples import finished, samples
from songci.training.checkpoint import Trained, load_model
from songci.training.device import seed_of

TITLE = (0, 1, 1, 1)
MODELS = [*SIZES[:2], *(dataclasses.replace(SIZES[1], **{flag: True}) for flag in ("no_pos", "no_res")), SIZES[2]]
GREEDY = Controls(temperature=0)


def texts_of(model, prompts, steps, title=(), seeds=range(99), **options) -> list[Text]:
    vocabulary = Vocabulary("\n+" + "".join(map(chr, range(0x4E00, 0x4E00 + model.config.vocab_size - 2))))
    trained = Trained(model, vocabulary, title)
    return [Text(trained, vocabulary.decode(ids), seeds[i], steps, **options) for i, ids in enumerate(prompts)]


def written(model, prompts, steps, controls=GREEDY, title=(), **seeds) -> list[list[int]]:
    texts = texts_of(model, prompts, steps, title, **seeds)
    assert len(list(generate(model, texts, controls))) == steps
    return [text.new for text in texts]


@pytest.mark.parametrize("config", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_logits_equal_those_without_a_cache(config, dtype):
    """At every step up to max_seq_len, for prompts of several lengths that are read together."""
    model = make(config).to(dtype)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, config.vocab_size, (4, config.max_seq_len), generator=generator).tolist()
    contexts = [Context(config.max_seq_len, (), ids[: 3 * i + 1]) for i, ids in enumerate(tokens)]
    cache = KVCache(model, 4)
    with torch.inference_mode():
        for _ in range(config.max_seq_len - 10):
            logits = next_logits(model, contexts, cache, [0, 1, 2, 3])
            for row, context in enumerate(contexts):
                plain = model(torch.tensor([context.ids]))[0][0, -1]
                tolerance = 1e-4 if dtype == torch.float32 else 0.05 * plain.abs().max().item()
                torch.testing.assert_close(logits[row], plain, atol=tolerance, rtol=0)
                context.append(tokens[row][len(context.ids)])
                assert context.cached == len(context.ids) - 1  # nothing is read twice


@pytest.mark.parametrize("config", MODELS[:4])
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
    for ids, new in zip(prompts, written(model, prompts, 60, title=title), strict=True):
        for token in new:
            assert token == model(torch.tensor([window(ids)]))[0][0, -1].argmax()
            ids.append(token)


def test_a_new_title_begins_a_new_window_and_follows_a_text_of_line_ends():
    model = make(SIZES[0])
    context = Context(SIZES[0].max_seq_len, TITLE, [1, 1, 1, 7, 0, 8, 9])
    context.cached = 7
    for token in (0, 0, 1, 1):
        context.append(token)
    assert context.ids == [1, 1, 1, 7, 0, 8, 9, 0, 0, 1, 1] and context.cached == 7
    context.append(1)
    assert context.ids == [1, 1, 1] and context.cached == 0
    second = model(torch.tensor([[1]]))[0][0, -1].argmax().item()
    assert written(model, [[0], [0, 0]], 2, title=TITLE) == [[1, second]] * 2


def test_a_text_does_not_depend_on_the_texts_beside_it():
    model = make(SIZES[1])
    prompts, controls = [[3, 4], [5], [6] * 30, [7]], Controls(0.9, 40, 0.95)
    together = written(model, prompts, 70, controls)
    alone = [written(model, [ids], 70, controls, seeds=[seed])[0] for seed, ids in enumerate(prompts)]
    assert together == alone and len({tuple(new) for new in together}) == 4


def test_a_text_stops_at_the_next_title_and_the_others_go_on(monkeypatch):
    """With tokens dictated in the place of sampled ones."""
    model = make(SIZES[0])
    dictated = [[1, 1, 1, 5, 0, 1, 1, 1, 9, 9], [7, 0, 1, 1, 1, 9, 9, 9, 9, 9], [4] * 10]
    texts = texts_of(model, ([0], [1, 1, 1], [1, 1, 1]), 10, TITLE, poem=True)

    def dictate(*_):
        return torch.tensor([ids[len(text.new)] for ids, text in zip(dictated, texts, strict=True) if not text.done])

    monkeypatch.setattr("songci.generation.sample_next", dictate)
    steps = list(generate(model, texts))
    assert [text.new for text in texts] == [dictated[0][:8], dictated[1][:5], dictated[2]]
    assert [len(step.texts) for step in steps] == [3] * 5 + [2] * 3 + [1] * 2 and steps[6].texts == texts[::2]
    assert [str(text) for text in texts] == ["\n+++七\n", "+++丅\n", "+++" + "丂" * 10]


@torch.inference_mode()
def test_likelihoods_and_what_a_form_allows_are_exact(tuned_root, tuned_ckpt):
    """Against the model's own softmax over the whole vocabulary, recomputed for each step of a poem."""
    trained = load_model(tuned_ckpt)
    model, vocabulary, title, _ = trained
    rules, start = FormRules(Forms.load(tuned_root), vocabulary), "+++清平乐\n"
    [sample] = samples(trained, start, 1, 0, seed=3, rules=rules, measure=True)
    text, twin = (Text(trained, start, seed_of(3, 0, 0), rules=rules) for _ in range(2))
    form, context = twin.form, Context(16, title, vocabulary.encode(start).tolist())  # the same rhymes are drawn
    chosen, free = [], []
    for step in generate(model, [text]):
        log_probs = torch.log_softmax(model(torch.tensor([context.ids]))[0][0, -1], dim=-1)
        torch.testing.assert_close(step.logits[0].log_softmax(-1), log_probs, atol=1e-4, rtol=0)
        assert step.allowed[0].equal(form.allowed()) and step.allowed[0, step.ids[0]]
        chosen.append(log_probs[step.ids[0]].item())
        free += chosen[-1:] if form.allowed().sum() > 1 else []
        form.append(text.new[-1])
        context.append(text.new[-1])
    assert form.done and str(text) == sample.text and sample.tokens == len(chosen) > 16 and 0 < len(free) < len(chosen)
    assert sample.mean_log_likelihood == pytest.approx(sum(chosen) / len(chosen), abs=1e-4)
    assert sample.free_log_likelihood == pytest.approx(sum(free) / len(free), abs=1e-4)


def test_the_best_of_several_is_the_likeliest_of_what_was_free(tuned_root, tuned_ckpt):
    trained = load_model(tuned_ckpt)
    rules = FormRules(Forms.load(tuned_root), trained.vocabulary)
    tries = []
    for i in range(3):
        texts = [Text(trained, "\n", seed_of(1, i, attempt), rules=rules) for attempt in range(5)]
        tries.append(finished(trained, texts, Controls(), measure=True))
        assert len({sample.text for sample in tries[-1]}) == 5
    best = [max(group, key=lambda sample: sample.free_log_likelihood).text for group in tries]
    for batch in (4, 100):
        assert [s.text for s in samples(trained, "\n", 3, 0, rules=rules, best_of=5, batch=batch)] == best


LOGITS = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


def frequencies(n: int = 2000, logits: torch.Tensor = LOGITS, seen=None, **controls) -> torch.Tensor:
    """Shares of the tokens over evenly spaced `uniform`: the distribution itself, up to 1/n."""
    controls = {"temperature": 1.0, "top_k": None} | controls
    uniform = (torch.arange(n, dtype=torch.double) + 0.5) / n
    seen = None if seen is None else torch.tensor(seen).expand(n, -1)
    drawn = sample_next(logits.expand(n, -1), uniform, Controls(**controls), seen)
    return torch.bincount(drawn, minlength=4) / n


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 1e-300}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),  # squares
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
    torch.testing.assert_close(frequencies(**controls), torch.tensor(expected).float(), atol=2e-3, rtol=0)


def test_top_k_keeps_exactly_k_of_equal_ones():
    shares = frequencies(logits=torch.tensor([1.0, 2.0, 1.0, 1.0]), top_k=2)
    assert (shares > 0).sum() == 2 and shares[1] > 0.7


def test_the_repetition_penalty_lowers_what_was_seen():
    logits = torch.tensor([2.0, 2.0, -1.0, -1.0])
    expected = torch.softmax(torch.tensor([1.0, 2.0, -2.0, -1.0]), -1)
    shares = frequencies(logits=logits, seen=[True, False, True, False], repetition_penalty=2.0)
    torch.testing.assert_close(shares, expected, atol=2e-3, rtol=0)
    assert torch.equal(frequencies(logits=logits, seen=[True] * 4), frequencies(logits=logits))


def test_the_repetition_penalty_counts_prompt_and_new_tokens():
    [new] = written(make(SIZES[1]), [[3, 4]], 60, dataclasses.replace(GREEDY, repetition_penalty=1e9))
    characters = [3, 4, *(token for token in new if token > 1)]  # 0 and 1 are line end and +
    assert len(set(characters)) == len(characters) > 30  # none comes twice


@pytest.mark.parametrize(("char", "again"), [("。", True), ("\n", True), ("+", True), ("春", False), ("a", False)])
def test_the_repetition_penalty_spares_what_is_no_character(char, again):
    """Of a model that always wants the same token, which is this one: a poem repeats its marks, and has to end."""
    model = make(SIZES[1])
    [plain] = written(model, [[3, 4]], 60)
    favourite = plain[-1]
    assert plain.count(favourite) > 10
    chars = [*map(chr, range(0x5000, 0x5000 + model.config.vocab_size))]
    chars[favourite] = char
    text = Text(Trained(model, Vocabulary("".join(chars)), ()), chars[3], 1, 60)
    list(generate(model, [text], dataclasses.replace(GREEDY, repetition_penalty=1e9)))
    assert (text.new.count(favourite) > 1) is again
