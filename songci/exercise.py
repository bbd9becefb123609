"""Makes the exercise for a class: model.py with the handout's steps left out, and the tests that grade it.

Writes into OUT:

  model.py           model.py with TODOs and shapes in the place of what is between `# exercise: begin` and `end`
  test_exercise.py   the tests: all fail on the blank, all pass once the steps are right

  python -m songci.exercise
  python -m pytest exercise

docs/course.md says how to hand it out.
"""

import re
import textwrap
from pathlib import Path

from songci.cli import ArgumentParser, UserError, atomic_write, run

HERE = Path(__file__).resolve().parent.parent
GRADER = HERE / "tests" / "grade_exercise.py"
BEGIN, END = "# exercise: begin", "# exercise: end"
WIDTH = 120


def blank(source: str) -> str:
    """The source without its marked parts; the marks stay, for a student to write between them.

    For each part, see todo(). Raises UserError if the marks are not in pairs.
    """
    lines, part = [], None
    for number, line in enumerate(source.splitlines(), start=1):
        mark = line.strip()
        if mark == (BEGIN if part is not None else END):
            raise UserError(f"line {number}: {mark!r} does not fit: {BEGIN!r} and {END!r} take turns")
        if mark == END:
            lines += todo(part)
            part = None
        if part is None:
            lines.append(line)
        else:
            part.append(line)
        if mark == BEGIN:
            part = []
    if part is not None:
        raise UserError(f"the last {BEGIN!r} has no {END!r}")
    return "\n".join(lines) + "\n"


def todo(part: list[str]) -> list[str]:
    """What replaces the lines of a part: its comments, with the names that they are about, and NotImplementedError."""
    indent = re.match(" *", part[0])[0]
    notes, steps = [], []
    for line in map(str.strip, part):
        code, _, comment = line.partition("# ")
        if not code:
            notes += textwrap.wrap(f"TODO {comment}", WIDTH - len(indent) - 2, subsequent_indent="  ")
            steps += re.findall(r"Step ([\d., -]*\d)", comment)
        elif comment:
            notes.append(f"  {re.split(' = ', code)[0]}: {comment}")
    message = f"Step {', '.join(steps)}"
    return [*(f"{indent}# {note}" for note in notes), f'{indent}raise NotImplementedError("{message}")']


def make(out: str | Path, overwrite: bool = False) -> None:
    """Writes the exercise into the folder `out`.

    Raises UserError if it is a file, or holds an exercise that was worked on and overwrite is not given.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {out} is a file, not a folder")
    files = {
        folder / "model.py": blank((HERE / "model.py").read_text(encoding="utf-8")),
        folder / "test_exercise.py": GRADER.read_text(encoding="utf-8"),
    }
    for path, content in files.items():
        if not overwrite and path.exists() and path.read_text(encoding="utf-8", errors="replace") != content:
            raise UserError(
                f"{path} differs from the blank, someone may have worked on it: choose another --out, or --overwrite"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        with atomic_write(path, "w") as file:
            file.write(content)


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--out", default="exercise", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="write even if work in OUT is lost")
    return parser.parse_args(args)


def main() -> None:
    args = parse_args()
    if Path(args.out).resolve() == HERE.resolve():
        raise UserError(f"--out {args.out} would replace model.py itself with the blank: choose another folder")
    make(args.out, args.overwrite)
    print(f"{args.out}: model.py, test_exercise.py; grade with: python -m pytest {args.out}")


if __name__ == "__main__":
    run(main)
