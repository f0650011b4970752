"""Worker processes to watch and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from patience import PATIENCE

import fastdiff.cli

TORCHRUN = ("--standalone", "--max-restarts=0", "-m")


class Worker:
    """A process that runs `fastdiff`: one worker, or an agent (torchrun, Ray) of several.

    Args:
        engine: forked: a copy of this process, which has imported everything; torchrun: the agent
            is such a copy, and its `world` workers are separate processes; others: a separate
            process.
        arguments: of `fastdiff`.
        environment: added to this process's.
        output: file for its output.
        world: workers of torchrun.
    """

    def __init__(
        self,
        engine: str,
        arguments: Sequence[str],
        environment: dict[str, str],
        output: Path,
        world: int = 1,
    ):
        self.engine = engine
        self.status: int | None = None
        if engine in ("forked", "torchrun"):
            self.pid = _fork(engine, arguments, environment, output, world)
            return
        with open(output, "ab") as file:
            self.pid = subprocess.Popen(
                [sys.executable, "-m", "fastdiff", *arguments],
                env=os.environ | environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=_interruptible,
            ).pid

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def at_work(self, logs: Path) -> list[int]:
        """Returns the process ids of running workers that have begun a unit, from their logs."""
        below = {self.pid} if self.engine in ("forked", "fresh") else _descendants(self.pid)
        return [pid for pid in below if _begun(logs, pid) and _lives(pid)]

    def end(self) -> None:
        """Kills all remaining processes of it."""
        for pid in sorted(_descendants(self.pid) | {self.pid}):
            kill(pid)
        while not self.ended():
            time.sleep(0.01)


def _interruptible() -> None:
    """Restores SIGINT: shells let background processes ignore it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait(workers: Sequence[Worker]) -> None:
    """Waits until all have ended. Raises AssertionError if one does not."""
    end = time.monotonic() + PATIENCE
    while not all(worker.ended() for worker in workers):
        assert time.monotonic() < end, "a worker neither works nor ends"
        time.sleep(0.01)


def _fork(
    engine: str, arguments: Sequence[str], environment: dict[str, str], output: Path, world: int
) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(environment)
        if engine == "torchrun":
            from torch.distributed import run

            run.main(
                [*TORCHRUN[:-1], f"--nproc-per-node={world}", TORCHRUN[-1], "fastdiff", *arguments]
            )
            status = 0
        else:
            status = fastdiff.cli.main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # as a separate process would end
        status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def kill(pid: int) -> bool:
    """Kills a process and returns whether it was running."""
    alive = _lives(pid)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return alive


def _stat(pid: int) -> list[str]:
    try:
        return (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="ascii", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except OSError:
        return ["X", "0"]


def _lives(pid: int) -> bool:
    return _stat(pid)[0] not in "ZX"


def _descendants(pid: int) -> set[int]:
    parents = {int(p): int(_stat(int(p))[1]) for p in os.listdir("/proc") if p.isdecimal()}
    found, more = set(), {pid}
    while more := {child for child, parent in parents.items() if parent in more} - found:
        found |= more
    return found


def _begun(logs: Path, pid: int) -> bool:
    return any('"begin"' in path.read_text() for path in logs.glob(f"*-{pid}-*.jsonl"))
