"""The answers of docs/theory.md, each shown with numbers."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hmm import HMM, PHONE_STORE, backward, forward, pair_posterior, posterior, viterbi
from model import attention


def parameters(model):
    return model.startprob, model.transmat, model.emissionprob


def test_exercise_by_enumeration_of_its_eight_paths():
    obs = np.array([0, 1, 2])
    paths = all_paths(PHONE_STORE, obs)  # (2, 2, 2)
    assert (paths.sum(), paths.max()) == pytest.approx((0.03541, 0.0096))
    assert np.unravel_index(paths.argmax(), paths.shape) == (0, 0, 1)
    assert paths[0, 1, 1] == pytest.approx(0.006) == np.sort(paths.ravel())[-2]  # the runner-up
    path, delta, psi = viterbi(*parameters(PHONE_STORE), obs)
    np.testing.assert_allclose(delta, [[0.2, 0.1], [0.048, 0.024], [0.00576, 0.0096]])
    assert psi[1:].tolist() == [[0, 0], [0, 0]] and path.tolist() == [0, 0, 1]


def test_exercise_probability_of_the_sequence_three_ways():
    pi, _, b = PHONE_STORE.exact
    (alpha, _), (beta, _) = (f(*PHONE_STORE.exact, np.array([0, 1, 2])) for f in (forward, backward))
    ways = [alpha[-1].sum(), (pi * b[:, 0] * beta[0]).sum(), *(alpha * beta).sum(axis=1)]
    assert ways == [Fraction(3541, 100000)] * 5


def test_equal_paths_go_to_the_lower_index_in_fractions():
    # To state 1 from state 1 with 0.3 · 0.6, from state 2 with 0.2 · 0.9: equal, and 0.18000000000000002 > 0.18
    model = HMM([0.3, 0.2, 0.5], [[0.6, 0.4, 0], [0.9, 0.1, 0], [0, 0, 1]], [[1, 0], [1, 0], [0, 1]])
    for matrices, before in ((model.exact, 0), (parameters(model), 1)):
        path, _, psi = viterbi(*matrices, np.array([0, 0]))
        assert psi[1, 0] == path[0] == before


def test_scaling_gives_the_logarithm_where_floats_underflow():
    obs = np.tile([0, 1, 2], 500)
    (alpha, _), (rows, c) = forward(*parameters(PHONE_STORE), obs), forward(*parameters(PHONE_STORE), obs, True)
    assert alpha[-1].sum() == 0 and np.allclose(rows.sum(axis=1), 1)
    np.testing.assert_allclose(np.cumsum(np.log(c))[:300], np.log(alpha[:300].sum(axis=1)))
    assert np.log(c).sum() == pytest.approx(PHONE_STORE.score(obs)) and PHONE_STORE.score(obs) < -1000


# Questions 1.1 and 1.2: 5 states, 10 observations, all 5^10 = 9,765,625 state sequences.


def all_paths(model, obs, first=None):
    """P(q_1 … q_T, O | λ) of every state sequence, an array of T axes: by definition, with no recursion over sums."""
    b = model.emissionprob[:, obs]  # (N, T)
    joint = (model.startprob if first is None else first) * b[:, 0]
    for t in range(1, len(obs)):
        joint = joint[..., None] * (model.transmat * b[:, t])  # one more axis, of q_t
    return joint


def keep_axes(joint, *axes):
    return joint.sum(axis=tuple(axis for axis in range(joint.ndim) if axis not in axes))


@pytest.fixture(scope="module")
def problem():
    """A random model, α and β; and from all its paths P(O), P(q_t = S_i, O) and P(q_5 = S_i, q_6 = S_j, O)."""
    rng = np.random.default_rng(20)
    model = HMM(rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5), size=5), rng.dirichlet(np.ones(3), size=5))
    obs = rng.integers(0, 3, 10)
    joint = all_paths(model, obs)  # not handed on: pytest would print all of it when a test fails
    assert joint.size == 5**10
    one = np.array([keep_axes(joint, t) for t in range(10)])  # (T, N)
    (alpha, _), (beta, _) = forward(*parameters(model), obs), backward(*parameters(model), obs)
    return model, obs, alpha, beta, joint.sum(), one, keep_axes(joint, 4, 5)


def test_1_1_gamma_is_the_normalised_product(problem):
    _, _, alpha, beta, likelihood, one, _ = problem
    gamma = one / likelihood  # the definition, (T, N)
    product, total = alpha * beta, alpha + beta
    options = {"A": product, "B": product / product.sum(axis=1, keepdims=True)}
    options |= {"C": total, "D": total / total.sum(axis=1, keepdims=True)}
    assert [name for name, value in options.items() if np.allclose(value, gamma, rtol=1e-9)] == ["B"]
    for name in "ACD":
        assert np.abs(options[name] - gamma).max() > 0.1, name
    np.testing.assert_allclose(options["A"], one)  # A is the joint probability with O
    np.testing.assert_allclose(posterior(alpha, beta), gamma)


def of_1_2(model, obs, alpha, beta):
    """α_5(2), a_24, b_4(o_6), β_6(4)."""
    return alpha[4, 1], model.transmat[1, 3], model.emissionprob[3, obs[5]], beta[5, 3]


def test_1_2_joint_probability_of_two_states_and_the_observations(problem):
    model, obs, alpha, beta, total, _, two = problem
    expected = two[1, 3]  # P(q_5 = S_2, q_6 = S_4, O), the definition
    alpha5, a24, b4, beta6 = of_1_2(model, obs, alpha, beta)
    options = {"A": alpha5 * a24, "B": b4 * beta6, "C": alpha5 * a24 * b4, "D": alpha5 * a24 * b4 * beta6}
    assert [name for name, value in options.items() if np.isclose(value, expected, rtol=1e-9)] == ["D"]
    assert min(options[name] for name in "ABC") > 10 * expected
    assert pair_posterior(*parameters(model), obs, alpha, beta)[4, 1, 3] == pytest.approx(expected / total)


def test_1_2_wrong_options_are_other_probabilities(problem):
    model, obs, alpha, beta, *_ = problem
    alpha5, a24, b4, beta6 = of_1_2(model, obs, alpha, beta)
    five, six = keep_axes(all_paths(model, obs[:5]), 4), keep_axes(all_paths(model, obs[:6]), 4, 5)
    rest = all_paths(model, obs[5:], first=np.eye(5)[3]).sum()
    assert alpha5 * a24 == pytest.approx(five[1] * a24)  # A: P(o_1 … o_5, q_5 = S_2, q_6 = S_4)
    assert alpha5 * a24 * b4 == pytest.approx(six[1, 3])  # C: P(o_1 … o_6, q_5 = S_2, q_6 = S_4)
    assert b4 * beta6 == pytest.approx(rest)  # B: P(o_6 … o_10 | q_6 = S_4)


# Question 1.4: gradients through h_t = U h_{t-1}.


def orthogonal(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q


def first_state_gradient(step, n, length, seed=1):
    """dL/dh_0 after `length` steps of h ← step(h), for a loss whose dL/dh_t has norm 1."""
    generator = torch.Generator().manual_seed(seed)
    h0 = torch.randn(n, generator=generator, dtype=torch.float64, requires_grad=True)
    g = torch.nn.functional.normalize(torch.randn(n, generator=generator, dtype=torch.float64), dim=0)
    h = h0
    for _ in range(length):
        h = step(h)
    (gradient,) = torch.autograd.grad(h @ g, h0)
    return gradient, g


def linear_rnn(eigenvalues, q):
    u = q @ torch.diag(eigenvalues) @ q.T
    return lambda h: u @ h


@pytest.mark.parametrize("signs", [[1, 1], [-1, -1], [1, -1]], ids=["positive", "negative", "mixed"])
@pytest.mark.parametrize("size", [0.9, 1, 1.1])
def test_1_4_gradient_vanishes_stays_or_explodes_with_the_modulus_of_the_eigenvalues(signs, size):
    eigenvalues = size * torch.tensor(signs * 8, dtype=torch.float64)
    gradient, _ = first_state_gradient(linear_rnn(eigenvalues, orthogonal(16)), 16, 100)
    assert gradient.norm() == pytest.approx(size**100)  # 2.7e-5, 1, 1.4e4


def test_1_4_each_eigenvector_has_its_own_fate():
    eigenvalues, q = torch.tensor([0.5, -0.9, 1.0, -1.0, 1.05, -1.2], dtype=torch.float64), orthogonal(6)
    gradient, g = first_state_gradient(linear_rnn(eigenvalues, q), 6, 80)
    torch.testing.assert_close(q.T @ gradient, eigenvalues**80 * (q.T @ g), rtol=1e-6, atol=1e-9)


def test_1_4_eigenvalues_of_q_all_have_modulus_one():
    torch.testing.assert_close(torch.linalg.eigvals(orthogonal(16)).abs(), torch.ones(16, dtype=torch.float64))


def test_transient_growth_without_orthogonal_eigenvectors():
    # Both eigenvalues are 0.9, but the singular values are not: the bound of a general U is about them.
    u = torch.tensor([[0.9, 50.0], [0.0, 0.9]], dtype=torch.float64)
    norms = [first_state_gradient(lambda h: u @ h, 2, length)[0].norm() for length in (1, 10, 400)]
    assert norms[1] > 10 and norms[2] < 1e-6


def test_tanh_makes_the_gradient_vanish_even_where_the_eigenvalues_are_one():
    q, x = orthogonal(16), orthogonal(16, seed=2)[0] * 4
    squashed, _ = first_state_gradient(lambda h: torch.tanh(q @ h + x), 16, 100)
    linear, _ = first_state_gradient(lambda h: q @ h + x, 16, 100)
    assert squashed.norm() < 1e-6 and linear.norm() == pytest.approx(1)


# Gates.


def cell_gradient(forget_bias, recurrent, length=100, n=16):
    """dL/dc_0 of an LSTM for a dL/dc_T of norm 1, and what the product of its forget gates alone would make of it."""
    torch.manual_seed(0)
    cell = torch.nn.LSTMCell(n, n).double()
    with torch.no_grad():
        cell.weight_hh.mul_(recurrent)
        cell.bias_hh.zero_()
        cell.bias_ih.zero_()
        cell.bias_ih[n : 2 * n] = forget_bias  # torch's order of gates is i, f, g, o
    h, c0 = torch.zeros(n).double(), torch.zeros(n, requires_grad=True, dtype=torch.float64)
    c, gates = c0, torch.ones(n, dtype=torch.float64)
    for _ in range(length):
        x = torch.randn(n, dtype=torch.float64)
        gates = gates * torch.sigmoid((cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ h)[n : 2 * n])
        h, c = cell(x, (h, c))
    g = torch.full((n,), n**-0.5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(c @ g, c0)
    return gradient, gates.detach() * g


def test_lstm_cell_keeps_the_gradient_when_its_forget_gate_is_near_one():
    assert 0.5 < cell_gradient(forget_bias=8.0, recurrent=0.2)[0].norm() < 2
    assert cell_gradient(forget_bias=0.0, recurrent=0.2)[0].norm() < 1e-10


def test_gates_do_not_stop_a_gradient_from_growing():
    assert cell_gradient(forget_bias=8.0, recurrent=1.0)[0].norm() > 10


def test_lstm_gradient_along_the_cell_is_the_product_of_the_forget_gates():
    # Without recurrent weights the direct path c_0 → c_T is the only one.
    gradient, product = cell_gradient(forget_bias=3.0, recurrent=0.0)
    torch.testing.assert_close(gradient, product, rtol=1e-9, atol=0)


def hidden_gradient(cell, length=100, n=16):
    h0 = torch.zeros(n, requires_grad=True, dtype=torch.float64)
    h, generator = h0, torch.Generator().manual_seed(0)
    for _ in range(length):
        h = cell(torch.randn(n, generator=generator, dtype=torch.float64), h)
    (gradient,) = torch.autograd.grad(h.sum() / n**0.5, h0)
    return gradient.norm()


def test_gru_keeps_what_a_vanilla_rnn_of_the_same_weights_loses():
    torch.manual_seed(0)
    gru, vanilla = torch.nn.GRUCell(16, 16).double(), torch.nn.RNNCell(16, 16).double()
    with torch.no_grad():
        gru.bias_ih[16:32] = 8.0  # torch's order is r, z, n, and h' = (1 - z) n + z h
        vanilla.weight_ih.copy_(gru.weight_ih[32:])  # those of the candidate n
        vanilla.weight_hh.copy_(gru.weight_hh[32:])
    assert hidden_gradient(gru) > 0.5
    assert hidden_gradient(vanilla) < 1e-10


# Attention.


def one_head(x, weights, mask):
    """The handout's steps 1 to 3: x (L, d), mask (L, L) is True where looking is forbidden."""
    return attention(*(x @ w for w in weights), mask)[0]


