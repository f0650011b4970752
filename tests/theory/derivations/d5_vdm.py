"""Lines of docs/theory/vdm.md.

Gaussian steps are those of a cosine schedule from s to t, three pairs at once; the law of the data
is a mixture of two normals. The bounds are those of a chain x_0, …, x_3 of three values each, whose
steps are drawn tables: every path is enumerated, and nothing is Gaussian.

This file is over 400 lines because the chapter has the most lines, and each is one function.
"""

from __future__ import annotations

import numpy as np
from given import GRID, Array, Mixture, between, log_normal, normal, over_grid, slope
from lines import Sides, line
from numpy import exp, log
from tolerances import DERIVATION_LIMIT

from fastdiff import Schedule, prediction
from fastdiff.theory.likelihood import steps

SCHEDULE = Schedule.cosine(50)
S, T = np.array([2, 17, 39]), np.array([9, 30, 44])
AT, ST, AS, SS = SCHEDULE.alpha[T], SCHEDULE.sigma[T], SCHEDULE.alpha[S], SCHEDULE.sigma[S]
ATS, VTS = AT / AS, ST**2 - (AT / AS) ** 2 * SS**2  # α_{t|s}, σ_{t|s}²
X0, XS, XT = np.array([0.7, -1.2, 0.4]), np.array([0.9, -0.3, 1.1]), np.array([0.2, -0.9, 1.6])
SQ = VTS * SS**2 / ST**2  # σ_q²
MQ = (ATS * SS**2 * XT + AS * VTS * X0) / ST**2  # μ_q
EPS, SCORE = (XT - AT * X0) / ST, -(XT - AT * X0) / ST**2  # ε and s of x_t given x_0
X0_HAT = X0 + np.array([0.3, -0.2, 0.5])  # a prediction
EPS_HAT, SCORE_HAT = (XT - AT * X0_HAT) / ST, -(XT - AT * X0_HAT) / ST**2
SNR_T, SNR_S = AT**2 / ST**2, AS**2 / SS**2
DATA = Mixture()


def column(values: Array) -> Array:
    """One value for each pair of timesteps, against a grid on the last axis."""
    return values[:, None]


@line("5.1", "α_{t|s} α_s = α_t for α_{t|s} = α_t/α_s", "the factors of the data multiply")
def factors() -> Sides:
    step = SCHEDULE.transition(T, S)[0]
    return step * AS, AT


@line(
    "5.2",
    "α_{t|s}² σ_s² + σ_{t|s}² = σ_t² for σ_{t|s}² = σ_t² − α_{t|s}² σ_s²",
    "a factor scales a variance by its square; variances of independent noises add",
)
def variances() -> Sides:
    step, variance = SCHEDULE.transition(T, S)
    return step**2 * SS**2 + variance, ST**2


@line(
    "5.3",
    "∫ N(x_t; α_{t|s} x_s, σ_{t|s}²) N(x_s; α_s x_0, σ_s²) dx_s = N(x_t; α_t x_0, σ_t²)",
    "the sum of independent normal noises is normal: the mean is (5.1), the variance (5.2)",
)
def composition() -> Sides:
    forward = normal(column(XT), column(ATS) * GRID, column(VTS))
    marginal = normal(GRID, column(AS * X0), column(SS**2))
    return over_grid(forward * marginal), normal(XT, AT * X0, ST**2)


@line(
    "5.4",
    "σ_t² = Σ_{i≤t} σ_{i|i−1}² Π_{i<j≤t} α_{j|j−1}²",
    "(5.2) step by step from clean data: the noise of step i is scaled by all later steps",
)
def all_steps() -> Sides:
    one = steps(SCHEDULE)
    later = np.append(np.cumprod((one.alpha**2)[::-1])[::-1][1:], 1.0)
    return SCHEDULE.sigma[-1] ** 2, (one.variance * later).sum()


# A chain of three values: axes (x_0, x_1, x_2, x_3). Q[t] is q(x_t|x_{t-1}), P[t] is p(x_{t-1}|x_t)


def tables(seed: int, *shape: int) -> Array:
    """Positive numbers whose last axis sums to 1."""
    drawn = np.random.default_rng(seed).uniform(0.1, 1, shape)
    return drawn / drawn.sum(-1, keepdims=True)


