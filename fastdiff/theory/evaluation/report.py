"""Turns numbers per image into a report: means with standard errors, as JSON values and as text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .request import Request, dequantization_of, likelihood_of


def report(system: Any, data: Any, request: Request, units: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the report of all units, given in order.

    Its keys:
        data, ids, seed, …: what was measured; `given` lists what the density is conditioned on.
        terms, bound, importance_weighted, nll: nats and bits_per_dim with their standard errors.
        entropy: the same of the data, if their density is known.
        over_time: the terms of each time, if the bound is a sum over times.
        cross_entropy, accuracy: of a classifier.
    """
    rows = {name: np.concatenate([u["rows"][name] for u in units]) for name in units[0]["rows"]}
    dims = math.prod(data.shape)
    result: dict[str, Any] = {
        "data": data.name,
        "ids": [request.first, request.first + request.images - 1],
        "images": request.images,
        "seed": request.seed,
        "permuted": request.permute,
        "labels": request.with_labels,
        "given": [*getattr(system, "given", ()), *(["y"] if request.with_labels else [])],
        "dims": dims,
        "levels": data.levels,
    }
    terms = {
        name.removeprefix("bound."): v for name, v in rows.items() if name.startswith("bound.")
    }
    if terms:
        result["convention"] = convention(system, data)
        result["terms"] = {name: _mean(v, dims) for name, v in terms.items()}
        result["bound"] = _mean(sum(v for name, v in terms.items() if name != "importance"), dims)
    if "importance" in terms:
        result["importance_weighted"] = _mean(sum(terms.values()), dims) | {
            "samples": request.samples or getattr(system, "samples", 1)
        }
    if "nll" in rows:
        exact = request.divergence == "exact"
        result["nll"] = _mean(rows["nll"], dims) | {
            "convention": convention(system, data, flow=True),
            "divergence": request.divergence,
            "probes": None if exact else request.probes,
            "stderr_of_probes": (
                None if np.isnan(rows["nll.probes"]).any() else _root_mean(rows["nll.probes"], dims)
            ),
            "evaluations": float(rows["nll.nfe"].mean()),
        }
    if "density" in rows:
        result["entropy"] = _mean(rows["density"], dims)
    for name in ("cross_entropy", "accuracy"):
        if name in rows:
            result[name] = {"mean": float(rows[name].mean()), "stderr": _stderr(rows[name])}
    if units[0]["columns"]:
        result["over_time"] = _columns([u["columns"] for u in units], request.images)
    return result


def convention(system: Any, data: Any, *, flow: bool = False) -> str:
    """Returns how a density was turned into a probability of levels, or why it was not, as text."""
    if data.levels is None:
        return "density of continuous data; nothing to dequantise"
    if flow:
        kind = dequantization_of(system.for_likelihood(), data) or ""
        shift = {
            "uniform": "noise uniform over a level, D ln 128 (7 bits a dimension) added",
            "centred": (
                "noise uniform over a level about its value, D ln 127.5 (6.994 bits a dimension)"
                " added"
            ),
            "gaussian": (
                "Gaussian noise of the lowest noise level, -ln of the discretised Gaussian's"
                " probability of the level added"
            ),
        }
        return f"dequantised: {shift[kind]}"
    if likelihood_of(system) == "gaussian":
        return "dequantised: noise uniform over a level, D ln 128 (7 bits a dimension) added"
    return f"probability of {data.levels} levels (discretised likelihood); nothing to dequantise"


def conditional(result: dict[str, Any]) -> bool:
    """Whether a report is of a density given a part of x, such as its small image.

    Such a likelihood does not compare with those of x: part of x is not paid for.
    """
    return bool({*result.get("given", ())} - {"y"})


