"""Statistics of heads against values worked out by hand, and predictions against the model's own logits."""

import numpy as np
import pytest
import torch
from readings import read_corpus

from songci.attention import stats as attnstats
from songci.cli import UserError

CLAUSES = "+++调\n甲乙丙丁，子丑寅。"  # places: 0-3 title, 4 line end, 5-8, 9 comma, 10-12, 13


@pytest.fixture(scope="module")
def reading(data_root, ckpt_path):
    return read_corpus(data_root, ckpt_path)


def looking_at(places: list[int]) -> list[torch.Tensor]:
    """The weights of one head in one layer, of which character i looks at places[i] only."""
    weights = torch.zeros(1, 1, len(places), len(places))
    weights[0, 0, range(len(places)), places] = 1
    return [weights]


def test_a_head_that_looks_at_the_previous_character():
    places = [0, *range(len(CLAUSES) - 1)]
    assert attnstats.head_statistics(looking_at(places), CLAUSES)[:, 0, 0].tolist() == [0, 1, 1, 0]


def test_a_head_that_looks_at_the_first_character():
    entropy, distance, previous, clause = attnstats.head_statistics(looking_at([0] * 4), "甲乙丙丁")[:, 0, 0]
    assert (entropy, distance) == (0, 2) and previous == pytest.approx(1 / 3) and np.isnan(clause)


def test_a_head_that_looks_at_the_same_place_of_the_clause_before():
    places = list(range(14))
    places[10:13] = [5, 6, 7]
    entropy, distance, previous, clause = attnstats.head_statistics(looking_at(places), CLAUSES)[:, 0, 0]
    assert (entropy, previous, clause) == (0, 0, 1) and distance == pytest.approx(3 * 5 / 13)


def test_same_places_pairs_clauses_and_leaves_the_title_out():
    assert attnstats.same_places(CLAUSES) == [(10, 5), (11, 6), (12, 7)]
    assert attnstats.same_places("一二三。四五、六七八九") == [(4, 0), (5, 1), (7, 4), (8, 5)]
    assert attnstats.same_places("") == []


def test_a_uniform_head_has_the_entropy_of_its_choices():
    entropy, distance, previous, _ = attnstats.uniform_statistics("一二三")
    assert entropy == pytest.approx((np.log(2) + np.log(3)) / 2)
    assert distance == pytest.approx((1 / 2 + 1) / 2) and previous == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_each_layer_and_head_has_its_own_statistics(reading):
    values = attnstats.head_statistics(reading.weights, reading.text)
    assert values.shape == (4, 2, 2)
    for layer in range(2):
        for head in range(2):
            alone = [reading.weights[layer][:, head : head + 1]]
            expected = attnstats.head_statistics(alone, reading.text)[:, 0, 0]
            assert np.allclose(values[:, layer, head], expected, equal_nan=True)


def test_predictions_are_the_likeliest_by_the_model(reading):
    best, probs = attnstats.top_predictions(reading, k=5)
    expected = torch.softmax(reading.model(reading.ids)[0][0], dim=-1).detach().numpy()
    assert len(best) == 14 and probs.shape == (14, 5) and (np.diff(probs) <= 0).all()
    for chars, row, all_probs in zip(best, probs, expected, strict=True):
        assert np.allclose(all_probs[reading.vocabulary.encode(chars)], row, atol=1e-6)
        assert row[0] == pytest.approx(all_probs.max(), abs=1e-6)


def test_losses_are_those_of_the_next_character(reading):
    losses = attnstats.character_losses(reading)
    log_probs = torch.log_softmax(reading.model(reading.ids)[0][0].detach(), dim=-1)
    assert np.isnan(losses[0]) and losses.shape == (14,)
    for i in range(1, 14):
        assert losses[i] == pytest.approx(-log_probs[i - 1, reading.ids[0, i]].item(), abs=1e-5)
    assert attnstats.text_loss(reading) == pytest.approx(losses[1:].mean(), abs=1e-5)


