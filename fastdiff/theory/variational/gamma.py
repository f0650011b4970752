"""Noise schedules as functions gamma(u) = -ln SNR of u in [0, 1].

gamma rises from gamma_min (data) to gamma_max (noise). It is Luo's ω; the γ of his section on
guidance is `guidance_scale`.

    alpha² = sigmoid(-gamma),  sigma² = sigmoid(gamma)
    gamma(u) = gamma_min + (gamma_max - gamma_min)·s(u),  s(0) = 0, s(1) = 1

(Kingma et al. 2021, eq. 3–5 and 59; Luo 2022, eq. 111–114.) The bound depends on the end points. In
continuous time, the path s between them changes only the variance of its estimator (eq. 17–18). The
learned s is a monotonic network (appendix H): a = w1 u + b1, then a + w3·sigmoid(w2 a + b2), with
positive weights, scaled to the range from 0 to 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from ...grad_mode import restored
from ...schedule import Schedule

KINDS = ("learned", "linear", "cosine")


class Gamma(nn.Module):
    """The base of the schedules: a path between two end points, which subclasses define.

    Args:
        gamma_min, gamma_max: the end points, finite, with gamma_min < gamma_max.
        learned: whether the end points are parameters.
    """

    def __init__(self, gamma_min: float, gamma_max: float, learned: bool = False):
        super().__init__()
        if not (math.isfinite(gamma_min) and math.isfinite(gamma_max) and gamma_min < gamma_max):
            raise ValueError(
                "fastdiff.theory.variational: expected finite gamma_min < gamma_max, got"
                f" {gamma_min}, {gamma_max}."
            )
        for name, value in (("gamma_min", gamma_min), ("gamma_max", gamma_max)):
            number = torch.tensor(float(value), dtype=torch.float64)
            if learned:
                self.register_parameter(name, nn.Parameter(number))
            else:
                self.register_buffer(name, number, persistent=False)

    def path(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (s(u), s'(u)) [B] float64 for u [B] float64 in [0, 1]."""
        raise NotImplementedError

    def ends(self) -> tuple[Tensor, Tensor]:
        """Returns (gamma_min, gamma_max), float64 scalars."""
        low, high = self.gamma_min, self.gamma_max
        assert isinstance(low, Tensor) and isinstance(high, Tensor)
        return low.double(), high.double()

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (gamma(u), gamma'(u)) [B] float64."""
        low, high = self.ends()
        s, slope = self.path(u.double())
        return low + (high - low) * s, (high - low) * slope

    @restored
    @torch.no_grad()
    def log_snr(self, u: ArrayLike) -> np.ndarray:
        """Returns -gamma(u), float64 in the shape of u, for `Schedule.learned`."""
        device = self.ends()[0].device
        times = torch.tensor(np.asarray(u, np.float64), device=device)
        return -self(times.reshape(-1))[0].reshape(times.shape).cpu().numpy()

    def schedule(self, num_train_timesteps: int) -> Schedule:
        """Returns the schedule of gamma(t/(T - 1)), t = 0 … T-1, for samplers and bounds."""
        return Schedule.learned(self.log_snr, num_train_timesteps)


class LinearGamma(Gamma):
    """s(u) = u: the log-SNR falls linearly."""

    def path(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return u, torch.ones_like(u)


class CosineGamma(Gamma):
    """gamma(u) = 2 ln tan(angle), with an angle linear in u.

    alpha = cos(angle), sigma = sin(angle) (Nichol & Dhariwal 2021, eq. 17, restricted to the range
    between the end points.)
    """

    def path(self, u: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.ends()
        first, last = torch.atan(torch.exp(0.5 * low)), torch.atan(torch.exp(0.5 * high))
        # π/2 minus the last angle, computed directly: the difference would lose digits
        last_rest = torch.atan(torch.exp(-0.5 * high))
        angle, rest = first + (last - first) * u, last_rest + (last - first) * (1 - u)
        gamma = 2 * (torch.log(torch.sin(angle)) - torch.log(torch.sin(rest)))
        slope = 2 * (last - first) / (torch.sin(angle) * torch.sin(rest))
        return (gamma - low) / (high - low), slope / (high - low)


class LearnedGamma(Gamma):
    """The monotonic network; its end points and its path are float64 parameters.

    Args:
        gamma_min, gamma_max: the initial end points.
        hidden: the number of sigmoids of the path; initially they are evenly spaced and small.
    """

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0, hidden: int = 128):
        super().__init__(gamma_min, gamma_max, learned=True)
        if hidden < 1:
            raise ValueError(
                f"fastdiff.theory.variational.LearnedGamma: expected hidden >= 1, got {hidden}."
            )
        steep = torch.full((hidden,), 16.0, dtype=torch.float64)
        centres = (torch.arange(hidden, dtype=torch.float64) + 0.5) / hidden
        self.w1 = nn.Parameter(_inverse_softplus(torch.ones(1, dtype=torch.float64)))
        self.w2 = nn.Parameter(_inverse_softplus(steep))
        self.b2 = nn.Parameter(-steep * centres)
        self.w3 = nn.Parameter(
            _inverse_softplus(torch.full((hidden,), 0.1 / hidden, dtype=torch.float64))
        )

    def path(self, u: Tensor) -> tuple[Tensor, Tensor]:
        w1, w2, w3 = (F.softplus(w.double()) for w in (self.w1, self.w2, self.w3))
        points = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64, device=u.device), u])
        bend = torch.sigmoid((w1 * points)[:, None] * w2 + self.b2.double())  # b2 includes w2 b1
        raw = w1 * points + bend @ w3
        slope = w1 * (1 + (bend[2:] * (1 - bend[2:])) @ (w2 * w3))
        length = raw[1] - raw[0]
        return (raw[2:] - raw[0]) / length, slope / length


