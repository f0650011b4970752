"""Noise schedules as functions: gamma(u) = -ln SNR, rising over u in [0, 1] from gamma_min (data)
to gamma_max (noise).

    alpha² = sigmoid(-gamma),  sigma² = sigmoid(gamma)                  (Kingma et al. 2021, eq. 3–5; Luo 2022, eq. 111–114)
    gamma(u) = gamma_min + (gamma_max - gamma_min)·s(u),  s(0) = 0, s(1) = 1                   (Kingma et al. 2021, eq. 59)

The ends are a matter of the bound; between them, in continuous time, the path s changes only the
variance of its estimator (eq. 17–18). The learned s is a monotonic network (appendix H): a = w1 u +
b1, then a + w3·sigmoid(w2 a + b2), all weights positive, scaled to run from 0 to 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from ...schedule import Schedule

KINDS = ("learned", "linear", "cosine")


class Gamma(nn.Module):
    """A path between two ends; subclasses say the path.

    Args:
        gamma_min, gamma_max: the ends, finite, the first below the second. learned: whether they
            are parameters.
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
        """(s(u), s'(u)) [B] float64 of u [B] float64 in [0, 1]."""
        raise NotImplementedError

    def ends(self) -> tuple[Tensor, Tensor]:
        """(gamma_min, gamma_max), float64 scalars."""
        low, high = self.gamma_min, self.gamma_max
        assert isinstance(low, Tensor) and isinstance(high, Tensor)
        return low.double(), high.double()

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(gamma(u), gamma'(u)) [B] float64."""
        low, high = self.ends()
        s, slope = self.path(u.double())
        return low + (high - low) * s, (high - low) * slope

    @torch.no_grad()
    def log_snr(self, u: ArrayLike) -> np.ndarray:
        """-gamma(u), float64 like u: what `Schedule.learned` is made of."""
        device = self.ends()[0].device
        given = torch.tensor(np.asarray(u, np.float64), device=device)
        return -self(given.reshape(-1))[0].reshape(given.shape).cpu().numpy()

    def schedule(self, num_train_timesteps: int) -> Schedule:
        """The points gamma(t/(T - 1)), t = 0 … T-1, as a discrete schedule for samplers and
        bounds.
        """
        return Schedule.learned(self.log_snr, num_train_timesteps)


class LinearGamma(Gamma):
    """s(u) = u: the log-SNR falls evenly."""

    def path(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return u, torch.ones_like(u)


class CosineGamma(Gamma):
    """gamma(u) = 2 ln tan(angle), the angle even between the ends: alpha = cos, sigma = sin of it
    (Nichol & Dhariwal 2021, eq. 17, cut at the ends).
    """

    def path(self, u: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.ends()
        first, last = torch.atan(torch.exp(0.5 * low)), torch.atan(torch.exp(0.5 * high))
        # the last angle's distance from a right angle has the digits that its own value has lost
        last_rest = torch.atan(torch.exp(-0.5 * high))
        angle, rest = first + (last - first) * u, last_rest + (last - first) * (1 - u)
        gamma = 2 * (torch.log(torch.sin(angle)) - torch.log(torch.sin(rest)))
        slope = 2 * (last - first) / (torch.sin(angle) * torch.sin(rest))
        return (gamma - low) / (high - low), slope / (high - low)


class LearnedGamma(Gamma):
    """The monotonic network; ends and path are parameters, in float64 whatever the rest of a model
    has.

    Args:
        gamma_min, gamma_max: the ends to begin with. hidden: sigmoids of the path, at first evenly
            placed and small.
    """

    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0, hidden: int = 128):
        super().__init__(gamma_min, gamma_max, learned=True)
        if hidden < 1:
            raise ValueError(
                f"fastdiff.theory.variational.LearnedGamma: expected hidden >= 1, got {hidden}."
            )
        steep = torch.full((hidden,), 16.0, dtype=torch.float64)
        places = (torch.arange(hidden, dtype=torch.float64) + 0.5) / hidden
        self.w1 = nn.Parameter(_inverse_softplus(torch.ones(1, dtype=torch.float64)))
        self.w2 = nn.Parameter(_inverse_softplus(steep))
        self.b2 = nn.Parameter(-steep * places)
        self.w3 = nn.Parameter(
            _inverse_softplus(torch.full((hidden,), 0.1 / hidden, dtype=torch.float64))
        )

    def path(self, u: Tensor) -> tuple[Tensor, Tensor]:
        w1, w2, w3 = (F.softplus(w.double()) for w in (self.w1, self.w2, self.w3))
        points = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64, device=u.device), u])
        bend = torch.sigmoid((w1 * points)[:, None] * w2 + self.b2.double())  # b1 is taken up by b2
        raw = w1 * points + bend @ w3
        slope = w1 * (1 + (bend[2:] * (1 - bend[2:])) @ (w2 * w3))
        length = raw[1] - raw[0]
        return (raw[2:] - raw[0]) / length, slope / length


class TableGamma(Gamma):
    """Through the points of a variance-preserving schedule of T + 1 timesteps, linear between them.

    Raises ValueError for a schedule of another space, of fewer than two timesteps or with pure
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
    """(√sigmoid(-gamma), √sigmoid(gamma)): both with all their digits."""
    return Point(torch.exp(0.5 * F.logsigmoid(-gamma)), torch.exp(0.5 * F.logsigmoid(gamma)))


def make(kind: str | dict[str, Any] | Schedule, gamma_min: float, gamma_max: float) -> Gamma:
    """A gamma by name, or through the points of a `Schedule` or its config (whose ends are then its
    own).
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
    return value + torch.log(-torch.expm1(-value))
