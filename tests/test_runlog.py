import csv
import hashlib
import itertools
import json
import math
import subprocess
import sys

import matplotlib.image
import pytest
from conftest import QUICK, TINY, train_tiny
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from songci.cli import UserError
from songci.training import runlog
from songci.training.runlog import (
    EVENTS,
    LOG_FIELDS,
    RUN_FILES,
    check_folder,
    log_line,
    plot_curves,
    read_log,
    write_log,
)

ROWS = [dict.fromkeys(LOG_FIELDS, i + 1.5) for i in range(3)]


def test_a_log_is_read_as_it_was_written(tmp_path):
    rows = [{name: value for name, value in ROWS[0].items() if "poem" not in name}, ROWS[1]]
    write_log(tmp_path / "log.csv", rows)
    assert (tmp_path / "log.csv").read_bytes().decode().splitlines()[0] == ",".join(LOG_FIELDS)
    assert read_log(tmp_path / "log.csv") == rows


def test_a_damaged_log_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text("iter,train_loss\n1,x\n")
    with pytest.raises(UserError, match="damaged"):
        read_log(tmp_path / "log.csv")


def test_a_log_keeps_six_digits(tmp_path):
    write_log(tmp_path / "log.csv", [{"iter": 123456, "lr": 1.234567e-5, "val_loss": 4.567894}])
    assert (tmp_path / "log.csv").read_text().splitlines()[1].rstrip(",") == "123456,1.23457e-05,,,4.56789"


def test_a_line_of_the_report_tells_what_the_row_holds():
    values = {"lr": 0.0012, "train_loss": 1.5, "val_loss": 2.5, "train_perplexity": 4.5, "val_perplexity": 12.2}
    line = log_line({"iter": 7, **values, "grad_norm": 0.75, "tokens_per_second": 12345.6})
    assert [" ".join(part.split()) for part in line.split("|")] == [
        *("iter 7", "loss 1.5000", "val loss 2.5000", "perplexity 4.5", "val perplexity 12.2"),
        *("norm 0.75", "lr 1.20e-03", "12,346 tok/s"),
    ]


def test_the_row_of_an_evaluation_is_of_the_iterations_since_the_last(data_root, tmp_path, monkeypatch):
    """With a clock that says half a second for each iteration."""
    step, steps = train.Trainer.step, []
    ticks = itertools.count()
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(ticks) / 2)
    monkeypatch.setattr(train.Trainer, "step", lambda self: steps.append(step(self)) or steps[-1])
    folder = train_tiny(data_root, tmp_path / "run", "--dtype", "float32")
    for row, end in zip(read_log(folder / "log.csv"), (4, 8, 12), strict=True):
        assert row["train_loss"] == pytest.approx(sum(loss for loss, _ in steps[end - 4 : end]) / 4, rel=1e-5)
        assert row["grad_norm"] == pytest.approx(steps[end - 1][1], rel=1e-5)
        assert row["tokens_per_second"] == 4 * 16 / 0.5
    result = json.loads((folder / "result.json").read_text())
    assert result["seconds"] == 6 and result["tokens_per_second"] == 4 * 16 / 0.5


