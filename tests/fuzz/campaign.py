"""Runs fuzz campaigns: many drawn calls in worker processes; every finding is one line.

    sh scripts/run tests/fuzz/campaign.py                              all campaigns, as `make fuzz`
    sh scripts/run tests/fuzz/campaign.py ops --seed 7 --cases 20000   one of them
    sh scripts/run tests/fuzz/campaign.py ops --seed 7 --case 1234     one case, in this process

A case is a pure function of (campaign, seed, number). It returns what to count and what is wrong.
Cases run in forked workers, a batch in each. A worker notes the case that it is at in memory that
it shares with this process: a worker that dies, or that stays at a case for longer than the limit,
names it, and another worker goes on behind it. The exit status is 1 if there is a finding.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers are the parallelism
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

SENTENCE = re.compile(r"fastdiff(?:\.\w+)*(?: \w+)?: \S[^\n]*")


@dataclass
class Report:
    """What cases did: `counts` by kind, and for each finding (case, what is wrong)."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[int, str]] = field(default_factory=list)
    case: int = 0

    def count(self, kind: str, number: int = 1) -> None:
        self.counts[kind] += number

    def finding(self, text: str) -> None:
        """Notes what is wrong with the present case, in one line."""
        self.findings.append((self.case, " ".join(text.split())[:1000]))


class Campaign(NamedTuple):
    """A kind of case.

    Attributes:
        run: run(draw, report) executes a case drawn from a random.Random of its own.
        cases: how many `make fuzz` runs at least.
        short: how many `make test` runs.
        batch: cases of a worker process.
        seconds: the most that one case may take.
        memory: bytes of address space that a worker may add, None for no limit.
        prepare: called once in a folder of the campaign, before its workers begin.
    """

    run: Callable[[random.Random, Report], None]
    cases: int
    short: int
    batch: int
    seconds: float
    memory: int | None = None
    prepare: Callable[[], None] | None = None


CAMPAIGNS = ("ops", "samplers", "folders", "damage")


def load(name: str) -> Campaign:
    """Returns the campaign of this name: CAMPAIGN of the module next to this one."""
    warnings.simplefilter("ignore")  # of torch's prototypes, and of numbers that are not finite
    return importlib.import_module(name).CAMPAIGN


def is_sentence(error: BaseException) -> bool:
    """Returns whether an exception is one of the project's refusals: where, expected, got, do."""
    kinds = (ValueError, TypeError, IndexError, FileNotFoundError, RuntimeError)
    return isinstance(error, kinds) and SENTENCE.fullmatch(str(error)) is not None


def kind_of(text: str) -> str:
    """Returns a sentence without its numbers, names and paths, to count it by."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|/\S+", "…", text)
    text = re.sub(r"\[[^\]]*\]", "[…]", text)
    text = re.sub(r"\b[0-9a-f]{16,}\b|case-\d+", "…", text)
    return re.sub(r"-?\d[\d.e+-]*|\bnan\b|-?\binf\b", "#", text)[:110]


def described(error: BaseException) -> str:
    """Returns an exception in one line: its type, the place that raised it, and its text."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((f for f in reversed(frames) if "fastdiff" in f.filename), frames[-1:])
    at = f"{Path(where.filename).name}:{where.lineno}" if not isinstance(where, list) else "?"
    return f"{type(error).__name__} at {at}: {error}"


def run_case(campaign: Campaign, name: str, seed: int, case: int, report: Report) -> None:
    """Runs one case in this process; an exception that it does not expect is a finding."""
    report.case = case
    draw = random.Random(f"{name} {seed} {case}")
    try:
        campaign.run(draw, report)
    except Exception as error:
        report.finding(f"raised {described(error)}")
    report.count("cases")


