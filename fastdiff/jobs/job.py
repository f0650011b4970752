"""A run spec with what is needed to compute its units: the network, the conditions and the
sampler.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import images
from ..backend import hardware
from ..sampler import Callback
from . import machine
from .conditions import Conditions
from .formats import FORMATS
from .models import Model, open_model
from .spec import RunSpec, SpecMismatch, differences
from .units import Units

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Drawn(NamedTuple):
    """The samples of a unit that belong to the run, on the device.

    Attributes: array: uint8 pictures [n, H, W, C] or float32 data [n, …]; finite: bool [n]; labels:
        a class per sample.
    """

    array: Tensor
    finite: Tensor
    labels: list[int] | None


class Failure(NamedTuple):
    """The first number that was not finite: which sample, after which row of the plan, at which
    noise level.
    """

    sample_id: int
    step: int | None  # None: in the decoder
    sigma: float | None

    def __str__(self) -> str:
        where = "in the decoder" if self.step is None else f"after step {self.step}"
        return f"sample {self.sample_id} is not finite {where}" + (
            f", sigma {self.sigma:g}" if self.sigma else ""
        )


class Job:
    """Computes the units of a run.

    Attributes: spec, model, sampler, device; conditions_file: what the samples are of, where a file
        says so.
    """

    def __init__(self, spec: RunSpec, model: Model, conditions: Conditions, device: torch.device):
        self.spec, self.model, self.conditions, self.device = spec, model, conditions, device
        self.sampler = model.sampler(
            plan=spec.plan,
            guidance_scale=_scale(spec.guidance_scale),
            network_batch=spec.network_batch,
            network_dtype=DTYPES[spec.dtype],
        )

    @classmethod
    def plan(
        cls,
        model: str = "fashion-mnist",
        *,
        ids: tuple[int, int] = (0, 255),
        seed: int = 0,
        unit: int = 64,
        network_batch: int | None = None,
        classes: str | None = None,
        conditions: str | PathLike[str] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        dtype: str = "auto",
        threads: int | None = None,
        format: str = "npy",
        decode: str | None = None,
        shape: Sequence[int] | None = None,
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> Job:
        """Plans a run: opens the model, traces the plan and writes down everything in `spec`.

        Args:
            model: a model folder or shipped name, `package.module:factory`, or a folder of a
                diffusers pipeline.
            ids: the first and the last sample id, both included. seed: names the run.
            unit: samples that are computed together. network_batch: rows of every network call,
                default the unit.
            classes: class indices or names, separated by commas, for the ids in turn; conditions: a
                file with a line an id.
            guidance_scale: gamma; the model's own by default.
            dtype: the network's: fp32, bf16, fp16 or auto, which is bf16 on CPUs that multiply bf16
                tiles, else fp32.
            threads: CPU threads of a worker, default the CPUs this process may use.
            format: npy, npz, png, webdataset or safetensors. decode: a VAE's folder, or `pipe` for
                the pipeline's own.
            shape: one sample's, for factories that do not say.
            device: default a GPU where there is one.
            settings: the sampler's: solver, steps, eta, timestep_spacing and the like.

        Raises ValueError, FileNotFoundError and ImportError in one sentence.
        """
        where = "fastdiff.jobs"
        if format not in FORMATS:
            raise ValueError(f"{where}: expected format in {sorted(FORMATS)}, got {format!r}.")
        if dtype not in (*DTYPES, "auto"):
            raise ValueError(f"{where}: expected dtype in {[*DTYPES, 'auto']}, got {dtype!r}.")
        if classes is not None and conditions is not None:
            raise ValueError(f"{where}: expected classes or a conditions file, got both.")
        units = Units(*ids, unit)
        place = find_device(device)
        opened = open_model(model, shape=shape, decode=decode, device=place)
        chosen = _dtype(dtype, place)
        given = Conditions.of(opened, ids=ids, classes=classes, file=conditions)
        if guidance_scale is not None:
            settings["guidance_scale"] = guidance_scale
        sampler = opened.sampler(**settings)
        opened.check(sampler, given.entries(ids[0], ids[0] + 1))
        gamma = sampler.guidance_scale
        found = machine.describe(place)
        encoder = FORMATS[format].encoder(*_stored(opened, format))
        if encoder is not None:
            found["encoder"] = encoder
        spec = RunSpec(
            model={
                "name": model,
                "decode": decode,
                "shape": list(opened.shape),
                "identity": opened.identity,
            },
            sampling=settings,
            ids=(units.first, units.last),
            seed=seed,
            unit=unit,
            network_batch=unit if network_batch is None else network_batch,
            dtype=chosen,
            guidance_scale=(
                tuple(float(g) for g in gamma) if isinstance(gamma, Sequence) else float(gamma)
            ),
            conditions=given.identity,
            plan=sampler.plan,
            format=format,
            threads=hardware.usable_cpus() if threads is None else threads,
            machine=found,
        )
        return cls(spec, opened, given, place)

    @classmethod
    def open(
        cls,
        spec: RunSpec,
        *,
        conditions: Path | None = None,
        device: str | torch.device | None = None,
        where: str = "the spec",
    ) -> Job:
        """What a worker needs to go on with a run. Raises SpecMismatch where model, conditions or
        machine are others.
        """
        place = find_device(device or spec.machine["device"])
        opened = open_model(
            spec.model["name"], shape=spec.model["shape"], decode=spec.model["decode"], device=place
        )
        given = Conditions.restore(spec.conditions, opened, ids=spec.ids, file=conditions)
        found = machine.describe(place)
        encoder = FORMATS[spec.format].encoder(*_stored(opened, spec.format))
        if encoder is not None:
            found["encoder"] = encoder
        lines = differences(spec.model["identity"], opened.identity, "model")
        lines += differences(dict(spec.machine), found, "machine")
        if lines:
            raise SpecMismatch(mismatch(where, lines))
        return cls(spec, opened, given, place)

    @functools.cached_property
    def pictures(self) -> bool:
        """Whether the samples are kept as 8-bit pictures; else as float32."""
        return _stored(self.model, self.spec.format)[1] == "uint8"

    @torch.no_grad()
    def draw(self, unit: int, callback: Callback | None = None) -> Drawn:
        """Computes a unit: its whole block, of which what belongs to the run comes back."""
        spec, block, ids = self.spec, self.spec.units.block(unit), self.spec.units.ids(unit)
        entries = self.conditions.entries(block.start, block.stop)
        cond, uncond = self.model.conditions(entries)
        x = self.sampler.sample(
            (len(block), *self.model.shape),
            seed=spec.seed,
            sample_ids=block,
            cond=cond,
            uncond=uncond,
            callback=callback,
        )
        if self.model.decode is not None and self.pictures:
            size = spec.network_batch or len(block)
            x = torch.cat([self.model.decode(part) for part in _parts(x, size)])[: len(block)]
        keep = slice(ids.start - block.start, ids.stop - block.start)
        x = x[keep]
        finite = torch.isfinite(x).flatten(1).all(dim=1)
        if self.pictures:
            x = images.levels(x).movedim(1, -1).contiguous()
        labels = self.model.labels(entries)
        return Drawn(x, finite, None if labels is None else labels[keep])

    def diagnose(self, unit: int) -> tuple[Drawn, Failure | None]:
        """Computes a unit again with an eye on every step."""
        ids, block = self.spec.units.ids(unit), self.spec.units.block(unit)
        keep = slice(ids.start - block.start, ids.stop - block.start)
        levels = self.spec.plan.levels
        seen: list[Failure] = []

        def watch(row: int, t: Any, x: Tensor, x0: Tensor) -> None:
            if seen:
                return
            finite = torch.isfinite(x[keep]).flatten(1).all(dim=1).tolist()
            if not all(finite):
                sigma = None if levels is None else float(levels[row][1])
                seen.append(Failure(ids[finite.index(False)], row, sigma))

        drawn = self.draw(unit, watch)
        finite = drawn.finite.tolist()
        if all(finite):
            return drawn, None
        return drawn, seen[0] if seen else Failure(ids[finite.index(False)], None, None)


def find_device(device: str | torch.device | None) -> torch.device:
    """The device named, or a GPU where there is one. Raises RuntimeError for a GPU that is not
    there.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "fastdiff.jobs: expected a GPU, got a torch that sees none. Name --device cpu for a new"
            " run."
        )
    return place


