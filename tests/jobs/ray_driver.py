"""Runs on a local Ray cluster, in a process of its own: Ray leaves threads behind in a process that
used it.

    python tests/jobs/ray_driver.py FOLDER

FOLDER/run is left by one pool and finished by another, which the command line starts;
FOLDER/refused has other weights, and
FOLDER/wide more threads than the machine has CPUs. Ends with a line of JSON: what came of each.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from fastdiff.cli import main
from fastdiff.jobs import Folder
from fastdiff.jobs.ray import _cluster, run_pool


def error(call: Callable[[], Any]) -> tuple[str, str]:
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


if __name__ == "__main__":
    where = Path(sys.argv[1])
    folder, stop = Folder(where / "run"), threading.Event()
    stop.set()
    with _cluster(folder.spec, 2) as count:
        assert count == 2 and ray.is_initialized()
        left = run_pool(folder, workers=1, stop=stop)
        status = main(["resume", str(where / "run"), "--engine", "ray", "--workers", "2"])
        refused = error(lambda: run_pool(Folder(where / "refused"), workers=1))
        wide = error(lambda: run_pool(Folder(where / "wide")))
    assert not ray.is_initialized()
    told = {"stopped": left.stopped, "made": left.made, "done": left.done, "status": status}
    print("\n" + json.dumps(told | {"refused": refused, "wide": wide}))
