"""train.py: what a run writes, its flags, how it goes on, and what a user can get wrong."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import matplotlib.image
import pytest
import torch
from conftest import (
    ROOT,
    after_each_iteration,
    assert_same_run,
    contents,
    logged,
    prepared,
    run_script,
    tiny_flags,
    train_tiny,
    tuned_text,
    wait_until,
    weights,
)

import sample
import train
from songci import cli, evaluate, export
from songci.attention import __main__ as attention_command
from songci.corpus.vocabulary import load_dataset
from songci.corpus.windows import ScoredWindows, title_ids
from songci.curves import read_log
from songci.runs import BEST, as_gpt, load_trained
from songci.training import device
from songci.training.checkpoint import load_checkpoint
from songci.training.flags import RECIPES
from songci.training.measure import mean_loss
from songci.training.runlog import EVALUATION_FIELDS, LOG_FIELDS, RUN_FILES


def read_json(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def whole_losses(data_root, model) -> dict[str, float]:
    """Both measures over the whole validation split."""
    vocabulary, _, tokens = load_dataset(data_root)
    poems, stream = ScoredWindows.of_poems(tokens, title_ids(vocabulary), 16), ScoredWindows.of_stream(tokens, 16)
    return {"poem": mean_loss(model, tokens, poems, 7), "stream": mean_loss(model, tokens, stream, 7)}


@pytest.fixture
def assert_refused(assert_user_error, data_root):
    """Checks that train.py ends with one line with the given words: assert_refused(folder, *flags, words=…) → line."""
    return lambda folder, *flags, words: assert_user_error(train, *tiny_flags(data_root, folder, *flags), words=words)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_the_handouts_flags_and_defaults():
    args = train.parse_args(["-data_root", "d", "--ckpt_path", "c", "-no_pos", "-no_res"])
    assert (args.data_root, args.ckpt_path, args.no_pos, args.no_res) == ("d", "c", True, True)
    args = train.parse_args([])
    assert (args.data_root, args.ckpt_path) == ("data/quansongci", "workdirs/quansongci")
    assert (args.batchsize, args.iters, args.max_seq_len, args.no_pos, args.no_res) == (16, 2000, 64, False, False)
    for flags, sizes in (
        ("", (4, 4, 128, 0.0)),
        ("--model small", (6, 6, 384, 0.2)),
        ("--model small --n_layer 2 --dropout 0", (2, 6, 384, 0.0)),
        ("--model poet", (4, 4, 192, 0.1)),
    ):
        config = train.model_config(train.parse_args(flags.split()), 100)
        assert (config.n_layer, config.n_head, config.n_embd, config.dropout) == sizes


def test_a_preset_may_set_more_than_sizes_and_flags_override_it():
    args = vars(train.parse_args(["--model", "poet", "--batchsize", "8"]))
    assert args == vars(train.parse_args([])) | RECIPES["poet"] | {"model": "poet", "batchsize": 8}


def test_a_run_writes_all_that_it_promises(ckpt_path, data_root):
    assert sorted(os.listdir(ckpt_path)) == sorted([*RUN_FILES, "config.json", "forms.json", ".lock"])
    rows = read_log(ckpt_path / "log.csv")
    assert [row["iter"] for row in rows] == [4, 8, 12]
    assert list(map(list, rows)) == [EVALUATION_FIELDS, EVALUATION_FIELDS, LOG_FIELDS]  # filled
    for row in rows:
        assert all(map(math.isfinite, row.values())) and row["grad_norm"] > 0 and row["tokens_per_second"] > 0
        for split in ("train", "val"):
            assert math.isclose(row[f"{split}_perplexity"], math.exp(row[f"{split}_loss"]), rel_tol=1e-4)
    picture = matplotlib.image.imread(ckpt_path / "loss&perplexity.jpg")
    assert picture.shape[1] > 1000 and picture.std() > 10
    result, model = read_json(ckpt_path / "result.json"), as_gpt(load_trained(ckpt_path))
    assert result["iters"] == 12 and result["tokens"] == 12 * 4 * 16 and result["seconds"] > 0
    assert result["windows"] == "poem" and result["best_val_loss"] == result["poem_val_loss"]
    assert math.isclose(result["final_perplexity"], math.exp(result["final_val_loss"]))
    for measure, loss in whole_losses(data_root, model).items():
        assert math.isclose(result[f"{measure}_val_loss"], loss, rel_tol=1e-5)
        assert math.isclose(result[f"{measure}_perplexity"], math.exp(result[f"{measure}_val_loss"]))
    assert result["parameters"] == model.num_parameters()
    config = read_json(ckpt_path / "config.json")
    assert config["iters"] == 12 and config["seed"] == 1 and config["versions"]["torch"] == torch.__version__
    assert config["windows"] == "poem" and config["dtype"] == "float32"


def test_auto_is_measured_and_the_run_says_what_it_was(data_root, tmp_path):
    folder = train_tiny(data_root, tmp_path / "run", "--dtype", "auto")
    assert read_json(folder / "config.json")["dtype"] in ("float32", "bfloat16")


def test_training_learns(tmp_path):
    """A text in which each character follows from the one before: the loss must fall far below that of guessing."""
    data = prepared(tmp_path / "data", "春夏秋冬" * 500)
    flags = ["--iters", 150, "--eval_interval", 50, "--lr", 0.01, "--warmup_iters", 5]
    folder = train_tiny(data, tmp_path / "run", *flags)
    assert logged(folder, "val_loss")[-1] < 0.1 * math.log(4) and logged(folder, "train_loss")[-1] < 0.1 * math.log(4)


def test_windows_follow_the_text(data_root, tmp_path, assert_refused):
    """auto: poems for a text with titles, a stream for one without; the other measure is given where there is one."""
    result = read_json(train_tiny(data_root, tmp_path / "a", "--windows", "stream") / "result.json")
    assert result["windows"] == "stream" and result["best_val_loss"] == result["stream_val_loss"]
    assert result["poem_val_loss"] > 0 and load_trained(tmp_path / "a").title == ()
    prose = prepared(tmp_path / "prose", "春夏秋冬" * 100)
    result = read_json(train_tiny(prose, tmp_path / "b") / "result.json")
    assert result["windows"] == "stream" and "poem_val_loss" not in result
    flags = ["--data_root", prose, "--windows", "poem"]
    assert_refused(tmp_path / "c", *flags, words=["--windows poem", "use --windows stream"])
    assert not (tmp_path / "c").exists()


def test_bfloat16_and_float32_give_the_same_curve(data_root, tmp_path):
    """Within 1 % over 200 iterations."""
    curves = []
    for dtype in ("float32", "bfloat16"):
        flags = ["--dtype", dtype, "--iters", 200, "--eval_interval", 20, "--n_embd", 64, "--max_seq_len", 32]
        curves.append(logged(train_tiny(data_root, tmp_path / dtype, *flags), "train_loss"))
    assert all(abs(a - b) < 0.01 * a for a, b in zip(*curves, strict=True))
    assert curves[0] != curves[1] and curves[0][-1] < 0.9 * curves[0][0]


@pytest.mark.parametrize("flag", ["--no_pos", "--no_res"])
def test_the_handouts_switches_train_under_the_default_recipe(flag, data_root, tmp_path):
    flags = [flag, "--iters", 60, "--eval_interval", 20, "--warmup_iters", 10]
    losses = logged(train_tiny(data_root, tmp_path / "run", *flags), "val_loss")
    assert losses[0] > losses[-1] and losses[-1] < math.log(128)


def test_ema_keeps_a_moving_average_of_the_weights(data_root, tmp_path, monkeypatch):
    """The same run with and without it: last.pt is the same, the best model is the average, here redone by hand."""
    flags, snapshots = ["--iters", 3, "--eval_interval", 1], []
    plain = train_tiny(data_root, tmp_path / "plain", *flags)
    after_each_iteration(monkeypatch, lambda run, *_: snapshots.append(run.model.norm.bias.detach().clone()))
    averaged = train_tiny(data_root, tmp_path / "averaged", *flags, "--ema", 0.9)
    assert weights(plain)["norm.bias"].equal(weights(averaged)["norm.bias"])
    expected = snapshots[0]
    for n, snapshot in enumerate(snapshots[1:], start=1):
        decay = min(0.9, (1 + n) / (10 + n))  # it grows, so that the first weights are soon forgotten
        expected = decay * expected + (1 - decay) * snapshot
    average = torch.load(averaged / "last.pt")["average"]["module.norm.bias"]
    torch.testing.assert_close(average, expected)
    assert load_trained(averaged).measured["iteration"] == 3
    assert weights(averaged, BEST)["norm.bias"].equal(average)


def test_best_is_the_checkpoint_with_the_lowest_validation_loss(data_root, tmp_path, monkeypatch):
    """Where the loss is said to rise again; the losses over the whole split are measured as they are."""
    said, asked = iter([3.0, 2.0, 2.5]), []
    monkeypatch.setattr(train.Measures, "loss", lambda self, *arguments: asked.append(arguments) or next(said))
    folder = train_tiny(data_root, tmp_path / "run", "--lr", 0.1, "--warmup_iters", 0, "--dtype", "float32")
    batches, size = 2, 4  # of an evaluation
    assert [(name, count) for name, _, count in asked] == [("poem", batches * size)] * 3
    best = load_trained(folder)
    assert best.measured == {"iteration": 8, "val_loss": 2.0} and logged(folder, "val_loss") == [3.0, 2.0, 2.5]
    result = read_json(folder / "result.json")
    for model, kind in ((as_gpt(best), "best"), (load_checkpoint(folder / "last.pt")[0], "final")):
        expected = whole_losses(data_root, model)["poem"]
        assert math.isclose(result[f"{kind}_val_loss"], expected, rel_tol=1e-5)
    assert result["best_val_loss"] == result["poem_val_loss"] != result["final_val_loss"]


def test_the_last_iteration_is_evaluated_and_told_before_the_long_measurement(data_root, tmp_path, monkeypatch, capsys):
    whole = train.Measures.whole
    monkeypatch.setattr(train.Measures, "whole", lambda self, model: print("measuring") or whole(self, model))
    folder = train_tiny(data_root, tmp_path / "run", "--iters", 10)
    assert logged(folder, "iter") == [4, 8, 10]
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("measuring") - 1].startswith("iter     10 | loss")


def test_the_same_seed_gives_the_same_run_also_with_batches_made_ahead(data_root, ckpt_path, tmp_path, monkeypatch):
    assert_same_run(ckpt_path, train_tiny(data_root, tmp_path / "again"))
    other = train_tiny(data_root, tmp_path / "other", "--seed", 2)
    assert not torch.equal(weights(other)["norm.weight"], weights(ckpt_path)["norm.weight"])
    init = train.Batches.__init__

    def ahead(self, *arguments):
        init(self, *arguments)
        self.ahead = True

    monkeypatch.setattr(train.Batches, "__init__", ahead)
    assert_same_run(ckpt_path, train_tiny(data_root, tmp_path / "ahead"))


def test_compile_changes_neither_results_nor_names(data_root, ckpt_path, tmp_path, monkeypatch):
    """torch.compile itself takes half a minute: here its first half, the tracing, runs alone, without a compiler."""
    compiled, compile = [], torch.compile

    def traced(function):
        compiled.append(function)
        return compile(function, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr("songci.training.device.check_compiler", lambda device: None)
    folder = train_tiny(data_root, tmp_path / "run", "--compile")
    assert len(compiled) == 1 and weights(folder).keys() == weights(ckpt_path).keys()
    assert logged(folder, "train_loss") == pytest.approx(logged(ckpt_path, "train_loss"), abs=1e-4)


def test_a_scaled_loss_gives_the_same_steps_also_after_resuming(data_root, ckpt_path, tmp_path, monkeypatch):
    """What float16 on a GPU does to the gradients, here in float32, where scaling by a power of two is exact."""
    scaler, folder = torch.amp.GradScaler, tmp_path / "run"

    def train_from(scale, *flags):
        monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=scale))
        train_tiny(data_root, folder, *flags)
        assert torch.load(folder / "last.pt")["scaler"]["scale"] == 1024.0

    train_from(1024.0)
    for name, tensor in weights(ckpt_path).items():
        torch.testing.assert_close(weights(folder)[name], tensor)
    train_from(64.0, "--resume", "--iters", 13)


# --- what a user can get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--iters 0", "--iters"),
        ("--batchsize -1", "--batchsize"),
        ("--max_seq_len 0", "--max_seq_len"),
        ("--dropout 1", "--dropout"),
        ("--lr nan", "--lr"),
        ("--n_head 3", "--n_head 3 does not divide n_embd 16"),
        ("--model giant", "invalid choice: 'giant'"),
        ("--max_seq_len 100000", "too few for --max_seq_len 100000"),
        ("--resume --overwrite", "exclude each other"),
        ("--max_seq_len 99999999999999999999", "--max_seq_len"),
        ("--n_embd 99999999999999999999", "--n_embd"),
        ("--workdirs/quansongci", "--ckpt_path workdirs/quansongci was meant"),
        ("--data_root data/quansonci", "did you mean data/quansongci?"),
        ("--device cuda", "--device cuda: there is no such device here; use --device cpu"),
        ("--dtype float16", "float16 is for GPUs"),
        ("--compile", "C++ compiler"),
    ],
)
def test_bad_flags_get_one_line_and_write_nothing(tmp_path, assert_refused, monkeypatch, flags, words):
    """On a machine that has neither a GPU nor a compiler."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("songci.training.device.shutil.which", lambda name: None)
    assert_refused(tmp_path / "run", *flags.split(), words=[words])
    assert not (tmp_path / "run").exists()


