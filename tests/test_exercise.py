"""The exercise: its blank, its grading, and the page that tells a class of it."""

import ast
import os
import re
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

from songci import exercise
from songci.cli import UserError

SOURCE = (ROOT / "model.py").read_text(encoding="utf-8")
BLOCK = re.compile(rf" *{exercise.BEGIN}\n(.*?) *{exercise.END}\n", re.DOTALL)


@pytest.fixture
def grades(tmp_path, monkeypatch):
    """grades(source) → what each grading test raises for this model.py, or None."""

    def raised(test):
        try:
            test()
        except Exception as error:
            return error

    def run(source):
        monkeypatch.setattr(sys, "path", sys.path[:])
        monkeypatch.setitem(sys.modules, "exercise_model", None)
        exercise.make(tmp_path)
        (tmp_path / "model.py").write_text(source, encoding="utf-8")
        grader = runpy.run_path(str(tmp_path / "test_exercise.py"))
        return {name: raised(test) for name, test in grader.items() if name.startswith("test_")}

    return run


def test_every_grading_test_fails_on_the_blank_and_names_a_step(grades):
    errors = grades(exercise.blank(SOURCE)).values()
    assert {type(error) for error in errors} == {NotImplementedError}
    assert {str(error) for error in errors} == {"Step 3.2 - 3.6", "Step 1, 2, 3.1", "Step 1 - 6"}


