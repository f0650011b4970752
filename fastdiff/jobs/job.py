"""A job: a run spec with the model, the conditions and the sampler that compute its units."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import images
from ..backend import hardware
from ..grad_mode import restored
from ..notebook import html_table
from ..outside import shown
from ..pretrained.folders import check_code
from ..sampler import Callback, Sampler
from ..user_code import never_exits, origin
from . import machine, own_draw
from .conditions import Conditions
from .drawn import DrawnUnit, Failure, FailureOfDraw
from .formats import FORMATS, Format
from .models import Model, Pictures, is_code, open_model
from .spec import RunSpec, SpecMismatch, differences
from .trajectory import Trajectory, saved_rows
from .units import Units

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Job:
    """Computes the units of a run.

    Attributes:
        spec: the run spec.
        model: the model to sample from.
        conditions: entries of the samples.
        device: where the network runs.
        sampler: the model's sampler with the spec's plan. A model that draws its samples itself
            has none: reading it raises ValueError.
    """

    def __init__(self, spec: RunSpec, model: Model, conditions: Conditions, device: torch.device):
        self.spec, self.model, self.conditions, self.device = spec, model, conditions, device
        if spec.drawer == "sampler":
            _ = self.sampler

    def __repr__(self) -> str:
        return f"Job({', '.join(f'{name} {value}' for name, value in self._facts())})"

    def _repr_html_(self) -> str:
        return html_table("Job", [("", ""), *self._facts()])

    def _facts(self) -> list[tuple[str, str]]:
        """What a person wants to know of the run first."""
        spec = self.spec
        first, last = spec.ids
        settings = ", ".join(f"{k}={v}" for k, v in spec.sampling.items())
        return [
            ("model", shown(spec.model["name"])),
            ("shape", "×".join(map(str, spec.model["shape"]))),
            ("ids", f"{first}-{last} in {len(spec.units)} units of {spec.unit}"),
            ("seed", str(spec.seed)),
            ("settings", shown(settings) or "the model's own"),
            ("network", f"{spec.dtype} on {self.device}"),
            ("hash", spec.hash[:12]),
        ]

    @functools.cached_property
    def sampler(self) -> Sampler:
        return self.model.sampler(
            plan=self.spec.plan,
            guidance_scale=_scale(self.spec.guidance_scale),
            network_batch=self.spec.network_batch,
            network_dtype=DTYPES[self.spec.dtype],
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
        images: Pictures | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        dtype: str = "auto",
        threads: int | None = None,
        format: str = "npy",
        decode: str | None = None,
        shape: Sequence[int] | None = None,
        device: str | torch.device | None = None,
        save: str | None = None,
        solver_defaults: Mapping[str, Any] | None = None,
        trust: bool = False,
        **settings: Any,
    ) -> Job:
        """Opens the model, traces the plan and returns the job, with everything in its spec.

        Args:
            model: a model folder or shipped name, `package.module:factory`, or the folder of a
                diffusers pipeline.
            ids: the first and the last sample id, both included.
            seed: seed of the run.
            unit: samples that are computed together.
            network_batch: rows of every network call, default the unit.
            classes: class indices or names, separated by commas; the ids cycle through them.
            conditions: a file with one line per id.
            images: the small pictures that super-resolution enlarges: paths of files and folders,
                or uint8 [n, C, H, W]; the ids cycle through them.
            guidance_scale: gamma; the model's own by default.
            dtype: the network's: fp32, bf16, fp16 or auto, which is bf16 on CPUs with AMX, else
                fp32.
            threads: CPU threads of a worker, default the CPUs that this process may use.
            format: of the data files, a name in `fastdiff.jobs.FORMATS`.
            decode: the folder of a VAE, or `pipe` for the pipeline's own.
            shape: of one sample, for factories that do not specify it.
            device: default a GPU where there is one.
            save: `trajectory`, or `trajectory=ROWS` with ROWS such as 0,3,5 or 2-7: each unit also
                stores the states and log-probabilities of these rows of the plan, by default of all
                that draw noise.
            trust: whether the code that a model folder names as its network may run.
            solver_defaults: settings that apply where the model is drawn by a sampler and
                `settings` does not name them.
            settings: of the sampler: solver, steps, eta, timestep_spacing and others; of a model
                that draws its samples itself, those of its system's `sample`, such as mean.

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
        device = find_device(device)
        opened = open_model(model, shape=shape, decode=decode, device=device, trust=trust)
        entries = Conditions.of(opened, ids=ids, classes=classes, file=conditions, images=images)
        if opened.draw is None:
            for name, value in (solver_defaults or {}).items():
                settings.setdefault(name, value)
        if guidance_scale is not None:
            settings["guidance_scale"] = guidance_scale
        if opened.draw is None:
            sampler = opened.sampler(**settings)
            opened.check(sampler, entries.entries(ids[0], ids[0] + 1))
            gamma, plan = sampler.guidance_scale, sampler.plan
        else:
            own_draw.check(opened, settings, network_batch=network_batch, dtype=dtype, save=save)
            gamma, plan, dtype = 1.0, own_draw.PLAN, "fp32"
        FORMATS[format].check(*_sample_kind(opened, FORMATS[format]))
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
            dtype=_resolve_dtype(dtype, device),
            guidance_scale=(
                tuple(float(g) for g in gamma) if isinstance(gamma, Sequence) else float(gamma)
            ),
            conditions=entries.identity,
            plan=plan,
            format=format,
            threads=hardware.usable_cpus() if threads is None else threads,
            machine=_describe_machine(device, opened, FORMATS[format]),
            save=None if save is None else saved_rows(save, plan),
        )
        return cls(spec, opened, entries, device)

    @classmethod
    def open(
        cls,
        spec: RunSpec,
        *,
        conditions: Path | None = None,
        device: str | torch.device | None = None,
        where: str = "the spec",
        trust: bool = False,
    ) -> Job:
        """Returns the job of an existing spec.

        Args:
            spec: the run spec.
            conditions: the conditions file of the run, where it has one.
            device: where to compute; by default the kind of device that the spec names.
            where: the name of the spec in error messages.
            trust: whether the code that the spec names as its model may run. A dataset may come
                from someone else.

        Raises SpecMismatch where the model or the machine differs from the spec's, ValueError for
        another conditions file and for code that is not trusted.
        """
        check_trust(spec, trust, where)
        device = find_device(device or spec.machine["device"])
        opened = open_model(
            spec.model["name"],
            shape=spec.model["shape"],
            decode=spec.model["decode"],
            device=device,
            trust=trust,
        )
        entries = Conditions.restore(spec.conditions, opened, ids=spec.ids, file=conditions)
        found = _describe_machine(device, opened, FORMATS[spec.format])
        lines = differences(spec.model["identity"], opened.identity, "model")
        lines += differences(dict(spec.machine), found, "machine")
        lines += differences(spec.drawer, "sampler" if opened.draw is None else "sample", "drawer")
        if lines:
            raise SpecMismatch(mismatch(where, lines))
        return cls(spec, opened, entries, device)

    @functools.cached_property
    def pictures(self) -> bool:
        """Whether the samples are stored as 8-bit pictures; otherwise as float32."""
        return _sample_kind(self.model, FORMATS[self.spec.format])[1] == "uint8"

    def decoded(self, x: Tensor) -> Tensor:
        """Returns what the model's decoder makes of samples [n, …], if they are decoded."""
        if self.model.decode is None or not self.pictures:
            return x
        size = self.spec.network_batch or len(x)
        parts = [self.model.decode(part) for part in _padded_batches(x, size)]
        return torch.cat(parts)[: len(x)]

    def levels(self, x: Tensor) -> Tensor:
        """Returns decoded samples as they are stored: pictures as uint8 [n, H, W, C]."""
        return images.levels(x).movedim(1, -1).contiguous() if self.pictures else x

    @restored
    @torch.no_grad()
    def draw(self, unit: int, callback: Callback | None = None) -> DrawnUnit:
        """Computes the whole block of a unit and returns the samples that belong to the run.

        With a callback it has no trajectory.
        """
        spec, block, ids = self.spec, self.spec.units.block(unit), self.spec.units.ids(unit)
        entries = self.conditions.entries(block.start, block.stop)
        own = slice(ids.start - block.start, ids.stop - block.start)
        with never_exits(f"the model {spec.model['name']}", "fastdiff.jobs"):
            cond, uncond = self.model.conditions(entries)
            shape, trajectory = (len(block), *self.model.shape), None
            given: dict[str, Any] = {
                "seed": spec.seed,
                "sample_ids": block,
                "cond": cond,
                "uncond": uncond,
            }
            if self.model.draw is not None:
                x = own_draw.samples(self.model, spec, block, self.device)
            elif spec.save is None or callback is not None:
                x = self.sampler.sample(shape, callback=callback, **given)
            else:
                rollout = self.sampler.rollout(shape, rows=spec.save, **given)
                x, trajectory = self.sampler.decode(rollout.samples), Trajectory.of(rollout, own)
            x = self.decoded(x)[own]
        finite = torch.isfinite(x).flatten(1).all(dim=1)
        if trajectory is not None:
            finite &= trajectory.finite
        x = self.levels(x)
        labels = self.model.labels(entries)
        return DrawnUnit(x, finite, None if labels is None else labels[own], trajectory)

    def diagnose(self, unit: int, *, trajectory: bool = True) -> tuple[DrawnUnit, Failure | None]:
        """Computes a unit and checks after every step whether its samples are finite.

        trajectory: whether the unit is drawn once more with its trajectory, where the run saves it.

        Returns (the unit, where it was not finite first or None).
        """
        ids, block = self.spec.units.ids(unit), self.spec.units.block(unit)
        own = slice(ids.start - block.start, ids.stop - block.start)
        levels = self.spec.plan.levels
        failures: list[Failure] = []

        def check(row: int, t: Any, x: Tensor, x0: Tensor) -> None:
            if failures:
                return
            finite = torch.isfinite(x[own]).flatten(1).all(dim=1).tolist()
            if not all(finite):
                sigma = None if levels is None else float(levels[row][1])
                failures.append(Failure(ids[finite.index(False)], row, sigma))

        drawn = self.draw(unit, check)
        if trajectory and self.spec.save is not None and bool(drawn.finite.all()):
            drawn = self.draw(unit)
        finite = drawn.finite.tolist()
        if all(finite):
            return drawn, None
        if failures:
            return drawn, failures[0]
        sample, row = finite.index(False), None
        if self.model.draw is not None:
            return drawn, FailureOfDraw(ids[sample], None, None)
        if self.spec.save is not None and drawn.trajectory is not None:
            number = drawn.trajectory.first_not_finite(sample)
            row = None if number is None else self.spec.save[number]
        sigma = None if levels is None or row is None else float(levels[row][1])
        return drawn, Failure(ids[sample], row, sigma)


