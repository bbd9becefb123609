"""Training that meets the world: several processes, signals and kill -9 at any moment, full disks, closed folders."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT, TINY, assert_same_run, song_text, train_tiny
from hostile import in_child

import prepare
import sample
import train
from songci import cli
from songci.cli import UserError
from songci.training import checkpoint
from songci.training.checkpoint import load_checkpoint
from songci.training.parallel import Parallel, end_together
from songci.training.runlog import read_log

# --- several processes, started by torchrun ---------------------------------------------------------------------------


SEVERAL = [
    *TINY,
    "--dtype",
    "float32",
    "--batchsize",
    "5",
    "--device",
    "cpu",
    "--iters",
    "20",
    "--eval_interval",
    "4",
    "--eval_iters",
    "1",
]


def torchrun(data_root, folder, *flags, processes: int = 2) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, str(ROOT / "train.py"), "--data_root", data_root, "--ckpt_path", folder, *SEVERAL, *flags]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def losses(folder) -> list[float]:
    return [row["train_loss"] for row in read_log(folder / "log.csv")]


@pytest.mark.slow
def test_two_processes_train_as_one_does(data_root, tmp_path):
    """An odd batch: the shares differ in size. The losses, means of four iterations, depend on all steps before."""
    train_tiny(data_root, tmp_path / "one", *SEVERAL)
    process = torchrun(data_root, tmp_path / "two")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert "2 processes" in out and out.count("iter     20") == 1  # the first alone reports
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())


@pytest.mark.parametrize("accum", [2, 9])
def test_parts_of_a_batch_give_the_step_of_the_whole(data_root, tmp_path, accum):
    train_tiny(data_root, tmp_path / "whole", *SEVERAL)
    train_tiny(data_root, tmp_path / "parts", *SEVERAL, "--accum", accum)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_targets_that_do_not_count_weigh_nothing(data_root, tmp_path, monkeypatch):
    """The gradient of a batch in parts is that of the whole, also where the text ends in one part."""
    gradients = []
    for accum in (1, 3):
        args = train.parse_args(
            ["--data_root", str(data_root), "--ckpt_path", str(tmp_path), *SEVERAL, "--accum", str(accum)]
        )
        trainer = train.Trainer(args)
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
    flags = ["--data_root", str(data_root), "--ckpt_path", str(tmp_path), *SEVERAL, "--dropout", "0.5"]
    seeds = []
    for seed in ("1", "2"):
        trainer = train.Trainer(train.parse_args([*flags, "--seed", seed]))
        monkeypatch.setattr(trainer, "step", lambda: seeds.append(torch.initial_seed()) or (1.0, 1.0))
        for trainer.parallel.rank in (0, 1):
            for trainer.iteration in (0, 1, 2):
                trainer.iterate()
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


@pytest.mark.slow
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
    resumed = train_tiny(data_root, folder, *SEVERAL, "--resume", "--iters", reached)  # by one process
    assert read_log(resumed / "log.csv")[-1]["iter"] == reached


@pytest.mark.slow
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
    arguments = ["--data_root", data_root, "--ckpt_path", tmp_path / "run", *SEVERAL]
    assert_user_error(train, *arguments, words=["--batchsize 5 is less than the 6 processes"])


# --- stopped ----------------------------------------------------------------------------------------------------------


FLAGS = ["--dropout", "0.2", "--iters", "60", "--eval_interval", "10", "--eval_iters", "1"]


@pytest.fixture(scope="module")
def straight(data_root, tmp_path_factory):
    return train_tiny(data_root, tmp_path_factory.mktemp("workdirs") / "straight", *FLAGS)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sixty_iterations_with_a_stop_at_23_are_sixty(data_root, straight, tmp_path, monkeypatch, number):
    iterate = train.Trainer.iterate

    def stop_at_23(self):
        result = iterate(self)
        if self.iteration == 23:
            signal.raise_signal(number)
        return result

    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(cli.Interrupted) as stop:
        patch.setattr(train.Trainer, "iterate", stop_at_23)
        train_tiny(data_root, folder, *FLAGS)
    assert stop.value.number == number
    assert load_checkpoint(folder / "last.pt")[2]["iteration"] in (23, 24)
    train_tiny(data_root, folder, *FLAGS, "--resume")
    assert_same_run(folder, straight)


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_a_run_that_ends_between_its_checkpoints_has_the_best_model_in_the_end(data_root, tmp_path, monkeypatch, name):
    """Where the second of three evaluations is said to be the best, and one of its two files is not written."""
    iterate, write, now = train.Trainer.iterate, checkpoint.atomic_write, []
    losses = {4: 3.0, 8: 2.0, 12: 2.5}

    def remember(self):
        result = iterate(self)
        now[:] = [self.iteration]
        return result

    def end(path):
        if path.name == name and now == [8]:
            raise KeyboardInterrupt
        return write(path)

    monkeypatch.setattr(train.Trainer, "iterate", remember)
    monkeypatch.setattr(train.Measures, "loss", lambda *_: losses[now[0]])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "atomic_write", end)
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_with_its_number(data_root, tmp_path, number, status):
    process = start(data_root, tmp_path / "run", preexec_fn=usual_signals)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status and "go on with --resume" in err and "Traceback" not in err, err
    assert load_checkpoint(tmp_path / "run" / "last.pt")[2]["iteration"] > 0


@pytest.mark.slow
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


# --- disks and permissions --------------------------------------------------------------------------------------------


NOBODY = 65534


@pytest.fixture
def open_folder():
    """A folder that any user may read, below folders that they may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def run_main(module, *args) -> None:
    sys.argv = [module.__file__, *map(str, args)]
    module.main()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(result, *words) -> None:
    status, err, _ = result
    lines = [line for line in err.splitlines() if "error: " in line]
    assert status == 2 and err.endswith(lines[-1] + "\n") and len(lines) == 1, (status, err)
    assert all(str(word) in err for word in words), err


