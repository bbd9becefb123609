"""Makes the exercise for a class: model.py with the handout's steps left out, and the tests that grade it.

Writes into OUT:

  model.py           model.py with TODOs and shapes in the place of what is between `# exercise: begin` and `end`
  test_exercise.py   the tests: all fail on the blank, all pass once the steps are right

  python -m songci.exercise
  python -m pytest exercise

docs/course.md says how to hand it out.
"""

import re
from pathlib import Path

from songci.cli import ArgumentParser, UserError, atomic_write, run

HERE = Path(__file__).resolve().parent.parent
GRADER = HERE / "tests" / "grade_exercise.py"
BEGIN, END = "# exercise: begin", "# exercise: end"
PART = re.compile(rf"^( *){BEGIN}\n(.*?)^ *{END}\n", re.DOTALL | re.MULTILINE)

# What stands in the place of each part: its steps, and what the students are to write.
TODOS = [
    (
        "Step 3.2 - 3.6",
        "Step 3.2：计算 q kᵀ / √d，得到 scores：(B, h, L, d) @ (B, h, d, L) -> (B, h, L, L)",
        "Step 3.3：加上掩码 M：M 为 True 的位置取 -∞（可用 masked_fill）",
        "Step 3.4：沿最后一维（各个键 k）做 softmax，得到 weights：(B, h, L, L)，每行之和为 1",
        "Step 3.5：对 weights 做 dropout（F.dropout，概率为参数 dropout）；返回的 weights 是 dropout 之前的",
        "Step 3.6：乘以 v，得到 out：(B, h, L, L) @ (B, h, L, d) -> (B, h, L, d)",
    ),
    (
        "Step 1, 2, 3.1",
        "Step 1：用三个线性层 self.query、self.key、self.value 由 x 计算 q, k, v，尺寸均为 (B, L, C)",
        "Step 2：用 view() 变形为 (B, L, h, d)",
        "Step 3.1：用 transpose() 交换维度，变为 (B, h, L, d)",
    ),
    (
        "Step 4, 5",
        "Step 4：拼接各个头：out 由 (B, h, L, d) 交换维度为 (B, L, h, d)，再变形为 (B, L, C)",
        "Step 5：经过线性层 self.out（即 W^O），再做 dropout（F.dropout，概率为变量 dropout）：(B, L, C)",
    ),
    (
        "Step 1 - 6",
        "Step 1：用 torch.arange() 生成位置序号 P = 0, 1, …, L-1，尺寸 (L,)，类型 torch.long，设备与 U 相同",
        "Step 2：由 self.token_embedding 得到单词嵌入 (B, L, C)，由 self.position_embedding 得到 P 的位置编码 (L, C)",
        "Step 3：x 为二者之和；若 self.config.no_pos 为 True，则只有单词嵌入；再经过 self.dropout",
        "Step 4：生成掩码 M：(L, L)，类型 torch.bool，设备与 U 相同，对角线以上为 True：任何位置都看不到后面的字",
        "  可用 torch.triu()，注意参数 diagonal",
        "Step 5：依次经过 self.layers 的各层：每层的参数为 x, M, need_weights，返回 x：(B, L, C)",
        "  和注意力系数：(B, h, L, L)，后者在 need_weights 为 True 时依次存入列表 attn_weights",
        "Step 6 的前一半：x 经过 self.norm",
    ),
    ("Step 6", "Step 6 的后一半：x 经过 self.head，得到 logits：(B, L, V)；不做 softmax"),
]


def blank(source: str) -> str:
    """The source without its marked parts; the marks stay, for a student to write between them.

    Raises UserError if there are not as many parts as TODOS.
    """
    parts = iter(TODOS)

    def todo(match: re.Match) -> str:
        indent, (steps, *notes) = match[1], next(parts, ("",))
        lines = [BEGIN, *(f"# TODO {note}" for note in notes), f'raise NotImplementedError("{steps}")', END]
        return "".join(f"{indent}{line}\n" for line in lines)

    if not len(PART.findall(source)) == source.count(BEGIN) == source.count(END) == len(TODOS):
        raise UserError(f"model.py does not have {len(TODOS)} parts between {BEGIN!r} and {END!r}")
    return PART.sub(todo, source)


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
