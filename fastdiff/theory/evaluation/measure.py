"""What a system says of held-out data, image by image, and the means of it.

    bits/dim = nats/(D ln 2),    standard error = standard deviation over the images/√N

Each image has its own times, noise and probes, functions of (seed, image id): the deviation over
images is that over times and noise too. Images are measured in units of consecutive ids of a fixed
size, so that the numbers do not depend on how many processes share the work, to the last bit.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..likelihood import nll
from ..score.dequantize import dequantize
from .workers import Workers


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        first, images: ids first … first + images - 1 of the data. seed: of times, noise, probes and
            the permutation.
        times: of a bound that is a sum over times, for each image. samples: of a bound by draws of
            latents, None for as the system has them; more than one gives the importance-weighted
            bound too. options: further arguments of the system's `bound`.
        probes: of the probability flow's likelihood, 0 leaves it out. divergence, tolerance: see
            `likelihood.nll`.
        with_labels: of p(x|y) instead of p(x). permute: the pixels, all images alike. unit: images
            measured together.
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


def evaluate(
    system: Any,
    data: Any,
    request: Request,
    workers: Workers | None = None,
    shown: Callable[[int], Any] | None = None,
) -> dict[str, Any] | None:
    """The report of fastdiff.theory.evaluation.report's shape, in the first process; None in the
    others.

    Args:
        system: see `fastdiff.theory.registry.System`, in eval mode. data: of fastdiff.data. shown:
            told how many images of this process are done.

    Raises:
        ValueError: ids that the data does not have, a request that the system can't meet.
            RuntimeError: see `Workers`.
    """
    from .report import report

    workers = workers or Workers()
    if request.first + request.images > data.examples:
        raise ValueError(
            f"fastdiff.theory.evaluation: expected ids below {data.examples}, of {data.name}, got"
            f" first {request.first} and {request.images} images."
        )
    _check(system, request)
    units = list(torch.arange(request.first, request.first + request.images).split(request.unit))

    def work() -> dict[str, Any]:
        done: dict[str, Any] = {}
        for number in range(workers.rank, len(units), workers.world):
            done[str(number)] = unit(system, data, units[number], request)
            if shown:
                shown(len(units[number]))
        return done

    parts = workers.collect(work)
    if parts is None:
        return None
    found = {int(k): v for part in parts for k, v in part.items()}
    return report(system, data, request, [found[n] for n in range(len(units))])


def unit(system: Any, data: Any, ids: Tensor, request: Request) -> dict[str, Any]:
    """The numbers of some images: `rows`, one per image, and `columns`, sums over the images for
    each of their times.
    """
    x0, labels = data.batch(ids)
    if request.permute:
        order = np.random.default_rng(request.seed).permutation(math.prod(data.shape))
        x0 = x0.flatten(1)[:, torch.from_numpy(order)].reshape(x0.shape)
    counter: dict[str, Any] = {"seed": request.seed, "sample_ids": ids}
    if not hasattr(system, "bound"):
        return _guesses(system.guesses(x0, labels, times=request.times, **counter))
    given = labels if request.with_labels else None
    rows: dict[str, Tensor] = {}
    x = x0
    if data.levels is not None and likelihood_of(system) == "gaussian":
        # a density on a lattice says nothing: the images are spread over their levels' widths first
        x, rows["bound.dequantization"] = dequantize(x0, "uniform", rho=0.0, **counter)
    with torch.no_grad():
        bound, columns = _bound(system, x, given, request, counter)
    rows |= {f"bound.{name}": value for name, value in bound.items()}
    if request.probes or request.divergence == "exact":
        flow = nll(
            x=x0,
            **system.for_likelihood(given),
            probes=max(request.probes, 1),
            divergence=request.divergence,
            rtol=request.tolerance,
            atol=request.tolerance,
            **counter,
        )
        rows |= {"nll": flow.nats, "nll.probes": flow.stderr, "nll.nfe": flow.nfe}
    if hasattr(data, "log_density"):
        rows["density"] = -data.log_density(x0)
    return {"rows": {k: v.double().tolist() for k, v in rows.items()}, "columns": columns}


def likelihood_of(system: Any) -> str:
    """`discretized`, mass on levels, or `gaussian`, a density."""
    return str(getattr(system, "config", {}).get("likelihood", "discretized"))


def _check(system: Any, request: Request) -> None:
    """Raises ValueError for what the system can't be asked."""
    name = type(system).__name__
    if not hasattr(system, "bound") and not hasattr(system, "guesses"):
        raise ValueError(
            f"fastdiff.theory.evaluation: expected a system with a bound, got a {name}."
        )
    if (request.probes or request.divergence == "exact") and not hasattr(system, "for_likelihood"):
        raise ValueError(
            "fastdiff.theory.evaluation: expected a diffusion or score model for the probability"
            f" flow's likelihood, got a {name}. Leave out probes and the exact divergence."
        )
    wanted = dict(request.options) | (
        {"samples": request.samples} if (request.samples or 1) > 1 else {}
    )
    known = _arguments(system)
    for option in wanted:
        if option not in known:
            raise ValueError(
                f"fastdiff.theory.evaluation: expected an option of {name}'s bound"
                f" ({', '.join(sorted(known)) or 'none'}), got {option!r}."
            )


def _arguments(system: Any) -> set[str]:
    """The options of the system's bound."""
    names = inspect.signature(system.bound).parameters if hasattr(system, "bound") else {}
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    fixed = {"x0", "labels", "seed", "sample_ids", "step"}
    return {n for n, p in dict(names).items() if p.kind not in kinds} - fixed


def _bound(
    system: Any, x: Tensor, labels: Tensor | None, request: Request, counter: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    known, options = _arguments(system), dict(request.options)
    if "samples" in known and request.samples is not None:
        options |= {"samples": request.samples}
    if "importance" in known and request.samples is not None:
        options |= {"importance": request.samples > 1}
    if "times" not in known:
        return system.bound(x, labels, **counter, **options), {}
    options |= {"times": request.times}
    if not hasattr(system, "terms"):
        return system.bound(x, labels, **counter, **options), {}
    timed = system.terms(x, labels, **counter, **options)
    each = timed.denoising.double()
    sums = {
        "log_snr": timed.log_snr.double().sum(0),
        "sum": each.sum(0),
        "square": each.square().sum(0),
    }
    return timed.bound, {k: v.tolist() for k, v in sums.items()}


def _guesses(guesses: Any) -> dict[str, Any]:
    """Of a classifier: means over its times for each image, and sums over the images for each
    time.
    """
    entropy, right = guesses.cross_entropy.double(), guesses.right.double()
    columns = {
        "log_snr": guesses.log_snr.double().sum(0),
        "sum": entropy.sum(0),
        "square": entropy.square().sum(0),
    }
    columns["right"] = right.sum(0)
    rows = {"cross_entropy": entropy.mean(1), "accuracy": right.mean(1)}
    return {
        "rows": {k: v.tolist() for k, v in rows.items()},
        "columns": {k: v.tolist() for k, v in columns.items()},
    }
