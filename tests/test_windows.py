import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_model import SIZES, make

from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary
from songci.corpus.windows import Batches, PoemWindows, Windows, poem_starts, stack_windows, title_ids, use_poem_windows
from songci.generation import Context
from songci.training.measure import Measures, poem_loss, stream_loss


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


NEWLINE, PLUS = 0, 1
TITLE_IDS = (NEWLINE, PLUS, PLUS, PLUS)


def poems_of(*lengths: int, before: int = 0) -> tuple[np.ndarray, list[int]]:
    """Tokens of poems of the given lengths (title mark and two line ends included), and where they start."""
    rng = np.random.default_rng(0)
    tokens, starts = rng.integers(2, 90, size=before).tolist() + ([NEWLINE] if before else []), []
    for length in lengths:
        starts.append(len(tokens))
        tokens += [PLUS] * 3 + rng.integers(2, 90, size=length - 5).tolist() + [NEWLINE] * 2
    return np.array(tokens, dtype="<u2"), starts


def test_poems_start_at_title_lines():
    tokens, starts = poems_of(9, 30, 6, before=4)
    for block in (1, 2, 7, 1 << 22):
        assert poem_starts(tokens, TITLE_IDS, block).tolist() == starts
    assert poem_starts(np.array([1, 1, 1, 5, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1], "<u2"), TITLE_IDS).tolist() == [0, 11]
    assert poem_starts(tokens, ()).tolist() == [] and poem_starts(tokens[:2], TITLE_IDS).tolist() == []


def test_title_ids_need_a_corpus_that_has_them():
    assert title_ids(Vocabulary("\n+ab")) == (0, 1, 1, 1) and title_ids(Vocabulary("\nab")) == ()


@pytest.mark.parametrize("seq_len", [4, 7, 8, 16])
def test_poem_windows_predict_every_character_once_in_the_windows_that_sampling_uses(seq_len):
    tokens, starts = poems_of(6, 9, 10, 16, 17, 18, 24, 25, 26, 40, 57, before=3)
    windows = PoemWindows.of(tokens, TITLE_IDS, seq_len)
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
    windows = PoemWindows.of(tokens, TITLE_IDS, config.max_seq_len)
    total, count = 0.0, 0
    for start, scored, length in zip(windows.start, windows.scored, windows.length, strict=True):
        for place in range(start + scored, start + length):
            piece = torch.from_numpy(tokens[start : place + 1].astype(np.int64))[None]
            with torch.no_grad():
                total -= torch.log_softmax(model(piece)[0][0, -1], -1)[tokens[place + 1]].item()
            count += 1
    assert count == 9 + 30 + 25 + 60 - 4
    assert math.isclose(poem_loss(model, tokens, windows, 3), total / count, rel_tol=1e-5)


def test_an_epoch_of_poem_windows_takes_all_first_ones_and_a_share_of_the_later():
    tokens, starts = poems_of(9, 30, 25, 60, 44, 70, 80, 90, 90, 90)
    poems = PoemWindows.of(tokens, TITLE_IDS, 16)
    later = set(poems.start) - set(starts)
    windows = Windows(tokens, 16, 1, poems)
    assert windows.per_epoch == len(starts) + round(0.1 * len(later))
    epochs = [[windows._start(e * windows.per_epoch + i) for i in range(windows.per_epoch)] for e in range(60)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) and set(starts) <= set(epoch) <= set(starts) | later
    assert len({tuple(epoch) for epoch in epochs}) == 60
    assert set().union(*epochs) == set(starts) | later  # drawn anew each time


def test_a_share_of_the_poems_windows_is_spread_evenly(monkeypatch):
    tokens, _ = poems_of(9, 30, 25, 60, 44, 12, 40)
    poems = PoemWindows.of(tokens, TITLE_IDS, SIZES[1].max_seq_len)
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
        measures.poem_loss(model, count)
        assert seen == [poems.start[i] for i in taken]


def test_a_loss_is_measured_without_dropout_and_training_goes_on_with_it():
    model, tokens = make(dataclasses.replace(SIZES[1], dropout=0.5)), np.arange(97, dtype="<u2")
    expected = stream_loss(model, tokens, 4)
    assert stream_loss(model.train(), tokens, 4) == expected and model.training
    assert not model.eval().training and stream_loss(model, tokens, 4) == expected and not model.training


@pytest.mark.parametrize("n", [33, 100])
def test_stream_windows_are_cut_at_every_offset_in_time(n):
    windows = Windows(np.arange(n), seq_len=16, seed=3)
    assert {windows._start(i) % 16 for i in range(300 * windows.per_epoch)} == set(range(16))


def test_batches_for_a_gpu_are_made_one_ahead(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # which has no pinned memory here
    windows = Windows(np.arange(500), 16, 1)
    batches = Batches(windows, 5, torch.device("cuda"))
    batches.prefetch(1)
    made = batches.made[1]
    assert batches.get(1) is made and torch.equal(made[0], windows.batch(1, 5)[0])
    assert torch.equal(batches.get(2)[0], windows.batch(2, 5)[0])


def test_poem_windows_need_poems_in_both_splits():
    assert use_poem_windows("auto", 3, 1) and use_poem_windows("poem", 3, 1) and not use_poem_windows("stream", 3, 1)
    for train_poems, val_poems in ((3, 0), (0, 3), (0, 0)):
        assert not use_poem_windows("auto", train_poems, val_poems)
        with pytest.raises(UserError, match=r"not have \+\+\+ titles in both splits"):
            use_poem_windows("poem", train_poems, val_poems)
