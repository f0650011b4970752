"""Prediction types: all conversions are inverse to one another and agree with the definitions of their papers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tolerances import CONVERSION

from fastdiff import prediction

RANDOM = np.random.default_rng(0)
LEVELS = np.concatenate([[1e-6, 1 - 1e-6], RANDOM.uniform(1e-6, 1 - 1e-6, 200)])
X0, EPS = RANDOM.standard_normal((2, len(LEVELS)))
ALPHA, SIGMA = np.sqrt(LEVELS), np.sqrt(1 - LEVELS)
X_T = ALPHA * X0 + SIGMA * EPS
DEFINED = {
    "epsilon": EPS,
    "x0": X0,
    "v": ALPHA * EPS - SIGMA * X0,
    "score": -(X_T - ALPHA * X0) / SIGMA**2,  # the gradient of ln N(x_t; alpha x0, sigma² I)
    "flow": EPS - X0,
}
PAIRS = list(itertools.product(DEFINED, DEFINED))


@pytest.mark.parametrize("source, destination", PAIRS)
def test_every_pair_converts(source: str, destination: str) -> None:
    got = prediction.convert(source, destination, DEFINED[source], X_T, ALPHA, SIGMA)
    # relative to the largest operand the conversion divides by: alpha or sigma down to 1e-3
    scale = np.abs(DEFINED[destination]) + 1 / (ALPHA * SIGMA)
    assert (np.abs(got - DEFINED[destination]) / scale).max() < CONVERSION


@pytest.mark.parametrize("source, destination", PAIRS)
def test_round_trips(source: str, destination: str) -> None:
    there = prediction.convert(source, destination, DEFINED[source], X_T, ALPHA, SIGMA)
    back = prediction.convert(destination, source, there, X_T, ALPHA, SIGMA)
    scale = np.abs(DEFINED[source]) + 1 / (ALPHA * SIGMA)
    assert (np.abs(back - DEFINED[source]) / scale).max() < CONVERSION


@pytest.mark.parametrize("alpha, sigma", [(1.0, 0.0), (0.0, 1.0)])
def test_v_is_finite_at_both_ends(alpha: float, sigma: float) -> None:
    x0, eps = 0.3, -1.2
    x_t, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
    a, b = prediction.to_x0_coefficients("v", alpha, sigma)
    c, d = prediction.to_eps_coefficients("v", alpha, sigma)
    assert (a * x_t + b * v, c * x_t + d * v) == (x0, eps)


@pytest.mark.parametrize("alias, name", [("sample", "x0"), ("v_prediction", "v"), ("epsilon", "epsilon")])
def test_aliases(alias: str, name: str) -> None:
    assert prediction.normalize(alias) == name
