"""Points of the plane, with a density in closed form or as a one-dimensional integral.

    mixture      p(x) = 1/8 Σ_k N(x; c_k, s² I), c_k on the unit circle
    moons        p(x) = 1/2 Σ_m ∫ N(x; c_m(u), s² I) du over u in [0, 1], c_m interlocking half
                 circles
    swiss-roll   p(x) = ∫ N(x; c(u), s² I) du, c(u) = r (cos r', sin r'), an Archimedean spiral

The integrals are computed by Gauss–Legendre quadrature with nodes closer than s, exact to float64
rounding. Point i of a seed is a pure function of (seed, i): a larger set begins with the points of
a smaller one, and the held-out points have other ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .. import rng

HELD_OUT_ID = 2**40  # the first id of the test split
_DOMAIN = (
    0x746F7973  # separates the seeds from those of training, which draws times from this stream
)


@dataclass(frozen=True)
class Curves:
    """A mixture of curves of equal weight, blurred by N(0, deviation² I).

    The position u along each curve is uniform in [0, 1].

    Attributes:
        number: of curves.
        deviation: of the blur.
        centre: (curve int64 [B], u float64 [B]) -> [B, 2], float64; a curve may be one point.
        classes: the names of the curves.
        nodes: of the quadrature over u.
    """

    number: int
    deviation: float
    centre: Callable[[Tensor, Tensor], Tensor]
    classes: tuple[str, ...] = ()
    nodes: int = 1


def _mixture(k: Tensor, u: Tensor) -> Tensor:
    angle = (2 * math.pi / 8) * k.to(u.dtype)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def _moons(k: Tensor, u: Tensor) -> Tensor:
    # two half circles of radius 1 around (0, 0) and (1, 1/2), moved and scaled to zero mean and
    # standard deviations near one
    x, y = torch.cos(math.pi * u), torch.sin(math.pi * u)
    upper, lower = torch.stack([x, y], dim=1), torch.stack([1 - x, 0.5 - y], dim=1)
    return (
        torch.where(k[:, None] == 0, upper, lower) - torch.tensor([0.5, 0.25], dtype=u.dtype)
    ) * 1.25


def _swiss_roll(k: Tensor, u: Tensor) -> Tensor:
    angle = 1.5 * math.pi * (1 + 2 * u)
    return (angle / 7.0)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


TOYS = {
    "mixture": Curves(8, 0.1, _mixture, tuple("ABCDEFGH")),
    "moons": Curves(2, 0.1, _moons, ("upper", "lower"), nodes=200),
    "swiss-roll": Curves(1, 0.07, _swiss_roll, nodes=800),
}


@dataclass(frozen=True)
class Toy:
    """Points with labels, like `DataSet`, and their density.

    Attributes:
        points: float32 [N, 2].
        labels: int64 [N]; all 0 for swiss-roll.
        classes: the names of the labels; none for swiss-roll.
        name: the data set, its split, size and seed, for provenance.
        shape: of one example.
        levels: None, since the data are continuous.
        examples: N.
    """

    points: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    curves: Curves = field(repr=False)
    levels: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.points.shape[1:])

    @property
    def examples(self) -> int:
        return len(self.points)

    def batch(self, index: Tensor, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Returns (x0 float32 [B, 2], labels [B]). The seed and the epoch change nothing."""
        return self.points[index], self.labels[index]

    def log_density(self, x: Tensor) -> Tensor:
        """Returns ln p(x) in nats, float64 [B], for x [B, 2]."""
        curves, x = self.curves, x.to(torch.float64)
        nodes, weights = np.polynomial.legendre.leggauss(curves.nodes)
        u = torch.from_numpy((nodes + 1) / 2).repeat(curves.number)
        centres = curves.centre(torch.arange(curves.number).repeat_interleave(curves.nodes), u)
        log_weight = torch.from_numpy(np.log(weights / 2)).repeat(curves.number) - math.log(
            curves.number
        )
        variance = curves.deviation**2
        constant = -math.log(2 * math.pi * variance)
        parts = []
        for part in x.split(4096):
            distance = sum((part[:, i, None] - centres[:, i]).square() for i in range(2))
            parts.append(torch.logsumexp(log_weight - distance / (2 * variance), dim=1) + constant)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def load_toy(name: str, split: str = "train", n: int = 20_000, seed: int = 0) -> Toy:
    """Returns n points of `mixture`, `moons` or `swiss-roll`.

    Args:
        split: `train` has the ids 0 … n-1 of the seed, `test` those from 2⁴⁰ on.
        n: the number of points.
        seed: in [0, 2**64).

    Raises ValueError for other names and splits and n < 1.
    """
    if name not in TOYS or split not in ("train", "test") or n < 1:
        raise ValueError(
            f"fastdiff.data: expected a toy in {sorted(TOYS)}, split train or test and n >= 1, got"
            f" {name!r}, {split!r}, {n}."
        )
    curves = TOYS[name]
    ids = torch.arange(n) + (HELD_OUT_ID if split == "test" else 0)
    counter = {"seed": (seed ^ _DOMAIN) % 2**64, "sample_ids": ids}
    k = rng.randint(curves.number, **counter)  # type: ignore[arg-type]
    u = rng.uniform(**counter, word=1).to(torch.float64)  # type: ignore[arg-type]
    noise = rng.normals(2, step=0, stream=rng.STREAM_INITIAL, **counter)  # type: ignore[arg-type]
    points = (curves.centre(k, u) + curves.deviation * noise).to(torch.float32)
    return Toy(points, k, curves.classes, f"{name} {split} ({n} points, seed {seed})", curves)
