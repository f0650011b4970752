"""A pool of actors on a Ray cluster: Ray Data distributes the units, and actors commit them.

Each actor is a worker like any other. Ray restarts dead actors and distributes their units again;
the actors skip units that are on disk. When Ray has finished, the folder is checked, and missing
units are distributed once more. Without a cluster, one is started on this machine for the duration
of the run.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..backend.hardware import usable_cpus
from .folder import Folder
from .job import Job, check_trust
from .log import Log
from .runner import JobReport, finish, prepare, update_report
from .spec import RunSpec, SpecMismatch
from .verify import remove_damaged_records
from .worker import Worker

MOST = 16  # units that an actor gets at a time: it waits for the disk only after the last of them
# errors whose message is one sentence: actors return them as results
KINDS = (
    SpecMismatch,
    ValueError,
    TypeError,
    ImportError,
    OSError,
    RuntimeError,
    IndexError,
)
SHARES = 32  # batches of units for each actor, at least, so that fast and slow ones end together


def run_pool(
    folder: Folder,
    *,
    workers: int | None = None,
    retry_failed: bool = False,
    progress: bool = False,
    stop: threading.Event | None = None,
    trust: bool = False,
) -> JobReport:
    """Works on a run with actors on a Ray cluster until every unit is done, and returns a report.

    Args:
        folder: of the run.
        workers: number of actors; by default the cluster's GPUs, or its CPUs divided by the spec's
            threads.
        retry_failed: see `fastdiff.jobs.finished`.
        progress: see `fastdiff.jobs.finished`.
        stop: an event; when it is set, the run ends as soon as an actor has put units on disk, and
            the units that other actors are computing are lost.
        trust: whether the code that the spec names as its model may run; see `Job.open`.

    Raises:
        ImportError: without Ray.
        ValueError: for code that is not trusted.
        SpecMismatch: for an actor on another kind of machine or with other weights.
        OSError: where files cannot be written.
    """
    check_trust(folder.spec, trust, str(folder.path))
    require()
    begin, units, stop = time.monotonic(), folder.spec.units, stop or threading.Event()
    report = JobReport(len(units))
    prepare(folder, retry_failed)
    remove_damaged_records(folder)
    known = folder.done()
    log = Log(folder, units.samples, sum(len(units.ids(unit)) for unit in known), progress)
    try:
        with _cluster(folder.spec, workers) as count:
            log.event(
                "start", engine="ray", workers=count, threads=folder.spec.threads, done=len(known)
            )
            missing = [unit for unit in units.numbers if unit not in known | folder.failed().keys()]
            while missing and not report.stopped:
                for made, images in _distribute(folder, missing, count, trust):
                    report.made += made
                    report.images += images
                    log.written_elsewhere(images)
                    if stop.is_set():
                        report.stopped = True
                        break
                before, settled = len(missing), folder.done() | folder.failed().keys()
                missing = [unit for unit in missing if unit not in settled]
                if len(missing) == before and not report.stopped:
                    raise RuntimeError(
                        f"fastdiff.jobs: expected Ray's actors to make {before} units, got none of"
                        " them. Ray's own log says why."
                    )
    finally:
        folder.sweep()  # of actors that were killed
        folder.leave()
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


def _distribute(
    folder: Folder, missing: list[int], workers: int, trust: bool
) -> Iterator[tuple[int, int]]:
    """Distributes units to actors and yields (units, samples) of each batch that is on disk."""
    import ray.data

    spec = folder.spec
    size = max(1, min(MOST, len(missing) // (workers * SHARES)))
    dataset = ray.data.from_items(
        [{"unit": unit} for unit in missing], override_num_blocks=-(-len(missing) // size)
    ).map_batches(
        _Actor,
        fn_constructor_args=(str(folder.path.absolute()), os.getcwd(), trust),
        batch_size=None,  # one block per call
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=spec.threads,
        num_gpus=1 if spec.machine["device"] == "cuda" else None,
    )
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        for kind, message in zip(batch["kind"].tolist(), batch["error"].tolist(), strict=True):
            if message:
                raise KINDS[kind](message)
        yield int(batch["made"].sum()), int(batch["images"].sum())


class _Actor:
    """A worker that Ray Data calls with batches of units.

    Errors of the types KINDS are returned as results, since Ray would wrap them in its own.

    Args:
        path: of the run's folder.
        directory: the working directory of the process that started the run.
        trust: of that process, see `Job.open`.
    """

    def __init__(self, path: str, directory: str, trust: bool):
        self._worker: Worker | None = None
        self._error: Exception | None = None
        try:
            if os.path.isdir(directory):  # names of models may be relative to it
                os.chdir(directory)
            folder = Folder(path)
            job = Job.open(folder.spec, conditions=folder.conditions, where=path, trust=trust)
            self._folder, self._log = (
                folder,
                Log(folder, folder.spec.units.samples, 0, progress=False),
            )
            self._log.event(
                "start", engine="ray", device=str(job.device), threads=folder.spec.threads
            )
            self._worker = Worker(folder, job, self._log)
        except KINDS as error:
            self._error = error

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        made, images, kind, message = 0, 0, 0, ""
        try:
            if self._worker is None:
                assert self._error is not None
                raise self._error
            for unit in self._worker.make(
                u for u in batch["unit"].tolist() if not self._worker.finished(u)
            ):
                made, images = made + 1, images + len(unit.ids)
        except KINDS as error:
            kind = next(i for i, known in enumerate(KINDS) if isinstance(error, known))
            message = str(error) or type(error).__name__
        return {
            name: np.array([value])
            for name, value in (
                ("made", made),
                ("images", images),
                ("kind", kind),
                ("error", message),
            )
        }

    def __del__(self) -> None:
        if self._worker is not None:
            self._folder.leave()
            self._log.event("stop", made=self._worker.made)
            self._log.close()


@contextmanager
def _cluster(spec: RunSpec, workers: int | None) -> Iterator[int]:
    """Connects this process to a cluster for the duration of the block; yields the actor count."""
    import ray
    import ray.data

    own = not ray.is_initialized()
    if own:
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), logging_level=logging.WARNING)
        except ConnectionError:
            if "RAY_ADDRESS" in os.environ:
                raise
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
            cpus = max(usable_cpus(), (workers or 1) * spec.threads)
            try:
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    logging_level=logging.WARNING,
                )
            except Exception as error:  # Ray raises `Exception` where a node starts too slowly
                raise RuntimeError(
                    f"fastdiff.jobs: expected Ray to start on this machine, got {str(error)!r}."
                    " Start one with `ray start --head`, set RAY_ADDRESS=auto, and continue with"
                    " `fastdiff resume`."
                ) from error
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False  # fastdiff shows its own
    logger.setLevel(logging.ERROR)
    try:
        yield workers or _size(spec, ray.cluster_resources())
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])
        if own:
            ray.shutdown()


def _size(spec: RunSpec, resources: dict[str, float]) -> int:
    """Returns how many actors the cluster's resources suffice for. Raises ValueError for none."""
    kind, each = ("GPU", 1) if spec.machine["device"] == "cuda" else ("CPU", spec.threads)
    count = int(resources.get(kind, 0) // each)
    if count < 1:
        raise ValueError(
            f"fastdiff.jobs: expected a Ray cluster with {each} {kind} for an actor, got"
            f" {resources.get(kind, 0):g}. Pass --workers for a cluster that scales automatically."
        )
    return count


def require() -> None:
    """Raises ImportError in one sentence where Ray is not installed."""
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise ImportError(
            "fastdiff.jobs: expected Ray for --engine ray, got none installed. Install the extra"
            " fastdiff-engine[ray]."
        ) from None
