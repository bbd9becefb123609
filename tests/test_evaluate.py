import json
import math
import shutil

import matplotlib.image
from conftest import train_tiny

from songci import evaluate
from songci.corpus.vocabulary import load_vocabulary
from songci.forms.templates import Forms


def test_runs_are_compared_in_a_table_a_picture_and_a_poem_each(call, data_root, ckpt_path, tmp_path):
    no_pos = train_tiny(data_root, tmp_path / "no_pos", "-no_pos")
    out = tmp_path / "results.md"
    out.write_text("# Before\n\n<!-- ablation -->\nold\n<!-- /ablation -->\n\nAfter\n", encoding="utf-8")
    arguments = ["--ckpt_path", ckpt_path, no_pos, "--out", out, "--start", "+++清平乐\n"]
    arguments += ["--max_new_tokens", 20, "--samples", 0]
    for _ in range(2):  # a second run replaces what the first has written
        status, printed, _ = call(evaluate, *arguments)
        text = out.read_text(encoding="utf-8")
        assert status == 0 and printed.strip() in text
        assert text.startswith("# Before\n") and text.endswith("\nAfter\n") and "old" not in text
        assert text.count("<!-- ablation -->") == 1
    for folder in (ckpt_path, no_pos):
        result = json.loads((folder / "result.json").read_text())
        [line] = [line for line in text.splitlines() if line.startswith(f"| {folder.name} |")]
        assert f" {result['best_val_loss']:.3f} " in line and f" {result['final_perplexity']:.1f} " in line
        assert f"`{folder.name}`:\n\n```\n+++清平乐" in text
    assert "![loss and perplexity" in text
    assert matplotlib.image.imread(tmp_path / "results.png").std() > 0.1


def test_a_run_that_is_not_finished_or_damaged_is_said(assert_user_error, ckpt_path, tmp_path):
    assert_user_error(evaluate, "--ckpt_path", tmp_path, "--samples", 0, words=["no finished run", "run train.py"])
    (tmp_path / "result.json").write_text("[1]")
    (tmp_path / "log.csv").write_text("iter,train_loss\n1,1\n")
    assert_user_error(evaluate, "--ckpt_path", tmp_path, "--samples", 0, words=["damaged"])
    (tmp_path / "result.json").write_text("{}")
    assert_user_error(evaluate, "--ckpt_path", tmp_path, "--samples", 0, words=["damaged"])


def test_runs_of_one_name_are_told_apart(call, ckpt_path, tmp_path):
    other = shutil.copytree(ckpt_path, tmp_path / ckpt_path.name)
    _, printed, _ = call(evaluate, "--ckpt_path", ckpt_path, other, "--max_new_tokens", 3, "--samples", 0)
    assert f"| {ckpt_path} |" in printed and f"| {other} |" in printed


def test_outputs_that_cannot_be_written_are_said(assert_user_error, ckpt_path, tmp_path):
    (tmp_path / "latin.md").write_bytes(b"caf\xe9")
    for flags, words in (
        (["--picture", tmp_path / "p.xyz"], "must end in .png"),
        (["--out", tmp_path], "is a folder"),
        (["--out", tmp_path / "r.json"], "such as r.md"),
        (["--out", tmp_path / "none" / "r.md"], "no folder"),
        (["--picture", tmp_path / "none" / "p.png"], "no folder"),
        (["--out", tmp_path / "latin.md", "--max_new_tokens", 0, "--samples", 0], "not UTF-8 text"),
        (["--start", ""], "--start is empty"),
    ):
        assert_user_error(evaluate, "--ckpt_path", ckpt_path, *flags, words=[words])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin.md", "latin.png"]


def test_poems_by_people_and_by_the_model_are_scored_side_by_side(call, tuned_root, tuned_ckpt, tmp_path):
    out = tmp_path / "r.md"
    out.write_text("<!-- scores -->\nold\n<!-- /scores -->\nAfter\n", encoding="utf-8")
    arguments = ["--ckpt_path", tuned_ckpt, "--data_root", tuned_root, "--samples", 30, "--out", out]
    status, printed, _ = call(evaluate, *arguments)
    scores = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert status == 0 and list(scores) == ["human", "tuned, free", "tuned, form"]
    assert scores["human"]["in form and rhyme"] == scores["tuned, form"]["in form and rhyme"] == 1
    assert scores["tuned, free"]["in form"] < 1
    price = scores["tuned, form"]["price of the form, nats a token"]
    kept = scores["tuned, form"]["probability that the form kept"]
    assert (
        0 < price < math.log(len(load_vocabulary(tuned_root))) and math.exp(-price) / 2 < kept < 1
    )  # nearly untrained
    result = json.loads((tuned_ckpt / "result.json").read_text(encoding="utf-8"))
    assert scores["tuned, free"]["perplexity, a token"] == result["best_perplexity"]
    assert scores["tuned, free"]["perplexity, a Han character"] > result["best_perplexity"]
    text = out.read_text(encoding="utf-8")
    assert (
        "old" not in text and "After" in text and "| in form | 100.0% |" in text and "| in form | 100.0% |" in printed
    )


def test_the_poems_by_people_are_drawn_by_the_seed(tuned_root):
    forms = Forms.load(tuned_root)
    drawn = [evaluate.held_out_poems(tuned_root, forms, 5, seed)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    many, _ = evaluate.held_out_poems(tuned_root, forms, 100, 1)
    assert len(many) == 100 and many[:5] == drawn[0]  # over again if there are too few


def test_scores_need_forms(assert_user_error, ckpt_path, tmp_path):
    assert_user_error(
        evaluate, "--ckpt_path", ckpt_path, "--data_root", tmp_path, words=["no forms.json", "prepare.py"]
    )
