"""Runs jobs on a local Ray cluster, in a separate process, because Ray leaves threads behind.

    python tests/jobs/ray_driver.py FOLDER

One pool begins FOLDER/run and another one, started by the command line, finishes it.
FOLDER/refused has other weights, and FOLDER/wide needs more threads than the machine has CPUs. The
last line of the output is JSON with the results.
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
        left = run_pool(folder, workers=1, stop=stop, trust=True)
        status = main(
            ["resume", str(where / "run"), "--trust", "--engine", "ray", "--workers", "2"]
        )
        refused = error(lambda: run_pool(Folder(where / "refused"), workers=1, trust=True))
        wide = error(lambda: run_pool(Folder(where / "wide"), trust=True))
    assert not ray.is_initialized()
    results = {"stopped": left.stopped, "made": left.made, "done": left.done, "status": status}
    print("\n" + json.dumps(results | {"refused": refused, "wide": wide}))
