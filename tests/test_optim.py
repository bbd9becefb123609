import itertools
import math

import pytest
import torch
from test_model import SIZES, make

from optim import Muon, make_optimizers, orthogonalize, schedule


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 20), (2, 20, 8)])
def test_orthogonalize_sets_the_singular_values_near_one_and_keeps_the_directions(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalize(matrices)
    for before, after in zip(matrices, result, strict=True):
        U, S, Vh = torch.linalg.svd(before, full_matrices=False)
        inside = U.T @ after @ Vh.T  # diagonal if the singular vectors stay
        assert (inside - inside.diag().diag()).abs().max() < 0.02
        large = 0.1 * S.max() < S  # five steps leave the smallest behind
        assert (inside.diag()[large] > 0.6).all() and (inside.diag() < 1.25).all()


def test_muon_is_torchs_muon_done_in_batches():
    """torch.optim.Muon takes one matrix at a time, in bfloat16: hence the tolerance."""
    torch.manual_seed(0)
    shapes = [(16, 16), (16, 16), (64, 16), (16, 64), (64, 16)]
    start = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    flags = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    optimizers = [Muon(ours, **flags), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **flags)]
    for step in range(4):
        torch.manual_seed(step)
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q, p0 in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.05 * (p - p0).norm()


def test_stacked_matrices_are_orthogonalised_each_by_itself():
    torch.manual_seed(0)
    parts = [torch.nn.Parameter(torch.randn(8, 8)) for _ in range(3)]
    stacked = torch.nn.Parameter(torch.cat([p.detach() for p in parts]))
    for p in parts:
        p.grad = torch.randn_like(p)
    stacked.grad = torch.cat([p.grad for p in parts])
    Muon(parts, lr=0.1).step()
    Muon([stacked], lr=0.1, blocks={stacked: 3}).step()
    torch.testing.assert_close(stacked.data, torch.cat([p.data for p in parts]))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_has_one_optimiser_and_only_matrices_decay(kind):
    model = make(SIZES[1])
    groups = [g for o in make_optimizers(model, 0.01, 0.02, 0.1, kind) for g in o.param_groups]
    parameters = [p for group in groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == len(list(model.parameters()))
    for group in groups:
        assert {p.dim() for p in group["params"]} == ({2} if group["weight_decay"] else {1})
    rates = {id(p): group["base_lr"] for group in groups for p in group["params"]}
    inside = 0.02 if kind == "muon" else 0.01
    assert rates[id(model.layers[0].attention.qkv.weight)] == inside
    assert rates[id(model.token_embedding.weight)] == rates[id(model.layers[0].attention.qkv.bias)] == 0.01


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [schedule(i, 1000, 100) for i in range(1001)]
    assert rates[0] == 0.01 and rates[99] == rates[100] == max(rates) == 1.0
    assert math.isclose(rates[550], 0.5) and rates[1000] == 0.0
    assert all(a < b for a, b in itertools.pairwise(rates[:100]))
    assert all(a > b for a, b in itertools.pairwise(rates[100:]))
    assert schedule(0, 1, 0) == 1.0 and schedule(2, 3, 100) == 0.03