Q = {t: tables(t, 3, 3).reshape((1,) * (t - 1) + (3, 3) + (1,) * (3 - t)) for t in (1, 2, 3)}
P = {t: tables(9 + t, 3, 3).T.reshape((1,) * (t - 1) + (3, 3) + (1,) * (3 - t)) for t in (1, 2, 3)}
P_END = tables(5, 3)  # p(x_T)
PATHS = Q[1] * Q[2] * Q[3]  # q(x_{1:T}|x_0)
JOINT = P[1] * P[2] * P[3] * P_END  # p(x_{0:T})
DATA_SHARES = tables(6, 3)[:, None, None, None]


def kept(values: Array, *axes: int) -> Array:
    """The sum over all latents but those of these axes; x_0 stays."""
    return values.sum(tuple(t for t in (1, 2, 3) if t not in axes), keepdims=True)


AT_TIME = {t: kept(PATHS, t) for t in (1, 2, 3)}  # q(x_t|x_0)
BACK = {t: kept(PATHS, t - 1, t) / AT_TIME[t] for t in (2, 3)}  # q(x_{t-1}|x_t, x_0)


def under_q(values: Array) -> Array:
    """E_{q(x_{1:T}|x_0)}, for each x_0."""
    return (PATHS * values).sum((1, 2, 3))


@line(
    "5.5",
    "log p(x_{0:T}) − log q(x_{1:T}|x_0) = log p(x_0|x_1) + log p(x_T) − log q(x_T|x_{T−1})"
    " + Σ_{t=1}^{T−1} [log p(x_t|x_{t+1}) − log q(x_t|x_{t−1})]",
    "both chains factorise; p and q of the same x_t are put together",
)
def neighbours_on_both_sides() -> Sides:
    ends = log(P[1]) + log(P_END) - log(Q[3])
    return log(JOINT) - log(PATHS), ends + (log(P[2]) - log(Q[1])) + (log(P[3]) - log(Q[2]))


@line(
    "5.6",
    "E_{q(x_{1:T}|x_0)}[g(x_t, x_{t+1})] = E_{q(x_t, x_{t+1}|x_0)}[g(x_t, x_{t+1})]",
    "the other variables sum to 1: a term needs the law of its own variables only",
)
def only_its_own_variables() -> Sides:
    value = log(P[3])
    return under_q(value), (kept(PATHS, 2, 3) * value).sum((1, 2, 3))


@line(
    "5.7",
    "E_q[log p(x_T) − log q(x_T|x_{T−1})] = −E_{q(x_{T−1}|x_0)}[D_KL(q(x_T|x_{T−1})‖p(x_T))]",
    "the mean over x_T given x_{T−1} first; the terms of three variables have no such form",
)
def the_last_step() -> Sides:
    divergence = (Q[3] * (log(Q[3]) - log(P_END))).sum(3, keepdims=True)
    return under_q(log(P_END) - log(Q[3])), -(AT_TIME[2] * divergence).sum((1, 2, 3))


@line(
    "5.8",
    "ELBO = E[log p(x_0|x_1)] − E_{q(x_{T−1}|x_0)}[D_KL(q(x_T|x_{T−1})‖p(x_T))]"
    " + Σ_{t=1}^{T−1} E_{q(x_{t−1}, x_t, x_{t+1}|x_0)}[log p(x_t|x_{t+1}) − log q(x_t|x_{t−1})]",
    "(5.5) in the mean, with (5.6) and (5.7): the form with two random variables",
)
def bound_of_log_ratios() -> Sides:
    latents = (1, 2, 3)
    last = (AT_TIME[2] * (Q[3] * (log(Q[3]) - log(P_END))).sum(3, keepdims=True)).sum(latents)
    first = (kept(PATHS, 1, 2) * (log(P[2]) - log(Q[1]))).sum(latents)
    second = (PATHS * (log(P[3]) - log(Q[2]))).sum(latents)
    reconstruction = (AT_TIME[1] * log(P[1])).sum(latents)
    return under_q(log(JOINT) - log(PATHS)), reconstruction - last + (first + second)


@line(
    "5.9",
    "q(x_t|x_{t−1}) = q(x_t|x_{t−1}, x_0)",
    "the Markov property: given x_{t−1}, x_0 says nothing more about x_t."
    " This is why x_0 may be added to the condition, at no cost",
)
def markov_property() -> Sides:
    joint = DATA_SHARES * PATHS  # of x_0 too
    pair = joint.sum((0, 3), keepdims=True)
    return (
        np.broadcast_to(pair / pair.sum(2, keepdims=True), (3, 3, 3, 1)),
        kept(joint, 1, 2) / kept(joint, 1),
    )


