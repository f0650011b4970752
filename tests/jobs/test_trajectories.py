"""Runs that save trajectories: the same samples, whole units after kills, and rollouts to read."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import bytes_damages, outcome
from damaged_runs import SHARD, Cli, cut, flip
from safetensors import SafetensorError
from safetensors.numpy import load
from safetensors.torch import save
from test_engines import HERE
from workers import Worker, wait

from fastdiff import Rollout
from fastdiff.cli import main
from fastdiff.jobs import Folder, Job, RunSpec, read_rollout
from fastdiff.jobs.machine import repeatable
from fastdiff.jobs.records import read_record
from fastdiff.jobs.rollout_check import RolloutCheck
from fastdiff.jobs.trajectory import saved_rows, trajectory_name
from fastdiff.jobs.verify import check_unit, verify
from fastdiff.pretrained.files import read_tensors

pytestmark = [pytest.mark.cpu_only, pytest.mark.xdist_group("jobs")]

RUN = ("--model", "tiny:factory", "--ids", "2-21", "--unit", "4", "--steps", "5", "--threads", "1")
SAVE = ("--save", "trajectory")
FILE = trajectory_name(3)
SOLVERS = (
    ("tiny:factory", "ddpm"),
    ("tiny:factory", "ddim"),
    ("tiny:factory", "euler_ancestral"),
    ("tiny:factory", "dpm++2m_sde"),
    ("tiny:factory", "dpm++2s_ancestral"),
    ("tiny:factory", "er_sde"),
    ("tiny:flow", "flow_sde"),
    ("tiny:flow", "dance_sde"),
    ("tiny:flow", "flow_cps"),
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with trajectories, which no test modifies."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(["sample", "--out", str(path), *RUN, *SAVE]) == 0
    return path


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(undisturbed, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files of samples and trajectories, and the manifest, which hashes them all."""
    paths = [p for kind in ("shards", "trajectories") for p in (folder / kind).rglob("*.*")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in [*paths, folder / "manifest.jsonl"]}


def job_of(folder: Path) -> Job:
    return Job.open(Folder(folder).spec, where=str(folder), trust=True)


def test_the_samples_are_those_of_a_run_without_trajectories(
    undisturbed: Path, tmp_path: Path, cli: Cli
) -> None:
    assert cli("sample", "--out", tmp_path / "run", *RUN) == 0
    assert cli.digest(tmp_path / "run") == cli.digest(undisturbed)
    for name, content in contents(tmp_path / "run").items():
        assert name == "manifest.jsonl" or contents(undisturbed)[name] == content
    assert len(list((undisturbed / "trajectories").rglob("*.safetensors"))) == 6
    spec, plain = Folder(undisturbed).spec, Folder(tmp_path / "run").spec
    assert spec.save == (0, 1, 2, 3) and plain.save is None and "save" not in plain.to_json()
    assert dataclasses.replace(spec, save=None).hash == plain.hash, "old specs keep their hashes"
    assert RunSpec.from_json(spec.to_json(), "here").hash == spec.hash != plain.hash


@pytest.mark.parametrize(
    "model, solver, rows",
    [(*case, "") for case in SOLVERS] + [(*case, "=0,3-4") for case in SOLVERS[1::2]],
)
def test_every_solver_is_read_scored_and_proven(
    model: str, solver: str, rows: str, tmp_path: Path, cli: Cli
) -> None:
    """The scores of the run's own network have the bits of the stored log-probabilities."""
    flags = ("--model", model, "--solver", solver, "--ids", "3-9", "--save", f"trajectory{rows}")
    assert cli("sample", "--out", tmp_path / "run", *RUN, *flags) == 0
    assert cli("verify", "--rollout", tmp_path / "run") == 0, cli.out
    folder, job = Folder(tmp_path / "run"), job_of(tmp_path / "run")
    count = len(folder.spec.save or ()) * 7
    assert f"executed again and compared: {count} transitions\n" in cli.out
    assert main(["verify", "--rollout", str(folder.path)]) == 0
    for unit in folder.spec.units.numbers:
        ids = folder.spec.units.ids(unit)
        rollout = read_rollout(folder, unit)
        direct = job.sampler.rollout(
            (len(ids), 1, 8, 8),
            seed=0,
            sample_ids=ids,
            rows=folder.spec.save,
            cond={"y": torch.tensor(list(ids))},
        )
        assert rollout.network is None and rollout.rows == direct.rows and rollout.at == direct.at
        for name in ("samples", "states", "log_prob", "ids", "start_ids", "seeds", "slots"):
            got, want = getattr(rollout, name), getattr(direct, name)
            assert (got is None and want is None) or torch.equal(got, want), name
        assert rollout.conditions.cond["y"].tolist() == list(ids)
        with torch.no_grad(), repeatable(1):
            assert torch.equal(rollout.score(job.model.network), rollout.log_prob)
            assert torch.equal(read_rollout(folder, unit, job=job).score(), rollout.log_prob)


