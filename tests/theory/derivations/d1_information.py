"""Lines of docs/theory/information.md. Outcomes are enumerated; Gaussians by quadrature."""

from __future__ import annotations

import itertools

import numpy as np
from given import GRID, Array, between, log_normal, normal, over_grid, slope
from lines import Sides, line
from numpy import log

P, Q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.5, 0.3])
EVENT, OTHER = np.array([0.5, 0.3, 0.9]), np.array([0.25, 0.8, 0.01])  # probabilities of events
MEANS, VARIANCES = (0.4, -0.8), (0.6, 1.7)  # of the Gaussians p and q
F = np.array([1.0, -0.5, 2.5])  # a function of the outcome


def surprise(p: Array) -> Array:
    """1.3 times the surprise in nats: a unit of our own."""
    return -1.3 * log(p)


def power(p: Array, k: float) -> Array:
    return (1 - p**k) / k


def entropy(p: Array) -> float:
    return float(-(p * log(p)).sum())


@line("1.1", "f(p q) = f(p) + f(q)", "what f has to satisfy: surprises of independent events add")
def surprises_add() -> Sides:
    return surprise(EVENT * OTHER), surprise(EVENT) + surprise(OTHER)


@line("1.2", "p f′(p) = f′(1)", "the derivative of (1.1) with respect to q, at q = 1")
def equation_of_the_slope() -> Sides:
    return EVENT * slope(surprise, EVENT), slope(surprise, np.ones(3))


@line("1.3", "f(p) = ∫_1^p f′(1)/u du", "f(1) = 0, which is (1.1) with p = q = 1, and (1.2)")
def integral_of_the_slope() -> Sides:
    at_one = slope(surprise, 1.0)
    return surprise(EVENT), between(lambda u: at_one / u, np.ones(3), EVENT)


@line("1.4", "∫_1^p f′(1)/u du = f′(1) log p", "so f is a logarithm, and the base is the unit")
def a_logarithm() -> Sides:
    at_one = slope(surprise, 1.0)
    return between(lambda u: at_one / u, np.ones(3), EVENT), at_one * log(EVENT)


@line("1.5", "f(p)/f(½) = −log₂ p", "one bit is the surprise of a fair coin")
def in_bits() -> Sides:
    return surprise(EVENT) / surprise(0.5), -np.log2(EVENT)


@line(
    "1.6",
    "f(p q) = f(p) + f(q) − k f(p) f(q) for f(p) = (1 − p^k)/k",
    "other functions do not add: 1 − p is k = 1, 1/p − 1 is k = −1; k → 0 gives −log p",
)
def other_functions_do_not_add() -> Sides:
    k = np.array([[1.0], [-1.0], [0.3]])
    first, second = power(EVENT, k), power(OTHER, k)
    return power(EVENT * OTHER, k), first + second - k * first * second


@line(
    "1.7",
    "E_{p q}[−log(p q)] = H(p) + H(q)",
    "(1.1) in the mean: entropies of independent outcomes add",
)
def entropies_add() -> Sides:
    pairs = np.outer(P, Q)
    return -(pairs * log(pairs)).sum(), entropy(P) + entropy(Q)


@line("1.8", "E_p[log p − log q] = H(p, q) − H(p)", "the mean of a sum is the sum of the means")
def kl_by_entropies() -> Sides:
    return (P * (log(P) - log(Q))).sum(), -(P * log(Q)).sum() - entropy(P)


@line("1.9", "E_p[q/p] = Σ q", "p cancels; the sum is 1")
def mean_ratio() -> Sides:
    return (P * (Q / P)).sum(), Q.sum()


@line("1.10", "D_KL(p‖q) = E_p[q/p − 1 − log(q/p)]", "E_p[q/p − 1] = 0 by (1.9)")
def kl_of_terms_that_are_not_negative() -> Sides:
    ratio = Q / P
    return (P * log(P / Q)).sum(), (P * (ratio - 1 - log(ratio))).sum()


@line(
    "1.11",
    "u − 1 − log u = ∫_1^u (1 − 1/v) dv",
    "above 0 for u > 1 and for u < 1, and 0 at u = 1: D_KL ≥ 0, and 0 only where q = p",
)
def the_term_is_not_negative() -> Sides:
    u = np.array([0.2, 0.9, 1.5, 4.0])
    return u - 1 - log(u), between(lambda v: 1 - 1 / v, np.ones(4), u)


@line(
    "1.12",
    "log N(x; μ_0, σ_0²) − log N(x; μ_1, σ_1²) = ½ log(σ_1²/σ_0²) − (x − μ_0)²/(2σ_0²)"
    " + (x − μ_1)²/(2σ_1²)",
    "the densities; 2π cancels",
)
def log_ratio_of_gaussians() -> Sides:
    (m0, m1), (v0, v1), x = MEANS, VARIANCES, np.array([-2.0, 0.1, 3.0])
    left = log_normal(x, m0, v0) - log_normal(x, m1, v1)
    return left, 0.5 * log(v1 / v0) - (x - m0) ** 2 / (2 * v0) + (x - m1) ** 2 / (2 * v1)


@line("1.13", "E_p[(x − μ_1)²] = σ_0² + (μ_0 − μ_1)²", "x − μ_1 = (x − μ_0) + (μ_0 − μ_1)")
def second_moment() -> Sides:
    (m0, m1), (v0, _) = MEANS, VARIANCES
    return over_grid(normal(GRID, m0, v0) * (GRID - m1) ** 2), v0 + (m0 - m1) ** 2


@line(
    "1.14",
    "D_KL(N(μ_0, σ_0²)‖N(μ_1, σ_1²)) = ½ (log(σ_1²/σ_0²) + (σ_0² + (μ_0 − μ_1)²)/σ_1² − 1)",
    "(1.12) in the mean, with (1.13) for both squares",
)
def kl_of_gaussians() -> Sides:
    (m0, m1), (v0, v1) = MEANS, VARIANCES
    ratio = log_normal(GRID, m0, v0) - log_normal(GRID, m1, v1)
    left = over_grid(normal(GRID, m0, v0) * ratio)
    return left, 0.5 * (log(v1 / v0) + (v0 + (m0 - m1) ** 2) / v1 - 1)


def three_draws() -> tuple[Array, Array]:
    """The probability of each triple of outcomes, and the mean of f over the three."""
    triples = np.array(list(itertools.product(range(3), repeat=3)))
    return P[triples].prod(1), F[triples].mean(1)


@line("1.15", "E[(1/n) Σ_i f(x_i)] = E_p[f]", "each of the n draws has the mean E_p[f]")
def the_mean_is_unbiased() -> Sides:
    chance, mean = three_draws()
    return (chance * mean).sum(), (P * F).sum()


@line(
    "1.16",
    "Var[(1/n) Σ_i f(x_i)] = Var_p[f]/n",
    "variances of independent draws add, and 1/n is squared: the standard error falls as 1/√n",
)
def variance_of_the_mean() -> Sides:
    chance, mean = three_draws()
    variance = (P * F**2).sum() - (P * F).sum() ** 2
    return (chance * mean**2).sum() - (chance * mean).sum() ** 2, variance / 3
