"""`fastdiff sample`: makes a dataset, or goes on with one, alone or as one of many workers."""

from __future__ import annotations

import argparse
import json
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..jobs import ray, runner
from ..jobs.conditions import Conditions
from ..jobs.folder import SPEC, Folder
from ..jobs.formats import FORMATS
from ..jobs.job import DTYPES, Job, mismatch
from ..jobs.placement import Place, find
from ..jobs.preview import write_grid
from ..jobs.single import recompute
from ..jobs.spec import RunSpec, SpecMismatch
from ..pretrained import shipped
from .exits import AGAIN, UNFINITE, arguments

ENGINES = ("auto", "ray")


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sample",
        help="make a dataset, or go on with one",
        description=(
            "Make a dataset, or go on with one: --out names its folder, what is finished in it"
            " stays, and flags left out are those it was begun with. Sample i of a seed is the same"
            " picture in any run that holds it. Any number of workers may be started with the same"
            " command: under torchrun, srun or an array of SLURM, or with --shard i/n."
        ),
        epilog=(
            "Exit status: 0 done, 1 failed, 2 wrong arguments, 3 another run's folder or another"
            " machine, 5 units without finite samples, 75 stopped by SIGTERM or SIGUSR1 after a"
            " unit (start again), 130 interrupted."
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
    parser.add_argument("--seed", type=int, help="names the run (0)")
    parser.add_argument(
        "--classes", help="comma-separated class indices or names, for the ids in turn (all)"
    )
    parser.add_argument(
        "--conditions", metavar="FILE", help="a line for each id: a class, a prompt, or JSON"
    )
    parser.add_argument("--solver", help="see `fastdiff solvers`; the model's own by default")
    parser.add_argument("--steps", type=int, help="(25)")
    parser.add_argument("--eta", type=float, help="DDIM's noise, 0 … 1")
    parser.add_argument(
        "--guidance", type=float, help="gamma of u + gamma (c - u); the model's own by default"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further setting of the sampler or the solver; may be repeated",
    )
    parser.add_argument(
        "--unit", type=int, metavar="B", help="samples computed together, always so many (64)"
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
    parser.add_argument("--shape", help="one sample's, as 3,32,32, for factories that do not say")
    parser.add_argument("--threads", type=int, help="CPU threads of a worker (the CPUs it may use)")
    parser.add_argument("--dtype", choices=(*DTYPES, "auto"), help="the network's (auto)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU where there is one)")
    add_worker_flags(parser)
    parser.add_argument(
        "--spec",
        metavar="DIR",
        help=(
            "make the samples --ids of this dataset again, alone, as pictures in "
            "--out (the working folder)"
        ),
    )
    parser.set_defaults(run=run)


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shard", metavar="i/n", help="this is worker i of n, the first being 0")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help=(
            "ray: a pool of actors on a Ray cluster; auto: "
            "torchrun's or SLURM's environment, else alone"
        ),
    )
    parser.add_argument("--workers", type=int, metavar="N", help="actors of --engine ray")
    parser.add_argument(
        "--retry-failed", action="store_true", help="try units again that gave no finite samples"
    )


def worker_of(args: argparse.Namespace) -> Place:
    """Which worker this process is. Raises ValueError for flags that do not fit together."""
    if args.engine != "ray":
        if args.workers is not None:
            raise ValueError(
                "expected --workers with --engine ray, got it without. Start as many processes"
                " instead."
            )
        return find(args.shard)
    if args.shard is not None:
        raise ValueError(
            "expected --shard or --engine ray, got both. A pool takes all units; --workers is its"
            " size."
        )
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"expected --workers >= 1, got {args.workers}.")
    ray.require()
    return Place("ray", locals=args.workers or 1)


def device_of(name: str | None, place: Place, gpus: int | None = None) -> torch.device | None:
    """The device named; a GPU without a number, or none named, is this worker's own of several.

    gpus: those that the process sees, default torch's count. A launcher that shows each worker one
        only (SLURM's
    --gpus-per-task, Ray) leaves nothing to choose.
    """
    device = None if name is None else torch.device(name)
    gpus = torch.cuda.device_count() if gpus is None else gpus
    if gpus > 1 and (device is None or (device.type == "cuda" and device.index is None)):
        return torch.device("cuda", place.local % gpus)
    return device


def run(args: argparse.Namespace) -> int:
    if args.spec is not None:
        return _again(args)
    with arguments():
        if args.out is None:
            raise ValueError("expected --out, the dataset's folder, got none.")
        place = worker_of(args)
        wishes = _wishes(args)
        out = Path(args.out)
        if (out / SPEC).exists():
            folder = Folder(out)
            device = device_of(args.device or folder.spec.machine["device"], place)
            job = Job.open(folder.spec, conditions=folder.conditions, device=device, where=str(out))
        else:
            plan = dict(wishes)
            plan.setdefault("threads", place.threads)
            plan.setdefault("steps", 25)
            device = device_of(args.device, place)
            job = Job.plan(**plan, device=device)
            folder = Folder.create(out, job.spec, job.conditions.file)
    if folder.spec.hash != job.spec.hash or (out / SPEC).exists():
        lines = differing(folder.spec, wishes, job)
        if lines:
            advice = f"Name another --out, or go on as it was begun: `fastdiff resume {out}`."
            raise SpecMismatch(f"{mismatch(str(out), lines)}\n{advice}")
    if (
        folder.spec.hash != job.spec.hash
    ):  # another worker was faster to write down what all were asked for
        job = Job.open(folder.spec, conditions=folder.conditions, device=device, where=str(out))
    return work(folder, job, args, place)


