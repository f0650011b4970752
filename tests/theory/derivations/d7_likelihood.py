"""Lines of docs/theory/likelihood.md, on the data and the SDE of d6_score."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from d6_score import DATA, G2, SDE, F, T, X, density, score
from given import Array, between, slope
from lines import Sides, line
from numpy import log
from scipy.integrate import solve_ivp
from tolerances import DERIVATION_LIMIT

VELOCITY = F * X - 0.5 * G2 * score(X, T)
DIVERGENCE = slope(lambda x: F * x - 0.5 * G2 * score(x, T), X)
JACOBIAN = np.random.default_rng(0).standard_normal((4, 4))
SIGNS = np.array(list(itertools.product((-1.0, 1.0), repeat=4)))  # all Rademacher probes
TERMS, CHANCES = np.array([0.1, 1.4, 0.5, 0.7]), np.array([0.4, 0.1, 0.2, 0.3])
START, END = 0.05, 0.6


def log_density(x: Any, t: Any) -> Any:
    return log(density(x, t))


def flow(t: float, state: Array) -> Array:
    """The velocity of the points, and the divergence there."""
    f, g2 = (float(v) for v in (SDE.f(torch.tensor(t)), SDE.g2(torch.tensor(t))))
    x = state[:3]
    velocity = f * x - 0.5 * g2 * score(x, t)
    return np.concatenate([velocity, slope(lambda at: f * at - 0.5 * g2 * score(at, t), x)])


@line(
    "7.1",
    "Σ_t L_t = E_{t∼π}[L_t/π(t)]",
    "π cancels, for any probabilities above 0: one random t is enough for an unbiased bound",
)
def terms_at_random_times() -> Sides:
    return TERMS.sum(), (CHANCES * (TERMS / CHANCES)).sum()


@line(
    "7.2",
    "d log p_t(x_t)/dt = ∂ log p_t/∂t + f̃·∇ log p_t",
    "the chain rule along dx_t/dt = f̃",
)
def along_the_flow() -> Sides:
    left = slope(lambda h: log_density(X + h * VELOCITY, T + h), np.zeros(3))
    return left, slope(lambda t: log_density(X, t), T) + VELOCITY * score(X, T)


@line("7.3", "∂ log p_t/∂t = −∇·f̃ − f̃·∇ log p_t", "(6.15) divided by p_t")
def continuity() -> Sides:
    return slope(lambda t: log_density(X, t), T), -DIVERGENCE - VELOCITY * score(X, T)


@line("7.4", "d log p_t(x_t)/dt = −∇·f̃", "(7.3) in (7.2)")
def change_of_variables() -> Sides:
    return slope(lambda h: log_density(X + h * VELOCITY, T + h), np.zeros(3)), -DIVERGENCE


@line(
    "7.5",
    "log p_s(x_s) = log p_t(x_t) + ∫_s^t ∇·f̃(x_u, u) du",
    "(7.4) integrated along the flow; in the chapter s = 0 and t = 1",
    tolerance=DERIVATION_LIMIT,
)
def likelihood_by_the_flow() -> Sides:
    state = np.concatenate([X, np.zeros(3)])
    end = solve_ivp(flow, (START, END), state, method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    return log_density(X, START), log_density(end[:3], END) + end[3:]


@line(
    "7.6",
    "E_v[v·(J v)] = tr J for E[v_i v_j] = 1 if i = j, else 0",
    "v·(J v) = Σ_{ij} J_ij v_i v_j",
)
def hutchinson() -> Sides:
    return np.einsum("ki,ij,kj->k", SIGNS, JACOBIAN, SIGNS).mean(), JACOBIAN.trace()


@line(
    "7.7",
    "Var_v[v·(J v)] = ½ Σ_{i≠j} (J_ij + J_ji)² for v_i = ±1",
    "v_i² = 1, so the diagonal has no variance: exact for a J without other elements",
)
def variance_of_signs() -> Sides:
    pair = JACOBIAN + JACOBIAN.T
    values = np.einsum("ki,ij,kj->k", SIGNS, JACOBIAN, SIGNS)
    off = pair - np.diag(np.diag(pair))
    return values.var(), 0.5 * (off**2).sum()


@line(
    "7.8",
    "log P(k) − E_u[log p(k + u)] = D_KL(U(0, 1)‖p(k + u)/P(k)) for P(k) = ∫_0^1 p(k + u) du",
    "(2.10) with u as the latent: −E_u[log p(k + u)] is a bound of −log P(k)",
)
def dequantization() -> Sides:
    k, one = np.array([-2.0, -1.0, 0.0, 1.0]), 1.0
    mass = between(DATA.density, k, k + one)

    def divergence(x: Array) -> Array:
        ratio = DATA.density(x) / mass[:, None]
        return ratio - 1 - log(ratio)  # by (1.10)

    return log(mass) - between(DATA.log, k, k + one), between(divergence, k, k + one)


@line(
    "7.9",
    "−log₂ p(y) = −log₂ p(x) + 7 for y = 128 (x + 1)",
    "p(y) = p(x)/128: the density of levels has 7 bits more per dimension",
)
def seven_bits() -> Sides:
    y = 128 * (X + 1)
    levels = slope(lambda at: at / 128 - 1, y) * DATA.density(y / 128 - 1)
    return -np.log2(levels), -log(DATA.density(X)) / log(2) + 7


def tables(seed: int, *shape: int) -> Array:
    """Positive numbers whose last axis sums to 1."""
    drawn = np.random.default_rng(seed).uniform(0.1, 1, shape)
    return drawn / drawn.sum(-1, keepdims=True)


# three elements of two, three and four values, axes (x_1, x_2, x_3): p by its conditionals, q given
FIRST, SECOND, THIRD = tables(0, 2)[:, None, None], tables(1, 2, 3)[..., None], tables(2, 2, 3, 4)
JOINT = FIRST * SECOND * THIRD
DATA_JOINT = tables(3, 24).reshape(2, 3, 4)
DATA_FIRST = DATA_JOINT.sum((1, 2), keepdims=True)
DATA_SECOND = DATA_JOINT.sum(2, keepdims=True) / DATA_FIRST
DATA_THIRD = DATA_JOINT / (DATA_FIRST * DATA_SECOND)


@line(
    "7.10",
    "Σ_x Π_i p(x_i|x_{<i}) = 1",
    "summed from the last element to the first, each factor is 1: the product is a distribution",
)
def a_product_of_conditionals() -> Sides:
    return (FIRST * SECOND * THIRD).sum(), FIRST.sum()


@line(
    "7.11",
    "log p(x) = Σ_i log p(x_i|x_{<i})",
    "the chain rule, for every p and every order of the elements: no bound is needed",
)
def chain_rule() -> Sides:
    marginal = JOINT.sum((1, 2), keepdims=True)
    pair = JOINT.sum(2, keepdims=True)
    return log(JOINT), log(marginal) + log(pair / marginal) + log(JOINT / pair)


@line(
    "7.12",
    "H(p, q) − H(p) = Σ_i E_p[D_KL(p(x_i|x_{<i})‖q(x_i|x_{<i}))]",
    "(7.11) for the data p and the model q, in the mean, with (1.8): each element has its own gap",
)
def gap_by_elements() -> Sides:
    ratios = log(DATA_FIRST / FIRST), log(DATA_SECOND / SECOND), log(DATA_THIRD / THIRD)
    entropy = -(DATA_JOINT * log(DATA_JOINT)).sum()
    first = (DATA_FIRST * ratios[0]).sum()
    second = (DATA_FIRST * (DATA_SECOND * ratios[1]).sum(1, keepdims=True)).sum()
    inner = (DATA_THIRD * ratios[2]).sum(2, keepdims=True)
    third = (DATA_FIRST * DATA_SECOND * inner).sum()
    return -(DATA_JOINT * log(JOINT)).sum() - entropy, first + second + third


@line(
    "7.13",
    "S(b) − S(a) = S(b) S(−a) (1 − e^{a−b}) for S(a) = 1/(1 + e^{−a})",
    "the mass of a logistic distribution between a and b, as a product: its logarithm keeps all"
    " digits where both S are near 0 or 1",
)
def logistic_mass() -> Sides:
    a, b = np.array([-3.0, 0.2, 1.5]), np.array([-2.2, 0.9, 4.0])

    def s(at: Array) -> Array:
        return 1 / (1 + np.exp(-at))

    return s(b) - s(a), s(b) * s(-a) * (1 - np.exp(a - b))
