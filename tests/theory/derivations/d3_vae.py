"""Lines of docs/theory/vae.md, on the model of d2_marginal_likelihood with the prior N(0, 1)."""

from __future__ import annotations

import numpy as np
from given import GRID as Z
from given import Array, log_normal, normal, over_grid, slope
from lines import Sides, line
from numpy import exp, log

MU, VARIANCE = 0.5, 0.3  # of the encoder q(z|x)
LOG_PRIOR = log_normal(Z, 0.0, 1.0)
LOG_LIKELIHOOD = log_normal(0.8, np.tanh(2 * Z) + 0.5 * Z, 0.3)
LOG_JOINT = LOG_PRIOR + LOG_LIKELIHOOD
LOG_P = log(over_grid(exp(LOG_JOINT)))
LOG_Q = log_normal(Z, MU, VARIANCE)
COARSE = Z[::8]  # for integrals over two dimensions
NOISE = normal(Z, 0.0, 1.0)  # the density of ε, at the points of Z


def under_q(values: Array) -> Array:
    return over_grid(exp(LOG_Q) * values)


def f(z: Array) -> Array:
    """A function of the latent, as a reconstruction is."""
    return np.tanh(2 * z) + 0.3 * z**2


def f_slope(z: Array) -> Array:
    return 2 - 2 * np.tanh(2 * z) ** 2 + 0.6 * z


@line(
    "3.1",
    "E_q[log p(x, z) − log q(z|x)] = E_q[log p(x|z)] + E_q[log p(z) − log q(z|x)]",
    "p(x, z) = p(x|z) p(z)",
)
def joint_split() -> Sides:
    return under_q(LOG_JOINT - LOG_Q), under_q(LOG_LIKELIHOOD) + under_q(LOG_PRIOR - LOG_Q)


@line("3.2", "ELBO = E_q[log p(x|z)] − D_KL(q(z|x)‖p(z))", "the second mean is a divergence")
def reconstruction_and_kl() -> Sides:
    kl = 0.5 * (VARIANCE + MU**2 - 1 - log(VARIANCE))  # by (1.14)
    return under_q(LOG_JOINT - LOG_Q), under_q(LOG_LIKELIHOOD) - kl


@line(
    "3.3",
    "ELBO = E_q[log p(x, z)] + H(q(z|x))",
    "the entropy of q rewards a wide encoder, the joint one near the likely z",
)
def joint_and_entropy() -> Sides:
    entropy = 0.5 * log(2 * np.pi * np.e * VARIANCE)
    return under_q(LOG_JOINT - LOG_Q), under_q(LOG_JOINT) + entropy


@line("3.4", "ELBO = log p(x) − D_KL(q(z|x)‖p(z|x))", "(2.7): the three forms are one number")
def evidence_and_gap() -> Sides:
    return under_q(LOG_JOINT - LOG_Q), LOG_P - under_q(LOG_Q - (LOG_JOINT - LOG_P))


@line(
    "3.5",
    "D_KL(N(μ, diag σ²)‖N(0, I)) = ½ Σ_i (μ_i² + σ_i² − 1 − log σ_i²)",
    "(1.14) for each dimension: logarithms of products add",
)
def kl_of_the_encoder() -> Sides:
    mean, variance = np.array([0.3, -1.1]), np.array([0.4, 1.3])
    first, second = (log_normal(COARSE, m, v) for m, v in zip(mean, variance, strict=True))
    joint, prior = first[:, None] + second, log_normal(COARSE, 0.0, 1.0)
    log_ratio = joint - (prior[:, None] + prior)
    left = (exp(joint) * log_ratio).sum() * (COARSE[1] - COARSE[0]) ** 2
    return left, 0.5 * (mean**2 + variance - 1 - log(variance)).sum()


FREE = ("MU + sigma * Z became MU - sigma * Z",)  # −ε has the law of ε


@line(
    "3.6", "E_q[f(z)] = E_ε[f(μ + σ ε)]", "z = μ + σ ε has the density q, and dz = σ dε", free=FREE
)
def reparameterised() -> Sides:
    sigma = np.sqrt(VARIANCE)
    return under_q(f(Z)), over_grid(NOISE * f(MU + sigma * Z))


@line(
    "3.7",
    "∂/∂μ E_q[f(z)] = E_ε[f′(μ + σ ε)]",
    "(3.6): the density of ε does not depend on μ",
    free=FREE,
)
def gradient_of_the_mean() -> Sides:
    sigma = np.sqrt(VARIANCE)
    left = slope(lambda mu: over_grid(normal(Z, mu, VARIANCE) * f(Z)), MU)
    return left, over_grid(NOISE * f_slope(MU + sigma * Z))


@line(
    "3.8",
    "∂/∂(log σ²) E_q[f(z)] = E_ε[f′(μ + σ ε) σ ε/2]",
    "σ = exp(½ log σ²), so ∂σ/∂(log σ²) = σ/2",
)
def gradient_of_the_log_variance() -> Sides:
    sigma = np.sqrt(VARIANCE)
    left = slope(lambda v: over_grid(normal(Z, MU, exp(v)) * f(Z)), log(VARIANCE))
    return left, over_grid(NOISE * f_slope(MU + sigma * Z) * sigma * Z / 2)


@line(
    "3.9",
    "∂/∂μ E_q[f(z)] = E_q[f(z) (z − μ)/σ²]",
    "∂q/∂μ = q (z − μ)/σ²: the same gradient without f′, and with more variance",
)
def score_function_gradient() -> Sides:
    left = slope(lambda mu: over_grid(normal(Z, mu, VARIANCE) * f(Z)), MU)
    return left, under_q(f(Z) * (Z - MU) / VARIANCE)