def resumed(data_root, folder) -> list:
    """The flags that let a finished run go on."""
    flags = ["--data_root", data_root, "--ckpt_path", folder, *TINY, *QUICK]
    return [*flags, "--dtype", "float32", "--iters", 16, "--resume"]


def test_a_read_only_folder_is_one_line_and_nothing_changes(open_folder, tuned_root, tuned_ckpt):
    """As another user than root, whom nothing stops."""
    data, run = (shutil.copytree(old, open_folder / old.name) for old in (tuned_root, tuned_ckpt.parent))
    run /= tuned_ckpt.name
    before = contents(open_folder)
    for path in [open_folder, *open_folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        one_line(in_child(run_main, prepare, "--data_root", data, user=NOBODY), "Permission denied", data)
        one_line(in_child(run_main, train, *resumed(data, run), user=NOBODY), "Permission denied", run)
        new = ["--data_root", data, "--ckpt_path", open_folder / "new", *TINY, *QUICK]
        one_line(in_child(run_main, train, *new, user=NOBODY), "Permission denied", open_folder / "new")
        assert contents(open_folder) == before
    finally:
        for path in [open_folder, *open_folder.rglob("*")]:
            path.chmod(0o755)


def test_files_that_may_not_be_read_are_one_line(open_folder, tuned_root, tuned_ckpt):
    data, run = shutil.copytree(tuned_root, open_folder / "data"), shutil.copytree(tuned_ckpt, open_folder / "run")
    run.chmod(0o755)  # pytest's folders are their owner's alone
    flags = ["--data_root", data, "--ckpt_path", run, "--num_samples", 1, "--max_new_tokens", 3, "--form"]
    for path in (data / "meta.pkl", data / "forms.json", run / "best.pt"):
        path.chmod(0)
        one_line(in_child(run_main, sample, *flags, user=NOBODY), "Permission denied", path)
        path.chmod(0o644)


@pytest.mark.parametrize("limit", [100, 2000, 5000])
def test_a_full_disk_leaves_the_old_data_set(tmp_path, limit):
    """meta.pkl has about 2 kB here, train.bin more: each limit ends another file."""
    (tmp_path / "input.txt").write_text(song_text(100), encoding="utf-8")
    prepare.prepare(tmp_path)
    (tmp_path / "input.txt").write_text(song_text(120, seed=1), encoding="utf-8")
    before = contents(tmp_path)
    one_line(in_child(run_main, prepare, "--data_root", tmp_path, file_size=limit), "File too large")
    assert contents(tmp_path) == before and sorted(os.listdir(tmp_path)) == sorted(before)


@pytest.mark.parametrize("limit", [200, 20_000, 60_000])
def test_a_full_disk_leaves_the_old_checkpoints(tmp_path, tuned_root, tuned_ckpt, limit):
    run = shutil.copytree(tuned_ckpt, tmp_path / "run")
    before = contents(run)
    assert 20_000 < len(before["best.pt"]) < 60_000 < len(before["last.pt"])
    one_line(in_child(run_main, train, *resumed(tuned_root, run), file_size=limit), "File too large")
    after = contents(run)
    assert after.keys() == before.keys() and after["last.pt"] == before["last.pt"]
    load_checkpoint(run / "best.pt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_samples_that_find_no_room_are_one_line(tuned_root, tuned_ckpt):
    flags = ["--data_root", tuned_root, "--ckpt_path", tuned_ckpt, "--device", "cpu", "--max_new_tokens", "5"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, ROOT / "sample.py", *flags], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("sample.py: error: No space left"), done
