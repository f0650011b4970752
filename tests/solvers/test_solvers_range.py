"""Plans whose steps float32 can't hold are refused before the first network call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastdiff import Sampler, Schedule
from fastdiff.sampling.requests import Request
from fastdiff.solvers import SOLVERS, make_plan
from fastdiff.table import INDEX

STEEP = Schedule.linear(1000, beta_end=0.5)  # alpha ends at 1e-68
ORDINARY = {
    "linear": Schedule.linear(1000),
    "scaled_linear": Schedule.scaled_linear(1000),
    "cosine": Schedule.cosine(1000),
    "flow": Schedule.flow(1000),
    "vp": Schedule.vp(1000),
    "karras": Schedule.karras(1000),
    "zero": Schedule.linear(1000).rescale_zero_terminal_snr(),
}


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x * 0.5


@pytest.mark.parametrize("clip_range", [None, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "score"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "euler", "heun", "dpm++2m", "unipc", "lcm"])
def test_a_division_by_an_alpha_below_float32(
    solver: str, prediction_type: str, clip_range: float | None
) -> None:
    settings: dict[str, Any] = {
        "solver": solver,
        "steps": 9,
        "prediction_type": prediction_type,
        "clip_range": clip_range,
    }
    called = []

    def counting(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        called.append(t)
        return network(x, t)

    sampler = Sampler(counting, STEEP, **settings)
    expected = "fastdiff.Sampler.sample: expected a plan that float32 can hold, got"
    with pytest.raises(ValueError, match=expected):
        sampler.sample((2, 3), seed=0)
    with pytest.raises(ValueError, match=expected):
        list(sampler.serve([Request(0, 0)], (3,)))
    with pytest.raises(ValueError, match=expected):
        list(sampler.stream(2, (3,), seed=0))
    assert not called
    assert torch.isfinite(sampler.sample((2, 3), seed=0, dtype=torch.float64)).all()
    # the rows before the start don't count
    late = sampler.sample(x_T=torch.zeros(2, 3), start=8, seed=0)
    assert torch.isfinite(late).all()


def test_a_representable_alpha_runs() -> None:
    """At the border of float32, with a factor for the size of its inputs."""
    for alpha, good in ((1e-36, True), (1e-39, False)):
        schedule = Schedule.from_alphas_cumprod([0.9, 0.5, alpha**2])
        sampler = Sampler(network, schedule, solver="ddim", steps=3)
        if good:
            assert torch.isfinite(sampler.sample((2, 3), seed=0)).all()
        else:
            with pytest.raises(ValueError, match="float32 can hold"):
                sampler.sample((2, 3), seed=0)


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_plans_are_all_held(name: str) -> None:
    schedule, made = ORDINARY[name], 0
    for solver in SOLVERS:
        for spacing in ("trailing", "leading", "beta", "karras", "ays"):
            for prediction_type in ("epsilon", "x0", "v", "score", "flow"):
                for steps in (1, 20):
                    try:
                        plan = make_plan(
                            schedule,
                            solver=solver,
                            steps=steps,
                            timestep_spacing=spacing,
                            prediction_type=prediction_type,
                        )
                    except ValueError:
                        continue
                    made += 1
                    assert plan.beyond_float32() is None, (solver, spacing, prediction_type, steps)
    assert made > 500


def test_outputs_of_a_row_count() -> None:
    plan = make_plan(Schedule.linear(1000), solver="dpm++3m", steps=5)
    for column, name in (("x.s1", "the next x"), ("s1.x0", "slot 1"), ("x.z", "the next x")):
        table = plan.table.copy()
        table[2, INDEX[column]] = 1e38
        changed = type(plan)(table)
        beyond = changed.beyond_float32()
        assert beyond is not None and beyond.startswith(f"{name} of the order of")
        assert "in row 2" in beyond
        assert changed.beyond_float32(3) is None
    assert np.isfinite(plan.table).all()


@pytest.mark.parametrize("prediction_type", ["v", "edm", "flow", "x0"])
@pytest.mark.parametrize("solver", ["ipndm", "pndm", "dpm2m"])
def test_rounding_errors_that_grow_beyond_float32(solver: str, prediction_type: str) -> None:
    """Coefficients of 1e6 that nearly cancel in every row: a multistep method in eps."""
    settings = {"solver": solver, "steps": 30, "prediction_type": prediction_type}
    sampler = Sampler(network, STEEP, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float32 can hold, got rounding errors that grow beyond"):
        sampler.sample((2, 3), seed=0)
    assert torch.isfinite(sampler.sample((2, 3), seed=0, dtype=torch.float64)).all()
    less = Sampler(network, Schedule.linear(1000), **settings)  # type: ignore[arg-type]
    assert torch.isfinite(less.sample((2, 3), seed=0)).all()


def test_long_ordinary_plans_are_held() -> None:
    """Their rows might grow by the sizes of the coefficients alone; executed, they do not."""
    for solver in ("ipndm", "lms", "deis", "dpm++3m", "unipc", "sa"):
        for prediction_type in ("epsilon", "v"):
            plan = make_plan(
                Schedule.linear(1000), solver=solver, steps=1000, prediction_type=prediction_type
            )
            assert plan.beyond_float32() is None
            assert plan.beyond_float32(500) is None
