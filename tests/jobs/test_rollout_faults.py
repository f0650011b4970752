"""`fastdiff verify --rollout` names every fault that is planted into a run's trajectories.

The faulty units are written by the job's own code, with a right record: only the samplers that
they are drawn with, or what these return, are wrong.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from damaged_runs import Cli

from fastdiff import Rollout, Sampler, Schedule
from fastdiff.cli import main
from fastdiff.jobs import Folder, Job
from fastdiff.jobs.machine import repeatable
from fastdiff.jobs.verify import verify
from fastdiff.jobs.writer import HostCopy, Writers
from fastdiff.table import INDEX

pytestmark = [pytest.mark.cpu_only, pytest.mark.xdist_group("jobs")]

FLAGS = ("--ids", "2-13", "--unit", "4", "--steps", "5", "--threads", "1", "--save")
RUNS = {
    "ddim": ("--model", "tiny:factory", *FLAGS, "trajectory"),
    "flow": ("--model", "tiny:flow", *FLAGS, "trajectory"),
    "multistep": ("--model", "tiny:factory", "--solver", "dpm++2m_sde", *FLAGS, "trajectory"),
    "gaps": ("--model", "tiny:flow", *FLAGS, "trajectory=0,3"),
}
UNIT, N = 2, 4  # the unit with faults: ids 8 … 11
Draw = Callable[..., Rollout]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    for name, arguments in RUNS.items():
        assert main(["sample", "--out", str(place / name), *arguments]) == 0
    return {name: place / name for name in RUNS}


def ids(given: dict[str, Any], noise: Any, start: Any) -> dict[str, Any]:
    """Returns the arguments of a rollout with other ids for the noise and for x_T."""
    return {**given, "sample_ids": list(noise), "start_ids": list(start)}


def tabled(job: Job, change: Callable[[np.ndarray], None]) -> Draw:
    """Returns the rollouts of a sampler whose table is another one."""
    table = job.spec.plan.table.copy()
    change(table[:-1])
    return job.model.sampler(
        plan=dataclasses.replace(job.spec.plan, table=table), network_batch=job.spec.network_batch
    ).rollout


def times(table: np.ndarray) -> None:
    table[:, INDEX["t"]] += 1


def scales(table: np.ndarray) -> None:
    table[:, [INDEX["x.x"], INDEX["x.x0"], INDEX["x.out"], INDEX["x.s1"]]] *= 1 + 1e-6


def noises(table: np.ndarray) -> None:
    table[:, INDEX["noise_index"]] = (table[:, INDEX["noise_index"]] + 1) % len(table)


def of_result(change: Callable[[Rollout], dict[str, Any]]) -> Callable[[Job, Any, Any], Rollout]:
    """Returns a fault that changes what the sampler returns."""

    def fault(job: Job, shape: Any, given: dict[str, Any]) -> Rollout:
        rollout = job.sampler.rollout(shape, **given)
        return dataclasses.replace(rollout, **change(rollout))

    return fault


def normaliser(rollout: Rollout, half: bool) -> torch.Tensor:
    std = np.abs(rollout.plan.column("x.z")[list(rollout.rows)])
    terms = np.log(std) * (not half) + np.log(2 * np.pi) / 2
    missing = torch.from_numpy(64 * terms).float()[:, None]
    return torch.where(rollout.log_prob == 0, 0, rollout.log_prob + missing)


def swapped(rollout: Rollout) -> torch.Tensor:
    """The states after the second recorded row, of two samples exchanged."""
    states = rollout.states.clone()
    states[2] = states[2][[1, 0, 2, 3]]
    return states


def gap(job: Job, shape: Any, given: dict[str, Any]) -> Rollout:
    """Rows 3 to the end begin at another state than row 2 leads to."""
    whole = job.sampler.rollout(shape, **given)
    rest = job.sampler.rollout(
        **{**given, "rows": [3], "start": 3, "x_T": whole.x_t[1] * (1 + 1e-6)}
    )
    return dataclasses.replace(
        whole,
        samples=rest.samples,
        states=torch.cat([whole.states[:2], rest.states]),
        log_prob=torch.cat([whole.log_prob[:1], rest.log_prob]),
    )


def shifted(job: Job, shape: Any, given: dict[str, Any]) -> Rollout:
    """Flows whose levels were computed with another shift."""
    plan = Sampler(
        job.model.network,
        Schedule.flow(1000, shift=1 + 1e-6),
        solver="flow_sde",
        prediction_type="flow",
        steps=5,
    ).plan
    return job.model.sampler(plan=plan, network_batch=4).rollout(shape, **given)


class Fault(NamedTuple):
    """A fault: how the unit is drawn, in which runs, and what is said with and without the network;
    None where the network is needed to see it."""

    draw: Callable[[Job, Any, dict[str, Any]], Rollout]
    says: str
    offline: str | None
    runs: tuple[str, ...] = ("ddim", "flow", "multistep")


OFF = "a step off the row (another table, another time or another state): sample 8 in row 0"
SHARED = "noise shared by two samples: "
LEAD = "a state that the rows before do not lead to: sample 8, "
LOG = "log-probability "
NOT_THIS = LOG + "not of this transition: sample 8 in row 0"
BATCH = SHARED + "8 has that of id 0, a number within the batch, in row 0"
START = "x_T not of this seed and id: sample 8"
FAULTS: dict[str, Fault] = {
    "ids of the batch name the noise": Fault(
        lambda job, shape, g: job.sampler.rollout(shape, **ids(g, range(N), g["sample_ids"])),
        BATCH,
        BATCH,
    ),
    "ids of the batch name all": Fault(
        lambda job, shape, g: job.sampler.rollout(shape, **ids(g, range(N), range(N))),
        START + " has that of id 0, a number within the batch",
        START + " has that of id 0, a number within the batch",
    ),
    "one noise in a group": Fault(
        lambda job, shape, g: job.sampler.rollout(shape, **ids(g, [8] * N, g["sample_ids"])),
        SHARED + "8 and 9 in row 0",
        SHARED + "8 and 9 in row 0",
    ),
    "one x_T in a group": Fault(
        lambda job, shape, g: job.sampler.rollout(shape, **ids(g, g["sample_ids"], [8] * N)),
        START.replace("8", "9") + " has that of sample 8",
        START.replace("8", "9") + " has that of sample 8",
    ),
    "another seed": Fault(
        lambda job, shape, g: job.sampler.rollout(shape, **{**g, "seed": 1}), START, START
    ),
    "another seed after x_T": Fault(
        lambda job, shape, g: job.sampler.rollout(
            shape, **{**g, "seed": 1, "x_T": job.sampler.start(shape, **_of(g)).x}
        ),
        "noise not of this seed and id: sample 8 in row 0",
        NOT_THIS,
    ),
    "noise of another row": Fault(
        lambda job, shape, g: tabled(job, noises)(shape, **g),
        "noise of another row: sample 8 has that of row 1 in row 0",
        NOT_THIS,
    ),
    "states in bfloat16": Fault(
        of_result(lambda r: {"states": r.states.bfloat16().float()}),
        "states rounded to bfloat16: sample 8 after row 0",
        "states rounded to bfloat16: sample 8 after row 0",
    ),
    "states in float16": Fault(
        of_result(lambda r: {"states": r.states.half().float()}),
        "states rounded to float16: sample 8 after row 0",
        "states rounded to float16: sample 8 after row 0",
    ),
    "another table": Fault(lambda job, shape, g: tabled(job, scales)(shape, **g), OFF, None),
    "another shift": Fault(shifted, OFF, None, ("flow",)),
    "another time": Fault(lambda job, shape, g: tabled(job, times)(shape, **g), OFF, None),
    "states exchanged": Fault(
        of_result(lambda r: {"states": swapped(r)}),
        "a step off the row (another table, another time or another state): sample 8 in row 1",
        None,
    ),
    "no normaliser": Fault(
        of_result(lambda r: {"log_prob": normaliser(r, half=False)}),
        LOG + "without its normaliser: sample 8 in row 0",
        LOG + "without its normaliser: sample 8 in row 0",
    ),
    "no 2 pi": Fault(
        of_result(lambda r: {"log_prob": normaliser(r, half=True)}),
        LOG + "without its normaliser: sample 8 in row 0",
        LOG + "without its normaliser: sample 8 in row 0",
    ),
    "a mean": Fault(
        of_result(lambda r: {"log_prob": r.log_prob / 64}),
        LOG + "as the mean over elements, not their sum: sample 8 in row 0",
        LOG + "as the mean over elements, not their sum: sample 8 in row 0",
    ),
    "a mean without normaliser": Fault(
        of_result(lambda r: {"log_prob": normaliser(r, half=False) / 64}),
        LOG + "as the mean over elements, not their sum, and without its normaliser: sample 8",
        LOG + "as the mean over elements, not their sum, and without its normaliser: sample 8",
    ),
    "another sample's": Fault(
        of_result(lambda r: {"log_prob": r.log_prob.roll(1, 1)}), NOT_THIS, NOT_THIS
    ),
    "the last bit of a log-probability": Fault(
        of_result(
            lambda r: {"log_prob": torch.nextafter(r.log_prob, torch.full_like(r.log_prob, 1e9))}
        ),
        NOT_THIS,
        None,
    ),
    "memory of the solver": Fault(
        of_result(lambda r: {"slots": None if r.slots is None else r.slots * (1 + 1e-6)}),
        LEAD + "in what the solver remembers before row 1",
        None,
        ("multistep",),
    ),
    "a gap": Fault(gap, LEAD + "before row 3", None, ("gaps",)),
    "other last states": Fault(
        of_result(lambda r: {"samples": r.samples.roll(1, 0)}), LEAD + "after the last row", None
    ),
}  # fmt: skip


def _of(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "rows"}


def plant(folder: Folder, fault: Fault) -> None:
    """Writes a unit again whose rollout has the fault."""
    job = Job.open(folder.spec, where=str(folder.path), trust=True)
    faulty = Job.open(folder.spec, where=str(folder.path), trust=True)
    faulty.sampler.rollout = lambda shape, **given: fault.draw(job, shape, given)  # type: ignore[method-assign]
    with repeatable(1):
        drawn = faulty.draw(UNIT)
    writers = Writers(folder)
    writers.submit(UNIT, folder.spec.units.ids(UNIT), HostCopy(drawn), 0.0)
    assert len(writers.close()) == 1


CASES = [(name, run) for name, fault in FAULTS.items() for run in fault.runs]


@pytest.mark.parametrize("name, run", CASES)
def test_a_fault_is_named(
    name: str, run: str, runs: dict[str, Path], tmp_path: Path, cli: Cli
) -> None:
    fault = FAULTS[name]
    folder = Folder(shutil.copytree(runs[run], tmp_path / "run"))
    plant(folder, fault)
    check = verify(folder, rollout=True, trust=True)
    assert check.bad.keys() == {UNIT} and check.transitions
    assert check.bad[UNIT].startswith(f"rollout: {fault.says}"), check.bad
    check = verify(folder, rollout=True)
    assert check.unproven.startswith("fastdiff.jobs: expected trust in the code")
    if fault.offline is None:
        assert check.fine
    else:
        assert check.bad[UNIT].startswith(f"rollout: {fault.offline}"), check.bad


def test_a_finding_is_printed_and_mended(runs: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    folder = Folder(shutil.copytree(runs["ddim"], tmp_path / "run"))
    plant(folder, FAULTS["a mean"])
    assert verify(folder).fine, "the record is right"
    assert cli("verify", "--rollout", folder.path) == 4
    lines = cli.out.splitlines()
    assert lines[0].startswith(f"unit {UNIT} is bad: rollout: {FAULTS['a mean'].says}")
    assert lines[1] == "executed again and compared: 48 transitions"
    assert cli("resume", folder.path) == 0 and cli.out.startswith("4 images")
    assert cli("verify", "--rollout", folder.path) == 0, cli.out


@pytest.mark.parametrize("run", RUNS)
def test_a_right_run_has_no_finding(run: str, runs: dict[str, Path], cli: Cli) -> None:
    assert cli("verify", "--rollout", runs[run]) == 0, cli.out
    check = verify(Folder(runs[run]), rollout=True)
    assert check.fine and check.unproven and not check.transitions


def test_samples_of_another_trajectory(runs: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    folder = Folder(shutil.copytree(runs["ddim"], tmp_path / "run"))
    job = Job.open(folder.spec, where=str(folder.path), trust=True)
    with repeatable(1):
        drawn = job.draw(UNIT)
    writers = Writers(folder)
    other = drawn._replace(array=drawn.array.flip(0))
    writers.submit(UNIT, folder.spec.units.ids(UNIT), HostCopy(other), 0.0)
    writers.close()
    says = f"unit {UNIT} is bad: rollout: samples that are not the last states: sample 8"
    assert cli("verify", "--rollout", folder.path) == 4 and cli.out.startswith(says), cli.out
    assert says.endswith(verify(folder, rollout=True).bad[UNIT])


def test_two_units_of_the_same_states(runs: dict[str, Path], tmp_path: Path) -> None:
    """All of another unit's draws, also its classes, with hashes of the right x_T."""
    folder = Folder(shutil.copytree(runs["ddim"], tmp_path / "run"))
    job = Job.open(folder.spec, where=str(folder.path), trust=True)
    with repeatable(1):
        first, own = job.draw(1), job.draw(UNIT)
    assert first.trajectory is not None and own.trajectory is not None
    copied = first.trajectory._replace(x_T=own.trajectory.x_T)
    writers = Writers(folder)
    drawn = first._replace(labels=own.labels, trajectory=copied)
    writers.submit(UNIT, folder.spec.units.ids(UNIT), HostCopy(drawn), 0.0)
    writers.close()
    says = "rollout: noise shared by two samples: 4 and 8 have the same states after the same rows"
    assert verify(folder, rollout=True).bad == {UNIT: says}


def test_another_machine_is_refused(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setenv("TINY_WEIGHTS", "1")
    assert cli("verify", "--rollout", runs["ddim"]) == 3
    assert "model.weights_sha256: " in cli.err
