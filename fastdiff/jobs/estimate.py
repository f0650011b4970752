"""What a run would compute, store and hold in memory, before it begins; nothing is written.

Sizes follow from the spec. Times do not: they are given only where a unit has been computed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from . import trajectory
from .drawn import DrawnUnit
from .folder import Folder
from .formats import FORMATS, Block
from .formats.block import size_of
from .job import Job
from .machine import repeatable
from .samples import provenance
from .writer import DEPTH, THREADS, new_record

HASH = "0" * 64
NOISE = 1 << 22  # bytes that are encoded to learn the size of files


@dataclass
class Estimate:
    """What is left to compute of a run, and what that needs.

    Attributes:
        units, samples: of the run.
        done: units that are on disk.
        missing: units to compute.
        computed: samples in them, with those outside the run.
        network_calls: rows of the plan that call the network, of all missing units together; a row
            counts once, although guidance may evaluate two networks or halves in it. None where the
            model draws its samples itself.
        bytes: on disk, of the missing units' files and records. An upper estimate where pictures
            are compressed, unless a unit was measured; None where a decoder determines the size of
            the pictures and none was.
        compressed: whether the bytes depend on what the pictures show.
        weights_bytes: of the network's parameters in memory, None for a network that is no module.
        samples_bytes: of the computed units that wait to be written, as many as may be held.
        measured_unit: that was computed, None for none.
        unit_seconds: that it took; the first unit of a process is slower than later ones.
        seconds: of all missing units at this speed, by one worker.
        peak_bytes: of memory while it was computed: the GPU allocator's, else the process's.
    """

    units: int
    samples: int
    done: int
    missing: int
    computed: int
    network_calls: int | None
    bytes: int | None
    compressed: bool
    weights_bytes: int | None
    samples_bytes: int | None
    measured_unit: int | None = None
    unit_seconds: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None


def estimate(job: Job, folder: Folder | None = None, *, measure: bool = False) -> Estimate:
    """Returns what is left to compute of a job's run.

    Args:
        job: of the run.
        folder: of the run or, before it is extended, of the run with fewer ids; None for a new one.
        measure: whether one unit is computed, and not written, for its time, memory and size.
    """
    spec = job.spec
    units, missing = spec.units, list(_missing(job, folder))
    sampler = spec.drawer == "sampler"
    found = Estimate(
        units=len(units),
        samples=units.samples,
        done=len(units) - len(missing),
        missing=len(missing),
        computed=len(missing) * units.size,
        network_calls=spec.plan.network_calls * len(missing) if sampler else None,
        bytes=None,
        compressed=spec.machine.get("encoder") is not None,
        weights_bytes=_weights(job),
        samples_bytes=None,
    )
    drawn: DrawnUnit | None = None
    if measure and missing:
        begin, unit = time.monotonic(), missing[0]
        with repeatable(spec.threads):
            drawn = job.draw(unit)
            array = drawn.array.cpu().numpy()
        seconds = time.monotonic() - begin
        found.measured_unit, found.unit_seconds = unit, round(seconds, 4)
        found.seconds, found.peak_bytes = round(seconds * len(missing), 1), _peak(job.device)
    else:
        noise = _noise(job)
        if noise is None:
            return found
        array = noise
    labels = job.model.labels(job.conditions.entries(units.first, units.first + 1)) is not None
    one, per_sample = _bytes(job, array, labels)
    counts = [len(units.ids(unit)) for unit in missing]
    found.bytes = round(one * len(counts) + per_sample * sum(counts))
    held = min(len(missing), DEPTH + THREADS + 1 if spec.save is None else 3)
    found.samples_bytes = held * units.size * (array[0].nbytes + _trajectory_bytes(job, 1))
    return found


def _missing(job: Job, folder: Folder | None) -> Iterator[int]:
    """Yields the units to compute; those that gain samples are among them."""
    done = set() if folder is None else folder.done()
    for unit in job.spec.units.numbers:
        grows = folder is not None and (
            unit in done and folder.spec.units.ids(unit) != job.spec.units.ids(unit)
        )
        if unit not in done or grows:
            yield unit


def _noise(job: Job) -> np.ndarray | None:
    """Returns samples of noise [n, …], which no format compresses; as many as a unit has, fewer
    where they are large. None if their size is not known.
    """
    fmt, model = FORMATS[job.spec.format], job.model
    decoded = model.decode is not None and not fmt.float_samples
    if decoded:
        return None
    shape, dtype = fmt.sample_kind(model.shape, decoded=False, latents=model.latents)
    each = size_of(shape, dtype) + _trajectory_bytes(job, 1)
    count = max(2, min(job.spec.unit, NOISE // each))
    random = np.random.default_rng(0)
    if dtype == "uint8":
        return random.integers(0, 256, (count, *shape), np.uint8)
    return random.standard_normal((count, *shape), np.float32)


def _bytes(job: Job, array: np.ndarray, labelled: bool) -> tuple[float, float]:
    """Returns the bytes on disk (of a unit besides its samples, of each sample)."""
    if len(array) == 1:  # a second sample like the first one
        array = np.concatenate([array, array[..., ::-1]])
    one, all_ = _unit_bytes(job, array[:1], labelled), _unit_bytes(job, array, labelled)
    per_sample = (all_ - one) / (len(array) - 1)
    return one - per_sample, per_sample


def _unit_bytes(job: Job, array: np.ndarray, labelled: bool) -> int:
    """Returns the bytes of the files and the record of a unit with these samples."""
    spec = job.spec
    labels = [0] * len(array) if labelled else None
    block = Block(spec.units.numbers[0], spec.units.first, spec.seed, array, labels)
    files: list[dict[str, Any]] = [
        {"name": name, "bytes": len(content), "sha256": HASH}
        for name, content in FORMATS[spec.format].files(block, provenance(spec.to_json()))
    ]
    if spec.save is not None:
        layout = trajectory.layout(spec, len(array))
        zeros = {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()}
        name, pieces = trajectory.encode_stored(spec, block.unit, zeros)
        files.append({"name": name, "bytes": sum(map(len, pieces)), "sha256": HASH})
    worker = "x" * 40
    record = {**new_record(block, worker, 1.0), "files": files, "checksum": HASH}
    return sum(file["bytes"] for file in files) + len(json.dumps(record)) + 1


def _trajectory_bytes(job: Job, count: int) -> int:
    if job.spec.save is None:
        return 0
    return sum(size_of(*entry) for entry in trajectory.layout(job.spec, count).values())


def _weights(job: Job) -> int | None:
    network: Any = job.model.network
    if not isinstance(network, nn.Module):
        return None
    held = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
