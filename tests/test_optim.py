import copy
import itertools
import math

import pytest
import torch
from conftest import QUICK, TINY
from test_model import SIZES, make

import train
from songci.cli import UserError
from songci.training.optim import Muon, make_optimizers, orthogonalize, schedule


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


def test_a_model_steps_as_torchs_own_optimisers_step():
    """W^Q, W^K and W^V are matrices of their own. Muon's tolerance: torch's computes in bfloat16."""
    model = make(SIZES[1])
    other = copy.deepcopy(model)
    optimizers = make_optimizers(model, 0.01, 0.02, 0.1, "muon")
    pairs = []  # parameters of ours, and the parts of them that torch's Muon gets
    for (name, p), q in zip(model.layers.named_parameters(), other.layers.parameters(), strict=True):
        if p.dim() == 2:
            pairs.append((p, [torch.nn.Parameter(x.clone()) for x in q.detach().chunk(3 if "qkv" in name else 1)]))
    inside = {id(p) for p, _ in pairs}
    rest = [(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True) if id(p) not in inside]
    matrices, vectors = ([q for _, q in rest if (q.dim() == 2) is matrix] for matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizers.append(torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99)))
    parts = [part for _, parts in pairs for part in parts]
    muon = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizers.append(torch.optim.Muon(parts, **muon))
    start = {p: p.detach().clone() for p, _ in pairs}
    torch.manual_seed(0)
    for _ in range(4):
        for p, q in rest:
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for p, parts in pairs:
            p.grad = torch.randn_like(p)
            for part, gradient in zip(parts, p.grad.chunk(len(parts)), strict=True):
                part.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in rest:
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
    for p, parts in pairs:
        assert (p - torch.cat(parts)).norm() < 0.05 * (p - start[p]).norm()


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [schedule(i, 1000, 100) for i in range(1001)]
    assert rates[0] == 0.01 and rates[99] == rates[100] == max(rates) == 1.0
    assert math.isclose(rates[550], 0.5) and rates[1000] == 0.0
    assert all(a < b for a, b in itertools.pairwise(rates[:100]))
    assert all(a > b for a, b in itertools.pairwise(rates[100:]))
    assert schedule(0, 1, 0) == 1.0 and schedule(2, 3, 100) == 0.03


@pytest.fixture
def trainer(data_root, tmp_path):
    """trainer(*flags) → a Trainer of a tiny model."""

    def make_trainer(*flags):
        arguments = ["--data_root", data_root, "--ckpt_path", tmp_path, *TINY, *QUICK, *flags]
        return train.Trainer(train.parse_args(list(map(str, arguments))))

    return make_trainer


def test_the_flags_reach_the_optimisers(trainer):
    flags = ["--lr", 0.03, "--muon_lr", 0.05, "--weight_decay", 0.07]
    adamw, muon = trainer(*flags).optimizers
    assert [(g["base_lr"], g["weight_decay"]) for g in adamw.param_groups] == [(0.03, 0.07), (0.03, 0.0)]
    assert [(g["base_lr"], g["weight_decay"]) for g in muon.param_groups] == [(0.05, 0.07)]


def test_every_step_takes_the_rates_of_its_iteration(trainer):
    run = trainer("--warmup_iters", 4, "--lr", 0.01, "--muon_lr", 0.02)
    rates = []
    for _ in range(12):
        run.step()
        rates.append([group["lr"] for optimizer in run.optimizers for group in optimizer.param_groups])
    shares = [1 / 4, 2 / 4, 3 / 4, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert rates == [pytest.approx([0.01 * share, 0.01 * share, 0.02 * share]) for share in shares]


@pytest.mark.parametrize("clip", [0, 0.25])
def test_the_gradient_is_clipped_and_its_norm_reported_as_it_was_before(trainer, clip):
    run, norms = trainer("--grad_clip", clip), []

    def remember(*_):
        norms.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]).norm().item())

    run.optimizers[0].register_step_pre_hook(remember)
    for _ in range(2):
        _, reported = run.step()
        assert reported > 0.3 and norms.pop() == pytest.approx(clip or reported, rel=1e-4)


def test_a_gradient_that_is_not_finite_ends_the_run(trainer, monkeypatch):
    run = trainer()
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(UserError, match="gradient's norm inf at iteration 0"):
        run.step()
