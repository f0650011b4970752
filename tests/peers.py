"""diffusers' schedulers in float64, the loops of their pipelines, and the same loops with a plan.

Before a scheduler of the peer is made, its module gets a `torch` and a `numpy` that replace float32
by float64, because it casts tables and results. Both sides use the peer's table of noise levels, so
the comparison is one of formulas. The network ignores the time: the rounding of interpolated
timesteps has no effect.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import ops, randn
from fastdiff.schedule import CLEAN, Time, on_curve
from fastdiff.solvers import Plan

SHAPE = (2, 3, 5, 4)
KINDS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
# relative to the largest value: float64 roundings of up to a thousand steps, and of differences of
# predictions
TOLERANCE = 1e-9


class Lifted:
    """A module in which float32 is replaced by float64."""

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


def lifted(
    name: str, monkeypatch: pytest.MonkeyPatch, draws: Iterator[int] | None = None, **config: Any
) -> Any:
    """Returns a diffusers scheduler that computes in float64.

    `draws` are the steps of the noise that it uses, one after the other.
    """
    import diffusers

    cls = getattr(diffusers, name)
    module = importlib.import_module(cls.__module__)
    monkeypatch.setattr(module, "torch", Lifted(torch))
    monkeypatch.setattr(module, "np", Lifted(np))
    if hasattr(module, "randn_tensor"):
        steps = itertools.count() if draws is None else draws
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise(next(steps)))
    return cls(**config)


def noise(step: int) -> Tensor:
    """Returns the noise of a plan's row with noise index `step`."""
    return randn(SHAPE, seed=3, step=step, stream=1, dtype=torch.float64)


def start() -> Tensor:
    return randn(SHAPE, seed=1, dtype=torch.float64)


def network(x: Tensor) -> Tensor:
    return torch.tanh(0.7 * x + 0.1) - 0.2 * x


def learned(x: Tensor) -> Tensor:
    """A network that also outputs a learned variance, in [-1, 1]."""
    return torch.cat([network(x), torch.sin(3 * x)], dim=1)


def times_of(sigmas: Tensor, timesteps: Tensor, space: str = "vp") -> list[Time]:
    """Returns the points of a diffusers table: of sigma/alpha, or of sigma in the space `flow`."""
    points = []
    for i, level in enumerate(sigmas.double().tolist()):
        t = float(timesteps[i]) if i < len(timesteps) else 0.0
        if level == 0:
            points.append(CLEAN)
        elif space == "flow":
            log_snr = 2 * (math.log1p(-level) - math.log(level)) if level < 1 else -math.inf
            points.append(Time(t, 1 - level, level, log_snr))
        else:
            points.append(Time(t, *on_curve(space, -2 * math.log(level)), -2 * math.log(level)))
    return points


def run(plan: Plan, x: Tensor, model: Callable[[Tensor], Tensor] = network) -> Tensor:
    """Runs the plan's loop, one launch per row."""
    x, table = x.clone(), torch.tensor(plan.table)
    slots = torch.zeros(max(plan.slots, 1), *x.shape, dtype=x.dtype)
    for k in range(len(plan)):
        out = model(x * float(plan.column("input_scale")[k])) if plan.column("network")[k] else None
        row = torch.full((x.shape[0],), k)
        ops.reverse_step(
            x, out, table, row, seed=3, used=plan.used, slots=slots, out=x, slots_out=slots
        )
    return x


def loop(
    scheduler: Any,
    x: Tensor,
    model: Callable[[Tensor], Tensor] = network,
    timesteps: Sequence[Any] | None = None,
    **arguments: Any,
) -> Tensor:
    """Runs the loop of a pipeline."""
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for t in scheduler.timesteps if timesteps is None else timesteps:
        x = scheduler.step(model(scaled(x, t)), t, x, **arguments).prev_sample
    return x


def close(got: Tensor, expected: Tensor) -> None:
    """Compares relative to the largest value, at least 1; skips if the peer's result overflowed."""
    if not expected.isfinite().all():
        pytest.skip("the peer is not finite")
    error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1))
    assert error <= TOLERANCE, error
