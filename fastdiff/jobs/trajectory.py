"""Trajectories of a unit: the states and log-probabilities of recorded rows, in a file next to its
samples.

    trajectories/00012/000012345.safetensors
        states     F32 [S, n, …]     before and after the recorded rows, without x_T
        slots      F32 [R, M, n, …]  what a multistep solver remembers before each recorded row
        samples    F32 [n, …]        the state after the last row, where that row is not recorded
        log_prob   F32 [R, n]        in nats, see `fastdiff.Rollout`
        x_T        U8 [n, 32]        SHA-256 of each sample's x_T, where row 0 is recorded

x_T and the noise of rows are functions of (seed, id) and are computed again, never stored. The
record of the unit names the file and its hash, as it does for the samples.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..pretrained.files import read_header, read_tensors
from ..sampler import Sampler
from ..sampling.rollout import Rollout, places
from ..solvers import Plan
from .formats.block import raw
from .formats.latents import header
from .records import TRAJECTORIES, trajectory_files
from .samples import provenance
from .spec import SAVE, RunSpec

DIGEST = 32  # bytes of SHA-256
_TYPES = {"float32": ("F32", torch.float32), "uint8": ("U8", torch.uint8)}


class Trajectory(NamedTuple):
    """The trajectories of the samples of a unit, on the device.

    Attributes:
        states, slots, samples, log_prob: as the file holds them; None for what it does not hold.
        x_T: [n, …], where row 0 is recorded.
    """

    states: Tensor
    slots: Tensor | None
    samples: Tensor | None
    log_prob: Tensor
    x_T: Tensor | None

    @classmethod
    def of(cls, rollout: Rollout, own: slice) -> Trajectory:
        """Returns the trajectories of some samples of a rollout."""
        rows, states = rollout.rows, rollout.states[:, own]
        first = int(rows[0] == 0)
        return cls(
            states[first:],
            None if rollout.slots is None else rollout.slots[:, :, own],
            None if rows[-1] == len(rollout.plan) - 1 else rollout.samples[own],
            rollout.log_prob[:, own],
            states[0] if first else None,
        )

    @property
    def finite(self) -> Tensor:
        """Returns bool [n], whether all numbers of a sample are finite."""
        held = (t.movedim(axis, 0) for t, axis in zip(self, _SAMPLES, strict=True) if t is not None)
        parts = [torch.isfinite(t).flatten(1).all(dim=1) for t in held]
        return torch.stack(parts).all(dim=0)

    def first_not_finite(self, sample: int) -> int | None:
        """Returns the number of the first recorded row whose log-probability is not finite."""
        found = (~torch.isfinite(self.log_prob[:, sample])).nonzero()
        return int(found[0]) if len(found) else None


_SAMPLES = (1, 2, 0, 1, 0)  # the axis of the samples in the fields of a Trajectory


def saved_rows(text: str, plan: Plan) -> tuple[int, ...]:
    """Returns the rows that `--save trajectory[=ROWS]` names: all that draw noise by default.

    ROWS are numbers and ranges, both ends included, such as 0,3,5 or 2-7.

    Raises ValueError for other texts, rows outside the plan, and a plan that draws no noise.
    """
    where, last = "fastdiff.jobs", len(plan) - 1
    kind, equals, named = text.partition("=")
    if kind != SAVE or bool(equals) != bool(named):
        raise ValueError(
            f"{where}: expected save as {SAVE} or {SAVE}=ROWS, such as {SAVE}=2-7, got {text!r}."
        )
    if not named:
        drawing = tuple(np.flatnonzero(plan.column("x.z")).tolist())
        if not drawing:
            raise ValueError(
                f"{where}: expected a solver whose rows draw noise to save their {SAVE}, got none"
                f" of {len(plan)} rows. Use flow_sde, or ddim with eta 1; or name rows:"
                f" {SAVE}=0-{last}."
            )
        return drawing
    rows: list[int] = []
    for part in named.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        begin, end = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not begin <= end <= last:
            raise ValueError(
                f"{where}: expected rows of the plan, 0-{last}, in save={text}, got {part!r}."
            )
        rows += range(begin, end + 1)
    if len(set(rows)) != len(rows):
        raise ValueError(f"{where}: expected every row once in save={text}, got one twice.")
    return tuple(sorted(rows))


def check_saves(spec: RunSpec, path: Path) -> None:
    """Raises ValueError for a run that stores samples alone. path: of its folder."""
    if spec.save is None:
        raise ValueError(
            f"fastdiff.jobs: expected a run with --save {SAVE}, got {path}, which stores samples"
            " alone."
        )


def trajectory_name(unit: int) -> str:
    """trajectories/00012/000012345.safetensors: at most 1,000 files in a folder."""
    return f"{TRAJECTORIES}/{unit // 1000:05d}/{unit:09d}.safetensors"


def layout(spec: RunSpec, count: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns {name: (shape, dtype)} of the tensors in the file of a unit of `count` samples."""
    assert spec.save is not None
    rows, shape, plan = spec.save, tuple(spec.model["shape"]), spec.plan
    states, first = places(rows)[1], rows[0] == 0
    found: dict[str, tuple[tuple[int, ...], str]] = {
        "states": ((states - first, count, *shape), "float32")
    }
    if plan.slots:
        found["slots"] = (len(rows), plan.slots, count, *shape), "float32"
    if rows[-1] != len(plan) - 1:
        found["samples"] = (count, *shape), "float32"
    found["log_prob"] = (len(rows), count), "float32"
    if first:
        found["x_T"] = (count, DIGEST), "uint8"
    return found


