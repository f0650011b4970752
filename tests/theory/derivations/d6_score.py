"""Lines of docs/theory/score.md.

The data are a mixture of two normals, noised along the sub-VP SDE, whose α² + σ² is not 1. α and σ
are written here as analytic functions of t; f and g² are those of the package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from given import GRID, Array, Mixture, between, log_normal, normal, over_grid, slope
from lines import Sides, line
from numpy import exp, log

from fastdiff.theory.score import SubVPSDE

DATA, SDE = Mixture(), SubVPSDE()
BETA = (0.1, 20.0)  # β at t = 0 and t = 1
T, X = np.array([0.15, 0.3, 0.6]), np.array([-0.8, 0.5, 1.2])
F, G2 = SDE.f(torch.tensor(T)).numpy(), SDE.g2(torch.tensor(T)).numpy()


def beta_integral(t: Any) -> Any:
    return BETA[0] * t + 0.5 * (BETA[1] - BETA[0]) * t**2


def alpha(t: Any) -> Any:
    return exp(-0.5 * beta_integral(t))


def sigma(t: Any) -> Any:
    return 1 - exp(-beta_integral(t))


def log_snr(t: Any) -> Any:
    return 2 * log(alpha(t)) - 2 * log(sigma(t))


def density(x: Any, t: Any) -> Any:
    return DATA.density(x, alpha(t), sigma(t))


def score(x: Any, t: Any) -> Any:
    return DATA.closed_score(x, alpha(t), sigma(t))


A, SIG = alpha(T), sigma(T)
P, SCORE = density(X, T), DATA.score(X, A, SIG)
RATE = slope(lambda t: density(X, t), T)  # ∂p/∂t
BEND = DATA.bend(X, A, SIG)  # ∇²p
ETA = np.array([0.0, 0.6, 1.0])


def network(x: Array) -> Array:
    """A score that is not the right one."""
    return np.tanh(x) - 0.4 * x


def network_slope(x: Array) -> Array:
    return 1 - np.tanh(x) ** 2 - 0.4


@line(
    "6.1",
    "∇ log(exp(−E(x))/Z) = −∇E(x) for Z = ∫ exp(−E(x)) dx",
    "log Z does not depend on x: a score needs no normalising constant",
    free=(  # any other Z
        "exp(-energy(x)) / z became exp(-energy(x)) * z",
        "z became _grown(z)",
    ),
)
def score_of_an_energy() -> Sides:
    def energy(x: Any) -> Any:
        return x**4 / 4 - x**2 + 0.3 * x

    z = over_grid(exp(-energy(GRID)))
    return slope(lambda x: log(exp(-energy(x)) / z), X), -slope(energy, X)


@line(
    "6.2",
    "∇·(p ∇ log p) = ∇²p",
    "p ∇ log p = ∇p. The Fokker–Planck equation of dx = ∇ log p dτ + √2 dw is"
    " ∂p/∂τ = −∇·(p ∇ log p) + ∇²p, so p does not change: Langevin dynamics has the law p",
)
def langevin_keeps_the_density() -> Sides:
    return slope(lambda x: density(x, T) * score(x, T), X), BEND


@line(
    "6.3",
    "lim v_n = s²/(1 − c/(2s²)) for v_{n+1} = (1 − c/s²)² v_n + 2c",
    "the variance of Langevin steps on N(0, s²), whose score is −x/s²: a step of size c makes it"
    " too large, by a factor that goes to 1 as c → 0",
)
def langevin_of_steps() -> Sides:
    c, s2, variance = np.array([0.01, 0.1, 0.4]), 0.6, np.zeros(3)
    for _ in range(3000):
        variance = (1 - c / s2) ** 2 * variance + 2 * c
    return variance, s2 / (1 - c / (2 * s2))


@line(
    "6.4",
    "E_p[s_θ ∇ log p] = −E_p[∇·s_θ]",
    "∫ s_θ ∇p dx by parts; p is 0 at both ends",
)
def by_parts() -> Sides:
    p = DATA.density(GRID)
    return over_grid(network(GRID) * DATA.score(GRID) * p), -over_grid(network_slope(GRID) * p)


@line(
    "6.5",
    "E_p[‖s_θ − ∇ log p‖²] = E_p[‖s_θ‖² + 2 ∇·s_θ] + E_p[‖∇ log p‖²]",
    "the square, with (6.4) for the mixed term: the last mean does not depend on θ",
)
def implicit_score_matching() -> Sides:
    p, s, exact = DATA.density(GRID), network(GRID), DATA.score(GRID)
    implicit = over_grid(p * (s**2 + 2 * network_slope(GRID)))
    return over_grid(p * (s - exact) ** 2), implicit + over_grid(p * exact**2)


@line("6.6", "∇ log q(x_t|x_0) = −ε/σ_t", "−(x_t − α_t x_0)/σ_t², and x_t − α_t x_0 = σ_t ε")
def score_of_a_step() -> Sides:
    x0 = np.array([0.2, -0.7, 1.5])
    eps = (X - A * x0) / SIG
    return slope(lambda x: log_normal(x, A * x0, SIG**2), X), -eps / SIG


PAIRS = normal(GRID, A[1] * GRID[:, None], SIG[1] ** 2) * DATA.density(GRID[:, None])
NOISED = DATA.density(GRID, A[1], SIG[1])  # p(x_t) at t = 0.3
NOISED_SCORE = DATA.closed_score(GRID, A[1], SIG[1])
STEP_SCORE = -(GRID - A[1] * GRID[:, None]) / SIG[1] ** 2  # ∇ log q(x_t|x_0), [x_0, x_t]


@line(
    "6.7",
    "E_{p(x_t)}[s_θ ∇ log p(x_t)] = E_{p(x_0) q(x_t|x_0)}[s_θ ∇ log q(x_t|x_0)]",
    "(5.31): ∇p(x_t) is the mean of ∇q(x_t|x_0)",
)
def mixed_terms() -> Sides:
    left = over_grid(NOISED * network(GRID) * NOISED_SCORE)
    return left, over_grid(over_grid(PAIRS * network(GRID) * STEP_SCORE))


@line(
    "6.8",
    "E[‖s_θ − ∇ log q(x_t|x_0)‖²] = E[‖s_θ − ∇ log p(x_t)‖²]"
    " + E[‖∇ log q(x_t|x_0) − ∇ log p(x_t)‖²]",
    "(6.7) for s_θ and for ∇ log p(x_t); the last mean does not depend on θ, so the minimum is"
    " ∇ log p(x_t)",
)
def denoising_score_matching() -> Sides:
    s = network(GRID)
    spread = over_grid(over_grid(PAIRS * (STEP_SCORE - NOISED_SCORE) ** 2))
    left = over_grid(over_grid(PAIRS * (s - STEP_SCORE) ** 2))
    return left, over_grid(NOISED * (s - NOISED_SCORE) ** 2) + spread


@line("6.9", "α′ = f α", "the mean of dx = f x dt + g dw given x_0 is α x_0: dE[x]/dt = f E[x]")
def drift() -> Sides:
    return slope(alpha, T), F * A


@line("6.10", "(σ²)′ = 2 f σ² + g²", "dE[x²]/dt = 2 f E[x²] + g² by Itô's formula, less the mean's")
def diffusion() -> Sides:
    return slope(lambda t: sigma(t) ** 2, T), 2 * F * SIG**2 + G2


@line("6.11", "g² = −σ² (log SNR)′", "log SNR = 2 log α − log σ², with (6.9) and (6.10)")
def diffusion_by_the_snr() -> Sides:
    return G2, -(SIG**2) * slope(log_snr, T)


@line(
    "6.12",
    "σ_{t|s}² = ∫_s^t (α_t/α_u)² g(u)² du",
    "(6.10) divided by α²: (σ²/α²)′ = g²/α². It is (5.4) for steps without length",
)
def noise_of_a_step() -> Sides:
    s, t = T[:2], T[1:]
    step = sigma(t) ** 2 - (alpha(t) / alpha(s)) ** 2 * sigma(s) ** 2

    def added(u: Array) -> Array:
        return (alpha(t)[:, None] / alpha(u)) ** 2 * SDE.g2(torch.tensor(u)).numpy()

    return step, between(added, s, t)


@line(
    "6.13",
    "½ g² ‖s − ŝ‖² = −½ (log SNR)′ ‖ε − ε̂‖²",
    "(6.11) and s = −ε/σ: score matching with λ = g² is the bound of (5.38)",
)
def weight_of_the_bound() -> Sides:
    eps, eps_hat = np.array([0.3, -1.1, 0.8]), np.array([0.1, -0.4, 1.0])
    left = 0.5 * G2 * (-eps / SIG + eps_hat / SIG) ** 2
    return left, -0.5 * slope(log_snr, T) * (eps - eps_hat) ** 2


@line(
    "6.14",
    "∂p_t/∂t = −∇·(f x p_t) + ½ g² ∇²p_t",
    "the Fokker–Planck equation of dx = f x dt + g dw",
)
def fokker_planck() -> Sides:
    return RATE, -slope(lambda x: F * x * density(x, T), X) + 0.5 * G2 * BEND


@line(
    "6.15",
    "∂p_t/∂t = −∇·((f x − ½ g² ∇ log p_t) p_t)",
    "(6.2): no second derivative is left. It is the equation of dx/dt = f x − ½ g² ∇ log p_t",
)
def probability_flow() -> Sides:
    return RATE, -slope(lambda x: (F * x - 0.5 * G2 * score(x, T)) * density(x, T), X)


@line(
    "6.16",
    "∂p_t/∂t = −∇·((f x − ½ (1 + η²) g² ∇ log p_t) p_t) − ½ η² g² ∇²p_t",
    "½ η² g² ∇²p_t added and subtracted, with (6.2). Backwards in time it is the Fokker–Planck"
    " equation of the reverse process with noise η g: the marginals are the same for every η",
)
def reverse_process() -> Sides:
    def flux(x: Any) -> Any:
        return (F * x - 0.5 * (1 + ETA**2) * G2 * score(x, T)) * density(x, T)

    return RATE, -slope(flux, X) - 0.5 * ETA**2 * G2 * BEND


@line(
    "6.17",
    "f x_t − ½ g² ∇ log p_t = α′ E[x_0|x_t] + σ′ E[ε|x_t]",
    "(5.34), (5.35), (6.9) and (6.10): the flow is the mean velocity of the lines α x_0 + σ ε",
)
def velocity() -> Sides:
    x0, eps = (X + SIG**2 * SCORE) / A, -SIG * SCORE
    return F * X - 0.5 * G2 * SCORE, slope(alpha, T) * x0 + slope(sigma, T) * eps


@line(
    "6.18",
    "(√V_t)′ = f √V_t + ½ g²/√V_t for V_t = α_t² s² + σ_t²",
    "data N(0, s²), whose score is −x/V_t: on the flow x_t/√V_t is constant",
)
def flow_of_a_normal() -> Sides:
    def deviation(t: Any) -> Any:
        return np.sqrt(alpha(t) ** 2 * 0.3 + sigma(t) ** 2)

    return slope(deviation, T), F * deviation(T) + 0.5 * G2 / deviation(T)
