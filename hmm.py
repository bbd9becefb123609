"""Hidden Markov models (隐含马尔可夫模型) with discrete observations: the phone-store exercise, or a model of yours.

Without flags it works through the handout's exercise, on paper as it were: the model λ = (π, A, B), the forward and
backward variables α and β, P(O) three ways, the posteriors γ and ξ, all paths, Viterbi's δ, ψ and the best path. States
are S1 畅销 (selling well) and S2 滞销 (selling badly); the observations are the grade of phone bought in each month:
H high, M middle, L low.

  python hmm.py --format markdown --lang en           the same as Markdown, in English
  python hmm.py --plot trellis.png                    and draw the trellis
  python hmm.py --model model.json --obs a,b,b        any other model; data/hmm has some, also the exercise
  python hmm.py --model model.json --obs FILE --fit   learn from sequences, one a line (Baum–Welch)

A model is a JSON object with startprob (N numbers), transmat (N rows of N), emissionprob (N rows of M), and names in
states (N) and symbols (M). Numbers may be fractions in quotes, "1/3". Of several best paths the one with the lowest
last state is taken, of these the one with the lowest last but one, and so on.

JSON output is one object a sequence, on a line of its own, with times, states and symbols counted from 0. A probability
below the range of floats (about 1e-308) is null, and so is ln 0: log_alpha, log_beta and log_delta hold the logarithms,
and where they are null the probability is 0. If P(O) = 0 then gamma, xi and the path are null, and "note" says so.

The code: markov.py (the model, and all variables by definition), inference.py (for any length), scans.py and
semirings.py (how that is fast), walkthrough.py and render.py (the explanation), trellis.py (the picture).
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import trellis
from cli import ArgumentParser, UserError, atomic_write, number, run
from inference import (
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
from markov import HMM, ImpossibleSequenceError, ModelError, Variables, by_definition, load_model, read_sequences
from render import FORMATS, Heading, render
from scans import Blocks, follow
from walkthrough import kbest_section, walkthrough
from words import Words

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

EXACT_UP_TO = 400  # T·N²: JSON has fractions up to here

PHONE_STORE = HMM(
    startprob=[0.5, 0.5],
    transmat=[[0.6, 0.4], [0.5, 0.5]],
    emissionprob=[[0.4, 0.4, 0.2], [0.2, 0.3, 0.5]],
    states=("畅销", "滞销"),
    symbols=("H", "M", "L"),
)


# Learning and sampling.


def baum_welch(model: HMM, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[HMM, float]]:
    """Expectation maximisation: yields (model, ln P(all sequences | model)), first `model` itself, then ever better.

    Ends when a step gains nothing more, which is never while the sequences can be explained better nearby: a step
    cannot make them less likely (Rabiner, section III.C; eqs. 40a to 40c, summed over the sequences, 109 and 110).
    What rounding takes away is not yielded. A state that is never visited keeps its row. Raises ModelError, and
    ImpossibleSequenceError if P(O|λ) = 0 for one of them.
    """
    counts = [_counts(model, obs, i) for i, obs in enumerate(sequences, start=1)]
    log_likelihood = sum(count.log_likelihood for count in counts)
    yield model, log_likelihood
    while True:
        better = HMM(
            _rows(sum(count.start for count in counts)[None], model.startprob[None])[0],
            _rows(sum(count.transitions for count in counts), model.transmat),
            _rows(sum(count.emissions for count in counts), model.emissionprob),
            model.states,
            model.symbols,
        )
        counts = [_counts(better, obs, i) for i, obs in enumerate(sequences, start=1)]
        before, log_likelihood = log_likelihood, sum(count.log_likelihood for count in counts)
        if log_likelihood <= before:
            return
        model = better
        yield model, log_likelihood


def _counts(model: HMM, obs: Sequence[int], number_of_sequence: int):
    try:
        return expected_counts(model, obs)
    except ImpossibleSequenceError as error:
        raise ImpossibleSequenceError(f"sequence {number_of_sequence}: {error}") from None


def _rows(counts: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, counts / np.where(total > 0, total, 1), otherwise)


def random_model(model: HMM, seed: int) -> HMM:
    """A model of the same states and symbols, every row drawn from the uniform distribution over distributions."""
    rng, (n, m) = np.random.default_rng(seed), model.emissionprob.shape
    draw = (rng.dirichlet(np.ones(size), rows) for size, rows in ((n, None), (n, n), (m, n)))
    return HMM(*draw, model.states, model.symbols)


def sample(model: HMM, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A sequence of `length` symbols drawn from the model: states (T,) and observations (T,), both from 0."""
    uniform = np.random.default_rng(seed).random((2, length))
    n, blocks = len(model.startprob), Blocks(np.zeros(length, dtype=int), len(model.startprob))
    first = _draw(model.startprob, uniform[0, :1])[0]
    maps = np.tile(np.arange(n)[:, None], blocks.count * blocks.length)  # each time's map of a state to the next
    for i in range(n):
        maps[i, : length - 1] = _draw(model.transmat[i], uniform[0, 1:])
    maps = maps.reshape(n, blocks.count, blocks.length).transpose(2, 0, 1)
    states = np.append(first, follow(maps, first).T.reshape(-1)[: length - 1])
    obs = np.empty(length, dtype=int)
    for i in range(n):
        obs[states == i] = _draw(model.emissionprob[i], uniform[1, states == i])
    return states, obs


