"""The run spec: exact, complete, and refused with a readable difference."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff import Sampler, Schedule
from fastdiff.jobs import Folder, Job, RunSpec, SpecMismatch, finished, run
from fastdiff.jobs.spec import differences, plan_from_json, plan_to_json
from fastdiff.solvers import make_plan


@pytest.fixture(scope="module")
def job() -> Job:
    return Job.plan("fashion-mnist", ids=(0, 5), unit=4, steps=1, guidance_scale=1.0, threads=1)


@pytest.mark.parametrize(
    "schedule, settings",
    [
        (Schedule.cosine(1000), {"solver": "unipc", "steps": 7}),
        (Schedule.cosine(1000), {"solver": "euler", "steps": 5, "timestep_spacing": "karras"}),
        (Schedule.ve(), {"solver": "heun", "steps": 4}),
        (Schedule.linear(1000), {"solver": "ddpm", "steps": 1000, "clip_range": 1.0}),
    ],
)
def test_a_plan_is_stored_exactly(schedule: Schedule, settings: dict) -> None:
    plan = make_plan(schedule, **settings)
    text = json.dumps(plan_to_json(plan), allow_nan=False)
    again = plan_from_json(json.loads(text))
    assert again.table.tobytes() == plan.table.tobytes() and again.hash == plan.hash
    assert again.initial_std == plan.initial_std and again.whole_times == plan.whole_times
    assert (
        plan.levels is not None
        and again.levels is not None
        and np.array_equal(again.levels, plan.levels)
    )
    network = torch.nn.Conv2d(1, 1, 3, padding=1)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.dtype == (torch.int64 if plan.whole_times else torch.float32)
        return network(x)

    if settings["steps"] < 10:
        drawn = [
            Sampler(model, schedule, **settings).sample((2, 1, 8, 8), seed=1),
            Sampler(model, plan=again).sample((2, 1, 8, 8), seed=1),
        ]
        assert torch.equal(*drawn), "a sampler of the stored plan is the sampler of the schedule"


def test_fractional_times_on_a_discrete_schedule_are_rounded_for_the_network() -> None:
    """A plan knows whether its times are whole; networks with timesteps get rounded ones."""
    plan = make_plan(Schedule.linear(1000), solver="euler", steps=5, timestep_spacing="karras")
    assert (plan.column("t") % 1 != 0).any(), "the case is none"
    assert plan.whole_times is True and plan_from_json(plan_to_json(plan)).whole_times is True


def test_a_spec_survives_json(job: Job) -> None:
    text = json.dumps(job.spec.to_json())
    again = RunSpec.from_json(json.loads(text), "here")
    assert again.hash == job.spec.hash and again.to_json() == job.spec.to_json()
    assert again.units == job.spec.units and again.ids == (0, 5)
    identity = again.model["identity"]
    assert (
        identity["weights_sha256"]
        and again.machine["capability"] == torch.backends.cpu.get_cpu_capability()
    )
    assert again.network_batch == again.unit == 4, (
        "calls are padded to the unit unless said otherwise"
    )


def test_everything_that_decides_bits_is_in_the_hash(job: Job) -> None:
    others = {
        "model": {**job.spec.model, "identity": {}},
        "ids": (0, 6),
        "seed": 1,
        "unit": 5,
        "network_batch": 8,
        "dtype": "bf16",
        "guidance_scale": 1.5,
        "conditions": {},
        "format": "npz",
        "threads": 2,
        "machine": {},
        "plan": make_plan(Schedule.linear(1000), solver="ddim", steps=2),
        "sampling": {"steps": 2},
        "save": (0,),
    }
    fields = {f.name for f in dataclasses.fields(job.spec) if f.init}
    assert fields == others.keys()
    hashes = {dataclasses.replace(job.spec, **{name: value}).hash for name, value in others.items()}
    assert len(hashes) == len(others) and job.spec.hash not in hashes


def test_a_changed_spec_is_noticed(job: Job) -> None:
    value = job.spec.to_json()
    with pytest.raises(ValueError, match="expected the hash .* in DIR/spec.json"):
        RunSpec.from_json({**value, "seed": 1}, "DIR/spec.json")
    row = dict(value["plan"]["table"][0])
    row["t"] = (float.fromhex(row["t"]) + 1).hex()
    damaged = {**value["plan"], "table": [row, *value["plan"]["table"][1:]]}
    with pytest.raises(ValueError, match="expected the plan"):
        RunSpec.from_json({**value, "plan": damaged}, "DIR/spec.json")
    with pytest.raises(ValueError, match="Use the fastdiff that wrote it"):
        RunSpec.from_json({**value, "format_version": 99}, "x")
    with pytest.raises(ValueError, match="expected a run spec in x, got KeyError: 'unit'"):
        RunSpec.from_json({k: v for k, v in value.items() if k != "unit"}, "x")


def test_differences_name_every_value() -> None:
    there = {"a": 1, "machine": {"name": "A", "settings": {}}, "same": [1, 2]}
    here = {"a": 2, "machine": {"name": "B", "settings": {"ISA": "AVX2"}}, "same": (1, 2)}
    assert differences(there, here) == [
        "a: 1 there, 2 here",
        "machine.name: 'A' there, 'B' here",
        "machine.settings.ISA: nothing there, 'AVX2' here",
    ]


def test_another_machine_or_other_weights_are_refused(job: Job) -> None:
    moved = dataclasses.replace(job.spec, machine={**job.spec.machine, "capability": "AVX9"})
    with pytest.raises(
        SpecMismatch, match=r"got another in a setting.\n  machine.capability: 'AVX9' there, "
    ):
        Job.open(moved)
    identity = {**job.spec.model["identity"], "weights_sha256": "0" * 64}
    other = dataclasses.replace(job.spec, model={**job.spec.model, "identity": identity})
    with pytest.raises(SpecMismatch, match="model.weights_sha256: '0{64}' there"):
        Job.open(other)


def test_a_folder_of_another_run_is_refused(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "run"
    Folder.create(out, job.spec)
    with pytest.raises(
        SpecMismatch,
        match=r"(?s)got another in a setting.\n  seed: 0 there, 1 here\nName another folder",
    ):
        run(dataclasses.replace(job.spec, seed=1), out)
    assert Folder(out).spec.hash == job.spec.hash
    with pytest.raises(ValueError, match="expected out, the folder to write to"):
        run(job.spec)
    with pytest.raises(ValueError, match="expected a run spec with out, got a folder"):
        finished(out, tmp_path / "other")


def test_foreign_files_are_left_alone(job: Job, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="got 'thesis.tex' and no spec.json in it"):
        Folder.create(tmp_path, job.spec)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    file = tmp_path / "thesis.tex"
    with pytest.raises(ValueError, match="to be a folder, got a file"):
        Folder.create(file, job.spec)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"format": "gif"}, "expected format in"),
        ({"dtype": "int8"}, "expected dtype in"),
        (
            {"classes": "Bag", "conditions": "x.txt"},
            "expected classes or a conditions file, got both",
        ),
        ({"seed": -1}, r"expected seed in \[0, 2\*\*64\)"),
        ({"threads": 0}, "expected threads >= 1, got 0"),
        ({"ids": (5, 4)}, "expected ids A-B"),
        ({"steps": 2000}, r"expected steps in \[1, 1000\], got 2000"),
        ({"format": "safetensors", "decode": "pipe"}, "expected a pipeline with a VAE"),
    ],
)
def test_plans_that_can_not_be(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Job.plan("fashion-mnist", **arguments)


def test_a_format_that_cannot_store_the_samples_is_refused_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vectors.py").write_text(
        "from fastdiff import Schedule\n"
        "from fastdiff.jobs import Model\n\n\n"
        "def factory():\n"
        "    return Model(lambda x, t: x, (2,), schedule=Schedule.cosine(100))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"\[H, W, C\] uint8 .* format png, got float32 \[2\]"):
        Job.plan("vectors:factory", format="png", steps=2)
    assert Job.plan("vectors:factory", format="npy", steps=2).spec.format == "npy"
