"""Evaluation in several processes: each measures its own units and reports its results at the end.

No collective operation is used. Adaptive solvers need different numbers of evaluations on different
images, and a process that waits for another in the middle of its work hangs when that one fails
(crowsonkb/k-diffusion issue 79). Instead, every process writes its part, or its error, into the
launcher's key-value store. The first process reads all parts, waits for each at most as long as the
timeout, and names the processes that did not answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

_JOIN = timedelta(minutes=5)  # until all processes have started


class Workers:
    """This process and the others that the launcher started.

    They are found by torchrun's environment variables RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Args:
        minutes: how long the first process waits for the part of another after its own is done.

    Attributes:
        rank, world: the index of this process and the number of processes; 0 and 1 without a
            launcher.

    Raises:
        RuntimeError: if the other processes can't be reached.
        ValueError: for an incomplete environment.
    """

    def __init__(self, minutes: float = 30.0):
        self.timeout = timedelta(minutes=minutes)
        self.rank, self.world, self._round = 0, int(os.environ.get("WORLD_SIZE", "1")), 0
        self._store: Any = None
        if self.world > 1:
            missing = [k for k in ("RANK", "MASTER_ADDR", "MASTER_PORT") if k not in os.environ]
            if missing:
                raise ValueError(
                    f"fastdiff.theory.evaluation: expected {missing[0]} in the environment"
                    f" with WORLD_SIZE={self.world}, got none. Launch by torchrun."
                )
            from torch.distributed import rendezvous

            try:
                self._store, self.rank, self.world = next(rendezvous("env://", timeout=_JOIN))
            except Exception as error:
                raise RuntimeError(
                    f"fastdiff.theory.evaluation: expected {self.world} processes at"
                    f" {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, got"
                    f" {_first_line(error)}"
                ) from None

    def collect(self, work: Callable[[], Any]) -> list[Any] | None:
        """Returns [work() of every process] in the first process, None in the others.

        work() returns a value that JSON can hold.

        Raises the error of its own work in every process; in the first process also RuntimeError,
        with their ranks, if other processes failed or did not answer.
        """
        self._round += 1
        try:
            message: dict[str, Any] = {"part": work()}
        except BaseException as error:
            # ends the first process's wait, even if this process dies now
            self._send({"error": f"{type(error).__name__}: {_first_line(error)}"})
            raise
        if self.rank:
            self._send(message)
            return None
        parts, failed = [message["part"]], []
        for rank in range(1, self.world):
            received = self._receive(rank)
            parts.append(received.get("part"))
            if "error" in received:
                failed.append(f"{rank} ({received['error']})")
        if failed:
            raise RuntimeError(
                f"fastdiff.theory.evaluation: expected the parts of {self.world} processes, got"
                f" none of process {', '.join(failed)}. Run it again."
            )
        return parts

    def _send(self, message: dict[str, Any]) -> None:
        if self._store is not None:
            self._store.set(self._key(self.rank), json.dumps(message))

    def _receive(self, rank: int) -> dict[str, Any]:
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