@line(
    "5.10",
    "q(x_t|x_{t−1}, x_0) = q(x_{t−1}|x_t, x_0) q(x_t|x_0)/q(x_{t−1}|x_0)",
    "Bayes' rule, with x_0 in every condition: now all factors are known",
)
def bayes() -> Sides:
    joint = kept(PATHS, 1, 2)
    return joint / AT_TIME[1], BACK[2] * AT_TIME[2] / AT_TIME[1]


@line(
    "5.11",
    "q(x_{t−1}|x_t) = E_{q(x_0|x_t)}[q(x_{t−1}|x_t, x_0)]",
    "without x_0 the reverse step needs the law of the data: it is what p(x_{t−1}|x_t) learns",
)
def without_the_data() -> Sides:
    joint = (DATA_SHARES * PATHS).sum(3)  # x_0, x_1, x_2
    pair = joint.sum(0)
    data = joint.sum(1) / pair.sum(0)  # q(x_0|x_2)
    return pair / pair.sum(0), (data[:, None] * BACK[2][..., 0]).sum(0)


@line(
    "5.12",
    "Σ_{t=2}^T [log q(x_t|x_0) − log q(x_{t−1}|x_0)] = log q(x_T|x_0) − log q(x_1|x_0)",
    "a telescoping sum: all but the ends cancel",
)
def telescoping() -> Sides:
    one, two, three = (log(AT_TIME[t]) for t in (1, 2, 3))
    return (two - one) + (three - two), np.broadcast_to(three - one, (3, 3, 3, 3))


@line(
    "5.13",
    "log p(x_{0:T}) − log q(x_{1:T}|x_0) = log p(x_0|x_1) + [log p(x_T) − log q(x_T|x_0)]"
    " + Σ_{t=2}^T [log p(x_{t−1}|x_t) − log q(x_{t−1}|x_t, x_0)]",
    "(5.9) and (5.10) in the steps t ≥ 2, then (5.12); q(x_1|x_0) cancels",
)
def one_neighbour() -> Sides:
    ends = log(P[1]) + (log(P_END) - log(AT_TIME[3]))
    left = log(JOINT) - log(PATHS)
    return left, ends + (log(P[2]) - log(BACK[2])) + (log(P[3]) - log(BACK[3]))


@line(
    "5.14",
    "ELBO = E[log p(x_0|x_1)] − D_KL(q(x_T|x_0)‖p(x_T))"
    " − Σ_{t=2}^T E_{q(x_t|x_0)}[D_KL(q(x_{t−1}|x_t, x_0)‖p(x_{t−1}|x_t))]",
    "(5.13) in the mean, first over x_{t−1} given x_t",
)
def bound_of_divergences() -> Sides:
    latents = (1, 2, 3)
    prior = (AT_TIME[3] * (log(AT_TIME[3]) - log(P_END))).sum(latents)
    inner = {t: (BACK[t] * log(BACK[t] / P[t])).sum(t - 1, keepdims=True) for t in (2, 3)}
    second, third = ((AT_TIME[t] * inner[t]).sum(latents) for t in (2, 3))
    reconstruction = (AT_TIME[1] * log(P[1])).sum(latents)
    return under_q(log(JOINT) - log(PATHS)), reconstruction - prior - (second + third)


@line(
    "5.15",
    "q(x_s|x_t, x_0) = N(x_t; α_{t|s} x_s, σ_{t|s}²) N(x_s; α_s x_0, σ_s²)/N(x_t; α_t x_0, σ_t²)",
    "(5.10) for s in place of t − 1; the denominator is (5.3)",
)
def posterior_by_bayes() -> Sides:
    at = column(MQ)  # the posterior is compared at three points around its mean
    at = at + np.array([-0.2, 0.0, 0.3])
    unscaled = normal(column(XT), column(ATS) * GRID, column(VTS)) * normal(
        GRID, column(AS * X0), column(SS**2)
    )
    numerator = normal(column(XT), column(ATS) * at, column(VTS)) * normal(
        at, column(AS * X0), column(SS**2)
    )
    return numerator / column(over_grid(unscaled)), numerator / normal(
        column(XT), column(AT * X0), column(ST**2)
    )


@line(
    "5.16",
    "α_{t|s}²/σ_{t|s}² + 1/σ_s² = σ_t²/(σ_{t|s}² σ_s²)",
    "the factor of x_s² in −2 log of (5.15), by (5.2). It is 1/σ_q²",
)
def factor_of_the_square() -> Sides:
    return ATS**2 / VTS + 1 / SS**2, ST**2 / (VTS * SS**2)


