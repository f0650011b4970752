"""Computes the units that it is given and commits them to disk.

The units come from the loop of fastdiff.jobs.runner, or from the scheduler of a pool of Ray actors
(fastdiff.jobs.ray).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from .drawn import Failure
from .folder import Folder
from .job import Job
from .log import Log
from .machine import repeatable
from .verify import remove_damaged_records
from .writer import FinishedUnit, HostCopy, NonFiniteUnit, Writers


class Worker:
    """Makes units of a run, one after another, while writers put earlier ones on disk.

    Args:
        folder: of the run.
        job: computes the units.
        log: takes the events.
        known: units that are known to be done.

    Attributes:
        made: units that it has put on disk so far.
        images: samples in them.
    """

    def __init__(self, folder: Folder, job: Job, log: Log, known: Iterable[int] = ()):
        self._folder, self._job, self._log = folder, job, log
        self._done = set(known)
        self._taken = set(folder.failed())  # begun by this worker, or failed
        self._retries: list[int] = []  # units that were not finite
        self.made = self.images = 0

    def finished(self, unit: int) -> bool:
        """Returns whether a unit needs no more work: done, failed, or begun by this worker."""
        if unit in self._done or unit in self._taken:
            return True
        if self._folder.finished(unit):
            self._done.add(unit)
            return True
        return False

    def refresh(self) -> None:
        """Lists the units that are done by now, and removes the records of damaged ones.

        One pass over the folder saves a look-up per unit in `finished`.
        """
        self._taken.difference_update(remove_damaged_records(self._folder))
        self._done = self._folder.done()
        self._taken |= self._folder.failed().keys()

    def make(self, units: Iterable[int]) -> Iterator[FinishedUnit]:
        """Makes units and yields each once it is on disk.

        At the end each of them is on disk or has failed. Raises OSError in one sentence where files
        cannot be written.
        """
        writers = Writers(self._folder)
        try:
            with repeatable(self._folder.spec.threads):
                for unit in units:
                    self._log.event("begin", unit=unit)
                    self._taken.add(unit)
                    start = time.monotonic()
                    drawn = self._job.draw(unit)
                    writers.submit(
                        unit,
                        self._folder.spec.units.ids(unit),
                        HostCopy(drawn),
                        time.monotonic() - start,
                    )
                    yield from self._collect(writers)
                    self._retry(writers)
                yield from self._collect(writers, close=True)
                if self._retries:
                    writers = Writers(self._folder)
                    self._retry(writers)
                    yield from self._collect(writers, close=True)
        finally:
            try:
                writers.close()
            except BaseException as error:
                # logged only: the error that stopped the run is the one to raise
                self._log.event("error", what=str(error))

    def _collect(self, writers: Writers, close: bool = False) -> Iterator[FinishedUnit]:
        """Yields the units that the writers have put on disk, and notes those to try again."""
        for result in writers.close() if close else writers.results():
            if isinstance(result, NonFiniteUnit):
                self._retries.append(result.unit)
                continue
            self.made += 1
            self.images += len(result.ids)
            self._done.add(result.unit)
            self._log.unit_written(result.unit, len(result.ids), writers.depth)
            yield result

    def _retry(self, writers: Writers) -> None:
        """Computes the units that were not finite a second time, with a check after every step."""
        while self._retries:
            unit = self._retries.pop()
            self._log.event("unfinite", unit=unit)
            start = time.monotonic()
            drawn, failure = self._job.diagnose(unit)
            if failure is None:
                writers.submit(
                    unit,
                    self._folder.spec.units.ids(unit),
                    HostCopy(drawn),
                    time.monotonic() - start,
                )
            else:
                self._give_up(unit, failure)

    def _give_up(self, unit: int, failure: Failure) -> None:
        self._folder.fail(unit, {"unit": unit, "what": str(failure), **failure._asdict()})
        self._log.event("failed", unit=unit, what=str(failure))
        self._log.print_line(f"unit {unit} failed: {failure}")
