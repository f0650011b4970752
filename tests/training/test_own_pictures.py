"""Someone's folder of 500 pictures: trained, killed nine times, resumed, sampled and judged.

By the commands of docs/training/README.md, in one process and in two under torchrun.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from drawn_pictures import draw_folder
from patience import PATIENCE
from processes import run, send, start, wait

from fastdiff.training import LOSSES
from fastdiff.training.folder import read

KILLS, STEPS = 9, 40
NETWORK = ("--model", "unet", "--widths", "8,16", "--option", "emb=16", "--timesteps", "100")
DATA = ("--test-share", "0.1", "--flip")
SETTINGS = ("--steps", str(STEPS), "--batch-size", "8", "--warmup", "4", "--threads", "1")
FILES = ("model.safetensors", "config.json", LOSSES)

pytestmark = pytest.mark.xdist_group("own pictures")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("own") / "pictures")


@pytest.fixture(scope="module")
def straight(pictures: Path) -> Path:
    """The folder of a run that nothing disturbed."""
    out = pictures.parent / "straight"
    arguments = ("train", "--data", str(pictures), *DATA, *NETWORK, *SETTINGS, "--out", str(out))
    status, said = run(pictures.parent / "log", *arguments)
    assert status == 0, said
    return out


def steps_done(folder: Path) -> int:
    """The steps of the folder's checkpoint; 0 without one."""
    try:
        return int(read(folder)[1]["step"])
    except (OSError, ValueError):
        return 0


def compared(a: Path, b: Path, log: Path) -> dict[str, Any]:
    """What `fastdiff metrics` prints of two sets."""
    how = ("--features", "drawn_pictures:features", "--threads", "1", "--json")
    status, said = run(log, "metrics", str(a), str(b), *how)
    assert status == 0, said
    return json.loads(said[said.index("{") :])


def test_killed_nine_times_it_is_the_same_run(
    pictures: Path, straight: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = ("train", "--data", str(pictures), *DATA, *NETWORK, *SETTINGS, "--out", str(out))
    process = start(log, *arguments, "--save-every", "1")
    chance, kills = random.Random(0), 0
    while kills < KILLS:
        goal = steps_done(out) + chance.randint(1, 2)
        assert wait(lambda goal=goal: steps_done(out) >= goal, process), log.read_text()  # type: ignore[misc]
        time.sleep(chance.random() * 0.05)  # within the next step, or while it is written
        kills += send(process, signal.SIGKILL)
        process.join()
        assert not (out / "config.json").exists(), "the kills were too late: it has ended"
        process = start(log, "train", "--out", str(out), "--resume", "--save-every", "1")
    process.join(PATIENCE)
    assert process.exitcode == 0, log.read_text()
    for file in FILES:
        assert (straight / file).read_bytes() == (out / file).read_bytes(), file


def test_it_is_sampled_evaluated_and_compared(
    pictures: Path, straight: Path, tmp_path: Path
) -> None:
    samples = tmp_path / "samples"
    few = ("--num", "12", "--steps", "3", "--unit", "4", "--threads", "1")
    status, said = run(
        tmp_path / "log", "sample", "--model", str(straight), "--out", str(samples), *few
    )
    assert status == 0, said
    status, said = run(tmp_path / "log", "verify", str(samples))
    assert status == 0, said
    measured = ("--images", "4", "--times", "2", "--json", str(tmp_path / "bits.json"))
    status, said = run(tmp_path / "log", "eval", str(straight), *measured, "--threads", "1")
    assert status == 0, said
    result = json.loads((tmp_path / "bits.json").read_text())["results"][0]
    assert 0 < result["bound"]["bits_per_dim"] < 100
    found = compared(samples, pictures, tmp_path / "log")
    assert (found["a"]["samples"], found["b"]["samples"]) == (12, 500)
    same = compared(pictures, pictures, tmp_path / "log")
    assert 0 <= same["frechet"] < 1e-3 * found["frechet"]


def test_two_processes_are_one_run(pictures: Path, straight: Path, tmp_path: Path) -> None:
    """The same batches under torchrun: the same loss to rounding, also after a kill of all."""
    out = tmp_path / "run"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0")
    command = [*torchrun, "--nproc-per-node", "2", "-m", "fastdiff", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    begin = ("--data", str(pictures), *DATA, *NETWORK, *SETTINGS, "--save-every", "2")
    with open(tmp_path / "log", "w") as log:
        agent = subprocess.Popen(
            [*command, *begin, "--out", str(out)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    end = time.monotonic() + PATIENCE
    while steps_done(out) < 6:
        assert agent.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.02)
    os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()
    assert not (out / "config.json").exists(), "the kill was too late: it has ended"
    done = subprocess.run(
        [*command, "--out", str(out), "--resume"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = (
        [float(line.split(",")[1]) for line in (f / LOSSES).read_text().splitlines()[1:]]
        for f in (out, straight)
    )
    assert len(ours) == len(theirs) >= 2
    assert ours == pytest.approx(theirs, rel=1e-4)
