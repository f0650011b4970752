"""The file of a piece, rewritten after every row, so that an interrupted piece can continue.

It has the form of pytest-benchmark's JSON.
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


class Checkpoint:
    """The rows that a piece has measured so far, and their file.

    Attributes:
        rows: by name.
        failed, skipped: reasons by the name of the row.
        now: the name of the row that is being measured.
        finished: whether all rows have been tried.
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


def measure_rows(rows: Rows, checkpoint: Checkpoint, within: float) -> bool:
    """Measures the rows that the checkpoint lacks; returns whether all rows have been tried.

    No row is started after `within` seconds. A row that raises, for instance for a wrong result, is
    recorded as failed and has no time.
    """
    begin = time.monotonic()
    for name, make in rows:
        if name in checkpoint:
            continue
        if time.monotonic() - begin > within:
            return False
        checkpoint.begin(name)
        try:
            row = make()
        except Exception as error:
            checkpoint.fail(name, f"{type(error).__name__}: {error}")
            print(f"{name}: FAILED, {checkpoint.failed[name]}", flush=True)
            if broken(error):
                return False
            continue
        finally:
            free()
        checkpoint.row(name, row)
        print(f"{name}: {row['us'][1]:.1f} us/{row['per']}", flush=True)
    return True


def broken(error: BaseException) -> bool:
    """Returns whether the device is unusable in this process: the other rows need a new process."""
    return "CUDA error" in str(error)


def free() -> None:
    """Frees a row's memory before the next row."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class CheckpointPlugin:
    """A pytest plugin that records every row in a checkpoint, skips those there, stops in time."""

    def __init__(self, checkpoint: Checkpoint, within: float):
        self.checkpoint, self.within, self.begin, self.left = (
            checkpoint,
            within,
            time.monotonic(),
            False,
        )
        self.broken = False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        measured = [item for item in items if item.nodeid in self.checkpoint]
        if measured:
            config.hook.pytest_deselected(items=measured)
            items[:] = [item for item in items if item.nodeid not in self.checkpoint]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.checkpoint.begin(item.nodeid)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Iterable[Any]:
        outcome = yield
        report = outcome.get_result()
        if report.skipped:
            self.checkpoint.skip(
                item.nodeid,
                str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr),
            )
        elif report.failed:
            self.checkpoint.fail(item.nodeid, f"{call.excinfo.typename}: {call.excinfo.value}")
            self.broken = broken(call.excinfo.value)
        elif report.when == "call":
            row = getattr(item.funcargs.get("benchmark"), "extra_info", {})  # type: ignore[attr-defined]
            self.checkpoint.row(item.nodeid, row)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        free()
        if nextitem is not None and (self.broken or time.monotonic() - self.begin > self.within):
            self.left = True
            item.session.shouldstop = "the other rows are left for the next run"


def run_suite(arguments: list[str], checkpoint: Checkpoint, within: float) -> bool:
    """Runs pytest on a part of the suite; returns whether all of its rows have been tried."""
    plugin = CheckpointPlugin(checkpoint, within)
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
