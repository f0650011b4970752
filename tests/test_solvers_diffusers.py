"""Every solver over full loops against diffusers 0.42.1, with diffusers lifted to float64.

The peer's module is given a `torch` and a `numpy` whose float32 is float64 before its scheduler is made, since tables and
several steps are cast; both sides have its table of noise levels, and what remains is the formula. The network ignores
the time, so that its rounding of interpolated timesteps plays no part. diffusers' sigma-space schedulers keep x/alpha.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff import Schedule, ops, randn
from fastdiff.solvers import make_plan
from fastdiff.solvers.grids import CLEAN, Time

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed here (make test installs it)")
pytest.importorskip("scipy", reason="diffusers' LMS needs scipy")

# the lifted `numpy` meets diffusers' own conversions
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning"),
]

SHAPE = (2, 3, 5, 4)
BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = Schedule.scaled_linear(1000)


class Lifted:
    """A module whose float32 is its float64."""

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


def lifted(name: str, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Any:
    """A diffusers scheduler that computes in float64."""
    cls = getattr(diffusers, name)
    module = importlib.import_module(cls.__module__)
    monkeypatch.setattr(module, "torch", Lifted(torch))
    monkeypatch.setattr(module, "np", Lifted(np))
    return cls(**config)


def network(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.7 * x + 0.1) - 0.2 * x


def times_of(sigmas: torch.Tensor, timesteps: torch.Tensor) -> list[Time]:
    """The points of diffusers' table of sigma/alpha, variance-preserving."""
    points = []
    for i, rho in enumerate(sigmas.double().tolist()):
        if rho == 0:
            points.append(CLEAN)
            continue
        alpha = 1 / math.sqrt(1 + rho * rho)
        t = float(timesteps[i]) if i < len(timesteps) else 0.0
        points.append(Time(t, alpha, rho * alpha, -2 * math.log(rho)))
    return points


def ours(solver: str, times: list[Time], start: torch.Tensor, kind: str, **options: Any) -> torch.Tensor:
    plan = make_plan(SCHEDULE, solver=solver, steps=len(times) - 1, times=times, prediction_type=kind, **options)
    x, table = start.clone(), torch.tensor(plan.table)
    slots = torch.zeros(max(plan.slots, 1), *SHAPE, dtype=torch.float64)
    for k in range(len(plan)):
        out = network(x) if plan.column("network")[k] else None
        row = torch.full((SHAPE[0],), k)
        ops.reverse_step(x, out, table, row, seed=3, used=plan.used, slots=slots, out=x, slots_out=slots)
    return x


def theirs(
    scheduler: Any, start: torch.Tensor, monkeypatch: pytest.MonkeyPatch, scaled: bool, draws: Iterator[int]
) -> torch.Tensor:
    """The loop of a pipeline. `scaled`: the scheduler keeps x/alpha; `draws`: the steps whose noise it is given."""
    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(
            module,
            "randn_tensor",
            lambda *_, **__: randn(SHAPE, seed=3, step=next(draws), stream=1, dtype=torch.float64),
        )
    x = start * math.sqrt(float(scheduler.sigmas[0]) ** 2 + 1) if scaled else start.clone()
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t))
        x = scheduler.step(out, t, x).prev_sample
    if scaled and float(scheduler.sigmas[-1]) > 0:
        x = x / math.sqrt(float(scheduler.sigmas[-1]) ** 2 + 1)
    return x


KINDS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
DPM = "DPMSolverMultistepScheduler"
NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
CASES = [
    # fastdiff's solver and options, diffusers' class and configuration, whether it keeps x/alpha
    ("dpm++1", {}, DPM, {"solver_order": 1}, False),
    ("dpm++2m", {}, DPM, {"solver_order": 2}, False),
    ("dpm++2m", {"solver_type": "heun"}, DPM, {"solver_order": 2, "solver_type": "heun"}, False),
    ("dpm++3m", {"as_published": True}, DPM, {"solver_order": 3}, False),
    ("dpm++2m_sde", {}, DPM, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}, False),
    ("dpm++2m_sde", {"solver_type": "heun"}, DPM,
     {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, False),
    # dpm++3m_sde is missing: diffusers has -½ where k-diffusion and the integral have +½ (test_solvers_order.py)
    ("dpm1", {}, DPM, {"solver_order": 1, **NOISE}, False),
    ("dpm2m", {}, DPM, {"solver_order": 2, **NOISE}, False),
    ("dpm3m", {"as_published": True}, DPM, {"solver_order": 3, **NOISE}, False),
    ("unipc", {"order": 1}, "UniPCMultistepScheduler", {"solver_order": 1}, False),
    ("unipc", {"order": 2}, "UniPCMultistepScheduler", {"solver_order": 2}, False),
    ("unipc", {"order": 3}, "UniPCMultistepScheduler", {"solver_order": 3}, False),
    ("unipc", {"order": 2, "solver_type": "bh1"}, "UniPCMultistepScheduler",
     {"solver_order": 2, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}, False),
    ("deis", {"order": 1}, "DEISMultistepScheduler", {"solver_order": 1}, False),
    ("deis", {"order": 2}, "DEISMultistepScheduler", {"solver_order": 2}, False),
    ("deis", {"order": 3}, "DEISMultistepScheduler", {"solver_order": 3}, False),
    ("euler", {}, "EulerDiscreteScheduler", {}, True),
    ("euler_ancestral", {}, "EulerAncestralDiscreteScheduler", {}, True),
    ("heun", {}, "HeunDiscreteScheduler", {}, True),
    ("lms", {}, "LMSDiscreteScheduler", {}, True),
    ("kdpm2", {}, "KDPM2DiscreteScheduler", {}, True),
    ("kdpm2_ancestral", {}, "KDPM2AncestralDiscreteScheduler", {}, True),
]  # fmt: skip


WITHOUT_X0 = ("EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver, options, name, config, scaled", CASES, ids=[f"{c[0]}{c[1] or ''}" for c in CASES])
def test_full_loops(
    solver: str, options: dict, name: str, config: dict, scaled: bool, kind: str, steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if kind == "x0" and name in WITHOUT_X0:
        pytest.skip("the peer does not know this prediction type")
    scheduler = lifted(name, monkeypatch, **BETAS, prediction_type=KINDS[kind], **config)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas
    assert sigmas.dtype == torch.float64
    if name.startswith(("Heun", "KDPM2")):
        sigmas = torch.cat([sigmas[:1], sigmas[1 : 2 * steps : 2]])  # interior levels stand there twice
    times = times_of(sigmas, scheduler.timesteps)
    start = randn(SHAPE, seed=1, dtype=torch.float64)
    draws = (
        itertools.count(1, 2) if name.startswith("KDPM2") else itertools.count()
    )  # KDPM2 draws after its second stage
    expected = theirs(scheduler, start, monkeypatch, scaled, draws)
    if not expected.isfinite().all():
        pytest.skip("the peer is not finite")
    got = ours(solver, times, start, kind, **options)
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max().clamp(min=1)