class TableGamma(Gamma):
    """Linear interpolation between the points of a variance-preserving schedule of T + 1 timesteps.

    Raises ValueError for a schedule of another space, with fewer than two timesteps or with pure
    noise.
    """

    points: Tensor

    def __init__(self, schedule: Schedule):
        gamma = -schedule.log_snr
        if schedule.space != "vp" or len(gamma) < 2 or not np.isfinite(gamma).all():
            raise ValueError(
                "fastdiff.theory.variational: expected a variance-preserving schedule of at least"
                f" two timesteps that does not end in pure noise, got {schedule!r}."
            )
        super().__init__(float(gamma[0]), float(gamma[-1]))
        self.register_buffer(
            "points", torch.tensor((gamma - gamma[0]) / (gamma[-1] - gamma[0])), persistent=False
        )

    def path(self, u: Tensor) -> tuple[Tensor, Tensor]:
        points, steps = self.points.double(), len(self.points) - 1
        i = (u * steps).floor().clamp(0, steps - 1).to(torch.int64)
        slope = (points[i + 1] - points[i]) * steps
        return points[i] + slope * (u - i.double() / steps), slope


class Point(NamedTuple):
    """alpha and sigma [B] float64 of variance-preserving noise, with gradients to gamma."""

    alpha: Tensor
    sigma: Tensor


def point(gamma: Tensor) -> Point:
    """Returns (√sigmoid(-gamma), √sigmoid(gamma)), both to full relative precision."""
    return Point(torch.exp(0.5 * F.logsigmoid(-gamma)), torch.exp(0.5 * F.logsigmoid(gamma)))


def make(kind: str | dict[str, Any] | Schedule, gamma_min: float, gamma_max: float) -> Gamma:
    """Returns a gamma by name, or through the points of a `Schedule` or its config.

    A schedule brings its own end points; gamma_min and gamma_max are not used then.
    """
    if isinstance(kind, Schedule):
        return TableGamma(kind)
    if isinstance(kind, dict):
        return TableGamma(Schedule.from_config(kind))
    if kind not in KINDS:
        raise ValueError(
            f"fastdiff.theory.variational: expected schedule in {list(KINDS)} or a Schedule, got"
            f" {kind!r}."
        )
    kinds: dict[str, type[Gamma]] = {
        "learned": LearnedGamma,
        "linear": LinearGamma,
        "cosine": CosineGamma,
    }
    return kinds[kind](gamma_min, gamma_max)


def _inverse_softplus(value: Tensor) -> Tensor:
    """Returns ln(e^value - 1)."""
    return value + torch.log(-torch.expm1(-value))
