"""Short runs of the fuzz campaigns; `make fuzz` runs the long ones (tests/fuzz/campaign.py).

What workers must find is tested by a campaign whose cases crash, hang and raise on purpose.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SEED = "1"


def campaign(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs campaign.py in a process without threads, which may fork."""
    return subprocess.run(
        [sys.executable, HERE / "campaign.py", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("name", ["ops_of_cpu", "samplers", "folders", "damage"])
def test_a_short_campaign_finds_nothing(name: str) -> None:
    """`ops_of_cpu` is run on the C++ library with sanitizers too (tests/backend)."""
    name = name.removesuffix("_of_cpu")
    answer = campaign(name, "--short", "--seed", SEED, "--jobs", "1")
    assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-4000:]
    counted = re.match(rf"{name}: ([\d,]+) cases .*, 0 findings", answer.stdout)
    assert counted and int(counted[1].replace(",", "")) >= 20, answer.stdout


WRONG = """
import os, signal, time
from campaign import Campaign
def run(r, report):
    report.count("began")
    if report.case == 3: os.kill(os.getpid(), signal.SIGSEGV)
    if report.case == 5: time.sleep(600)
    if report.case == 7: raise KeyError("x")
    if report.case == 8: report.finding("a value, " + str(r.random()))
    if report.case == 11: bytearray(1 << 34)
CAMPAIGN = Campaign(run, cases=14, short=14, batch=6, seconds=5.0, memory=1 << 30)
"""


def test_crashes_hangs_and_errors_are_findings(tmp_path: Path) -> None:
    """Each is named with its case, and the other cases run."""
    (tmp_path / "ops.py").write_text(WRONG)
    runner = tmp_path / "campaign.py"
    runner.write_text((HERE / "campaign.py").read_text())
    found = subprocess.run(
        [sys.executable, runner, "ops", "--jobs", "2", "--seed", "4"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = [line.split("--case ")[1] for line in found.stdout.splitlines() if "FINDING" in line]
    assert found.returncode == 1 and found.stdout.startswith("ops: 14 cases"), found.stdout
    assert [line.split(":")[0] for line in lines] == ["3", "5", "7", "8", "11"], found.stdout
    assert "SIGSEGV" in lines[0] and "more than 5 s" in lines[1], lines
    assert "raised KeyError" in lines[2] and "a value" in lines[3] and "MemoryError" in lines[4]
    assert "12 began" in found.stdout, "the cases before a crash count once"
    alone = subprocess.run(
        [sys.executable, runner, "ops", "--seed", "4", "--case", "8"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert alone.returncode == 1 and lines[3].partition(": ")[2] in alone.stdout
