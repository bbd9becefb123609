"""train.py: what a run writes, its flags, how it goes on, and what a user can get wrong."""

import json
import math
import os
import shutil
import signal

import matplotlib.image
import pytest
import torch
from conftest import QUICK, TINY, assert_same_run, read_log, run_script, song_text, train_tiny, weights

import prepare
import train
from songci.corpus.vocabulary import load_dataset
from songci.corpus.windows import ScoredWindows, title_ids
from songci.training.checkpoint import load_checkpoint, load_model
from songci.training.measure import mean_loss
from songci.training.runlog import LOG_FIELDS, RUN_FILES, WHOLE_FIELDS


def test_the_handouts_flags_and_defaults():
    args = train.parse_args(["-data_root", "d", "--ckpt_path", "c", "-no_pos", "-no_res"])
    assert (args.data_root, args.ckpt_path, args.no_pos, args.no_res) == ("d", "c", True, True)
    args = train.parse_args([])
    assert (args.data_root, args.ckpt_path) == ("data/quansongci", "workdirs/quansongci")
    assert (args.batchsize, args.iters, args.max_seq_len, args.no_pos, args.no_res) == (16, 2000, 64, False, False)
    config = train.model_config(args, 100)
    assert (config.n_layer, config.n_head, config.n_embd, config.dropout) == (4, 4, 128, 0.0)
    config = train.model_config(train.parse_args(["--model", "small"]), 100)
    assert (config.n_layer, config.n_head, config.n_embd, config.dropout) == (6, 6, 384, 0.2)
    config = train.model_config(train.parse_args(["--model", "small", "--n_layer", "2", "--dropout", "0"]), 100)
    assert (config.n_layer, config.n_head, config.n_embd, config.dropout) == (2, 6, 384, 0.0)


def test_a_run_writes_all_that_it_promises(ckpt_path, data_root):
    assert sorted(os.listdir(ckpt_path)) == sorted([*RUN_FILES, "config.json"])
    rows = read_log(ckpt_path)
    assert list(rows[0]) == LOG_FIELDS and [int(row["iter"]) for row in rows] == [4, 8, 12]
    for row in rows:
        for split in ("train", "val"):
            loss, perplexity = float(row[f"{split}_loss"]), float(row[f"{split}_perplexity"])
            assert math.isclose(perplexity, math.exp(loss), rel_tol=1e-4)
        assert float(row["grad_norm"]) > 0 and float(row["tokens_per_second"]) > 0
    picture = matplotlib.image.imread(ckpt_path / "loss&perplexity.jpg")
    assert picture.shape[1] > 1000 and picture.std() > 10
    result = json.loads((ckpt_path / "result.json").read_text())
    assert result["iters"] == 12 and result["tokens"] == 12 * 4 * 16 and result["seconds"] > 0
    assert math.isclose(result["final_perplexity"], math.exp(result["final_val_loss"]))
    model, vocabulary, _ = load_model(ckpt_path)
    val_tokens = load_dataset(data_root)[2]
    poems = ScoredWindows.of_poems(val_tokens, title_ids(vocabulary), 16)
    assert math.isclose(result["poem_val_loss"], mean_loss(model, val_tokens, poems, 7), rel_tol=1e-5)
    assert math.isclose(
        result["stream_val_loss"],
        mean_loss(model, val_tokens, ScoredWindows.of_stream(val_tokens, 16), 7),
        rel_tol=1e-5,
    )
    assert result["windows"] == "poem" and result["best_val_loss"] == result["poem_val_loss"]
    for measure in ("poem", "stream"):
        assert math.isclose(result[f"{measure}_perplexity"], math.exp(result[f"{measure}_val_loss"]))
        assert [bool(row[f"{measure}_val_loss"]) for row in rows] == [False, False, True]
    assert result["parameters"] == model.num_parameters()
    config = json.loads((ckpt_path / "config.json").read_text())
    assert config["iters"] == 12 and config["seed"] == 1 and config["versions"]["torch"] == torch.__version__


def test_training_learns(data_root, tmp_path):
    """A text in which each character follows from the one before: the loss must fall far below that of guessing."""
    (tmp_path / "input.txt").write_text("春夏秋冬" * 500, encoding="utf-8")
    prepare.prepare(tmp_path)
    train_tiny(tmp_path, tmp_path / "run", "--iters", 150, "--eval_interval", 50, "--lr", 0.01, "--warmup_iters", 5)
    rows = read_log(tmp_path / "run")
    assert float(rows[-1]["val_loss"]) < 0.1 * math.log(4) and float(rows[-1]["train_loss"]) < 0.1 * math.log(4)