def test_a_head_that_is_switched_off_adds_nothing_and_is_back_afterwards(reading):
    """With head 0 off, the output of the attention is W^O applied to the channels of head 1 alone."""
    model, attention = reading.model, reading.model.layers[1].attention
    seen = []
    hook = attention.register_forward_hook(lambda module, inputs, out: seen.append((inputs[0], out[0])))
    with torch.inference_mode(), attnstats.without_head(model, 1, 0):
        model(reading.ids)
    hook.remove()
    [(x, out)] = seen
    with torch.inference_mode():
        _, _, v = attention.qkv(x).chunk(3, dim=-1)
        _, weights = attention(x, torch.ones(14, 14, dtype=torch.bool).triu(1), need_weights=True)
        second = weights[0, 1] @ v[0, :, 8:]  # (L, d)
        assert torch.allclose(out[0], second @ attention.out.weight[:, 8:].T + attention.out.bias, atol=1e-5)
        assert torch.equal(model(reading.ids, need_weights=True)[0][0], reading.logits)


def test_ablation_measures_each_head_by_itself(reading):
    whole, rises = attnstats.head_ablation(reading.model, lambda: attnstats.text_loss(reading))
    assert rises.shape == (2, 2) and whole == pytest.approx(attnstats.text_loss(reading))
    with attnstats.without_head(reading.model, 0, 1):
        assert whole + rises[0, 1] == pytest.approx(attnstats.text_loss(reading))
    assert len(set(rises.flat)) == 4


@pytest.mark.parametrize("num_windows", [1, 5, 10_000])
def test_validation_loss_is_the_same_each_time_and_of_so_many_windows(reading, data_root, num_windows, monkeypatch):
    used = []
    real = attnstats.poem_loss
    monkeypatch.setattr(attnstats, "poem_loss", lambda *args, **kw: used.append(args[2]) or real(*args, **kw))
    loss = attnstats.validation_loss(data_root, reading.model, reading.title, num_windows)
    assert loss() == loss() > 0 and len(used[0]) == len(used[1]) <= num_windows
    assert len(used[0]) == num_windows or num_windows == 10_000  # more than there are
    assert not used[0].scored.any()  # each begins with a title


def test_the_last_row_of_the_lens_is_the_model_itself(reading):
    best, probs, losses = attnstats.logit_lens(reading)
    assert [len(row) for row in best] == [14] * 3 and probs.shape == (3, 14) and losses.shape == (3,)
    top, top_probs = attnstats.top_predictions(reading, k=1)
    assert best[-1] == "".join(top) and np.allclose(probs[-1], top_probs[:, 0], atol=1e-6)
    assert losses[-1] == pytest.approx(np.nanmean(attnstats.character_losses(reading)), abs=1e-5)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in reading.model.layers)


def test_the_lens_reads_what_a_model_of_fewer_layers_would(reading):
    """The row after the first layer equals the prediction of the model whose second layer adds nothing."""
    best, _, losses = attnstats.logit_lens(reading)
    second = reading.model.layers[1]
    kept = {name: value.clone() for name, value in second.state_dict().items()}
    try:
        for part in (second.attention.out, second.feed_forward.down):
            part.weight.data.zero_()
            part.bias.data.zero_()
        shallow = attnstats.read(reading.model, reading.vocabulary, reading.text)
    finally:
        second.load_state_dict(kept)
    assert best[1] == "".join(attnstats.top_predictions(shallow, k=1)[0])
    assert losses[1] == pytest.approx(np.nanmean(attnstats.character_losses(shallow)), abs=1e-4)


def test_an_empty_text_and_unknown_characters_are_refused(reading):
    with pytest.raises(UserError, match="empty"):
        attnstats.read(reading.model, reading.vocabulary, "")
    with pytest.raises(UserError, match=r"U\+2000B"):
        attnstats.read(reading.model, reading.vocabulary, "𠀋")