def test_a_rollout_of_a_folder_trains(undisturbed: Path) -> None:
    network = job_of(undisturbed).model.network
    assert isinstance(network, torch.nn.Module)
    network.requires_grad_(True)
    rollout = read_rollout(undisturbed, 3)
    for part in rollout.minibatches(2, seed=1):
        (part.score(network) - part.log_prob).exp().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_guidance_and_conditions_come_from_the_folder(tmp_path: Path, cli: Cli) -> None:
    flags = ("--ids", "2-5", "--unit", "2", "--steps", "2", "--threads", "1", "--dtype", "fp32")
    out, file = tmp_path / "run", tmp_path / "classes.txt"
    file.write_text("Coat\n7\n1\nBag\n")
    assert (
        cli(
            "sample",
            "--out",
            out,
            *flags,
            "--conditions",
            file,
            "--solver",
            "ddim",
            "--eta",
            "1",
            "--guidance",
            "2",
            *SAVE,
        )
        == 0
    )
    assert cli("verify", "--rollout", out, "--recompute", "2") == 0, cli.out
    folder, rollout = Folder(out), read_rollout(out, 2)
    job = Job.open(folder.spec, conditions=folder.conditions)
    assert rollout.guided and rollout.conditions.cond["y"].tolist() == [1, 8]
    with torch.no_grad(), repeatable(1):
        assert torch.equal(rollout.score(job.model.network), rollout.log_prob)


