"""The machine, for training: its device and dtype, its threads as a run had them, and its memory."""

import ctypes
import json
import math
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from songci.cli import UserError
from songci.machine import choose_device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """'auto', 'float32', 'bfloat16' or 'float16' → the type of the large products.

    auto: bfloat16 on a GPU that has it, and on a CPU where a product of the size of the head's is clearly faster in
    it, since some CPUs have the type but are slow at it. Raises UserError for float16 without a GPU.
    """
    if name == "float16" and device.type != "cuda":
        raise UserError(f"--dtype float16 is for GPUs: on {device.type} use bfloat16, float32 or auto")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    factors = {
        dtype: (torch.ones(1024, 128, dtype=dtype), torch.ones(128, 6000, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds = dict.fromkeys(factors, math.inf)
    for _ in range(10):  # in turns, so that another program's load does not fall on one of them alone
        for dtype, (a, b) in factors.items():
            start = time.perf_counter()
            a @ b
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return torch.bfloat16 if seconds[torch.bfloat16] < 0.75 * seconds[torch.float32] else torch.float32


def settle(args, folder: Path) -> torch.device:
    """The device of a training; sets the number of threads to that in a resumed run's config.json.

    What the flags leave to "auto" is what the run began with, so that its numbers stay those of one machine. A number
    of threads that the user or torchrun has set stays, and there are never more of them than this machine would take.
    """
    device = choose_device(args.device)
    if args.resume:
        with suppress(OSError, ValueError, LookupError, TypeError):  # without it, as at the start of a run
            run = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if "OMP_NUM_THREADS" not in os.environ:
                torch.set_num_threads(min(run["threads"], torch.get_num_threads()))
            if args.device == "auto":
                with suppress(UserError):  # this machine has no such device
                    device = choose_device(run["device"].partition(":")[0])
    if args.compile:
        check_compiler(device)
    if device.type == "cuda":  # its ten bits of mantissa are enough here, and fast
        torch.set_float32_matmul_precision("high")
    return device


def check_compiler(device: torch.device) -> None:
    """Raises UserError if torch.compile would not find a C++ compiler."""
    if sys.platform == "win32" or (device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++")))):
        raise UserError("--compile needs a C++ compiler, and none was found: install g++, or leave --compile out")


def keep_large_blocks() -> None:
    """Tells glibc to reuse large blocks of memory rather than give them back to the system at every free.

    Each iteration frees and takes the same hundreds of megabytes; without this, every page of them is mapped and zeroed
    again. Without glibc, nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: blocks below 1 GiB come from the heap
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: and stay there
