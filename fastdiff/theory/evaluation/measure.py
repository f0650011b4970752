"""Evaluates a system on held-out data, image by image.

    bits/dim = nats/(D ln 2),    standard error = standard deviation over the images/√N

The times, the noise and the probes of an image are functions of (seed, image id), so the deviation
over images includes that over times and noise. Images are measured in units of consecutive ids of a
fixed size. The numbers are therefore bit-identical for any number of processes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...grad_mode import restored
from ..dequantization import FIRST_STEP, dequantize
from ..likelihood import nll
from .report import report
from .request import Request, dequantization_of, likelihood_of
from .workers import Workers


def evaluate(
    system: Any,
    data: Any,
    request: Request,
    workers: Workers | None = None,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, Any] | None:
    """Returns the report in the first process, None in the others; see the module `report`.

    Args:
        system: a `fastdiff.theory.system.System` in eval mode.
        data: a data set of fastdiff.data.
        request: what to measure.
        workers: the processes that share the work; None takes them from the environment.
        progress: called with the number of images of each unit that this process completes.

    Raises:
        ValueError: for ids that the data does not have and requests that the system can't meet.
        RuntimeError: see `Workers`.
    """
    workers = workers or Workers()
    check(system, data, request)
    units = list(torch.arange(request.first, request.first + request.images).split(request.unit))

    def work() -> dict[str, Any]:
        done: dict[str, Any] = {}
        for number in range(workers.rank, len(units), workers.world):
            done[str(number)] = unit(system, data, units[number], request)
            if progress:
                progress(len(units[number]))
        return done

    parts = workers.collect(work)
    if parts is None:
        return None
    by_number = {int(k): v for part in parts for k, v in part.items()}
    return report(system, data, request, [by_number[n] for n in range(len(units))])


@restored
def unit(system: Any, data: Any, ids: Tensor, request: Request) -> dict[str, Any]:
    """Returns the numbers of the images `ids` in two dicts.

    `rows` has one value per image, `columns` sums over the images for each of their times.
    """
    x0, labels = data.batch(ids)
    if request.permute:
        order = np.random.default_rng(request.seed).permutation(math.prod(data.shape))
        x0 = x0.flatten(1)[:, torch.from_numpy(order)].reshape(x0.shape)
    counter: dict[str, Any] = {"seed": request.seed, "sample_ids": ids}
    if not hasattr(system, "bound"):
        return _classifier_numbers(system.guesses(x0, labels, times=request.times, **counter))
    condition = labels if request.with_labels else None
    rows: dict[str, Tensor] = {}
    x = x0
    if data.levels is not None and likelihood_of(system) == "gaussian":
        # the density of discrete levels is unbounded: uniform noise fills the width of a level
        # first, drawn at a step that the bound's own noise does not use
        x, rows["bound.dequantization"] = dequantize(
            x0, "uniform", rho=0.0, step=FIRST_STEP, **counter
        )
    with torch.no_grad():
        bound, columns = _bound(system, x, condition, request, counter)
    rows |= {f"bound.{name}": value for name, value in bound.items()}
    if request.probes or request.divergence == "exact":
        settings = system.for_likelihood(condition)
        flow = nll(
            x=x0,
            **(settings | {"dequantization": dequantization_of(settings, data)}),
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


def check(system: Any, data: Any, request: Request) -> None:
    """Raises ValueError for ids that the data does not have, and for a request that the system
    can't meet.
    """
    if request.first + request.images > data.examples:
        raise ValueError(
            f"fastdiff.theory.evaluation: expected ids below {data.examples}, of {data.name}, got"
            f" first {request.first} and {request.images} images."
        )
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
    options = dict(request.options) | (
        {"samples": request.samples} if (request.samples or 1) > 1 else {}
    )
    known = _arguments(system)
    for option in ("times", "samples"):
        if option in request.options:
            raise ValueError(
                f"fastdiff.theory.evaluation: expected {option} as a field of Request (--{option}),"
                " got it as an option."
            )
    for option in options:
        if option not in known:
            raise ValueError(
                f"fastdiff.theory.evaluation: expected an option of {name}'s bound"
                f" ({', '.join(sorted(known)) or 'none'}), got {option!r}."
            )


def _arguments(system: Any) -> set[str]:
    """Returns the names of the options of the system's bound."""
    names = inspect.signature(system.bound).parameters if hasattr(system, "bound") else {}
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    fixed = {"x0", "labels", "seed", "sample_ids", "step"}
    return {n for n, p in dict(names).items() if p.kind not in kinds} - fixed


def _bound(
    system: Any, x: Tensor, labels: Tensor | None, request: Request, counter: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Returns the bound's terms [B] and, where it is a sum over times, sums for each time."""
    known, options = _arguments(system), dict(request.options)
    if "samples" in known and request.samples is not None:
        options |= {"samples": request.samples}
    if "importance" in known and request.samples is not None:
        options = {"importance": request.samples > 1} | options
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


def _classifier_numbers(guesses: Any) -> dict[str, Any]:
    """Returns a classifier's means over times per image, and sums over images per time."""
    entropy, correct = guesses.cross_entropy.double(), guesses.correct.double()
    columns = {
        "log_snr": guesses.log_snr.double().sum(0),
        "sum": entropy.sum(0),
        "square": entropy.square().sum(0),
    }
    columns["right"] = correct.sum(0)
    rows = {"cross_entropy": entropy.mean(1), "accuracy": correct.mean(1)}
    return {
        "rows": {k: v.tolist() for k, v in rows.items()},
        "columns": {k: v.tolist() for k, v in columns.items()},
    }
