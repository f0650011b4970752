"""A pool of actors on a Ray cluster: Ray Data hands out units, and each actor makes and commits
them as any worker does.

Ray starts dead actors anew and hands their units out again; they find what is done on disk. What
counts is the folder: it is looked at when Ray has finished, and what is missing is handed out once
more. Without a cluster one is started here, for as long as the run takes.
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
from .job import Job
from .log import Log
from .runner import Report, look, prepare
from .spec import RunSpec, SpecMismatch
from .verify import finish, heal, listed
from .worker import Worker

MOST = 16  # units that an actor gets at a time: it waits for the disk only after the last of them
KINDS = (
    SpecMismatch,
    ValueError,
    TypeError,
    ImportError,
    OSError,
    RuntimeError,
    IndexError,
)  # told in one sentence
SHARES = 32  # handings-out for each actor, at least, so that fast and slow ones end together


def run_pool(
    folder: Folder,
    *,
    workers: int | None = None,
    retry_failed: bool = False,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> Report:
    """Works on a run until every unit is done, by actors on the Ray cluster at hand, and says how
    it ended.

    Args:
        workers: actors; default as many as the cluster has GPUs, or as often as it has the spec's
            CPU threads.
        retry_failed, progress: see `fastdiff.jobs.finished`.
        stop: when set, the run is left as soon as an actor has put units on disk; what others have
            in hand is dropped.

    Raises ImportError without Ray; SpecMismatch for an actor on another kind of machine or with
    other weights; OSError where nothing can be written.
    """
    require()
    begun, units, stop = time.monotonic(), folder.spec.units, stop or threading.Event()
    report = Report(len(units))
    prepare(folder, retry_failed)
    heal(folder)
    known = folder.done()
    log = Log(folder, units.samples, sum(len(units.ids(unit)) for unit in known), progress)
    try:
        with _cluster(folder.spec, workers) as count:
            log.event(
                "start", engine="ray", workers=count, threads=folder.spec.threads, done=len(known)
            )
            missing = [unit for unit in units.numbers if unit not in known | folder.failed().keys()]
            while missing and not report.stopped:
                for made, images in _hand_out(folder, missing, count):
                    report.made += made
                    report.images += images
                    log.elsewhere(images)
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


def _hand_out(folder: Folder, missing: list[int], workers: int) -> Iterator[tuple[int, int]]:
    """Has the units made; yields (units, samples) as they are on disk."""
    import ray.data

    spec = folder.spec
    size = max(1, min(MOST, len(missing) // (workers * SHARES)))
    dataset = ray.data.from_items(
        [{"unit": unit} for unit in missing], override_num_blocks=-(-len(missing) // size)
    ).map_batches(
        _Actor,
        fn_constructor_args=(str(folder.path.absolute()), os.getcwd()),
        batch_size=None,  # a block each
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=spec.threads,
        num_gpus=1 if spec.machine["device"] == "cuda" else None,
    )
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        for kind, told in zip(batch["kind"].tolist(), batch["error"].tolist(), strict=True):
            if told:
                raise KINDS[kind](told)
        yield int(batch["made"].sum()), int(batch["images"].sum())


class _Actor:
    """A worker that Ray Data calls with units. Errors that are told in a sentence go back as
    results, not through Ray.
    """

    def __init__(self, path: str, where: str):
        self._worker: Worker | None = None
        self._error: Exception | None = None
        try:
            if os.path.isdir(where):  # names of models may be relative to it
                os.chdir(where)
            folder = Folder(path)
            job = Job.open(folder.spec, conditions=folder.conditions, where=path)
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
        made, images, kind, told = 0, 0, 0, ""
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
            told = str(error) or type(error).__name__
        return {
            name: np.array([value])
            for name, value in (("made", made), ("images", images), ("kind", kind), ("error", told))
        }

    def __del__(self) -> None:
        if self._worker is not None:
            self._folder.leave()
            self._log.event("stop", made=self._worker.made)
            self._log.close()


@contextmanager
def _cluster(spec: RunSpec, workers: int | None) -> Iterator[int]:
    """Within the block, this process is joined to a cluster; gives the number of actors."""
    import ray
    import ray.data

    own = not ray.is_initialized()
    if own:
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), logging_level=logging.WARNING)
        except ConnectionError:
            if "RAY_ADDRESS" in os.environ:
                raise
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call home
            cpus = max(usable_cpus(), (workers or 1) * spec.threads)
            try:
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    logging_level=logging.WARNING,
                )
            except (
                Exception
            ) as error:  # Ray raises this very type where a node takes too long to start
                raise RuntimeError(
                    f"fastdiff.jobs: expected Ray to start on this machine, got {str(error)!r}."
                    " Start one with `ray start --head`, set RAY_ADDRESS=auto, and go on with"
                    " `fastdiff resume`."
                ) from error
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False  # the line is ours
    logger.setLevel(logging.ERROR)
    try:
        yield workers or _size(spec, ray.cluster_resources())
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])
        if own:
            ray.shutdown()


def _size(spec: RunSpec, resources: dict[str, float]) -> int:
    """As many actors as there is room for. Raises ValueError where there is none."""
    kind, each = ("GPU", 1) if spec.machine["device"] == "cuda" else ("CPU", spec.threads)
    count = int(resources.get(kind, 0) // each)
    if count < 1:
        raise ValueError(
            f"fastdiff.jobs: expected a Ray cluster with {each} {kind} for an actor, got"
            f" {resources.get(kind, 0):g}. Say --workers for a cluster that grows by itself."
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