def mismatch(where: str, lines: list[str]) -> str:
    """What a run is told that does not fit the spec of its folder."""
    many = "a setting" if len(lines) == 1 else f"{len(lines)} settings"
    return f"fastdiff.jobs: expected the run of {where}, got another in {many}.\n" + "\n".join(
        f"  {x}" for x in lines
    )


def _dtype(name: str, device: torch.device) -> str:
    if name == "auto":
        name = "bf16" if device.type == "cpu" and hardware.has_amx() else "fp32"
    return name


def _scale(value: float | tuple[float, ...]) -> float | list[float]:
    return list(value) if isinstance(value, tuple) else value


def _stored(model: Model, format: str) -> tuple[tuple[int, ...], str]:
    """(shape, dtype) of a sample as it is kept; of decoded pictures the size is not known before
    one is there.
    """
    shape = tuple(model.shape)
    if format == "safetensors":
        return shape, "float32"
    if model.decode is not None:
        return (1, 1, 3), "uint8"
    if len(shape) == 3 and shape[0] in (1, 3):
        return (shape[1], shape[2], shape[0]), "uint8"
    return shape, "float32"


def _parts(x: Tensor, size: int) -> list[Tensor]:
    """Pieces of exactly `size` rows, the last one filled up: a decoder's arithmetic depends on its
    batch, too.
    """
    parts = list(x.split(size))
    short = size - len(parts[-1])
    if short:
        parts[-1] = torch.cat([parts[-1], parts[-1][:1].expand(short, *x.shape[1:])])
    return parts


def sampling_of(spec: RunSpec) -> Mapping[str, Any]:
    """The arguments of `Job.plan` that would plan this run anew."""
    return {
        "model": spec.model["name"],
        "ids": spec.ids,
        "seed": spec.seed,
        "unit": spec.unit,
        "network_batch": spec.network_batch,
        "dtype": spec.dtype,
        "threads": spec.threads,
        "format": spec.format,
        "decode": spec.model["decode"],
        **spec.sampling,
    }
