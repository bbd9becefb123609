import json
import math
import shutil
import signal

import pytest
import torch
from conftest import QUICK, TINY, assert_same_run, read_log, song_text, train_tiny

import prepare
import train
from songci.training.runlog import WHOLE_FIELDS


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
        (["--n_layer", 3], "--n_layer 3 contradicts"),
        (["--n_head", 4], "--n_head 4 contradicts"),
        (["--n_embd", 32], "--n_embd 32 contradicts"),
        (["--dropout", 0.5], "--dropout 0.5 contradicts"),
        (["--max_seq_len", 8], "--max_seq_len 8 contradicts"),
        (["--no_pos"], "--no_pos True contradicts"),
        (["--no_res"], "--no_res True contradicts"),
        (["--seed", 3], "--seed 3 contradicts"),
        (["--batchsize", 5], "--batchsize 5 contradicts"),
        (["--windows", "stream"], "--windows stream contradicts"),
        (["--optimizer", "adamw"], "--optimizer adamw contradicts"),
        (["--lr", 0.5], "--lr 0.5 contradicts"),
        (["--muon_lr", 0.5], "--muon_lr 0.5 contradicts"),
        (["--warmup_iters", 5], "--warmup_iters 5 contradicts"),
        (["--weight_decay", 0.5], "--weight_decay 0.5 contradicts"),
        (["--grad_clip", 0.5], "--grad_clip 0.5 contradicts"),
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


def test_an_unfinished_run_needs_more_iterations(data_root, ckpt_path, tmp_path, assert_user_error):
    """One that was stopped at the very iteration that --iters now asks for: its whole split was never measured."""
    folder = shutil.copytree(ckpt_path, tmp_path / "run")
    last = torch.load(folder / "last.pt")
    for name in WHOLE_FIELDS:
        del last["rows"][-1][name]
    torch.save(last, folder / "last.pt")
    arguments = ["--data_root", data_root, "--ckpt_path", folder, *TINY, *QUICK, "--resume"]
    assert_user_error(train, *arguments, words=["--iters 12", "is at iteration 12 already; give more"])


def test_a_finished_run_may_be_resumed_and_go_on(data_root, ckpt_path, tmp_path):
    folder = shutil.copytree(ckpt_path, tmp_path / "run")
    train_tiny(data_root, folder, "--resume")
    assert_same_run(folder, ckpt_path)
    train_tiny(data_root, folder, "--resume", "--iters", 20)
    assert json.loads((folder / "result.json").read_text())["iters"] == 20
    assert [int(row["iter"]) for row in read_log(folder)] == [4, 8, 12, 16, 20]


def test_a_resumed_run_keeps_its_best_model_and_the_time_it_took(data_root, ckpt_path, tmp_path, monkeypatch):
    folder = shutil.copytree(ckpt_path, tmp_path / "run")
    best, seconds = (folder / "best.pt").read_bytes(), torch.load(folder / "last.pt")["seconds"]
    measure = train.Measures.poem_loss
    monkeypatch.setattr(train.Measures, "poem_loss", lambda self, model, n=None: 99.0 if n else measure(self, model))
    train_tiny(data_root, folder, "--resume", "--iters", 14)
    assert (folder / "best.pt").read_bytes() == best
    last = torch.load(folder / "last.pt")
    assert last["seconds"] > seconds and last["best_loss"] == torch.load(folder / "best.pt")["val_loss"] < 99
    assert [row["val_loss"] for row in last["rows"]][-1] == 99


