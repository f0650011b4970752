"""What runs outside `Sampler` share: checked arguments, an initial state, its noise, the network.

The samplers of this folder and of fastdiff.theory make a `PreparedRun` from the arguments of their
callers. Then they either step themselves, with `run.call` as the network, or `follow` a plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import ops
from ...schedule import Schedule, Time
from ...solvers import Plan
from ..model_call import ModelCall
from ..stepper import run_plan

Model = Callable[..., Any]


class PreparedRun:
    """A run outside `Sampler`, ready to begin: its initial state, noise and network.

    Args:
        where: the name that error messages begin with.
        model, schedule: see `Sampler`.
        point: the point of the schedule at which the run begins.
        shape, x_T, seed, sample_ids, dtype: see `Sampler.sample`; either shape or x_T is passed.
        options: further arguments of `ModelCall`: prediction_type, cond, uncond, guidance_scale and
            so on. clip_range is None where the caller's plan clips.

    Attributes:
        x: [B, …] the state at the point. shape, device, dtype: its properties.
        seed, ids: of the noise contract.
        call: the network as a `ModelCall`.

    Raises:
        ValueError, TypeError: for arguments outside these.
    """

    def __init__(
        self,
        where: str,
        model: Model,
        schedule: Schedule,
        point: Time,
        *,
        shape: Sequence[int] | None = None,
        x_T: Tensor | None = None,
        seed: int | None = None,
        sample_ids: Tensor | Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ):
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"{where}: expected a fastdiff.Schedule, got {type(schedule).__name__}."
            )
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{where}: expected dtype float32 or float64, got {dtype}.")
        if (shape is None) == (x_T is None):
            raise ValueError(f"{where}: expected either shape [B, …] or x_T. Give one of them.")
        self.call = ModelCall(model, schedule, where=where, **options)
        if x_T is None:
            device = self.call.network.device
        else:
            device, shape = x_T.device, x_T.shape
        self.shape, self.device, self.dtype = tuple(shape or ()), device, dtype
        self.seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
        ids = torch.arange(self.shape[0]) if sample_ids is None else torch.as_tensor(sample_ids)
        self.ids = ids.to(device)
        if x_T is None:
            x = ops.randn(
                self.shape, seed=self.seed, sample_ids=self.ids, dtype=dtype, device=device
            ) * schedule.prior_std(point)
        else:
            x = x_T.to(dtype)
        self.x = x

    def follow(
        self,
        plan: Plan,
        noise: Callable[[int], Tensor] | None = None,
        correct: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The state [B, …] after the rows of a plan; noise and correct: see `run_plan`."""
        times: list[Any] = plan.column("t").tolist()
        if self.call.own_time:
            assert plan.levels is not None
            times = [point(plan, row) for row in range(len(plan))]
        table = self.call.times(times, self.x.device)

        def predict(row: int, x: Tensor) -> Tensor:
            return self.call(x, table[row].expand(len(x)))

        return run_plan(
            plan, predict, self.x, seed=self.seed, sample_ids=self.ids, noise=noise, correct=correct
        )


def ends(schedule: Schedule, sigma_max: float | None, sigma_min: float | None) -> tuple[Time, Time]:
    """(noisiest, cleanest) point of a run: those of the noise levels sigma_max and sigma_min, by
    default the schedule's noisiest point with some signal and its cleanest point.

    Raises ValueError and TypeError for other levels and schedules.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(
            "fastdiff.sampling.adaptive: expected a fastdiff.Schedule, got"
            f" {type(schedule).__name__}."
        )
    for name, value in (("sigma_max", sigma_max), ("sigma_min", sigma_min)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"fastdiff.sampling.adaptive: expected {name} > 0, got {value!r}.")
    last = int(np.flatnonzero(np.isfinite(schedule.log_snr))[-1])
    high = schedule.at(last) if sigma_max is None else schedule.at_log_snr(-2 * math.log(sigma_max))
    low = schedule.at(0) if sigma_min is None else schedule.at_log_snr(-2 * math.log(sigma_min))
    if not high.rho > low.rho:
        raise ValueError(
            f"fastdiff.sampling.adaptive: expected sigma_max > sigma_min, got {high.rho:g} and"
            f" {low.rho:g}."
        )
    return high, low


def point(plan: Plan, row: int) -> Time:
    """The point of the schedule of the state before a row of a plan; row len(plan) is the end."""
    assert plan.levels is not None
    alpha, sigma = (float(v) for v in plan.levels[row])
    log_snr = (
        2 * (math.log(alpha) - math.log(sigma))
        if alpha and sigma
        else math.inf
        if alpha
        else -math.inf
    )
    return Time(float(plan.column("t")[row]), alpha, sigma, log_snr)
