"""The placement of a worker from the environments that launchers set.

SLURM's are those that Debian's SLURM 22.05 set on one node (tests/jobs/test_slurm.py reads them
from SLURM where it is installed).
"""

from __future__ import annotations

import argparse
import os

import pytest
import torch

from fastdiff.cli.sample import device_of, worker_of
from fastdiff.jobs.placement import Placement, find_placement

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "6",
    "SLURM_TASKS_PER_NODE": "4,2",
    "SLURM_CPUS_ON_NODE": "16",
}
STEP = BATCH | {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "4,2",
}


def array(ids: list[int], task: int, count: int | None = None, step: int = 1) -> dict[str, str]:
    """Returns what SLURM sets in a task of an array: of --array=0,3,7 the ends and the count."""
    return {
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_MIN": str(min(ids)),
        "SLURM_ARRAY_TASK_MAX": str(max(ids)),
        "SLURM_ARRAY_TASK_STEP": str(step),
        "SLURM_ARRAY_TASK_COUNT": str(count or len(ids)),
    }


def test_alone_and_shards() -> None:
    assert find_placement(None, {}) == Placement("alone", 0, 1, 0, 1)
    assert find_placement("2/3", TORCHRUN)[:3] == (
        "shard",
        2,
        3,
    ), "the flag overrides the environment"
    assert [find_placement(f"{i}/4", {}).local for i in range(4)] == [0, 1, 2, 3]
    for shard in ("3/3", "-1/3", "1", "a/b", "1/0"):
        with pytest.raises(
            ValueError, match="fastdiff.jobs: expected --shard i/n with 0 <= i < n, got"
        ):
            find_placement(shard, {})


def test_torchrun() -> None:
    assert find_placement(None, TORCHRUN) == Placement("torchrun", 5, 16, 1, 4)
    within = TORCHRUN | STEP  # srun starts one torchrun per node: the ranks of torchrun count
    assert find_placement(None, within)[:3] == ("torchrun", 5, 16)
    with pytest.raises(
        ValueError, match="expected RANK in the environment as a whole number, got 'x'"
    ):
        find_placement(None, TORCHRUN | {"RANK": "x"})
    with pytest.raises(ValueError, match="expected a worker below 16 from torchrun, got 16"):
        find_placement(None, TORCHRUN | {"RANK": "16"})


def test_slurm_steps() -> None:
    assert find_placement(None, BATCH)[:5] == ("slurm", 0, 1, 0, 1), (
        "a batch script's own commands are alone"
    )
    assert find_placement(None, STEP)[:5] == ("slurm", 5, 6, 1, 4)
    assert find_placement(None, STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x3)"}).locals == 2
    assert find_placement(None, {"SLURM_JOB_ID": "7"}) == Placement("alone"), (
        "the shell that salloc opens"
    )


@pytest.mark.parametrize("ids, step", [([0, 1, 2, 3], 1), ([4, 5, 6], 1), ([1, 3, 5], 2), ([7], 1)])
def test_slurm_arrays(ids: list[int], step: int) -> None:
    """Tasks of an array, of its srun and ranks of its torchrun multiply; numbers are unique."""
    found = [find_placement(None, BATCH | array(ids, task, step=step)) for task in ids]
    assert [p.worker for p in found] == list(range(len(ids))) and {p.world for p in found} == {
        len(ids)
    }
    ranks = [
        find_placement(None, STEP | array(ids, task, step=step) | {"SLURM_PROCID": str(rank)})
        for task in ids
        for rank in range(6)
    ]
    assert [p.worker for p in ranks] == list(range(6 * len(ids))) and {p.world for p in ranks} == {
        6 * len(ids)
    }
    both = [
        find_placement(None, BATCH | TORCHRUN | array(ids, task, step=step)).worker for task in ids
    ]
    assert both == [16 * k + 5 for k in range(len(ids))]


def test_a_list_of_array_tasks() -> None:
    """For --array=0,3,7 SLURM does not set the list of tasks: numbers are valid, but not unique."""
    found = [find_placement(None, BATCH | array([0, 3, 7], task)) for task in (0, 3, 7)]
    assert all(p.worker < p.world == 3 for p in found)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's share of the CPUs: those of its process, those that SLURM assigned, divided."""

    def affinity(cpus: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))

    affinity(16)
    assert find_placement(None, {}).threads == 16 and find_placement("1/2", {}).threads == 16
    assert (
        find_placement(None, TORCHRUN).threads == 4
        and find_placement(None, TORCHRUN | {"LOCAL_WORLD_SIZE": "32"}).threads == 1
    )
    assert (
        find_placement(None, BATCH).threads == 16
        and find_placement(None, BATCH | {"SLURM_CPUS_ON_NODE": "8"}).threads == 8
    )
    # tasks that SLURM does not bind see all CPUs of the node
    assert (
        find_placement(None, STEP).threads == 4
        and find_placement(None, STEP | {"SLURM_CPUS_PER_TASK": "3"}).threads == 3
    )
    affinity(4)  # tasks that SLURM binds see their own CPUs, which are not divided again
    assert (
        find_placement(None, STEP).threads == 4
        and find_placement(None, STEP | {"SLURM_CPUS_PER_TASK": "4"}).threads == 4
    )


def test_devices() -> None:
    """One of several GPUs by the worker's local number, unless the user or SLURM chose one."""
    for place in (
        find_placement(None, TORCHRUN),
        find_placement(None, STEP),
        find_placement("1/4", {}),
    ):
        assert device_of(None, place, gpus=4) == torch.device("cuda", 1)
        assert device_of("cuda", place, gpus=4) == torch.device("cuda", 1)
        assert device_of("cuda:3", place, gpus=4) == torch.device("cuda", 3)
        assert device_of("cpu", place, gpus=4) == torch.device("cpu")
        assert device_of(None, place, gpus=1) is None, (
            "--gpus-per-task=1: CUDA_VISIBLE_DEVICES names one"
        )
        assert device_of("cuda", place, gpus=1) == torch.device("cuda")
        assert device_of(None, place, gpus=0) is None
    assert device_of(None, find_placement("5/8", {}), gpus=4) == torch.device("cuda", 1)


def test_flags_that_do_not_fit() -> None:
    def place(**flags: object) -> Placement:
        return worker_of(
            argparse.Namespace(**({"engine": "auto", "workers": None, "shard": None} | flags))
        )

    assert place(engine="ray", workers=3) == Placement("ray", locals=3)
    with pytest.raises(ValueError, match="expected --workers with --engine ray, got it without"):
        place(workers=3)
    with pytest.raises(ValueError, match="expected --shard or --engine ray, got both"):
        place(engine="ray", shard="0/2")
    with pytest.raises(ValueError, match="expected --workers >= 1, got 0"):
        place(engine="ray", workers=0)