@line(
    "5.17",
    "α_{t|s} x_t/σ_{t|s}² + α_s x_0/σ_s² = μ_q/σ_q² for μ_q = (α_{t|s} σ_s² x_t"
    " + α_s σ_{t|s}² x_0)/σ_t²",
    "the factor of −2 x_s",
)
def factor_of_the_line() -> Sides:
    mean = (ATS * SS**2 * XT + AS * VTS * X0) / ST**2
    return ATS * XT / VTS + AS * X0 / SS**2, mean / SQ


@line(
    "5.18",
    "x_t²/σ_{t|s}² + α_s² x_0²/σ_s² − (x_t − α_t x_0)²/σ_t² = μ_q²/σ_q²",
    "what is left without x_s: the square is complete",
)
def the_rest() -> Sides:
    return XT**2 / VTS + AS**2 * X0**2 / SS**2 - (XT - AT * X0) ** 2 / ST**2, MQ**2 / SQ


@line(
    "5.19",
    "q(x_s|x_t, x_0) = N(x_s; μ_q, σ_q²) for σ_q² = σ_{t|s}² σ_s²/σ_t²",
    "(5.16) to (5.18) in the exponent of (5.15), and σ_{t|s}² σ_s²/σ_t² before it",
)
def posterior() -> Sides:
    forward = log_normal(XT, ATS * XS, VTS) + log_normal(XS, AS * X0, SS**2)
    return forward - log_normal(XT, AT * X0, ST**2), log_normal(XS, MQ, VTS * SS**2 / ST**2)


@line(
    "5.20",
    "D_KL(N(μ_q, σ_q²)‖N(μ_θ, σ_q²)) = (μ_q − μ_θ)²/(2σ_q²)",
    "(1.14) with equal variances",
)
def equal_variances() -> Sides:
    model = (ATS * SS**2 * XT + AS * VTS * X0_HAT) / ST**2
    ratio = log_normal(GRID, column(MQ), column(SQ)) - log_normal(GRID, column(model), column(SQ))
    left = over_grid(normal(GRID, column(MQ), column(SQ)) * ratio)
    return left, (MQ - model) ** 2 / (2 * SQ)


@line(
    "5.21",
    "μ_q − μ_θ = (α_s σ_{t|s}²/σ_t²) (x_0 − x̂_0)",
    "μ_θ is μ_q with the prediction x̂_0: x_t cancels",
)
def difference_of_means() -> Sides:
    model = (ATS * SS**2 * XT + AS * VTS * X0_HAT) / ST**2
    return MQ - model, AS * VTS / ST**2 * (X0 - X0_HAT)


@line(
    "5.22",
    "α_s² σ_{t|s}⁴/(2σ_q² σ_t⁴) = ½ (SNR_s − SNR_t) for SNR_t = α_t²/σ_t²",
    "σ_q² of (5.19), then σ_{t|s}² of (5.2)",
)
def weight_of_the_data() -> Sides:
    return AS**2 * VTS**2 / (2 * SQ * ST**4), 0.5 * (SNR_S - SNR_T)


@line("5.23", "D_KL = ½ (SNR_s − SNR_t) (x_0 − x̂_0)²", "(5.21) and (5.22) in (5.20)")
def objective_of_the_data() -> Sides:
    model = (ATS * SS**2 * XT + AS * VTS * X0_HAT) / ST**2
    return (MQ - model) ** 2 / (2 * SQ), 0.5 * (SNR_S - SNR_T) * (X0 - X0_HAT) ** 2


@line("5.24", "x_0 − x̂_0 = −(σ_t/α_t) (ε − ε̂)", "x_0 = (x_t − σ_t ε)/α_t, and the same for x̂_0")
def error_of_the_noise() -> Sides:
    got = prediction.convert("epsilon", "x0", EPS_HAT, XT, AT, ST)
    return X0 - got, -(ST / AT) * (EPS - EPS_HAT)


@line("5.25", "D_KL = ½ (SNR_s/SNR_t − 1) (ε − ε̂)²", "(5.24) in (5.23): (σ_t/α_t)² = 1/SNR_t")
def objective_of_the_noise() -> Sides:
    left = 0.5 * (SNR_S - SNR_T) * (X0 - X0_HAT) ** 2
    return left, 0.5 * (SNR_S / SNR_T - 1) * (EPS - EPS_HAT) ** 2