def test_windows_follow_the_text(data_root, tmp_path, assert_user_error):
    """auto: poems for a text with titles, a stream for one without; the other measure is given where there is one."""
    result = json.loads((train_tiny(data_root, tmp_path / "a", "--windows", "stream") / "result.json").read_text())
    assert result["windows"] == "stream" and result["best_val_loss"] == result["stream_val_loss"]
    assert result["poem_val_loss"] > 0 and load_model(tmp_path / "a").title == ()
    (tmp_path / "input.txt").write_text("春夏秋冬" * 100, encoding="utf-8")
    prepare.prepare(tmp_path)
    result = json.loads((train_tiny(tmp_path, tmp_path / "b") / "result.json").read_text())
    assert result["windows"] == "stream" and "poem_val_loss" not in result
    flags = ["--data_root", tmp_path, "--ckpt_path", tmp_path / "c", *TINY, *QUICK, "--windows", "poem"]
    assert_user_error(train, *flags, words=["--windows poem", "use --windows stream"])
    assert not (tmp_path / "c").exists()


def test_bfloat16_and_float32_give_the_same_curve(tmp_path):
    """Within 1 % over 200 iterations."""
    (tmp_path / "input.txt").write_text(song_text(1000), encoding="utf-8")
    prepare.prepare(tmp_path)
    curves = []
    for dtype in ("float32", "bfloat16"):
        flags = ["--dtype", dtype, "--iters", 200, "--eval_interval", 20, "--n_embd", 64, "--max_seq_len", 32]
        folder = train_tiny(tmp_path, tmp_path / dtype, *flags)
        curves.append([float(row["train_loss"]) for row in read_log(folder)])
    assert all(abs(a - b) < 0.01 * a for a, b in zip(*curves, strict=True))
    assert curves[0] != curves[1] and curves[0][-1] < 0.9 * curves[0][0]


@pytest.mark.parametrize("flag", ["--no_pos", "--no_res"])
def test_the_handouts_switches_train_under_the_default_recipe(flag, tmp_path):
    (tmp_path / "input.txt").write_text(song_text(300), encoding="utf-8")
    prepare.prepare(tmp_path)
    folder = train_tiny(tmp_path, tmp_path / "run", flag, "--iters", 60, "--eval_interval", 20, "--warmup_iters", 10)
    losses = [float(row["val_loss"]) for row in read_log(folder)]
    assert losses[0] > losses[-1] and losses[-1] < math.log(128)


def test_ema_keeps_a_moving_average_of_the_weights(data_root, tmp_path):
    """The same run with and without it: last.pt is the same, best.pt is the average, here redone by hand."""
    flags = ["--iters", 3, "--eval_interval", 1]
    averaged = train_tiny(data_root, tmp_path / "averaged", *flags, "--ema", 0.9)
    plain = train_tiny(data_root, tmp_path / "plain", *flags)
    assert weights(plain)["norm.bias"].equal(weights(averaged)["norm.bias"])
    snapshots = []
    iterate = train.Trainer.iterate

    def remember(self):
        result = iterate(self)
        snapshots.append(self.model.norm.bias.detach().clone())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "iterate", remember)
        train_tiny(data_root, tmp_path / "again", *flags, "--ema", 0.9)
    expected = snapshots[0]
    for snapshot in snapshots[1:]:
        expected = 0.9 * expected + 0.1 * snapshot
    average = torch.load(tmp_path / "again" / "last.pt")["average"]["module.norm.bias"]
    torch.testing.assert_close(average, expected)
    best = torch.load(tmp_path / "again" / "best.pt")
    assert best["iteration"] == 3 and best["model"]["norm.bias"].equal(average)


def test_best_is_the_checkpoint_with_the_lowest_validation_loss(data_root, tmp_path, monkeypatch):
    """Where the loss is said to rise again; the losses over the whole split are measured as they are."""
    said, asked = iter([3.0, 2.0, 2.5]), []
    monkeypatch.setattr(train.Measures, "loss", lambda self, *arguments: asked.append(arguments) or next(said))
    folder = train_tiny(data_root, tmp_path / "run", "--lr", 0.1, "--warmup_iters", 0)
    assert [(name, count) for name, _, count in asked] == [
        ("poem", 2 * 4)
    ] * 3  # batches of an evaluation times their size
    best = torch.load(folder / "best.pt")
    assert (best["iteration"], best["val_loss"]) == (8, 2.0)
    assert [float(row["val_loss"]) for row in read_log(folder)] == [3.0, 2.0, 2.5]
    result, val_tokens = json.loads((folder / "result.json").read_text()), load_dataset(data_root)[2]
    for name, kind in (("best.pt", "best"), ("last.pt", "final")):
        model, vocabulary, _ = load_checkpoint(folder / name)
        poems = ScoredWindows.of_poems(val_tokens, title_ids(vocabulary), 16)
        assert math.isclose(result[f"{kind}_val_loss"], mean_loss(model, val_tokens, poems, 7), rel_tol=1e-5)
    assert result["best_val_loss"] == result["poem_val_loss"] != result["final_val_loss"]


