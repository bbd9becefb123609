import json
import shutil
import signal

import pytest
import torch
from conftest import QUICK, TINY, assert_same_run, read_log, song_text, train_tiny

import prepare
import train


def test_a_resumed_run_equals_one_that_never_stopped(data_root, tmp_path):
    """Stopped by Ctrl-C in the middle of an interval of evaluation, with dropout, whose choices must be the same."""
    flags = ["--dropout", 0.2, "--ema", 0.9]
    straight = train_tiny(data_root, tmp_path / "straight", *flags)
    step, folder = train.Trainer.step, tmp_path / "stopped"

    def stop_at_7(self):
        result = step(self)
        if self.iteration == 7:
            signal.raise_signal(signal.SIGINT)
        return result

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Trainer, "step", stop_at_7)
        train_tiny(data_root, folder, *flags)
    assert torch.load(folder / "last.pt")["iteration"] == 7
    train_tiny(data_root, folder, *flags, "--resume")
    assert_same_run(straight, folder)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--n_embd", 32], "--n_embd 32 contradicts"),
        (["--seed", 3], "--seed 3 contradicts"),
        (["--windows", "stream"], "--windows stream contradicts"),
        (["--optimizer", "adamw"], "--optimizer adamw contradicts"),
        (["--lr", 0.5], "--lr 0.5 contradicts"),
        (["--ema", 0.9], "--ema 0.9 contradicts"),
        (["--iters", 11], "is at iteration 12 already"),
    ],
)
def test_resume_refuses_other_settings_and_changes_nothing(
    data_root, ckpt_path, tmp_path, assert_user_error, flags, words
):
    folder = shutil.copytree(ckpt_path, tmp_path / "run")
    arguments = ["--data_root", data_root, "--ckpt_path", folder, *TINY, *QUICK, "--resume", *flags]
    assert_user_error(train, *arguments, words=[words])
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in ckpt_path.iterdir()}


def test_resume_refuses_other_data_and_other_files(data_root, ckpt_path, tmp_path, assert_user_error):
    folder = shutil.copytree(ckpt_path, tmp_path / "run")
    flags = ["--ckpt_path", folder, *TINY, *QUICK, "--resume"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "input.txt").write_text(song_text(30) + "另", encoding="utf-8")
    prepare.prepare(other)
    assert_user_error(train, "--data_root", other, *flags, words=["another vocabulary"])
    shutil.copy(folder / "best.pt", folder / "last.pt")
    assert_user_error(train, "--data_root", data_root, *flags, words=["cannot be resumed from"])
    (folder / "last.pt").unlink()
    assert_user_error(train, "--data_root", data_root, *flags, words=["no last.pt"])


def test_a_finished_run_may_be_resumed_and_go_on(data_root, ckpt_path, tmp_path):
    folder = shutil.copytree(ckpt_path, tmp_path / "run")
    train_tiny(data_root, folder, "--resume")
    assert_same_run(folder, ckpt_path)
    train_tiny(data_root, folder, "--resume", "--iters", 20)
    assert json.loads((folder / "result.json").read_text())["iters"] == 20
    assert [int(row["iter"]) for row in read_log(folder)] == [4, 8, 12, 16, 20]