@pytest.mark.parametrize("name", RUN_FILES)
def test_any_file_of_a_run_protects_its_folder(tmp_path, name):
    check_folder(tmp_path, resume=False, overwrite=False)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="--resume, or start again with --overwrite"):
        check_folder(tmp_path, resume=False, overwrite=False)
    check_folder(tmp_path, resume=False, overwrite=True)
    if name != "last.pt":
        with pytest.raises(UserError, match=r"no last\.pt"):
            check_folder(tmp_path, resume=True, overwrite=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_run_clears_the_folder_and_a_resumed_one_keeps_it(tmp_path, resume):
    half_written = [f".{name}.abc" for name in [*RUN_FILES, "config.json"]]
    kept, cleared = ["notes.txt", ".hidden"], [*RUN_FILES, "events.out.tfevents.1"]
    for name in [*half_written, *kept, *cleared]:
        (tmp_path / name).write_text(name)
    runlog.begin_folder(tmp_path, resume, {"seed": 7}, tmp_path)
    expected = [*kept, "config.json", *(cleared if resume else [])]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7


def test_config_tells_of_corpus_and_code(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(runlog, "__file__", str(tmp_path / "songci/training/runlog.py"))
    text = bytes(range(1, 256)) * 10_000  # of more than one block
    (tmp_path / "input.txt").write_bytes(text)
    found = runlog.provenance(tmp_path)
    assert found["corpus_sha256"] == hashlib.sha256(text).hexdigest() and "git_commit" not in found
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "input.txt"], [*who, "commit", "-q", "-m", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    found = runlog.provenance(tmp_path)
    assert len(found["git_commit"]) in (40, 64) and found["git_changes"] is False
    (tmp_path / "input.txt").write_text("changed")
    assert runlog.provenance(tmp_path)["git_changes"] is True


def test_curves_show_the_numbers_of_the_log(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    rows = [{name: 10 * i + place for place, name in enumerate(LOG_FIELDS)} for i in range(3)]
    plot_curves({"": rows}, tmp_path / "curves.png")
    plot_curves({"a": rows, "b": rows[:2]}, tmp_path / "curves.png")
    names = [("train", "validation"), ("a train", "a val", "b train", "b val")]
    for figure, labels in zip(figures, names, strict=True):
        assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log"]
        for axes, measure in zip(figure.axes, ("loss", "perplexity"), strict=True):
            assert axes.get_title() == measure and tuple(line.get_label() for line in axes.lines) == labels
            for line, label in zip(axes.lines, labels, strict=True):
                split, shown = "train" if "train" in label else "val", rows[:2] if label[0] == "b" else rows
                assert line.get_linestyle() == ("--" if split == "train" else "-")
                assert line.get_xdata().tolist() == [row["iter"] for row in shown]
                assert line.get_ydata().tolist() == [row[f"{split}_{measure}"] for row in shown]


@pytest.mark.parametrize("name", ["curves.jpg", "curves.png"])
def test_curves_of_one_run_and_of_several_are_drawn(tmp_path, name):
    pictures = []
    for runs in ({"": ROWS}, {"a": ROWS, "b": ROWS[:2]}):
        plot_curves(runs, tmp_path / name)
        pictures.append(matplotlib.image.imread(tmp_path / name))
    assert all(picture.std() > 0.05 for picture in pictures)
    assert (pictures[0] != pictures[1]).any()


def test_a_run_with_a_chinese_name_is_drawn_without_boxes(tmp_path, recwarn):
    """matplotlib warns of each character that it has no glyph for."""
    row = {"iter": 1, "train_loss": 1, "val_loss": 1, "train_perplexity": 3, "val_perplexity": 3}
    plot_curves({"宋词": [row], "default": [row]}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_log_is_a_table_that_any_program_reads(ckpt_path):
    content = (ckpt_path / "log.csv").read_bytes()
    assert b"\r" not in content and content.isascii() and content.endswith(b"\n")
    header, *rows = csv.reader(content.decode().splitlines())
    assert header == LOG_FIELDS and len(rows) == 3
    for row in rows:
        assert len(row) == len(header)
        filled = [cell for cell in row if cell]
        assert all(math.isfinite(float(cell)) for cell in filled)
        assert row[: len(filled)] == filled and len(filled) in (len(header), len(header) - 4)  # the last row has all
    assert all(rows[-1])


def curves(folder) -> dict[str, dict[int, float]]:
    """What TensorBoard itself reads from a run's folder: {tag: {step: value}}."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: {event.step: event.value for event in reader.Scalars(tag)} for tag in reader.Tags()["scalars"]}


def test_tensorboard_reads_every_row_of_the_log_of_a_run_that_went_on(data_root, tmp_path):
    folder = train_tiny(data_root, tmp_path / "run", "--tensorboard")
    lost = runlog.TensorBoard(folder)
    lost.add({"iter": 15, "train_loss": 99.0})  # of a run that was killed before it saved anything after 12
    train_tiny(data_root, folder, "--tensorboard", "--resume", "--iters", "20", "--eval_interval", "2")
    found, rows = curves(folder), read_log(folder / "log.csv")
    assert [row["iter"] for row in rows] == [4, 8, 12, 14, 16, 18, 20]
    for row in rows:
        for name in ("lr", "grad_norm", "tokens_per_second"):
            assert found[name][row["iter"]] == pytest.approx(row[name], rel=1e-4)
    for tag, name in (("loss/train", "train_loss"), ("perplexity/val", "val_perplexity")):
        assert found[tag] == pytest.approx({row["iter"]: row[name] for row in rows}, rel=1e-4)
    assert found["loss/poem_val"].keys() == {12, 20}
    train_tiny(data_root, folder, "--overwrite")
    assert not list(folder.glob(EVENTS))  # a new run has no curves of another


def test_without_the_package_nothing_of_an_earlier_run_is_touched(assert_user_error, ckpt_path, data_root, monkeypatch):
    before = (ckpt_path / "last.pt").read_bytes()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    flags = ["--data_root", data_root, "--ckpt_path", ckpt_path, *TINY, *QUICK, "--overwrite", "--tensorboard"]
    assert_user_error(train, *flags, words=["--tensorboard", "pip install tensorboard"])
    assert (ckpt_path / "last.pt").read_bytes() == before
