"""A real SLURM of one node: placements by srun and arrays, and a signal that requeues a task."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE
from slurm import CannotStart, Cluster
from test_engines import HERE, PATH, TINY, alone, digest, events, twice

from fastdiff.jobs.placement import find_placement

pytestmark = [pytest.mark.cpu_only, pytest.mark.xdist_group("jobs")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        found = Cluster()
    except CannotStart as error:
        pytest.skip(f"no SLURM here: {error}")
    yield found
    found.stop()


def environments(text: str) -> list[dict[str, str]]:
    """Returns the environments of the tasks of `srun --label env`, in order."""
    found: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        task, _, rest = line.partition(": ")
        name, _, value = rest.partition("=")
        if task.strip().isdecimal() and name.startswith("SLURM"):
            found.setdefault(int(task), {})[name] = value
    return [found[task] for task in sorted(found)]


def test_placements(cluster: Cluster, tmp_path: Path) -> None:
    """The placements that workers find in the environments of srun and arrays."""
    step = environments(cluster.ask("srun", "--label", "--ntasks=2", "--overcommit", "env"))
    assert [find_placement(None, e)[:5] for e in step] == [
        ("slurm", 0, 2, 0, 2),
        ("slurm", 1, 2, 1, 2),
    ]
    cpus = os.cpu_count()
    single = environments(
        cluster.ask("srun", "--label", f"--cpus-per-task={os.cpu_count()}", "env")
    )
    assert (
        find_placement(None, single[0]).cpus == cpus and find_placement(None, single[0]).world == 1
    )
    script = tmp_path / "job"
    script.write_text(
        "#!/bin/sh\n#SBATCH --output=/dev/null\nenv | sed 's/^/0: /' >"
        f" {tmp_path}/$SLURM_ARRAY_JOB_ID.$SLURM_ARRAY_TASK_ID.batch\nsrun --label --ntasks=2"
        f" --overcommit env > {tmp_path}/$SLURM_ARRAY_JOB_ID.$SLURM_ARRAY_TASK_ID.step\n"
    )
    jobs = {
        array: cluster.ask("sbatch", "--parsable", f"--array={array}", str(script))
        for array in ("1-5:2", "0,3,7")
    }
    for array, job in jobs.items():
        cluster.wait(job)
        batch = [
            find_placement(None, environments(p.read_text())[0])
            for p in sorted(tmp_path.glob(f"{job}.*.batch"))
        ]
        steps = [
            find_placement(None, e)
            for p in sorted(tmp_path.glob(f"{job}.*.step"))
            for e in environments(p.read_text())
        ]
        assert (
            {p.launcher for p in batch + steps} == {"slurm"} and len(batch) == 3 and len(steps) == 6
        )
        if array == "1-5:2":
            assert [(p.worker, p.world) for p in batch] == [(i, 3) for i in range(3)]
            assert [(p.worker, p.world, p.local) for p in steps] == [
                (i, 6, i % 2) for i in range(6)
            ]
        else:  # SLURM does not report the list of tasks
            assert all(p.worker < p.world == 3 for p in batch) and all(
                p.worker < p.world == 6 for p in steps
            )


def test_an_array_is_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    """The script of docs/clusters.md: after USR1 the worker ends, and its task is requeued."""
    expected = alone(TINY, tmp_path / "alone")
    out, script = tmp_path / "run", tmp_path / "job"
    command = f"{sys.executable} -m fastdiff sample --out {out} {' '.join(TINY)}"
    page = (HERE.parents[1] / "docs" / "clusters.md").read_text(encoding="utf-8")
    ending = page.split("```bash\n#!/bin/bash\n")[1].split("```")[0].split("\n\n")[1].splitlines()
    assert ending[0].startswith("srun ") and any("scontrol requeue" in line for line in ending)
    script.write_text("\n".join(["#!/bin/bash", f"srun {command}", *ending[1:]]) + "\n")
    job = cluster.ask(
        "sbatch",
        "--parsable",
        "--array=0-1",
        "--requeue",
        "--open-mode=append",
        f"--output={tmp_path}/%a",
        str(script),
        **PATH,
        TINY_SLEEP="0.1",
    )
    end = time.monotonic() + PATIENCE
    while {e["worker"] for e in events(out, "start")} != {0, 1} or len(events(out, "unit")) < 4:
        assert time.monotonic() < end, cluster.ask("squeue", "--long")
        time.sleep(0.1)
    cluster.ask("scancel", "--signal=USR1", f"{job}_0")
    cluster.wait(job)
    outputs = [(tmp_path / str(i)).read_text() for i in (0, 1)]
    starts = sorted((e["worker"], e["world"]) for e in events(out, "start"))
    assert starts == [(0, 2), (0, 2), (1, 2)], outputs
    assert digest(out) == expected, outputs
    assert twice(out) <= 6, "what the first worker had in hand was finished, not thrown away"
