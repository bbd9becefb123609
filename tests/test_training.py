"""The training room: optimiser, loss, measures, checkpoints, the machine, and the folder of a run."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from unittest.mock import Mock

import matplotlib.image
import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, after_each_iteration, contents, tiny_flags, train_tiny
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_corpus import TITLE_IDS, poems_of
from test_model import SIZES, make, token_ids

import songci
import train
from songci import machine
from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary
from songci.corpus.windows import IGNORE, ScoredWindows
from songci.curves import LABELS, plot_curves, read_log
from songci.machine import LARGE, choose_device, seed_of, set_blas_threads
from songci.runs import perplexity
from songci.training import device, runlog, threads
from songci.training.batches import stack_windows
from songci.training.checkpoint import load_checkpoint, save_checkpoint
from songci.training.device import choose_dtype, settle
from songci.training.loss import TrainingLoss, head_loss
from songci.training.measure import Measures, mean_loss
from songci.training.optim import Muon, make_optimizers, orthogonalize, schedule
from songci.training.runlog import LOG_FIELDS, RUN_FILES, log_line, own_folder, write_log
from songci.training.threads import considerate_threads
from songci.writing.generation import Window

VOCABULARY = Vocabulary("".join(map(chr, range(50, 100))), {"a": "b"})  # for SIZES[0]

# --- optimiser --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 20), (2, 20, 8)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 0.02), (torch.bfloat16, 0.1)])
def test_orthogonalize_sets_the_singular_values_near_one_and_keeps_the_directions(shape, dtype, error):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalize(matrices, dtype)
    for before, after in zip(matrices, result, strict=True):
        U, S, Vh = torch.linalg.svd(before, full_matrices=False)
        inside = U.T @ after @ Vh.T  # diagonal if the singular vectors stay
        assert (inside - inside.diag().diag()).abs().max() < error
        large = 0.2 * S.max() < S  # five steps leave the smallest behind
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


def test_muon_makes_a_momentum_once_for_each_matrix(monkeypatch):
    made, zeros_like = [], torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda tensor: made.append(tensor) or zeros_like(tensor))
    p = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([p], lr=0.02)
    for _ in range(3):
        p.grad = torch.randn(4, 4)
        optimizer.step()
    assert len(made) == 1


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
    assert rates[id(model.layers[0].attention.query.weight)] == inside
    assert rates[id(model.token_embedding.weight)] == rates[id(model.layers[0].attention.query.bias)] == 0.01


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [schedule(i, 2000, 100) for i in range(2001)]
    assert rates[:100] == pytest.approx(np.arange(1, 101) / 100) and rates[99] == 1.0
    assert rates[100:] == pytest.approx(np.arange(1900, -1, -1) / 1900) and rates[2000] == 0.0
    assert schedule(0, 1, 0) == schedule(0, 3, 100) == 1.0


def test_a_short_run_warms_up_for_a_twentieth_of_its_iterations():
    """With --warmup_iters 100, a run of 100 iterations would never train at the full rates."""
    assert [schedule(i, 100, 100) for i in range(100)] == [schedule(i, 100, 5) for i in range(100)]
    assert schedule(4, 100, 100) == 1.0 and schedule(2, 2000, 100) == 0.03


def test_the_flags_reach_the_optimisers_and_every_step_takes_the_rates_of_its_iteration(make_trainer):
    flags = ["--warmup_iters", 4, "--lr", 0.03, "--muon_lr", 0.05, "--weight_decay", 0.07]
    run = make_trainer("--iters", 80, *flags)
    groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
    assert [(g["base_lr"], g["weight_decay"]) for g in groups] == [(0.03, 0.07), (0.03, 0.0), (0.05, 0.07)]
    for share in (1 / 4, 2 / 4, 3 / 4, 1, 1, 75 / 76, 74 / 76, 73 / 76):
        run.iterate()
        assert [g["lr"] for g in groups] == pytest.approx([0.03 * share, 0.03 * share, 0.05 * share])


@pytest.mark.parametrize("clip", [0, 0.25])
def test_the_gradient_is_clipped_and_its_norm_reported_as_it_was_before(make_trainer, clip):
    run, norms = make_trainer("--grad_clip", clip), []

    def remember(*_):
        norms.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]).norm().item())

    run.optimizers[0].register_step_pre_hook(remember)
    for _ in range(2):
        _, reported = run.iterate()
        assert reported > 0.3 and norms.pop() == pytest.approx(clip or reported, rel=1e-4)


def test_a_gradient_that_is_not_finite_ends_the_run(make_trainer, monkeypatch):
    run = make_trainer()
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(UserError, match="gradient's norm inf at iteration 0"):
        run.iterate()


# --- loss -------------------------------------------------------------------------------------------------------------


def problem(rows=40, C=12, V=50):
    torch.manual_seed(0)
    hidden = torch.randn(2, rows // 2, C, requires_grad=True)
    weight = torch.randn(V, C, requires_grad=True)
    targets = torch.randint(V, (2, rows // 2))
    targets[0, 3:7] = IGNORE
    return hidden, weight, targets


def value_and_gradients(loss, hidden, weight):
    return [loss, *torch.autograd.grad(3 * loss, (hidden, weight))]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_value_and_gradients_equal_those_of_torchs_cross_entropy(monkeypatch, chunk):
    monkeypatch.setattr("songci.training.loss.CHUNK_ROWS", chunk)
    hidden, weight, targets = problem()
    plain = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    pairs = [value_and_gradients(loss, hidden, weight) for loss in (head_loss(hidden, weight, targets), plain)]
    torch.testing.assert_close(*pairs, atol=1e-5, rtol=1e-4)


def test_bfloat16_is_close():
    hidden, weight, targets = problem(400, 64)
    losses = (head_loss(hidden, weight, targets, dtype) for dtype in (torch.bfloat16, torch.float32))
    for ours, theirs in zip(*(value_and_gradients(loss, hidden, weight) for loss in losses), strict=True):
        assert ours.dtype == torch.float32 and (ours - theirs).norm() < 0.01 * theirs.norm()


def test_no_target_at_all_gives_zero_and_a_certain_mistake_a_finite_loss():
    hidden, weight, targets = problem()
    assert head_loss(hidden, weight, torch.full_like(targets, IGNORE)).item() == 0
    hidden, weight = torch.ones(1, 1, 1), torch.tensor([[1000.0], [0.0]])
    assert math.isfinite(head_loss(hidden, weight, torch.tensor([[1]])).item())


def test_perplexity_is_e_to_the_loss():
    assert math.isclose(perplexity(700), math.exp(700))
    assert perplexity(0) == 1 and math.isclose(perplexity(math.log(50)), 50) and perplexity(1e9) == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_and_head_compute_in_the_type_asked_for(dtype, monkeypatch):
    model, seen = make(SIZES[0]), []
    model.layers[0].attention.query.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    monkeypatch.setattr(
        "songci.training.loss.head_loss", lambda *arguments: seen.append(arguments[3]) or head_loss(*arguments)
    )
    U = token_ids(model.config)
    value = TrainingLoss(model, dtype)(U, U)
    assert seen == [dtype, dtype] and value.dtype == torch.float32
    expected = F.cross_entropy(model(U)[0].flatten(0, 1), U.flatten())
    assert value.item() == pytest.approx(expected.item(), rel=1e-5 if dtype == torch.float32 else 2e-2)


# --- measures ---------------------------------------------------------------------------------------------------------


def assert_mean_loss(model, tokens, windows, spans, batchsize, predictions) -> None:
    """The mean over spans (start, scored, length) of a text, each read by itself, which are so many predictions."""
    losses = []
    for start, scored, length in spans:
        text = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))
        with torch.no_grad():
            losses.append(F.cross_entropy(model(text[None, :-1])[0][0], text[1:], reduction="none")[scored:])
    losses = torch.cat(losses)
    assert len(losses) == predictions
    assert math.isclose(mean_loss(model, tokens, windows, batchsize), losses.mean().item(), rel_tol=1e-5)


@pytest.mark.parametrize("n", [2, 10, 24, 25, 26, 49, 200])
@pytest.mark.parametrize("batchsize", [1, 3])
def test_the_stream_loss_counts_every_token_once(n, batchsize):
    tokens = np.random.default_rng(0).integers(SIZES[1].vocab_size, size=n).astype("<u2")
    spans = [(start, 0, min(24, n - 1 - start)) for start in range(0, n - 1, 24)]
    assert_mean_loss(make(SIZES[1]), tokens, ScoredWindows.of_stream(tokens, 24), spans, batchsize, n - 1)


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
        context = Window(seq_len, TITLE_IDS)
        for place in range(start, end - 1):
            context.append(int(tokens[place]))
            if place - start >= 2:  # the title mark is read: the context is the window so far
                assert seen.pop(place + 1) == place + 1 - len(context.ids)
            else:
                assert seen.pop(place + 1) == start
    assert not seen


def test_the_poem_loss_is_the_mean_over_the_poems_characters():
    tokens, _ = poems_of(9, 30, 25, 60, before=5)
    windows = ScoredWindows.of_poems(tokens, TITLE_IDS, 24)
    spans = zip(windows.start, windows.scored, windows.length, strict=True)
    assert_mean_loss(make(SIZES[1]), tokens, windows, spans, 3, predictions=9 + 30 + 25 + 60 - 4)


def test_a_share_of_the_poems_windows_is_spread_evenly(monkeypatch):
    tokens, _ = poems_of(9, 30, 25, 60, 44, 12, 40)
    measures, model, seen = Measures(tokens, TITLE_IDS, SIZES[1].max_seq_len, 3), make(SIZES[1]), []
    poems = measures.windows["poem"]
    monkeypatch.setattr(
        "songci.training.measure.stack_windows", lambda t, starts, n: seen.extend(starts) or stack_windows(t, starts, n)
    )
    assert len(poems) == 15
    for count, taken in ((4, [0, 3, 7, 11]), (5, [0, 3, 6, 9, 12]), (15, range(15)), (99, range(15))):
        seen.clear()
        measures.loss("poem", model, count)
        assert seen == [poems.start[i] for i in taken]


def test_a_loss_is_measured_without_dropout_and_training_goes_on_with_it():
    model, tokens = make(dataclasses.replace(SIZES[1], dropout=0.5)), np.arange(97, dtype="<u2")
    windows = ScoredWindows.of_stream(tokens, 24)
    expected = mean_loss(model, tokens, windows, 4)
    assert mean_loss(model.train(), tokens, windows, 4) == expected and model.training
    assert not model.eval().training and mean_loss(model, tokens, windows, 4) == expected and not model.training


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{}, {"no_pos": True}, {"no_res": True}, {"dropout": 0.5}])
def test_a_checkpoint_brings_back_the_model_and_its_vocabulary(tmp_path, flags):
    model = make(dataclasses.replace(SIZES[0], **flags))
    save_checkpoint(tmp_path / "last.pt", model, VOCABULARY, iteration=3)
    loaded, vocabulary, checkpoint = load_checkpoint(tmp_path / "last.pt")
    assert loaded.config == model.config and vocabulary == VOCABULARY and checkpoint["iteration"] == 3
    assert loaded.head.weight is loaded.token_embedding.weight
    U = token_ids(model.config)
    assert torch.equal(loaded.eval()(U)[0], model(U)[0])


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path, model = tmp_path / "last.pt", make(SIZES[0])

    def assert_refused(words="damaged"):
        with pytest.raises(UserError, match=words):
            load_checkpoint(path)

    assert_refused(r"run train\.py --ckpt_path")
    save_checkpoint(path, model, VOCABULARY)
    content, checkpoint = path.read_bytes(), torch.load(path)
    for damaged in (b"", b"x", content[: len(content) // 2], content[:-1]):
        path.write_bytes(damaged)
        assert_refused()
    for change in ({"vocab_size": 51}, {"max_seq_len": 17}, {"n_head": 3}, {"title": (0,)}):
        torch.save({**checkpoint, "config": {**checkpoint["config"], **change}}, path)
        assert_refused()
    pickled_class, other_vocabulary = {"model": torch.nn.Linear(2, 2)}, {"chars": "ab"}
    for wrong in (pickled_class, {**checkpoint, "vocabulary": other_vocabulary}):
        torch.save(wrong, path)
        assert_refused()
    flips = [(place, place % 8) for place in random.Random(0).sample(range(len(content)), 60)]
    entry = content.rindex(b"archive/data/0") - 46  # in the zip file's directory
    for place, bit in [*flips, (entry + 38, 4)]:  # the last makes the part a folder, which torch reads as anything
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        try:
            loaded, _, _ = load_checkpoint(path)
        except UserError as error:
            assert "damaged" in str(error)
        else:  # in what the zip file says of its parts, and nobody reads
            assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


# --- the machine ------------------------------------------------------------------------------------------------------


def test_auto_takes_the_best_device_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="--device cuda"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda" and choose_device("mps").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "mps"


def test_gpus_compute_in_bfloat16_if_they_have_it_and_cuda_alone_in_float16(monkeypatch):
    cuda, mps, cpu = map(torch.device, ("cuda", "mps", "cpu"))
    for has_it, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        assert choose_dtype("auto", cuda) == expected
    assert choose_dtype("auto", mps) == torch.float32 and choose_dtype("float16", cuda) == torch.float16
    for other in (cpu, mps):
        with pytest.raises(UserError, match=f"float16 is for GPUs: on {other} use"):
            choose_dtype("float16", other)


def test_every_choice_of_numbers_has_a_seed_of_its_own():
    choices = [(a, b, c) for a in range(3) for b in range(20) for c in range(3)]
    seeds = [seed_of(*choice) for choice in choices]
    assert len(set(seeds)) == len(choices) and all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [seed_of(*choice) for choice in choices]


@pytest.mark.parametrize(("dtype", "scales"), [(torch.float16, True), (torch.bfloat16, False), (torch.float32, False)])
def test_gradients_are_scaled_for_float16_alone(make_trainer, monkeypatch, dtype, scales):
    monkeypatch.setattr(train, "choose_dtype", lambda *_: dtype)  # as if the CPU were a GPU
    assert make_trainer().scaler.is_enabled() is scales


@pytest.mark.parametrize("name", ["layers.0.attention.query.weight", "token_embedding.weight"])  # Muon's, AdamW's
def test_a_gradient_that_overflows_float16_moves_no_weight(make_trainer, monkeypatch, name):
    """As on a GPU, by a scaler on the CPU: the scale is halved, and the next step is an ordinary one."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: scaler("cpu", init_scale=1024.0))
    run = make_trainer()
    run.iterate()
    before = {key: tensor.clone() for key, tensor in run.model.state_dict().items()}
    hook = run.model.get_parameter(name).register_hook(lambda grad: grad * math.inf)
    run.iterate()
    assert all(tensor.equal(before[key]) for key, tensor in run.model.state_dict().items())
    assert run.scaler.get_scale() == 512.0
    hook.remove()
    run.iterate()
    after = run.model.state_dict()
    assert not after[name].equal(before[name]) and all(tensor.isfinite().all() for tensor in after.values())