@pytest.fixture
def head():
    torch.manual_seed(0)
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    return x, [torch.randn(8, 8, dtype=torch.float64) / 8**0.5 for _ in range(3)]


def dependence(x, weights, mask):
    """(L, L), True at [i, j] where output i depends on input j."""
    jacobian = torch.autograd.functional.jacobian(lambda x: one_head(x, weights, mask), x)  # (L, d, L, d)
    return jacobian.abs().amax(dim=(1, 3)) > 0


def test_masks_of_the_three_architectures(head):
    x, weights = head
    future = torch.ones(6, 6, dtype=torch.bool).triu(diagonal=1)
    assert torch.equal(dependence(x, weights, future), ~future)  # decoder: itself and the past
    assert dependence(x, weights, torch.zeros_like(future)).all()  # encoder: everything
    source, target = x.detach()[:4], x.detach()[4:]
    q, k, v = target @ weights[0], source @ weights[1], source @ weights[2]
    out, cross = attention(q, k, v, torch.zeros(2, 4, dtype=torch.bool))
    assert cross.shape == (2, 4) and (cross > 0).all()  # cross-attention: every target position sees the whole source
    torch.testing.assert_close(cross.sum(dim=-1), torch.ones(2, dtype=torch.float64))
    assert out.shape == target.shape


