"""A pool of actors on a real Ray cluster makes the dataset of one worker, also when actors die."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from test_engines import HERE, PATH, TINY, alone, digest, events, twice

from fastdiff.cli import main
from fastdiff.jobs import Folder, Job
from fastdiff.jobs.ray import _size

pytestmark = [pytest.mark.cpu_only, pytest.mark.xdist_group("jobs")]

RUN: dict[str, Any] = {
    "ids": (0, 127),
    "unit": 4,
    "steps": 2,
    "threads": 1,
    "device": "cpu",
}  # TINY's


def nodes() -> set[int]:
    """Returns the process ids of all Ray nodes on this machine."""
    lines = subprocess.run(
        ["ps", "-eo", "pid=,comm="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {int(line.split()[0]) for line in lines if line.split()[1:] == ["raylet"]}


def actors(out: Path) -> dict[int, int]:
    """Returns {process id: units begun} of the actors, from their logs."""
    found = {}
    for path in (out / "log").glob("*.jsonl"):
        text = path.read_text()
        if '"device"' in text:  # the driver has none
            found[int(path.stem.split("-")[-2])] = text.count('"begin"')
    return found


def test_pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pool is stopped, the next loses an actor to SIGKILL: at the end every unit is there."""
    if any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow")):
        pytest.skip("ray[data] is not installed here (make test installs it)")
    monkeypatch.syspath_prepend(HERE)
    expected = alone(TINY, tmp_path / "alone")
    out, before = tmp_path / "run", nodes()
    Folder.create(out, Job.plan("tiny:factory", **RUN).spec)
    Folder.create(tmp_path / "wide", Job.plan("tiny:factory", **(RUN | {"threads": 1000})).spec)
    with monkeypatch.context() as patch:
        patch.setenv("TINY_WEIGHTS", "1")
        Folder.create(tmp_path / "refused", Job.plan("tiny:factory", **RUN).spec)
    with open(tmp_path / "output", "w") as output:
        driver = subprocess.Popen(
            [sys.executable, HERE / "ray_driver.py", tmp_path],
            stdout=output,
            stderr=output,
            env=os.environ | PATH | {"TINY_SLEEP": "0.1"},
        )
    try:
        first, killed, end = set[int](), 0, time.monotonic() + PATIENCE
        while driver.poll() is None:
            assert time.monotonic() < end, (tmp_path / "output").read_text()
            if not first:
                first = (
                    set(actors(out)) if events(out, "stop") else first
                )  # the pool that was stopped
            elif not killed:
                killed = next(
                    (pid for pid, begun in actors(out).items() if pid not in first and begun >= 2),
                    0,
                )
                if killed:
                    os.kill(killed, signal.SIGKILL)
            time.sleep(0.02)
    finally:
        driver.kill()
    output = (tmp_path / "output").read_text()
    assert driver.returncode == 0, output
    assert killed, "no actor was working"
    found = json.loads(output.splitlines()[-1])
    assert found["stopped"] and 0 < found["made"] <= found["done"] < 32
    assert found["status"] == 0 and digest(out) == expected
    assert twice(out) <= 6, "finished units were made again"
    assert not list((out / "tmp").iterdir()), "files of dead actors are left"
    kind, message = found["refused"]  # an actor with other weights: fastdiff's message, not Ray's
    assert kind == "SpecMismatch"
    assert re.search(r"got another in a setting\.\n  model\.\S*sha256: '\w+' there", message), (
        message
    )
    assert not Folder(tmp_path / "refused").done()
    kind, message = found["wide"]
    assert kind == "ValueError"
    assert re.search(
        r"expected a Ray cluster with 1000 CPU for an actor, got \d+\. Pass --workers", message
    )
    end = time.monotonic() + PATIENCE
    while nodes() - before:
        assert time.monotonic() < end, "a node of Ray is left behind"
        time.sleep(0.1)


def test_how_many_actors() -> None:
    class Spec:
        threads = 4

        def __init__(self, device: str):
            self.machine = {"device": device}

    assert _size(Spec("cpu"), {"CPU": 18.0, "GPU": 2.0}) == 4  # type: ignore[arg-type]
    assert _size(Spec("cuda"), {"CPU": 18.0, "GPU": 2.0}) == 2  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a Ray cluster with 1 GPU for an actor, got 0"):
        _size(Spec("cuda"), {"CPU": 18.0})  # type: ignore[arg-type]


def test_ray_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a busy machine Ray raises a bare Exception: it becomes a sentence."""
    ray = pytest.importorskip(
        "ray", reason="ray[data] is not installed here (make test installs it)"
    )
    pytest.importorskip("ray.data")
    output = "The current node timed out during startup."

    def init(address: str, **_: Any) -> None:
        raise (
            Exception(output)
            if address == "local"
            else ConnectionError("Could not find any running Ray instance.")
        )

    monkeypatch.syspath_prepend(HERE)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    assert (
        main(["sample", "--out", str(tmp_path / "run"), *TINY, "--engine", "ray", "--workers", "1"])
        == 1
    )
    assert capsys.readouterr().err.endswith(
        f"fastdiff sample: fastdiff.jobs: expected Ray to start on this machine, got '{output}'."
        " Start one with `ray start --head`, set RAY_ADDRESS=auto, and continue with `fastdiff"
        " resume`.\n"
    )
    folder = Folder(tmp_path / "run")
    assert not folder.done() and not list((folder.path / "tmp").iterdir())


def test_without_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sample", "--out", str(tmp_path / "run"), "--engine", "ray"]) == 2
    output = (
        "expected Ray for --engine ray, got none installed. Install the extra fastdiff-engine[ray]."
    )
    assert output in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "before anything is written"
