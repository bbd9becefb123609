"""Hidden Markov models (隐含马尔可夫模型) with discrete observations: the phone-store exercise, or a model of your own.

Without flags it works through the handout's exercise as one would on paper: the model λ = (π, A, B), the forward and
backward variables α and β, P(O) in three ways, the posteriors γ and ξ, all paths, Viterbi's δ and ψ and the best path.
The states are S1 畅销 (selling well) and S2 滞销 (selling badly); the observations are the grades of phone bought month
by month: H high, M middle, L low.

  python hmm.py --format markdown --lang en           the same as Markdown, in English
  python hmm.py --plot trellis.png                    draw the trellis as well
  python hmm.py --model model.json --obs a,b,b        any other model; some are in data/hmm, the exercise too
  python hmm.py --model model.json --obs FILE --fit   learn from sequences, one per line (Baum–Welch)
  python hmm.py --sample 1000 --seed 1                draw a sequence from the model, in a form that --obs reads

A model is a JSON object with startprob (N numbers), transmat (N rows of N), emissionprob (N rows of M), and optional
names in states (N) and symbols (M). Numbers may be fractions in quotes, "1/3". If several paths are best, the one whose
last state has the lowest number is chosen; among these, the one with the lowest state before the last, and so on.

JSON output is one object per sequence, each on its own line, with times, states and symbols counted from 0. A
probability below the range of floats (about 1e-308) is null, and so is ln 0: log_alpha, log_beta and log_delta hold the
logarithms, and where they are null the probability is 0. If P(O) = 0, then gamma, xi, delta, psi and the path are null,
and "note" says why. With --sample the object has states and observations; with --fit it has log_likelihood, a list of
all steps, and model.

The code: markov.py (the model, and all variables by definition), inference.py (sequences of any length), scans.py and
semirings.py (what makes that fast), baumwelch.py (learning, sampling), walkthrough.py, words.py and render.py (the
explanation), trellis.py (the picture).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from songci.cli import ArgumentParser, UserError, atomic_write, check_writable, number, run
from songci.hmm import trellis
from songci.hmm.baumwelch import baum_welch, random_model, sample
from songci.hmm.inference import (
    Scaled,
    Viterbi,
    backward,
    best_path,
    expected_counts,
    forward,
    kbest,
    pair_posterior,
    posterior,
    score,
    viterbi,
)
from songci.hmm.markov import (
    HMM,
    ImpossibleSequenceError,
    ModelError,
    Variables,
    by_definition,
    load_model,
    read_sequences,
)
from songci.hmm.render import FORMATS, Heading, render
from songci.hmm.walkthrough import kbest_section, walkthrough
from songci.hmm.words import Words

__all__ = [  # what a notebook or a test finds here
    "HMM",
    "PHONE_STORE",
    "ImpossibleSequenceError",
    "ModelError",
    "Scaled",
    "Viterbi",
    "backward",
    "baum_welch",
    "best_path",
    "by_definition",
    "expected_counts",
    "forward",
    "kbest",
    "load_model",
    "pair_posterior",
    "posterior",
    "random_model",
    "sample",
    "score",
    "viterbi",
]

EXACT_UP_TO = 400  # T·N²: up to here JSON also has fractions

PHONE_STORE = HMM(
    startprob=[0.5, 0.5],
    transmat=[[0.6, 0.4], [0.5, 0.5]],
    emissionprob=[[0.4, 0.4, 0.2], [0.2, 0.3, 0.5]],
    states=("畅销", "滞销"),
    symbols=("H", "M", "L"),
)


# JSON.


def as_json(model: HMM, obs: Sequence[int], brief: bool = False, k: int = 0) -> str:
    """One line of JSON about `obs` (T,), as the module's docstring describes it, with the `k` best paths.

    `brief` leaves out what has a row for each time. Raises ModelError.
    """
    log_likelihood = score(model, obs)
    possible = log_likelihood > -math.inf
    result = {"observations": [model.symbols[o] for o in obs], "likelihood": _plain(log_likelihood)}
    result["log_likelihood"] = _finite(log_likelihood)
    if not brief:
        result |= _tables(model, obs, possible)
    try:
        result["viterbi"] = _path(model, *best_path(model, obs))
    except ImpossibleSequenceError as error:
        result["viterbi"] = {"path": None, "states": None, "probability": 0.0, "log_probability": None}
        result["note"] = str(error)
    if k:
        result["kbest"] = [_path(model, *path) for path in kbest(model, obs, k)] if possible else []
    if len(obs) * len(model.states) ** 2 <= EXACT_UP_TO and not brief:
        _put_exact(result, by_definition(*model.exact, list(obs)))
    return json.dumps(result, ensure_ascii=False, allow_nan=False)


def _tables(model: HMM, obs: Sequence[int], possible: bool) -> dict:
    best = viterbi(model, obs) if possible else None
    logs = {"alpha": forward(model, obs).log, "beta": backward(model, obs).log, "delta": best and best.delta.log}
    result = {name: _plain(log) for name, log in logs.items()}
    result["gamma"] = posterior(model, obs).tolist() if possible else None
    result["xi"] = pair_posterior(model, obs).tolist() if possible else None
    result["psi"] = best.psi.tolist() if possible else None
    return result | {f"log_{name}": _finite(log) for name, log in logs.items()}


def _put_exact(result: dict, variables: Variables) -> None:
    """Adds the fractions, and rounds the plain numbers from them: 0.03541 instead of 0.03541000000000002."""

    def each(change, values):
        return [each(change, value) for value in values] if isinstance(values, list) else change(values)

    result["exact"] = {}
    for name in ("likelihood", "alpha", "beta", "gamma", "xi", "delta"):
        values = getattr(variables, name)
        if result[name] is not None:  # δ, γ and ξ of an impossible sequence are
            result["exact"][name] = each(str, values)
            result[name] = each(lambda x: None if x and not float(x) else float(x), values)
    if result["viterbi"]["path"]:
        best = max(variables.delta[-1])
        result["exact"]["path_probability"], result["viterbi"]["probability"] = str(best), float(best) or None


def _path(model: HMM, path: np.ndarray, log_probability: float) -> dict:
    states = [model.states[i] for i in path]
    probability = {"probability": _plain(log_probability), "log_probability": log_probability}
    return {"path": path.tolist(), "states": states, **probability}


def _plain(log):
    """exp of logarithms, a number or an array, for JSON: null where that is below the range of floats but not 0."""
    if log is None or isinstance(log, float):
        return log if log is None else 0.0 if log == -math.inf else math.exp(log) or None
    values = np.exp(log)
    lost = (values == 0) & ~np.isneginf(log)
    return np.where(lost, None, values).tolist() if lost.any() else values.tolist()


def _finite(log):
    """Logarithms, a number or an array, for JSON: null for ln 0."""
    if log is None or isinstance(log, float):
        return None if log == -math.inf else log
    return np.where(np.isneginf(log), None, log).tolist() if np.isneginf(log).any() else log.tolist()


# The command line.


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model", type=Path, help="a model as a JSON file (default: the exercise)")
    parser.add_argument(
        "--obs", help="observations separated by commas, or a file with one sequence per line (default: H,M,L)"
    )
    parser.add_argument(
        "--format", choices=[*FORMATS, "json"], default="text", help="how to print; latex is a whole document"
    )
    parser.add_argument("--lang", choices=["zh", "en"], default="zh", help="language of the explanation")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the trellis (.png, .pdf, .svg) of one sequence")
    parser.add_argument(
        "--plot_nodes", choices=trellis.SHOWN, default="delta", help="what the nodes of the trellis show"
    )
    parser.add_argument("--brief", action="store_true", help="JSON without alpha, beta, gamma, xi, delta, psi")
    parser.add_argument("--kbest", type=number(int, 1), metavar="K", help="also the K most probable paths")
    parser.add_argument("--fit", action="store_true", help="learn from the sequences by Baum–Welch, print the model")
    parser.add_argument("--iters", type=number(int, 0), default=100, help="for --fit: the largest number of steps")
    parser.add_argument(
        "--tolerance", type=number(float, 0), default=1e-6, help="for --fit: stop when ln P gains less in a step"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="for --fit: save the model")
    parser.add_argument(
        "--sample", type=number(int, 1, 10**8), metavar="N", help="draw a sequence of N symbols from the model"
    )
    parser.add_argument("--seed", type=number(int, 0), help="for --sample (default: 0); for --fit: begin at random")
    args = parser.parse_args()
    task = "--fit" if args.fit else "--sample"
    for flag, given, ignored in (
        ("--sample", args.sample, args.fit),
        ("--plot", args.plot, args.fit or args.sample),
        ("--kbest", args.kbest, args.fit or args.sample),
        ("--obs", args.obs, args.sample),
    ):
        if given and ignored:
            parser.error(f"{task} and {flag} are two things: run one after the other")
    if args.model and not args.obs and not args.sample:
        parser.error("--model needs observations: --obs a,b,b or --obs FILE")
    if args.seed is not None and not args.fit and not args.sample:
        parser.error("--seed belongs to --sample, or to --fit")
    if args.out and not args.fit:
        parser.error("--out belongs to --fit")
    return args


def main():
    args = parse_args()
    for flag, path in ("--plot", args.plot), ("--out", args.out):
        if path:
            check_writable(flag, path)
    model = load_model(args.model) if args.model else PHONE_STORE
    if args.sample:
        print_sample(model, args)
        return
    sequences = read_sequences(model, "H,M,L" if args.obs is None else args.obs)
    if args.fit:
        fit(model, sequences, args)
        return
    if args.plot:
        if len(sequences) > 1:
            raise UserError(f"--plot draws one sequence, and --obs has {len(sequences)}")
        trellis.plot(model, sequences[0], args.plot, args.plot_nodes)
    if args.format == "json":
        for obs in sequences:
            print(as_json(model, obs, args.brief, args.kbest or 0))
    else:
        explain(model, sequences, args)


def explain(model: HMM, sequences: list, args) -> None:
    """Prints the walk-through of each sequence as one document."""
    document, say = [], Words(args.lang)
    for i, obs in enumerate(sequences, start=1):
        document += [Heading(say("sequence", i=i, n=len(sequences)))] if len(sequences) > 1 else []
        document += walkthrough(model, obs, args.lang)
        if args.kbest and score(model, obs) > -math.inf:
            document += kbest_section(model, kbest(model, obs, args.kbest), args.kbest, args.lang)
    print(render(document, args.format))


def print_sample(model: HMM, args) -> None:
    """Prints a sampled sequence and its states."""
    states, obs = sample(model, args.sample, args.seed or 0)
    states, obs = [model.states[i] for i in states], [model.symbols[o] for o in obs]
    if args.format == "json":
        print(json.dumps({"states": states, "observations": obs}, ensure_ascii=False))
    else:  # lines that --obs reads: a comment and a sequence
        print(f"# {','.join(states)}\n{','.join(obs)}")


def fit(model: HMM, sequences: list, args) -> None:
    """Prints the log-likelihood of all sequences at each step of Baum–Welch, then the model, which --out saves."""
    start = model if args.seed is None else random_model(model, args.seed)
    steps, text, fitted = [], args.format != "json", start
    for better, log_likelihood in baum_welch(start, sequences):
        fitted = better
        gain = log_likelihood - steps[-1] if steps else math.inf
        steps.append(log_likelihood)
        if text:
            print(f"step {len(steps) - 1}: ln P = {log_likelihood:.10g}", flush=True)
        if len(steps) > args.iters or gain < args.tolerance:
            break
    if args.out:
        with atomic_write(args.out, "w") as file:
            file.write(fitted.to_json())
    if text:
        print(f"\n{fitted.to_json()}", end="")
    else:
        print(json.dumps({"log_likelihood": steps, "model": json.loads(fitted.to_json())}, ensure_ascii=False))


if __name__ == "__main__":
    run(main)
