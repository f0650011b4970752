"""Lines of docs/theory/marginal_likelihood.md.

The example is a latent model without closed forms: z of two modes, x = tanh(2z) + z/2 + noise.
Integrals over z are quadratures. For means of several weights, z has three values and all draws
are enumerated.
"""

from __future__ import annotations

import itertools

import numpy as np
from given import GRID as Z
from given import Array, Mixture, log_normal, over_grid, slope
from lines import Sides, line
from numpy import exp, log

X = 0.8  # the observation
LOG_PRIOR = np.log(Mixture().density(Z) + 1e-300)
LOG_LIKELIHOOD = log_normal(X, np.tanh(2 * Z) + 0.5 * Z, 0.3)
LOG_JOINT = LOG_PRIOR + LOG_LIKELIHOOD
LOG_P = log(over_grid(exp(LOG_JOINT)))
LOG_POSTERIOR = LOG_JOINT - LOG_P
LOG_P_AT_Z = np.full(len(Z), LOG_P)
LOG_Q = log_normal(Z, 0.5, 0.2)  # an encoder
SOME = np.array([850, 1000, 1100])  # some latents

# three latents for the enumerations: their probabilities under q, and their weights p(x, z)/q(z|x)
CHANCES, JOINT = np.array([0.5, 0.3, 0.2]), np.array([0.05, 0.2, 0.01])
TRIPLES = np.array(list(itertools.product(range(3), repeat=3)))
CHANCE, WEIGHTS = CHANCES[TRIPLES].prod(1), (JOINT / CHANCES)[TRIPLES]
PAIRS = [(0, 1), (0, 2), (1, 2)]


def under_q(values: Array) -> Array:
    """E_q(z|x) of values at the latents Z."""
    return over_grid(exp(LOG_Q) * values)


def pair_means() -> Array:
    """The mean of each two of the three weights, [triple, pair]."""
    return np.stack([(WEIGHTS[:, i] + WEIGHTS[:, j]) / 2 for i, j in PAIRS], axis=1)


@line("2.1", "E_{p(z)}[(1/K) Σ_k p(x|z_k)] = p(x)", "(1.15) with f = p(x|z) and draws of the prior")
def naive_monte_carlo_is_unbiased() -> Sides:
    prior = np.array([0.6, 0.1, 0.3])
    likelihood = JOINT / prior
    left = (prior[TRIPLES].prod(1) * likelihood[TRIPLES].mean(1)).sum()
    return left, JOINT.sum()


@line("2.2", "∫ p(x, z) dz = E_q[p(x, z)/q(z|x)]", "q(z|x)/q(z|x) = 1")
def importance_sampling() -> Sides:
    return over_grid(exp(LOG_JOINT)), under_q(exp(LOG_JOINT - LOG_Q))


@line(
    "2.3",
    "p(x, z)/p(z|x) = p(x)",
    "the definition of p(z|x), for every z: with q = p(z|x) all weights are p(x)",
)
def constant_weights() -> Sides:
    return exp(LOG_JOINT - LOG_POSTERIOR)[SOME], np.full(3, exp(LOG_P))


@line("2.4", "log p(x) = E_q[log p(x)]", "log p(x) does not depend on z, and ∫ q(z|x) dz = 1")
def a_constant_in_the_mean() -> Sides:
    return LOG_P, under_q(LOG_P_AT_Z)


@line("2.5", "E_q[log p(x)] = E_q[log p(x, z) − log p(z|x)]", "(2.3)")
def by_the_posterior() -> Sides:
    return under_q(LOG_P_AT_Z), under_q(LOG_JOINT - LOG_POSTERIOR)


@line(
    "2.6",
    "E_q[log p(x, z) − log p(z|x)] = E_q[log p(x, z) − log q(z|x)] + E_q[log q(z|x) − log p(z|x)]",
    "log q(z|x) added and subtracted",
)
def log_q_added_and_subtracted() -> Sides:
    left = under_q(LOG_JOINT - LOG_POSTERIOR)
    return left, under_q(LOG_JOINT - LOG_Q) + under_q(LOG_Q - LOG_POSTERIOR)


