"""Several processes, one table: each measures units of its own and says what it found once, at the
end.

There is no collective: adaptive solvers need different numbers of evaluations on different images,
    and a process that waits
for another in the middle of its work hangs when that one fails (crowsonkb/k-diffusion issue 79).
Here every process puts its part, or its error, into the launcher's key-value store; the first one
reads them, waiting for each no longer than the timeout, and names those that did not come.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

_JOIN = timedelta(minutes=5)  # for all processes to start


class Workers:
    """This process among those of the launcher (torchrun's environment: RANK, WORLD_SIZE,
    MASTER_ADDR, MASTER_PORT).

    Args:
        minutes: how long the first process waits for another's part after its own is done.

    Attributes:
        rank, world: which one, of how many; 0 of 1 without a launcher.

    Raises RuntimeError when the others can't be met, ValueError for an environment that is not
    whole.
    """

    def __init__(self, minutes: float = 30.0):
        self.timeout = timedelta(minutes=minutes)
        self.rank, self.world, self._round = 0, int(os.environ.get("WORLD_SIZE", "1")), 0
        self._store: Any = None
        if self.world > 1:
            missing = [k for k in ("RANK", "MASTER_ADDR", "MASTER_PORT") if k not in os.environ]
            if missing:
                raise ValueError(
                    f"fastdiff.theory.evaluation: expected {missing[0]} beside"
                    f" WORLD_SIZE={self.world}, got none. Launch by torchrun."
                )
            from torch.distributed import rendezvous

            try:
                self._store, self.rank, self.world = next(rendezvous("env://", timeout=_JOIN))
            except Exception as error:
                raise RuntimeError(
                    f"fastdiff.theory.evaluation: expected to meet {self.world} processes at"
                    f" {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, got"
                    f" {_first_line(error)}"
                ) from None

    def collect(self, work: Callable[[], Any]) -> list[Any] | None:
        """[work() of every process] in the first one, None in the others. What work gives, JSON can
        hold.

        Raises in every process the error that its own work raised; in the first one RuntimeError,
        naming the processes, when another failed or did not answer.
        """
        self._round += 1
        try:
            mine: dict[str, Any] = {"part": work()}
        except BaseException as error:
            # the others' wait ends with this, whatever becomes of the process
            self._tell({"error": f"{type(error).__name__}: {_first_line(error)}"})
            raise
        if self.rank:
            self._tell(mine)
            return None
        parts, wrong = [mine["part"]], []
        for rank in range(1, self.world):
            theirs = self._hear(rank)
            parts.append(theirs.get("part"))
            if "error" in theirs:
                wrong.append(f"{rank} ({theirs['error']})")
        if wrong:
            raise RuntimeError(
                f"fastdiff.theory.evaluation: expected the parts of {self.world} processes, got"
                f" none of process {', '.join(wrong)}. Run it again."
            )
        return parts

    def _tell(self, what: dict[str, Any]) -> None:
        if self._store is not None:
            self._store.set(self._key(self.rank), json.dumps(what))

    def _hear(self, rank: int) -> dict[str, Any]:
        try:
            self._store.wait([self._key(rank)], self.timeout)
            return json.loads(self._store.get(self._key(rank)))
        except Exception as error:
            late = f"no answer in {self.timeout.total_seconds() / 60:g} minutes"
            return {
                "error": (
                    late if "imeout" in f"{type(error).__name__}{error}" else _first_line(error)
                )
            }

    def _key(self, rank: int) -> str:
        return f"fastdiff-evaluation/{self._round}/{rank}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
