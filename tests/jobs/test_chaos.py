"""A short run of chaos.py: SIGKILL at any instant, one to four workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cpu_only, pytest.mark.xdist_group("jobs")]
HERE = Path(__file__).resolve().parent


def test_kills_cost_nothing() -> None:
    command = [
        sys.executable,
        str(HERE / "chaos.py"),
        "--kills",
        "12",
        "--seed",
        "0",
        "--engines",
        "shard",
        "--units",
        "80",
        "--stride",
        "0",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (
        figures["kills"] >= 12
        and 2 * figures["killed_within_a_unit"] >= figures["killed_after_start"] > 0
    ), figures
