"""Lines of docs/theory/guidance.md. The two components of a mixture are the classes y = 0 and 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from given import Array, Mixture, log_normal, slope
from lines import Sides, line
from numpy import log

from fastdiff import Schedule, prediction

DATA = Mixture()
SCHEDULE = Schedule.cosine(50)
T = np.array([12, 25, 40])
A, SIG = SCHEDULE.alpha[T], SCHEDULE.sigma[T]
X, Y = np.array([0.3, -0.2, 0.4]), 1  # x_t at each noise level, and the label
GAMMA = np.array([3.0, -1.5, 0.4])


def log_class(x: Any) -> Any:
    """log p(y|x_t)."""
    parts = DATA.parts(x, A, SIG)
    return log(parts[..., Y]) - log(parts.sum(-1))


def log_given(x: Any, label: int = Y) -> Any:
    """log p(x_t|y)."""
    return log_normal(x, A * DATA.means[label], A**2 * DATA.variance + SIG**2)


def log_p(x: Any) -> Any:
    return DATA.log(x, A, SIG)


PRIOR = DATA.shares[Y]  # p(y)
CLASS = slope(log_class, X)  # ∇ log p(y|x_t)
GIVEN, FREE = slope(log_given, X), slope(log_p, X)  # ∇ log p(x_t|y) and ∇ log p(x_t)


def to(kind: str, score: Array) -> Array:
    """A score as another prediction."""
    return prediction.convert("score", kind, score, X, A, SIG)


@line("8.1", "log p(x_t|y) = log p(x_t) + log p(y|x_t) − log p(y)", "Bayes' rule")
def bayes() -> Sides:
    return log_given(X), log_p(X) + log_class(X) - log(PRIOR)


@line("8.2", "∇ log p(x_t|y) = ∇ log p(x_t) + ∇ log p(y|x_t)", "p(y) does not depend on x_t")
def scores_add() -> Sides:
    return slope(log_given, X), slope(log_p, X) + slope(log_class, X)


@line(
    "8.3",
    "∇ log p(x_t) = Σ_y p(y|x_t) ∇ log p(x_t|y)",
    "∇ log of p(x_t) = Σ_y p(x_t|y) p(y): the score without a label is the mean of those with one",
)
def mean_of_the_scores() -> Sides:
    one = np.exp(log_class(X))
    return slope(log_p, X), one * GIVEN + (1 - one) * slope(lambda x: log_given(x, 0), X)


@line(
    "8.4",
    "∇ log p(y|x_t) = (1 − p(y|x_t)) (∇ log p(x_t|y) − ∇ log p(x_t|y′)) for two classes y, y′",
    "(8.3) in (8.2): where the label is certain, the classifier has no gradient",
)
def gradient_of_a_classifier() -> Sides:
    other = slope(lambda x: log_given(x, 0), X)
    return slope(log_class, X), (1 - np.exp(log_class(X))) * (GIVEN - other)


@line(
    "8.5",
    "E[x_0|x_t, y] − E[x_0|x_t] = (σ_t²/α_t) ∇ log p(y|x_t)",
    "(5.34) with and without y, and (8.2)",
)
def move_of_the_data() -> Sides:
    return to("x0", GIVEN) - to("x0", FREE), SIG**2 / A * CLASS


@line(
    "8.6",
    "E[ε|x_t, y] − E[ε|x_t] = −σ_t ∇ log p(y|x_t)",
    "(5.35) with and without y, and (8.2)",
)
def move_of_the_noise() -> Sides:
    return to("epsilon", GIVEN) - to("epsilon", FREE), -SIG * CLASS


@line(
    "8.7",
    "∇ log p(x_t) + γ ∇ log p(y|x_t) = γ ∇ log p(x_t|y) + (1 − γ) ∇ log p(x_t)",
    "(8.2) solved for the classifier: two scores instead",
)
def without_a_classifier() -> Sides:
    return FREE + GAMMA * CLASS, GAMMA * GIVEN + (1 - GAMMA) * FREE


@line(
    "8.8",
    "γ ∇ log p(x_t|y) + (1 − γ) ∇ log p(x_t) = ∇ log(p(x_t|y)^γ p(x_t)^(1−γ))",
    "at one noise level; the noised density of another level is not of this form (errata, entry 9)",
)
def tilted_density() -> Sides:
    def tilted(x: Any) -> Any:
        return log(np.exp(log_given(x)) ** GAMMA * np.exp(log_p(x)) ** (1 - GAMMA))

    return GAMMA * GIVEN + (1 - GAMMA) * FREE, slope(tilted, X)


@line(
    "8.9",
    "ε̂ + γ (ε̂_y − ε̂) = −σ_t (∇ log p(x_t) + γ ∇ log p(y|x_t))",
    "(8.6): what the sampler computes of its two outputs ε̂ = E[ε|x_t] and ε̂_y = E[ε|x_t, y]",
)
def guided_output() -> Sides:
    free, given = to("epsilon", FREE), to("epsilon", GIVEN)
    return free + GAMMA * (given - free), -SIG * (FREE + GAMMA * CLASS)


@line(
    "8.10",
    "γ ∇ log N(x; m_1, V) + (1 − γ) ∇ log N(x; m_0, V) = ∇ log N(x; m_0 + γ (m_1 − m_0), V)",
    "equal variances: the guided mean moves on the line through both means, beyond m_1 for γ > 1",
)
def guided_normals() -> Sides:
    m0, m1, v = 0.2, 0.8, A**2 * 0.25 + SIG**2

    def field(mean: Any) -> Array:
        return slope(lambda x: log_normal(x, A * mean, v), X)

    return GAMMA * field(m1) + (1 - GAMMA) * field(m0), field(m0 + GAMMA * (m1 - m0))
