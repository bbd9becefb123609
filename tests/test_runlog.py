import matplotlib.image
import pytest

from cli import UserError
from runlog import LOG_FIELDS, plot_curves, read_log, write_log

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
