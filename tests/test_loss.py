import math

import pytest
import torch
import torch.nn.functional as F
from test_model import SIZES, make, token_ids

from songci.corpus.windows import IGNORE
from songci.training.loss import TrainingLoss, head_loss, perplexity


def problem(rows=40, C=12, V=50):
    torch.manual_seed(0)
    hidden = torch.randn(2, rows // 2, C, requires_grad=True)
    weight = torch.randn(V, C, requires_grad=True)
    targets = torch.randint(V, (2, rows // 2))
    targets[0, 3:7] = IGNORE
    return hidden, weight, targets


def value_and_gradients(loss, *parameters):
    return [loss, *torch.autograd.grad(3 * loss, parameters)]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_value_and_gradients_equal_those_of_torchs_cross_entropy(monkeypatch, chunk):
    monkeypatch.setattr("songci.training.loss.CHUNK_ROWS", chunk)
    hidden, weight, targets = problem()
    plain = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    expected = value_and_gradients(plain, hidden, weight)
    for ours, theirs in zip(
        value_and_gradients(head_loss(hidden, weight, targets), hidden, weight), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_bfloat16_is_close():
    hidden, weight, targets = problem(400, 64)
    exact = value_and_gradients(head_loss(hidden, weight, targets), hidden, weight)
    rough = value_and_gradients(head_loss(hidden, weight, targets, torch.bfloat16), hidden, weight)
    for ours, theirs in zip(rough, exact, strict=True):
        assert ours.dtype == torch.float32 and (ours - theirs).norm() < 0.01 * theirs.norm()


def test_targets_that_are_all_ignored_give_zero():
    hidden, weight, targets = problem()
    assert head_loss(hidden, weight, torch.full_like(targets, IGNORE)).item() == 0


def test_a_certain_mistake_is_a_finite_loss():
    hidden, weight = torch.ones(1, 1, 1), torch.tensor([[1000.0], [0.0]])
    assert math.isfinite(head_loss(hidden, weight, torch.tensor([[1]])).item())


def test_perplexity_is_e_to_the_loss():
    assert math.isclose(perplexity(700), math.exp(700))
    assert perplexity(0) == 1 and math.isclose(perplexity(math.log(50)), 50) and perplexity(1e9) == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_and_head_compute_in_the_type_asked_for(dtype, monkeypatch):
    model, seen = make(SIZES[0]), []
    model.layers[0].attention.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    monkeypatch.setattr(
        "songci.training.loss.head_loss", lambda *arguments: seen.append(arguments[3]) or head_loss(*arguments)
    )
    U = token_ids(model.config)
    value = TrainingLoss(model, dtype)(U, U)
    assert seen == [dtype, dtype] and value.dtype == torch.float32
    expected = F.cross_entropy(model(U)[0].flatten(0, 1), U.flatten())
    assert value.item() == pytest.approx(expected.item(), rel=1e-5 if dtype == torch.float32 else 2e-2)