@line("5.26", "ε − ε̂ = −σ_t (s − ŝ)", "s = ∇ log q(x_t|x_0) = −(x_t − α_t x_0)/σ_t² = −ε/σ_t")
def error_of_the_score() -> Sides:
    got = prediction.convert("score", "epsilon", SCORE_HAT, XT, AT, ST)
    exact = slope(lambda x: log_normal(x, AT * X0, ST**2), XT)
    return EPS - got, -ST * (exact - SCORE_HAT)


@line("5.27", "D_KL = ½ σ_t² (SNR_s/SNR_t − 1) (s − ŝ)²", "(5.26) in (5.25)")
def objective_of_the_score() -> Sides:
    left = 0.5 * (SNR_S / SNR_T - 1) * (EPS - EPS_HAT) ** 2
    return left, 0.5 * ST**2 * (SNR_S / SNR_T - 1) * (SCORE - SCORE_HAT) ** 2


@line(
    "5.28",
    "x_0 − x̂_0 = −σ_t (v − v̂) for v = α_t ε − σ_t x_0",
    "α_t x_t − σ_t v = (α_t² + σ_t²) x_0, and α_t² + σ_t² = 1 for VP",
)
def error_of_v() -> Sides:
    v, v_hat = AT * EPS - ST * X0, prediction.convert("x0", "v", X0_HAT, XT, AT, ST)
    return X0 - X0_HAT, -ST * (v - v_hat)


@line(
    "5.29",
    "μ_q = x_t/α_{t|s} − (σ_{t|s}²/(α_{t|s} σ_t)) ε",
    "x_0 = (x_t − σ_t ε)/α_t in μ_q of (5.17): the mean of DDPM",
)
def mean_by_the_noise() -> Sides:
    return MQ, XT / ATS - VTS / (ATS * ST) * EPS


@line("5.30", "μ_q = x_t/α_{t|s} + (σ_{t|s}²/α_{t|s}) s", "ε = −σ_t s: the mean by the score")
def mean_by_the_score() -> Sides:
    return MQ, XT / ATS + VTS / ATS * SCORE


# Tweedie: x_0 of two modes; integrals over x_0 are on GRID, one row for each x_t


GIVEN = normal(column(XT), column(AT) * GRID, column(ST**2)) * DATA.density(GRID)
MEAN = over_grid(GIVEN * GRID) / over_grid(GIVEN)  # E[x_0|x_t]


@line(
    "5.31",
    "∇ log p(x_t) = ∫ ∇q(x_t|x_0) p(x_0) dx_0/p(x_t)",
    "p(x_t) = ∫ q(x_t|x_0) p(x_0) dx_0, and the derivative of a logarithm",
)
def score_as_an_integral() -> Sides:
    inner = slope(lambda x: normal(x, column(AT) * GRID, column(ST**2)), column(XT))
    density = DATA.density(XT, AT, ST)
    return DATA.score(XT, AT, ST), over_grid(inner * DATA.density(GRID)) / density


@line(
    "5.32",
    "∇q(x_t|x_0) = −((x_t − α_t x_0)/σ_t²) q(x_t|x_0)",
    "the derivative of a normal density",
)
def slope_of_a_normal() -> Sides:
    left = slope(lambda x: normal(x, AT * X0, ST**2), XT)
    return left, -((XT - AT * X0) / ST**2) * normal(XT, AT * X0, ST**2)


@line(
    "5.33",
    "∇ log p(x_t) = −(x_t − α_t E[x_0|x_t])/σ_t²",
    "(5.32) in (5.31): q(x_t|x_0) p(x_0)/p(x_t) is the law of x_0 given x_t",
)
def score_by_the_mean() -> Sides:
    return DATA.score(XT, AT, ST), -(XT - AT * MEAN) / ST**2


@line("5.34", "E[x_0|x_t] = (x_t + σ_t² ∇ log p(x_t))/α_t", "(5.33) for the mean: Tweedie")
def tweedie() -> Sides:
    return MEAN, (XT + ST**2 * DATA.score(XT, AT, ST)) / AT


@line("5.35", "E[ε|x_t] = −σ_t ∇ log p(x_t)", "ε = (x_t − α_t x_0)/σ_t in the mean given x_t")
def noise_by_the_score() -> Sides:
    noise = (column(XT) - column(AT) * GRID) / column(ST)
    return over_grid(GIVEN * noise) / over_grid(GIVEN), -ST * DATA.score(XT, AT, ST)