def test_folders_that_cannot_be_used_are_reported(tmp_path, assert_refused):
    (tmp_path / "data").mkdir()
    (tmp_path / "file").touch()
    assert_refused(tmp_path / "run", "--data_root", tmp_path / "data", words=["run prepare.py"])
    assert_refused(tmp_path / "file", words=["is a file: give the folder of the run"])
    assert_refused(tmp_path / "file" / "run", words=["Not a directory", tmp_path / "file" / "run"])
    assert sorted(os.listdir(tmp_path)) == ["data", "file"]


def test_a_run_that_failed_before_its_first_checkpoint_is_no_run(data_root, tmp_path, assert_refused):
    folder = tmp_path / "run"
    line = assert_refused(folder, "--lr", 1e6, "--muon_lr", 1e6, "--weight_decay", 1e6, words=["lower --lr"])
    assert "last.pt" not in line and sorted(os.listdir(folder)) == [".lock", "config.json", "forms.json"]
    train_tiny(data_root, folder)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, assert_refused, monkeypatch):
    def explode_after_6(run, *_):
        if run.iteration == 6:
            run.model.norm.weight.data.fill_(math.inf)

    after_each_iteration(monkeypatch, explode_after_6)
    assert_refused(tmp_path / "run", words=["nan at iteration 6", "lower --lr"])
    for name in ("last.pt", BEST):
        assert torch.isfinite(weights(tmp_path / "run", name)["norm.weight"]).all()
    assert torch.load(tmp_path / "run" / "last.pt")["iteration"] == 4


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(ckpt_path, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(ckpt_path, tmp_path / "finished")


def test_a_run_is_not_destroyed_without_being_asked(data_root, ckpt_path, finished, assert_refused):
    assert_refused(finished, words=["--resume", "--overwrite"])
    assert contents(finished) == contents(ckpt_path)
    train_tiny(data_root, finished, "--overwrite", "--seed", 5)
    assert not weights(finished)["norm.weight"].equal(weights(ckpt_path)["norm.weight"])


@pytest.mark.parametrize(("number", "flags"), [(signal.SIGINT, ["--ema", 0.9, "--accum", 2]), (signal.SIGTERM, [])])
def test_a_resumed_run_equals_one_that_never_stopped(data_root, tmp_path, number, flags):
    """Stopped in the middle of an interval of evaluation, with dropout, whose choices must be the same."""
    flags, folder = ["--dropout", 0.2, *flags], tmp_path / "stopped"
    straight = train_tiny(data_root, tmp_path / "straight", *flags)

    def stop_at_7(run, *_):
        if run.iteration == 7:
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(cli.Interrupted) as stop:
        after_each_iteration(patch, stop_at_7)
        train_tiny(data_root, folder, *flags)
    assert stop.value.number == number and torch.load(folder / "last.pt")["iteration"] == 7
    train_tiny(data_root, folder, *flags, "--resume")
    assert_same_run(straight, folder)


def test_resume_takes_what_is_not_given_from_the_run(data_root, tmp_path, monkeypatch, capsys):
    """Of a run with many flags, killed: --resume alone ends where, and as, the run would have ended."""
    flags = ["--ema", 0.9, "--lr", 0.02, "--dropout", 0.2, "--accum", 2, "--dtype", "float32", "--windows", "stream"]
    straight, folder = train_tiny(data_root, tmp_path / "straight", *flags), tmp_path / "killed"
    kill_after(monkeypatch, 7, data_root, folder, *flags)
    assert torch.load(folder / "last.pt")["iteration"] == 4
    for _ in range(2):  # the second time, it has ended
        resume_alone(monkeypatch, folder)
        assert_same_run(straight, folder)


def kill_after(monkeypatch, number: int, data_root, folder, *flags) -> None:
    """Trains until this iteration ends and, as kill -9 does, saves nothing then."""

    def kill(run, *_):
        if run.iteration == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        after_each_iteration(patch, kill)
        train_tiny(data_root, folder, *flags)


def resume_alone(monkeypatch, folder, *flags) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", "--ckpt_path", str(folder), "--resume", *map(str, flags)])
        train.main()


def test_resume_names_all_contradictions_at_once(ckpt_path, finished, assert_user_error):
    flags = ["--ckpt_path", finished, "--resume", "--lr", 0.5, "--n_layer", 3, "--no_pos", "--n_head", 2]
    words = ["--n_layer 3 --no_pos True --lr 0.5 contradict", "n_layer 2, no_pos False, lr 0.01: leave them out"]
    assert_user_error(train, *flags, words=words)
    assert contents(finished) == contents(ckpt_path)


def test_a_run_killed_while_it_measures_goes_on_from_there(data_root, ckpt_path, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    for moment, iteration in (("loss", 4), ("whole", 12)):  # the first evaluation, and the last
        folder = tmp_path / moment
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train.Measures, moment, killed)
            train_tiny(data_root, folder)
        assert torch.load(folder / "last.pt")["iteration"] == iteration
        train_tiny(data_root, folder, "--resume")
        assert_same_run(folder, ckpt_path)


def test_the_state_is_saved_every_few_minutes_however_rare_evaluations_are(data_root, tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 100))  # seconds: two looks at it are 100 s apart
    monkeypatch.setattr(train.time, "monotonic", lambda: next(clock))
    kill_after(monkeypatch, 9, data_root, tmp_path / "run", "--eval_interval", 1000)
    assert torch.load(tmp_path / "run" / "last.pt")["iteration"] == 8