def check_trust(spec: RunSpec, trust: bool, where: str) -> None:
    """Refuses to run the code that a spec names as its model, unless the caller trusts it.

    where: the name of the spec in the message. Raises ValueError.
    """
    name = spec.model["name"]
    if not trust and is_code(name):
        raise ValueError(
            f"fastdiff.jobs: expected trust in the code that {where} names, got none: its model"
            f" {name!r} would import {name.partition(':')[0]!r} from {origin(name)} and run it."
            " Read that, then pass --trust (in Python trust=True)."
        )
    # the folder itself is asked again when it is opened
    config = spec.model["identity"].get("config", {})
    check_code(config if isinstance(config, dict) else {}, trust, where)


def find_device(device: str | torch.device | None) -> torch.device:
    """Returns the named device; without a name a GPU where there is one, else the CPU.

    Raises RuntimeError for a GPU that torch does not find.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = hardware.named_device(device, "fastdiff.jobs")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "fastdiff.jobs: expected a GPU, got a torch that finds none. Use --device cpu for a new"
            " run."
        )
    return found


def mismatch(where: str, lines: list[str]) -> str:
    """Returns the message about settings that differ from the spec of a folder, a line for each."""
    many = "a setting" if len(lines) == 1 else f"{len(lines)} settings"
    return f"fastdiff.jobs: expected the run of {where}, got another in {many}.\n" + "\n".join(
        f"  {x}" for x in lines
    )


def _resolve_dtype(name: str, device: torch.device) -> str:
    if name == "auto":
        name = "bf16" if device.type == "cpu" and hardware.has_amx() else "fp32"
    return name


def _scale(value: float | tuple[float, ...]) -> float | list[float]:
    return list(value) if isinstance(value, tuple) else value


def _sample_kind(model: Model, fmt: Format) -> tuple[tuple[int, ...], str]:
    """Returns (shape, dtype) of the model's samples as the format stores them."""
    decoded = model.decode is not None
    return fmt.sample_kind(model.shape, decoded=decoded, latents=model.latents)


def _describe_machine(device: torch.device, model: Model, fmt: Format) -> dict[str, Any]:
    """Returns the machine's entry of a spec, with the encoder that the files' bytes depend on."""
    found = machine.describe(device)
    encoder = fmt.encoder(*_sample_kind(model, fmt))
    return found if encoder is None else {**found, "encoder": encoder}


def _padded_batches(x: Tensor, size: int) -> list[Tensor]:
    """Splits x into batches of exactly `size` rows, the last one padded with its first row.

    A decoder's arithmetic depends on its batch size, as the network's does.
    """
    parts = list(x.split(size))
    short = size - len(parts[-1])
    if short:
        parts[-1] = torch.cat([parts[-1], parts[-1][:1].expand(short, *x.shape[1:])])
    return parts
