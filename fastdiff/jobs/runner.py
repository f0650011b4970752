"""The loop of a worker: units are drawn one after another while writers put earlier ones on
disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import torch

from .folder import Folder
from .job import Job
from .log import Log
from .spec import RunSpec, SpecMismatch, differences
from .units import turns
from .verify import finish, listed
from .worker import Worker
from .writer import Finished


@dataclass
class Report:
    """How a worker left a run.

    Attributes:
        units: of the run. done: units on disk. made: units that this worker made; images: the
            samples in them.
        failed: the units without finite samples, and why. seconds: how long it worked. stopped:
            whether it was told to.
    """

    units: int
    done: int = 0
    made: int = 0
    images: int = 0
    seconds: float = 0.0
    failed: dict[int, str] = field(default_factory=dict)
    stopped: bool = False

    @property
    def complete(self) -> bool:
        return self.done == self.units


def run(
    spec: RunSpec | Job | str | PathLike[str],
    out: str | PathLike[str] | None = None,
    **options: object,
) -> Report:
    """Works on a run until every unit is done, by this worker or another, and says how it ended.

    Args:
        spec: a run spec, the job that planned it, or the folder of a run that is to go on.
        out: the folder, where `spec` is not one.
        options: see `finished`.

    Raises SpecMismatch for a folder of another run, a machine or weights other than the spec's;
    OSError where nothing can be written.
    """
    work = finished(spec, out, **options)  # type: ignore[arg-type]
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def finished(
    spec: RunSpec | Job | str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    worker: int = 0,
    world: int = 1,
    device: str | torch.device | None = None,
    retry_failed: bool = False,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> Generator[Finished, None, Report]:
    """Yields the units that this worker makes, as they are on disk; see `run`. The generator
    returns the Report.

    Args:
        worker, world: which of how many workers this is: workers begin with different units.
        device: where to compute, if not where the spec was written for.
        retry_failed: units that were given up are tried again.
        progress: show a line with images/s, time left, queue and memory.
        stop: when set, the unit in hand is finished and the run left.
    """
    folder, job = enter(spec, out, device=device)
    return _work(folder, job, worker, world, retry_failed, progress, stop or threading.Event())


def enter(
    spec: RunSpec | Job | str | PathLike[str],
    out: str | PathLike[str] | None = None,
    device: str | torch.device | None = None,
) -> tuple[Folder, Job]:
    """The folder of a run, made if need be, and what computes it. Raises as `run` does."""
    if isinstance(spec, (str, PathLike)):
        if out is not None:
            raise ValueError(
                "fastdiff.jobs: expected a run spec with out, got a folder. Its own spec is what"
                " goes on."
            )
        folder = Folder(spec)
        job = Job.open(
            folder.spec, conditions=folder.conditions, device=device, where=str(folder.path)
        )
        return folder, job
    if out is None:
        raise ValueError("fastdiff.jobs: expected out, the folder to write to, got none.")
    planned = spec.spec if isinstance(spec, Job) else spec
    file = spec.conditions.file if isinstance(spec, Job) else None
    folder = Folder.create(out, planned, file)
    if folder.spec.hash != planned.hash:
        lines = differences(folder.spec.to_json(), planned.to_json())
        raise SpecMismatch(
            different(folder.path, [line for line in lines if not line.startswith("hash:")])
        )
    if isinstance(spec, Job):
        return folder, spec
    return folder, Job.open(
        folder.spec, conditions=folder.conditions, device=device, where=str(folder.path)
    )


def different(path: Path, lines: list[str]) -> str:
    from .job import mismatch

    return (
        mismatch(str(path), lines)
        + "\nName another folder, or `fastdiff resume` this one as it was begun."
    )


def _work(
    folder: Folder,
    job: Job,
    worker: int,
    world: int,
    retry_failed: bool,
    progress: bool,
    stop: threading.Event,
) -> Generator[Finished, None, Report]:
    units, begun = folder.spec.units, time.monotonic()
    report = Report(len(units))
    prepare(folder, retry_failed)
    known = (
        folder.done()
    )  # by their names: a unit that is damaged is found when the others are done
    log = Log(folder, units.samples, sum(len(units.ids(unit)) for unit in known), progress)
    log.event(
        "start",
        worker=worker,
        world=world,
        device=str(job.device),
        threads=folder.spec.threads,
        done=len(known),
    )
    maker = Worker(folder, job, log, known)

    def until_stopped(units: Iterator[int]) -> Iterator[int]:
        for unit in units:
            if stop.is_set():
                report.stopped = True
                return
            yield unit

    try:
        yield from maker.make(
            until_stopped(turns(units, worker, world, maker.finished, maker.look))
        )
    finally:
        folder.leave()
        report.made, report.images = maker.made, maker.images
        look(folder, report, begun)
        log.event(
            "stop",
            made=report.made,
            done=report.done,
            failed=len(report.failed),
            seconds=round(report.seconds, 3),
        )
        log.close()
    if report.complete and (report.made or not listed(folder)):
        finish(folder)
    return report


def prepare(folder: Folder, retry_failed: bool) -> None:
    """Removes what dead workers left, and that units failed, if wished."""
    folder.sweep()
    if retry_failed:
        for unit in folder.failed():
            folder.forget(unit)


def look(folder: Folder, report: Report, begun: float) -> None:
    """Fills in how the run stands. begun: when the work on it began, in seconds of
    time.monotonic.
    """
    report.done, report.failed = (
        len(folder.done()),
        {u: str(f.get("what")) for u, f in folder.failed().items()},
    )
    report.seconds = time.monotonic() - begun
