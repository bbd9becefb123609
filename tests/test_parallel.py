"""Training by several processes: real ones, started by torchrun."""

import contextlib
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
from songci.cli import UserError
from songci.training.checkpoint import load_checkpoint
from songci.training.parallel import Parallel, accumulate, end_together
from songci.training.runlog import read_log

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


def test_on_gpus_each_process_of_a_machine_takes_one(monkeypatch):
    """The second process of the second machine, which has two."""
    called = []
    monkeypatch.setattr(torch.cuda, "set_device", called.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", called.append)
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    parallel = Parallel()
    assert parallel.start(torch.device("cuda")) == torch.device("cuda", 1)
    assert called == [torch.device("cuda", 1), "nccl"]
    assert parallel.start(torch.device("cpu")) == torch.device("cpu") and called[2:] == ["gloo"]


def test_only_the_first_process_of_all_machines_writes(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    for rank, main in (("0", True), ("2", False)):
        monkeypatch.setenv("RANK", rank)
        assert Parallel().main is main


def test_gradients_are_exchanged_once_a_batch():
    entered = []

    class Exchanging(torch.nn.Module):
        @contextlib.contextmanager
        def no_sync(self):
            entered.append(True)
            yield

    for last, expected in ((True, []), (False, [True])):
        with accumulate(Exchanging(), last):
            pass
        assert entered == expected
    with accumulate(torch.nn.Linear(1, 1), last=False):  # of one process
        pass


def test_another_process_that_is_gone_is_told_from_an_error_of_our_own(monkeypatch):
    for world, error, expected in (
        ("1", RuntimeError("Connection reset"), RuntimeError),
        ("2", RuntimeError("Connection closed by peer\nat …"), UserError),
        ("2", torch.distributed.DistError("gone"), UserError),
        ("2", RuntimeError("shapes differ"), RuntimeError),
    ):
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(expected) as caught, end_together(Parallel()):
            raise error
        if expected is UserError:
            assert "go on with --resume" in str(caught.value) and "\n" not in str(caught.value)
        else:
            assert caught.value is error


def test_processes_and_iterations_drop_other_activations(data_root, tmp_path, monkeypatch):
    flags = ["--data_root", str(data_root), "--ckpt_path", str(tmp_path), *FLAGS, "--dropout", "0.5"]
    seeds = []
    for seed in ("1", "2"):
        trainer = train.Trainer(train.parse_args([*flags, "--seed", seed]))
        trainer.optimizers = []  # a step of nothing but its seed
        monkeypatch.setattr(trainer, "backward", lambda *batch: seeds.append(torch.initial_seed()) or 1.0)
        for trainer.parallel.rank in (0, 1):
            for trainer.iteration in (0, 1, 2):
                trainer.step()
    assert len(set(seeds)) == len(seeds) == 12


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


def test_more_processes_than_samples_are_refused(data_root, tmp_path, assert_user_error, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "6")
    arguments = ["--data_root", data_root, "--ckpt_path", tmp_path / "run", *FLAGS]
    assert_user_error(train, *arguments, words=["--batchsize 5 is less than the 6 processes"])
