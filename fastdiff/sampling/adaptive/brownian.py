"""A virtual Brownian tree: W on a fixed interval as a pure function of (seed, sample id, time).

Levy's construction: W(low) = 0, W(high) = sqrt(high - low) z_0, and W in the middle of an interval
of length l is the mean of its ends plus sqrt(l)/2 times a new normal. So W(t) = Σ w_k(t) z_k over
the tree's path to t, where w_k are hat functions, and an increment W(b) - W(a) is one sum over both
paths. Nodes are numbered as in a heap; z_k is the draw of step k of the noise contract, in a
separate stream. Nothing is stored, and no query depends on another: a sample's path is the same in
every batch and on every grid of times (Li et al. 2020, algorithm 3, with a counter for their keys).

Times are rounded to the tree's grid of 2**depth equal parts, on which marginals and increments are
exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import ops
from ...rng import STREAM_TREE


class BrownianTree:
    """W over [low, high] for every sample and element.

    The default interval contains every lambda = ln(alpha/sigma) that diffusion models use, in parts
    of 2.4e-4.

    Args:
        shape: [B, …] of the increments.
        seed: int in [0, 2**64) or int64 [B]. sample_ids: int64 [B], default 0 … B-1.
        low, high: ends of the interval. depth: levels of the tree, at most 31.
        dtype, device: of the increments.

    Raises:
        ValueError: for an empty interval or a depth outside [1, 31].
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        seed: int | Tensor,
        sample_ids: Tensor | None = None,
        low: float = -16.0,
        high: float = 16.0,
        depth: int = 17,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        if not (-math.inf < low < high < math.inf and 1 <= depth <= 31):
            raise ValueError(
                "fastdiff.sampling.adaptive.brownian.BrownianTree: expected low < high and depth"
                f" in [1, 31], got {low!r},"
                f" {high!r}, {depth!r}."
            )
        self.shape, self.seed, self.sample_ids = tuple(shape), seed, sample_ids
        self.low, self.high, self.depth = float(low), float(high), depth
        self.dtype, self.device = dtype, device

    def grid_index(self, t: float) -> int:
        """The index in [0, 2**depth] of the grid point nearest to t.

        Raises ValueError for a time outside the interval.
        """
        part = (t - self.low) / (self.high - self.low) * 2**self.depth
        if not -0.5 <= part <= 2**self.depth + 0.5:
            raise ValueError(
                f"fastdiff.sampling.adaptive.brownian.BrownianTree: expected a time in [{self.low},"
                f" {self.high}], got {t}."
            )
        return min(max(round(part), 0), 2**self.depth)

    def weights(self, index: int) -> dict[int, float]:
        """W at a grid point as weights of the tree's normals, by the number of their node."""
        span = self.high - self.low
        weights = {0: index / 2**self.depth * math.sqrt(span)}
        for level in range(self.depth):
            length = 2 ** (self.depth - level)
            node, offset = divmod(index, length)
            if offset == 0:
                break
            hat = 2.0 * min(offset, length - offset) / length
            weights[2**level + node] = 0.5 * hat * math.sqrt(span * 0.5**level)
        return weights

    def _increment(self, a: int, b: int) -> Tensor:
        weights = self.weights(b)
        for node, weight in self.weights(a).items():
            weights[node] = weights.get(node, 0.0) - weight
        total = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        normal = torch.empty_like(total)
        for node, weight in sorted(weights.items()):
            if weight:
                ops.randn(
                    self.shape,
                    seed=self.seed,
                    sample_ids=self.sample_ids,
                    step=node,
                    stream=STREAM_TREE,
                    out=normal,
                )
                total.add_(normal, alpha=weight)
        return total

    def increment(self, a: float, b: float) -> Tensor:
        """W(b) - W(a) [B, …]; for b < a the negative of the forward increment."""
        return self._increment(self.grid_index(a), self.grid_index(b))

    def normal(self, a: float, b: float) -> Tensor:
        """(W(b) - W(a)) / sqrt(|b - a|): a standard normal, independent over disjoint intervals.

        Raises ValueError where a and b have the same grid point.
        """
        first, last = self.grid_index(a), self.grid_index(b)
        if first == last:
            raise ValueError(
                "fastdiff.sampling.adaptive.brownian.BrownianTree: expected times at least"
                f" {(self.high - self.low) / 2**self.depth:.3g} apart, got {a} and {b}. Take a"
                " deeper tree."
            )
        length = abs(last - first) * (self.high - self.low) / 2**self.depth
        return self._increment(first, last).div_(math.sqrt(length))
