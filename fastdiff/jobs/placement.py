"""Which worker this process is, from `--shard i/n`, torchrun's or SLURM's environment.

The numbers only give workers different units to begin with (fastdiff.jobs.units); no worker needs
to reach another.

    worker = (task of the array) * (workers per task) + rank
    world  = (tasks of the array) * (workers per task)
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from ..backend.hardware import usable_cpus


class Placement(NamedTuple):
    """The number of a worker among all workers of a run, and on its machine.

    Attributes:
        launcher: alone, shard, torchrun, slurm or ray.
        worker: its number, 0 … world - 1.
        world: workers of the run.
        local: its number on this machine.
        locals: workers on this machine.
        cpus: the CPUs that SLURM assigned to it, None where SLURM did not say.
    """

    launcher: str
    worker: int = 0
    world: int = 1
    local: int = 0
    locals: int = 1
    cpus: int | None = None

    @property
    def threads(self) -> int:
        """CPUs for this worker alone: its share of those that the process may run on."""
        usable = usable_cpus()
        return max(1, usable // self.locals if self.cpus is None else min(usable, self.cpus))


def find_placement(
    shard: str | None = None, environment: Mapping[str, str] = os.environ
) -> Placement:
    """Returns the placement of this process.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE. srun sets SLURM_PROCID,
    SLURM_STEP_NUM_TASKS and SLURM_LOCALID. Either may run in every task of an array
    (sbatch --array).

    Raises ValueError for a shard that is not i/n with 0 <= i < n, and for an inconsistent
    environment.
    """
    if shard is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", shard)
        if not match or not int(match[1]) < int(match[2]):
            raise ValueError(
                f"fastdiff.jobs: expected --shard i/n with 0 <= i < n, got {shard!r}. The first is"
                " 0/n."
            )
        # the number of workers on this machine is unknown: worker i takes GPU i modulo their number
        return Placement("shard", int(match[1]), int(match[2]), local=int(match[1]))

    def number(name: str, default: int) -> int:
        text = environment.get(name) or str(default)
        if not text.isdecimal():
            raise ValueError(
                f"fastdiff.jobs: expected {name} in the environment as a whole number, got"
                f" {text!r}."
            )
        return int(text)

    if "RANK" in environment and "WORLD_SIZE" in environment:
        found = Placement(
            "torchrun",
            number("RANK", 0),
            number("WORLD_SIZE", 1),
            number("LOCAL_RANK", 0),
            number("LOCAL_WORLD_SIZE", 1),
        )
    elif "SLURM_JOB_ID" in environment and "SLURM_PROCID" in environment:
        # a batch script has SLURM_PROCID 0 but no task count of a step: a command that it runs
        # without srun is alone
        by_srun = "SLURM_STEP_NUM_TASKS" in environment
        neighbours = _most(environment.get("SLURM_STEP_TASKS_PER_NODE", "")) if by_srun else 1
        cpus = number("SLURM_CPUS_PER_TASK", number("SLURM_CPUS_ON_NODE", 0) // neighbours)
        found = Placement(
            "slurm",
            number("SLURM_PROCID", 0),
            number("SLURM_STEP_NUM_TASKS", 1),
            number("SLURM_LOCALID", 0),
            neighbours,
            cpus or None,
        )
    else:
        return Placement("alone")
    if not found.worker < found.world:
        raise ValueError(
            f"fastdiff.jobs: expected a worker below {found.world} from {found.launcher}, got"
            f" {found.worker}. Its variables in the environment do not fit together; --shard i/n"
            " overrides them."
        )
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return found
    first, step = number("SLURM_ARRAY_TASK_MIN", 0), max(1, number("SLURM_ARRAY_TASK_STEP", 1))
    tasks = max(1, number("SLURM_ARRAY_TASK_COUNT", 1))
    # for --array=0,3,7 SLURM reports only 0, 7 and the number of tasks: two tasks may then begin
    # with the same units
    task = (number("SLURM_ARRAY_TASK_ID", first) - first) // step % tasks
    return found._replace(worker=task * found.world + found.worker, world=tasks * found.world)


def _most(tasks_per_node: str) -> int:
    """Returns the largest number of tasks on a node, from SLURM's `2(x3),1`."""
    return max((int(n) for n in re.findall(r"(?:^|,)(\d+)", tasks_per_node)), default=1) or 1
