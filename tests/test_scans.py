"""Blocks side by side give the same as one step after the other, ties too; a million steps stay finite."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hmm_problems import random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from hmm import HMM, backward, best_path, forward, pair_posterior, posterior, sample, score, viterbi
from songci.hmm import scans
from songci.hmm.inference import path_log_probability
from songci.hmm.markov import by_definition
from songci.hmm.scans import Blocks, Sweep, follow
from songci.hmm.semirings import FixedPoint, Linear, Logarithmic, Underflow


def step_by_step(model, obs):
    """α, β, γ in logarithms, one step per symbol, as plain as can be."""
    with np.errstate(divide="ignore"):
        pi, a, b = np.log(model.startprob), np.log(model.transmat), np.log(model.emissionprob.T[obs])
    alpha, beta = [pi + b[0]], [np.zeros(len(pi))]
    for t in range(1, len(obs)):
        alpha.append(np.logaddexp.reduce(alpha[-1][:, None] + a, axis=0) + b[t])
    for t in range(len(obs) - 1, 0, -1):
        beta.insert(0, np.logaddexp.reduce(a + b[t] + beta[0], axis=1))
    alpha, beta = np.array(alpha), np.array(beta)
    total = np.logaddexp.reduce(alpha[-1])
    return alpha, beta, total, np.exp(alpha + beta - total) if total > -np.inf else None


def sticky(n, m, stay):
    rng = np.random.default_rng(n)
    return HMM(np.full(n, 1 / n), np.eye(n) * stay + (1 - stay) / n, rng.dirichlet(np.ones(m), size=n))


def left_right(n, m):
    rng = np.random.default_rng(n)
    a = np.eye(n) * 0.75 + np.eye(n, k=1) * 0.25
    a[-1, -1] = 1
    return HMM(np.eye(n)[0], a, rng.dirichlet(np.ones(m), size=n))


MODELS = {
    "random": random_model(np.random.default_rng(1), 3, 4),
    "one state": HMM([1], [[1]], [[0.25, 0.25, 0.5, 0]]),
    "sticky, forgets slowly": sticky(3, 4, 0.999),
    "never forgets": HMM([0.25, 0.75], np.eye(2), [[0.4, 0.3, 0.2, 0.1], [0.3, 0.4, 0.1, 0.2]]),
    "left to right": left_right(4, 4),
    "alternates": HMM([0.5, 0.5], [[0, 1], [1, 0]], [[0.4, 0.3, 0.2, 0.1], [0.3, 0.4, 0.1, 0.2]]),
    "near zeros": HMM(
        [1 - 1e-200, 1e-200], [[1 - 1e-90, 1e-90], [1e-120, 1]], [[0.5, 0.5, 1e-99, 0], [0.1, 0.2, 0.3, 0.4]]
    ),
    "60 states": random_model(np.random.default_rng(2), 60, 4),
    "60 states, forgets slowly": sticky(60, 4, 0.9999),
}


@pytest.mark.parametrize("length", [1, 2, 3, 4, 10, 97, 1000, 3001])
@pytest.mark.parametrize("name", MODELS)
def test_blocks_agree_with_step_by_step(name, length):
    model = MODELS[name]
    obs = np.random.default_rng(length).integers(0, 3, length)
    alpha, beta, total, gamma = step_by_step(model, obs)
    assert score(model, obs) == pytest.approx(total, rel=1e-11, abs=1e-11)
    for ours, theirs in (forward(model, obs), alpha), (backward(model, obs), beta):
        np.testing.assert_allclose(ours.log, theirs, rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(posterior(model, obs), gamma, rtol=1e-7, atol=1e-11)
    np.testing.assert_allclose(pair_posterior(model, obs).sum(axis=2), gamma[:-1], rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_blocked_viterbi_agrees_with_exact_fractions(name):
    model = MODELS[name]
    obs = np.random.default_rng(5).integers(0, 3, {"60": 10, "near": 60}.get(name.split()[0], 150))
    exact, best = by_definition(*model.exact, obs.tolist()), viterbi(model, obs)
    assert best.path.tolist() == best_path(model, obs)[0].tolist() == exact.path
    assert best.psi.tolist() == exact.psi
    logs = [[math.log(p.numerator) - math.log(p.denominator) if p else -math.inf for p in row] for row in exact.delta]
    np.testing.assert_allclose(best.delta.log, logs, rtol=1e-11)
    assert best.log_probability == pytest.approx(max(logs[-1]), rel=1e-12)


# Ties, which decimals such as these make at every turn.


@st.composite
def tied_problems(draw):
    """Long sequences under models whose entries are a few decimals, so that many products are equal."""
    n, m = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    rows = {1: ["1"], 2: [".5 .5", ".2 .8", "0 1", ".4 .6"], 3: [".2 .4 .4", ".3 .1 .6", "0 .5 .5", ".5 .25 .25"]}
    rows[4] = [".25 .25 .25 .25", ".1 .2 .3 .4", "0 .5 .5 0", ".2 .2 .3 .3"]

    def row(size):
        return [Fraction(x) for x in draw(st.permutations(draw(st.sampled_from(rows[size])).split()))]

    length, period = draw(st.integers(1, 120)), draw(st.lists(st.integers(0, m - 1), min_size=1, max_size=4))
    return row(n), [row(n) for _ in range(n)], [row(m) for _ in range(n)], (period * length)[:length]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tied_problems())
def test_ties_go_to_the_lower_index_in_blocks_too(problem):
    exact = by_definition(*problem)
    if not exact.likelihood:
        return
    model = HMM(*(np.array(x, dtype=float) for x in problem[:3]))  # from floats, as a user gives them
    found = viterbi(model, problem[3])
    assert found.path.tolist() == exact.path and found.psi.tolist() == exact.psi


def test_tie_of_half_a_million_steps_is_a_tie():
    # Two states that never change into each other pass the same edges, one of them always a step later, and then the
    # same number of each: in floats the sums differ by some rounding, and the last bit would decide.
    model = HMM([0.5, 0.5], np.eye(2), [[0.3, 0.7], [0.7, 0.3]])
    path, _ = best_path(model, np.arange(500_000) % 2)
    assert not path.any()
    swapped, _ = best_path(model, (np.arange(500_001) + 1) % 2)  # one more 1 than 0: the first state is better
    assert not swapped.any()
    other, _ = best_path(model, np.arange(500_001) % 2)
    assert other.all()


# A guess that fails is found out.


@pytest.fixture
def exact_starts(monkeypatch):
    """The algebra of each time that exact starts were computed, because the guesses were wrong."""
    algebras, exact = [], Sweep._exact

    def counted(self, *args):
        algebras.append(type(self.algebra).__name__)
        return exact(self, *args)

    monkeypatch.setattr(Sweep, "_exact", counted)
    return algebras


def test_a_chain_that_forgets_needs_no_products(exact_starts):
    obs = np.random.default_rng(0).integers(0, 4, 30_000)
    model = sticky(3, 4, 0.5)
    assert score(model, obs) < 0 and len(posterior(model, obs)) == len(best_path(model, obs)[0]) == len(obs)
    assert exact_starts == []


@pytest.mark.parametrize("name", ["never forgets", "60 states, forgets slowly"])
def test_a_chain_that_remembers_needs_products(exact_starts, name):
    obs = np.random.default_rng(0).integers(0, 3, 3001)
    score(MODELS[name], obs)
    assert exact_starts


def test_linear_raises_underflow_where_floats_would_lose_something():
    model, obs = MODELS["never forgets"], np.zeros(20_000, dtype=int)
    with pytest.raises(Underflow):
        Sweep(Linear(model.startprob, model.transmat, model.emissionprob), Blocks(obs, 2)).run(np.array([[0.1], [0.2]]))
    with pytest.raises(Underflow):
        model = MODELS["near zeros"]
        Linear(model.startprob, model.transmat, model.emissionprob)


def test_state_far_below_the_others_survives():
    # 10^4 symbols make state 1 (9/1)^10000 times as likely, then it is found impossible, in another block.
    model = HMM([0.5, 0.5], np.eye(2), [[0.9, 0.0, 0.1], [0.1, 0.9, 0.0]])
    obs = [0] * 10_000 + [1] + [0] * 5000
    expected = math.log(0.5) + 15_000 * math.log(0.1) + math.log(0.9)
    assert score(model, obs) == pytest.approx(expected)
    path, log_probability = best_path(model, obs)
    assert path.all() and log_probability == pytest.approx(expected)
    assert (posterior(model, obs) == [0, 1]).all()


@pytest.mark.parametrize("at", [0, 1, 500, 2999])
def test_impossible_observation_in_any_block(at):
    model, obs = HMM([0.5, 0.5], [[0.5, 0.5]] * 2, [[0.5, 0.5, 0], [0.2, 0.8, 0]]), np.zeros(3000, dtype=int)
    obs[at] = 2
    assert score(model, obs) == -np.inf
    assert np.isneginf(forward(model, obs).log_norm).argmax() == at
    assert not np.isnan(backward(model, obs).log).any()
    for function in posterior, pair_posterior, viterbi, best_path:
        with pytest.raises(ValueError, match=rf"P\(O\) = 0: no state sequence emits the first {at + 1} observation"):
            function(model, obs)


def test_zeros_upon_zeros_stay_zeros():
    model = HMM([0.5, 0.5], np.eye(2), [[1, 0], [0.5, 0.5]])
    best = viterbi(model, [1] * 300)  # impossible for the first state, at each of the 300 times
    assert best.path.all() and np.isneginf(best.delta.log[:, 0]).all()
    assert best.log_probability == pytest.approx(301 * math.log(0.5))
    model = HMM([0.5, 0.5], np.eye(2), [[1, 0], [1, 0]])
    with pytest.raises(ValueError, match="the first 2 observation"):  # impossible for all, again and again
        best_path(model, [0] + [1] * 300)


# A million steps.


@pytest.mark.parametrize("n", [2, 5])
def test_a_million_steps_stay_finite(n):
    model = random_model(np.random.default_rng(n), n, 4)
    states, obs = sample(model, 10**6, seed=n)
    log_likelihood = score(model, obs)
    assert -2e6 < log_likelihood < -1e5 and len(Blocks(obs, n).symbols) < 2000  # steps of Python
    gamma = posterior(model, obs)
    assert np.isfinite(gamma).all() and np.abs(gamma.sum(axis=1) - 1).max() < 1e-12
    path, log_probability = best_path(model, obs)
    assert path_log_probability(model, states, obs) <= log_probability < log_likelihood
    # The posterior's favourite is right more often than the best path, and both more often than the commonest state.
    right = [np.mean(guess == states) for guess in (gamma.argmax(axis=1), path)]
    assert right[0] >= right[1] > np.bincount(states).max() / len(states) - 0.01


# Parts.


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 300), st.integers(0, 99))
def test_follow_walks_the_maps(n, steps, seed):
    rng, blocks = np.random.default_rng(seed), Blocks(np.zeros(steps + 1, dtype=int), n)
    maps = rng.integers(0, n, (blocks.length, n, blocks.count), dtype=np.uint8)
    maps[blocks.last :, :, -1] = np.arange(n)
    flat = maps.transpose(2, 0, 1).reshape(-1, n)
    state, expected = 0, []
    for row in flat:
        state = row[state]
        expected.append(state)
    assert follow(maps, 0).T.ravel().tolist() == expected
    state, expected = 0, []
    for row in flat[::-1]:
        state = row[state]
        expected.append(state)
    assert follow(maps, 0, backward=True).T.ravel()[::-1].tolist() == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 5000), st.integers(1, 200))
def test_blocks_hold_every_step_once(length, n):
    obs = np.arange(length)
    blocks = Blocks(obs, n)
    assert 1 <= blocks.last <= blocks.length or length == 1
    assert blocks.in_time(blocks.symbols[:, None], 0)[:, 0].tolist() == obs.tolist()


def test_products_are_those_of_the_matrices(monkeypatch):
    monkeypatch.setattr(scans, "WARM_UP", 0)
    model, obs = MODELS["random"], np.random.default_rng(3).integers(0, 4, 500)
    for algebra in Linear, Logarithmic:
        sweep = Sweep(algebra(model.startprob, model.transmat, model.emissionprob), Blocks(obs, 3))
        first = sweep.algebra.emit(sweep.algebra.pi[:, None], obs[:1])
        ends, norms, before = sweep.run(first)
        assert sweep._products is not None
        total = before[-1] + norms[-1] + sweep.algebra.log_total(ends[:, -1])
        assert total == pytest.approx(step_by_step(model, obs)[2], rel=1e-13)


def test_units_know_the_identities_of_fractions():
    def units(*texts):
        row = [Fraction(text) for text in texts]
        return FixedPoint(row, [row] * len(row), [row] * len(row), 1000, 10**6).pi

    a, b, c, d = units("1/10", "6/10", "2/10", "3/10")
    assert a + b == c + d  # 0.1·0.6 = 0.2·0.3
    a, b = units("1/3", "1/9")
    assert 2 * a == b
