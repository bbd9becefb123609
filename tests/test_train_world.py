"""Training that meets the world: several processes, signals and kill -9 at any moment, full disks, closed folders."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, after_each_iteration, assert_same_run, contents, logged, song_text, tiny_flags, train_tiny
from hostile import forking, in_child

import prepare
import sample
import train
from songci import runs
from songci.cli import UserError
from songci.runs import BEST, load_trained
from songci.training import checkpoint
from songci.training.checkpoint import load_checkpoint
from songci.training.parallel import Parallel, end_together


def usual_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # a background shell has them ignored
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)


@contextlib.contextmanager
def running(data_root, folder, *flags, until: str, processes: int = 1):
    """train.py in a process of its own, or by torchrun in several, from the time when the file `until` is there."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *tiny_flags(data_root, folder, *flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    process = subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=usual_signals)
    try:
        end = time.monotonic() + 90
        while not (folder / until).exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert (folder / until).exists(), process.communicate()[1]
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def iteration(folder: Path, name: str = "last.pt") -> int:
    """That of a checkpoint, which must be whole."""
    return (
        load_trained(folder).measured["iteration"] if name == BEST else load_checkpoint(folder / name)[2]["iteration"]
    )


# --- several processes ------------------------------------------------------------------------------------------------


SEVERAL = ["--dtype", "float32", "--batchsize", "5", "--iters", "20", "--eval_iters", "1"]
CHILDREN = "/proc/{0}/task/{0}/children"


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_program_reports_and_trains_as_one_process_does(data_root, tmp_path, processes):
    """An odd batch: the shares differ in size. The losses, means of four iterations, depend on all steps before."""
    one, folder = train_tiny(data_root, tmp_path / "one", *SEVERAL), tmp_path / "run"
    with running(data_root, folder, *SEVERAL, until="config.json", processes=processes) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert logged(folder, "train_loss") == pytest.approx(
        logged(one, "train_loss"), abs=1.1e-5
    )  # a unit of its last digit
    assert "parameters on cpu" in out and "whole validation split, by poem: loss" in out
    assert ("2 processes" in out) == (processes == 2)
    assert out.count("iter     20 | loss") == 1  # the first alone reports
    assert contents(folder).keys() == contents(one).keys()


@pytest.mark.parametrize("accum", [2, 9])
def test_parts_of_a_batch_give_the_step_of_the_whole(data_root, tmp_path, accum):
    whole = train_tiny(data_root, tmp_path / "whole", *SEVERAL)
    parts = train_tiny(data_root, tmp_path / "parts", *SEVERAL, "--accum", accum)
    # log.csv has six digits, the last of which either sum may round the other way
    assert logged(parts, "train_loss") == pytest.approx(logged(whole, "train_loss"), abs=1.1e-5)


