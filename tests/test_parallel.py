"""Training by several processes: real ones, started by torchrun."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, TINY, train_tiny

import train
from model import load_checkpoint
from parallel import Parallel
from runlog import read_log

FLAGS = [*TINY, "--batchsize", "5", "--device", "cpu", "--iters", "20", "--eval_interval", "4", "--eval_iters", "1"]


def torchrun(data_root, folder, *flags, processes: int = 2) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, str(ROOT / "train.py"), "--data_root", data_root, "--ckpt_path", folder, *FLAGS, *flags]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def losses(folder) -> list[float]:
    return [row["train_loss"] for row in read_log(folder / "log.csv")]


def test_two_processes_train_as_one_does(data_root, tmp_path):
    """An odd batch: the shares differ in size. The losses, means of four iterations, depend on all steps before."""
    train_tiny(data_root, tmp_path / "one", *FLAGS)
    process = torchrun(data_root, tmp_path / "two")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert "2 processes" in out and out.count("iter     20") == 1  # the first alone reports
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())


@pytest.mark.parametrize("accum", [2, 9])
def test_parts_of_a_batch_give_the_step_of_the_whole(data_root, tmp_path, accum):
    train_tiny(data_root, tmp_path / "whole", *FLAGS)
    train_tiny(data_root, tmp_path / "parts", *FLAGS, "--accum", accum)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_targets_that_do_not_count_weigh_nothing(data_root, tmp_path):
    """The gradient of a batch in parts is that of the whole, also where the text ends in one part."""
    gradients = []
    for accum in (1, 3):
        args = train.parse_args(
            ["--data_root", str(data_root), "--ckpt_path", str(tmp_path), *FLAGS, "--accum", str(accum)]
        )
        trainer = train.Trainer(args)
        inputs, targets = trainer.batches.get(0)
        targets[1, 3:] = targets[4, :2] = train.IGNORE
        value = trainer.backward(inputs, targets)
        gradients.append([p.grad.clone() for p in trainer.model.parameters()])
        whole = torch.nn.functional.cross_entropy(trainer.model(inputs)[0].flatten(0, 1), targets.flatten())
        assert value == pytest.approx(whole.item(), abs=1e-5)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_every_row_goes_to_one_process(monkeypatch):
    rows = torch.arange(11)
    for world in (1, 2, 3, 11):
        for parts in (1, 2, 20):
            monkeypatch.setenv("WORLD_SIZE", str(world))
            shares = []
            for rank in range(world):
                monkeypatch.setenv("RANK", str(rank))
                shares.append(Parallel().share(rows, parts))
            assert torch.equal(torch.cat([piece for share in shares for piece in share]), rows)
            assert all(1 <= len(share) <= parts for share in shares)


def wait_for(condition, process, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert condition(), process.communicate()[1]


def workers(process) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat, open(f"/proc/{entry}/cmdline") as line:
                    parent = int(re.sub(r".*\) ", "", stat.read()).split()[1])
                    if parent == process.pid and "train.py" in line.read():
                        found.append(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return sorted(found)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the workers in /proc")
def test_a_dead_worker_ends_the_run_and_the_checkpoint_lives(data_root, tmp_path):
    folder = tmp_path / "run"
    process = torchrun(data_root, folder, "--iters", 10**6)
    try:
        wait_for((folder / "last.pt").exists, process)
        os.kill(workers(process)[-1], signal.SIGKILL)
        process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    _, _, checkpoint = load_checkpoint(folder / "last.pt")
    assert checkpoint["iteration"] > 0
    reached = checkpoint["iteration"] + 3
    resumed = train_tiny(data_root, folder, *FLAGS, "--resume", "--iters", reached)  # by one process
    assert read_log(resumed / "log.csv")[-1]["iter"] == reached


def test_ctrl_c_stops_all_after_the_same_iteration(data_root, tmp_path):
    folder = tmp_path / "run"
    process = torchrun(data_root, folder, "--iters", 10**6)
    try:
        wait_for((folder / "last.pt").exists, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "go on with --resume" in err
    assert load_checkpoint(folder / "last.pt")[2]["iteration"] > 0


def test_more_processes_than_samples_are_said(data_root, tmp_path, assert_user_error, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "6")
    arguments = ["--data_root", data_root, "--ckpt_path", tmp_path / "run", *FLAGS]
    assert_user_error(train, *arguments, words=["--batchsize 5 is less than the 6 processes"])
