"""Training by two processes of torchrun: the same losses as one process, signals, and a death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from patience import PATIENCE
from small_trainers import CASES, trajectory
from test_training_parts import close

from fastdiff.cli import main
from fastdiff.training import CHECKPOINT, LOSSES
from fastdiff.training.folder import read

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without torch.distributed"
)
HERE = Path(__file__).parent
POINTS = ("--data", "moons", "--option", "width=8", "--option", "depth=1", "--warmup", "2")


def torchrun(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts two ranks of a script or a module, in a session of their own."""
    paths = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    launcher = ("torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *launcher, *arguments],
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finished(log: Path, *arguments: str) -> str:
    """Runs two ranks to their end, which must be a good one, and returns their output."""
    process = torchrun(log, *arguments)
    assert process.wait(PATIENCE) == 0, log.read_text()
    return log.read_text()


def until(log: Path, process: subprocess.Popen[bytes], reached: Path) -> None:
    """Waits for a file."""
    end = time.monotonic() + PATIENCE
    while not reached.exists():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The trajectories of all cases by two ranks: even shares, odd ones, parts of them."""
    folder = tmp_path_factory.mktemp("two")
    changes = ('{"batch_size": 7}', '{"accumulate": 2}', '{"ema_rel": [0.1]}')
    names = [*CASES, *(f"denoiser:{c}" for c in changes), 'learning:{"batch_size": 7}']
    finished(folder / "log", str(HERE / "small_trainers.py"), str(folder / "found.json"), *names)
    return json.loads((folder / "found.json").read_text())


def test_two_ranks_have_the_losses_of_one(of_two: dict[str, dict]) -> None:
    for name, found in of_two.items():
        case, _, changes = name.partition(":")
        close(found, trajectory(CASES[case](**json.loads(changes or "{}"))))
    assert len(of_two) == len(CASES) + 4


def test_a_signal_stops_both_ranks_and_any_number_continues(tmp_path: Path) -> None:
    """SIGTERM to torchrun leaves a checkpoint; one process and then two ranks continue from it."""
    out, log = tmp_path / "run", tmp_path / "log"
    steps = ("--steps", "400", "--batch-size", "8", "--save-every", "5", "--log-every", "1")
    command = ("train", "--out", str(out), *POINTS, *steps)
    process = torchrun(log, "-m", "fastdiff", *command, "--no-fused")
    until(log, process, out / CHECKPOINT)
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    said = log.read_text()
    assert f"continue with: fastdiff train --out {out} --resume" in said, said
    stopped = read(out)[1]
    assert 5 <= stopped["step"] < 400 and stopped["machine"]["ranks"] == 2
    assert not (out / "config.json").exists()
    with pytest.warns(UserWarning, match="expected ranks 2, with which this run began, got 1"):
        assert main(["train", "--out", str(out), "--resume", "--minutes", "1e-9"]) == 0
    assert read(out)[1]["step"] == stopped["step"] + 1
    finished(log, "-m", "fastdiff", "train", "--out", str(out), "--resume")
    assert (out / "config.json").exists() and read(out)[1]["step"] == 400
    # the curve is that of one process from its first to its last step
    one = tmp_path / "one"
    assert main(["train", "--out", str(one), *command[3:], "--no-fused"]) == 0
    ours, theirs = ((p / LOSSES).read_text().splitlines()[1:] for p in (out, one))
    assert len(ours) == len(theirs) == 400
    for a, b in zip(ours[:100], theirs[:100], strict=True):
        assert float(a.split(",")[1]) == pytest.approx(float(b.split(",")[1]), rel=1e-4)


def test_a_rank_that_dies_ends_the_other_with_a_sentence(tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    steps = ("--steps", "100000", "--batch-size", "8", "--save-every", "5")
    process = torchrun(
        log, "-m", "fastdiff", "train", "--out", str(out), *POINTS, *steps, "--rank-timeout", "600"
    )
    until(log, process, out / CHECKPOINT)
    ranks = _children(process.pid)
    assert len(ranks) == 2, ranks
    os.kill(ranks[1], signal.SIGKILL)
    assert process.wait(PATIENCE) != 0
    said = log.read_text()
    assert "fastdiff.Trainer: expected all 2 ranks in step " in said, said
    assert "Another rank has died or hangs; start all again with --resume." in said
    assert read(out)[1]["step"] >= 5


def _children(pid: int) -> list[int]:
    """Returns the processes that torchrun started, in the order of their ranks."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            values = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((v[5:] for v in values if v.startswith(b"RANK=")), None)
        if int(fields[1]) == pid and rank is not None:
            found[int(rank)] = int(entry.name)
    return [found[k] for k in sorted(found)]
