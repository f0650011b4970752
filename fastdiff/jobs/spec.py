"""The run spec: everything that a dataset's bits depend on, written before the first sample.

Workers read the plan's table from it, as hexadecimal floats, and never recompute it, because
NumPy's float64 log, exp and pow differ between processors. A worker takes from the spec what it can
set (the threads), and compares what it cannot set (the weights, the machine); it refuses to work
where these differ.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..solvers import Plan
from ..table import COLUMNS, INDEX, SCHEMA_VERSION
from ..versions import CONTRACT_VERSION
from .units import Units

FORMAT_VERSION = 1


class SpecMismatch(ValueError):
    """A run's spec and the present settings differ; the message ends with a line per difference."""


@dataclass(frozen=True, eq=False)
class RunSpec:
    """All inputs of a dataset: equal specs give equal bits.

    Attributes:
        model: the arguments that name the model (name, decode, shape) and its `identity`: kind,
            config, SHA-256 of the weights.
        sampling: the sampler's settings as the user gave them; the plan is their result.
        ids: (first, last) sample ids, both included.
        seed: seed of the run.
        unit: samples that are computed together.
        network_batch: rows of every network call; None is the unit.
        dtype: of the network: fp32, bf16 or fp16.
        guidance_scale: gamma.
        conditions: identity of the samples' conditions (fastdiff.jobs.conditions).
        plan: the table of the run's steps.
        format: of the data files (fastdiff.jobs.formats).
        threads: CPU threads of a worker.
        machine: see fastdiff.jobs.machine.
        hash: SHA-256 over all of these.
    """

    model: Mapping[str, Any]
    sampling: Mapping[str, Any]
    ids: tuple[int, int]
    seed: int
    unit: int
    network_batch: int | None
    dtype: str
    guidance_scale: float | tuple[float, ...]
    conditions: Mapping[str, Any]
    plan: Plan
    format: str
    threads: int
    machine: Mapping[str, Any]
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"fastdiff.jobs: expected seed in [0, 2**64), got {self.seed}.")
        if self.threads < 1:
            raise ValueError(f"fastdiff.jobs: expected threads >= 1, got {self.threads}.")
        _ = self.units
        text = json.dumps(self._content(), sort_keys=True, allow_nan=False)
        object.__setattr__(self, "hash", hashlib.sha256(text.encode()).hexdigest())

    @property
    def units(self) -> Units:
        return Units(*self.ids, self.unit)

    def _content(self) -> dict[str, Any]:
        scale = self.guidance_scale
        return {
            "format_version": FORMAT_VERSION,
            "noise_version": CONTRACT_VERSION,
            "model": dict(self.model),
            "sampling": _plain(self.sampling),
            "ids": list(self.ids),
            "seed": self.seed,
            "unit": self.unit,
            "network_batch": self.network_batch,
            "dtype": self.dtype,
            "guidance_scale": list(scale) if isinstance(scale, tuple) else scale,
            "conditions": dict(self.conditions),
            "format": self.format,
            "threads": self.threads,
            "machine": dict(self.machine),
            "plan": plan_to_json(self.plan),
        }

    def to_json(self) -> dict[str, Any]:
        return {"hash": self.hash, **self._content()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> RunSpec:
        """Returns the spec of a JSON value.

        where: the name of its file, for error messages. Raises ValueError for another format
        version, a missing key, and content that does not match its hash.
        """
        if (
            value.get("format_version") != FORMAT_VERSION
            or value.get("noise_version") != CONTRACT_VERSION
        ):
            raise ValueError(
                f"fastdiff.jobs: expected format_version {FORMAT_VERSION} and noise_version"
                f" {CONTRACT_VERSION} in {where}, got {value.get('format_version')!r} and"
                f" {value.get('noise_version')!r}. Use the fastdiff that wrote it."
            )
        scale = value.get("guidance_scale")
        try:
            spec = cls(
                ids=(int(value["ids"][0]), int(value["ids"][1])),
                guidance_scale=tuple(scale) if isinstance(scale, list) else value["guidance_scale"],
                plan=plan_from_json(value["plan"]),
                **{
                    name: value[name]
                    for name in (
                        "model",
                        "sampling",
                        "seed",
                        "unit",
                        "network_batch",
                        "dtype",
                        "conditions",
                        "format",
                        "threads",
                        "machine",
                    )
                },
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            got = f"{type(error).__name__}: {error}"
            raise ValueError(f"fastdiff.jobs: expected a run spec in {where}, got {got}.") from None
        if spec.hash != value.get("hash"):
            raise ValueError(
                f"fastdiff.jobs: expected the hash {value.get('hash')} in {where}, got {spec.hash}."
                " The file was changed after it was written; take it from a backup."
            )
        return spec


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Returns a plan as JSON with exact numbers: hexadecimal floats, without zeros."""
    rows = [{COLUMNS[i]: float(row[i]).hex() for i in np.flatnonzero(row)} for row in plan.table]
    levels = (
        None if plan.levels is None else [[float(v).hex() for v in level] for level in plan.levels]
    )
    return {
        "hash": plan.hash,
        "schema": SCHEMA_VERSION,
        "info": _plain(plan.info),
        "initial_std": float(plan.initial_std).hex(),
        "whole_times": plan.whole_times,
        "levels": levels,
        "table": rows,
    }


def plan_from_json(value: Mapping[str, Any]) -> Plan:
    """Returns the plan of a JSON value.

    Raises ValueError for another schema, and for a table that does not match its hash.
    """
    if value["schema"] != SCHEMA_VERSION:
        raise ValueError(f"expected a plan of schema {SCHEMA_VERSION}, got {value['schema']!r}")
    table = np.zeros((len(value["table"]), len(COLUMNS)))
    for row, cells in zip(table, value["table"], strict=True):
        for name, number in cells.items():
            row[INDEX[name]] = float.fromhex(number)
    levels = value["levels"]
    if levels is not None:
        levels = np.array([[float.fromhex(v) for v in level] for level in levels])
    plan = Plan(
        table,
        value["info"],
        initial_std=float.fromhex(value["initial_std"]),
        levels=levels,
        whole_times=value["whole_times"],
    )
    if plan.hash != value["hash"]:
        raise ValueError(f"expected the plan {value['hash'][:12]}, got {plan.hash[:12]}")
    return plan


def differences(there: Any, here: Any, path: str = "") -> list[str]:
    """Returns a line for each difference between two JSON values.

    For example: `machine.capability: 'AVX2' there, 'AVX512' here`.
    """
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        lines = []
        for key in [*there, *(k for k in here if k not in there)]:
            lines += differences(
                there.get(key, _ABSENT),
                here.get(key, _ABSENT),
                f"{path}.{key}" if path else str(key),
            )
        return lines
    there, here = (list(value) if isinstance(value, tuple) else value for value in (there, here))
    if there == here:
        return []
    return [f"{path}: {_short(there)} there, {_short(here)} here"]


_ABSENT = object()


def _plain(value: Any) -> Any:
    """Returns the value with everything JSON cannot hold as text: infinities, NaN, objects."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} … ({len(text)} characters)"