def text(result: dict[str, Any], name: str) -> str:
    """Returns the report as text for a terminal; `name` is the model's."""
    low, high = result["ids"]
    permuted = ", pixels permuted" if result["permuted"] else ""
    lines = [
        f"{name}: {result['images']:,} of {result['data']} (ids {low}–{high}{permuted}), seed"
        f" {result['seed']}"
    ]
    if "bound" in result:
        given = ", ".join(result["given"])
        about = f"-ln p(x | {given})" if given else "-ln p(x)"
        about = f"conditional likelihood {about}" if conditional(result) else about
        lines += [f"  {about} of {result['dims']} dimensions: {result['convention']}"]
        lines += [f"  {'':22s}{'nats':>12s}{'bits/dim':>22s}"]
        lines += [
            _line(term, value) for term, value in result["terms"].items() if term != "importance"
        ]
        lines += [_line("bound", result["bound"])]
        if conditional(result):
            lines += [f"    given {given}: not comparable with the likelihood of a model of x"]
    if "importance_weighted" in result:
        value = result["importance_weighted"]
        lines += [_line(f"bound, {value['samples']} weights", value)]
    if "nll" in result:
        value = result["nll"]
        probes = (
            "exact divergence"
            if value["probes"] is None
            else f"{value['probes']} {value['divergence']} probes"
        )
        lines += [_line("probability flow", value)]
        of_probes = value["stderr_of_probes"]
        share = (
            f", their share of the error {of_probes['bits_per_dim']:.4f} bits/dim"
            if of_probes
            else ""
        )
        lines += [
            f"    {probes}{share}; {value['evaluations']:.0f} evaluations an image;"
            f" {value['convention']}"
        ]
    if "entropy" in result:
        lines += [_line("entropy of the data", result["entropy"])]
    for key, unit in (("cross_entropy", " nats"), ("accuracy", "")):
        if key in result:
            mean, error = result[key]["mean"], _error(result[key]["stderr"])
            lines += [f"  {key.replace('_', ' '):22s}{mean:12.4f}{error}{unit}"]
    if "over_time" in result and "right" in result["over_time"]:
        lines += _classifier_lines(result["over_time"])
    return "\n".join(lines)


def _classifier_lines(over: dict[str, Any]) -> Iterable[str]:
    accuracy, level = np.array(over["right"]), np.array(over["log_snr"])
    for part in np.array_split(np.arange(len(accuracy)), min(4, len(accuracy))):
        edges = f"log-SNR {level[part[0]]:.1f} … {level[part[-1]]:.1f}"
        yield f"    {edges:26s} accuracy {accuracy[part].mean():.4f}"


def _line(name: str, value: dict[str, Any]) -> str:
    shown = f"  {name.replace('_', ' '):22s}{value['nats']:12.2f}{value['bits_per_dim']:12.4f}"
    return shown + _error(value["bits_per_dim_stderr"])


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f" ± {stderr:.4f}"


def _mean(values: Any, dims: int) -> dict[str, Any]:
    nats, stderr, unit = float(np.mean(values)), _stderr(values), dims * math.log(2)
    scaled = None if stderr is None else stderr / unit
    return {
        "nats": nats,
        "stderr": stderr,
        "bits_per_dim": nats / unit,
        "bits_per_dim_stderr": scaled,
    }


def _stderr(values: Any) -> float | None:
    """Returns the standard error of the mean; None for a single number."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _root_mean(stderrs: Any, dims: int) -> dict[str, float]:
    """Returns the standard error of a mean of independent numbers with these standard errors."""
    nats = float(np.sqrt(np.sum(np.square(stderrs))) / len(stderrs))
    return {"nats": nats, "bits_per_dim": nats / (dims * math.log(2))}


def _columns(columns: list[dict[str, list[float]]], n: int) -> dict[str, list[float]]:
    """Returns means over the images and standard errors of the terms, for each time."""
    sums = {name: np.sum([c[name] for c in columns], axis=0) / n for name in columns[0]}
    variance = np.maximum(sums["square"] - sums["sum"] ** 2, 0.0) / max(n - 1, 1)
    result = {"log_snr": sums["log_snr"], "nats": sums["sum"], "stderr": np.sqrt(variance)}
    result |= {"right": sums["right"]} if "right" in sums else {}
    return {name: value.tolist() for name, value in result.items()}