@pytest.mark.parametrize("changed", [["--eval_iters", 3], ["--dtype", "bfloat16"]])
def test_a_best_loss_of_another_measure_is_not_compared(data_root, tmp_path, monkeypatch, changed):
    """A lucky loss over a few windows would never be beaten by honest ones over many."""
    folder = train_tiny(data_root, tmp_path / "run", "--dtype", "float32")
    last = torch.load(folder / "last.pt")
    last["best_loss"] = 1.0  # lucky
    torch.save(last, folder / "last.pt")
    train_tiny(data_root, folder, "--dtype", "float32", "--resume", "--iters", 14)
    assert load_trained(folder).measured["iteration"] == 12
    train_tiny(data_root, folder, "--dtype", "float32", "--resume", "--iters", 40, *changed)
    assert load_trained(folder).measured["iteration"] > 14


def test_a_finished_run_without_its_best_model_is_resumed_with_its_last(data_root, finished, ckpt_path, capsys):
    (finished / BEST).unlink()
    train_tiny(data_root, finished, "--resume")
    assert f"no {BEST} in" in capsys.readouterr().err
    assert weights(finished, BEST)["norm.bias"].equal(weights(ckpt_path)["norm.bias"])


def test_a_log_that_another_program_holds_open_is_a_warning(data_root, ckpt_path, tmp_path, monkeypatch, capsys):
    """As a spreadsheet does on Windows. The next evaluation writes all rows."""
    replace, folder = os.replace, tmp_path / "run"

    def in_use(source, target):
        if target.name in ("log.csv", "loss&perplexity.jpg"):
            raise PermissionError(13, "Permission denied", str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", in_use)
        train_tiny(data_root, folder)
    assert capsys.readouterr().err.count("log.csv is not brought up to date, probably open in another program") == 3
    assert (folder / "result.json").exists() and not (folder / "log.csv").exists()
    train_tiny(data_root, folder, "--resume", "--iters", 16)
    assert logged(folder, "iter") == [4, 8, 12, 16] and (folder / "loss&perplexity.jpg").exists()


def test_the_time_that_compiling_takes_is_no_training_time(data_root, tmp_path, monkeypatch):
    def slow_at_first(function):
        def compiled(*arguments):
            if not called:
                time.sleep(1)
            called.append(arguments)
            return function(*arguments)

        called = []
        return compiled

    monkeypatch.setattr(torch, "compile", slow_at_first)
    monkeypatch.setattr(device, "check_compiler", lambda _: None)
    folder = train_tiny(data_root, tmp_path / "run", "--compile")
    assert read_json(folder / "result.json")["seconds"] < 1


OTHER_SETTINGS = (
    "n_layer 3, n_head 4, n_embd 32, dropout 0.5, max_seq_len 8, no_pos True, no_res True, seed 3, batchsize 5, "
    "windows stream, init_from other, optimizer adamw, lr 0.5, muon_lr 0.5, warmup_iters 5, weight_decay 0.5, "
    "grad_clip 0.5, ema 0.9"
)


@pytest.mark.parametrize("setting", OTHER_SETTINGS.split(", "))
def test_resume_refuses_other_settings_and_changes_nothing(ckpt_path, finished, assert_refused, setting):
    flag = f"--{setting}".removesuffix(" True").split()
    assert_refused(finished, "--resume", *flag, words=[f"--{setting} contradicts"])
    assert contents(finished) == contents(ckpt_path)


def test_resume_refuses_what_is_not_of_the_run(data_root, tuned_root, ckpt_path, finished, tmp_path, assert_refused):
    assert_refused(finished, "--resume", "--data_root", tuned_root, words=["another vocabulary"])
    assert_refused(finished, "--resume", "--iters", 11, words=["is at iteration 12 already"])
    assert contents(finished) == contents(ckpt_path)
    other_run = train_tiny(data_root, tmp_path / "other", "--n_embd", 32)
    shutil.copy(other_run / BEST, finished)
    assert_refused(finished, "--resume", words=[f"{BEST} is of another run than last.pt"])
    last = torch.load(finished / "last.pt")
    last["args"]["iters"] = 20  # as if it had been stopped at iteration 12
    torch.save(last, finished / "last.pt")
    assert_refused(finished, "--resume", words=["--iters 12", "is at iteration 12 already; give more"])
    del last["optimizers"]
    torch.save(last, finished / "last.pt")
    assert_refused(finished, "--resume", "--iters", 30, words=["cannot be resumed from"])
    (finished / "last.pt").unlink()
    assert_refused(finished, "--resume", words=["no last.pt", "start without --resume"])


def test_resume_refuses_a_text_that_has_changed(data_root, finished, ckpt_path, tmp_path, assert_refused):
    """The same characters, and so the same vocabulary; the poems in another order, and so another split."""
    poems = (data_root / "input.txt").read_text(encoding="utf-8").split("\n\n")
    other = prepared(tmp_path / "other", "\n\n".join(reversed(poems)))
    assert_refused(finished, "--resume", "--data_root", other, words=["last.pt was trained on another text than"])
    assert contents(finished) == contents(ckpt_path)


@pytest.mark.slow
def test_a_second_training_in_a_folder_is_refused_and_a_killed_one_leaves_no_lock(data_root, tmp_path, assert_refused):
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), *tiny_flags(data_root, folder, "--iters", 10**6)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (folder / "last.pt").exists() or first.poll() is not None)
        for flags in ([], ["--resume"], ["--overwrite"]):
            assert_refused(folder, *flags, words=["another training is at work in", "give another --ckpt_path"])
    finally:
        first.kill()
        first.wait()
    train_tiny(data_root, folder, "--overwrite")


