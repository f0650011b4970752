"""Runs commands in processes that can be killed, forked from a server that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from patience import PATIENCE

from fastdiff.cli import COMMANDS
from fastdiff.theory.registry import SYSTEMS

# the server is a new interpreter, which needs the paths that pytest added
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch._dynamo",
        *(f"fastdiff.cli.{command}" for command in COMMANDS),
        *(w.split(":")[0] for w in SYSTEMS.values()),
        "fastdiff.training",
        "fastdiff.theory.systems.presets",
        "fastdiff.theory.evaluation.report",
        "fastdiff.backend.library",
    ]
)


def start(log: Path, *arguments: str, env: dict[str, str] | None = None) -> BaseProcess:
    """Starts `fastdiff *arguments`, with its output in a file."""
    process = CONTEXT.Process(target=_run, args=(str(log), arguments, env or {}), daemon=True)
    process.start()
    return process


def run(log: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs `fastdiff *arguments` to its end and returns (exit status, output).

    Raises AssertionError if it does not end.
    """
    process = start(log, *arguments, env=env)
    process.join(PATIENCE)
    status = process.exitcode
    if status is None:
        process.kill()
        raise AssertionError(f"fastdiff {' '.join(arguments)} does not end:\n{log.read_text()}")
    return status, log.read_text()


def wait(reached: Callable[[], bool], process: BaseProcess) -> bool:
    """Waits until a condition holds or the process has ended; returns whether it holds."""
    end = time.monotonic() + PATIENCE
    while not reached() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.002)
    return reached()


def send(process: BaseProcess, number: int) -> bool:
    """Sends a signal; returns whether the process was there to receive it."""
    try:
        os.kill(process.pid or 0, number)
    except ProcessLookupError:  # it has ended in the meantime
        return False
    return True


def _run(log: str, arguments: tuple[str, ...], env: dict[str, str]) -> None:
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(env)
    import torch

    from fastdiff.cli import main

    torch.set_num_threads(1)
    status = main(list(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