@line(
    "5.36",
    "E[(x_0 − x̂_0)²] = E[(x_0 − E[x_0|x_t])²] + E[(E[x_0|x_t] − x̂_0)²]",
    "the mixed term is 0 given x_t: the best prediction is the mean of (5.34)",
)
def best_prediction() -> Sides:
    law, guess = GIVEN / column(over_grid(GIVEN)), np.array([0.1, 0.2, -0.3])
    left = over_grid(law * (GRID - column(guess)) ** 2)
    return left, over_grid(law * (GRID - column(MEAN)) ** 2) + (MEAN - guess) ** 2


# Continuous time: data N(0, VAR), γ(t) from START to END on two paths


VAR, START, END = 0.3, -6.0, 5.0


def straight(t: Array) -> Array:
    return START + (END - START) * t


def curved(t: Array) -> Array:
    return START + (END - START) * (0.4 * t + 0.6 * t**3)


def snr(t: Array) -> Array:
    return exp(-curved(t))


def data_error(t: Array) -> Array:
    """E(x_0 − x̂_0)² of the best prediction at t."""
    return VAR / (1 + VAR * snr(t))


def noise_error(gamma: Array) -> Array:
    """E(ε − ε̂)² of the best prediction at minus log SNR gamma."""
    return VAR * exp(-gamma) / (1 + VAR * exp(-gamma))


def sum_of_terms(count: int) -> float:
    """Σ ½ (SNR_s − SNR_t) E(x_0 − x̂_0)² on `count` equal steps."""
    grid = np.linspace(0.0, 1.0, count + 1)
    return float((0.5 * (snr(grid[:-1]) - snr(grid[1:])) * data_error(grid[1:])).sum())


def limit(f: object, start: int = 512, order: int = 8) -> float:
    """The limit of f(T) = c + c_1/T + c_2/T² + … by Richardson's extrapolation."""
    values = [f(start << i) for i in range(order)]  # type: ignore[operator]
    for k in range(1, order):
        values = [b + (b - a) / (2**k - 1) for a, b in zip(values, values[1:], strict=False)]
    return float(values[0])


@line(
    "5.37",
    "lim_{T→∞} Σ_t ½ (SNR_s − SNR_t) E[(x_0 − x̂_0)²] = −½ ∫ SNR′(t) E[(x_0 − x̂_0)²] dt",
    "s = t − 1/T: a sum of differences becomes an integral",
    tolerance=DERIVATION_LIMIT,
)
def continuous_time() -> Sides:
    def term(t: Array) -> Array:
        return slope(snr, t) * data_error(t)

    return limit(sum_of_terms), -0.5 * sum(
        between(term, a, a + 0.125) for a in np.linspace(0.0, 0.875, 8)
    )


@line(
    "5.38",
    "−½ SNR′(t) E[(x_0 − x̂_0)²] = ½ γ′(t) E[(ε − ε̂)²] for γ = −log SNR",
    "SNR′ = −γ′ SNR, and (5.24)",
)
def in_terms_of_gamma() -> Sides:
    t = np.array([0.1, 0.5, 0.9])
    left = -0.5 * slope(snr, t) * data_error(t)
    return left, 0.5 * slope(curved, t) * noise_error(curved(t))


@line(
    "5.39",
    "½ ∫ γ′(t) E[(ε − ε̂)²] dt = ½ ∫_{γ(0)}^{γ(1)} E[(ε − ε̂)²] dγ",
    "the error depends on t through γ only: the path between the ends has no influence",
)
def only_the_ends() -> Sides:
    def along(path: object) -> float:
        pieces = np.linspace(0.0, 0.875, 8)
        f = lambda t: slope(path, t) * noise_error(path(t))  # type: ignore # noqa: E731
        return float(sum(between(f, a, a + 0.125) for a in pieces))

    middle = 0.5 * (START + END)
    ends = between(noise_error, np.array([START, middle]), np.array([middle, END])).sum()
    return 0.5 * np.array([along(straight), along(curved)]), np.full(2, 0.5 * ends)


@line(
    "5.40",
    "½ ∫_{γ(0)}^{γ(1)} E[(ε − ε̂)²] dγ = ½ log(1 + v e^{−γ(0)}) − ½ log(1 + v e^{−γ(1)})",
    "data N(0, v), whose best ε̂ has the error v/(v + e^γ): the information that x at t = 0 has"
    " about x_0, minus that at t = 1",
)
def information_of_the_noise_levels() -> Sides:
    middle = 0.5 * (START + END)
    ends = between(noise_error, np.array([START, middle]), np.array([middle, END])).sum()
    return 0.5 * ends, 0.5 * log(1 + VAR * exp(-START)) - 0.5 * log(1 + VAR * exp(-END))
