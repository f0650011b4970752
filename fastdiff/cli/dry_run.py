"""`fastdiff sample --dry-run`: what a run would compute, store and hold in memory."""

from __future__ import annotations

import argparse
import dataclasses
from datetime import timedelta

from ..jobs.estimate import Estimate, estimate
from ..jobs.folder import Folder
from ..jobs.job import Job
from ..outside import shown
from .output import say, say_json


def dry_run(job: Job, folder: Folder | None, args: argparse.Namespace) -> int:
    """Prints what is left of a run, and writes nothing."""
    found = estimate(job, folder, measure=args.dry_run == "measure")
    if args.json:
        say_json({"spec": job.spec.hash, **dataclasses.asdict(found)})
    else:
        say(describe(job, found))
    return 0


def describe(job: Job, found: Estimate) -> str:
    """Returns the estimate as text."""
    spec = job.spec
    calls = (
        "drawn by the model's own `sample`"
        if found.network_calls is None
        else f"{found.network_calls:,}: {spec.plan.network_calls} for each unit, of"
        f" {spec.network_batch} rows"
    )
    first, last = spec.ids
    most = "" if found.measured_unit is not None or not found.compressed else "up to "
    disk = f"{most}{_size(found.bytes)}, as {spec.format}"
    if found.bytes is None:
        disk = "unknown: the decoder determines the pictures' size"
    memory = f"weights {_size(found.weights_bytes)}, samples up to {_size(found.samples_bytes)}"
    rows = [
        ("run", f"ids {first}-{last} of seed {spec.seed}, {shown(spec.model['name'])}"),
        ("units", f"{found.missing:,} of {found.units:,} to compute, of {spec.unit} ids each"),
        ("samples", f"{found.samples:,} in the run, {found.computed:,} to compute"),
        ("network calls", calls),
        ("on disk", disk),
        ("in memory", f"{memory}; what the network needs besides is not in it"),
    ]
    if found.unit_seconds is not None and found.seconds is not None:
        total = timedelta(seconds=round(found.seconds))
        rows += [
            ("peak", f"{_size(found.peak_bytes)} of memory for unit {found.measured_unit}"),
            ("time", f"{total} for one worker: {found.unit_seconds:.3g} s for that unit"),
        ]
    elif found.missing:
        rows.append(("time", "unknown: `--dry-run measure` computes one unit"))
    return "\n".join(f"{name:<15}{value}" for name, value in rows)


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**20:,.1f} MiB"
