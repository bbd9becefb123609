import dataclasses
import math

import pytest
import torch
from test_model import SIZES, make

from songci.generation import Context, Controls, KVCache, Text, generate, largest, next_logits, sample_next

TITLE = (0, 1, 1, 1)
MODELS = [
    SIZES[0],
    SIZES[1],
    dataclasses.replace(SIZES[1], no_pos=True),
    dataclasses.replace(SIZES[1], no_res=True),
    SIZES[2],
]
GREEDY = Controls(temperature=0)


def written(model, prompts, steps, controls=GREEDY, seeds=None, title=(), **window) -> list[list[int]]:
    seeds = seeds or range(len(prompts))
    size = model.config.max_seq_len
    texts = [Text(size, title, prompt, seed, **window) for prompt, seed in zip(prompts, seeds, strict=True)]
    assert len(list(generate(model, texts, steps, controls))) == steps
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


def continued(model, ids: list[int], steps: int, window) -> list[int]:
    """Greedy continuation by the definition: window(ids) is what the model sees of them."""
    new = []
    for _ in range(steps):
        with torch.no_grad():
            new.append(model(torch.tensor([window(ids + new)]))[0][0, -1].argmax().item())
    return new


def moved_on(ids: list[int], size: int, kept: int) -> list[int]:
    """A window that grows to `size` tokens, and of which `kept` stay when one more comes."""
    window = []
    for token in ids:
        window = [*(window if len(window) < size else window[size - kept :]), token]
    return window


@pytest.mark.parametrize("config", MODELS[:4])
@pytest.mark.parametrize("keep", [0.0, 0.25, 0.5, 0.99])
def test_greedy_text_past_the_window_is_what_the_definition_gives(config, keep):
    model, size = make(config), config.max_seq_len
    prompts = [[3, 4, 5], [7] * 9, list(range(size + 10))]
    kept = min(max(1, math.ceil(keep * size)), size - 1)
    for prompt, new in zip(prompts, written(model, prompts, 60, keep=keep), strict=True):
        assert new == continued(model, prompt, 60, lambda ids: moved_on(ids, size, kept))


def test_the_exact_window_is_the_newest_tokens_at_every_step():
    model = make(SIZES[0])
    prompts = [[3, 4, 5], list(range(30))]
    for prompt, new in zip(prompts, written(model, prompts, 40, exact=True), strict=True):
        assert new == continued(model, prompt, 40, lambda ids: ids[-16:])


def test_poems_are_seen_in_the_windows_of_training():
    """From the newest title mark; past the window, the older half is dropped again and again."""
    model = make(SIZES[0])

    def window(ids):
        starts = [i for i in range(len(ids) - 2) if ids[i : i + 3] == [1, 1, 1] and (i == 0 or ids[i - 1] == 0)]
        ids = ids[starts[-1] :] if starts else ids
        while len(ids) > 16:
            ids = ids[8:]
        return ids

    prompts = [[1, 1, 1, 7, 8, 0], [9, 8, 7], [5, 0, 0, 1, 1, 1, 9], [1, 1, 1, *range(2, 40)]]
    for prompt, new in zip(prompts, written(model, prompts, 40, title=TITLE), strict=True):
        assert new == continued(model, prompt, 40, window)


def test_a_new_title_begins_a_new_window():
    config = SIZES[0]
    context = Context(config.max_seq_len, TITLE, [1, 1, 1, 7, 0, 8, 9])
    context.cached = 7
    for token in (0, 0, 1, 1):
        context.append(token)
    assert context.ids == [1, 1, 1, 7, 0, 8, 9, 0, 0, 1, 1] and context.cached == 7
    context.append(1)
    assert context.ids == [1, 1, 1] and context.cached == 0


def test_a_text_of_line_ends_goes_on_with_a_title():
    model = make(SIZES[0])
    second = model(torch.tensor([[1]]))[0][0, -1].argmax().item()
    assert written(model, [[0], [0, 0]], 2, title=TITLE) == [[1, second]] * 2


def test_a_text_does_not_depend_on_the_texts_beside_it():
    model = make(SIZES[1])
    prompts, seeds, controls = [[3, 4], [5], [6] * 30, [7]], [11, 12, 13, 14], Controls(0.9, 40, 0.95)
    together = written(model, prompts, 70, controls, seeds)
    alone = [written(model, [p], 70, controls, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert together == alone and len({tuple(new) for new in together}) == 4


def test_generation_stops_at_the_next_title_and_goes_on_with_the_others(monkeypatch):
    """With tokens dictated in the place of sampled ones."""
    model = make(SIZES[0])
    dictated = [[1, 1, 1, 5, 0, 1, 1, 1, 9, 9], [7, 0, 1, 1, 1, 9, 9, 9, 9, 9], [4] * 10]
    texts = [Text(model.config.max_seq_len, TITLE, prompt, 0) for prompt in ([0], [1, 1, 1], [1, 1, 1])]

    def dictate(logits, uniform, controls, seen):
        rows = [row for row, text in enumerate(texts) if not text.done]
        return torch.tensor([dictated[row][len(texts[row].new)] for row in rows])

    monkeypatch.setattr("songci.generation.sample_next", dictate)
    steps = list(generate(model, texts, 10, stop_at_title=True))
    assert [text.new for text in texts] == [dictated[0][:8], dictated[1][:5], dictated[2]]
    assert [text.done for text in texts] == [True, True, False]
    assert steps[7] == [1, None, 4] and steps[9] == [None, None, 4]


def test_the_log_likelihood_is_that_of_the_model():
    model = make(SIZES[1])
    text = Text(model.config.max_seq_len, (), [3, 4], 5)
    list(generate(model, [text], 15, Controls(0.7, 10)))
    with torch.no_grad():
        log_probs = torch.log_softmax(model(torch.tensor([[3, 4, *text.new]]))[0][0], -1)
    expected = sum(log_probs[1 + i, token].item() for i, token in enumerate(text.new))
    assert abs(text.log_likelihood - expected) < 1e-3


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
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 3}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_k": 99}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.0}, [1, 0, 0, 0]),
        ({"top_p": 0.39}, [1, 0, 0, 0]),
        ({"top_p": 0.69}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.71}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 1.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5, "top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),  # 16 : 9, and 16/25 reaches 0.6
    ],
)
def test_a_token_is_drawn_from_the_distribution_that_the_controls_define(controls, expected):
    torch.testing.assert_close(frequencies(**controls), torch.tensor(expected).float(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("k", [1, 5, 49, 50])
def test_the_largest_come_in_falling_order(k):
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    top, ids = largest(logits, k)
    assert torch.equal(top, logits.sort(descending=True).values[:, :k]) and torch.equal(logits.gather(1, ids), top)


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
    model = make(SIZES[1])
    penalty = dataclasses.replace(GREEDY, repetition_penalty=1e9)
    [new] = written(model, [[3, 4]], 60, penalty)
    assert len({3, 4, *new}) == 62  # nothing comes twice
