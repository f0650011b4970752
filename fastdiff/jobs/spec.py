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
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..outside import shown
from ..solvers import Plan
from ..table import COLUMNS, INDEX, VERSIONS, version_of
from ..versions import CONTRACT_VERSION
from .formats import FORMATS
from .units import Units

FORMAT_VERSION = 1
SAVE = "trajectory"  # what a run may store next to its samples
HASH = re.compile(r"[0-9a-f]{64}")
# limits of a spec that someone else may have written
ROWS, CLASSES, THREADS = 1_000_000, 10_000_000, 4096


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
        plan: the table of the run's steps. A model that draws its samples itself has a plan without
            rows, whose info says "drawer": "sample".
        format: of the data files (fastdiff.jobs.formats).
        threads: CPU threads of a worker.
        machine: see fastdiff.jobs.machine.
        save: rows of the plan whose transitions are stored (fastdiff.jobs.trajectory); None for
            samples alone.
        hash: SHA-256 over all of these.
        recipe: SHA-256 over all of these but the ids and their conditions (`recipe_of`).
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
    save: tuple[int, ...] | None = None
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"fastdiff.jobs: expected seed in [0, 2**64), got {self.seed}.")
        if self.threads < 1:
            raise ValueError(f"fastdiff.jobs: expected threads >= 1, got {self.threads}.")
        if self.save is not None and not (self.save and max(self.save) < len(self.plan)):
            raise ValueError(
                f"fastdiff.jobs: expected rows in [0, {len(self.plan)}) to save, got"
                f" {list(self.save)}."
            )
        _ = self.units
        text = json.dumps(self._content(), sort_keys=True, allow_nan=False)
        object.__setattr__(self, "hash", hashlib.sha256(text.encode()).hexdigest())

    @property
    def units(self) -> Units:
        return Units(*self.ids, self.unit)

    @property
    def drawer(self) -> str:
        """What draws the samples: a `sampler` by the plan, or the model's own `sample`."""
        return "sample" if self.plan.info.get("drawer") == "sample" else "sampler"

    @property
    def recipe(self) -> str:
        return recipe_of(self._content())

    def with_ids(self, ids: tuple[int, int], conditions: Mapping[str, Any]) -> RunSpec:
        """Returns the spec of the same run with these ids and the identity of their conditions."""
        return replace(self, ids=ids, conditions=conditions)

    def _content(self) -> dict[str, Any]:
        scale = self.guidance_scale
        content = {
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
        # without it the spec, and so its hash, is that of versions that know no trajectories
        return content if self.save is None else {**content, "save": {SAVE: list(self.save)}}

    def to_json(self) -> dict[str, Any]:
        return {"hash": self.hash, **self._content()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> RunSpec:
        """Returns the spec of a JSON value.

        where: the name of its file, for error messages. Raises ValueError for another format
        version, a missing key, and content that does not match its hash.
        """
        versions = value.get("format_version"), value.get("noise_version")
        if versions != (FORMAT_VERSION, CONTRACT_VERSION) or any(
            type(v) is not int for v in versions
        ):
            got = " and ".join(shown(_short(version)) for version in versions)
            raise ValueError(
                f"fastdiff.jobs: expected format_version {FORMAT_VERSION} and noise_version"
                f" {CONTRACT_VERSION} in {where}, got {got}. Use the fastdiff that wrote it."
            )
        scale = value.get("guidance_scale")
        try:
            for name, (fits, expected) in FIELDS.items():
                if not fits(value[name]):
                    raise ValueError(f"{_short(value[name])} as {name}, which is {expected}")
            if "save" in value and not _save(value["save"]):
                raise ValueError(f"{_short(value['save'])} as save, which is an object of rows")
            spec = cls(
                save=tuple(value["save"][SAVE]) if "save" in value else None,
                ids=(value["ids"][0], value["ids"][1]),
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
        except (
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            OverflowError,
            AttributeError,
        ) as error:
            got = shown(f"{type(error).__name__}: {error}")
            raise ValueError(f"fastdiff.jobs: expected a run spec in {where}, got {got}.") from None
        if spec.hash != value.get("hash"):
            raise ValueError(
                f"fastdiff.jobs: expected the hash {shown(_short(value.get('hash')))} in {where},"
                f" got {spec.hash}. The file was changed after it was written; take it from a"
                " backup."
            )
        if spec.to_json() != value:  # the hash covers what is read, not what is not
            lines = differences(value, spec.to_json())
            raise ValueError(
                f"fastdiff.jobs: expected the run spec in {where} as it was written, got"
                f" {shown(lines[0]) if lines else 'another'}. Take it from a backup."
            )
        return spec


def recipe_of(spec: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a spec, as JSON, without its ids and conditions.

    A sample is a function of this, of its id and of its own class or prompt. It is in the files of
    the samples, whose bytes are thus the same in every run that holds them.
    """
    shared = {name: v for name, v in spec.items() if name not in ("hash", "ids", "conditions")}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Returns a plan as JSON with exact numbers: hexadecimal floats, without zeros."""
    rows = [{COLUMNS[i]: float(row[i]).hex() for i in np.flatnonzero(row)} for row in plan.table]
    levels = (
        None if plan.levels is None else [[float(v).hex() for v in level] for level in plan.levels]
    )
    return {
        "hash": plan.hash,
        "schema": version_of(plan.table),
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
    if value["schema"] not in VERSIONS:
        raise ValueError(f"expected a plan of schema {list(VERSIONS)}, got {value['schema']!r}")
    if not 0 < len(value["table"]) <= ROWS:
        raise ValueError(f"expected a plan of 1 to {ROWS} rows, got {len(value['table'])}")
    if not isinstance(value["info"], Mapping) or type(value["whole_times"]) is not bool:
        raise ValueError("expected info as an object and whole_times as true or false")
    table = np.zeros((len(value["table"]), len(COLUMNS)))
    for row, cells in zip(table, value["table"], strict=True):
        for name, number in cells.items():
            row[INDEX[name]] = float.fromhex(number)
    levels = value["levels"]
    if levels is not None:
        levels = np.array([[float.fromhex(v) for v in level] for level in levels])
        # a level may be infinite, as sigma is in pure noise, but not NaN
        if levels.shape != (len(table), 2) or np.isnan(levels).any():
            raise ValueError(f"expected {len(table)} levels of two numbers")
    initial_std = float.fromhex(value["initial_std"])
    if not 0 <= initial_std < math.inf:
        raise ValueError(f"expected initial_std as a number >= 0, got {initial_std}")
    plan = Plan(
        table,
        value["info"],
        initial_std=initial_std,
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


def _whole(value: Any, low: int = 0, high: int = 2**64 - 1) -> bool:
    return type(value) is int and low <= value <= high


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _model(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("identity"), dict):
        return False
    takes, shape = value["identity"].get("takes", {}), value.get("shape")
    return (
        isinstance(value.get("name"), str)
        and "\0" not in value["name"]
        and (value.get("decode") is None or isinstance(value["decode"], str))
        and isinstance(shape, list)
        and all(_whole(size) for size in shape)
        and isinstance(takes, dict)
        and ("classes" not in takes or _whole(takes["classes"], 1, CLASSES))
    )


def _conditions(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if value.keys() == {"file", "lines"}:  # the hash becomes the name of a file
        return isinstance(value["file"], str) and bool(HASH.fullmatch(value["file"]))
    if value.keys() == {"pictures", "count"}:
        return bool(HASH.fullmatch(str(value["pictures"]))) and _whole(value["count"], 1)
    classes = value.get("classes")
    labels = value.keys() == {"classes"} and isinstance(classes, list) and len(classes) > 0
    return value == {} or labels


def _save(value: Any) -> bool:
    """Whether a value holds ascending rows of a plan."""
    rows = value.get(SAVE) if isinstance(value, dict) and value.keys() == {SAVE} else None
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(_whole(row, 0, ROWS) for row in rows)
        and all(a < b for a, b in zip(rows, rows[1:], strict=False))
    )


# what the fields of a spec hold: (test, words)
FIELDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "hash": (lambda v: isinstance(v, str), "a hash"),
    "model": (_model, "an object with name, decode, shape and identity"),
    "sampling": (lambda v: isinstance(v, dict), "an object"),
    "ids": (
        lambda v: isinstance(v, list) and len(v) == 2 and all(map(_whole, v)),
        "a list of two whole numbers",
    ),
    "seed": (_whole, "a whole number"),
    "unit": (lambda v: _whole(v, 1), "a whole number >= 1"),
    "network_batch": (lambda v: v is None or _whole(v, 1), "a whole number >= 1 or null"),
    "dtype": (lambda v: v in ("fp32", "bf16", "fp16"), "fp32, bf16 or fp16"),
    "guidance_scale": (
        lambda v: _number(v) or (isinstance(v, list) and v and all(map(_number, v))),
        "a number or a list of numbers",
    ),
    "conditions": (_conditions, "{}, a list of classes, or the hash of a file"),
    "format": (lambda v: isinstance(v, str) and v in FORMATS, f"one of {', '.join(FORMATS)}"),
    "threads": (lambda v: _whole(v, 1, THREADS), f"a whole number from 1 to {THREADS}"),
    "machine": (
        lambda v: isinstance(v, dict) and isinstance(v.get("device"), str),
        "an object with the device",
    ),
    "plan": (
        lambda v: isinstance(v, dict) and isinstance(v.get("table"), list),
        "an object with the table",
    ),
}
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
