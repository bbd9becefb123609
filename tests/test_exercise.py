"""The exercise: its blank, its grading, and the page that tells a class of it."""

import ast
import importlib.util
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from songci import exercise
from songci.cli import UserError

SOURCE = (ROOT / "model.py").read_text(encoding="utf-8")
BLOCK = re.compile(rf" *{exercise.BEGIN}\n(.*?) *{exercise.END}\n", re.DOTALL)


def graded(folder, source):
    """What a student sees: the outcome of pytest on a folder with the source as model.py."""
    exercise.make(folder)
    (folder / "model.py").write_text(source, encoding="utf-8")
    options = ["-o", "addopts=", "-q", "-p", "no:cacheprovider", "--tb=line"]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=120)
    return done.returncode, done.stdout


def failing(folder, source):
    """The names of the grading tests that fail, run in this process, and how many there are."""
    exercise.make(folder)
    (folder / "model.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("grader", folder / "test_exercise.py")
    grader, path = importlib.util.module_from_spec(spec), sys.path[:]
    failed, tests = [], 0
    try:
        spec.loader.exec_module(grader)
        for name, test in list(vars(grader).items()):
            if name.startswith("test_"):
                tests += 1
                try:
                    test()
                except Exception:
                    failed.append(name)
    finally:
        sys.path[:] = path
        sys.modules.pop("exercise_model", None)
    return failed, tests


def test_every_grading_test_fails_on_the_blank(tmp_path):
    status, report = graded(tmp_path / "exercise", exercise.blank(SOURCE))
    assert status == 1 and re.search(r"^\d+ failed in", report, re.MULTILINE) and "passed" not in report, report
    assert "NotImplementedError: Step 3.2 - 3.6" in report


def test_every_grading_test_passes_with_the_bodies_of_model_py(tmp_path):
    bodies = iter(BLOCK.findall(SOURCE))
    parts = BLOCK.sub(lambda part: part[0].replace(part[1], next(bodies)), exercise.blank(SOURCE))
    assert parts == SOURCE
    status, report = graded(tmp_path / "exercise", parts)
    assert status == 0 and re.search(r"^\d+ passed in", report, re.MULTILINE) and "skipped" not in report, report


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
        "q.view(B, L, h, d), k.view(B, L, h, d), v.view(B, L, h, d)",
        "(x.reshape(B, h, L, d).transpose(1, 2) for x in (q, k, v))",
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
    "a softmax too many": ("logits = head(x)", "logits = head(x).softmax(-1)"),
    "the cache is left out": ("layer(x, M, past[i]", "layer(x, M, None"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_the_grading_finds(tmp_path, slip):
    right, wrong = SLIPS[slip]
    assert SOURCE.count(right) == 1, right
    failed, tests = failing(tmp_path / "exercise", SOURCE.replace(right, wrong))
    assert 0 < len(failed) < tests, failed


def test_the_blank_holds_no_line_of_the_answer_and_tells_every_step():
    blank = exercise.blank(SOURCE)
    ast.parse(blank)
    answers = [line.strip() for part in BLOCK.findall(SOURCE) for line in part.splitlines()]
    answers = [line for line in answers if not line.startswith("#")]
    assert len(answers) > 15 and not {line.strip() for line in blank.splitlines()} & set(answers)
    assert max(map(len, blank.splitlines())) <= 120
    for part in BLOCK.findall(blank):
        assert "# TODO Step" in part and re.search(r"# TODO .*\(.*L", part), part
        assert part.rstrip().splitlines()[-1].strip().startswith("raise NotImplementedError(")
    steps = " ".join(re.findall("TODO (.*)", blank))
    for step in ("1", "2", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3", "4", "5", "6"):
        assert f"Step {step}" in steps, step


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


def test_the_course_page_names_code_that_is_there():
    steps = steps_of(PAGES[0])
    assert len(steps) > 25 and {file for _, file, _ in steps} > {
        "model.py",
        "train.py",
        "songci/generation.py",
        "hmm.py",
    }
    for step, file, names in steps:
        source = (ROOT / file).read_text(encoding="utf-8")
        known = {
            node.name: node for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        assert names and set(names) <= known.keys(), (file, names)
        comments = "\n".join(re.findall("# (.*)", ast.get_source_segment(source, known[names[0]])))
        for number in step:  # stands in a comment of that very function or class
            assert re.search(rf"Step {re.escape(number)}(?!\.?\d)", comments), (names[0], number)


def test_both_languages_of_the_course_page_tell_the_same():
    english, chinese = PAGES
    assert steps_of(english) == steps_of(chinese)
    for pattern in (r"^```sh\n(.*?)^```$", r"`(test_\w+)"):
        assert re.findall(pattern, english, re.DOTALL | re.M) == re.findall(pattern, chinese, re.DOTALL | re.M) != []


def test_the_course_page_names_the_grading_tests():
    tests = re.findall(r"^def (test_\w+)", exercise.GRADER.read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"`(test_\w+)(…?)`", PAGES[0])
    for name, dots in named:
        assert name in tests or (dots and any(test.startswith(name) for test in tests)), name
    starts = [name for name, dots in named if dots]
    assert all(any(test.startswith(start) for start in starts) for test in tests)
    assert f"{len(tests)} tests" in PAGES[0] and f"{len(tests)} 个测试" in PAGES[1]
    assert SOURCE.count(exercise.BEGIN) == 6 and "six places" in PAGES[0] and "六处" in PAGES[1]
