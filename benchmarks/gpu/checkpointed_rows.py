"""A piece's file: pytest-benchmark's form, written anew after every row, so that what was measured
is never lost.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.common import Rows

LONGEST = 300  # characters of a reason


class Kept:
    """What a piece has so far.

    Attributes:
        rows: by name. failed, skipped: reasons by name. now: the row being measured. finished:
            whether all were tried.
    """

    def __init__(self, file: Path, piece: str, about: dict[str, Any]):
        self.file, self.piece, self.about = file, piece, about
        self.rows: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.now: str | None = None
        self.finished = False
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            self.rows = {b["name"]: b["extra_info"] for b in found["benchmarks"]}
            self.failed, self.skipped, self.finished = (
                found["failed"],
                found["skipped"],
                found["finished"],
            )

    def __contains__(self, name: str) -> bool:
        return name in self.rows or name in self.failed or name in self.skipped

    def begin(self, name: str) -> None:
        self.now = name
        self.write()

    def row(self, name: str, row: Any) -> None:
        self.rows[name], self.now = dict(row), None
        self.write()

    def fail(self, name: str, reason: str) -> None:
        self.failed[name], self.now = reason.strip()[:LONGEST], None
        self.write()

    def skip(self, name: str, reason: str) -> None:
        self.skipped[name], self.now = reason.strip()[:LONGEST], None
        self.write()

    def finish(self) -> None:
        self.finished = True
        self.write()

    def write(self) -> None:
        benchmarks = [{"name": name, "extra_info": row} for name, row in self.rows.items()]
        content = {
            "machine_info": self.about,
            "piece": self.piece,
            "finished": self.finished,
            "failed": self.failed,
            "skipped": self.skipped,
            "now": self.now,
            "benchmarks": benchmarks,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        whole = self.file.with_suffix(".part")
        whole.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        whole.replace(self.file)


def measure(rows: Rows, kept: Kept, within: float) -> bool:
    """Measures the rows that are not there; none is begun after so many seconds. Returns whether
    all were tried.

    A row that raises, a wrong result for instance, is kept as failed and has no time.
    """
    begin = time.monotonic()
    for name, make in rows:
        if name in kept:
            continue
        if time.monotonic() - begin > within:
            return False
        kept.begin(name)
        try:
            row = make()
        except Exception as error:
            kept.fail(name, f"{type(error).__name__}: {error}")
            print(f"{name}: FAILED, {kept.failed[name]}", flush=True)
            if broken(error):
                return False
            continue
        finally:
            free()
        kept.row(name, row)
        print(f"{name}: {row['us'][1]:.1f} us/{row['per']}", flush=True)
    return True


def broken(error: BaseException) -> bool:
    """Whether the device answers nothing any more in this process: the other rows need a new
    one.
    """
    return "CUDA error" in str(error)


def free() -> None:
    """A row's memory goes back before the next row."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Suite:
    """A plugin of pytest that keeps every row of the suite as it is done, passes by what is there,
    and stops in time.
    """

    def __init__(self, kept: Kept, within: float):
        self.kept, self.within, self.begin, self.left = kept, within, time.monotonic(), False
        self.broken = False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        there = [item for item in items if item.nodeid in self.kept]
        if there:
            config.hook.pytest_deselected(items=there)
            items[:] = [item for item in items if item.nodeid not in self.kept]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.kept.begin(item.nodeid)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Iterable[Any]:
        outcome = yield
        report = outcome.get_result()
        if report.skipped:
            self.kept.skip(
                item.nodeid,
                str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr),
            )
        elif report.failed:
            self.kept.fail(item.nodeid, f"{call.excinfo.typename}: {call.excinfo.value}")
            self.broken = broken(call.excinfo.value)
        elif report.when == "call":
            row = getattr(item.funcargs.get("benchmark"), "extra_info", {})  # type: ignore[attr-defined]
            self.kept.row(item.nodeid, row)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        free()
        if nextitem is not None and (self.broken or time.monotonic() - self.begin > self.within):
            self.left = True
            item.session.shouldstop = "the rest is for the next run"


def suite(arguments: list[str], kept: Kept, within: float) -> bool:
    """Runs pytest on a part of the suite; returns whether all of it was tried."""
    plugin = Suite(kept, within)
    quiet = ["-q", "-p", "no:cacheprovider", "--benchmark-only", "--tb=line"]
    status = pytest.main([*quiet, *arguments], plugins=[plugin])
    if (
        status
        not in (
            pytest.ExitCode.OK,
            pytest.ExitCode.TESTS_FAILED,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        )
        and not plugin.left
    ):
        raise RuntimeError(f"expected pytest to collect {arguments[0]}, got status {int(status)}")
    return not plugin.left
