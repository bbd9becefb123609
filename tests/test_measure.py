"""The losses that are measured: each token counts once, in the windows that sampling uses."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_corpus import TITLE_IDS, poems_of
from test_model import SIZES, make

from songci.corpus.windows import ScoredWindows, stack_windows
from songci.generation import Context
from songci.training.measure import Measures, stream_loss


@pytest.mark.parametrize("n", [2, 10, 24, 25, 26, 49, 200])
@pytest.mark.parametrize("batchsize", [1, 3])
def test_the_stream_loss_counts_every_token_once(n, batchsize):
    config = SIZES[1]  # windows of 24
    model = make(config)
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=n).astype("<u2")
    total = 0.0
    for start in range(0, n - 1, 24):
        piece = torch.from_numpy(tokens[start : start + 25].astype(np.int64))[None]
        with torch.no_grad():
            total += F.cross_entropy(model(piece[:, :-1])[0][0], piece[0, 1:], reduction="sum").item()
    assert math.isclose(stream_loss(model, tokens, batchsize), total / (n - 1), rel_tol=1e-5)


def test_a_share_of_the_windows_is_spread_evenly(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "songci.training.measure.stack_windows", lambda t, starts, n: seen.extend(starts) or stack_windows(t, starts, n)
    )
    stream_loss(make(SIZES[1]), np.zeros(24 * 10 + 1, dtype="<u2"), 4, max_windows=5)
    assert seen == [0, 48, 96, 144, 192]


@pytest.mark.parametrize("seq_len", [4, 7, 8, 16])
def test_poem_windows_predict_every_character_once_in_the_windows_that_sampling_uses(seq_len):
    tokens, starts = poems_of(6, 9, 10, 16, 17, 18, 24, 25, 26, 40, 57, before=3)
    windows = ScoredWindows.of_poems(tokens, TITLE_IDS, seq_len)
    seen = {}  # predicted place -> the place where its window starts
    for start, scored, length in zip(windows.start, windows.scored, windows.length, strict=True):
        for place in range(start + scored, start + length):
            assert place + 1 not in seen
            seen[place + 1] = start
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        context = Context(seq_len, TITLE_IDS, [])
        for place in range(start, end - 1):
            context.append(int(tokens[place]))
            if place - start >= 2:  # the title mark is read: the context is the window so far
                assert seen.pop(place + 1) == place + 1 - len(context.ids)
            else:
                assert seen.pop(place + 1) == start
    assert not seen


def test_the_poem_loss_is_the_mean_over_the_poems_characters():
    config = SIZES[1]
    model = make(config)
    tokens, _ = poems_of(9, 30, 25, 60, before=5)
    windows = ScoredWindows.of_poems(tokens, TITLE_IDS, config.max_seq_len)
    total, count = 0.0, 0
    for start, scored, length in zip(windows.start, windows.scored, windows.length, strict=True):
        for place in range(start + scored, start + length):
            piece = torch.from_numpy(tokens[start : place + 1].astype(np.int64))[None]
            with torch.no_grad():
                total -= torch.log_softmax(model(piece)[0][0, -1], -1)[tokens[place + 1]].item()
            count += 1
    assert count == 9 + 30 + 25 + 60 - 4
    assert math.isclose(mean_loss(model, tokens, windows, 3), total / count, rel_tol=1e-5)


def test_a_share_of_the_poems_windows_is_spread_evenly(monkeypatch):
    tokens, _ = poems_of(9, 30, 25, 60, 44, 12, 40)
    poems = ScoredWindows.of_poems(tokens, TITLE_IDS, SIZES[1].max_seq_len)
    measures, model, seen = Measures(tokens, poems, 3), make(SIZES[1]), []
    monkeypatch.setattr(
        "songci.training.measure.stack_windows", lambda t, starts, n: seen.extend(starts) or stack_windows(t, starts, n)
    )
    assert len(poems) == 15
    for count, taken in (
        (4, [0, 3, 7, 11]),
        (5, [0, 3, 6, 9, 12]),
        (15, range(15)),
        (99, range(15)),
        (None, range(15)),
    ):
        seen.clear()
        measures.mean_loss(model, count)
        assert seen == [poems.start[i] for i in taken]


def test_a_loss_is_measured_without_dropout_and_training_goes_on_with_it():
    model, tokens = make(dataclasses.replace(SIZES[1], dropout=0.5)), np.arange(97, dtype="<u2")
    expected = stream_loss(model, tokens, 4)
    assert stream_loss(model.train(), tokens, 4) == expected and model.training
    assert not model.eval().training and stream_loss(model, tokens, 4) == expected and not model.training