def test_one_process_that_found_float32_faster_decides_for_all(make_trainer, monkeypatch):
    monkeypatch.setattr(train, "choose_dtype", lambda *_: torch.bfloat16)
    for share, expected in ((1, torch.bfloat16), (0.5, torch.float32)):
        monkeypatch.setattr(train.Parallel, "total", lambda self, own, device, share=share: [own * share])
        assert make_trainer().dtype == expected


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, "bfloat16"), (0.9, "float32"), (2.0, "float32")])
def test_auto_takes_bfloat16_where_it_is_clearly_faster(monkeypatch, seconds, expected):
    """With a clock that goes on by what a product is said to take: one second in float32."""
    now = [0.0]

    class Operand:
        def __init__(self, dtype):
            self.dtype = dtype

        def __matmul__(self, other):
            now[0] += seconds if self.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(device.torch, "ones", lambda *shape, dtype: Operand(dtype))
    monkeypatch.setattr(device.time, "perf_counter", lambda: now[0])
    for name, dtype in (("auto", expected), ("float32", "float32"), ("bfloat16", "bfloat16")):
        assert choose_dtype(name, torch.device("cpu")) == getattr(torch, dtype)


def test_keeping_large_blocks_does_no_harm_where_there_is_no_glibc(monkeypatch):
    monkeypatch.setattr(device.ctypes, "CDLL", Mock(side_effect=OSError))
    device.keep_large_blocks()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_blocks_are_kept():
    """Counted by the pages that the system has to map while a block of 64 MiB is taken and freed again and again."""
    program = """if True:
        import resource, sys, torch
        from songci.training import device
        if sys.argv[1] == "kept":
            device.keep_large_blocks()
        for _ in range(10):
            torch.ones(1 << 24)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(1 << 24)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    faults = {}
    for how in ("kept", "usual"):
        done = subprocess.run([sys.executable, "-c", program, how], cwd=ROOT, capture_output=True, encoding="utf-8")
        faults[how] = int(done.stdout)
    assert faults["kept"] < 0.1 * faults["usual"]


def test_a_resumed_run_settles_on_what_it_began_with(tmp_path, monkeypatch):
    """And a GPU alone is allowed TF32. What the flags say, and what this machine lacks, is not taken from the run."""
    asked, threads = [], []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def settled(run, *flags, resume=True):
        (tmp_path / "config.json").write_text(json.dumps(run))
        args = train.parse_args(flags)
        args.resume = resume
        return settle(args, tmp_path).type

    run = {"device": "cpu", "threads": 3}
    assert settled(run) == "cpu"
    assert asked == threads == []  # the tests set OMP_NUM_THREADS, as torchrun does
    monkeypatch.delenv("OMP_NUM_THREADS")
    settled(run)
    settled({**run, "threads": 16})
    assert threads == [3, 4] and asked == []
    assert settled(run, "--device", "cuda") == "cuda"
    assert asked == ["high"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert settled({**run, "device": "cuda:1"}) == settled(run, resume=False) == "cpu"


def test_a_small_model_writes_with_one_thread_and_a_large_one_with_all(monkeypatch):
    blas = Mock()
    monkeypatch.setattr(machine, "_blas", lambda: blas)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for channels, due in (LARGE - 1, 1), (LARGE, 4):
        set_blas_threads(channels)
        assert blas.limit.call_args.kwargs == {"limits": due}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # what a user has set stays
        with monkeypatch.context() as patch:
            patch.setenv(name, "2")
            set_blas_threads(8)
    assert blas.limit.call_count == 2
    monkeypatch.setattr(machine, "_blas", lambda: None)  # without threadpoolctl
    set_blas_threads(8)


def test_how_threads_wait_is_left_alone_where_the_user_has_said_so(monkeypatch):
    monkeypatch.setattr(threads, "Thread", started := Mock())
    monkeypatch.setattr(threads, "STAT", Mock(exists=lambda: True))
    for name, value, ours in ("OMP_WAIT_POLICY", "active", False), ("GOMP_SPINCOUNT", "5", False), ("X", "", True):
        with monkeypatch.context() as patch:
            for each in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
                patch.delenv(each, raising=False)
            patch.setenv(name, value)
            patch.setattr(songci, "WAITS_ARE_OURS", songci.let_threads_sleep())
            considerate_threads.__wrapped__(1)
            considerate_threads.__wrapped__(2)
            assert started.call_count == ours


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, threads cannot be told how to wait")


@on_linux
def test_threads_wait_asleep_while_others_want_the_cores(monkeypatch):
    others, clock, crowds, found = iter([0, 0, 0.1, 0.6, 1.0, 0.1, 0, 0.9]), np.zeros(3), [], []

    def used(cpus):  # each second our two threads use what others leave of two cores
        found.append([teams for end, teams in crowds if not end.is_set()])
        clock[:] += 1, 2, 2 - next(others)
        return tuple(clock)

    monkeypatch.setattr(threads, "used", used)
    monkeypatch.setattr(threads, "crowd", lambda *args: crowds.append(args))
    monkeypatch.setattr(threads, "INTERVAL", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    with pytest.raises(StopIteration):
        threads.watch(2)
    assert found == [[], [], [], [], [1], [1], [], [], [1]]  # at each look, by what the one before saw


@on_linux
def test_what_is_used_of_the_cores_is_what_psutil_says():
    """It comes between what psutil says before and after, however many cores are busy."""
    cpus = os.sched_getaffinity(0)

    def by_psutil() -> tuple[float, float]:
        times = [core for i, core in enumerate(psutil.cpu_times(percpu=True)) if i in cpus]
        return sum(t.user + t.nice + t.system + t.irq + t.softirq for t in times), time.process_time()

    before, (_, *found), after = by_psutil(), threads.used(cpus), by_psutil()
    for least, value, most in zip(before, found, after, strict=True):
        assert least - 1e-3 <= value <= most + 1e-3  # sums of floats


@on_linux
def test_a_crowd_is_of_real_openmp_threads_and_goes_away():
    code = """
