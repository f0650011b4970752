"""The output of a running worker: a progress line, and a log file with one JSON object per event.

Events are `start`, `begin` (of a unit), `unit` (it is on disk), `unfinite` (not finite, about to be
tried again), `failed`, `error`, `stop`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..outside import shown
from .folder import Folder, cannot_write

WINDOW = 60.0  # seconds over which the speed is measured


class Log:
    """The events and the progress line of one worker.

    Args:
        folder: of the run.
        images: samples of the run.
        done: samples that are on disk already.
        progress: whether to show the line.
    """

    def __init__(self, folder: Folder, images: int, done: int, progress: bool):
        self.images, self._begun = done, time.monotonic()
        self._total, self._recent = images, [(self._begun, done)]
        path = folder.path / "log" / f"{folder.worker}.jsonl"
        try:
            path.parent.mkdir(exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise OSError(cannot_write(folder.path, error)) from None
        self._bar = tqdm(
            total=images,
            initial=done,
            unit="img",
            desc="sampling",
            disable=not progress,
            smoothing=0.1,
            bar_format=(
                "{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining},"
                " {rate_fmt}{postfix}]"
            ),
        )

    def event(self, name: str, **facts: Any) -> None:
        """Appends an event to the log file."""
        line = {"event": name, "unix": round(time.time(), 3), **facts}
        try:
            os.write(self._file, (json.dumps(line) + "\n").encode())
        except OSError:  # a full disk stops the run when samples are written, not here
            pass

    def unit_written(self, unit: int, images: int, queue: int) -> None:
        """Records that this worker has put a unit on disk. queue: units that wait for a writer."""
        self.images += images
        now = time.monotonic()
        self._recent.append((now, self.images))
        while len(self._recent) > 2 and now - self._recent[1][0] > WINDOW:
            self._recent.pop(0)
        speed, memory = self.speed, resident()
        eta = None if not speed else round((self._total - self.images) / speed)
        self.event(
            "unit",
            unit=unit,
            images=images,
            images_per_second=round(speed, 2),
            eta_s=eta,
            queue=queue,
            resident_mib=memory,
        )
        self._bar.set_postfix_str(f"queue {queue}, {memory} MiB", refresh=False)
        self._bar.update(images)

    def written_elsewhere(self, images: int) -> None:
        """Counts samples that other processes made and recorded in their own logs."""
        self.images += images
        self._bar.update(images)

    @property
    def speed(self) -> float:
        """Images per second of this worker, over the last minute."""
        (then, before), (now, after) = self._recent[0], self._recent[-1]
        return (after - before) / (now - then) if now > then else 0.0

    def print_line(self, text: str) -> None:
        """Prints a line above the progress line."""
        self._bar.write(shown(text), file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
        os.close(self._file)


def resident() -> int:
    """Returns the resident memory of this process in MiB; without /proc, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
