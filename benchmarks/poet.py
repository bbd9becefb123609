"""What more time, a wider model and more text buy: a row a run, from two minutes to hours.

Each run is one of train.py, on 全宋词 or, before it, on the shi (python prepare.py --data_root data/shi --vocabulary
data/quansongci). A run that was stopped goes on where it was, and a finished one is not repeated; the command prints
the table of what is there and draws it.

  python benchmarks/poet.py                       all of them (many hours)
  python benchmarks/poet.py --only 192-60min     one, and those that it begins with
  python benchmarks/poet.py --only                none: the table alone
  OMP_NUM_THREADS=1 python benchmarks/poet.py …   beside other work; then minutes are not comparable, tokens are
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
from songci.evaluate import table
from songci.runs import perplexity

ROOT = Path(__file__).parent.parent


class Run(NamedTuple):
    """A run of train.py. flags: beside those of all runs; begins: the name of the run that it begins with."""

    flags: str
    begins: str | None = None

    @property
    def ci(self) -> bool:
        """Whether it is on 全宋词, which the table is about."""
        return "data/shi" not in self.flags


WIDE = "--max_seq_len 128 --batchsize 32 --eval_interval 300"
SHI = f"--data_root data/shi --dropout 0 {WIDE}"
AFTER_SHI = "--lr 0.005 --muon_lr 0.004"
RUNS = {  # by width, texts, and minutes of two cores or millions of tokens
    "128-2min": Run(""),  # the default
    "128-ci-12M": Run("--max_seq_len 128 --dropout 0.05 --iters 6000 --eval_interval 300"),
    "256-ci-7M": Run(f"--n_embd 256 --dropout 0.1 --iters 1800 {WIDE}"),
    "192-shi-6M": Run(f"--model poet --iters 1500 {SHI}"),
    "192-20min": Run(f"--model poet --iters 3400 {AFTER_SHI}", "192-shi-6M"),  # make poet MINUTES=20
    "192-shi-18M": Run(f"--model poet --iters 4500 {SHI}"),
    "192-60min": Run(f"--model poet --iters 10200 {AFTER_SHI}", "192-shi-18M"),  # make poet
    # The same characters of 全宋词 in larger batches, and so half the steps
    "192-20min-32": Run(f"--model poet --batchsize 32 --iters 1700 {AFTER_SHI}", "192-shi-6M"),
    "192-60min-32": Run(f"--model poet --batchsize 32 --iters 5100 {AFTER_SHI}", "192-shi-18M"),
    # and in windows that hold 97 % of its poems, not 75 %
    "192-60min-160": Run(f"--model poet --max_seq_len 160 --iters 8160 {AFTER_SHI}", "192-shi-18M"),
    "192-shi-37M": Run(f"--model poet --iters 9000 {SHI}"),
    "192-120min": Run(f"--model poet --iters 20400 {AFTER_SHI}", "192-shi-37M"),
    "256-shi-18M": Run(f"--model poet --n_embd 256 --iters 4500 {SHI}"),
    "256-90min": Run(f"--model poet --n_embd 256 --iters 10200 {AFTER_SHI}", "256-shi-18M"),
    "128-shi-18M": Run(f"--model poet --n_embd 128 --iters 4500 {SHI}"),
    "128-40min": Run(f"--model poet --n_embd 128 --iters 10200 {AFTER_SHI}", "128-shi-18M"),
}


def train(name: str, out: Path) -> None:
    """Trains a run, and first the one that it begins with; from where it was, if it was stopped."""
    run, folder = RUNS[name], out / name
    if run.begins:
        train(run.begins, out)
    if not (folder / "result.json").exists():
        begin = ["--init_from", str(out / run.begins)] if run.begins else []
        begin = ["--resume"] if (folder / "last.pt").exists() else ["--overwrite", *begin]
        command = ["train.py", "--ckpt_path", str(folder), *shlex.split(run.flags), *begin]
        print(" ".join(command), flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def score(folder: Path, samples: int) -> None:
    """Scores its poems, free and in form, over all tunes in the shares of the held-out poems."""
    if not (folder / "scores.json").exists():
        command = ["-m", "songci.evaluate", "--ckpt_path", str(folder), "--samples", str(samples)]
        subprocess.run([sys.executable, *command, "--out", str(folder / "scores.json")], cwd=ROOT, check=True)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def chain(name: str) -> list[str]:
    """The run and those that it began with."""
    begins = RUNS[name].begins
    return [name, *(chain(begins) if begins else [])]


COLUMNS = {  # of the poems sampled freely
    "in form": "in form",
    "rhyming pairs": "rhyming pairs",
    "in form and rhyme": "in form and rhyme",
    "tones kept": "fixed tones kept",
    "distinct-1": "distinct-1 per poem",
    "new 5-grams": "new 5-grams",
    "copied clauses": "with a copied clause of 7 or more",
}


def point(name: str, out: Path) -> tuple[str, float, float]:
    """A finished run's width, minutes and perplexity."""
    results = [read_json(out / part / "result.json") for part in chain(name)]
    minutes = sum(result["seconds"] for result in results) / 60
    return name.partition("-")[0], minutes, perplexity(results[0]["poem_val_loss"])


def cells(name: str, out: Path) -> list[str]:
    """The row of a finished run."""
    results = [read_json(out / part / "result.json") for part in chain(name)]
    scores = read_json(out / name / "scores.json")
    free, form = (scores.get(f"{name}, {kind}", {}) for kind in ("free", "form"))
    _, minutes, value = point(name, out)
    tokens = " + ".join(f"{result['tokens'] / 1e6:.1f}" for result in results[::-1])
    shares = [f"{free[key]:.1%}" if key in free else "" for key in COLUMNS.values()]
    price = form.get("price of the form, nats a token")
    figures = [f"{results[0]['parameters'] / 1e6:.2f}", tokens, f"{minutes:.0f}", f"{value:.1f}"]
    return [*figures, *shares, f"{price:.3f}" if price else ""]


def draw(rows: dict[str, tuple[str, float, float]], path: Path) -> None:
    """{run: (size, minutes, perplexity)} as a curve for each size, with and without shi; without the variants."""
    from matplotlib.figure import Figure

    axes, curves = (figure := Figure(figsize=(7, 4.5), layout="constrained")).subplots(), defaultdict(list)
    for name, (size, *at) in rows.items():
        if "min-" not in name:
            curves[f"{size} channels{', shi first' * bool(RUNS[name].begins)}"].append(at)
    for label, points in sorted(curves.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set(
        xscale="log", yscale="log", xlabel="minutes of training", ylabel="poem perplexity, held-out ci", ylim=(48, 102)
    )
    for axis, ticks in ((axes.xaxis, (2, 5, 10, 20, 50, 100, 200)), (axes.yaxis, (50, 60, 70, 80, 90, 100))):
        axis.set_ticks(ticks, map(str, ticks))
        axis.set_ticks([], minor=True)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("workdirs/poet-runs"), help="the folder of the runs' folders")
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw perplexity against minutes")
    parser.add_argument("--samples", type=int, default=1000, help="poems of each kind to score")
    args = parser.parse_args()
    for name in args.only:
        train(name, args.out)
        if RUNS[name].ci:
            score(args.out / name, args.samples)
    done = [name for name, run in RUNS.items() if run.ci and (args.out / name / "result.json").exists()]
    header = ["M parameters", "M tokens", "min", "poem perplexity", *COLUMNS, "price of the form"]
    print(table("run", header, {name: cells(name, args.out) for name in done}))
    if args.picture:
        draw({name: point(name, args.out) for name in done}, args.picture)


if __name__ == "__main__":
    main()
