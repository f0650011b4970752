"""The probability flow as motion on a circle: dy/dphi = v(y, phi).

Every Gaussian path x_t = alpha x0 + sigma eps has the same states up to a factor: y =
x_t/sqrt(alpha² + sigma²) = cos(phi) x0 + sin(phi) eps with tan(phi) = rho = sigma/alpha. The
probability-flow ODE (Song et al. 2021, eq. 13) of VP, VE, sub-VP and flow matching then is

    dy/dphi = cos(phi) eps - sin(phi) x0 = v,

the v-prediction (Salimans & Ho 2022, section 4 and appendix D): of unit size and regular at both
ends, clean data at phi = 0 and pure noise at phi = pi/2. Whatever a network predicts, v is linear
in it and in y (fastdiff.prediction).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...prediction import to_eps_coefficients, to_x0_coefficients
from ...sampling.adaptive.control import Array
from ...sampling.adaptive.dpm import column
from ...sampling.adaptive.network import Network
from ...schedule import Schedule, Time


def local(model: Callable[..., Any], where: str) -> Callable[..., Any]:
    """The model as this process has it: what DistributedDataParallel wraps, which talks to other
    ranks in its forward.

    Samples take their own numbers of steps, so ranks make different numbers of calls, and a
    collective in one of them waits for ever. Raises ValueError for a model whose weights lie on
    several ranks.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return model.module
    if type(model).__name__ in ("FullyShardedDataParallel", "FSDPModule") or any(
        base.__name__ == "FSDPModule" for base in type(model).__mro__
    ):
        raise ValueError(
            f"{where}: expected a model whose weights are all here, got a sharded one. Samples take"
            " different numbers of steps, and its calls wait for the other ranks. Gather the"
            " weights first."
        )
    return model


def angle(point: Time) -> float:
    """phi = atan(sigma/alpha)."""
    return math.atan2(point.sigma, point.alpha)


def radius(point: Time) -> float:
    """sqrt(alpha² + sigma²), what a state is divided by to lie on the circle."""
    return math.hypot(point.alpha, point.sigma)


def radii(space: str, cos: Array, sin: Array) -> Array:
    """sqrt(alpha² + sigma²) of a space's points at these angles, [n]."""
    if space == "vp":
        return np.ones_like(cos)
    if space == "ve":
        return 1.0 / cos
    if space == "flow":
        return 1.0 / (cos + sin)
    # alpha² + sigma = 1: the root of n² cos² + n sin = 1 that does not cancel
    return 2.0 / (sin + np.sqrt(sin**2 + 4.0 * cos**2))


class Velocity:
    """v(y, phi) of a network.

    Args:
        network: see fastdiff.sampling.adaptive.network.
        batch: of the whole run, which arguments of the network are indexed by.
        network_batch: every call gets exactly so many rows, several calls or filled up.
    """

    def __init__(self, network: Network, batch: int, network_batch: int | None = None):
        if network_batch is not None and (isinstance(network_batch, bool) or network_batch < 1):
            raise ValueError(
                f"{network.where}: expected network_batch >= 1 or None, got {network_batch!r}."
            )
        self.network, self.batch, self.network_batch = network, batch, network_batch
        self.schedule: Schedule = network.schedule

    def __call__(
        self, y: Tensor, phi: Array, rows: Tensor, *, differentiable: bool = False
    ) -> Tensor:
        """v [n, …] for y [n, …] at phi [n], of the samples `rows` of the batch.

        Raises ValueError where a derivative is wanted and the network's output does not depend on
        its input.
        """
        cos, sin = np.cos(phi), np.sin(phi)
        size = radii(self.schedule.space, cos, sin)
        alpha, sigma, times, kind = (
            size * cos,
            size * sin,
            self._times(phi),
            self.network.parametrization,
        )
        scale, data = size, kind.sigma_data
        if (
            kind.unit_input
        ):  # the network's space is that of x0/data on the circle (fastdiff.prediction)
            unit = np.hypot(alpha * data, sigma)
            scale, alpha, sigma = size / unit, alpha * data / unit, sigma / unit
        else:
            data = 1.0
        x0_x, x0_out = to_x0_coefficients(kind.prediction_type, alpha, sigma)
        eps_x, eps_out = to_eps_coefficients(kind.prediction_type, alpha, sigma)
        on_given, on_out = cos * eps_x - sin * data * x0_x, cos * eps_out - sin * data * x0_out
        given = y if (scale == 1.0).all() else column(scale, y) * y
        out = self._output(given, times, rows).to(y.dtype)
        if differentiable and not out.requires_grad:
            raise ValueError(
                f"{self.network.where}: expected a network that can be differentiated in x, got an"
                " output without a gradient. Take no_grad and detach out of it."
            )
        return column(on_given, y) * given + column(on_out, y) * out

    def x0(self, y: Tensor, phi: Array, rows: Tensor) -> Tensor:
        """x0 = cos(phi) y - sin(phi) v."""
        return column(np.cos(phi), y) * y - column(np.sin(phi), y) * self(y, phi, rows)

    def _times(self, phi: Array) -> list[float]:
        """What the network is told, [n]."""
        with np.errstate(divide="ignore"):
            log_snr = np.where(phi < 0.5 * math.pi, -2.0 * np.log(np.tan(phi)), -math.inf)
        many = getattr(self.network.model, "network_times", None)
        if many is not None:
            return many(log_snr).tolist()
        if self.network.own:
            return [
                self.network.time(self.schedule.at_log_snr(value)) for value in log_snr.tolist()
            ]
        return self.schedule.network_times(log_snr).tolist()

    def _output(self, x: Tensor, times: list[float], rows: Tensor) -> Tensor:
        size = self.network_batch
        if size is None:
            return self.network.part(rows, self.batch).output(x, times)
        outs = []
        for first in range(0, len(x), size):
            taken = torch.arange(first, min(first + size, len(x)), device=x.device)
            # filled up with its first row: the network always sees one shape, so a row's bits are
            # always the same
            given = torch.cat([taken, taken[:1].expand(size - len(taken))])
            network = self.network.part(rows[given], self.batch)
            outs.append(network.output(x[given], [times[i] for i in given.tolist()])[: len(taken)])
        return torch.cat(outs)
