"""What an evaluation measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        first, images: the ids first … first + images - 1 of the data are measured.
        seed: of the times, the noise, the probes and the permutation.
        times: times per image, of a bound that is a sum over times.
        samples: draws of the latents per image, of a bound by such draws; None for the system's own
            number. With more than one, the importance-weighted bound is reported too.
        options: further arguments of the system's `bound`, other than times and samples.
        probes: of the likelihood along the probability flow; 0 leaves this likelihood out.
        divergence, tolerance: see `likelihood.nll`.
        with_labels: measure p(x|y) instead of p(x).
        permute: permute the pixels, all images in the same way.
        unit: the number of images measured together.
    """

    images: int = 1000
    first: int = 0
    seed: int = 0
    times: int = 64
    samples: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    probes: int = 0
    divergence: str = "rademacher"
    tolerance: float = 1e-4
    with_labels: bool = False
    permute: bool = False
    unit: int = 50

    def __post_init__(self) -> None:
        for name in ("images", "times", "samples", "unit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(
                    f"fastdiff.theory.evaluation: expected {name} >= 1, got {getattr(self, name)}."
                )
        for name in ("first", "probes", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"fastdiff.theory.evaluation: expected {name} >= 0, got {getattr(self, name)}."
                )


def dequantization_of(settings: dict[str, Any], data: Any) -> str | None:
    """Returns how `likelihood.nll` dequantises the data, by a system's `for_likelihood()`.

    A system with a density does not say it for data on levels: they get uniform noise, as for the
    bound.
    """
    named = settings["dequantization"]
    return "uniform" if named is None and data.levels is not None else named


def likelihood_of(system: Any) -> str:
    """Returns `discretized` for a system with mass on levels, `gaussian` for one with a density."""
    return str(getattr(system, "config", {}).get("likelihood", "discretized"))
