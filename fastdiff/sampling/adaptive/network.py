"""The names of a network's calls that `fastdiff.theory` still uses; new code uses `ModelCall`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..model_call import ModelCall


class Network:
    """A `ModelCall` under its former names."""

    def __init__(
        self,
        model: Any,
        schedule: Any,
        prediction_type: Any,
        clip_range: float | None,
        cond: Mapping[str, Any] | None,
        uncond: Mapping[str, Any] | None,
        gamma: float | Tensor,
        *,
        where: str = "fastdiff.sampling.adaptive",
        fractional_times: bool = False,
    ):
        self.call = ModelCall(
            model,
            schedule,
            prediction_type,
            cond=cond,
            uncond=uncond,
            guidance_scale=gamma,
            clip_range=clip_range,
            where=where,
            fractional_times=fractional_times,
        )
        self.model, self.schedule, self.where = self.call.model, schedule, where
        self.parametrization, self.own = self.call.parametrization, self.call.own_time
        self.time = self.call.time

    def part(self, rows: Tensor, batch: int) -> Network:
        result = object.__new__(Network)
        vars(result).update(vars(self), call=self.call.part(rows, batch))
        return result

    def output(self, x: Tensor, times: Sequence[float]) -> Tensor:
        return self.call(x, times)

    def __call__(self, x: Tensor, half_log_snr: Any) -> Tensor:
        return self.call.x0(x, half_log_snr)