import os, time, torch
from threading import Event
from songci.training.threads import crowd
def wait(threads):
    end = time.monotonic() + 30
    while (found := len(os.listdir("/proc/self/task"))) != threads:
        assert time.monotonic() < end, f"{found} threads, not {threads}"
        time.sleep(0.01)
torch.ones(1 << 18).add_(1)
before, end = len(os.listdir("/proc/self/task")), Event()
crowd(end, 2)
wait(before + 2 * torch.get_num_threads())
end.set()
wait(before)
"""
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True, timeout=60)


# --- the folder of a run ----------------------------------------------------------------------------------------------


ROWS = [{name: 10 * i + place for place, name in enumerate(LOG_FIELDS)} for i in range(3)]


def test_a_log_is_a_table_with_six_digits_and_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "log.csv"
    rows = [{name: value for name, value in ROWS[0].items() if "poem" not in name}, ROWS[1]]
    write_log(path, [*rows, {"iter": 123456, "lr": 1.234567e-5, "val_loss": 4.567894}])
    content = path.read_bytes()
    assert b"\r" not in content and content.isascii() and content.endswith(b"\n")
    header, *_, last = content.decode().splitlines()
    assert header.split(",") == LOG_FIELDS and last == "123456,1.23457e-05,,,4.56789" + "," * (len(LOG_FIELDS) - 5)
    assert read_log(path) == [*rows, {"iter": 123456, "lr": 1.23457e-5, "val_loss": 4.56789}]
    path.write_text("iter,train_loss\n1,x\n")
    with pytest.raises(UserError, match="damaged"):
        read_log(path)


def test_a_line_of_the_report_tells_what_the_row_holds():
    values = {"lr": 0.0012, "train_loss": 1.5, "val_loss": 2.5, "train_perplexity": 4.5, "val_perplexity": 12.2}
    line = log_line({"iter": 7, **values, "grad_norm": 0.75, "tokens_per_second": 12345.6})
    assert [" ".join(part.split()) for part in line.split("|")] == [
        *("iter 7", "loss 1.5000", "val loss 2.5000", "perplexity 4.5", "val perplexity 12.2"),
        *("norm 0.75", "lr 1.20e-03", "12,346 tok/s"),
    ]


def test_the_row_of_an_evaluation_is_of_the_iterations_since_the_last(data_root, tmp_path, monkeypatch):
    """With a clock that says half a second for each iteration."""
    ticks, steps = itertools.count(), []
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(ticks) / 2)
    after_each_iteration(monkeypatch, lambda run, *step: steps.append(step))
    folder = train_tiny(data_root, tmp_path / "run", "--dtype", "float32")
    for row, end in zip(read_log(folder / "log.csv"), (4, 8, 12), strict=True):
        assert row["train_loss"] == pytest.approx(sum(loss for loss, _ in steps[end - 4 : end]) / 4, rel=1e-5)
        assert row["grad_norm"] == pytest.approx(steps[end - 1][1], rel=1e-5)
        assert row["tokens_per_second"] == 4 * 16 / 0.5
    result = json.loads((folder / "result.json").read_text())
    assert result["seconds"] == 6 and result["tokens_per_second"] == 4 * 16 / 0.5


@pytest.mark.parametrize("name", RUN_FILES)
def test_any_file_of_a_run_protects_its_folder(tmp_path, name):
    with own_folder(tmp_path, resume=False, overwrite=False):
        (tmp_path / name).touch()
    with (
        pytest.raises(UserError, match="--resume, or start again with --overwrite"),
        own_folder(tmp_path, resume=False, overwrite=False),
    ):
        pass
    with (
        own_folder(tmp_path, resume=False, overwrite=True),
        pytest.raises(UserError, match="another training is at work"),
        own_folder(tmp_path, resume=True, overwrite=False),
    ):
        pass


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_run_clears_the_folder_and_a_resumed_one_keeps_it(tmp_path, resume):
    half_written = [f".{name}.{10**9}" for name in [*RUN_FILES, "config.json"]]  # there is no process of that number
    kept = ["notes.txt", ".hidden", ".log.csv.swp", ".result.json.1"]  # of an editor, and of a process that runs
    cleared = [*RUN_FILES, "best.pt", "forms.json", "events.out.tfevents.1"]  # best.pt: of an earlier version
    for name in [*half_written, *kept, *cleared]:
        (tmp_path / name).write_text(name)
    runlog.begin_folder(tmp_path, resume, {"seed": 7}, tmp_path)
    assert contents(tmp_path).keys() == {*kept, "config.json", *(cleared if resume else [])}
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7


@pytest.mark.skipif(shutil.which("git") is None, reason="no git on this machine")
def test_config_tells_of_corpus_and_code(tmp_path, monkeypatch):
    """Also where a file's name is no text, and git is told to show names as they are."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(runlog, "__file__", str(tmp_path / "songci/training/runlog.py"))
    text = bytes(range(1, 256)) * 10_000  # of more than one block
    (tmp_path / "input.txt").write_bytes(text)
    found = runlog.provenance(tmp_path)
    assert found["corpus_sha256"] == hashlib.sha256(text).hexdigest() and "git_commit" not in found
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    odd = tmp_path / os.fsdecode("你好".encode("gbk"))
    with contextlib.suppress(OSError):  # this file system has no such names
        odd.touch()
    quiet = ["config", "core.quotepath", "false"]
    for command in (["init", "-q"], quiet, ["add", "."], [*who, "commit", "-q", "-m", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    found = runlog.provenance(tmp_path)
    assert len(found["git_commit"]) in (40, 64) and found["git_changes"] is False
    for path in (tmp_path / "input.txt", *[odd] * odd.exists()):
        path.write_text("changed")
    assert runlog.provenance(tmp_path)["git_changes"] is True


@pytest.mark.parametrize("file_name", ["curves.jpg", "curves.png"])
def test_curves_show_the_numbers_of_the_log(tmp_path, monkeypatch, recwarn, file_name):
    """Of one run and of several, also with a Chinese name: matplotlib warns of a character that it has no glyph for."""
    figures, pictures, save = [], [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    for runs in ({"": ROWS}, {"a": ROWS, "b": ROWS[:2]}, {"宋词": ROWS, "default": ROWS}):
        plot_curves(runs, tmp_path / file_name)
        pictures.append(matplotlib.image.imread(tmp_path / file_name))
    assert all(picture.std() > 0.05 for picture in pictures) and (pictures[0] != pictures[1]).any()
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    names = [tuple(LABELS.values()), ("a train", "a val", "b train", "b val")]
    for figure, labels in zip(figures[:2], names, strict=True):
        assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log"]
        for axes, measure in zip(figure.axes, ("loss", "perplexity"), strict=True):
            assert axes.get_title() == measure and tuple(line.get_label() for line in axes.lines) == labels
            for line, label in zip(axes.lines, labels, strict=True):
                split, shown = "train" if "train" in label else "val", ROWS[:2] if label[0] == "b" else ROWS
                assert line.get_linestyle() == ("--" if split == "train" else "-")
                assert line.get_xdata().tolist() == [row["iter"] for row in shown]
                assert line.get_ydata().tolist() == [row[f"{split}_{measure}"] for row in shown]


def curves(folder) -> dict[str, dict[int, float]]:
    """What TensorBoard itself reads from a run's folder: {tag: {step: value}}."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: {event.step: event.value for event in reader.Scalars(tag)} for tag in reader.Tags()["scalars"]}


def test_tensorboard_reads_every_row_of_the_log_of_a_run_that_went_on(data_root, tmp_path):
    folder = train_tiny(data_root, tmp_path / "run", "--tensorboard")
    lost = runlog.TensorBoard(folder)
    lost.log([{"iter": 15, "train_loss": 99.0}])  # of a run that was killed before it saved anything after 12
    train_tiny(data_root, folder, "--tensorboard", "--resume", "--iters", "20", "--eval_interval", "2")
    found, rows = curves(folder), read_log(folder / "log.csv")
    assert [row["iter"] for row in rows] == [4, 8, 12, 14, 16, 18, 20]
    for row in rows:
        for name in ("lr", "grad_norm", "tokens_per_second"):
            assert found[name][row["iter"]] == pytest.approx(row[name], rel=1e-4)
    for tag, name in (("loss/train", "train_loss"), ("perplexity/val", "val_perplexity")):
        assert found[tag] == pytest.approx({row["iter"]: row[name] for row in rows}, rel=1e-4)
    assert found["loss/poem_val"].keys() == {12, 20}
    train_tiny(data_root, folder, "--overwrite")
    assert not list(folder.glob(runlog.EVENTS))  # a new run has no curves of another
    train_tiny(data_root, folder, "--resume", "--iters", "16", "--tensorboard")
    assert curves(folder)["loss/train"].keys() == {4, 8, 12, 16}  # what went before is there too


def test_without_the_package_nothing_of_an_earlier_run_is_touched(assert_user_error, ckpt_path, data_root, monkeypatch):
    before = (ckpt_path / "last.pt").read_bytes()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    flags = tiny_flags(data_root, ckpt_path, "--overwrite", "--tensorboard")
    assert_user_error(train, *flags, words=["--tensorboard", "pip install tensorboard"])
    assert (ckpt_path / "last.pt").read_bytes() == before
