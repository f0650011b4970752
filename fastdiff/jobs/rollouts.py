"""Reads the trajectories of a run as rollouts, for training on a folder."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from ..grad_mode import restored
from ..sampling.rollout import Rollout
from .conditions import FileConditions
from .folder import Folder
from .job import Job
from .models.conditioning import Arguments, Classes, Halves
from .trajectory import check_saves, digests, read, sampler_without_network
from .verify import check_unit


@restored
@torch.no_grad()
def read_rollout(
    folder: str | os.PathLike[str] | Folder,
    unit: int,
    *,
    job: Job | None = None,
    device: str | torch.device = "cpu",
) -> Rollout:
    """Returns the rollout of a unit of a run that saved its trajectories.

    Without a job it has no network: `rollout.score(model)` takes one. `samples` are the states
    after the last row, before they become pictures or are decoded. `score` gives the bits of
    `log_prob` for the run's network and threads where all ids of the unit belong to the run;
    of a part of a unit, rows have other places in the network's calls, and its last bits may depend
    on them.

    Args:
        folder: of the run.
        unit: its number.
        job: of the run, for the job's network, and for conditions that only the model makes
            (prompts, a factory's own function).
        device: of the rollout's tensors.

    Raises:
        ValueError: for a run without trajectories, a unit that is not in it or is damaged, and
            conditions that need a job.
        FileNotFoundError: for a folder that is no run.
    """
    where = "fastdiff.jobs.read_rollout"
    folder = folder if isinstance(folder, Folder) else Folder(folder)
    spec, path = folder.spec, folder.path
    check_saves(spec, path)
    assert spec.save is not None
    if unit not in spec.units.numbers:
        numbers = spec.units.numbers
        raise ValueError(
            f"{where}: expected a unit of {path}, {numbers[0]}-{numbers[-1]}, got {unit!r}."
        )
    problem, record = check_unit(folder, unit, folder.record_path(unit))
    if problem or record is None:
        raise ValueError(
            f"{where}: expected unit {unit} as it was written, got one of which {problem}. Run"
            f" `fastdiff resume {path}`."
        )
    ids = spec.units.ids(unit)
    cond, uncond = _conditions(folder, ids, record, job, where)
    sampler = sampler_without_network(spec) if job is None else job.sampler
    held = {name: tensor.to(device) for name, tensor in read(path, record).items()}
    rollout = sampler.stored_rollout(
        held.get("samples", held["states"][-1]),
        rows=spec.save,
        states=list(held["states"]),
        log_prob=held["log_prob"],
        slots=held.get("slots"),
        seed=spec.seed,
        sample_ids=ids,
        cond=cond,
        uncond=uncond,
    )
    if "x_T" in held:
        found = torch.from_numpy(digests(rollout.states[0].cpu().numpy()).copy())
        if not torch.equal(found, held["x_T"].cpu()):
            raise ValueError(
                f"{where}: expected unit {unit} of {path} to begin with the x_T of its seed and"
                " ids, got another. `fastdiff verify --rollout` says more."
            )
    return rollout if job is not None else dataclasses.replace(rollout, network=None)


def _conditions(
    folder: Folder, ids: range, record: dict[str, Any], job: Job | None, where: str
) -> Halves:
    """Returns (cond, uncond) of a unit's samples, as far as they follow from the folder alone."""
    if job is not None:
        return job.model.conditions(job.conditions.entries(ids.start, ids.stop))
    spec = folder.spec
    takes = spec.model["identity"].get("takes", {})
    if "classes" in takes:
        classes = Classes(
            takes["classes"], null_label=takes.get("null_label"), argument=takes["argument"]
        )
        return classes.conditions(record["labels"])
    if takes.keys() == Arguments.KEYS:
        if folder.conditions is None:
            return None, None
        entries = FileConditions(_Any(), folder.conditions, spec.ids, check=False)
        return _Any().conditions(entries.entries(ids.start, ids.stop))
    raise ValueError(
        f"{where}: expected the job of a run whose conditions only its model makes, got none. Pass"
        f" job=Job.open(spec, conditions=…) of {folder.path}."
    )


class _Any(Arguments):
    """Arguments of a network that is not known."""

    def __init__(self) -> None:
        super().__init__(lambda x, t, **arguments: x)
