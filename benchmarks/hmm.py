"""How fast hmm.py is compared with hmmlearn (C++): score, posterior and Viterbi, as ratios in one run.

  ours            score(), posterior() and best_path(), with the check of the observations
  log, scaling    hmmlearn's CategoricalHMM with either of its implementations (Viterbi has only one)

Each time is the best of several calls, taken in turn, with one thread, for a model that has been used before (the
fractions that decide ties are computed once per model). `random` models have rows from the uniform distribution over
distributions; a `sticky` model stays in its state with probability 0.999, so that the guesses of where a block begins
fail (see scans.py) and matrix products are needed. Peak memory (Linux) is that of a process that runs only ours.

  python benchmarks/hmm.py                            N = 2, 8, 32 states and T = 10³ … 10⁶
  python benchmarks/hmm.py --states 2 --kind sticky   a chain that forgets slowly
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy comes in

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from hmm import HMM, best_path, posterior, score

NUM_SYMBOLS = 10
OURS = {"score": score, "posterior": posterior, "viterbi": best_path}
THEIRS = {"score": "score", "posterior": "predict_proba", "viterbi": "decode"}
SLOW = 10**8  # T·N²: fewer calls from here on


def problem(kind: str, n: int, length: int) -> tuple[HMM, np.ndarray]:
    """A model of n states and observations (T,)."""
    rng = np.random.default_rng(n)
    transmat = rng.dirichlet(np.ones(n), size=n)
    if kind == "sticky":
        transmat = 0.999 * np.eye(n) + 0.001 * transmat
    model = HMM(rng.dirichlet(np.ones(n)), transmat, rng.dirichlet(np.ones(NUM_SYMBOLS), size=n))
    return model, rng.integers(0, NUM_SYMBOLS, length)


def with_hmmlearn(model: HMM, implementation: str):
    """The model as an hmmlearn model."""
    from hmmlearn.hmm import CategoricalHMM

    other = CategoricalHMM(len(model.startprob), n_features=NUM_SYMBOLS, implementation=implementation)
    other.startprob_, other.transmat_, other.emissionprob_ = model.startprob, model.transmat, model.emissionprob
    return other


def ways_of(task: str, model: HMM, obs: np.ndarray) -> dict[str, Callable]:
    """Calls that do the task, by the name of their implementation."""
    ways = {"ours": lambda: OURS[task](model, obs)}
    for implementation in ("log",) if task == "viterbi" else ("log", "scaling"):
        method = getattr(with_hmmlearn(model, implementation), THEIRS[task])
        ways[implementation] = lambda method=method: method(obs[:, None])
    return ways


def fastest(ways: dict[str, Callable], calls: int) -> dict[str, float]:
    """Seconds of the fastest call of each way; the ways take turns, so that a noisy moment affects all alike."""
    ways["ours"]()
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(calls):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def agree(model: HMM, obs: np.ndarray) -> float:
    """The relative difference of the log-likelihoods."""
    theirs = with_hmmlearn(model, "log").score(obs[:, None])
    return abs(score(model, obs) / theirs - 1)


def memory(kind: str, n: int, length: int) -> float:
    """The peak memory in MB of a process that runs only ours."""
    flags = f"--part memory --kind {kind} --states {n} --lengths {length}".split()
    return float(subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, check=True).stdout)


def table(args) -> None:
    """Prints a row for each size and task, then the differences and the peak memory."""
    print("| N | T | task | ours, ms | hmmlearn log, ms | scaling, ms | ours is faster by, log | scaling |")
    print("|---|---|---|---|---|---|---|---|")
    notes = []
    for n in args.states:
        for length in args.lengths:
            model, obs = problem(args.kind, n, length)
            for task in OURS:
                ways = ways_of(task, model, obs)
                seconds = fastest(ways, 3 if length * n * n >= SLOW else 7)
                ms = [f"{1e3 * seconds[way]:.3g}" if way in seconds else "–" for way in ("ours", "log", "scaling")]
                ratios = [seconds[way] / seconds["ours"] if way in seconds else None for way in ("log", "scaling")]
                ratios = [f"{ratio:.2f}" if ratio else "–" for ratio in ratios]
                print(f"| {n} | {length:,} | {task} | {' | '.join(ms + ratios)} |", flush=True)
            if length == max(args.lengths):
                peak = memory(args.kind, n, length)
                notes.append(
                    f"N = {n}, T = {length:,}: log-likelihoods differ by {agree(model, obs):.0e}, peak {peak:.0f} MB"
                )
    print("\n" + "\n".join(notes))


def only_ours(args) -> None:
    """Runs ours once and prints the peak memory in MB."""
    model, obs = problem(args.kind, args.states[0], args.lengths[0])
    for way in OURS.values():
        way(model, obs)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would include the process that started this one
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, nargs="+", default=[2, 8, 32], metavar="N", help="numbers of states")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6], metavar="T", help="of the sequences"
    )
    parser.add_argument("--kind", choices=["random", "sticky"], default="random", help="of models")
    parser.add_argument("--part", choices=["table", "memory"], default="table", help=argparse.SUPPRESS)
    args = parser.parse_args()
    {"table": table, "memory": only_ours}[args.part](args)


if __name__ == "__main__":
    main()