def _draw(probabilities: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    total = np.cumsum(probabilities)
    return np.searchsorted(total / total[-1], uniform, side="right")


# JSON.


def as_json(model: HMM, obs: Sequence[int], brief: bool = False, k: int = 0) -> str:
    """One line about `obs` (T,), as the module's docstring describes it; `brief` leaves out what has rows of states."""
    log_likelihood = score(model, obs)
    possible = log_likelihood > -math.inf
    result = {"observations": [model.symbols[o] for o in obs], "likelihood": _plain(log_likelihood)}
    result |= {"log_likelihood": _finite(log_likelihood)} | ({} if brief else _tables(model, obs, possible))
    result["viterbi"] = dict.fromkeys(("path", "states", "probability", "log_probability"))
    if possible:
        result["viterbi"] = _path(model, *best_path(model, obs))
    else:
        t = int(np.flatnonzero(np.isneginf(forward(model, obs).log_norm))[0]) + 1
        result["viterbi"]["probability"] = 0.0
        result["note"] = f"P(O) = 0: no state sequence emits the first {t} observation(s)"
    if k:
        result["kbest"] = [_path(model, *path) for path in kbest(model, obs, k)] if possible else []
    if len(obs) * len(model.states) ** 2 <= EXACT_UP_TO and not brief:
        _put_exact(result, by_definition(*model.exact, list(obs)))
    return json.dumps(result, ensure_ascii=False, allow_nan=False)


def _tables(model: HMM, obs, possible: bool) -> dict:
    best = viterbi(model, obs) if possible else None
    logs = {"alpha": forward(model, obs).log, "beta": backward(model, obs).log, "delta": best and best.delta.log}
    result = {name: _plain(log) for name, log in logs.items()}
    result["gamma"] = posterior(model, obs).tolist() if best else None
    result["xi"] = pair_posterior(model, obs).tolist() if best else None
    result["psi"] = best.psi.tolist() if best else None
    return result | {f"log_{name}": _finite(log) for name, log in logs.items()}


def _put_exact(result: dict, variables: Variables) -> None:
    """The fractions, and of the plain numbers what is nearest to them: 0.03541 instead of 0.03541000000000002."""

    def each(change, values):
        return [each(change, value) for value in values] if isinstance(values, list) else change(values)

    result["exact"] = {}
    for name in ("likelihood", "alpha", "beta", "gamma", "xi", "delta"):
        values = getattr(variables, name)
        if result[name] is not None:  # δ, γ, ξ of what is impossible
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
    """exp(log), or null where that is below the range of floats and yet not 0."""
    if log is None or isinstance(log, float):
        return log if log is None else 0.0 if log == -math.inf else math.exp(log) or None
    values = np.exp(log)
    lost = (values == 0) & ~np.isneginf(log)
    return np.where(lost, None, values).tolist() if lost.any() else values.tolist()


def _finite(log):
    if log is None or isinstance(log, float):
        return None if log == -math.inf else log
    return np.where(np.isneginf(log), None, log).tolist() if np.isneginf(log).any() else log.tolist()


# The command line.


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model", type=Path, help="a model as a JSON file (default: the exercise)")
    parser.add_argument(
        "--obs", help="observations with commas between, or a file, one sequence a line (default: H,M,L)"
    )
    parser.add_argument(
        "--format", choices=[*FORMATS, "json"], default="text", help="how to print; latex is a document"
    )
    parser.add_argument("--lang", choices=["zh", "en"], default="zh", help="language of the explanation")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the trellis (.png, .pdf, .svg) of one sequence")
    parser.add_argument("--plot_nodes", choices=trellis.SHOWN, default="delta", help="what the trellis' nodes show")
    parser.add_argument("--brief", action="store_true", help="JSON without alpha, beta, gamma, xi, delta, psi")
    parser.add_argument("--kbest", type=number(int, 1), metavar="K", help="also the K most probable paths")
    parser.add_argument("--fit", action="store_true", help="learn from the sequences by Baum–Welch, print the model")
    parser.add_argument("--iters", type=number(int, 0), default=100, help="of --fit: the most steps")
    parser.add_argument("--tolerance", type=number(float, 0), default=1e-6, help="of --fit: end at a smaller gain")
    parser.add_argument("--out", type=Path, metavar="FILE", help="of --fit: save the model")
    parser.add_argument(
        "--sample", type=number(int, 1, 10**8), metavar="N", help="draw a sequence of N symbols instead"
    )
    parser.add_argument("--seed", type=number(int, 0), help="of --sample (default: 0); of --fit: begin at random")
    args = parser.parse_args()
    if args.model and not args.obs and not args.sample:
        parser.error("--model needs observations: --obs H,M,L or --obs FILE")
    if args.seed is not None and not args.fit and not args.sample:
        parser.error("--seed belongs to --sample, or to --fit")
    if args.out and not args.fit:
        parser.error("--out belongs to --fit")
    if args.fit and args.sample:
        parser.error("--fit and --sample are two things: run one after the other")
    return args


def main():
    args = parse_args()
    model = load_model(args.model) if args.model else PHONE_STORE
    if args.sample:
        return print_sample(model, args)
    sequences = read_sequences(model, "H,M,L" if args.obs is None else args.obs)
    if args.fit:
        return fit(model, sequences, args)
    if args.plot:
        if len(sequences) > 1:
            raise UserError(f"--plot draws one sequence, and --obs has {len(sequences)}")
        trellis.plot(model, sequences[0], args.plot, args.plot_nodes)
    if args.format == "json":
        for obs in sequences:
            print(as_json(model, obs, args.brief, args.kbest or 0))
        return None
    explain(model, sequences, args)
    return None


def explain(model: HMM, sequences: list, args) -> None:
    document, say = [], Words(args.lang)
    for i, obs in enumerate(sequences, start=1):
        document += [Heading(say("sequence", i=i, n=len(sequences)))] if len(sequences) > 1 else []
        document += walkthrough(model, obs, args.lang)
        if args.kbest:
            document += kbest_section(model, obs, kbest(model, obs, args.kbest), args.kbest, args.lang)
    print(render(document, args.format))


def print_sample(model: HMM, args) -> None:
    states, obs = sample(model, args.sample, args.seed or 0)
    states, obs = [model.states[i] for i in states], [model.symbols[o] for o in obs]
    if args.format == "json":
        print(json.dumps({"states": states, "observations": obs}, ensure_ascii=False))
    else:  # lines that --obs reads, the first of them as a remark
        print(f"# {','.join(states)}\n{','.join(obs)}")


def fit(model: HMM, sequences: list, args) -> None:
    """Baum–Welch with the log-likelihood of all sequences at every step, then the model, which --out saves."""
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