def work(folder: Folder, job: Job, args: argparse.Namespace, place: Place) -> int:
    """Works on a run as this worker, or as a pool of them, until it is done; returns the exit
    status.
    """
    with stopping() as stop:
        if args.engine == "ray":
            report = ray.run_pool(
                folder,
                workers=args.workers,
                retry_failed=args.retry_failed,
                progress=True,
                stop=stop,
            )
        else:
            report = runner.run(
                job,
                folder.path,
                worker=place.worker,
                world=place.world,
                retry_failed=args.retry_failed,
                progress=place.worker == 0,
                stop=stop,
            )
    for unit, what in sorted(report.failed.items()):
        print(f"unit {unit} failed: {what}")
    told = (
        f"{report.images} images in {report.seconds:.1f} s"
        f" ({report.images / max(report.seconds, 1e-9):.1f} images/s)"
    )
    print(f"{told}; {report.done} of {report.units} units are in {folder.path}")
    if report.complete and place.worker == 0 and write_grid(folder, job.model.classes):
        print(
            f"  {folder.path / 'grid.png'}: the first pictures; see `fastdiff info`, `verify` and"
            " `export`"
        )
    if report.failed:
        return UNFINITE
    return 0 if report.complete else AGAIN


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Within the block, SIGTERM and SIGUSR1 set the event that ends a run after the unit in
    hand.
    """
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def differing(spec: RunSpec, wishes: dict[str, Any], job: Job) -> list[str]:
    """A line for everything asked for that is not as in the spec."""
    there: dict[str, Any] = {
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
        "dtype": spec.dtype,
    }
    asked = dict(wishes)
    lines = []
    if {"classes", "conditions"} & asked.keys():
        given = Conditions.of(
            job.model,
            ids=spec.ids,
            classes=asked.pop("classes", None),
            file=asked.pop("conditions", None),
        )
        if given.identity != dict(spec.conditions):
            lines.append(f"conditions: {dict(spec.conditions)} there, {given.identity} here")
    if asked.get("dtype") == "auto":
        del asked["dtype"]
    for name, value in asked.items():
        known = there[name] if name in there else spec.sampling.get(name, spec.plan.info.get(name))
        if isinstance(value, (list, tuple)) and isinstance(known, (list, tuple)):
            value, known = tuple(value), tuple(known)
        if value != known:
            lines.append(f"{name}: {known!r} there, {value!r} here")
    return lines


def _wishes(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as arguments of `Job.plan`; nothing for flags left out."""
    named = {
        "model": args.model,
        "seed": args.seed,
        "classes": args.classes,
        "conditions": args.conditions,
        "solver": args.solver,
        "steps": args.steps,
        "eta": args.eta,
        "guidance_scale": args.guidance,
        "unit": args.unit,
        "network_batch": args.network_batch,
        "format": args.format,
        "decode": args.decode,
        "threads": args.threads,
        "dtype": args.dtype,
    }
    wishes = {name: value for name, value in named.items() if value is not None}
    if args.num is not None:
        if args.ids is not None:
            raise ValueError("expected --ids or --num, got both.")
        if args.num < 1:
            raise ValueError(f"expected --num >= 1, got {args.num}.")
        wishes["ids"] = (0, args.num - 1)
    if args.ids is not None:
        wishes["ids"] = id_range(args.ids)
    if args.shape is not None:
        if not re.fullmatch(r"\d+(,\d+)*", args.shape):
            raise ValueError(f"expected --shape as numbers like 3,32,32, got {args.shape!r}.")
        wishes["shape"] = tuple(int(n) for n in args.shape.split(","))
    for option in args.option:
        name, found, value = option.partition("=")
        if not found:
            raise ValueError(f"expected --option NAME=VALUE, got {option!r}.")
        try:
            wishes[name] = json.loads(value)
        except ValueError:
            wishes[name] = value
    return wishes


def id_range(text: str) -> tuple[int, int]:
    """A-B, or A alone."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match or int(match[2] or match[1]) < int(match[1]):
        raise ValueError(f"expected --ids A-B with A <= B, both included, got {text!r}.")
    return int(match[1]), int(match[2] or match[1])


def _again(args: argparse.Namespace) -> int:
    with arguments():
        if args.ids is None:
            raise ValueError(
                "expected --ids with --spec, got none. They say which samples to make again."
            )
        first, last = id_range(args.ids)
        folder = Folder(args.spec)
        out = Path(args.out or ".")
        job = Job.open(
            folder.spec, conditions=folder.conditions, device=args.device, where=args.spec
        )
        for sample in {first, last}:
            folder.spec.units.of(sample)
    for path, sample, same in recompute(folder, job, first, last, out):
        told = {
            True: "as in the dataset",
            False: "NOT as in the dataset",
            None: "its unit is not in the dataset yet",
        }[same]
        print(f"sample {sample}: {path}, {told}")
    return 0