@pytest.mark.slow
def test_a_folder_whose_name_is_no_text_holds_a_run_like_any_other(data_root, tmp_path):
    """As unzipped from a Chinese Windows: 你好 in GBK."""
    folder = tmp_path / os.fsdecode("你好".encode("gbk"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    made = run_script("train.py", *tiny_flags(data_root, folder))
    run = ["--data_root", data_root, "--ckpt_path", folder]
    commands = {
        "train.py": tiny_flags(data_root, folder, "--resume", "--iters", 14),
        "sample.py": [*run, "--num_samples", 1, "--max_new_tokens", 5, "--format", "jsonl"],
        "songci.evaluate": [*run, "--samples", 2, "--out", tmp_path / "curves.png", tmp_path / "scores.json"],
        "songci.export": [*run[2:], "--out", folder / "export"],
        "songci.attention": [*run, "--num_windows", 1],
    }
    for done in (made, *(run_script(name, *args) for name, args in commands.items())):
        assert done.returncode == 0 and not done.stderr.count("Traceback"), done.stderr
    assert read_json(folder / "config.json")["iters"] == 14


def test_a_file_given_for_a_folder_is_told_from_it(ckpt_path, data_root, assert_refused, assert_user_error):
    best, text, run = ckpt_path / BEST, data_root / "input.txt", ["--ckpt_path", ckpt_path]
    words = [f"{best} is a file: give the folder of the run, {ckpt_path}"]
    assert_refused(best, words=words)
    assert_refused(ckpt_path.parent / "new", "--init_from", best, words=words)
    for command in (sample, evaluate, attention_command):
        assert_user_error(command, "--data_root", data_root, "--ckpt_path", best, words=words)
        words_of_data = [f"{text} is a file: give its folder, {data_root}"]
        assert_user_error(command, "--data_root", text, *run, words=words_of_data)
    assert_user_error(export, "--ckpt_path", best, words=words)


def test_a_finished_run_goes_on_with_its_best_model_and_its_time(data_root, ckpt_path, finished, monkeypatch):
    train_tiny(data_root, finished, "--resume")
    assert_same_run(finished, ckpt_path)
    monkeypatch.setattr(train.Measures, "loss", lambda *_: 99.0)
    train_tiny(data_root, finished, "--resume", "--iters", 20)
    assert read_json(finished / "result.json")["iters"] == 20 and logged(finished, "iter") == [4, 8, 12, 16, 20]
    assert logged(finished, "val_loss")[3:] == [99, 99]
    assert contents(finished)[BEST] == contents(ckpt_path)[BEST]
    before, last = (torch.load(folder / "last.pt") for folder in (ckpt_path, finished))
    assert last["best_loss"] == before["best_loss"] < 99 and last["seconds"] > before["seconds"]


def test_a_resumed_run_computes_in_the_type_that_auto_was(data_root, tmp_path, monkeypatch):
    """Though a second measurement comes out otherwise."""

    def measured(dtype):
        monkeypatch.setattr(train, "choose_dtype", lambda name, _: dtype if name == "auto" else getattr(torch, name))

    auto = ["--dtype", "auto"]
    measured(torch.bfloat16)
    folder = train_tiny(data_root, tmp_path / "run", *auto)
    straight = shutil.copytree(folder, tmp_path / "straight")
    train_tiny(data_root, straight, *auto, "--resume", "--iters", 20)
    measured(torch.float32)
    train_tiny(data_root, folder, *auto, "--resume", "--iters", 20)
    assert_same_run(straight, folder)
    assert read_json(folder / "config.json")["dtype"] == "bfloat16"


# --- beginning with the weights of another run ------------------------------------------------------------------------


@pytest.mark.parametrize("seq_len", [16, 12, 24])  # as the other run, shorter, longer
def test_a_run_begins_with_the_weights_of_another(make_trainer, ckpt_path, seq_len):
    own = make_trainer("--max_seq_len", seq_len, "--seed", 5).model.state_dict()
    begun = make_trainer("--max_seq_len", seq_len, "--seed", 5, "--init_from", ckpt_path).model.state_dict()
    positions, theirs = "position_embedding.weight", weights(ckpt_path, BEST)
    first = theirs.pop(positions)
    assert begun[positions][:16].equal(first[:seq_len]) and begun[positions][16:].equal(own[positions][16:])
    assert all(begun[name].equal(tensor) for name, tensor in theirs.items())


def test_what_a_run_began_with_is_recorded_also_after_it_was_resumed(data_root, ckpt_path, tmp_path):
    folder = train_tiny(data_root, tmp_path / "run", "--init_from", ckpt_path)
    assert read_json(folder / "config.json")["init_from"] == str(ckpt_path)
    assert logged(folder, "train_loss")[0] < logged(ckpt_path, "train_loss")[0]
    train_tiny(data_root, folder, "--resume", "--iters", 16)
    assert read_json(folder / "config.json")["init_from"] == str(ckpt_path)


def test_a_run_that_another_cannot_begin_with_is_named(tuned_root, ckpt_path, tuned_ckpt, tmp_path, assert_refused):
    run = tmp_path / "run"
    for setting in ("n_layer 3", "n_head 4", "n_embd 32", "no_pos True", "no_res True"):
        flag, words = f"--{setting}".removesuffix(" True").split(), [f"--{setting} contradicts --init_from {ckpt_path}"]
        assert_refused(run, *flag, "--init_from", ckpt_path, words=words)
    assert_refused(run, "--init_from", tuned_ckpt, words=["another vocabulary"])
    assert_refused(run, "--init_from", tmp_path / "none", words=["no model", "run train.py"])
    (tmp_path / BEST).write_bytes(b"damaged")
    assert_refused(run, "--init_from", tmp_path, words=[f"{BEST} is damaged"])
    assert not run.exists()


@pytest.mark.slow
def test_make_poet_trains_on_both_texts_and_writes_poems_and_goes_on_where_it_was_stopped(tuned_root, tmp_path):
    """With tiny sizes, in folders of our own; the shi are another text of the same characters."""
    shi = tmp_path / "shi"
    shi.mkdir()
    (shi / "input.txt").write_text(tuned_text(300, seed=1), encoding="utf-8")
    folders = [f"DATA={tuned_root}", f"SHI={shi}", f"POET={tmp_path / 'poet'}"]
    flags = "--n_layer 1 --n_embd 16 --batchsize 2 --max_seq_len 16 --iters 4 --eval_iters 1 --device cpu"

    def make() -> str:
        command = ["make", "poet", "-o", ".venv/installed", f"PY={sys.executable}", f"POET_FLAGS={flags}", *folders]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, encoding="utf-8").stdout

    assert make().count("took") == 4
    config = read_json(tmp_path / "poet" / "config.json")
    assert config["init_from"] == str(tmp_path / "poet_shi") and config["model"] == "poet"
    poems = (tmp_path / "poet" / "samples.txt").read_text(encoding="utf-8")
    assert poems.count("+++清平乐") == 20
    for name in ("samples.txt", "result.json"):
        (tmp_path / "poet" / name).unlink()
    assert make().count("took") == 2 and (tmp_path / "poet" / "samples.txt").read_text(encoding="utf-8") == poems
