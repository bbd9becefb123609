"""Disks that are full, folders and files that are closed: one line, and what was there stays as it was."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import QUICK, ROOT, TINY, song_text
from hostile import in_child

import prepare
import sample
import train
from songci.training.checkpoint import load_checkpoint

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