@line("2.7", "log p(x) = ELBO + D_KL(q(z|x)‖p(z|x))", "(2.4) to (2.6): the two means are these")
def the_gap() -> Sides:
    elbo, ratio = under_q(LOG_JOINT - LOG_Q), exp(LOG_POSTERIOR - LOG_Q)
    return LOG_P, elbo + under_q(ratio - 1 - log(ratio))  # the divergence by (1.10)


@line(
    "2.8",
    "log E[w] − E[log w] = E[u − 1 − log u] for u = w/E[w]",
    "E[u] = 1; by (1.11) no term is below 0: this is Jensen's inequality with its gap",
)
def jensen() -> Sides:
    weight = (JOINT / CHANCES).copy()
    mean = (CHANCES * weight).sum()
    u = weight / mean
    return log(mean) - (CHANCES * log(weight)).sum(), (CHANCES * (u - 1 - log(u))).sum()


@line("2.9", "w/E_q[w] = p(z|x)/q(z|x) for w = p(x, z)/q(z|x)", "E_q[w] = p(x) by (2.2), and (2.3)")
def the_weight_over_its_mean() -> Sides:
    weight = exp(LOG_JOINT - LOG_Q)
    return (weight / under_q(weight))[SOME], exp(LOG_POSTERIOR - LOG_Q)[SOME]


@line(
    "2.10",
    "log E_q[w] − E_q[log w] = D_KL(q(z|x)‖p(z|x))",
    "(2.9) in (2.8), with (1.10): Jensen's gap is the divergence of (2.7)",
)
def jensens_gap_is_the_divergence() -> Sides:
    weight = exp(LOG_JOINT - LOG_Q)
    return log(under_q(weight)) - under_q(log(weight)), under_q(LOG_Q - LOG_POSTERIOR)


@line(
    "2.11",
    "(1/K) Σ_k w_k = E_I[(1/m) Σ_{i ∈ I} w_i]",
    "I has m of the K numbers, each with the same probability; each w_k is in a share m/K of all I",
)
def mean_of_the_means() -> Sides:
    return WEIGHTS.mean(1), pair_means().mean(1)


@line(
    "2.12",
    "IWAE_K − IWAE_m = E[u − 1 − log u] for u = (1/m) Σ_{i ∈ I} w_i/((1/K) Σ_k w_k)",
    "(2.8) for I given w, with (2.11): the bound rises with the number of weights",
)
def iwae_rises() -> Sides:
    two, three = pair_means(), WEIGHTS.mean(1)
    u = two / three[:, None]
    left = (CHANCE * log(three)).sum() - (CHANCE * log(two).mean(1)).sum()
    return left, (CHANCE * (u - 1 - log(u)).mean(1)).sum()


@line(
    "2.13",
    "log p(x) − IWAE_K = E[u − 1 − log u] for u = (1/K) Σ_k w_k/p(x)",
    "(2.8) for the mean of K weights, whose mean is p(x)",
)
def iwae_is_below_the_evidence() -> Sides:
    evidence, mean = JOINT.sum(), WEIGHTS.mean(1)
    u = mean / evidence
    return log(evidence) - (CHANCE * log(mean)).sum(), (CHANCE * (u - 1 - log(u))).sum()


@line(
    "2.14",
    "∇ log (1/K) Σ_k w_k = Σ_k (w_k/Σ_j w_j) ∇ log w_k",
    "the derivative of a logarithm: importance training weights the draws, the ELBO does not",
)
def gradient_of_iwae() -> Sides:
    slopes, weight = np.array([0.4, -1.0, 2.0]), JOINT / CHANCES  # slopes of log w_k

    def log_mean(parameter: Array) -> Array:
        return log((weight * exp(parameter * slopes)).mean())

    share = weight / weight.sum()
    return slope(log_mean, 0.0), (share * slopes).sum()
