"""Which worker this process is, from what started it: `--shard i/n`, torchrun, SLURM, or nobody.

The numbers only keep workers apart (fastdiff.jobs.units): none of them needs to reach another.

    worker = (task of the array) * (workers in each) + rank        world = (tasks of the array) * (workers in each)
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from ..backend.hardware import usable_cpus


class Place(NamedTuple):
    """Attributes: engine; worker of world; local: its number on this machine, of `locals`; cpus:
    what SLURM gave it.
    """

    engine: str
    worker: int = 0
    world: int = 1
    local: int = 0
    locals: int = 1
    cpus: int | None = None

    @property
    def threads(self) -> int:
        """CPUs for this worker alone: of those that the process may run on, its share."""
        usable = usable_cpus()
        return max(1, usable // self.locals if self.cpus is None else min(usable, self.cpus))


def find(shard: str | None = None, environment: Mapping[str, str] = os.environ) -> Place:
    """The place of this process. Raises ValueError for a shard that is not i/n with 0 <= i < n, or
    a broken environment.

    torchrun: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE. SLURM: SLURM_PROCID of
        SLURM_STEP_NUM_TASKS (srun),
    SLURM_LOCALID. Either may run in every task of an array (sbatch --array).
    """
    if shard is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", shard)
        if not match or not int(match[1]) < int(match[2]):
            raise ValueError(
                f"fastdiff.jobs: expected --shard i/n with 0 <= i < n, got {shard!r}. The first is"
                " 0/n."
            )
        # how many are on this machine nobody says; as many GPUs as there are, they take in turn
        return Place("shard", int(match[1]), int(match[2]), local=int(match[1]))

    def number(name: str, default: int) -> int:
        text = environment.get(name) or str(default)
        if not text.isdecimal():
            raise ValueError(
                f"fastdiff.jobs: expected {name} in the environment as a whole number, got"
                f" {text!r}."
            )
        return int(text)

    if "RANK" in environment and "WORLD_SIZE" in environment:
        place = Place(
            "torchrun",
            number("RANK", 0),
            number("WORLD_SIZE", 1),
            number("LOCAL_RANK", 0),
            number("LOCAL_WORLD_SIZE", 1),
        )
    elif "SLURM_JOB_ID" in environment and "SLURM_PROCID" in environment:
        # a batch script has SLURM_PROCID 0 and no step's count of tasks: what it runs without srun
        # is alone
        by_srun = "SLURM_STEP_NUM_TASKS" in environment
        neighbours = _most(environment.get("SLURM_STEP_TASKS_PER_NODE", "")) if by_srun else 1
        given = number("SLURM_CPUS_PER_TASK", number("SLURM_CPUS_ON_NODE", 0) // neighbours)
        place = Place(
            "slurm",
            number("SLURM_PROCID", 0),
            number("SLURM_STEP_NUM_TASKS", 1),
            number("SLURM_LOCALID", 0),
            neighbours,
            given or None,
        )
    else:
        return Place("alone")
    if not place.worker < place.world:
        raise ValueError(
            f"fastdiff.jobs: expected a worker below {place.world} from {place.engine}, got"
            f" {place.worker}. Its variables in the environment do not fit together; --shard i/n"
            " overrides them."
        )
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return place
    first, step = number("SLURM_ARRAY_TASK_MIN", 0), max(1, number("SLURM_ARRAY_TASK_STEP", 1))
    tasks = max(1, number("SLURM_ARRAY_TASK_COUNT", 1))
    # of --array=0,3,7 SLURM tells no more than 0, 7 and how many: two tasks may then begin with the
    # same units
    task = (number("SLURM_ARRAY_TASK_ID", first) - first) // step % tasks
    return place._replace(worker=task * place.world + place.worker, world=tasks * place.world)


def _most(tasks_per_node: str) -> int:
    """Of SLURM's `2(x3),1`: tasks on the nodes that have most."""
    return max((int(n) for n in re.findall(r"(?:^|,)(\d+)", tasks_per_node)), default=1) or 1
