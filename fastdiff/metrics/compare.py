"""Summarises sets of pictures by their features, and compares two summaries."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .distances import frechet_distance, kernel_distance, neighbours
from .extractors import Extractor
from .moments import Moments

KEPT = 10_000  # features of a set that stay in memory, for the kernel distance and neighbours
FEW = 10_000  # below this number the bias of the Fréchet distance is large
_WHERE = "fastdiff.metrics"


@dataclass
class Summary:
    """What a comparison needs of a set.

    Attributes:
        moments: of all samples.
        features: float32 [K, F] of the first K samples; empty for a file of statistics.
        name: of the features; empty where a file does not say it.
        shape: of a sample; None for a file of statistics.
    """

    moments: Moments
    features: Tensor = field(repr=False)
    name: str
    shape: tuple[int, ...] | None = None


def summarize(
    batches: Iterable[Tensor],
    extractor: Extractor,
    *,
    keep: int = KEPT,
    progress: Callable[[int], object] | None = None,
) -> Summary:
    """Returns the summary of a set, of which one batch is in memory at a time.

    Args:
        batches: pictures uint8 [B, C, H, W], or points [B, …] of a floating type.
        extractor: of the features.
        keep: how many features to keep.
        progress: called after each batch with its number of samples.

    Raises ValueError for fewer than two samples and for features that are not finite.
    """
    moments: Moments | None = None
    kept, held, shape = [], 0, None
    for x in batches:
        if not len(x):
            continue
        if shape is not None and tuple(x.shape[1:]) != shape:
            raise ValueError(
                f"{_WHERE}: expected pictures of one shape in a set, got {list(shape)} and"
                f" {list(x.shape[1:])}."
            )
        shape, found = tuple(x.shape[1:]), extractor(x).cpu()
        moments = moments or Moments(found.shape[1])
        moments.add(found)
        if held < keep:
            kept.append(found[: keep - held].to(torch.float32))
            held += len(kept[-1])
        if progress is not None:
            progress(len(x))
    if moments is None or moments.n is None or moments.n < 2:
        raise ValueError(
            f"{_WHERE}: expected at least 2 samples in a set, got {0 if moments is None else 1}."
        )
    features = torch.cat(kept) if kept else torch.empty(0, moments.features)
    return Summary(moments, features, extractor.name, shape)


def compare(
    a: Summary,
    b: Summary,
    *,
    k: int = 3,
    density_k: int = 5,
    size: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the distances of A from B: `frechet`, and where both have features the others.

    `kernel`, `kernel_standard_error`, `kernel_subsets`, `kernel_size` are of the kernel distance;
    `precision`, `recall`, `density`, `coverage`, `k`, `density_k` of the neighbours, over the
    samples whose features were kept (`neighbours_of`, a pair). Sets that are too small for one
    of these leave it out. Warns where the Fréchet distance is mostly bias.

    Raises ValueError for features of different names or numbers.
    """
    if a.name and b.name and a.name != b.name:
        raise ValueError(
            f"{_WHERE}: expected features of one network in both sets, got {a.name!r} and"
            f" {b.name!r}."
        )
    warn_of_bias(a, b)
    found: dict[str, Any] = {"frechet": frechet_distance(a.moments, b.moments)}
    smaller = min(len(a.features), len(b.features))
    if smaller >= 2 * (size or 2):
        kernel = kernel_distance(a.features, b.features, size=_subset(smaller, size), seed=seed)
        found |= {
            "kernel": kernel.value,
            "kernel_standard_error": kernel.standard_error,
            "kernel_subsets": kernel.subsets,
            "kernel_size": kernel.size,
        }
    if smaller > max(k, density_k):
        near = neighbours(a.features, b.features, k=k, density_k=density_k)
        found |= near._asdict() | {"neighbours_of": [len(a.features), len(b.features)]}
    return found


def _subset(smaller: int, size: int | None) -> int | None:
    return 2 if size is None and smaller < 8 else size


def warn_of_bias(*sets: Summary) -> None:
    """Warns, once, of sets that are too small for a Fréchet distance to mean much."""
    counts = [s.moments.n for s in sets if s.moments.n is not None]
    least = min(counts, default=FEW)
    features = sets[0].moments.features
    if least <= features:
        warnings.warn(
            f"expected more samples than the {features} features, got {least}: their covariance is"
            " singular, and the Fréchet distance is mostly bias.",
            stacklevel=3,
        )
    elif least < FEW:
        warnings.warn(
            f"expected {FEW:,} samples or more, got {least:,}: the Fréchet distance of few samples"
            " is too large, by an amount that falls with their number.",
            stacklevel=3,
        )
