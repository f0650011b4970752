"""Measures the rows of a piece into its checkpoint, so that an interrupted piece can continue."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from benchmarks.gpu.checkpoint import Checkpoint
from benchmarks.gpu.common import Rows


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
