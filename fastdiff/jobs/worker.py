"""What makes units and puts them on disk, whoever hands them out: the loop of fastdiff.jobs.runner,
or a pool of actors.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from .folder import Folder
from .job import Failure, Job
from .log import Log
from .machine import settled
from .verify import heal
from .writer import Finished, Staged, Unfinite, Writers


class Worker:
    """Makes units of a run, one after another, while writers put earlier ones on disk.

    Args: known: units that are done already, if that was looked up.
    Attributes: made, images: units and samples that it has put on disk so far.
    """

    def __init__(self, folder: Folder, job: Job, log: Log, known: Iterable[int] = ()):
        self._folder, self._job, self._log = folder, job, log
        self._known = set(known)
        self._taken = set(folder.failed())  # in this worker's hands, or given up
        self._again: list[int] = []
        self.made = self.images = 0

    def finished(self, unit: int) -> bool:
        """Whether nobody needs to make it any more, this worker included."""
        if unit in self._known or unit in self._taken:
            return True
        if self._folder.finished(unit):
            self._known.add(unit)
            return True
        return False

    def look(self) -> None:
        """Takes note of all that is done by now, and takes away what is damaged: one look for
        millions of questions.
        """
        self._taken.difference_update(heal(self._folder))
        self._known = self._folder.done()
        self._taken |= self._folder.failed().keys()

    def make(self, units: Iterable[int]) -> Iterator[Finished]:
        """Makes units and yields each when it is on disk; at the end all of them are, or were given
        up.

        Raises OSError in one sentence where they can't be written.
        """
        writers = Writers(self._folder)
        try:
            with settled(self._folder.spec.threads):
                for unit in units:
                    self._log.event("begin", unit=unit)
                    self._taken.add(unit)
                    start = time.monotonic()
                    drawn = self._job.draw(unit)
                    writers.submit(
                        unit,
                        self._folder.spec.units.ids(unit),
                        Staged(drawn),
                        time.monotonic() - start,
                    )
                    yield from self._settle(writers)
                    self._retry(writers)
                yield from self._settle(writers, close=True)
                if self._again:
                    writers = Writers(self._folder)
                    self._retry(writers)
                    yield from self._settle(writers, close=True)
        finally:
            try:
                writers.close()
            except BaseException as error:
                # what stopped the run is told, not what followed from it
                self._log.event("error", what=str(error))

    def _settle(self, writers: Writers, close: bool = False) -> Iterator[Finished]:
        for result in writers.close() if close else writers.results():
            if isinstance(result, Unfinite):
                self._again.append(result.unit)
                continue
            self.made += 1
            self.images += len(result.ids)
            self._known.add(result.unit)
            self._log.unit(result.unit, len(result.ids), writers.depth)
            yield result

    def _retry(self, writers: Writers) -> None:
        """Units with numbers that are not finite, once more and closely watched."""
        while self._again:
            unit = self._again.pop()
            self._log.event("unfinite", unit=unit)
            start = time.monotonic()
            drawn, failure = self._job.diagnose(unit)
            if failure is None:
                writers.submit(
                    unit, self._folder.spec.units.ids(unit), Staged(drawn), time.monotonic() - start
                )
            else:
                self._give_up(unit, failure)

    def _give_up(self, unit: int, failure: Failure) -> None:
        self._folder.fail(unit, {"unit": unit, "what": str(failure), **failure._asdict()})
        self._log.event("failed", unit=unit, what=str(failure))
        self._log.say(f"unit {unit} failed: {failure}")