def test_float_samples_and_a_recorded_last_row(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "run"
    flags = ("--format", "safetensors", "--save", "trajectory=4")
    assert cli("sample", "--out", out, *RUN, *flags) == 0
    assert cli("verify", "--rollout", out) == 0, cli.out
    rollout = read_rollout(out, 3)
    assert rollout.rows == (4,) and (rollout.log_prob == 0).all()
    assert torch.equal(rollout.samples, rollout.states[-1])


def test_a_kill_leaves_whole_units(
    undisturbed: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HERE)
    arguments, out = ["sample", "--out", str(tmp_path / "run"), *RUN, *SAVE], tmp_path / "run"
    # between the files of unit 1: the trajectories are on disk, the record is not
    environment = {"TINY_KILL": "@25", "PYTHONPATH": os.pathsep.join([str(HERE), *_paths()])}
    worker = Worker("fresh", arguments, environment, tmp_path / "output")
    wait([worker])
    assert worker.status == -9, (tmp_path / "output").read_text()
    folder = Folder(out)
    assert len(list((out / "trajectories").rglob("*.safetensors"))) > len(folder.done()) > 0
    for unit in folder.done():
        assert len(read_record(folder.record_path(unit), unit)["files"]) == 2
    assert not verify(folder).bad
    assert cli("resume", out) == 0 and contents(out) == contents(undisturbed)


def _paths() -> list[str]:
    return [str(HERE.parents[1]), str(HERE.parents[1] / "kernels")]


def test_two_workers_make_the_folder_of_one(undisturbed: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "run"
    arguments = ["sample", "--out", str(out), *RUN, *SAVE, "--shard"]
    slow = {"TINY_SLEEP": "0.02"}
    workers = [
        Worker("forked", [*arguments, f"{i}/2"], slow, tmp_path / f"output{i}") for i in range(2)
    ]
    wait(workers)
    assert [worker.status for worker in workers] == [0, 0]
    assert contents(out) == contents(undisturbed)
    assert cli.digest(out) == cli.digest(undisturbed)


DAMAGE: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "a byte": (lambda r: flip(r / FILE), "is not as it was written", False),
    "cut short": (lambda r: cut(r / FILE, 200), "has 200 bytes, not ", True),
    "deleted": (lambda r: (r / FILE).unlink(), "is missing", True),
    "another unit's": (
        lambda r: shutil.copy(r / trajectory_name(0), r / FILE),
        "has 3168 bytes, not 5824",
        True,
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_repaired(what: str, run: Path, undisturbed: Path, cli: Cli) -> None:
    damage, says, seen = DAMAGE[what]
    damage(run)
    assert cli("info", run) == 0 and ("1 corrupt" in cli.out) == seen
    with pytest.raises(ValueError, match="expected unit 3 as it was written"):
        read_rollout(run, 3)
    assert cli("export", run, "--format", "npz", "--out", run.parent / "o.npz") == 0
    assert cli("verify", run) == 4
    assert cli.out.startswith(f"unit 3 is bad: {run / FILE} {says}"), cli.out
    assert cli("resume", run) == 0 and cli.out.startswith("4 images")
    assert contents(run) == contents(undisturbed)


def test_a_record_without_its_trajectories_is_damaged(
    run: Path, undisturbed: Path, cli: Cli
) -> None:
    folder = Folder(run)
    record = read_record(folder.record_path(3), 3)
    folder.commit(3, [(SHARD, (run / SHARD).read_bytes())], record)
    assert cli("verify", run) == 4 and "names no file as its trajectories" in cli.out
    assert cli("resume", run) == 0 and contents(run) == contents(undisturbed)
    (run / "notes.txt").touch()
    assert cli("verify", run) == 0 and cli.out.count("is not part of the dataset") == 1


@pytest.mark.parametrize("name", ["states", "log_prob"])
def test_states_are_float32_of_the_run_s_rows(name: str, run: Path, cli: Cli) -> None:
    folder = Folder(run)
    record = read_record(folder.record_path(3), 3)
    for change, says in (
        (lambda t: t.bfloat16(), f"has trajectories with {name} as BF16 "),
        (lambda t: t[1:].clone(), f"has trajectories with {name} as F32 "),
        (None, f"has trajectories with {name} as none, not F32 "),
    ):
        tensors = read_tensors(run / trajectory_name(2))[0]
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors[name])
        folder.commit(3, [(SHARD, (run / SHARD).read_bytes()), (FILE, save(tensors))], record)
        assert cli("verify", run) == 4 and says in cli.out, cli.out
    assert cli("resume", run) == 0 and cli("verify", run, "--rollout") == 0


def test_a_trajectory_that_is_made_again_is_compared(
    run: Path, undisturbed: Path, cli: Cli
) -> None:
    folder = Folder(run)
    record = read_record(folder.record_path(3), 3)
    content = bytearray((run / FILE).read_bytes())
    content[-40 * 4] ^= 1  # the last bit of an x_T's hash or a log-probability
    folder.commit(3, [(SHARD, (run / SHARD).read_bytes()), (FILE, bytes(content))], record)
    assert cli("verify", run) == 0
    assert cli("verify", run, "--recompute", "6") == 4
    assert "unit 3 is bad: made again, it has another trajectory" in cli.out
    assert cli("resume", run) == 0 and contents(run) == contents(undisturbed)


def test_a_trajectory_of_anything_with_a_right_record(run: Path) -> None:
    """Any other bytes are a finding, and read or refused in one sentence."""
    folder, content = Folder(run), (run / FILE).read_bytes()
    record = read_record(folder.record_path(3), 3)
    header = content.index(b"}}") + 2
    named, job = 0, job_of(run)

    def problem() -> str:
        what, found = check_unit(folder, 3, folder.record_path(3))
        return what if what or found is None else RolloutCheck(folder, job).problem(found)

    for bad in [*bytes_damages(content, 5, 25), *bytes_damages(content[:header], 6, 15)]:
        bad = bad if len(bad) > header else bad + content[len(bad) :]
        folder.commit(3, [(SHARD, (run / SHARD).read_bytes()), (FILE, bad)], record)
        what = problem()
        assert what or read_tensors_equal(run / FILE, content), bad[:300]
        named += bool(what)
        read = outcome(partial(read_rollout, folder, 3), repr(bad[:80]))
        assert isinstance(read, (str, Rollout))
    assert named > 25


def read_tensors_equal(path: Path, content: bytes) -> bool:
    """Whether a file holds the tensors of another one's content."""
    good = load(content)
    try:
        found = load(path.read_bytes())
    except SafetensorError:
        return False
    return found.keys() == good.keys() and all(np.array_equal(found[k], good[k]) for k in good)


def test_samples_that_are_not_finite_once(
    undisturbed: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = int(Folder(undisturbed).spec.plan.column("t")[1])
    monkeypatch.setenv("TINY_NAN", f"9@{moment} once")
    assert cli("sample", "--out", tmp_path / "run", *RUN, *SAVE) == 0
    assert contents(tmp_path / "run") == contents(undisturbed)


def test_a_window_of_rows(tmp_path: Path, cli: Cli) -> None:
    """Rows outside sde_rows draw no noise, and are not recorded unless they are named."""
    flags = (*RUN, "--model", "tiny:flow", "--option", "sde_rows=1,3", *SAVE)
    assert cli("sample", "--out", tmp_path / "run", *flags) == 0
    assert Folder(tmp_path / "run").spec.save == (1, 2)
    assert cli("verify", "--rollout", tmp_path / "run") == 0, cli.out
    assert "executed again and compared: 40 transitions" in cli.out
    rollout = read_rollout(tmp_path / "run", 3)
    assert rollout.rows == (1, 2) and (rollout.log_prob != 0).all() and len(rollout.states) == 3


def test_flags_that_differ_from_the_run_are_refused(run: Path, cli: Cli) -> None:
    assert cli("sample", "--out", run, *RUN) == 0
    assert cli("sample", "--out", run, *RUN, *SAVE) == 0
    assert cli("sample", "--out", run, *RUN, "--save", "trajectory=0,2") == 3
    assert "  save: rows [0, 1, 2, 3] there, [0, 2] here\n" in cli.err


def test_what_is_refused(undisturbed: Path, tmp_path: Path, cli: Cli) -> None:
    plan = Folder(undisturbed).spec.plan
    assert saved_rows("trajectory", plan) == (0, 1, 2, 3)
    assert saved_rows("trajectory=4,0-2", plan) == (0, 1, 2, 4)
    for text, says in (
        ("states", "expected save as trajectory or trajectory=ROWS"),
        ("trajectory=", "expected save as trajectory or trajectory=ROWS"),
        ("trajectory=5", "expected rows of the plan, 0-4, in save=trajectory=5, got '5'"),
        ("trajectory=3-1", "got '3-1'"),
        ("trajectory=a", "got 'a'"),
        ("trajectory=1-3,2", "expected every row once"),
    ):
        with pytest.raises(ValueError, match=says):
            saved_rows(text, plan)
        assert cli("sample", "--out", tmp_path / "new", *RUN, "--save", text) == 2
    assert cli("sample", "--out", tmp_path / "new", *RUN, *SAVE, "--eta", "0") == 2
    assert "expected a solver whose rows draw noise to save their trajectory, got none" in cli.err
    assert cli("sample", "--out", tmp_path / "plain", *RUN, "--ids", "0-3") == 0
    assert cli("verify", "--rollout", tmp_path / "plain") == 2
    assert "expected a run with --save trajectory, got" in cli.err
    with pytest.raises(ValueError, match="expected a run with --save trajectory, got"):
        read_rollout(tmp_path / "plain", 0)
    with pytest.raises(ValueError, match="expected a unit of .*, 0-5, got 6"):
        read_rollout(undisturbed, 6)


def test_memory_is_that_of_a_unit(undisturbed: Path) -> None:
    """What a job holds of a unit is the recorded states, cut to the run, and nothing of others."""
    drawn = job_of(undisturbed).draw(0)
    assert drawn.trajectory is not None and drawn.array.shape[0] == 2
    assert drawn.trajectory.states.shape == (4, 2, 1, 8, 8)
    assert drawn.trajectory.log_prob.shape == (4, 2)
    x_T = drawn.trajectory.x_T
    assert x_T is not None and np.isfinite(x_T.numpy()).all()
