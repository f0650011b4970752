"""Averages of any length, after the training: `posthoc(folder, sigma_rel)`.

(Karras et al. 2024, arXiv 2312.02696, section 3.2 and appendix C.) The snapshots of a run's
averages, `Settings.ema_rel`, are combined to the nearest profile; see the module `profiles`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..grad_mode import restored
from ..outside import shown
from ..pretrained import save_system
from ..pretrained.files import read_json, read_metadata, read_tensors, write_tensors
from ..pretrained.folders import with_networks
from ..theory import registry
from . import folder as folders
from .profiles import PowerAverage, combination, exponent

_STATE = "state."  # what is no average: buffers of the system
_EMA = "ema."  # of a checkpoint: the averages of decay `ema`


def write_snapshot(
    folder: Path,
    step: int,
    averages: Sequence[PowerAverage],
    names: Sequence[str],
    state: Mapping[str, Tensor],
) -> None:
    """Writes the averages after `step` steps.

    names: of the averaged parameters. state: the system's other tensors.
    """
    tensors = {f"{_STATE}{k}": v for k, v in state.items()}
    for i, average in enumerate(averages):
        tensors |= {f"{i}.{k}": v for k, v in zip(names, average.values, strict=True)}
    (folder / folders.SNAPSHOTS).mkdir(parents=True, exist_ok=True)
    metadata = {"step": json.dumps(step), "sigma_rel": json.dumps([a.sigma_rel for a in averages])}
    write_tensors(folders.of_step(folder / folders.SNAPSHOTS, step), tensors, metadata)


@restored
@torch.no_grad()
def weights(
    folder: str | PathLike[str], sigma_rel: float, *, step: int | None = None
) -> tuple[dict[str, Tensor], float]:
    """Returns (the state of the system with averaged weights, the profile's relative error).

    Args:
        folder: of a run with `ema_rel`.
        sigma_rel: the wanted relative length, in (0, 0.28].
        step: the end of the profile; None for the last snapshot. Later snapshots are not used.

    Raises ValueError for a folder without snapshots up to that step, and for another length.
    """
    gamma, place = exponent(sigma_rel), Path(folder) / folders.SNAPSHOTS
    files = {s: p for s, p in folders.steps_of(place).items() if step is None or s <= step}
    if not files:
        until = "" if step is None else f" up to step {step}"
        raise ValueError(
            f"fastdiff.training.posthoc: expected snapshots of averages{until} in {shown(place)},"
            " got none. Train with --ema-rel 0.05,0.1."
        )
    stored = [(s, p, i, length) for s, p in files.items() for i, length in enumerate(_lengths(p))]
    end = max(files) if step is None else step
    factors, error = combination(
        [(s, exponent(length)) for s, _, _, length in stored], (end, gamma)
    )
    sums: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    for path in files.values():
        found, _ = read_tensors(path)
        for (_, of, i, _), factor in zip(stored, factors, strict=True):
            if of != path:
                continue
            prefix = f"{i}."
            for key in (k for k in found if k.startswith(prefix)):
                name, value = key.removeprefix(prefix), found[key]
                # float64: large factors of both signs cancel
                sums[name] = sums.get(name, 0) + float(factor) * value.double()
    last = {k.removeprefix("0."): v for k, v in found.items() if k.startswith("0.")}
    if sums.keys() != last.keys():
        raise ValueError(
            f"fastdiff.training.posthoc: expected snapshots of one system in {shown(place)}, got"
            " other weights. Remove the files of another run."
        )
    state = {k.removeprefix(_STATE): v for k, v in found.items() if k.startswith(_STATE)}
    return state | {k: v.to(last[k].dtype) for k, v in sums.items()}, error


def posthoc(
    folder: str | PathLike[str], sigma_rel: float, *, step: int | None = None, trust: bool = False
) -> Any:
    """Returns the system of a run with weights averaged over the relative length `sigma_rel`.

    Args: see `weights`; trust: whether the code that the folder names as its network may run. The
    system is on the CPU and in eval mode; `pretrained.save_system` writes it as a model folder.

    Raises ValueError as `weights` does, and for a system that is not in the registry.
    """
    return _build(folder, weights(folder, sigma_rel, step=step)[0], trust)


def save(
    folder: str | PathLike[str],
    sigma_rel: float,
    out: str | PathLike[str],
    *,
    step: int | None = None,
    trust: bool = False,
) -> float:
    """Writes the system of `posthoc` as a model folder; returns the profile's relative error."""
    state, error = weights(folder, sigma_rel, step=step)
    average = {"sigma_rel": sigma_rel, "profile_error": error}
    save_system(out, _build(folder, state, trust), **_facts(folder), average=average)
    return error


def save_checkpoint(
    folder: str | PathLike[str], file: str, out: str | PathLike[str], *, trust: bool = False
) -> int:
    """Writes the averaged system of one of a run's checkpoints as a model folder.

    Args:
        folder: of the run.
        file: of the checkpoint in it, such as `best.safetensors`.
        out: the model folder.
        trust: see `posthoc`.

    Returns:
        The checkpoint's step.

    Raises FileNotFoundError or ValueError for a file that is no checkpoint of the run.
    """
    path = Path(folder) / file
    step = folders.header(path)["step"]
    state = {k[len(_EMA) :]: v for k, v in read_tensors(path)[0].items() if k.startswith(_EMA)}
    save_system(out, _build(folder, state, trust, file), **_facts(folder), checkpoint=step)
    return step


def _facts(folder: str | PathLike[str]) -> dict[str, Any]:
    """Returns the sections data and training of a finished run's config.json."""
    config = Path(folder) / "config.json"
    found = read_json(config) if config.exists() else {}
    return {k: found[k] for k in ("data", "training") if k in found}


def _build(
    folder: str | PathLike[str],
    state: Mapping[str, Tensor],
    trust: bool,
    file: str = folders.CHECKPOINT,
) -> Any:
    description = folders.header(Path(folder) / file)["identity"]["system"]
    config = with_networks(description["config"], trust, shown(folder))
    system = registry.find(description["name"])(**config)
    system.load_state_dict(state)
    return system.eval()


def _lengths(path: Path) -> list[float]:
    try:
        return [float(v) for v in json.loads(read_metadata(path)["sigma_rel"])]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"fastdiff.training.posthoc: expected a snapshot of averages in {shown(path)}, got"
            " other content. Remove it."
        ) from None
