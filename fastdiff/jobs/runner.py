"""The loop of a worker: it computes units in turn while writers put earlier ones on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import torch

from .extend import extend, is_wider, tidy
from .folder import Folder
from .job import Job, mismatch
from .log import Log
from .manifest import has_manifest, write_manifest
from .spec import RunSpec, SpecMismatch, differences
from .units import unit_order
from .worker import Worker
from .writer import FinishedUnit


@dataclass
class JobReport:
    """The state of a run when a worker leaves it, and what the worker did.

    Attributes:
        units: units of the run.
        done: units on disk.
        made: units that this worker made.
        images: samples in them.
        seconds: how long it worked.
        failed: units whose samples were not finite, and why.
        stopped: whether the worker was stopped before the run was complete.
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
) -> JobReport:
    """Works on a run until every unit is done, by this worker or another, and returns a report.

    A folder of the same run with fewer ids is given the further ones first.

    Args:
        spec: a run spec, the job that planned it, or the folder of a run to resume.
        out: the folder, unless `spec` is one.
        options: see `finished`.

    Raises:
        SpecMismatch: for the folder of another run, or another machine or other weights than the
            spec's.
        OSError: where files cannot be written.
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
    trust: bool = False,
) -> Generator[FinishedUnit, None, JobReport]:
    """Yields each unit that this worker makes once it is on disk; returns the report. See `run`.

    Args:
        worker: number of this worker, 0 … world - 1.
        world: number of workers. They begin with different units.
        device: where to compute; by default the kind of device that the spec names.
        retry_failed: tries units again that failed.
        progress: shows a line with images/s, remaining time, queue and memory.
        stop: an event; when it is set, the worker finishes its current unit and returns.
        trust: whether the code that the spec names as its model may run; see `Job.open`.
    """
    folder, job = open_run(spec, out, device=device, trust=trust)
    return _work(folder, job, worker, world, retry_failed, progress, stop or threading.Event())


def open_run(
    spec: RunSpec | Job | str | PathLike[str],
    out: str | PathLike[str] | None = None,
    device: str | torch.device | None = None,
    trust: bool = False,
) -> tuple[Folder, Job]:
    """Returns the folder of a run, created if necessary, and its job. Raises as `run` does."""
    if isinstance(spec, (str, PathLike)):
        if out is not None:
            raise ValueError(
                "fastdiff.jobs: expected a run spec with out, got a folder. Leave out `out` to"
                " resume the folder's own run."
            )
        folder = Folder(spec)
        job = Job.open(
            folder.spec,
            conditions=folder.conditions,
            device=device,
            where=str(folder.path),
            trust=trust,
        )
        return folder, job
    if out is None:
        raise ValueError("fastdiff.jobs: expected out, the folder to write to, got none.")
    planned = spec.spec if isinstance(spec, Job) else spec
    file = spec.conditions.file if isinstance(spec, Job) else None
    folder = Folder.create(out, planned, file)
    if is_wider(planned, folder.spec):
        folder = extend(folder, planned, file)
    if folder.spec.hash != planned.hash:
        lines = differences(folder.spec.to_json(), planned.to_json())
        raise SpecMismatch(
            _other_run(folder.path, [line for line in lines if not line.startswith("hash:")])
        )
    if isinstance(spec, Job):
        return folder, spec
    return folder, Job.open(
        folder.spec,
        conditions=folder.conditions,
        device=device,
        where=str(folder.path),
        trust=trust,
    )


def _other_run(path: Path, lines: list[str]) -> str:
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
) -> Generator[FinishedUnit, None, JobReport]:
    units, begin = folder.spec.units, time.monotonic()
    report = JobReport(len(units))
    prepare(folder, retry_failed)
    # only names are read here: damaged units are found when the others are done
    known = folder.done()
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
            until_stopped(unit_order(units, worker, world, maker.finished, maker.refresh))
        )
    finally:
        folder.leave()
        report.made, report.images = maker.made, maker.images
        update_report(report, folder, begin)
        log.event(
            "stop",
            made=report.made,
            done=report.done,
            failed=len(report.failed),
            seconds=round(report.seconds, 3),
        )
        log.close()
    finish(folder, report)
    return report


def finish(folder: Folder, report: JobReport) -> None:
    """Writes the manifest of a complete dataset, unless another command has extended it since."""
    if (
        report.complete
        and (report.made or not has_manifest(folder))
        and Folder(folder.path).spec.hash == folder.spec.hash
    ):
        write_manifest(folder)


def prepare(folder: Folder, retry_failed: bool) -> None:
    """Removes the files of dead workers, the records of units that gained samples (`tidy`) and, for
    `retry_failed`, the marks of failed units.
    """
    folder.sweep()
    tidy(folder)
    if retry_failed:
        for unit in folder.failed():
            folder.forget(unit)


def update_report(report: JobReport, folder: Folder, begin: float) -> None:
    """Sets `done`, `failed` and `seconds` of a report. begin: the start, of time.monotonic."""
    report.done = len(folder.done())
    report.failed = {unit: str(file.get("what")) for unit, file in folder.failed().items()}
    report.seconds = time.monotonic() - begin
