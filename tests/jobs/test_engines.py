"""Workers under torchrun, plain shards and signals make the dataset of a single worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE
from workers import Worker, wait

from fastdiff.cli import main
from fastdiff.cli.exit_status import AGAIN, INTERRUPTED
from fastdiff.jobs.folder import Folder
from fastdiff.jobs.verify import verify

pytestmark = [pytest.mark.cpu_only, pytest.mark.xdist_group("jobs")]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATH = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels", HERE)))}
TINY = [
    "--model",
    "tiny:factory",
    "--ids",
    "0-127",
    "--unit",
    "4",
    "--steps",
    "2",
    "--threads",
    "1",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def tiny_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return alone(TINY, tmp_path_factory.mktemp("alone") / "run")


def alone(arguments: list[str], out: Path) -> str:
    assert main(["sample", "--out", str(out), *arguments]) == 0
    return digest(out)


def digest(out: Path) -> str:
    check = verify(Folder(out))
    assert check.fine and not check.foreign, check
    return check.digest


def events(out: Path, *names: str) -> list[dict[str, Any]]:
    lines = (
        line
        for path in (out / "log").glob("*.jsonl")
        for line in path.read_text().splitlines(keepends=True)
    )
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["event"] in names]


def twice(out: Path) -> int:
    """Returns how many units were computed more than once."""
    begun = Counter(event["unit"] for event in events(out, "begin"))
    return sum(begun.values()) - len(begun)


def test_torchrun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks of the shipped model use the run's two threads, although torchrun sets one."""
    monkeypatch.syspath_prepend(HERE)
    spec = [
        "--model",
        "watched:factory",
        "--ids",
        "3-30",
        "--unit",
        "4",
        "--steps",
        "1",
        "--guidance",
        "1",
        "--threads",
        "2",
        "--device",
        "cpu",
    ]
    threads = torch.get_num_threads()
    expected = alone(spec, tmp_path / "alone")
    assert torch.get_num_threads() == threads
    out = tmp_path / "run"
    environment = {
        name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"
    } | PATH
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*launcher, "-m", "fastdiff", "sample", "--out", str(out), *spec],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted((e["worker"], e["world"], e["threads"]) for e in events(out, "start")) == [
        (0, 2, 2),
        (1, 2, 2),
    ]
    assert all(event["done"] == 8 for event in events(out, "stop")), (
        "each leaves when all is done, by whomever"
    )
    capsys.readouterr()
    assert main(["verify", "--json", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == expected


def test_shards_race_for_an_empty_folder(tmp_path: Path, tiny_digest: str) -> None:
    """Two workers that know only their number write one spec and make few units twice."""
    out = tmp_path / "run"
    slow = PATH | {"TINY_SLEEP": "0.03"}  # units are slow, so that both workers make some
    workers = [
        Worker(
            "fresh",
            ["sample", "--out", str(out), *TINY, "--shard", f"{i}/2"],
            slow,
            tmp_path / str(i),
        )
        for i in (0, 1)
    ]
    wait(workers)
    assert [w.status for w in workers] == [0, 0], [(tmp_path / str(i)).read_text() for i in (0, 1)]
    assert digest(out) == tiny_digest
    assert sorted((e["worker"], e["world"]) for e in events(out, "start")) == [(0, 2), (1, 2)]
    assert twice(out) <= 6, f"{twice(out)} of 32 units twice"
    assert not list((out / "tmp").iterdir())
    made = len(events(out, "begin"))
    assert main(["resume", str(out), "--trust", "--shard", "5/8"]) == 0, (
        "a worker that comes too late has nothing to do"
    )
    assert len(events(out, "begin")) == made


def test_signals_end_a_worker_after_its_unit(tmp_path: Path, tiny_digest: str) -> None:
    """After SIGTERM and SIGUSR1 the unit is on disk, the status is 75, and the run resumes."""
    out = tmp_path / "run"
    for number, text in ((signal.SIGUSR1, "USR1"), (signal.SIGTERM, "TERM")):
        before = len(events(out, "unit"))
        worker = Worker(
            "fresh",
            ["sample", "--out", str(out), *TINY],
            PATH | {"TINY_SLEEP": "0.2"},
            tmp_path / text,
        )
        until = time.monotonic() + PATIENCE
        while len(events(out, "unit")) == before:
            assert time.monotonic() < until and not worker.ended(), (tmp_path / text).read_text()
            time.sleep(0.02)
        os.kill(worker.pid, number)
        wait([worker])
        assert worker.status == AGAIN == 75, (tmp_path / text).read_text()
        units = len(events(out, "unit"))
        assert before < units < 32 and len(events(out, "begin")) == units, "none was thrown away"
        assert len(Folder(out).done()) == units and not list((out / "tmp").iterdir())
    assert main(["resume", str(out), "--trust"]) == 0
    assert digest(out) == tiny_digest and twice(out) == 0


def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path: Path, tiny_digest: str) -> None:
    """During a unit, of a new and of a resumed run: finished units stay, others are not begun."""
    out = tmp_path / "run"
    for count, command in enumerate(
        (["sample", "--out", str(out), *TINY], ["resume", str(out), "--trust"]), 1
    ):
        said, before = tmp_path / str(count), len(events(out, "unit"))
        worker = Worker("fresh", command, PATH | {"TINY_SLEEP": "0.3"}, said)
        until = time.monotonic() + PATIENCE
        while len(events(out, "unit")) == before:
            assert time.monotonic() < until and not worker.ended(), said.read_text()
            time.sleep(0.02)
        os.kill(worker.pid, signal.SIGINT)
        wait([worker])
        assert worker.status == INTERRUPTED == 130, said.read_text()
        text = said.read_text()
        assert (
            text.endswith(f"fastdiff {command[0]}: interrupted. What was finished is on disk.\n")
            and "Trace" not in text
        )
        check, folder = verify(Folder(out)), Folder(out)
        assert not check.bad and not check.foreign and before < check.done < 32
        assert len(events(out, "stop")) == count, "it took its leave"
        assert not list((out / "tmp").iterdir()) and not (out / "manifest.jsonl").exists()
        assert {int(p.stem) for p in (out / "shards").rglob("*.npy")} == folder.done()
    assert main(["resume", str(out), "--trust"]) == 0
    assert digest(out) == tiny_digest
