"""Prediction types: conversions invert each other and agree with the papers' definitions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import BOUND, CONVERSION
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdiff import Schedule, ops, prediction
from fastdiff.solvers import make_plan

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
    "edm": SIGMA * X0 - ALPHA * EPS,
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


@pytest.mark.parametrize(
    "kind, end", [("epsilon", 0.0), ("score", 0.0), ("x0", 1.0), ("score", 1.0)]
)
def test_epsilon_x0_and_the_score_are_undefined_at_an_end(kind: str, end: float) -> None:
    """Of epsilon, x0, v and the score only v is defined at clean data and at pure noise."""
    with pytest.raises(
        ValueError, match="expected a prediction type that is defined at (pure noise|clean data)"
    ):
        prediction.Parametrization(kind).at(end, 1.0 - end)
    prediction.Parametrization("v").at(end, 1.0 - end)


@pytest.mark.parametrize("as_given", [float, lambda v: np.full((2, 1), v), torch.tensor])
@pytest.mark.parametrize("alpha, sigma", [(1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("source, destination", PAIRS)
def test_at_the_ends_a_conversion_is_right_or_refused(
    source: str, destination: str, alpha: float, sigma: float, as_given: Any
) -> None:
    """Refused exactly where the destination is infinite or takes the half that x_t does not have.

    At alpha = 0 the state is eps and at sigma = 0 it is x0; an output determines the other one
    unless its own factor of it is 0.
    """
    x0, eps, end = 0.3, -1.2, "alpha" if alpha == 0 else "sigma"
    values = {
        "epsilon": eps,
        "x0": x0,
        "v": alpha * eps - sigma * x0,
        "score": -eps if sigma else float("inf"),
        "flow": eps - x0,
        "edm": sigma * x0 - alpha * eps,
    }
    has_both = source in ("v", "flow", "edm")
    half = ("epsilon", "score") if alpha == 0 else ("x0",)
    defined = source == destination or (
        (has_both or destination in half) and np.isfinite(values[destination])
    )
    defined = defined or (source == "epsilon" and alpha == 1 and destination != "score")
    defined = defined or (source == "x0" and alpha == 0)
    given = values[source] if np.isfinite(values[source]) else 1.0
    arguments = (given, alpha * x0 + sigma * eps, as_given(alpha), as_given(sigma))
    if not defined:
        with pytest.raises(ValueError, match=f"prediction.convert: expected {end} > 0, got 0"):
            prediction.convert(source, destination, *arguments)
        return
    got = prediction.convert(source, destination, *arguments)
    expected = given if source == destination else values[destination]
    assert np.asarray(got) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_a_conversion_reads_no_fake_tensor_and_no_device() -> None:
    def convert(alpha: torch.Tensor) -> Any:
        return prediction.convert("epsilon", "x0", alpha, alpha, alpha, 1.0)

    with FakeTensorMode():
        assert convert(torch.zeros(2)).shape == (2,)
    assert convert(torch.zeros(2, device="meta")).shape == (2,)
    assert torch.func.vmap(convert)(torch.zeros(2)).isnan().all()
    compiled = torch.compile(convert, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(2)).isnan().all()


@pytest.mark.parametrize("kind", DEFINED)
def test_a_step_is_the_same_for_every_type(kind: str, backend: str) -> None:
    """The kernel's conversion gives the same DDIM step for every type, at every timestep.

    x_s = alpha_s x0 + sigma_s eps by the definitions, in float64.
    """
    schedule = Schedule.linear(200)
    plan = make_plan(
        schedule, solver="ddim", steps=200, prediction_type=kind, timestep_spacing="trailing"
    )
    t = torch.tensor(plan.column("t")[:-1]).long()
    x0, eps = ops.randn((2, 200, 3), seed=4, dtype=torch.float64)
    alpha, sigma = (torch.tensor(v)[t, None] for v in (schedule.alpha, schedule.sigma))
    output = prediction.target(kind, x0, eps, alpha, sigma)
    got = ops.reverse_step(
        alpha * x0 + sigma * eps, output, torch.tensor(plan.table), torch.arange(200)
    )
    before = [
        torch.cat([v[1:], torch.full((1, 1), end, dtype=torch.float64)])
        for v, end in ((alpha, 1.0), (sigma, 0.0))
    ]
    assert isinstance(got, torch.Tensor)
    # eps from x0 is divided by sigma (down to 0.01), x0 from the others by alpha (down to 0.36)
    torch.testing.assert_close(got, before[0] * x0 + before[1] * eps, rtol=BOUND, atol=BOUND)


@pytest.mark.parametrize(
    "alias, name", [("sample", "x0"), ("v_prediction", "v"), ("epsilon", "epsilon")]
)
def test_aliases(alias: str, name: str) -> None:
    assert prediction.normalize(alias) == name
