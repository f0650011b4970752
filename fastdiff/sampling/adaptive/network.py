"""The network of a sampler outside plans: guided x0 at points of each sample's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...prediction import Parametrization, normalize
from ...schedule import Schedule, Time


class Network:
    """x0 from a model(x, t, **cond), as `Sampler` calls it.

    Args:
        model: returns a tensor like x or an object with `.sample`; it may have
            `network_time(point)`.
        schedule, prediction_type, clip_range: as for `Sampler`.
        cond, uncond, gamma: classifier-free guidance u + gamma (c - u), gamma a number or [B]; 1
            and 0 make one call.
        where: who speaks in errors. fractional_times: a discrete schedule's network is told times
            between its timesteps, float32, instead of the nearest one.

    Raises:
        ValueError: uncond missing where it is needed.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        schedule: Schedule,
        prediction_type: str | Parametrization,
        clip_range: float | None,
        cond: Mapping[str, Any] | None,
        uncond: Mapping[str, Any] | None,
        gamma: float | Tensor,
        *,
        where: str = "fastdiff.sampling.adaptive",
        fractional_times: bool = False,
    ):
        self.where = where
        self.model, self.schedule, self.clip_range, self.gamma = model, schedule, clip_range, gamma
        self.parametrization = (
            Parametrization(normalize(prediction_type))
            if isinstance(prediction_type, str)
            else prediction_type
        )
        own = getattr(model, "network_time", None)
        self.own = own is not None
        self.time: Callable[[Time], float] = own or schedule.network_time
        self.whole = not self.own and not schedule.continuous and not fractional_times
        self.both = isinstance(gamma, Tensor) or gamma not in (0, 1)
        if uncond is None and (self.both or gamma != 1):
            raise ValueError(
                f"{self.where}: expected uncond with a guidance_scale other than 1. Pass its"
                " arguments."
            )
        first, second = dict(cond or {}), dict(uncond or {})
        self.arguments = second if not self.both and gamma == 0 else first
        if self.both:
            if first.keys() != second.keys():
                raise ValueError(
                    f"{self.where}: expected cond and uncond of the same keys, got {sorted(first)},"
                    f" {sorted(second)}."
                )
            self.arguments = {key: _both(first[key], second[key]) for key in first}

    def part(self, rows: Tensor, batch: int) -> Network:
        """The network for some samples of a batch: arguments and strengths indexed by sample are
        theirs.
        """
        result = copy.copy(self)
        if isinstance(self.gamma, Tensor) and self.gamma.ndim:
            result.gamma = self.gamma[rows.to(self.gamma.device)]
        given = torch.cat([rows, rows + batch]) if self.both else rows
        n = 2 * batch if self.both else batch
        result.arguments = {
            key: (
                value[given.to(value.device)]
                if isinstance(value, Tensor) and value.ndim and len(value) == n
                else value
            )
            for key, value in self.arguments.items()
        }
        return result

    def output(self, x: Tensor, times: Sequence[float]) -> Tensor:
        """u + gamma (c - u) of the network on its input x [B, …] at its times [B]."""
        t = torch.tensor(times, dtype=torch.float64)
        t = (t.round().to(torch.int64) if self.whole else t.to(torch.float32)).to(x.device)
        given = (torch.cat([x, x]), torch.cat([t, t])) if self.both else (x, t)
        out = self.model(*given, **self.arguments)
        out = getattr(out, "sample", out)
        if not isinstance(out, Tensor) or out.shape != given[0].shape:
            got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"{self.where}: expected a model output of {list(given[0].shape)}, got {got}."
            )
        if not self.both:
            return out
        conditional, unconditional = out.to(x.dtype).chunk(2)
        gamma = torch.as_tensor(self.gamma, dtype=x.dtype, device=x.device).view(
            -1, *(1,) * (x.ndim - 1)
        )
        return unconditional + gamma * (conditional - unconditional)

    def __call__(self, x: Tensor, half_log_snr: NDArray[np.float64]) -> Tensor:
        """x0 for x = x_t/alpha at lambda [B]."""
        # samples at one point share its numbers
        known = {v: self.schedule.at_log_snr(2.0 * v) for v in set(half_log_snr.tolist())}
        numbers = {
            v: (p, self.parametrization.at(p.alpha, p.sigma), self.time(p))
            for v, p in known.items()
        }
        chosen = [numbers[v] for v in half_log_snr.tolist()]
        points, c, times = [v[0] for v in chosen], [v[1] for v in chosen], [v[2] for v in chosen]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=x.dtype, device=x.device).view(
                -1, *(1,) * (x.ndim - 1)
            )

        state = column([point.alpha for point in points]) * x
        out = self.output(column([v.scale for v in c]) * state, times).to(x.dtype)
        x0 = column([v.x0_x for v in c]) * state + column([v.x0_out for v in c]) * out
        return x0 if self.clip_range is None else x0.clamp_(-self.clip_range, self.clip_range)


def _both(conditional: Any, unconditional: Any) -> Any:
    """An argument of the doubled batch: tensors [B, …] one after the other, anything else is the
    conditional call's.
    """
    if isinstance(conditional, Tensor) and conditional.ndim:
        return torch.cat([conditional, unconditional])
    return conditional