def test_every_grading_test_passes_with_the_bodies_of_model_py(tmp_path):
    bodies = iter(BLOCK.findall(SOURCE))
    assert BLOCK.sub(lambda part: part[0].replace(part[1], next(bodies)), exercise.blank(SOURCE)) == SOURCE
    exercise.make(tmp_path)
    (tmp_path / "model.py").write_text(SOURCE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider", tmp_path]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0 and re.search(r"^\d+ passed in", done.stdout, re.MULTILINE), done.stdout


SLIPS = {  # what a student may get wrong
    "no scaling": ("k.transpose(-2, -1) / math.sqrt(q.size(-1))", "k.transpose(-2, -1)"),
    "scaled by d": ("/ math.sqrt(q.size(-1))", "/ q.size(-1)"),
    "softmax over the queries": ("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=-2)"),
    "no mask": ("scores = scores.masked_fill(M, -math.inf)", "pass"),
    "mask the wrong way round": ("masked_fill(M,", "masked_fill(~M,"),
    "mask of zeros": ("masked_fill(M, -math.inf)", "masked_fill(M, 0)"),
    "no dropout of the weights": ("F.dropout(weights, dropout) @ v", "weights @ v"),
    "k and v exchanged": ("q, k, v = self.query", "q, v, k = self.query"),
    "heads not transposed": (
        "q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)",
        "(t.reshape(B, h, L, d) for t in (q, k, v))",
    ),
    "heads not put back": ("out.transpose(1, 2).reshape(B, L, C)", "out.reshape(B, L, C)"),
    "no output layer": ("F.dropout(self.out(out), dropout)", "F.dropout(out, dropout)"),
    "no dropout of the output": ("F.dropout(self.out(out), dropout)", "self.out(out)"),
    "positions from 1": ("torch.arange(L, dtype=torch.long", "torch.arange(1, L + 1, dtype=torch.long"),
    "positions always": ("if not self.config.no_pos:\n", "if True:\n"),
    "positions never": ("x = x + self.position_embedding(P)", "pass"),
    "no dropout of the embeddings": ("x = self.dropout(x)", "pass"),
    "mask without the diagonal": ("diagonal=1)  # (L, L)", "diagonal=0)  # (L, L)"),
    "mask of the past": ("torch.triu(torch.ones", "torch.tril(torch.ones"),
    "weights of the last layer only": ("attn_weights.append(weights)", "attn_weights[:] = [weights]"),
    "weights always": ("            if need_weights:\n", "            if True:\n"),
    "each layer gets the embeddings": ("x, weights = layer(x, M", "y, weights = layer(x, M"),
    "no last LayerNorm": ("x = self.norm(x)", "pass"),
    "a softmax too many": ("logits = self.head(x)", "logits = self.head(x).softmax(-1)"),
    "no LayerNorm before the head": ("logits = self.head(x)", "logits = self.head(self.token_embedding(U))"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_the_grading_finds(grades, slip):
    right, wrong = SLIPS[slip]
    assert SOURCE.count(right) == 1, right
    raised = grades(SOURCE.replace(right, wrong))
    assert {error is None for error in raised.values()} == {True, False}, raised


def test_the_blank_holds_no_line_of_the_answer_and_tells_every_step():
    blank = exercise.blank(SOURCE)
    answers = [line for line in re.split(r"\s*\n\s*", "\n".join(BLOCK.findall(SOURCE))) if line and line[0] != "#"]
    assert len(answers) > 15 and not {line.strip() for line in blank.splitlines()} & set(answers)
    assert max(map(len, blank.splitlines())) <= 120
    for part in BLOCK.findall(blank):
        assert "# TODO Step" in part and re.search(r"# TODO .*\(.*L", part), part
        assert part.rstrip().splitlines()[-1].strip().startswith("raise NotImplementedError(")
    steps = {step for todo in re.findall("TODO (.*)", blank) for step in re.findall(r"Step ([\d.]+)", todo)}
    assert steps == {"1", "2", "3", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "4", "5", "6"}


@pytest.mark.parametrize("mark", [exercise.BEGIN, exercise.END])
@pytest.mark.parametrize("change", ["", "{0}\n    {0}"])
def test_marks_that_are_not_in_pairs_are_refused(mark, change):
    with pytest.raises(UserError, match="exercise"):
        exercise.blank(SOURCE.replace(mark, change.format(mark), 1))


def test_a_students_work_is_not_overwritten(call, assert_user_error, tmp_path):
    out = tmp_path / "exercise"
    for _ in range(2):  # what nobody has touched may be written again
        assert call(exercise, "--out", out)[0] == 0
    assert sorted(os.listdir(out)) == ["model.py", "test_exercise.py"]
    (out / "model.py").write_text("mine")
    assert_user_error(exercise, "--out", out, words=["model.py", "--overwrite"])
    assert (out / "model.py").read_text() == "mine"
    assert call(exercise, "--out", out, "--overwrite")[0] == 0
    assert (out / "model.py").read_text(encoding="utf-8") == exercise.blank(SOURCE)
    assert_user_error(exercise, "--out", out / "model.py", words=["is a file"])
    assert_user_error(exercise, "--out", ROOT, "--overwrite", words=["replace model.py itself"])
    assert (ROOT / "model.py").read_text(encoding="utf-8") == SOURCE


PAGES = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("course.md", "course.zh-CN.md")]


def steps_of(page):
    """(step, file, functions) of the page's first table."""
    rows = re.findall(r"^\| ([^|]+) \| `([\w/]+\.py)` \| ([^|]+) \|", page, re.MULTILINE)
    return [(re.findall(r"Step ([\d.]+)", step), file, re.findall(r"`(\w+)`", names)) for step, file, names in rows]


def test_the_course_page_names_code_that_is_there_in_both_languages():
    steps = steps_of(PAGES[0])
    assert steps == steps_of(PAGES[1]) and len(steps) > 25
    assert {file for _, file, _ in steps} > {"model.py", "train.py", "songci/writing/generation.py", "hmm.py"}
    for step, file, names in steps:
        source = (ROOT / file).read_text(encoding="utf-8")
        nodes = [node for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        known = {node.name: ast.get_source_segment(source, node) for node in nodes}
        assert names and set(names) <= known.keys(), (file, names)
        comments = "\n".join(re.findall("# (.*)", known[names[0]]))
        for number in step:  # stands in a comment of that very function or class
            assert re.search(rf"Step {re.escape(number)}(?!\.?\d)", comments), (names[0], number)


def test_the_course_page_names_the_grading_tests():
    tests = re.findall(r"^def (test_\w+)", exercise.GRADER.read_text(encoding="utf-8"), re.MULTILINE)
    named, other = (re.findall(r"`(test_\w+)(…?)`", page) for page in PAGES)
    assert named == other and {name for name, dots in named if not dots} <= set(tests)
    starts = tuple(name for name, dots in named if dots)
    assert all(test.startswith(starts) for test in tests)
    assert all(any(test.startswith(start) for test in tests) for start in starts)
    assert f"{len(tests)} tests" in PAGES[0] and f"{len(tests)} 个测试" in PAGES[1]
    assert SOURCE.count(exercise.BEGIN) == 5 and "five places" in PAGES[0] and "五处" in PAGES[1]