def test_the_last_iteration_is_evaluated_too(data_root, tmp_path):
    folder = train_tiny(data_root, tmp_path / "run", "--iters", 10)
    assert [int(row["iter"]) for row in read_log(folder)] == [4, 8, 10]


def test_the_same_seed_gives_the_same_run(data_root, ckpt_path, tmp_path):
    assert_same_run(ckpt_path, train_tiny(data_root, tmp_path / "again"))
    other = train_tiny(data_root, tmp_path / "other", "--seed", 2)
    assert not torch.equal(weights(other)["norm.weight"], weights(ckpt_path)["norm.weight"])


def test_a_run_that_failed_before_its_first_checkpoint_is_no_run(data_root, tmp_path, assert_user_error):
    flags = ["--data_root", data_root, "--ckpt_path", tmp_path / "run", *TINY, *QUICK]
    line = assert_user_error(train, *flags, "--lr", 1e6, "--muon_lr", 1e6, "--weight_decay", 1e6, words=["lower --lr"])
    assert "last.pt" not in line and os.listdir(tmp_path / "run") == ["config.json"]
    train_tiny(data_root, tmp_path / "run")


def test_config_tells_what_auto_was(ckpt_path):
    config = json.loads((ckpt_path / "config.json").read_text())
    assert config["windows"] == "poem" and config["dtype"] in ("float32", "bfloat16")


