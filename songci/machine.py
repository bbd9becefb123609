"""The machine: which device computes, how many threads, and seeds for its random generators."""

import os
import platform
import shutil
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from songci.cli import UserError

APPLE = ("darwin", "arm64")  # whose GPU torch calls mps
LARGE = 256  # channels: from here on all threads write


def choose_device(name: str):
    """'auto', 'cpu', 'cuda' or 'mps' → a torch.device that is there; auto: a GPU if there is one.

    Raises UserError if the machine has none of the kind.
    """
    import torch  # here: who writes on a CPU does without it

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in available.items() if present)
    if not available[name]:
        raise UserError(f"--device {name}: there is no such device here; use --device cpu or auto")
    return torch.device(name)


def may_have_gpu() -> bool:
    """Whether it is worth while to import torch, which takes a second, and ask it for a GPU."""
    signs = shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists() or (sys.platform, platform.machine()) == APPLE
    return bool(signs) and find_spec("torch") is not None


def seed_of(*numbers: int) -> int:
    """A seed for a random generator from several numbers; other numbers give another seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def set_blas_threads(channels: int) -> None:
    """From now on, numpy's products take one thread with a small model, and all with a large one.

    OpenBLAS's threads wait awake for each other. Idle, a second one gains up to a half on many texts; beside another
    busy program it has no core, and ten poems in form take five times as long as with one thread. A number that the
    user has set stays; without the package threadpoolctl, BLAS decides.
    """
    if not {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"} & os.environ.keys() and _blas() is not None:
        _blas().limit(limits=1 if channels < LARGE else os.cpu_count())


@cache
def _blas():
    """What sets the threads of numpy's BLAS, or None."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")
