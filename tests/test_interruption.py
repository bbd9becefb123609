"""Runs that are stopped, by a signal or by kill -9 at any moment, and go on as if nothing had been."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import QUICK, ROOT, TINY, assert_same_run, train_tiny

import model
import train
from songci import cli
from songci.training.checkpoint import load_checkpoint
from songci.training.runlog import read_log

FLAGS = ["--dropout", "0.2", "--iters", "60", "--eval_interval", "10", "--eval_iters", "1"]


@pytest.fixture(scope="module")
def straight(data_root, tmp_path_factory):
    return train_tiny(data_root, tmp_path_factory.mktemp("workdirs") / "straight", *FLAGS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sixty_iterations_with_a_stop_at_23_are_sixty(data_root, straight, tmp_path, monkeypatch, number):
    step = train.Trainer.step

    def stop_at_23(self):
        result = step(self)
        if self.iteration == 23:
            signal.raise_signal(number)
        return result

    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(cli.Interrupted) as stop:
        patch.setattr(train.Trainer, "step", stop_at_23)
        train_tiny(data_root, folder, *FLAGS)
    assert stop.value.number == number
    assert load_checkpoint(folder / "last.pt")[2]["iteration"] in (23, 24)
    train_tiny(data_root, folder, *FLAGS, "--resume")
    assert_same_run(folder, straight)


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_a_run_that_ends_between_its_checkpoints_has_the_best_model_in_the_end(data_root, tmp_path, monkeypatch, name):
    """Where the second of three evaluations is said to be the best, and one of its two files is not written."""
    step, measure, write, now = train.Trainer.step, train.Measures.poem_loss, model.atomic_write, []
    losses = {4: 3.0, 8: 2.0, 12: 2.5}

    def remember(self):
        result = step(self)
        now[:] = [self.iteration]
        return result

    def end(path):
        if path.name == name and now == [8]:
            raise KeyboardInterrupt
        return write(path)

    monkeypatch.setattr(train.Trainer, "step", remember)
    monkeypatch.setattr(train.Measures, "poem_loss", lambda self, m, n=None: losses[now[0]] if n else measure(self, m))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "atomic_write", end)
        train_tiny(data_root, tmp_path / "run")
    train_tiny(data_root, tmp_path / "run", "--resume")
    best = load_checkpoint(tmp_path / "run" / "best.pt")[2]
    assert (best["iteration"], best["val_loss"]) == (8, 2.0)


def child(action) -> int:
    """Runs action() in a forked process; returns its pid. To start a new interpreter each time would take minutes."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            action()
            status = 0
        finally:
            os._exit(status)
    return pid


def test_kill_9_at_forty_moments_loses_nothing(data_root, tmp_path):
    """Each evaluation writes all files, so most kills come while one is being written. It is always the same run."""
    flags = ["--dropout", "0.2", "--iters", "40", "--eval_interval", "1", "--eval_iters", "1", "--seed", "3"]
    began = time.monotonic()
    straight, folder = train_tiny(data_root, tmp_path / "straight", *flags), tmp_path / "run"
    pace = (time.monotonic() - began) / 40  # of an iteration with its evaluation, on this machine now
    rng, kills, reached = random.Random(0), 0, []
    for _ in range(200):
        resume = ["--resume"] if (folder / "last.pt").exists() else ["--overwrite"]
        pid = child(lambda resume=resume: train_tiny(data_root, folder, *flags, *resume))
        time.sleep(rng.uniform(0, 8) * pace)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        else:
            assert os.WEXITSTATUS(status) == 0
        for name in ("last.pt", "best.pt"):
            if (folder / name).exists():
                load_checkpoint(folder / name)  # raises UserError if it is damaged
        rows = read_log(folder / "log.csv") if (folder / "log.csv").exists() else []
        assert [row["iter"] for row in rows] == list(range(1, len(rows) + 1))
        reached.append(len(rows))
        if kills >= 40:
            break
        if len(rows) == 40:  # finished before the forty kills: once more from the start
            assert_same_run(folder, straight)
            shutil.rmtree(folder)
    assert kills == 40 and len(set(reached)) > 10, (kills, reached)
    left = [path for path in folder.iterdir() if path.name.startswith(".")]
    train_tiny(data_root, folder, *flags, "--resume" if (folder / "last.pt").exists() else "--overwrite")
    assert_same_run(folder, straight)
    assert not [path for path in left if path.exists()]  # half-written files were cleared away


def start(data_root, folder, *flags, until="last.pt", **options) -> subprocess.Popen:
    arguments = ["--data_root", data_root, "--ckpt_path", folder, *TINY, *QUICK, "--iters", 10**6, *flags]
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)
    end = time.monotonic() + 90
    while not (folder / until).exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    return process


def usual_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # a background shell has them ignored
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)


def test_sigterm_saves_and_ends_with_143(data_root, tmp_path):
    process = start(data_root, tmp_path / "run", preexec_fn=usual_signals)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "go on with --resume" in err and "Traceback" not in err, err
    assert load_checkpoint(tmp_path / "run" / "last.pt")[2]["iteration"] > 0


def test_a_second_ctrl_c_does_not_wait(data_root, tmp_path):
    """The first waits for an iteration of many seconds, with its checkpoint; the second does not."""
    folder = tmp_path / "run"
    flags = ["--batchsize", 10**6, "--accum", 50]
    process = start(data_root, folder, *flags, until="config.json", preexec_fn=usual_signals)
    time.sleep(0.5)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err, err
    assert "stopped at iteration" not in err and not (folder / "last.pt").exists()
