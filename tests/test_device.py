import pytest
import torch

import device
from cli import UserError
from device import choose_device, choose_dtype, keep_large_blocks


def test_auto_takes_the_best_device_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="--device cuda"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"


@pytest.mark.parametrize(("bfloat16_takes", "expected"), [(0.5, torch.bfloat16), (2.0, torch.float32)])
def test_auto_takes_bfloat16_where_it_is_faster(monkeypatch, bfloat16_takes, expected):
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