def test_targets_that_do_not_count_weigh_nothing(make_trainer, monkeypatch):
    """The gradient of a batch in parts is that of the whole, also where the text ends in one part."""
    gradients = []
    for accum in (1, 3):
        trainer = make_trainer(*SEVERAL, "--accum", accum)
        inputs, targets = trainer.batches.get(0)
        targets[1, 3:] = targets[4, :2] = train.IGNORE
        monkeypatch.setattr(trainer.batches, "get", lambda iteration, batch=(inputs, targets): batch)
        value, exchanged = 0.0, []
        for x, y, share in trainer.pieces():
            exchanged.append(trainer.loss.require_backward_grad_sync)
            piece = share * trainer.loss(x, y)
            piece.backward()
            value += piece.item()
        assert exchanged == [False] * (accum - 1) + [True]  # gradients go between processes once a batch
        gradients.append([p.grad.clone() for p in trainer.model.parameters()])
        whole = torch.nn.functional.cross_entropy(trainer.model(inputs)[0].flatten(0, 1), targets.flatten())
        assert value == pytest.approx(whole.item(), abs=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_every_row_goes_to_one_process_and_only_the_first_of_all_machines_writes(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    rows = torch.arange(11)
    for world in (1, 2, 3, 11):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        for parts in (1, 2, 20):
            shares = []
            for rank in range(world):
                monkeypatch.setenv("RANK", str(rank))
                shares.append(Parallel().share(rows, parts))
                assert Parallel().main is (rank == 0)
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


@pytest.mark.parametrize(
    ("world", "error", "expected"),
    [
        ("1", RuntimeError("Connection reset"), RuntimeError),
        ("2", RuntimeError("Connection closed by peer\nat …"), UserError),
        ("2", torch.distributed.DistError("gone"), UserError),
        ("2", RuntimeError("shapes differ"), RuntimeError),
    ],
)
def test_another_process_that_is_gone_is_told_from_an_error_of_our_own(monkeypatch, world, error, expected):
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(expected) as caught, end_together(Parallel()):
        raise error
    told = "go on with --resume" in str(caught.value) and "\n" not in str(caught.value)
    assert told if expected is UserError else caught.value is error


def test_processes_and_iterations_drop_other_activations(make_trainer, monkeypatch):
    seeds = []
    for seed in (1, 2):
        trainer = make_trainer("--dropout", 0.5, "--seed", seed)
        monkeypatch.setattr(trainer, "step", lambda: seeds.append(torch.initial_seed()) or (1.0, 1.0))
        for trainer.parallel.rank in (0, 1):
            for trainer.iteration in (0, 1, 2):
                trainer.iterate()
    assert len(set(seeds)) == len(seeds) == 12


def workers(process) -> list[int]:
    children = Path(CHILDREN.format(process.pid)).read_text().split()
    return [int(pid) for pid in children if "train.py" in Path(f"/proc/{pid}/cmdline").read_text()]


NEEDS_PROC = pytest.mark.skipif(not os.path.exists(CHILDREN.format(os.getpid())), reason="finds the workers in /proc")


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["Ctrl-C", pytest.param("a dead worker", marks=NEEDS_PROC)])
def test_a_run_of_two_processes_that_was_stopped_goes_on_in_one(data_root, tmp_path, stop):
    """Ctrl-C stops both after the same iteration; the death of one ends the other."""
    folder = tmp_path / "run"
    with running(data_root, folder, *SEVERAL, "--iters", 10**6, until="last.pt", processes=2) as process:
        if stop == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            os.kill(workers(process)[-1], signal.SIGKILL)
        _, err = process.communicate(timeout=90)
    assert process.returncode != 0 and (stop != "Ctrl-C" or "go on with --resume" in err), err
    assert iteration(folder) > 0
    reached = iteration(folder) + 3
    train_tiny(data_root, folder, *SEVERAL, "--resume", "--iters", reached)
    assert logged(folder, "iter")[-1] == reached


def test_more_processes_than_samples_are_refused(data_root, tmp_path, assert_user_error, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "6")
    flags = tiny_flags(data_root, tmp_path / "run", *SEVERAL)
    assert_user_error(train, *flags, words=["--batchsize 5 is less than the 6 processes"])


# --- stopped ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [BEST, "last.pt"])
def test_a_run_that_ends_between_its_checkpoints_has_the_best_model_in_the_end(data_root, tmp_path, monkeypatch, name):
    """Where the second of three evaluations is said to be the best, and one of its two files is not written."""
    write, losses, done, folder = checkpoint.atomic_write, {4: 3.0, 8: 2.0, 12: 2.5}, [], tmp_path / "run"

    def end(path):
        if path.name == name and done[-1] == 8:
            raise KeyboardInterrupt
        return write(path)

    after_each_iteration(monkeypatch, lambda run, *_: done.append(run.iteration))
    monkeypatch.setattr(train.Trainer, "evaluation_loss", lambda run, _: losses[run.iteration])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for module in (runs, checkpoint):
            patch.setattr(module, "atomic_write", end)
        train_tiny(data_root, folder)
    train_tiny(data_root, folder, "--resume")
    assert load_trained(folder).measured == {"iteration": 8, "val_loss": 2.0}


@pytest.mark.slow
def test_kill_9_at_forty_moments_loses_nothing(data_root, tmp_path):
    """Each evaluation writes all files, so most kills come while one is being written. It is always the same run."""
    flags = ["--dropout", "0.2", "--iters", "40", "--eval_interval", "1", "--eval_iters", "1", "--seed", "3"]
    flags += ["--dtype", "float32"]  # auto is a measurement, which a busy machine can turn
    began = time.monotonic()
    straight, folder = train_tiny(data_root, tmp_path / "straight", *flags), tmp_path / "run"
    pace = (time.monotonic() - began) / 40  # of an iteration with its evaluation, on this machine now
    rng, kills, reached = random.Random(0), 0, []
    fork = forking()  # to start a new interpreter each time would take minutes

    def arguments():
        return data_root, folder, *flags, "--resume" if (folder / "last.pt").exists() else "--overwrite"

    for _ in range(200):
        process = fork.Process(target=train_tiny, args=arguments())
        process.start()
        time.sleep(rng.uniform(0, 8) * pace)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode != 0
        for name in ("last.pt", BEST):
            if (folder / name).exists():
                assert iteration(folder, name) > 0
        rows = logged(folder, "iter") if (folder / "log.csv").exists() else []
        assert rows == list(range(1, len(rows) + 1))
        reached.append(len(rows))
        if kills == 40:
            break
        if len(rows) == 40:  # finished before the forty kills: once more from the start
            assert_same_run(folder, straight)
            shutil.rmtree(folder)
    assert kills == 40 and len(set(reached)) > 10, (kills, reached)
    half_written = [path for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    train_tiny(*arguments())
    assert_same_run(folder, straight)
    assert not any(path.exists() for path in half_written)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_with_its_number(data_root, tmp_path, number, status):
    with running(data_root, tmp_path / "run", "--iters", 10**6, until="last.pt") as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status and "go on with --resume" in err and "Traceback" not in err, err
    assert iteration(tmp_path / "run") > 0


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(data_root, tmp_path):
    """The first waits for an iteration of many seconds, with its checkpoint; the second does not."""
    flags = ["--batchsize", 10**6, "--accum", 50]
    with running(data_root, tmp_path / "run", *flags, until="config.json") as process:
        time.sleep(0.5)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err, err
    assert "stopped at iteration" not in err and not (tmp_path / "run" / "last.pt").exists()


# --- disks and permissions --------------------------------------------------------------------------------------------


NOBODY = {"user": 65534}
RESUME = ["--dtype", "float32", "--iters", 16, "--resume"]  # lets a finished run go on


@pytest.fixture
def open_folder():
    """A folder that any user may read, below folders that they may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def assert_refused(module, *flags, words, **limits) -> None:
    """Runs a script in a child with the limits of in_child(): it must end with one line that has these words."""

    def script():
        sys.argv = [module.__file__, *map(str, flags)]
        module.main()

    status, err, _ = in_child(script, **limits)
    lines = [line for line in err.splitlines() if "error: " in line]
    assert status == 2 and err.endswith(lines[-1] + "\n") and len(lines) == 1, (status, err)
    assert all(str(word) in err for word in words), err


def test_a_read_only_folder_is_one_line_and_nothing_changes(open_folder, tuned_root, tuned_ckpt):
    """As another user than root, whom nothing stops."""
    data = shutil.copytree(tuned_root, open_folder / "data")
    run, new = shutil.copytree(tuned_ckpt, open_folder / "runs" / "tuned"), open_folder / "new"
    before, paths = contents(open_folder), [open_folder, *open_folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert_refused(prepare, "--data_root", data, words=["Permission denied", data], **NOBODY)
        assert_refused(train, *tiny_flags(data, run, *RESUME), words=["Permission denied", run], **NOBODY)
        assert_refused(train, *tiny_flags(data, new), words=["Permission denied", new], **NOBODY)
        assert contents(open_folder) == before
    finally:
        for path in paths:
            path.chmod(0o755)


def test_files_that_may_not_be_read_are_one_line(open_folder, tuned_root, tuned_ckpt):
    data, run = shutil.copytree(tuned_root, open_folder / "data"), shutil.copytree(tuned_ckpt, open_folder / "run")
    run.chmod(0o755)  # pytest's folders are their owner's alone
    flags = ["--data_root", data, "--ckpt_path", run, "--num_samples", 1, "--max_new_tokens", 3, "--form"]
    for path in (data / "meta.pkl", data / "forms.json", run / BEST):
        path.chmod(0)
        assert_refused(sample, *flags, words=["Permission denied", path], **NOBODY)
        path.chmod(0o644)


@pytest.mark.parametrize("limit", [100, 2000, 5000])
def test_a_full_disk_leaves_the_old_data_set(data_root, tmp_path, limit):
    """meta.pkl has about 2 kB here, train.bin more: each limit ends another file."""
    data = shutil.copytree(data_root, tmp_path / "data")
    (data / "input.txt").write_text(song_text(120, seed=1), encoding="utf-8")
    before = contents(data)
    assert_refused(prepare, "--data_root", data, words=["File too large"], file_size=limit)
    assert contents(data) == before


@pytest.mark.parametrize("limit", [200, 20_000, 60_000])
def test_a_full_disk_leaves_the_old_checkpoints(tmp_path, tuned_root, tuned_ckpt, limit):
    run = shutil.copytree(tuned_ckpt, tmp_path / "run")
    before = contents(run)
    assert 20_000 < len(before[BEST]) < 60_000 < len(before["last.pt"])
    assert_refused(train, *tiny_flags(tuned_root, run, *RESUME), words=["File too large"], file_size=limit)
    after = contents(run)
    assert after.keys() == before.keys() and after["last.pt"] == before["last.pt"]
    assert iteration(run, BEST) > 0
