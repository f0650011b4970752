"""The suite's options, tiers and fixtures, and the machine's entries in pytest-benchmark's JSON.

The suite uses one thread unless FASTDIFF_BENCH_THREADS is set, because ratios on shared machines
vary less with one thread.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import harness, memory, peers, tiers

THREADS = int(os.environ.get("FASTDIFF_BENCH_THREADS", "1"))
_spent: dict[str, float] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastdiff benchmarks")
    group.addoption(
        "--quick", action="store_true", help="one row of each kind, under 3 minutes on two cores"
    )
    group.addoption("--full", action="store_true", help="the whole matrix: hours on a CPU")
    group.addoption("--device", choices=["cpu", "cuda"], help="default: cuda if torch finds it")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "tier(name, gpu_only): the smallest tier that a row belongs to"
    )
    if config.getoption("--quick") and config.getoption("--full"):
        raise pytest.UsageError("benchmarks: expected --quick or --full, got both. Leave one out.")
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(
            "benchmarks: expected a GPU for --device cuda, torch sees none. Use --device cpu."
        )
    config.option.benchmark_quiet = True  # each row prints its own line


def device_of(config: pytest.Config) -> str:
    return config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")


def tier_of(config: pytest.Config) -> str:
    return (
        "quick"
        if config.getoption("--quick")
        else "full"
        if config.getoption("--full")
        else "default"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tier, device, folder = tier_of(config), device_of(config), Path(__file__).parent
    selected, deselected = [], []
    for item in items:
        ours = folder in item.path.parents
        keep = not ours or tiers.chosen(tier, item.get_closest_marker("tier"), device)
        (selected if keep else deselected).append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = selected


@pytest.fixture(autouse=True)
def _settled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sets threads, seed and no_grad for each row, and adds up its processor time."""
    before, begin = torch.get_num_threads(), sum(os.times()[:4])
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)
    _spent[request.node.nodeid] = sum(os.times()[:4]) - begin


@pytest.fixture
def setting(request: pytest.FixtureRequest) -> harness.Setting:
    tier = tier_of(request.config)
    return harness.Setting(device_of(request.config), tiers.SECONDS[tier], tiers.ROUNDS[tier], tier)


@pytest.fixture
def report_row(
    request: pytest.FixtureRequest,
) -> Callable[[Any, dict[str, Any], Callable[[], Any]], None]:
    """report_row(benchmark, row, call): puts the row into the JSON and prints its line.

    pytest-benchmark also times `call`, for its own columns.
    """
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def done(benchmark: Any, row: dict[str, Any], call: Callable[[], Any]) -> None:
        # pytest-benchmark's own columns; the row's times are in `us`
        benchmark.pedantic(call, rounds=1 if row["us"][1] > 1e4 else 5)
        benchmark.extra_info.update(row)
        with capture.global_and_fixture_disabled():
            print("\n" + harness.line(row), end="", flush=True)

    return done


@pytest.fixture
def measured(
    benchmark: Any, setting: harness.Setting, report_row: Callable[..., None]
) -> Callable[..., dict[str, Any]]:
    """measured(work, …): `harness.measure` under this run's setting, and `report_row`."""

    def run(work: harness.Workload, **of: Any) -> dict[str, Any]:
        row = harness.measure(setting, work, **of)
        report_row(benchmark, row, work.call)
        return row

    return run


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    device = device_of(config)
    machine_info["fastdiff"] = facts(device, tier_of(config))


def facts(device: str, tier: str) -> dict[str, Any]:
    """Returns the facts that all rows of a run share: machine, versions, bandwidths, commit."""
    import fastdiff
    from fastdiff.backend import library
    from fastdiff.backend.hardware import has_amx, usable_cpus
    from fastdiff.jobs import machine

    found, missing = peers.versions()
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        copy, fill = memory.copy_bandwidth(device), memory.fill_bandwidth(device)
    finally:
        torch.set_num_threads(before)
    gpu = None
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        gpu = {
            "name": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "bytes": properties.total_memory,
            "capability": [properties.major, properties.minor],
        }
    level = library.levels()[-1] if library.available() else None
    return {
        "versions": {"fastdiff": fastdiff.__version__, **found},
        "missing": missing,
        "cpu": {
            "name": machine.describe(torch.device("cpu"))["name"],
            "level": level,
            "amx": has_amx(),
            "cpus": usable_cpus(),
            "last_level_cache": memory.last_level_cache("cpu"),
        },
        "gpu": gpu,
        "device": device,
        "threads": THREADS,
        "copy_GB_per_s": round(copy / 1e9, 3),
        "fill_GB_per_s": round(fill / 1e9, 3),
        "tier": tier,
        "commit": _commit(),
    }


def _commit() -> str | None:
    try:
        out = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.stdout.strip()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _spent:
        worst = ", ".join(
            f"{name.split('::')[-1]} {_spent[name]:.0f}"
            for name in sorted(_spent, key=_spent.get)[:-6:-1]
        )
        terminalreporter.write_line(
            f"{len(_spent)} rows, {sum(_spent.values()):.0f} s of processor time; most: {worst}"
        )
