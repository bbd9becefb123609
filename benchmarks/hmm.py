"""How fast hmm.py is beside hmmlearn (C++): score, posterior (γ) and Viterbi, with numba and without, in one run.

Each time is the best of several calls (of the largest sizes one), taken in turn, with one thread. Numba's compiling is
timed apart, in a folder of its own, so that nothing is found compiled. `ratio` is how many times faster than the faster
of hmmlearn's implementations, log and scaling, the compiled loops are. Without numba sizes are left out that take
minutes.

  python benchmarks/hmm.py                                   N = 2, 8, 32 states, T = 10⁴, 10⁵, 10⁶
  python benchmarks/hmm.py --states 2 --lengths 1000000      one size
"""

import os
import tempfile

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy comes in
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
from hmmlearn.hmm import CategoricalHMM

sys.path.insert(0, str(Path(__file__).parent.parent))
import hmm

NUM_SYMBOLS = 10
TASKS = {"score": "score", "posterior": "predict_proba", "viterbi": "decode"}  # ours and hmmlearn's names
PLAIN_UP_TO = 10**7  # T·N², without numba


def problem(n: int, length: int) -> tuple[hmm.HMM, np.ndarray]:
    """A model of n states, its rows from the uniform distribution over distributions, and observations (T,)."""
    rng = np.random.default_rng(n)
    rows = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n), n), rng.dirichlet(np.ones(NUM_SYMBOLS), n)
    return hmm.HMM(*rows), rng.integers(0, NUM_SYMBOLS, length)


def ours(task: str, model, obs, compiled: bool):
    hmm.COMPILED_FROM = 0 if compiled else math.inf
    return getattr(model, task)(obs)


def seconds(ways: dict, calls: int) -> dict[str, float]:
    """Of the fastest call of each way; the ways take turns, so that a noisy moment affects all alike."""
    best = dict.fromkeys(ways, math.inf)
    for _ in range(calls):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def row(task: str, n: int, length: int) -> str:
    model, obs = problem(n, length)
    ways = {"numba": lambda: ours(task, model, obs, True)}
    for name in ("log",) if task == "viterbi" else ("log", "scaling"):  # Viterbi has only one
        theirs = CategoricalHMM(n, n_features=NUM_SYMBOLS, implementation=name)
        theirs.startprob_, theirs.transmat_, theirs.emissionprob_ = model.startprob, model.transmat, model.emissionprob
        ways[name] = lambda theirs=theirs: getattr(theirs, TASKS[task])(obs[:, None])
    size = length * n * n
    best = seconds(ways, 5 if size <= 10**7 else 3 if size < 10**9 else 1)
    ratio = min(best.get("log"), best.get("scaling", math.inf)) / best["numba"]
    if size <= PLAIN_UP_TO:
        best |= seconds({"plain": lambda: ours(task, model, obs, False)}, 2)
    cells = [f"{1e3 * best[way]:.3g}" if way in best else "–" for way in ("numba", "plain", "log", "scaling")]
    return f"| {n} | {length:,} | {task} | {' | '.join(cells)} | {ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, nargs="+", default=[2, 8, 32], metavar="N", help="numbers of states")
    parser.add_argument("--lengths", type=int, nargs="+", default=[10**4, 10**5, 10**6], metavar="T")
    args = parser.parse_args()
    start, first = time.perf_counter(), problem(2, 10)
    for task in TASKS:
        ours(task, *first, compiled=True)
    print(f"numba: loaded, and three loops compiled, in {time.perf_counter() - start:.1f} s\n")
    print("| N | T | task | numba, ms | plain, ms | hmmlearn log, ms | scaling, ms | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for n in args.states:
        for length in args.lengths:
            for task in TASKS:
                print(row(task, n, length), flush=True)


if __name__ == "__main__":
    main()
