"""Lines of docs/theory/hvae.md. x and two latents have three values each: all are enumerated.

Arrays have the axes (z_1, z_2), for one observed x.
"""

from __future__ import annotations

import numpy as np
from given import Array
from lines import Sides, line
from numpy import log


def kernels(seed: int, *shape: int) -> Array:
    """Positive numbers whose last axis sums to 1."""
    drawn = np.random.default_rng(seed).uniform(0.1, 1, shape)
    return drawn / drawn.sum(-1, keepdims=True)


P_X = kernels(0, 3, 3)[:, 0][:, None]  # p(x|z_1) of the observed x
P_1 = kernels(1, 3, 3).T  # p(z_1|z_2)
P_2 = kernels(2, 3)  # p(z_2)
JOINT = P_X * P_1 * P_2  # p(x, z_1, z_2)
EVIDENCE = JOINT.sum()
POSTERIOR = JOINT / EVIDENCE
Q_UP = kernels(3, 3)[:, None]  # q(z_1|x)
Q_UP_2 = kernels(4, 3, 3)  # q(z_2|z_1)
Q = Q_UP * Q_UP_2  # q(z_1, z_2|x)
Q_2 = Q.sum(0)  # q(z_2|x)
Q_1 = Q / Q_2  # q(z_1|z_2, x)


def under_q(values: Array) -> Array:
    return (Q * values).sum()


@line("4.1", "p(x) = E_q[p(x, z_{1:L})/q(z_{1:L}|x)]", "(2.2) with all latents as one")
def evidence_as_a_mean() -> Sides:
    return EVIDENCE, under_q(JOINT / Q)


@line(
    "4.2",
    "log p(x) − E_q[log p(x, z_{1:L}) − log q(z_{1:L}|x)] = D_KL(q(z_{1:L}|x)‖p(z_{1:L}|x))",
    "(2.10): the bound and its gap, for any number of levels",
)
def gap_of_all_levels() -> Sides:
    return log(EVIDENCE) - under_q(log(JOINT) - log(Q)), under_q(log(Q) - log(POSTERIOR))


@line(
    "4.3",
    "q(z_{1:L}|x) = Π_l q(z_l|z_{>l}, x)",
    "the chain rule of probability, from the top down; any encoder can be written so",
)
def from_the_top_down() -> Sides:
    return Q_UP * Q_UP_2, Q_1 * Q_2


@line(
    "4.4",
    "log p(x, z_{1:L}) − log q(z_{1:L}|x) = log p(x|z_{1:L})"
    " + Σ_l [log p(z_l|z_{>l}) − log q(z_l|z_{>l}, x)]",
    "(4.3), and the same for p: logarithms of products, level by level",
)
def log_ratio_by_levels() -> Sides:
    levels = (log(P_1) - log(Q_1)) + (log(P_2) - log(Q_2))
    return log(JOINT) - log(Q), log(P_X) + levels


@line(
    "4.5",
    "E_q[log q(z_l|z_{>l}, x) − log p(z_l|z_{>l})] = E_q[D_KL(q(z_l|z_{>l}, x)‖p(z_l|z_{>l}))]",
    "first the mean over z_l given z_{>l}, then over z_{>l}",
)
def a_level_is_a_mean_of_divergences() -> Sides:
    inner = (Q_1 * (log(Q_1) - log(P_1))).sum(0)  # for each z_2
    return under_q(log(Q_1) - log(P_1)), (Q_2 * inner).sum()


@line(
    "4.6",
    "ELBO = E_q[log p(x|z_{1:L})] − Σ_l E_q[D_KL(q(z_l|z_{>l}, x)‖p(z_l|z_{>l}))]",
    "(4.4) in the mean, with (4.5)",
)
def bound_by_levels() -> Sides:
    first, second = (Q_1 * log(Q_1 / P_1)).sum(0), (Q_2 * log(Q_2 / P_2)).sum()
    return under_q(log(JOINT) - log(Q)), under_q(log(P_X)) - ((Q_2 * first).sum() + second)


@line(
    "4.7",
    "D_KL(q(z_{1:L}|x)‖p(z_{1:L}|x)) = Σ_l E_q[D_KL(q(z_l|z_{>l}, x)‖p(z_l|z_{>l}, x))]",
    "the chain rule of the divergence: each level adds its own part to the gap",
)
def chain_rule_of_the_gap() -> Sides:
    top = POSTERIOR.sum(0)  # p(z_2|x)
    first, second = (Q_1 * log(Q_1 / (POSTERIOR / top))).sum(0), (Q_2 * log(Q_2 / top)).sum()
    return under_q(log(Q) - log(POSTERIOR)), (Q_2 * first).sum() + second


@line(
    "4.8",
    "log p(x, z_{1:L}) − log q(z_{1:L}|x) = log p(x|z_1) + log p(z_L) − log q(z_1|x)"
    " + Σ_l [log p(z_l|z_{l+1}) − log q(z_{l+1}|z_l)]",
    "the Markovian q(z_{1:L}|x) = q(z_1|x) Π_l q(z_{l+1}|z_l): every term has two neighbours",
)
def markovian_log_ratio() -> Sides:
    ends = log(P_X) + log(P_2) - log(Q_UP)
    return log(JOINT) - log(Q), ends + (log(P_1) - log(Q_UP_2))


@line(
    "4.9",
    "log p(x, z_{1:L}) − log q(z_{1:L}|x) = log p(x) for q = p(z_{1:L}|x)",
    "(2.3): for every draw, not in the mean only",
)
def with_the_posterior_every_draw() -> Sides:
    return log(JOINT) - log(POSTERIOR), np.full((3, 3), log(EVIDENCE))
