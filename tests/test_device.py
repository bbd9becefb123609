import platform
import subprocess
import sys

import pytest
import torch
from conftest import QUICK, ROOT, TINY

import train
from songci.cli import UserError
from songci.training import device
from songci.training.device import allow_tf32, choose_device, choose_dtype, keep_large_blocks, seed_of


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


def test_auto_takes_bfloat16_on_gpus_that_have_it(monkeypatch):
    for has_it, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        assert choose_dtype("auto", torch.device("cuda")) == expected
    assert choose_dtype("auto", torch.device("mps")) == torch.float32


def test_float16_is_for_cuda_alone():
    assert choose_dtype("float16", torch.device("cuda")) == torch.float16
    for kind in ("cpu", "mps"):
        with pytest.raises(UserError, match=f"float16 is for GPUs: on {kind} use"):
            choose_dtype("float16", torch.device(kind))


def test_tf32_is_allowed_on_a_gpu_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    allow_tf32(torch.device("cpu"))
    assert asked == []
    allow_tf32(torch.device("cuda"))
    assert asked == ["high"]


def test_training_allows_tf32(data_root, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "allow_tf32", asked.append)
    flags = ["--data_root", str(data_root), "--ckpt_path", str(tmp_path), *TINY, *QUICK]
    train.Trainer(train.parse_args(flags))
    assert asked == [torch.device("cpu")]


def test_every_choice_of_numbers_has_a_seed_of_its_own():
    choices = [(a, b, c) for a in range(3) for b in range(20) for c in range(3)]
    seeds = [seed_of(*choice) for choice in choices]
    assert len(set(seeds)) == len(choices) and all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [seed_of(*choice) for choice in choices]


@pytest.mark.parametrize(("dtype", "scales"), [(torch.float16, True), (torch.bfloat16, False), (torch.float32, False)])
def test_gradients_are_scaled_for_float16_alone(data_root, tmp_path, monkeypatch, dtype, scales):
    monkeypatch.setattr(train, "choose_dtype", lambda *_: dtype)  # as if the CPU were a GPU
    args = train.parse_args(["--data_root", str(data_root), "--ckpt_path", str(tmp_path), *TINY, *QUICK])
    assert train.Trainer(args).scaler.is_enabled() is scales


def test_one_process_that_found_float32_faster_decides_for_all(data_root, tmp_path, monkeypatch):
    flags = ["--data_root", str(data_root), "--ckpt_path", str(tmp_path), *TINY, *QUICK]
    monkeypatch.setattr(train, "choose_dtype", lambda *_: torch.bfloat16)
    for others, expected in ((0, torch.bfloat16), (1, torch.float32)):
        monkeypatch.setattr(train.Parallel, "total", lambda self, own, device, others=others: [own + others])
        assert train.Trainer(train.parse_args(flags)).dtype == expected
    assert train.Trainer(train.parse_args([*flags, "--dtype", "bfloat16"])).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("bfloat16_takes", "expected"), [(0.5, torch.bfloat16), (0.9, torch.float32), (2.0, torch.float32)]
)
def test_auto_takes_bfloat16_where_it_is_clearly_faster(monkeypatch, bfloat16_takes, expected):
    """With a clock that goes on by what a product of each type is said to take."""
    now = [0.0]

    class Operand:
        def __init__(self, dtype):
            self.dtype = dtype

        def __matmul__(self, other):
            now[0] += bfloat16_takes if self.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(device.torch, "ones", lambda *shape, dtype: Operand(dtype))
    monkeypatch.setattr(device.time, "perf_counter", lambda: now[0])
    assert choose_dtype("auto", torch.device("cpu")) == expected
    assert choose_dtype("float32", torch.device("cpu")) == torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_keeping_large_blocks_does_no_harm_where_there_is_no_glibc(monkeypatch):
    def missing(name):
        raise OSError

    keep_large_blocks()
    monkeypatch.setattr(device.ctypes, "CDLL", missing)
    keep_large_blocks()


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
        done = subprocess.run([sys.executable, "-c", program, how], cwd=ROOT, capture_output=True, text=True)
        faults[how] = int(done.stdout)
    assert faults["kept"] < 0.1 * faults["usual"]
