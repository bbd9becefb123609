"""Compares training runs: their losses in a table, their curves in one picture, and a poem of each.

  python evaluate.py --ckpt_path workdirs/quansongci workdirs/quansongci_no_pos workdirs/quansongci_no_res

With --out FILE.md, the table and the poems are written into that file, between the lines `<!-- ablation -->` and
`<!-- /ablation -->` if it has them (the rest of the file stays as it is), with the picture beside it.
"""

import json
import math
import os
import re
import shlex
import sys
from pathlib import Path

from cli import ArgumentParser, UserError, atomic_write, number, run
from model import load_model
from runlog import plot_curves, read_log
from sample import canonical_title, read_start, samples

CURVES = ["train_loss", "val_loss", "train_perplexity", "val_perplexity"]
PICTURES = [".png", ".jpg", ".svg", ".pdf"]
BEGIN, END = "<!-- ablation -->", "<!-- /ablation -->"


RESULT_COLUMNS = {
    "train_loss": "{:.3f}",
    "poem_val_loss": "{:.3f}",
    "poem_perplexity": "{:.1f}",
    "stream_val_loss": "{:.3f}",
    "stream_perplexity": "{:.1f}",
    "iters": "{:.0f}",
    "seconds": "{:.0f}",
    "tokens_per_second": "{:,.0f}",
    "parameters": "{:,.0f}",
}


def read_run(folder: Path) -> tuple[dict, list[dict]]:
    """The figures of a finished run, from result.json, and the rows of its log.csv. Raises UserError if it has none."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        rows = read_log(folder / "log.csv")
        result["train_loss"] = rows[-1]["train_loss"]
        if any(not {"iter", *CURVES} <= row.keys() for row in rows):
            raise ValueError("log.csv lacks columns")
        return {key: float(result.get(key, math.nan)) for key in RESULT_COLUMNS}, rows
    except FileNotFoundError as error:
        raise UserError(f"no finished run in {folder} ({error.filename}): run train.py --ckpt_path {folder}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"the run in {folder} is damaged ({error!r}): train again") from None


def markdown_table(results: dict[str, dict]) -> str:
    """{name of a run: its result} → a Markdown table, a line a run."""
    lines = ["| run | " + " | ".join(column.replace("_", " ") for column in RESULT_COLUMNS) + " |"]
    lines.append("|---" * (len(RESULT_COLUMNS) + 1) + "|")
    for name, result in results.items():
        values = [form.format(result[key]) for key, form in RESULT_COLUMNS.items()]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def report(folders: list[Path], start: str, max_new_tokens: int, seed: int, picture: Path | None, link: str) -> str:
    """The comparison as Markdown; draws the curves into `picture`, which the text shows as `link`."""
    results, logs, poems = {}, {}, []
    for folder in folders:
        name = str(folder) if [other.name for other in folders].count(folder.name) > 1 else folder.name
        results[name], logs[name] = read_run(folder)
        model, vocabulary = load_model(folder)
        [sample] = samples(model, vocabulary, canonical_title(start, vocabulary.aliases), 1, max_new_tokens, seed)
        poems.append(f"`{name}`:\n\n```\n{sample.text.strip()}\n```")
    parts = [f"```sh\n{shlex.join(['python', *sys.argv])}\n```", markdown_table(results)]
    if picture:
        plot_curves(logs, picture)
        parts.append(f"![loss and perplexity of {', '.join(logs)}]({link})")
    return "\n\n".join(parts + poems)


def write_section(path: Path, text: str) -> None:
    """Puts text between the marker lines of a Markdown file, or at its end if it has none."""
    section = f"{BEGIN}\n{text}\n{END}"
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError:
        raise UserError(f"--out {path} is not a text in UTF-8: name another file") from None
    new, found = re.subn(f"{BEGIN}.*?{END}", lambda _: section, old, count=1, flags=re.DOTALL)
    with atomic_write(path, "w") as file:
        file.write(new if found else f"{old}\n{section}\n".lstrip())


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--ckpt_path", nargs="+", default=["workdirs/quansongci"], help="the folders of the runs")
    parser.add_argument("--out", help="a Markdown file for the report; the picture gets its name and .png")
    parser.add_argument("--picture", help="another place for the picture of the curves")
    parser.add_argument("--start", default=r"+++清平乐\n", help="what the poem of each run begins with")
    parser.add_argument("--max_new_tokens", type=number(int, 0), default=120, help="characters of each poem's text")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=1, help="of the poems")
    return parser.parse_args(args)


def main() -> None:
    args = parse_args()
    out = Path(args.out) if args.out else None
    if out and (out.is_dir() or not out.name):
        raise UserError(f"--out {out} is a folder: name a Markdown file")
    picture = Path(args.picture) if args.picture else out and out.with_suffix(".png")
    if picture and picture.suffix not in PICTURES:
        raise UserError(f"--picture {picture}: its name must end in {', '.join(PICTURES)}")
    link = Path(os.path.relpath(picture, out.parent if out else ".")).as_posix() if picture else ""
    folders, start = [Path(path) for path in args.ckpt_path], read_start(args.start)
    text = report(folders, start, args.max_new_tokens, args.seed, picture, link)
    print(text)
    if out:
        write_section(out, text)


if __name__ == "__main__":
    run(main)
