"""Distances between two sets of features: Fréchet, kernel, and what their neighbours say.

    FD²  = |m1 - m2|² + tr(S1 + S2 - 2 (S1^(1/2) S2 S1^(1/2))^(1/2))     (Heusel et al. 2017, eq. 6)
    MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y),  k(x, y) = (x·y/F + 1)³
                                                            (Binkowski et al. 2018, section 3.1)

The Fréchet distance, which is always given squared, compares means and covariances only, and is
biased upwards: for n samples by about c/n. The kernel distance is unbiased.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import rng
from .moments import Moments

_WHERE = "fastdiff.metrics"
_ROWS = 1024  # of a block of distances
SUBSET = 1000  # samples of a subset of the kernel distance
SUBSETS = 4  # at least so many, of fewer samples each where there are few


class KernelDistance(NamedTuple):
    """An estimate of the kernel distance.

    Attributes:
        value: the mean over the subsets; below 0 where the sets are as near as chance makes them.
        standard_error: of the mean; the subsets share no sample.
        subsets, size: their number, and the samples of each in either set.
    """

    value: float
    standard_error: float
    subsets: int
    size: int


class Neighbours(NamedTuple):
    """How two sets overlap, in [0, 1] but for the density.

    A ball around a sample reaches to its k-th nearest neighbour in its own set.

    Attributes:
        precision: the share of A in the balls of B (Kynkäänniemi et al. 2019, eq. 2).
        recall: the share of B in the balls of A.
        density: the mean number of B's balls around a sample of A, over k (Naeem et al. 2020, eq.
            3); near 1 for equal distributions.
        coverage: the share of B's balls with a sample of A in them (eq. 4).
        k: of precision and recall.
        density_k: of density and coverage.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    density_k: int


def frechet_distance(a: Moments, b: Moments) -> float:
    """Returns FD² of two sets of moments, in float64.

    The trace of the root is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which
    is symmetric; the product S1 S2 is not, and its root can come out complex.

    Raises ValueError for different numbers of features, or a set of fewer than two samples.
    """
    if a.features != b.features:
        raise ValueError(
            f"{_WHERE}: expected the same number of features in both sets, got {a.features} and"
            f" {b.features}. Use one network for both."
        )
    s1, s2 = a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(s1)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    inner = root @ s2 @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + s1.trace() + s2.trace() - 2 * cross
    return max(0.0, float(distance))  # rounding may lead below 0


def kernel_distance(
    a: Tensor, b: Tensor, *, size: int | None = None, seed: int = 0
) -> KernelDistance:
    """Returns the unbiased estimate of MMD² (Binkowski et al. 2018, eq. 4) of features [N, F].

    Both sets are cut into disjoint subsets, in an order that is drawn by `seed`. Subsets that are
    drawn anew each time overlap, and the spread of their estimates then understates the error.

    Args:
        a, b: [N, F] and [M, F], of any floating type; computed in float64.
        size: samples of a subset in either set; 1000 by default, or fewer, for 4 subsets.
        seed: in [0, 2**64).

    Raises ValueError for fewer than two subsets of two samples.
    """
    _check(a, b)
    smaller = min(len(a), len(b))
    size = min(SUBSET, smaller // SUBSETS) if size is None else size
    if size < 2 or smaller < 2 * size:
        raise ValueError(
            f"{_WHERE}: expected 2 subsets of at least 2 samples for the kernel distance, got"
            f" {smaller} samples and subsets of {size}."
        )
    count = smaller // size
    parts = [_shuffled(x, seed, word)[: count * size].double() for word, x in enumerate((a, b))]
    estimates = torch.stack(
        [_mmd2(x, y) for x, y in zip(*(part.split(size) for part in parts), strict=True)]
    )
    error = float(estimates.std()) / math.sqrt(count)
    return KernelDistance(float(estimates.mean()), error, count, size)


def _mmd2(x: Tensor, y: Tensor) -> Tensor:
    """Returns Σ_{i≠j} k(x_i, x_j)/(n(n-1)) + Σ_{i≠j} k(y_i, y_j)/(n(n-1)) - 2 mean k(x, y)."""

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        return (p @ q.T / p.shape[1] + 1).pow(3)

    n = len(x)
    own = [(k.sum() - k.diagonal().sum()) / (n * (n - 1)) for k in (kernel(x, x), kernel(y, y))]
    return own[0] + own[1] - 2 * kernel(x, y).mean()


def _shuffled(x: Tensor, seed: int, word: int) -> Tensor:
    """Returns the rows in an order that is a function of (seed, word) and their number."""
    u = rng.randint(1 << 31, seed=seed, sample_ids=torch.arange(len(x)), word=word)
    return x[torch.argsort(u, stable=True).to(x.device)]


def neighbours(a: Tensor, b: Tensor, *, k: int = 3, density_k: int = 5) -> Neighbours:
    """Returns precision, recall, density and coverage of features [N, F] of A by those of B.

    Distances are computed in float64, block by block: N·N + M·M + N·M of them.

    Args:
        a: [N, F], of the samples that are judged.
        b: [M, F], of the data.
        k, density_k: which neighbour the balls reach to, for the first and the last two.

    Raises ValueError for sets of at most max(k, density_k) samples.
    """
    _check(a, b)
    most = max(k, density_k)
    if min(k, density_k) < 1 or min(len(a), len(b)) <= most:
        raise ValueError(
            f"{_WHERE}: expected k >= 1 and more than {most} samples in either set, got k = {k},"
            f" {density_k} and {len(a)}, {len(b)} samples."
        )
    centre = b.double().mean(0)  # differences of small numbers lose fewer digits
    a, b = a.double() - centre, b.double() - centre
    of_a = _radii(a, most)[:, k - 1]
    radii = _radii(b, most)
    of_b, wide = radii[:, k - 1], radii[:, density_k - 1]
    reached = torch.zeros(len(b), dtype=torch.bool)
    covered = torch.zeros(len(b), dtype=torch.bool)
    inside = balls = 0
    for i in range(0, len(a), _ROWS):
        d = _squared(a[i : i + _ROWS], b)
        inside += int((d <= of_b).any(1).sum())
        reached |= (d <= of_a[i : i + _ROWS, None]).any(0)
        within = d < wide
        balls += int(within.sum())
        covered |= within.any(0)
    return Neighbours(
        precision=inside / len(a),
        recall=float(reached.double().mean()),
        density=balls / (density_k * len(a)),
        coverage=float(covered.double().mean()),
        k=k,
        density_k=density_k,
    )


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Returns |x_i - y_j|² [N, M]."""
    return (
        (x.square().sum(1)[:, None] + y.square().sum(1)).addmm_(x, y.T, alpha=-2.0).clamp_min_(0.0)
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """Returns the squared distances [N, k] of each sample to its k nearest ones, rising."""
    found = []
    for i in range(0, len(x), _ROWS):
        d = _squared(x[i : i + _ROWS], x)
        rows = torch.arange(len(d))
        d[rows, rows + i] = math.inf  # a sample is no neighbour of itself
        found.append(d.topk(k, dim=1, largest=False).values)
    return torch.cat(found)


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise ValueError(
            f"{_WHERE}: expected features [N, F] and [M, F] of the same F, got {list(a.shape)} and"
            f" {list(b.shape)}."
        )
