"""Which worker this process is, from what started it: `--shard i/n`, torchrun, SLURM, or nobody.

The numbers only keep workers apart (fastdiff.jobs.units): none of them needs to reach another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple


class Place(NamedTuple):
    """Attributes: engine; worker of world; local: its number on this machine, of `locals`."""

    engine: str
    worker: int = 0
    world: int = 1
    local: int = 0
    locals: int = 1


def find(shard: str | None = None, environment: Mapping[str, str] = os.environ) -> Place:
    """The place of this process. Raises ValueError for a shard that is not i/n with 0 <= i < n, or a broken environment.

    torchrun: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE. SLURM: SLURM_PROCID of SLURM_STEP_NUM_TASKS (srun), times the
    tasks of an array (sbatch --array), SLURM_LOCALID.
    """
    if shard is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", shard)
        if not match or not int(match[1]) < int(match[2]):
            raise ValueError(f"fastdiff.jobs: expected --shard i/n with 0 <= i < n, got {shard!r}. The first is 0/n.")
        return Place("shard", int(match[1]), int(match[2]))

    def number(name: str, default: int) -> int:
        text = environment.get(name) or str(default)
        if not text.isdecimal():
            raise ValueError(f"fastdiff.jobs: expected {name} in the environment as a whole number, got {text!r}.")
        return int(text)

    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _checked(
            Place("torchrun", number("RANK", 0), number("WORLD_SIZE", 1), number("LOCAL_RANK", 0),
                  number("LOCAL_WORLD_SIZE", 1))
        )  # fmt: skip
    if "SLURM_JOB_ID" in environment and "SLURM_PROCID" in environment:
        # the batch script itself has SLURM_PROCID 0 and no step's count of tasks: it is alone
        tasks = number("SLURM_STEP_NUM_TASKS", 1)
        first, step = number("SLURM_ARRAY_TASK_MIN", 0), number("SLURM_ARRAY_TASK_STEP", 1)
        index = (number("SLURM_ARRAY_TASK_ID", first) - first) // step
        worker, world = index * tasks + number("SLURM_PROCID", 0), number("SLURM_ARRAY_TASK_COUNT", 1) * tasks
        per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0]
        return _checked(
            Place("slurm", worker, world, number("SLURM_LOCALID", 0), int(per_node) if per_node.isdecimal() else 1)
        )
    return Place("alone")


def _checked(place: Place) -> Place:
    if not place.worker < place.world:
        raise ValueError(
            f"fastdiff.jobs: expected a worker below {place.world} from {place.engine}, got {place.worker}. Its variables "
            "in the environment do not fit together; --shard i/n overrides them."
        )
    return place