class _Worker:
    """A forked process that runs cases start … stop - 1."""

    def __init__(self, campaign: Campaign, name: str, seed: int, start: int, stop: int):
        self.start, self.stop = start, stop
        self.shared = mmap.mmap(-1, 16)  # the case it is at, and since when
        self._note(start)
        read, write = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            status = 1
            try:
                self._work(campaign, name, seed, write)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(write)
        os.set_blocking(read, False)
        self.pipe, self.text = read, b""

    def _note(self, case: int) -> None:
        self.shared[:] = struct.pack("qd", case, time.monotonic())

    def _work(self, campaign: Campaign, name: str, seed: int, write: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if campaign.memory is not None and "LD_PRELOAD" not in os.environ:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
            resource.setrlimit(resource.RLIMIT_AS, (used + campaign.memory, resource.RLIM_INFINITY))
        report = Report()
        for case in range(self.start, self.stop):
            self._note(case)
            run_case(campaign, name, seed, case, report)
        self._note(self.stop)
        answer = json.dumps([report.counts, report.findings]).encode()
        while answer:
            answer = answer[os.write(write, answer) :]

    @property
    def at(self) -> tuple[int, float]:
        """Returns the case that it is at and the time when it began it."""
        return struct.unpack("qd", self.shared[:])

    def ended(self) -> int | None:
        """Returns the exit status (negative: the signal) when the process has ended."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.pipe, 1 << 16):
                self.text += part
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.pipe, 1 << 16):
                self.text += part
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(status)


def _in_fork(prepare: Callable[[], None]) -> None:
    """Calls a function in a process of its own: this one stays without threads, to be forked."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            prepare()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1] != 0:
        raise RuntimeError("campaign.py: expected the campaign to be prepared, got an error above.")


def run(
    name: str,
    seed: int,
    *,
    first: int = 0,
    cases: int | None = None,
    jobs: int = 1,
    minutes: float | None = None,
) -> Report:
    """Runs cases first … of a campaign and returns the report, with its findings in order.

    Args:
        cases: how many, default the campaign's.
        jobs: workers at a time.
        minutes: no batch begins after that time.
    """
    campaign = load(name)
    total, stop = Report(), first + (campaign.cases if cases is None else cases)
    end = None if minutes is None else time.monotonic() + 60 * minutes
    # what a worker counted is lost with it: the cases before the one that ended it run again
    todo = [
        (start, min(start + campaign.batch, stop)) for start in range(first, stop, campaign.batch)
    ]
    todo.reverse()
    running: list[_Worker] = []
    home, folder = os.getcwd(), tempfile.mkdtemp(prefix=f"fuzz-{name}-")
    try:
        os.chdir(folder)
        if campaign.prepare is not None:
            _in_fork(campaign.prepare)
        while todo or running:
            late = end is not None and time.monotonic() > end
            if late:
                todo.clear()
            while todo and len(running) < jobs:
                running.append(_Worker(campaign, name, seed, *todo.pop()))
            time.sleep(0.002)
            for worker in list(running):
                status = worker.ended()
                case, since = worker.at
                what = ""
                if status is None and time.monotonic() - since > campaign.seconds:
                    os.kill(worker.pid, signal.SIGKILL)
                    while (status := worker.ended()) is None:
                        time.sleep(0.001)
                    case, what = worker.at[0], f"took more than {campaign.seconds:g} s"
                if status is None:
                    continue
                running.remove(worker)
                if status == 0:
                    counts, findings = json.loads(worker.text)
                    total.counts.update(counts)
                    total.findings += [tuple(f) for f in findings]
                    continue
                if not what:
                    died = signal.Signals(-status).name if status < 0 else f"status {status}"
                    what = f"ended its process with {died}"
                total.findings.append((case, what))
                total.counts.update({"cases": 1, what: 1})
                todo += [
                    (a, b) for a, b in ((worker.start, case), (case + 1, worker.stop)) if a < b
                ]
    finally:
        for worker in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)
        os.chdir(home)
        shutil.rmtree(folder, ignore_errors=True)
    total.findings.sort()
    return total


def show(name: str, seed: int, report: Report, seconds: float, most: int = 40) -> None:
    """Prints the counts of a campaign, and each finding with what runs it again."""
    cases = report.counts["cases"]
    print(f"{name}: {cases:,} cases in {seconds:.1f} s, {len(report.findings)} findings")
    refusals = Counter()
    for kind, number in sorted(report.counts.items()):
        if kind.startswith("refused: "):
            refusals[kind.removeprefix("refused: ")] = number
        elif kind != "cases":
            print(f"  {number:>10,} {kind}")
    if refusals:
        print(f"  {refusals.total():>10,} refused by a sentence, of {len(refusals)} kinds:")
        for kind, number in refusals.most_common(most):
            print(f"  {number:>12,} {kind}")
    for case, what in report.findings:
        print(f"FINDING campaign.py {name} --seed {seed} --case {case}: {what}")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="campaign.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("campaigns", nargs="*", metavar="campaign", help="; ".join(CAMPAIGNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this case alone, in this process")
    parser.add_argument("--first", type=int, default=0, help="the first case")
    parser.add_argument("--cases", type=int, help="cases of each campaign (its own number)")
    parser.add_argument("--short", action="store_true", help="as many cases as `make test` runs")
    parser.add_argument("--minutes", type=float, help="of all campaigns together, at most")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    options = parser.parse_args(arguments)
    names = options.campaigns or list(CAMPAIGNS)
    if unknown := set(names) - set(CAMPAIGNS):
        parser.error(f"expected campaigns among {', '.join(CAMPAIGNS)}, got {min(unknown)!r}")
    if options.case is not None:
        if len(names) != 1:
            parser.error("expected one campaign with --case")
        return _one(names[0], options.seed, options.case)
    found, end = 0, time.monotonic() + 60 * (options.minutes or 0)
    for i, name in enumerate(names):
        minutes = None
        if options.minutes is not None:  # each campaign gets the same part of what is left
            minutes = max(0.0, end - time.monotonic()) / 60 / (len(names) - i)
        cases = load(name).short if options.short else options.cases
        begin = time.monotonic()
        report = run(
            name,
            options.seed,
            first=options.first,
            cases=cases,
            jobs=options.jobs,
            minutes=minutes,
        )
        show(name, options.seed, report, time.monotonic() - begin)
        found += len(report.findings)
    return int(found > 0)


def _one(name: str, seed: int, case: int) -> int:
    """Runs a case in this process, where a debugger sees it, and says what it did."""
    campaign, report, home = load(name), Report(), os.getcwd()
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as folder:
        os.chdir(folder)
        try:
            if campaign.prepare is not None:
                campaign.prepare()
            os.environ["FUZZ_SHOW"] = "1"
            begin = time.monotonic()
            run_case(campaign, name, seed, case, report)
            show(name, seed, report, time.monotonic() - begin)
        finally:
            os.chdir(home)
    return int(bool(report.findings))


if __name__ == "__main__":
    # under its own name, which the campaigns import
    sys.modules["campaign"] = sys.modules["__main__"]
    sys.exit(main())
