"""Stages b, c and d: runs a suite of tests and records every test as it ends.

    python -m benchmarks.gpu.first_run.suites SUITE --file FILE [--device cpu]

Tests run in processes of pytest-xdist, so that one that crashes costs only itself. The number of
tests is compared with the one that the table states.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from typing import Any

import pytest

from benchmarks.gpu.checkpoint import Checkpoint
from benchmarks.gpu.first_run import lost_device
from benchmarks.gpu.first_run.stages import ROOT, SUITES, Suite, arguments

MOST_PROCESSES = 12  # each has a context of about half a GiB on the GPU
LONG, SHORT, MANY = 4000, 300, 100  # characters of a reason; of those after MANY


def processes(suite: Suite, dry: bool) -> int:
    """Returns the number of test processes; 0 without pytest-xdist, and to save time in a dry run.

    A suite that is not parallel has one, too: a crash ends that process and not the suite.
    """
    if importlib.util.find_spec("xdist") is None or (dry and not suite.parallel):
        return 0
    return max(1, min(MOST_PROCESSES, 3 * (os.cpu_count() or 1) // 4)) if suite.parallel else 1


class Recorder:
    """A pytest plugin that writes every test into the stage's file.

    Attributes:
        selected: the number of tests, None before they are collected.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.selected: int | None = None
        self._running: set[str] = set()

    def _write(self) -> None:
        self.checkpoint.begin(", ".join(sorted(self._running)) or None)

    def _fail(self, name: str, report: Any) -> None:
        if name in self.checkpoint.failed:
            return  # the first reason counts: a process may end after it
        longest = LONG if len(self.checkpoint.failed) < MANY else SHORT
        text = str(report.longrepr)
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = f"{crash.message}\n…\n{text[-longest // 2 :]}" if crash is not None else text
        self.checkpoint.rows.pop(name, None)
        self.checkpoint.failed[name] = reason.strip()[:longest]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self.selected = len(ids)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self.selected is None and session.items:
            self.selected = len(session.items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._fail(f"collect {report.nodeid}", report)
            self._write()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running.add(nodeid)
        self._write()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid
        if report.failed:
            self._fail(name, report)
        elif report.skipped:
            place = report.longrepr
            reason = str(place[-1] if isinstance(place, tuple) else place)
            self.checkpoint.skipped[name] = reason.strip()[:SHORT]
        elif report.when == "call":
            row = {"seconds": round(report.duration, 3), **dict(report.user_properties)}
            self.checkpoint.rows[name] = row
        if report.when == "teardown" or report.failed:
            self._running.discard(name)
            self._write()


def run(name: str, checkpoint: Checkpoint, device: str) -> int:
    """Runs a suite; returns 0, or 1 if tests failed or fewer than stated were selected."""
    suite, dry = SUITES[name], device == "cpu"
    tests = suite.dry if dry else suite.tests
    about = checkpoint.stage.setdefault("suites", {})
    if not tests:
        checkpoint.leave_out(f"suite {name}", "nothing of it runs without a GPU")
        return 0
    if dry and tests != suite.tests:
        checkpoint.leave_out(f"suite {name}", f"{' '.join(tests)} alone")
    os.environ.update(suite.dry_settings if dry else suite.settings)
    several = processes(suite, dry)
    command = ["-q", "-p", "no:cacheprovider", "--tb=short", "-p", lost_device.__name__]
    if several:
        command += ["-n", str(several), "--max-worker-restart=200"]
    before, begin = len(checkpoint.failed), time.monotonic()
    recorder = Recorder(checkpoint)
    status = pytest.main([f"--rootdir={ROOT}", *command, *tests], plugins=[recorder])
    seconds = round(time.monotonic() - begin, 1)
    about[name] = {
        "states": suite.selects,
        "selected": recorder.selected,
        "processes": several,
        "seconds": seconds,
    }
    if not dry and (recorder.selected or 0) < suite.selects:
        checkpoint.fail(
            f"suite {name}",
            f"expected at least the {suite.selects} tests that the table states, got"
            f" {recorder.selected}",
        )
    elif status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        checkpoint.fail(f"suite {name}", f"pytest ended with status {int(status)}")
    checkpoint.write()
    return 1 if len(checkpoint.failed) > before else 0


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("suite", choices=SUITES)
    args = parser.parse_args()
    os.chdir(ROOT)
    return run(args.suite, Checkpoint(args.file, args.file.stem, {}), args.device)


if __name__ == "__main__":
    sys.exit(main())
