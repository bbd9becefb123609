"""What the tests on hidden Markov models share: problems, their solution by enumeration, and how to compare."""

import itertools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

import hmm
from hmm import HMM

HML = [0, 1, 2]  # the exercise's observations H, M, L
GOOD = {"startprob": [0.5, 0.5], "transmat": [[0.6, 0.4], [0.5, 0.5]], "emissionprob": [[0.4, 0.6], [0.2, 0.8]]}


def close(actual, expected, rtol=1e-12):
    """Asserts that two arrays, or a number and a fraction, agree."""
    np.testing.assert_allclose(actual, np.array(expected, dtype=float), rtol=rtol, atol=1e-300)


@st.composite
def small_problems(draw):
    """(π, A, B, O) in fractions of small whole numbers: zeros, ties, N = 1 and T = 1 are frequent."""
    n, m, length = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))

    def row(size):
        weights = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size).filter(any))
        return [Fraction(w, sum(weights)) for w in weights]

    obs = draw(st.lists(st.integers(0, m - 1), min_size=length, max_size=length))
    return row(n), [row(n) for _ in range(n)], [row(m) for _ in range(n)], obs


def enumerate_paths(pi, a, b, obs):
    """{q: P(q, O | λ)} of all N^T state sequences."""
    paths = {}
    for path in itertools.product(range(len(pi)), repeat=len(obs)):
        p = pi[path[0]] * b[path[0]][obs[0]]
        for t in range(1, len(obs)):
            p *= a[path[t - 1]][path[t]] * b[path[t]][obs[t]]
        paths[path] = p
    return paths


def log_joint(model, path, obs):
    """ln P(q, O | λ), by definition."""
    steps = np.log(model.transmat[path[:-1], path[1:]]).sum() + np.log(model.emissionprob[path, obs]).sum()
    return np.log(model.startprob[path[0]]) + steps


def random_model(rng, n, m):
    """An HMM of n states and m symbols, its rows from the uniform distribution over distributions."""
    return HMM(rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n), size=n), rng.dirichlet(np.ones(m), size=n))


def one_way(folder: Path) -> Path:
    """The file of a model that goes from a to b and never back, where only a emits x, and only b emits y."""
    path = folder / "one_way.json"
    path.write_text(
        """{"states": ["a", "b"], "symbols": ["x", "y"], "startprob": [1, 0],
            "transmat": [["1/3", "2/3"], [0, 1]], "emissionprob": [[1, 0], [0, 1]]}"""
    )
    return path


def json_of(call, *args):
    """The objects that `hmm.py --format json` prints, one per line; NaN and Infinity are not JSON."""
    status, out, err = call(hmm, "--format", "json", *args)
    assert status == 0 and err == ""

    def refuse(token):
        raise AssertionError(token)

    return [json.loads(line, parse_constant=refuse) for line in out.splitlines()]