def test_a_run_is_not_destroyed_without_being_asked(data_root, ckpt_path, tmp_path, assert_user_error):
    folder = shutil.copytree(ckpt_path, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flags = ["--data_root", data_root, "--ckpt_path", folder, *TINY, *QUICK]
    assert_user_error(train, *flags, words=["--resume", "--overwrite"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    train_tiny(data_root, folder, "--overwrite", "--seed", 5)
    assert not weights(folder)["norm.weight"].equal(weights(ckpt_path)["norm.weight"])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(data_root, tmp_path, assert_user_error):
    iterate = train.Trainer.iterate

    def explode_after_4(self):
        if self.iteration == 6:
            with torch.no_grad():
                self.model.norm.weight.fill_(math.inf)
        return iterate(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "iterate", explode_after_4)
        flags = ["--data_root", data_root, "--ckpt_path", tmp_path / "run", *TINY, *QUICK]
        assert_user_error(train, *flags, words=["nan at iteration 6", "lower --lr"])
    for name in ("last.pt", "best.pt"):
        assert torch.isfinite(weights(tmp_path / "run", name)["norm.weight"]).all()
    assert torch.load(tmp_path / "run" / "last.pt")["iteration"] == 4


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--iters", "0"], "--iters"),
        (["--batchsize", "-1"], "--batchsize"),
        (["--max_seq_len", "0"], "--max_seq_len"),
        (["--dropout", "1"], "--dropout"),
        (["--lr", "nan"], "--lr"),
        (["--n_head", "3"], "--n_head 3 does not divide n_embd 16"),
        (["--model", "giant"], "invalid choice: 'giant'"),
        (["--max_seq_len", "100000"], "too few for --max_seq_len 100000"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--max_seq_len", "9" * 20], "--max_seq_len"),
        (["--n_embd", "9" * 20], "--n_embd"),
        (["--workdirs/quansongci"], "--ckpt_path workdirs/quansongci was meant"),
        (["--data_root", "data/quansonci"], "did you mean data/quansongci?"),
    ],
)
def test_bad_flags_get_one_line_and_write_nothing(data_root, tmp_path, assert_user_error, flags, words):
    folder = tmp_path / "run"
    assert_user_error(train, "--data_root", data_root, "--ckpt_path", folder, *TINY, *QUICK, *flags, words=[words])
    assert not folder.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there_is_reported(data_root, tmp_path, assert_user_error):
    flags = ["--data_root", data_root, "--ckpt_path", tmp_path / "run", "--device", "cuda"]
    assert_user_error(train, *flags, words=["--device cuda", "use --device cpu"])
    assert not (tmp_path / "run").exists()


def test_data_that_were_not_prepared_are_reported(tmp_path, assert_user_error):
    (tmp_path / "data").mkdir()
    flags = ["--data_root", tmp_path / "data", "--ckpt_path", tmp_path / "run"]
    assert_user_error(train, *flags, words=["run prepare.py"])
    assert os.listdir(tmp_path) == ["data"]


def test_a_folder_that_cannot_be_made_is_reported(data_root, tmp_path, assert_user_error):
    (tmp_path / "file").write_text("")
    flags = ["--data_root", data_root, *TINY, *QUICK, "--ckpt_path"]
    assert_user_error(train, *flags, tmp_path / "file" / "run", words=["Not a directory", tmp_path / "file" / "run"])
    assert_user_error(train, *flags, tmp_path / "file", words=["File exists"])


def test_the_script_runs_as_a_program_and_reports(data_root, tmp_path):
    done = run_script("train.py", "--data_root", data_root, "--ckpt_path", tmp_path / "run", *TINY, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "parameters on cpu" in done.stdout and "whole validation split, by poem: loss" in done.stdout
    assert "iter     12 | loss" in done.stdout


def test_the_line_of_the_last_iteration_comes_before_the_long_measurement(data_root, tmp_path, monkeypatch, capsys):
    whole = train.Measures.whole
    monkeypatch.setattr(train.Measures, "whole", lambda self, model: print("measuring") or whole(self, model))
    train_tiny(data_root, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("measuring") - 1].startswith("iter     12 | loss")


def test_compile_changes_neither_results_nor_names(data_root, ckpt_path, tmp_path, monkeypatch):
    """torch.compile itself takes half a minute: here its first half, the tracing, runs alone."""
    compiled, compile = [], torch.compile

    def traced(function):
        compiled.append(function)
        return compile(function, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    folder = train_tiny(data_root, tmp_path / "run", "--compile")
    assert len(compiled) == 1
    assert weights(folder).keys() == weights(ckpt_path).keys()
    losses, others = ([row["train_loss"] for row in read_log(run)] for run in (folder, ckpt_path))
    assert [float(x) for x in losses] == pytest.approx([float(x) for x in others], abs=1e-4)


def test_compile_without_a_compiler_is_reported(data_root, tmp_path, assert_user_error, monkeypatch):
    monkeypatch.setattr("songci.training.device.shutil.which", lambda name: None)
    arguments = ["--data_root", data_root, "--ckpt_path", tmp_path / "run", *TINY, *QUICK]
    assert_user_error(train, *arguments, "--compile", words=["C++ compiler"])
    assert_user_error(train, *arguments, "--dtype", "float16", words=["float16 is for GPUs"])


def test_batches_made_ahead_are_the_same(data_root, ckpt_path, tmp_path, monkeypatch):
    init = train.Batches.__init__

    def ahead(self, *arguments):
        init(self, *arguments)
        self.ahead = True

    monkeypatch.setattr(train.Batches, "__init__", ahead)
    assert_same_run(ckpt_path, train_tiny(data_root, tmp_path / "run"))


def test_a_scaled_loss_gives_the_same_steps(data_root, ckpt_path, tmp_path, monkeypatch):
    """What float16 on a GPU does to the gradients, here in float32, where scaling by a power of two is exact."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=1024.0))
    folder = train_tiny(data_root, tmp_path / "run")
    assert torch.load(folder / "last.pt")["scaler"]["scale"] == 1024.0
    for name, tensor in weights(ckpt_path).items():
        torch.testing.assert_close(weights(folder)[name], tensor)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_one_that_never_stopped(data_root, tmp_path):
    """Stopped by Ctrl-C in the middle of an interval of evaluation, with dropout, whose choices must be the same."""
    flags = ["--dropout", 0.2, "--ema", 0.9, "--accum", 2]
    straight = train_tiny(data_root, tmp_path / "straight", *flags)
    iterate, folder = train.Trainer.iterate, tmp_path / "stopped"

    def stop_at_7(self):
        result = iterate(self)
        if self.iteration == 7:
            signal.raise_signal(signal.SIGINT)
        return result

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Trainer, "iterate", stop_at_7)
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
    monkeypatch.setattr(train.Measures, "loss", lambda *_: 99.0)
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


def test_a_best_model_of_another_run_is_not_reported(data_root, ckpt_path, tmp_path, assert_user_error):
    folder = shutil.copytree(ckpt_path, tmp_path / "run")
    other = train_tiny(data_root, tmp_path / "other", "--n_embd", 32)
    shutil.copy(other / "best.pt", folder / "best.pt")
    arguments = ["--data_root", data_root, "--ckpt_path", folder, *TINY, *QUICK, "--resume"]
    assert_user_error(train, *arguments, words=["best.pt is of another run than last.pt"])