def test_a_resumed_run_computes_in_the_type_that_auto_was(data_root, tmp_path, monkeypatch):
    """Though a second measurement comes out otherwise."""
    choose = train.choose_dtype

    def measured(dtype):
        monkeypatch.setattr(
            train, "choose_dtype", lambda name, device: dtype if name == "auto" else choose(name, device)
        )

    measured(torch.bfloat16)
    straight = train_tiny(data_root, tmp_path / "straight")
    folder = tmp_path / "run"
    train_tiny(data_root, folder, "--iters", 12, "--eval_interval", 4)
    train_tiny(data_root, straight, "--resume", "--iters", 20)
    measured(torch.float32)
    train_tiny(data_root, folder, "--resume", "--iters", 20)
    assert_same_run(straight, folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_resumed_run_scales_its_gradients_as_before(data_root, tmp_path, monkeypatch):
    scaler = torch.amp.GradScaler
    for scale, flags in ((1024.0, []), (64.0, ["--resume", "--iters", 13])):
        monkeypatch.setattr(
            torch.amp, "GradScaler", lambda device, enabled, scale=scale: scaler(device, init_scale=scale)
        )
        train_tiny(data_root, tmp_path / "run", *flags)
        assert torch.load(tmp_path / "run" / "last.pt")["scaler"]["scale"] == 1024.0


def change_rows(last, **values):
    last["rows"][1].update(values)


DAMAGES = {
    "an iteration that is no number": lambda last: last.update(iteration=12.0),
    "no time": lambda last: last.update(seconds=0.0),
    "a best loss that is not a number": lambda last: last.update(best_loss=math.nan),
    "an infinite loss": lambda last: last.update(recent=[math.inf]),
    "a row with too few fields": lambda last: last["rows"][1].pop("lr"),
    "a row with a field of its own": lambda last: change_rows(last, mood=1.0),
    "a row with text": lambda last: change_rows(last, lr="0.1"),
    "rows out of order": lambda last: change_rows(last, iter=4),
    "a row of the future": lambda last: last["rows"][-1].update(iter=13),
    "an optimiser too few": lambda last: last["optimizers"].pop(),
    "optimisers exchanged": lambda last: last["optimizers"].reverse(),
    "a parameter too few": lambda last: last["optimizers"][0]["state"].pop(0),
    "another number of steps": lambda last: last["optimizers"][0]["state"][1]["step"].add_(1),
    "a moment of another shape": lambda last: last["optimizers"][0]["state"][0].update(exp_avg=torch.zeros(3)),
    "a moment that is not finite": lambda last: last["optimizers"][0]["state"][0]["exp_avg"].fill_(math.nan),
    "a negative square": lambda last: last["optimizers"][0]["state"][0]["exp_avg_sq"].fill_(-1.0),
    "a momentum in float64": lambda last: last["optimizers"][1]["state"].update(
        {0: {"momentum": last["optimizers"][1]["state"][0]["momentum"].double()}}
    ),
    "an average that is not finite": lambda last: last["average"]["module.norm.bias"].fill_(math.nan),
    "a type that is none": lambda last: last["args"].update(dtype="complex64"),
}


@pytest.fixture(scope="module")
def averaged(data_root, tmp_path_factory):
    return train_tiny(data_root, tmp_path_factory.mktemp("workdirs") / "averaged", "--ema", 0.9)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_last_checkpoint_that_no_run_can_have_written_is_refused(
    data_root, averaged, tmp_path, assert_user_error, damage
):
    folder = shutil.copytree(averaged, tmp_path / "run")
    last = torch.load(folder / "last.pt")
    DAMAGES[damage](last)
    torch.save(last, folder / "last.pt")
    arguments = ["--data_root", data_root, "--ckpt_path", folder, *TINY, *QUICK, "--ema", 0.9, "--resume"]
    assert_user_error(train, *arguments, "--iters", 13, words=["cannot be resumed from", "--overwrite"])


def test_a_best_model_of_another_run_is_not_reported(data_root, ckpt_path, tmp_path, assert_user_error):
    folder = shutil.copytree(ckpt_path, tmp_path / "run")
    other = train_tiny(data_root, tmp_path / "other", "--n_embd", 32)
    shutil.copy(other / "best.pt", folder / "best.pt")
    arguments = ["--data_root", data_root, "--ckpt_path", folder, *TINY, *QUICK, "--resume"]
    assert_user_error(train, *arguments, words=["best.pt is of another run than last.pt"])
