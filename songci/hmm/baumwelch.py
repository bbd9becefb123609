"""Baum–Welch, which learns a hidden Markov model from sequences; and sampling, which draws a sequence from a model.

The equation numbers are those of L. R. Rabiner, Proc. IEEE 77(2), 1989.
"""

import json
import math
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from songci.cli import UserError, atomic_write
from songci.hmm.files import model_to_json
from songci.text import to_json


def baum_welch(model, sequences: Sequence[np.ndarray]) -> Iterator[tuple]:
    """Expectation maximisation: yields (model, ln P(all sequences | model)), first `model` itself, then better ones.

    A step cannot make the sequences less likely (Rabiner, section III.C; eqs. 40a to 40c, summed over the sequences as
    in 109 and 110). It ends when a step gains nothing more, or loses by rounding. A state that is never visited keeps
    its rows. Raises UserError if P(O|λ) = 0 for one of the sequences.
    """
    best = -math.inf
    while True:
        log_likelihood, counts = 0.0, [np.zeros(matrix.shape) for matrix in model.matrices]
        for number, obs in enumerate(sequences, start=1):
            try:
                log_p, gamma, transitions = model.expectations(obs)
            except UserError as error:
                raise type(error)(f"sequence {number}: {error}") from None
            log_likelihood += log_p
            counts[0] += gamma[0]  # how often each state starts, follows another, emits each symbol
            counts[1] += transitions
            counts[2] += [np.bincount(obs, weights=column, minlength=len(model.symbols)) for column in gamma.T]
        if log_likelihood <= best:
            return
        yield model, log_likelihood
        best = log_likelihood
        totals = [count.sum(axis=-1, keepdims=True) for count in counts]
        rows = zip(counts, totals, model.matrices, strict=True)
        rows = (np.divide(count, total, out=old.copy(), where=total > 0) for count, total, old in rows)
        model = type(model)(*rows, model.states, model.symbols)


def random_model(model, seed: int):
    """A model with the same states and symbols; each row is drawn uniformly from all distributions."""
    rng, (n, m) = np.random.default_rng(seed), model.emissionprob.shape
    draw = (rng.dirichlet(np.ones(size), rows) for size, rows in ((n, None), (n, n), (m, n)))
    return type(model)(*draw, model.states, model.symbols)


def sample(model, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A sequence of `length` symbols drawn from the model: states (T,) and observations (T,), counted from 0.

    Each time takes the next two numbers of the generator, so a longer sequence begins with a shorter one.
    """
    sums = (np.cumsum(matrix, axis=-1) for matrix in model.matrices)
    first, follow, emit = (total / total[..., -1:] for total in sums)  # distribution functions, to be inverted
    uniform, rows, row = np.random.default_rng(seed).random((length, 2)).T, follow.tolist(), first.tolist()
    states, obs = np.empty(length, dtype=int), np.empty(length, dtype=int)
    for t, u in enumerate(uniform[0]):
        states[t] = state = bisect_right(row, u)
        row = rows[state]
    for i, total in enumerate(emit):
        obs[states == i] = np.searchsorted(total, uniform[1, states == i], side="right")
    return states, obs


# The command line.


def identical(*models) -> tuple[str, str] | None:
    """The first two states that emit alike in each of the models."""
    for i, j in combinations(range(len(models[0].states)), 2):
        if all(np.allclose(model.emissionprob[i], model.emissionprob[j], rtol=1e-9) for model in models):
            return models[0].states[i], models[0].states[j]
    return None


def print_sample(model, length: int, seed: int, as_json: bool) -> None:
    """Prints a sampled sequence and its states."""
    states, obs = sample(model, length, seed)
    states, obs = [model.states[i] for i in states], [model.symbols[o] for o in obs]
    if as_json:
        print(to_json({"states": states, "observations": obs}))
    else:  # lines that --obs reads: a comment and a sequence
        print(f"# {','.join(states)}\n{','.join(obs)}")


class Fit(NamedTuple):
    """What Baum–Welch makes of the model `first`: ln P at each step, and whether the last one gained no more."""

    seed: int | None
    first: object
    model: object
    steps: list[float]
    converged: bool


def climb(first, seed: int | None, sequences: list, iters: int, tolerance: float, show: bool) -> Fit:
    """Baum–Welch until a step gains less than the tolerance, or for `iters` steps; `show` prints each."""
    steps, model = [], first
    for model, log_likelihood in baum_welch(first, sequences):
        steps.append(log_likelihood)
        if show:
            print(f"step {len(steps) - 1}: ln P = {log_likelihood:.10g}", flush=True)
        if len(steps) > 1 and steps[-1] - steps[-2] < tolerance:
            break
        if len(steps) > iters:
            return Fit(seed, first, model, steps, False)
    return Fit(seed, first, model, steps, True)


def fit(model, sequences: list, args, as_json: bool) -> None:
    """Prints the log-likelihood of all sequences at each step, then the model, which goes into the file args.out too.

    Of args.n_init random beginnings the best is taken, and of each only the last log-likelihood is printed.
    """
    seeds = [args.seed] if args.n_init is None else range(args.seed or 0, (args.seed or 0) + args.n_init)
    fits = []
    for seed in seeds:
        first = model if seed is None else random_model(model, seed)
        try:
            fits.append(climb(first, seed, sequences, args.iters, args.tolerance, not as_json and not args.n_init))
        except UserError as error:  # P(O) = 0
            raise type(error)(f"{error}; begin with another model, or at random with --seed 1") from None
        if args.n_init and not as_json:
            end = "" if fits[-1].converged else ", not converged"
            print(f"seed {seed}: ln P = {fits[-1].steps[-1]:.10g} in {len(fits[-1].steps) - 1} steps{end}", flush=True)
    best = max(fits, key=lambda fit: fit.steps[-1])
    if not best.converged and not as_json:
        gain = f"the last one gained {best.steps[-1] - best.steps[-2]:.3g}: " if args.iters else ""
        print(f"not converged in --iters {args.iters} steps; {gain}give more", file=sys.stderr)
    if pair := identical(best.first, best.model):
        way = "Baum–Welch never tells identical states apart; --seed 1 begins at random"
        print(f"{' and '.join(pair)} emit alike, before and after: {way}", file=sys.stderr)
    text = model_to_json(best.model)
    if args.out:
        with atomic_write(args.out, "w") as file:
            file.write(text)
    if not as_json:
        return print(f"\n{text.rstrip()}")
    result = {"log_likelihood": best.steps, "converged": best.converged}
    if args.n_init:
        starts = [{"seed": fit.seed, "log_likelihood": fit.steps[-1], "converged": fit.converged} for fit in fits]
        result |= {"seed": best.seed, "starts": starts}
    print(to_json(result | {"model": json.loads(text)}))
