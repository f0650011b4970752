"""Reads the rows of result files, which are pytest-benchmark's JSON with a row as `extra_info`.

A row is one measured case: fastdiff's time, its peers' times and the ratios peer / fastdiff (above
1 fastdiff is faster), each as median with 20th and 80th percentile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = 1  # the version of the row's format
WHERE = "benchmarks.report"
# kinds in the order of a page, with their headings; other kinds follow under their own names
KINDS = {
    "ceiling": "Ceilings of the machine",
    "sampling": "Sampling, end to end",
    "network": "Networks",
    "loop": "Whole loops, the network costing nothing",
    "pipeline": "Drop-ins in a pipeline's loop, the network costing nothing",
    "step": "Solver steps",
    "op": "Fused ops",
    "seeds": "Seeds per sample",
    "batching": "Continuous batching",
    "training": "Training steps",
    "elbo": "ELBO evaluation",
    "job": "Batch jobs",
    "growth": "Growth",
}
OWN = "fastdiff"  # fastdiff's arm; the names of its other variants begin with this
NEEDED = ("kind", "what", "case", "device", "us", "peers")
Row = Mapping[str, Any]


class NoRows(ValueError):
    """The file holds no rows; it may be of another kind."""


class Ratio(NamedTuple):
    """How many times faster fastdiff is than a peer."""

    peer: str
    median: float
    p20: float
    p80: float

    def __str__(self) -> str:
        return f"{figure(self.median)} [{figure(self.p20)}, {figure(self.p80)}]"


class Result(NamedTuple):
    """A machine's rows.

    Attributes:
        name: of its page.
        rows: in the order of the file.
        about: pytest-benchmark's `machine_info`, with fastdiff's facts under "fastdiff".
        predictions: lines of benchmarks.gpu.predictions.
    """

    name: str
    rows: list[Row]
    about: Mapping[str, Any]
    predictions: list[Mapping[str, Any]]


def load(path: Path) -> Result:
    """Returns the rows of a file, or of all files in a folder (the pieces of one machine).

    Raises ValueError in one sentence if there are none.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise NoRows(
                f"{WHERE}: expected JSON files in the folder {path}, got none. Name a result file."
            )
    else:
        files = [path]
    rows: list[Row] = []
    predictions: list[Mapping[str, Any]] = []
    about: dict[str, Any] = {}
    for file in files:
        content = _read(file)
        rows += _rows(file, content)
        predictions += content.get("predictions", [])
        _merge(about, content.get("machine_info", {}))
    if not rows:
        raise NoRows(
            f"{WHERE}: expected rows of schema {SCHEMA} under benchmarks[*].extra_info of {path},"
            " got none. Write it with `pytest benchmarks --benchmark-only --benchmark-json FILE`."
        )
    return Result(path.name.removesuffix(".json"), rows, about, predictions)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{WHERE}: expected a result file, got {file}: {error.strerror}."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(
            f"{WHERE}: expected JSON in {file}, got something else or half of it. Measure it again."
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list):
        raise NoRows(
            f"{WHERE}: expected a list `benchmarks` in {file}, got none. Name pytest-benchmark's"
            " JSON."
        )
    return content


def _rows(file: Path, content: Mapping[str, Any]) -> Iterator[Row]:
    for benchmark in content["benchmarks"]:
        row = benchmark.get("extra_info") or {}
        if "schema" not in row:
            continue  # a benchmark without a row
        name = benchmark.get("name", "a row")
        if row["schema"] != SCHEMA:
            raise ValueError(
                f"{WHERE}: expected rows of schema {SCHEMA} in {file}, got {row['schema']!r} in"
                f" {name}."
            )
        missing = [key for key in NEEDED if key not in row]
        if missing:
            raise ValueError(
                f"{WHERE}: expected {', '.join(NEEDED)} in every row of {file}, got no {missing[0]}"
                f" in {name}."
            )
        if not _three(row["us"]):
            raise ValueError(
                f"{WHERE}: expected us as [p20, p50, p80] in {file}, got {row['us']!r} in {name}."
            )
        for peer, found in row["peers"].items():
            if not found.keys() & {"faster", "missing"}:
                raise ValueError(
                    f"{WHERE}: expected `faster` or `missing` of every peer in {file}, got neither"
                    f" for {peer} in {name}."
                )
        yield row


def _three(values: Any) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == 3
        and all(isinstance(v, (int, float)) for v in values)
    )


def _merge(about: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Merges the facts of several files of one machine: the first value counts, `missing` lists are
    joined.
    """
    for key, value in more.items():
        if key not in about:
            about[key] = dict(value) if isinstance(value, dict) else value
        elif isinstance(value, dict) and isinstance(about[key], dict):
            _merge(about[key], value)
        elif isinstance(value, list) and key == "missing":
            about[key] = [*about[key], *(v for v in value if v not in about[key])]


def ratios(row: Row) -> list[Ratio]:
    """Returns the ratio of every peer that ran, the fastest peer first."""
    found = [
        Ratio(peer, p["faster"]["median"], p["faster"]["p20"], p["faster"]["p80"])
        for peer, p in row["peers"].items()
        if "faster" in p
    ]
    return sorted(found, key=lambda r: r.median)


def best(row: Row) -> Ratio | None:
    """Returns the ratio to the fastest peer, None where no peer ran.

    Other variants of fastdiff, whose names begin with "fastdiff", are not peers.
    """
    return next((r for r in ratios(row) if not r.peer.startswith(OWN)), None)


def lost(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows in which the fastest peer's median ratio is below 1, the worst first."""
    found = [
        (r.median, i) for i, row in enumerate(rows) if (r := best(row)) is not None and r.median < 1
    ]
    return [rows[i] for _, i in sorted(found)]


def case(row: Row, *, also: Sequence[str] = ()) -> str:
    """Returns the row's case in short, such as "float32 256×3×32×32, 50 steps".

    also: further fields of the row to include.
    """
    about = dict(row["case"])
    shape, words = about.pop("shape", None), []
    if "dtype" in about:
        words.append(str(about.pop("dtype")))
    if shape:
        words.append("×".join(map(str, shape)))
        if about.get("batch") == shape[0]:
            del about["batch"]
    head, rest = " ".join(words), []
    for key, value in about.items():
        if key == "steps":
            rest.append(f"{value} steps")
        elif isinstance(value, str) and value in row["what"]:
            continue  # it is part of the row's name
        elif value is True:
            rest.append(key)
        elif value is not None and value is not False:
            rest.append(f"{key} {value}")
    rest += [
        threads(row[key]) if key == "threads" else str(row[key])
        for key in also
        if row.get(key) is not None
    ]
    return ", ".join(filter(None, [head, *rest]))


def key(row: Row) -> str:
    """Returns a text that is equal for the same case in two files."""
    parts = [
        row["kind"],
        row["what"],
        row["case"],
        *(row.get(k) for k in ("device", "backend", "threads", "cache", "per")),
    ]
    return json.dumps(parts, sort_keys=True)


def figure(value: float | None) -> str:
    """Returns a number with two decimals below 10, one below 100, and none from 100 on."""
    if value is None:
        return ""
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def seconds(us: float) -> str:
    """Returns a time with a suitable unit."""
    for size, unit in ((1e6, "s"), (1e3, "ms")):
        if us >= size:
            return f"{figure(us / size)} {unit}"
    return f"{figure(us)} µs"


def size(count: float | None) -> str:
    """Returns a number of bytes with a suitable unit."""
    if count is None:
        return ""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{figure(count / unit)} {name}"
    return f"{count:.0f} B"
