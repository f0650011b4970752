"""How every door except the sampling loop calls a user's network.

A user's network is any callable model(x, t, **cond). It may be a module of another floating dtype
than the state, return a tensor, an object with `.sample` or a tuple, return twice the channels
(learned variance), and define its own time, `network_time(point)`. Every door (public entry point
that takes a network) accepts all of these, because every door calls the network through these
names:

    tensor_of      unpacks an output and checks its type
    prediction_of  also checks its shape
    Network        a model with the dtype and memory format of its input; one checked call
    ModelCall      times, classifier-free guidance and call sizes for a door: what most doors use

The first three are in fastdiff.sampling.network, and importable from here.

A door builds one ModelCall per run and calls it at times of its choice:

    call = ModelCall(model, schedule, prediction_type, cond=cond, uncond=uncond,
                     guidance_scale=gamma, where="fastdiff.theory.score.probability_flow")
    out = call(x, t)           # t: int64 timesteps [B] of the schedule, a point, points or numbers
    x0 = call.x0(x, lambdas)   # the prediction of x0 for x = x_t/alpha at lambda [B]

`learned=True` keeps the variance half of the output, which is split off otherwise. Errors begin
with the door's name, `where`. Whether gradients are recorded is the caller's choice; nothing here
changes the grad mode, reads the device or modifies the model.

The sampling loop has static buffers for a network's inputs (fastdiff.sampling.network_inputs) and
calls the methods of `Network` itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..prediction import Parametrization, normalize
from ..schedule import Time
from ..whole import whole
from .conditions import Conditions, check_halves, conditions
from .guidance import single_strength
from .network import Model, Network, out_of_memory, own_dtype, prediction_of, tensor_of

__all__ = [
    "Model",
    "ModelCall",
    "Network",
    "out_of_memory",
    "own_dtype",
    "prediction_of",
    "tensor_of",
]


class ModelCall:
    """A user's network as a door calls it: its dtype, its times, guidance, and one checked output.

    Args:
        model: callable (x, t, **cond), or a `Network`.
        schedule: gives times and points; None for a door that passes times as tensors only.
        prediction_type: what the network predicts, a name or a `Parametrization`.
        cond, uncond: keyword arguments of the network for classifier-free guidance u + gamma (c -
            u); tensors in them are indexed by sample.
        guidance_scale: gamma, a number or a tensor [] or [B]. The numbers 1 and 0 call one half.
        clip_range: bound of x0 in `x0`; None for no clip.
        where: the name that error messages begin with.
        fractional_times: whether the network of a discrete schedule gets float32 times between its
            timesteps instead of the nearest int64 timestep.
        network_batch: the number of rows of every network call: more rows make several calls, and
            a call with fewer is padded. None for one call of all rows.
        learned: whether `__call__` returns an output of twice the channels whole.

    Attributes:
        network: the `Network`. model: its model.
        own_time: whether the model defines `network_time`.
        whole_times: whether the network gets int64 timesteps, else float32 times.
        both: whether a call has both guidance halves.
        parametrization: a `Parametrization`, also where a name was passed.
        gamma, schedule, clip_range, network_batch, learned, where: as passed.

    Raises:
        TypeError: for a model that is not callable.
        ValueError: for arguments outside these, and where uncond is missing.
    """

    def __init__(
        self,
        model: Model | Network,
        schedule: Any = None,
        prediction_type: str | Parametrization = "epsilon",
        *,
        cond: Mapping[str, Any] | None = None,
        uncond: Mapping[str, Any] | None = None,
        guidance_scale: float | Tensor = 1.0,
        clip_range: float | None = None,
        where: str,
        fractional_times: bool = False,
        network_batch: int | None = None,
        learned: bool = False,
    ):
        rows = None if network_batch is None else whole(network_batch)
        if network_batch is not None and (rows is None or rows < 1):
            raise ValueError(
                f"{where}: expected network_batch >= 1 or None, got {network_batch!r}."
            )
        network_batch = rows
        self.network = model if isinstance(model, Network) else Network(model, where=where)
        self.model, self.schedule, self.where = self.network.model, schedule, where
        self.clip_range, self.network_batch, self.learned = clip_range, network_batch, learned
        self.parametrization = (
            Parametrization(normalize(prediction_type))
            if isinstance(prediction_type, str)
            else prediction_type
        )
        own = getattr(self.model, "network_time", None)
        self.own_time = own is not None
        self._time: Callable[[Time], float] | None = own or (
            None if schedule is None else schedule.network_time
        )
        # Retimed schedules and k-diffusion's levels have no whole timesteps.
        self.whole_times = (
            not self.own_time and not fractional_times and getattr(schedule, "whole_times", False)
        )
        self._timesteps: Tensor | None = None
        self.gamma = single_strength(guidance_scale, where)
        self.both = isinstance(self.gamma, Tensor) or self.gamma not in (0, 1)
        self._cond, self._uncond = cond, uncond
        self._conditions: Conditions | None = None
        self._rows = -1
        if self.both:
            check_halves(cond, uncond, where=where)
        elif self.gamma == 0:
            check_halves(uncond, uncond, where=where)
            self._cond = uncond

    # -- times -------------------------------------------------------------------------------------

    def time(self, point: Time) -> float:
        """The number that the network gets as its time at a point of the schedule."""
        assert self._time is not None
        return self._time(point)

    def times(self, t: Any, device: torch.device | str = "cpu") -> Tensor:
        """Network times as a tensor, int64 timesteps or float32.

        Args:
            t: points of the schedule (`Time`), or numbers: network times as `time` returns them,
                [n]. A number that is no timestep goes to the nearest one where the network takes
                timesteps.
        """
        if self._time is not None:
            t = [self._time(v) if isinstance(v, Time) else v for v in t]
        values = torch.as_tensor(np.asarray(t, np.float64))
        values = values.round().to(torch.int64) if self.whole_times else values.to(torch.float32)
        return values.to(device)

    def times_of_log_snr(self, log_snr: NDArray[np.float64]) -> NDArray[np.float64]:
        """The network's times at points of these log-SNRs, [n]: `time` without the points."""
        many = getattr(self.model, "network_times", None)
        if many is not None:
            return np.asarray(many(log_snr), np.float64)
        if self.own_time:
            at = self.schedule.at_log_snr
            return np.array([self.time(at(value)) for value in log_snr.tolist()], np.float64)
        return np.asarray(self.schedule.network_times(log_snr), np.float64)

    def _network_times(self, t: Any, n: int, device: torch.device) -> Tensor:
        """The time argument [n] of a call; see `__call__`."""
        if not isinstance(t, Tensor):
            return self.times([t] * n if isinstance(t, (Time, int, float)) else t, device)
        if t.is_floating_point() or self.whole_times or self.schedule is None:
            return t
        if self._timesteps is None or self._timesteps.device != t.device:
            points = [self.schedule.at(i) for i in range(self.schedule.num_train_timesteps)]
            self._timesteps = self.times(points, t.device)
        return self._timesteps[t]

    # -- calls -------------------------------------------------------------------------------------

    def __call__(self, x: Tensor, t: Any) -> Tensor:
        """The network's output for its input x [B, …], u + gamma (c - u) with guidance.

        Args:
            x: [B, …] floating; it is cast to the network's dtype.
            t: a tensor [B] of int64 timesteps of the schedule or of floating network times, which
                are passed on as they are; or what `times` takes: one number or `Time` for all
                samples, or [B] of them.

        Returns:
            [B, …] in x's dtype if that is float32 or float64, else in the wider of x's and the
            output's. With `learned`, and a network that returns them, twice the channels, of which
            the second half is the conditional call's.

        Raises:
            TypeError: for an output without a floating tensor.
            ValueError: for an output of another shape, and for tensors in cond and uncond that are
                not indexed by sample.
        """
        n, times = len(x), self._network_times(t, len(x), x.device)
        arguments = self._arguments(n, x.device)
        cond, inputs = arguments.cond, self.network.input(x)
        if self.both:
            cond = {key: torch.cat([value, arguments.uncond[key]]) for key, value in cond.items()}
            inputs, times = torch.cat([inputs, inputs]), torch.cat([times, times])
        out = self._called(inputs, times, cond, arguments.shared)
        wide = x.dtype
        if wide not in (torch.float32, torch.float64):
            wide = torch.promote_types(x.dtype, out.dtype)
        out = out.to(wide)
        return self._guided(out, x) if self.both else out

    def _called(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        """The output for these rows, in calls of `network_batch` rows."""
        size = self.network_batch
        if size is None:
            return self.network.forward(x, t, {**shared, **cond}, learned=self.learned)
        parts = []
        for first in range(0, len(x), size):
            rows = torch.arange(first, min(first + size, len(x)), device=x.device)
            # padded with copies of its first row
            index = torch.cat([rows, rows[:1].expand(size - len(rows))])
            arguments = {**shared, **{key: value[index] for key, value in cond.items()}}
            out = self.network.forward(x[index], t[index], arguments, learned=self.learned)
            parts.append(out[: len(rows)])
        return torch.cat(parts) if parts else x

    def _guided(self, out: Tensor, x: Tensor) -> Tensor:
        """u + gamma (c - u); a strength of 1 or 0 gives c or u exactly, as in `reverse_step`."""
        c, u = out.chunk(2)
        variance = c[:, x.shape[1] :] if x.ndim > 1 and c.shape[1] != x.shape[1] else None
        if variance is not None:
            c, u = c[:, : x.shape[1]], u[:, : x.shape[1]]
        gamma = torch.as_tensor(self.gamma, dtype=c.dtype, device=c.device)
        gamma = gamma.view(-1, *(1,) * (x.ndim - 1))
        guided = u + gamma * (c - u)
        if isinstance(self.gamma, Tensor):
            guided = torch.where(gamma == 1, c, torch.where(gamma == 0, u, guided))
        return guided if variance is None else torch.cat([guided, variance], 1)

    def x0(self, x: Tensor, half_log_snr: ArrayLike) -> Tensor:
        """The prediction of x0 in x's dtype, for x = x_t/alpha at lambda = ln(alpha/sigma) [B]."""
        lambdas = np.asarray(half_log_snr, np.float64).tolist()
        # samples at the same lambda share its numbers
        found = {v: self.schedule.at_log_snr(2.0 * v) for v in set(lambdas)}
        numbers = {
            v: (p.alpha, self.parametrization.at(p.alpha, p.sigma), self.time(p))
            for v, p in found.items()
        }
        alphas, c, times = (
            zip(*(numbers[v] for v in lambdas), strict=True) if lambdas else ((),) * 3
        )

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=x.dtype, device=x.device).view(
                -1, *(1,) * (x.ndim - 1)
            )

        state = column(alphas) * x
        out = self(column([v.scale for v in c]) * state, list(times)).to(x.dtype)
        x0 = column([v.x0_x for v in c]) * state + column([v.x0_out for v in c]) * out
        return x0 if self.clip_range is None else x0.clamp_(-self.clip_range, self.clip_range)

    # -- arguments ---------------------------------------------------------------------------------

    def part(self, rows: Tensor, batch: int) -> ModelCall:
        """The call for the samples `rows` of a batch: their arguments and strengths."""
        result = copy.copy(self)
        whole = self._arguments(batch, rows.device)
        cond, uncond = (
            {key: value[rows] for key, value in half.items()} for half in (whole.cond, whole.uncond)
        )
        result._conditions, result._rows = Conditions(cond, uncond, whole.shared), len(rows)
        if isinstance(self.gamma, Tensor) and self.gamma.ndim:
            result.gamma = self.gamma[rows.to(self.gamma.device)]
        return result

    def _arguments(self, n: int, device: torch.device) -> Conditions:
        """The checked arguments of n samples."""
        if self._conditions is None or self._rows != n:
            if isinstance(self.gamma, Tensor) and self.gamma.ndim and len(self.gamma) != n:
                raise ValueError(
                    f"{self.where}: expected guidance_scale as a number or a tensor [{n}]."
                )
            self._conditions = conditions(
                self._cond, self._uncond, n, device, both=self.both, where=self.where
            )
            self._rows = n
        return self._conditions