def test_attention_without_mask_and_positions_does_not_know_the_order(head):
    x, weights = head
    order, none = torch.tensor([3, 1, 5, 0, 4, 2]), torch.zeros(6, 6, dtype=torch.bool)
    future = torch.ones(6, 6, dtype=torch.bool).triu(diagonal=1)
    torch.testing.assert_close(one_head(x[order], weights, none), one_head(x, weights, none)[order])
    assert not torch.allclose(one_head(x[order], weights, future), one_head(x, weights, future)[order])


def test_dividing_by_sqrt_d_keeps_the_scores_variance_and_the_softmax_open():
    torch.manual_seed(0)
    for d in 16, 256:
        q, k = torch.randn(64, d), torch.randn(64, d)
        scores = q @ k.T
        assert scores.var() == pytest.approx(d, rel=0.15)
        assert (scores / math.sqrt(d)).var() == pytest.approx(1, rel=0.15)
    # At d = 256 the unscaled softmax picks one position, and its gradient p_i (1 - p_i) is nearly gone.
    raw, scaled = (torch.softmax(s, dim=-1).max(dim=-1).values.median() for s in (scores, scores / math.sqrt(d)))
    assert raw > 0.95 and scaled < 0.3


def test_attention_takes_time_quadratic_in_length_and_projections_linear():
    def flops(length, d=32):
        with FlopCounterMode(display=False) as counter:
            q = k = v = torch.randn(length, d)
            _ = (q @ k.T) @ v
        products = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            _ = torch.randn(length, d) @ torch.randn(d, d)
        return products, counter.get_total_flops()

    (short, short_projection), (long, long_projection) = flops(64), flops(128)
    assert short == 2 * 2 * 64**2 * 32 and long == 4 * short
    assert short_projection == 2 * 64 * 32**2 and long_projection == 2 * short_projection
