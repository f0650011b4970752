"""The loop of a worker: samples equal those of a plain call, and nothing is left behind."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff import Sampler, to_uint8
from fastdiff.jobs import Folder, Job, finished, run
from fastdiff.jobs.formats import FORMATS
from fastdiff.jobs.info import info
from fastdiff.jobs.machine import repeatable
from fastdiff.jobs.records import read_record, records
from fastdiff.jobs.runner import JobReport
from fastdiff.jobs.verify import verify

UNIT = 4
PLAN = {"ids": (2, 12), "unit": UNIT, "seed": 7, "steps": 2, "threads": 1}


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    out = tmp_path_factory.mktemp("jobs") / "run"
    report = run(Job.plan("fashion-mnist", **PLAN), out)  # type: ignore[arg-type]
    assert report == JobReport(4, 4, 4, 11, report.seconds) and report.complete
    return Folder(out)


def images(folder: Folder) -> np.ndarray:
    return np.concatenate(
        [FORMATS[folder.spec.format].read(folder.path, r) for r in records(folder.path)]
    )


def test_samples_are_those_of_a_plain_call(run_once: Folder) -> None:
    """Each unit is one call of `sample` over its whole block; the pixels are equal."""
    sampler = Sampler.from_pretrained("fashion-mnist", steps=2, network_batch=UNIT)
    found = []
    with repeatable(1):
        for block in range(0, 16, UNIT):
            ids = range(block, block + UNIT)
            y = torch.tensor([i % 10 for i in ids])
            null = {"y": torch.full_like(y, 10)}
            x = sampler.sample(
                (UNIT, 1, 28, 28), seed=7, sample_ids=ids, cond={"y": y}, uncond=null
            )
            found.append(to_uint8(x).permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.concatenate(found)[2:13], images(run_once))
    record = read_record(run_once.record_path(0), 0)
    assert (record["first"], record["stop"], record["labels"], record["seed"]) == (2, 4, [2, 3], 7)


def test_what_is_in_the_folder(run_once: Folder) -> None:
    names = sorted(
        str(p.relative_to(run_once.path)) for p in run_once.path.rglob("*") if p.is_file()
    )
    log = [n for n in names if n.startswith("log/")]
    units = [f"units/00000/{u:09d}.json" for u in range(4)]
    shards = [f"shards/00000/{u:09d}.npy" for u in range(4)]
    assert names == sorted([*log, "manifest.jsonl", *shards, "spec.json", *units]) and len(log) == 1
    assert not list((run_once.path / "tmp").iterdir())
    events = [json.loads(line) for line in (run_once.path / log[0]).read_text().splitlines()]
    assert (
        [e["event"] for e in events].count("begin")
        == [e["event"] for e in events].count("unit")
        == 4
    )
    assert {"images_per_second", "eta_s", "queue", "resident_mib"} <= next(
        e for e in events if e["event"] == "unit"
    ).keys()
    last = (run_once.path / "manifest.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["digest"] == verify(run_once).digest


def test_ids_decide_not_the_run(run_once: Folder, tmp_path: Path) -> None:
    """A sample is the same picture in a run with another range of ids."""
    other = run(Job.plan("fashion-mnist", **{**PLAN, "ids": (5, 6)}), tmp_path / "part")  # type: ignore[arg-type]
    assert other.images == 2
    assert np.array_equal(images(Folder(tmp_path / "part")), images(run_once)[3:5])


def test_units_come_as_they_are_finished(tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = Job.plan("fashion-mnist", **{**PLAN, "steps": 1, "guidance_scale": 1.0})  # type: ignore[arg-type]
    work = finished(job, out)
    first = next(work)
    assert first.array.shape == (len(first.ids), 28, 28, 1) and first.record["labels"] == [
        i % 10 for i in first.ids
    ]
    assert Folder(out).record_path(first.unit).exists(), (
        "it is on disk by the time it is handed out"
    )
    work.close()  # a program may close the generator at any time
    folder = Folder(out)
    half = info(folder)
    assert 1 <= half.done < 4 or half.complete
    assert not half.workers and half.eta_s is None
    rest = [unit.unit for unit in finished(out)]
    assert len(rest) == 4 - half.done and verify(folder).fine
    assert [unit for unit in finished(out)] == []


def test_stopping_finishes_the_unit_in_hand(tmp_path: Path) -> None:
    stop = threading.Event()
    job = Job.plan("fashion-mnist", **{**PLAN, "steps": 1, "guidance_scale": 1.0})  # type: ignore[arg-type]
    draw = job.draw

    def once(unit: int, callback: object = None) -> object:
        stop.set()
        return draw(unit)

    job.draw = once  # type: ignore[method-assign, assignment]
    report = run(job, tmp_path / "run", stop=stop)
    assert (report.stopped, report.done, report.complete) == (True, 1, False)
    assert run(tmp_path / "run").complete


def test_threads_are_the_specs_and_given_back(run_once: Folder) -> None:
    before = torch.get_num_threads()
    with repeatable(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    assert run_once.spec.threads == 1


def test_info_of_a_running_job(run_once: Folder, tmp_path: Path) -> None:
    """Two workers' logs: speeds add up; inactive and stopped workers do not count."""
    job = Job.plan("fashion-mnist", **{**PLAN, "ids": (0, 99)})  # type: ignore[arg-type]
    folder = Folder.create(tmp_path / "run", job.spec)
    (folder.path / "log").mkdir()
    now = 1e9

    def log(name: str, *events: dict) -> None:
        (folder.path / "log" / f"{name}.jsonl").write_text(
            "".join(json.dumps(e) + "\n" for e in events)
        )

    log(
        "a",
        {
            "event": "unit",
            "unix": now - 5,
            "images_per_second": 3.0,
            "queue": 1,
            "resident_mib": 300,
        },
    )
    log(
        "b",
        {"event": "unit", "unix": now - 9, "images_per_second": 1.0},
        {"event": "begin", "unix": now - 1, "unit": 3},
    )
    log("dead", {"event": "unit", "unix": now - 900, "images_per_second": 50.0})
    log(
        "done",
        {"event": "unit", "unix": now - 2, "images_per_second": 50.0},
        {"event": "stop", "unix": now - 1},
    )
    found = info(folder, now)
    assert sorted(found.workers) == ["a", "b"] and found.images_per_second == 4.0
    assert found.eta_s == 25 and found.missing == 25 and found.workers["a"]["resident_mib"] == 300
