"""`fastdiff sample`: makes or continues a dataset, alone or as one of many workers.

This file is over 400 lines because half of it describes the flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..backend.hardware import named_device
from ..jobs import ray, runner
from ..jobs.conditions import Conditions
from ..jobs.extend import extend, holds
from ..jobs.folder import SPEC, Folder, check_free
from ..jobs.formats import FORMATS
from ..jobs.job import DTYPES, Job, mismatch
from ..jobs.models import is_code
from ..jobs.placement import Placement, find_placement
from ..jobs.preview import write_grid
from ..jobs.recompute import recompute
from ..jobs.spec import RunSpec, SpecMismatch
from ..jobs.trajectory import saved_rows
from ..jobs.units import Units
from ..outside import shown
from ..pretrained import shipped
from ..solvers.guidance_kinds import GUIDANCE_TYPES
from .dry_run import dry_run
from .exit_status import AGAIN, NOT_FINITE, usage_errors
from .options import add_options, add_quiet, parse_id_range, parse_options, parse_shape
from .output import say, say_json

ENGINES = ("auto", "ray")


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sample",
        help="make or continue a dataset",
        description=(
            "Make a dataset in the folder --out, or continue the one that is there: what is"
            " finished stays, and flags that are left out keep the values it was started with."
            " More --ids than it has, which hold all of them, extend it."
            " Sample i of a seed is the same image in every run that contains it. Any number of"
            " workers may be started with the same command: under torchrun, srun or a SLURM array,"
            " or with --shard i/n."
        ),
        epilog=(
            "Exit status: 0 done, 1 failed, 2 wrong arguments, 3 another run's folder or another"
            " machine, 5 units with samples that are not finite, 75 stopped by SIGTERM or SIGUSR1"
            " after a unit (start it again), 130 interrupted."
        ),
    )
    parser.add_argument("--out", metavar="DIR", help="the dataset's folder")
    parser.add_argument(
        "--model",
        help=(
            "model folder, package.module:factory, a diffusers pipeline's folder, or shipped: "
            f"{', '.join(shipped())} (the default)"
        ),
    )
    parser.add_argument("--ids", metavar="A-B", help="sample ids, both included (0-255)")
    parser.add_argument("--num", type=int, metavar="N", help="the same as --ids 0-(N-1)")
    parser.add_argument("--seed", type=int, help="seed of the run (0)")
    parser.add_argument(
        "--classes",
        help="class indices or names, separated by commas, assigned to the ids in turn (all)",
    )
    parser.add_argument(
        "--conditions", metavar="FILE", help="one line for each id: a class, a prompt, or JSON"
    )
    parser.add_argument(
        "--image",
        nargs="+",
        metavar="FILE",
        help=(
            "the small images that a super-resolution model enlarges, assigned to the ids in turn:"
            " picture files, folders of them, or `test` or `train` for that split of its training"
            " data. Pictures of the model's own size are made small first"
        ),
    )
    parser.add_argument("--solver", help="see `fastdiff solvers`; the model's own by default")
    parser.add_argument("--steps", type=int, help="of the solver (25)")
    parser.add_argument("--eta", type=float, help="strength of DDIM's noise, 0 … 1")
    parser.add_argument(
        "--guidance", type=float, help="gamma of u + gamma (c - u); the model's own by default"
    )
    parser.add_argument(
        "--guidance-type",
        choices=GUIDANCE_TYPES,
        help="what guidance does with the unconditional output (cfg)",
    )
    add_options(parser, "another setting of the sampler or the solver, such as apg_norm=2.5")
    parser.add_argument(
        "--unit",
        type=int,
        metavar="B",
        help="samples computed together: the blocks of B ids from the multiples of B (64)",
    )
    parser.add_argument(
        "--network-batch", type=int, metavar="B", help="rows of every network call (the unit)"
    )
    parser.add_argument("--format", choices=tuple(FORMATS), help="of the files (npy)")
    parser.add_argument(
        "--decode",
        metavar="VAE",
        help="folder of a diffusers VAE, or `pipe` for the pipeline's own",
    )
    parser.add_argument(
        "--shape",
        help="of one sample, as 3,32,32: for factories that do not define it, and other sizes of"
        " pipelines",
    )
    parser.add_argument(
        "--save",
        metavar="trajectory[=ROWS]",
        help=(
            "also store the states and log-probabilities of these rows of the plan, such as 0,3,5"
            " or 2-7 (all that draw noise), for `fastdiff.jobs.read_rollout`"
        ),
    )
    parser.add_argument("--threads", type=int, help="CPU threads of a worker (the CPUs it may use)")
    parser.add_argument("--dtype", choices=(*DTYPES, "auto"), help="of the network (auto)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU if there is one)")
    add_worker_flags(parser)
    add_trust_flag(parser)
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="plan",
        choices=("plan", "measure"),
        help=(
            "write nothing: print what there is to compute, and its size on disk and in memory;"
            " `measure` computes one unit, for its time"
        ),
    )
    parser.add_argument(
        "--spec",
        metavar="DIR",
        help=(
            "recompute the samples --ids of this dataset, compare them and write them to --out (the"
            " working folder), pictures as PNG and other data as .npy"
        ),
    )
    parser.set_defaults(run=run)


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard", metavar="i/n", help="this process is worker i of n, counted from 0"
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help=(
            "ray: a pool of actors on a Ray cluster; auto: a worker by the environment of torchrun"
            " or SLURM, else a single process"
        ),
    )
    parser.add_argument("--workers", type=int, metavar="N", help="number of actors of --engine ray")
    parser.add_argument(
        "--retry-failed", action="store_true", help="retry units whose samples were not finite"
    )
    add_quiet(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_trust_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run the code (package.module:factory) that the dataset's spec names as its model, or"
        " that a model folder names as its network",
    )


def trusts(args: argparse.Namespace, spec: RunSpec) -> bool:
    """Whether the command permits the code that a spec names: by --trust or by the same --model."""
    named = args.model == spec.model["name"] and is_code(spec.model["name"])
    return bool(args.trust) or named


def worker_of(args: argparse.Namespace) -> Placement:
    """Returns which worker this process is. Raises ValueError for flags that contradict."""
    if args.engine != "ray":
        if args.workers is not None:
            raise ValueError(
                "expected --workers with --engine ray, got it without. Start that many processes"
                " instead."
            )
        return find_placement(args.shard)
    if args.shard is not None:
        raise ValueError(
            "expected --shard or --engine ray, got both. A pool computes all units; --workers is"
            " its size."
        )
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"expected --workers >= 1, got {args.workers}.")
    ray.require()
    return Placement("ray", locals=args.workers or 1)


def device_of(
    name: str | None, placement: Placement, gpus: int | None = None
) -> torch.device | None:
    """Returns the device of this worker.

    That is the named device. With several visible GPUs, "cuda" without an index, or no name, is the
    GPU of the worker's local rank. None leaves the choice to the job.

    gpus: how many GPUs are visible, default torch's count. It is 1 where the launcher assigns one
        to each worker (SLURM's --gpus-per-task, Ray).
    """
    device = None if name is None else named_device(name, "fastdiff.jobs")
    gpus = torch.cuda.device_count() if gpus is None else gpus
    if gpus > 1 and (device is None or (device.type == "cuda" and device.index is None)):
        return torch.device("cuda", placement.local % gpus)
    return device


def run(args: argparse.Namespace) -> int:
    if args.spec is not None:
        return _recompute(args)
    with usage_errors():
        if args.out is None and not args.dry_run:
            raise ValueError("expected --out, the dataset's folder, got none.")
        placement = worker_of(args)
        requested = _requested(args)
        out = Path(args.out or ".")
        begun = args.out is not None and (out / SPEC).exists()
        if begun:
            folder = Folder(out)
            device = device_of(args.device or folder.spec.machine["device"], placement)
            job = Job.open(
                folder.spec,
                conditions=folder.conditions,
                device=device,
                where=str(out),
                trust=trusts(args, folder.spec),
            )
        else:
            plan = dict(requested)
            plan.setdefault("threads", placement.threads)
            plan["solver_defaults"] = {"steps": 25}
            device = device_of(args.device, placement)
            job = Job.plan(**plan, device=device, trust=args.trust)
            if args.dry_run:
                if args.out is not None:
                    check_free(out)
                return dry_run(job, None, args)
            folder = Folder.create(out, job.spec, job.conditions.file)
            if placement.worker == 0:
                note_whole_units(folder.spec.units, args)
        if begun and holds(requested.get("ids", folder.spec.ids), folder.spec.ids):
            job = _with_ids(job, requested, folder)
    if begun or folder.spec.hash != job.spec.hash:
        lines = differences(job.spec if begun else folder.spec, requested, job)
        if lines:
            advice = (
                f"Name another --out, or continue it as it was started: `fastdiff resume {out}`."
            )
            raise SpecMismatch(f"{mismatch(str(out), lines)}\n{advice}")
    if args.dry_run:
        return dry_run(job, folder, args)
    if begun and folder.spec.hash != job.spec.hash:
        before = folder.spec.ids
        folder = extend(folder, job.spec, job.conditions.file)
        if placement.worker == 0:
            note(
                f"extending {shown(out)} from the ids {before[0]}-{before[1]} to"
                f" {job.spec.ids[0]}-{job.spec.ids[1]}",
                args,
            )
            note_whole_units(folder.spec.units, args)
    if folder.spec.hash != job.spec.hash:  # another worker has written the same run's spec first
        job = Job.open(
            folder.spec,
            conditions=folder.conditions,
            device=device,
            where=str(out),
            # the same spec, whose model this command has just opened
            trust=bool(args.trust) or is_code(job.spec.model["name"]),
        )
    return work(folder, job, args, placement)


def _with_ids(job: Job, requested: dict[str, Any], folder: Folder) -> Job:
    """Returns the job of a run with further ids.

    Args:
        job: of the run.
        requested: arguments of `Job.plan` that the flags set, with `ids`.
        folder: of the run.
    """
    first, last = ids = requested["ids"]
    conditions = job.conditions
    if "file" in job.spec.conditions:
        if "conditions" not in requested:
            raise ValueError(
                f"expected --conditions with a line for each of the ids {first}-{last}, got none."
                f" {folder.conditions} has the lines of {job.spec.ids[0]}-{job.spec.ids[1]}."
            )
        conditions = Conditions.of(job.model, ids=ids, file=requested["conditions"])
    spec = job.spec.with_ids(ids, conditions.identity)
    return Job(spec, job.model, conditions, job.device)


def note(text: str, args: argparse.Namespace) -> None:
    """Says something besides the result, which --quiet omits and --json leaves to stderr."""
    if not args.quiet:
        say(text, error=args.json)


def note_whole_units(units: Units, args: argparse.Namespace) -> None:
    """Says so where more samples are computed than the run has."""
    if units.computed > units.samples:
        note(
            f"computing {units.computed} samples for {units.samples}: units are whole blocks of"
            f" {units.size} ids, so that a sample is the same in every run; a smaller --unit"
            " computes fewer",
            args,
        )


def work(folder: Folder, job: Job, args: argparse.Namespace, placement: Placement) -> int:
    """Computes units as this worker, or as a pool, until none is left; returns the exit status."""
    with stopping() as stop:
        if args.engine == "ray":
            report = ray.run_pool(
                folder,
                workers=args.workers,
                retry_failed=args.retry_failed,
                progress=not args.quiet,
                stop=stop,
                trust=bool(args.trust) or is_code(folder.spec.model["name"]),
            )
        else:
            report = runner.run(
                job,
                folder.path,
                worker=placement.worker,
                world=placement.world,
                retry_failed=args.retry_failed,
                progress=placement.worker == 0 and not args.quiet,
                stop=stop,
            )
    grid = report.complete and placement.worker == 0 and write_grid(folder, job.model.classes)
    status = NOT_FINITE if report.failed else 0 if report.complete else AGAIN
    if args.json:
        say_json(as_json(folder, report))
        return status
    for unit, what in sorted(report.failed.items()):
        say(f"unit {unit} failed: {shown(what)}")
    speed = (
        f"{report.images} images in {report.seconds:.1f} s"
        f" ({report.images / max(report.seconds, 1e-9):.1f} images/s)"
    )
    say(f"{speed}; {report.done} of {report.units} units are in {shown(folder.path)}")
    if grid:
        say(
            f"  {shown(folder.path / 'grid.png')}: the first images; see `fastdiff info`, `verify`"
            " and `export`"
        )
    return status


def as_json(folder: Folder, report: runner.JobReport) -> dict[str, Any]:
    """Returns the result of a run for --json."""
    return {
        "folder": str(folder.path),
        "spec": folder.spec.hash,
        "complete": report.complete,
        **dataclasses.asdict(report),
    }


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM and SIGUSR1 set: the run ends after its current unit."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        for number in before:
            signal.signal(number, lambda *_: stop.set())
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def differences(spec: RunSpec, requested: dict[str, Any], job: Job) -> list[str]:
    """Returns a line for each requested setting that differs from the spec.

    Args:
        spec: of the folder.
        requested: arguments of `Job.plan` that the flags set.
        job: whose model parses the conditions.
    """
    in_spec: dict[str, Any] = {
        "model": spec.model["name"],
        "decode": spec.model["decode"],
        "shape": tuple(spec.model["shape"]),
        "ids": spec.ids,
        "seed": spec.seed,
        "unit": spec.unit,
        "network_batch": spec.network_batch,
        "format": spec.format,
        "threads": spec.threads,
        "guidance_scale": spec.guidance_scale,
        "guidance_type": spec.plan.info.get("guidance_type", "cfg"),
        "dtype": spec.dtype,
    }
    settings = dict(requested)
    lines = []
    if {"classes", "conditions", "images"} & settings.keys():
        conditions = Conditions.of(
            job.model,
            ids=spec.ids,
            classes=settings.pop("classes", None),
            file=settings.pop("conditions", None),
            images=settings.pop("images", None),
            check=False,  # its hash says whether it is the run's file
        )
        if conditions.identity != dict(spec.conditions):
            lines.append(f"conditions: {dict(spec.conditions)} there, {conditions.identity} here")
    if "save" in settings:
        rows = saved_rows(settings.pop("save"), spec.plan)
        if rows != spec.save:
            there = None if spec.save is None else list(spec.save)
            lines.append(f"save: rows {there!r} there, {list(rows)!r} here")
    if settings.get("dtype") == "auto":
        del settings["dtype"]
    for name, value in settings.items():
        known = (
            in_spec[name] if name in in_spec else spec.sampling.get(name, spec.plan.info.get(name))
        )
        if isinstance(value, (list, tuple)) and isinstance(known, (list, tuple)):
            value, known = tuple(value), tuple(known)
        if value != known:
            lines.append(f"{name}: {known!r} there, {value!r} here")
    return lines


def _requested(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the flags as arguments of `Job.plan`, without those that are left out."""
    named = {
        "model": args.model,
        "seed": args.seed,
        "classes": args.classes,
        "conditions": args.conditions,
        "solver": args.solver,
        "steps": args.steps,
        "eta": args.eta,
        "guidance_scale": args.guidance,
        "guidance_type": args.guidance_type,
        "unit": args.unit,
        "network_batch": args.network_batch,
        "format": args.format,
        "decode": args.decode,
        "threads": args.threads,
        "dtype": args.dtype,
        "save": args.save,
    }
    requested = {name: value for name, value in named.items() if value is not None}
    if args.num is not None:
        if args.ids is not None:
            raise ValueError("expected --ids or --num, got both.")
        if args.num < 1:
            raise ValueError(f"expected --num >= 1, got {args.num}.")
        requested["ids"] = (0, args.num - 1)
    if args.ids is not None:
        requested["ids"] = parse_id_range(args.ids)
    if args.shape is not None:
        requested["shape"] = parse_shape(args.shape)
    if args.image is not None:
        first, last = requested.get("ids", (0, 255))
        requested["images"] = _images(args.image, args.model, last - first + 1)
    return requested | parse_options(args.option, also=requested)


def _images(names: list[str], model: str | None, count: int) -> Any:
    """Returns the images of --image: paths, or the first `count` of a split."""
    if names not in (["test"], ["train"]):
        return names
    from ..pretrained import read_config
    from .data_flags import load_data

    trained = read_config(model or "fashion-mnist").get("data", {})
    if trained.get("name") is None:
        raise ValueError(
            f"expected --image with files, got `{names[0]}`, and {model} does not say what it was"
            " trained on."
        )
    split = load_data(argparse.Namespace(data=None, data_root=None), names[0], trained=trained)
    x0, _ = split.batch(torch.arange(min(count, split.examples)))
    return ((x0 + 1) * 127.5).round().to(torch.uint8).numpy()


def _recompute(args: argparse.Namespace) -> int:
    with usage_errors():
        if args.ids is None:
            raise ValueError(
                "expected --ids with --spec, got none. They select the samples to recompute."
            )
        first, last = parse_id_range(args.ids)
        folder = Folder(args.spec)
        out = Path(args.out or ".")
        job = Job.open(
            folder.spec,
            conditions=folder.conditions,
            device=args.device,
            where=args.spec,
            trust=trusts(args, folder.spec),
        )
        for sample in {first, last}:
            folder.spec.units.unit_of(sample)
    made = recompute(folder, job, first, last, out)
    if args.json:
        say_json([{"sample": s, "file": str(path), "same": same} for path, s, same in made])
        return 0
    for path, sample, same in made:
        result = {
            True: "as in the dataset",
            False: "NOT as in the dataset",
            None: "its unit is not in the dataset yet",
        }[same]
        say(f"sample {sample}: {shown(path)}, {result}")
    return 0
