import math

import numpy as np
import pytest
import torch
from test_model import SIZES, make

from cli import UserError
from windows import Windows, loss_function, perplexity, stack_windows, validation_loss


@pytest.mark.parametrize("n", [17, 18, 32, 33, 34, 100, 1000])
def test_an_epoch_takes_every_window_once_and_each_epoch_cuts_anew(n):
    windows = Windows(np.arange(n), seq_len=16, seed=3)
    epochs = []
    for epoch in range(8):
        starts = [windows._start(epoch * windows.per_epoch + i) for i in range(windows.per_epoch)]
        assert min(starts) >= 0 and max(starts) + 16 < n
        assert sorted(starts) == list(range(min(starts), min(starts) + 16 * windows.per_epoch, 16))
        epochs.append(starts)
    assert windows.per_epoch >= (n - 1) // 16 - 1
    if n >= 100:
        assert len({min(starts) for starts in epochs}) > 1
        assert len({tuple(np.argsort(starts)) for starts in epochs}) > 1


def test_batches_are_a_function_of_the_seed_and_the_iteration():
    tokens = np.arange(500)
    straight = [Windows(tokens, 16, 1).batch(i, 5)[0] for i in range(20)]
    windows = Windows(tokens, 16, 1)
    for i in (19, 3, 11):  # in any order
        assert torch.equal(windows.batch(i, 5)[0], straight[i])
    assert not torch.equal(Windows(tokens, 16, 2).batch(0, 5)[0], straight[0])


def test_targets_are_the_inputs_shifted_by_one():
    inputs, targets = Windows(np.arange(100), 16, 1).batch(0, 3)
    assert inputs.shape == targets.shape == (3, 16)
    assert torch.equal(inputs + 1, targets)


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(UserError, match="16 characters: too few for --max_seq_len 16"):
        Windows(np.arange(16), 16, 1)


@pytest.mark.parametrize("n", [2, 10, 24, 25, 26, 49, 200])
@pytest.mark.parametrize("batchsize", [1, 3])
def test_the_validation_loss_counts_every_token_once(n, batchsize):
    config = SIZES[1]  # windows of 24
    model = make(config)
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=n).astype("<u2")
    total = 0.0
    for start in range(0, n - 1, 24):
        piece = torch.from_numpy(tokens[start : start + 25].astype(np.int64))[None]
        with torch.no_grad():
            total += loss_function(model(piece[:, :-1])[0], piece[:, 1:], reduction="sum").item()
    assert math.isclose(validation_loss(model, tokens, batchsize), total / (n - 1), rel_tol=1e-5)


def test_a_share_of_the_windows_is_spread_evenly(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "windows.stack_windows", lambda t, starts, n: seen.extend(starts) or stack_windows(t, starts, n)
    )
    validation_loss(make(SIZES[1]), np.zeros(24 * 10 + 1, dtype="<u2"), 4, max_windows=5)
    assert seen == [0, 48, 96, 144, 192]


def test_perplexity_is_e_to_the_loss():
    assert perplexity(0) == 1 and math.isclose(perplexity(math.log(50)), 50) and perplexity(1e9) == math.inf
