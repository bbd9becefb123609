"""What each part of the training recipe is worth: one change to the default at a time, over several seeds.

Every run is a whole training run at the defaults of train.py but for the change. A finished run is kept in --out and
not repeated, so the command can be stopped and started again; it prints the table of what is there.

  python benchmarks/recipe.py                                 all of them (hours)
  python benchmarks/recipe.py --only default "Muon 0.004"     some
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from training import first_64

sys.path.insert(0, str(Path(__file__).parent.parent))
import train
from songci.corpus.windows import IGNORE, ScoredWindows, poem_starts, title_ids
from songci.training import batches, optim
from songci.training.measure import mean_loss

CHANGES = {  # name: (flags of train.py, changes of what has no flag)
    "default": ([], {}),
    "AdamW 0.003 for all": (["--optimizer", "adamw", "--lr", "0.003"], {}),
    "Muon 0.004": (["--muon_lr", "0.004"], {}),
    "Muon 0.02": (["--muon_lr", "0.02"], {}),
    "AdamW 0.02 beside Muon": (["--lr", "0.02"], {}),
    "no weight decay": (["--weight_decay", "0"], {}),
    "cosine to a tenth": ([], {"schedule": "cosine"}),
    "EMA 0.99": (["--ema", "0.99"], {}),
    "no warm-up": (["--warmup_iters", "0"], {}),
    "no later windows": ([], {"later": 0.0}),
    "a quarter of the later windows": ([], {"later": 0.25}),
    "later windows keep the title line": ([], {"keep_title": True}),
    "windows anywhere": (["--windows", "stream"], {}),
}


def cosine(iteration: int, iters: int, warmup_iters: int) -> float:
    """The usual schedule: linear from 0 to 1, then a cosine to a tenth."""
    if iteration < warmup_iters:
        return (iteration + 1) / warmup_iters
    part = (iteration - warmup_iters) / max(1, iters - warmup_iters)
    return 0.1 + 0.45 * (1 + np.cos(np.pi * part))


class TitleKept:
    """stack_windows() with the title line of the poem in place of the first characters of each later window."""

    def __init__(self, tokens: np.ndarray, title: tuple[int, ...]):
        self.tokens, self.starts = tokens, poem_starts(tokens, title)
        newlines = np.flatnonzero(tokens == title[0])
        self.lengths = newlines[np.searchsorted(newlines, self.starts)] + 1 - self.starts

    def __call__(self, tokens: np.ndarray, starts: np.ndarray, length: int):
        poem = np.searchsorted(self.starts, starts, side="right") - 1
        inputs, targets = batches.stack_windows_plain(tokens, starts, length)
        for row, (start, i) in enumerate(zip(starts, poem, strict=True)):
            n = min(self.lengths[i], length // 2)
            if start > self.starts[i]:
                title = torch.from_numpy(tokens[self.starts[i] : self.starts[i] + n].astype(np.int64))
                inputs[row, :n] = title
                targets[row, : n - 1], targets[row, n - 1] = title[1:], IGNORE  # what follows is left out
        return inputs, targets


def one(name: str, seed: int, args) -> dict:
    """Trains one run in this process; its losses in nats a character on the validation split."""
    flags, patches = CHANGES[name]
    batches.LATER_SHARE = patches.get("later", batches.LATER_SHARE)
    if patches.get("schedule"):
        optim.schedule = cosine
    folder = Path(args.out) / f"{re.sub(r'[^a-zA-Z0-9.]+', '_', name)}-{seed}"
    flags = ["--data_root", args.data_root, "--ckpt_path", str(folder), "--seed", str(seed), *flags]
    trainer = train.Trainer(train.parse_args([*flags, "--iters", str(args.iters)]))
    val, title = trainer.measures.tokens, title_ids(trainer.vocabulary)
    if patches.get("keep_title"):
        batches.stack_windows_plain = batches.stack_windows
        of_train, of_val = TitleKept(trainer.batches.windows.tokens, title), TitleKept(val, title)
        batches.stack_windows = lambda tokens, *rest: (of_val if tokens is val else of_train)(tokens, *rest)
    for _ in range(args.iters):
        trainer.iterate()
    model = trainer.result_model
    poems = ScoredWindows.of_poems(val, title, 64)
    result = {"first 64": mean_loss(model, val, first_64(poems), 64), "poems": mean_loss(model, val, poems, 64)}
    if patches.get("keep_title"):
        batches.stack_windows = batches.stack_windows_plain
    return result | {"stream": mean_loss(model, val, ScoredWindows.of_stream(val, 64), 64)}


def table(results: dict[str, dict[int, dict]]) -> str:
    """{name: {seed: losses}} → Markdown: means over the seeds, and the mean difference to the default's same seed."""
    measures = ["first 64", "poems", "stream"]
    lines = ["| change | seeds | " + " | ".join(f"{m} | ± change" for m in measures) + " |", "|---" * 8 + "|"]
    for name, runs in results.items():
        cells = []
        for measure in measures:
            shared = [seed for seed in runs if seed in results["default"]]
            gains = [runs[seed][measure] - results["default"][seed][measure] for seed in shared]
            cells.append(f"{statistics.mean(run[measure] for run in runs.values()):.3f}")
            spread = f" ± {statistics.stdev(gains):.3f}" if len(gains) > 1 and any(gains) else ""
            cells.append(f"{statistics.mean(gains):+.3f}{spread}")
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(CHANGES)
    parser.add_argument("--data_root", default=train.DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    parser.add_argument("--out", default="workdirs/recipe", help="folder for the runs' losses")
    parser.add_argument(
        "--only", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="CHANGE", help=f"these of: {names}"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each change")
    parser.add_argument("--iters", type=int, default=2000, help="iterations of a run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], int(args.one[1]), args)))
        return
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "losses.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def work(job: tuple[str, int]) -> None:
        name, seed = job
        command = [sys.executable, __file__, "--one", name, str(seed), "--data_root", args.data_root]
        command += ["--out", args.out, "--iters", str(args.iters)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, env=env)
        results.setdefault(name, {})[str(seed)] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}, seed {seed}: {results[name][str(seed)]}", flush=True)
        path.write_text(json.dumps(results, indent=1), encoding="utf-8")

    jobs = [(name, seed) for seed in range(1, args.seeds + 1) for name in args.only]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, [(name, seed) for name, seed in jobs if str(seed) not in results.get(name, {})]))
    print(table({name: results[name] for name in CHANGES if name in results}))


if __name__ == "__main__":
    main()