def digests(x: np.ndarray) -> np.ndarray:
    """Returns the SHA-256 of the float32 bytes of each sample, uint8 [n, 32]."""
    x = np.ascontiguousarray(x, dtype="<f4")
    found = b"".join(hashlib.sha256(raw(sample)).digest() for sample in x)
    return np.frombuffer(found, np.uint8).reshape(len(x), DIGEST)


def encode(
    spec: RunSpec, unit: int, arrays: Mapping[str, np.ndarray]
) -> tuple[str, list[bytes | memoryview]]:
    """Returns (name, pieces of the content) of the file of a unit's trajectories.

    arrays: the fields of a Trajectory by name, x_T as states.
    """
    hashed = {"x_T": digests(arrays["x_T"])} if "x_T" in arrays else {}
    return encode_stored(spec, unit, {**arrays, **hashed})


def encode_stored(
    spec: RunSpec, unit: int, arrays: Mapping[str, np.ndarray]
) -> tuple[str, list[bytes | memoryview]]:
    """Returns (name, pieces of the content) of the file that holds these tensors."""
    count, first = arrays["log_prob"].shape[1], spec.units.ids(unit).start
    tensors, pieces = [], []
    for name, (shape, dtype) in layout(spec, count).items():
        array = arrays[name]
        if array.shape != shape or array.dtype.name != dtype:
            raise ValueError(
                f"fastdiff.jobs: expected {name} of unit {unit} as {dtype} {list(shape)}, got"
                f" {array.dtype.name} {list(array.shape)}."
            )
        tensors.append((name, dtype, shape))
        pieces.append(raw(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))))
    metadata = {
        **provenance(spec.to_json()),
        "first": str(first),
        "seed": str(spec.seed),
        "rows": ",".join(map(str, spec.save or ())),
    }
    return trajectory_name(unit), [header(tensors, metadata), *pieces]


def sha256(spec: RunSpec, unit: int, trajectory: Trajectory | None) -> list[str]:
    """Returns the hash of the file that a unit's trajectories become; none without any."""
    if trajectory is None:
        return []
    arrays = {name: tensor.cpu().numpy() for name, tensor in fields(trajectory)}
    digest = hashlib.sha256()
    for piece in encode(spec, unit, arrays)[1]:
        digest.update(piece)
    return [digest.hexdigest()]


def problem(folder: Path, spec: RunSpec, record: Mapping[str, Any]) -> str:
    """Returns what is wrong with the trajectory file that a record names; "" if nothing is.

    Only names, shapes and types are read. Raises as `read_header` does.
    """
    named = [file["name"] for file in trajectory_files(record)]
    if named != ([] if spec.save is None else [trajectory_name(record["unit"])]):
        return f"names {named or 'no file'} as its trajectories"
    if spec.save is None:
        return ""
    found = read_header(folder / named[0])
    count = record["stop"] - record["first"]
    expected = {
        name: (shape, _TYPES[dtype][0]) for name, (shape, dtype) in layout(spec, count).items()
    }
    if found != expected:
        name = min(found.items() ^ expected.items())[0]
        got = f"{found[name][1]} {list(found[name][0])}" if name in found else "none"
        wanted = expected.get(name)
        return f"has trajectories with {name} as {got}, not " + (
            "without it" if wanted is None else f"{wanted[1]} {list(wanted[0])}"
        )
    return ""


def read(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of a unit's trajectory file, which `problem` has checked."""
    return read_tensors(folder / trajectory_name(record["unit"]))[0]


def cut(arrays: Mapping[str, np.ndarray], samples: slice) -> dict[str, np.ndarray]:
    """Returns the tensors of a trajectory file for some of its samples."""
    axes = dict(zip(Trajectory._fields, _SAMPLES, strict=True))
    return {k: v[(slice(None),) * axes[k] + (samples,)] for k, v in arrays.items()}


def join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the tensors of trajectory files of consecutive samples as those of one file."""
    axes = dict(zip(Trajectory._fields, _SAMPLES, strict=True))
    return {k: np.concatenate([part[k] for part in parts], axis=axes[k]) for k in parts[0]}


def fields(trajectory: Trajectory) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of what a Trajectory holds."""
    for name, tensor in zip(Trajectory._fields, trajectory, strict=True):
        if tensor is not None:
            yield name, tensor


def sampler_without_network(spec: RunSpec) -> Sampler:
    """Returns the sampler of a run with a network that refuses every call, for what needs none."""

    def refuse(x: Tensor, t: Tensor, **arguments: Any) -> Tensor:
        raise RuntimeError("fastdiff.jobs: expected no network call, got one. Pass the run's job.")

    scale = spec.guidance_scale
    return Sampler(
        refuse,
        plan=spec.plan,
        guidance_scale=list(scale) if isinstance(scale, tuple) else scale,
        network_batch=spec.network_batch or spec.unit,
    )
