"""Measures a row: arms in turns in one process, medians with their spread, checked results.

A row compares fastdiff's time with its peers' on the same inputs, by ratios of neighbouring
measurements in the order A B … B A. It also has the bytes that an ideal kernel would move and the
copy bandwidth measured in the same run. Outputs are filled with NaN and compared with their oracle
before the timing and again after it: a row with a wrong result raises and has no time. Peers that
are not installed are reported as missing. benchmarks/rows.py reads the rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from benchmarks import memory
from benchmarks.peers import Compiled, Missing
from benchmarks.rows import KINDS, OWN, SCHEMA
from fastdiff.backend.choice import backend_for
from fastdiff.cli.timing import Arm, interleave, ratio, spread
from fastdiff.jobs import machine

__all__ = [
    "SCHEMA",
    "Setting",
    "Workload",
    "fitted",
    "interleave",
    "measure",
    "ratio",
    "spread",
    "take_turns",
]

MOST_ROUNDS = 500
SLOW = 0.3  # seconds: an arm that takes longer has only one warm-up call
PATIENCE = 20.0  # seconds: rows that would take longer get fewer turns, at least two


class Setting(NamedTuple):
    """How a run measures: the device, time and fewest turns of a row, and the tier."""

    device: str = "cpu"
    seconds: float = 0.6
    rounds: int = 3
    tier: str = "default"


class Workload(NamedTuple):
    """What a row measures, and how its result is checked.

    Attributes:
        call: fastdiff's arm.
        check: takes what `call` returned; raises if that or the outputs are wrong.
        checked: the oracle and the tolerance, in words.
        outputs: tensors that `call` writes; `verify` fills them with NaN before the call.
        restore: restores what `call` changes in place.
    """

    call: Arm
    check: Callable[[Any], None]
    checked: str
    outputs: tuple[torch.Tensor, ...] = ()
    restore: Callable[[], None] | None = None

    def verify(self) -> None:
        """Fills the outputs with NaN (integers with their least value), calls and checks."""
        for out in self.outputs:
            out.fill_(torch.nan if out.is_floating_point() else torch.iinfo(out.dtype).min)
        if self.restore is not None:
            self.restore()
        self.check(self.call())


def take_turns(
    arms: Mapping[str, Arm],
    setting: Setting,
    *,
    before: Arm | None = None,
    host: dict[str, list[float]] | None = None,
) -> dict[str, list[float]]:
    """Returns the seconds of each arm's calls, taken in the order A B … B A.

    `before` runs before every call and is not counted. On a GPU, several short calls are measured
    together. `host` gets the seconds of the host for the same calls.
    """
    clock = memory.stopwatch(setting.device)
    names, once = list(arms), 0.0
    for arm in arms.values():
        for _ in range(2):  # the first call warms up; a slow one is also the estimate
            begin = time.perf_counter()
            if before is not None:
                before()
            seconds = max(clock(arm), time.perf_counter() - begin)
            if seconds > SLOW:
                break
        once += seconds
    repeat = (
        1
        if before is not None or setting.device == "cpu"
        else max(1, min(100, int(1e-3 * len(arms) / once)))
    )
    rounds = max(setting.rounds, min(MOST_ROUNDS, int(setting.seconds / (2 * once * repeat))))
    if once * 2 * rounds > PATIENCE:
        rounds = max(2, min(rounds, int(PATIENCE / (2 * once))))
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in (*names, *reversed(names)):
            arm = arms[name]
            if before is not None:
                before()
            times[name].append(clock(arm if repeat == 1 else _several(arm, repeat)) / repeat)
            if host is not None:
                host.setdefault(name, []).append(clock.host / repeat)
    return times


def _several(arm: Arm, repeat: int) -> Arm:
    def call() -> None:
        for _ in range(repeat):
            arm()

    return call


def _arms(peers: Mapping[str, Any]) -> tuple[dict[tuple[str, str], Arm], dict[str, str]]:
    """Returns ({(peer, mode): arm}, {peer: the reason why it is missing}).

    peers: each is an arm, a mapping of modes to arms, or `Missing`.
    """
    arms: dict[tuple[str, str], Arm] = {}
    missing: dict[str, str] = {}
    for name, peer in peers.items():
        if isinstance(peer, Missing):
            missing[name] = peer.reason
        elif isinstance(peer, Mapping):
            found = {
                (name, mode): arm for mode, arm in peer.items() if not isinstance(arm, Missing)
            }
            arms |= found
            if not found:
                missing[name] = "; ".join(sorted({arm.reason for arm in peer.values()}))
        else:
            arms[name, ""] = peer
    return arms, missing


def _fastest_modes(
    arms: dict[tuple[str, str], Arm], setting: Setting
) -> tuple[dict[tuple[str, str], Arm], dict[tuple[str, str], float]]:
    """Returns (the arms to measure, the seconds of the modes that were tried).

    Where all arms together are too slow for the row's time, only the fastest mode of each peer is
    measured, chosen by the faster of two calls.
    """
    clock = memory.stopwatch(setting.device)
    first = {key: clock(arm) for key, arm in arms.items()}
    if 2 * setting.rounds * sum(first.values()) <= 4 * setting.seconds:
        return arms, {}
    several = {name for name, _ in arms if sum(peer == name for peer, _ in arms) > 1}
    second = {
        key: min(first[key], clock(arm)) if key[0] in several else first[key]
        for key, arm in arms.items()
    }
    best = {
        name: min((key for key in arms if key[0] == name), key=second.__getitem__)
        for name, _ in arms
    }
    return {key: arms[key] for key in best.values()}, {
        key: second[key] for key in arms if key[0] in several
    }


def _microseconds(times: Iterable[float], divide: float) -> list[float]:
    return [round(1e6 * v / divide, 3) for v in spread(list(times))]


def measure(
    setting: Setting,
    work: Workload,
    *,
    kind: str,
    what: str,
    case: Mapping[str, Any],
    peers: Mapping[str, Any],
    per: str = "call",
    divide: float = 1,
    elements: int | None = None,
    bytes_floor: int | None = None,
    cold: bool = False,
    instructions: Callable[[], Any] | None = None,
    compile_s: float | None = None,
) -> dict[str, Any]:
    """Checks the workload, measures all arms in turns, checks again, and returns the row.

    Args:
        kind, what, case: identify the row.
        peers: see `_arms`.
        per, divide: the unit of the times, and how many of it one call computes (for "sample-step"
            steps times samples).
        elements, bytes_floor: elements and fewest bytes of one call.
        cold: whether caches are emptied before every call.
        instructions: returns the ceiling of benchmarks.instructions.
        compile_s: seconds that compiling fastdiff's arm took.
    """
    if kind not in KINDS:
        raise ValueError(f"benchmarks.harness: expected kind in {list(KINDS)}, got {kind!r}.")
    device = setting.device
    work.verify()
    extra = memory.extra_bytes(work.call, device)
    theirs, missing = _arms(peers)
    every = theirs
    theirs, tried = _fastest_modes(theirs, setting)
    before = (lambda: memory.evict(device)) if cold else None
    names: dict[Any, Arm] = {OWN: work.call, **theirs}
    host: dict[Any, list[float]] = {}
    times = take_turns(names, setting, before=before, host=host)
    work.verify()
    ours = times[OWN]
    us = _microseconds(ours, divide)
    copy = memory.copy_bandwidth(device, bytes_floor or memory.MOST, cold=cold)
    rate = None if bytes_floor is None else bytes_floor / statistics.median(ours)
    compared = _compared(times, theirs, missing, divide)
    for (name, mode), seconds in tried.items():
        compared["peers"][name]["modes"].setdefault(mode, round(1e6 * seconds / divide, 3))
    for (name, mode), arm in every.items():
        if isinstance(arm, Compiled) and mode:
            compared["peers"][name].setdefault("compile_s_of_modes", {})[mode] = round(
                arm.seconds, 2
            )
    return {
        "schema": SCHEMA,
        "kind": kind,
        "what": what,
        "case": dict(case),
        "device": "cpu" if device == "cpu" else machine.describe(torch.device(device))["name"],
        "backend": backend_for("reverse_step", device),
        "threads": torch.get_num_threads(),
        "cache": "cold" if cold else "warm",
        "per": per,
        "us": us,
        "host_us": _microseconds(host[OWN], divide) if device == "cuda" else None,
        "rounds": len(ours),
        "elements": elements,
        "bytes_floor": bytes_floor,
        "GB_per_s": None if rate is None else round(rate / 1e9, 3),
        "copy_GB_per_s": round(copy / 1e9, 3),
        "percent_of_copy": None if rate is None else round(100 * rate / copy, 1),
        "instructions": _instructions(instructions, elements, ours),
        **compared,
        "compile_s": compile_s,
        "extra_bytes": extra,
        "checked": work.checked,
    }


def _instructions(
    limit: Callable[[], Any] | None, elements: int | None, ours: list[float]
) -> dict[str, Any] | None:
    """Returns the ceiling by arithmetic and the percentage of it that the row reaches."""
    found = limit() if limit is not None else None
    if found is None or elements is None:
        return None
    rate = elements / statistics.median(ours) / 1e6
    return {**found, "percent": round(100 * rate / found["ceiling_Melem_per_s"], 1)}


def _compared(
    times: Mapping[Any, list[float]],
    arms: Mapping[Any, Arm],
    missing: Mapping[str, str],
    divide: float,
) -> Any:
    """Returns the entries peers and best_peer of a row; a peer counts with its fastest mode."""
    rows: dict[str, Any] = {}
    for (name, mode), arm in arms.items():
        found: dict[str, Any] = {
            "us": _microseconds(times[name, mode], divide),
            "faster": ratio(times[OWN], times[name, mode]),
        }
        if mode:
            found |= {"mode": mode, "modes": {mode: found["us"][1]}}
        if isinstance(arm, Compiled):
            found["compile_s"] = round(arm.seconds, 2)
        if name not in rows:
            rows[name] = found
        else:
            modes = rows[name]["modes"] | found["modes"]
            rows[name] = {**min(rows[name], found, key=lambda row: row["us"][1]), "modes": modes}
    # other variants of fastdiff are not peers
    others = [name for name in rows if not name.startswith(OWN)]
    best = min(others, key=lambda name: rows[name]["faster"]["median"], default=None)
    rows |= {name: {"missing": reason} for name, reason in missing.items()}
    return {
        "peers": rows,
        "best_peer": None if best is None else {"name": best, **rows[best]["faster"]},
    }


def fitted(x: list[float], y: list[float]) -> tuple[float, float]:
    """Returns (exponent, its standard error) of y = c x^e, by least squares of the logarithms."""
    line = torch.tensor([x, y], dtype=torch.float64).log()
    centred = line - line.mean(1, keepdim=True)
    square = float(centred[0] @ centred[0])
    exponent = float(centred[0] @ centred[1]) / square
    rest = centred[1] - exponent * centred[0]
    free = len(x) - 2
    return exponent, (float(rest @ rest) / free / square) ** 0.5 if free > 0 else 0.0


def line(row: Mapping[str, Any]) -> str:
    """Returns a row as one line of text."""
    values = [
        str(v) if not isinstance(v, (list, tuple)) else "x".join(map(str, v))
        for v in row["case"].values()
    ]
    case = " ".join(v for v in values if v not in row["what"].split())
    shown = [f"{row['what']} {case} {row['cache']}: {row['us'][1]:.1f} us/{row['per']}"]
    if row.get("host_us") is not None:
        shown.append(f"host {row['host_us'][1]:.1f} us")
    if row["percent_of_copy"] is not None:
        shown.append(f"{row['GB_per_s']} GB/s ({row['percent_of_copy']:.0f} % of copy)")
    for name, peer in row["peers"].items():
        mode = f" {peer['mode']}" if peer.get("mode") else ""
        faster = peer.get("faster")
        shown.append(
            f"{faster['median']:.2f}x [{faster['p20']:.2f}, {faster['p80']:.2f}] {name}{mode}"
            if faster
            else f"{name} missing: {peer['missing']}"
        )
    if "growth" in row:
        growth = row["growth"]
        shown.append(f"time ~ {growth['over']}^{growth['exponent']:.2f}")
    return ", ".join(shown)
