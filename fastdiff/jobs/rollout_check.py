"""Checks the trajectories of a run without trusting them (`fastdiff verify --rollout`).

x_T and the noise of every row are functions of (seed, id, row), so they are drawn again. With the
network, every row is executed from the stored x_t: state and log-probability must be the stored
ones to the bit, and the rows between recorded ones must lead from one to the next, from x_T to the
samples. Without it, the log-probabilities are compared with those of the noise, up to rounding.

A finding is one sentence that names the fault. The check computes what each usual fault would have
stored (fastdiff.jobs.rollout_faults) and compares it with the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import images
from ..grad_mode import restored
from ..sampling.rollout import places
from .folder import Folder
from .formats import FORMATS
from .job import Job
from .rollout_faults import Noises, of_log_prob, of_steps, rounded
from .trajectory import DIGEST, digests, read, sampler_without_network

SURE = 4  # elements of a sample, from which on equal states of two samples are no coincidence
COMPARED = 64  # elements of the noise of a row that are compared with those of other rows


class RolloutCheck:
    """Checks the trajectories of the units of a run, one after another.

    Args:
        folder: of the run.
        job: of the run; None to check what needs no network.

    Attributes:
        transitions: that were executed again and compared so far.
    """

    def __init__(self, folder: Folder, job: Job | None):
        assert folder.spec.save is not None
        self._folder, self._spec, self._job = folder, folder.spec, job
        self._rows = folder.spec.save
        self._sampler = sampler_without_network(folder.spec)
        self._seen: dict[bytes, int] = {}  # a hash of each sample's states, and its id
        self.transitions = 0

    @restored
    @torch.no_grad()
    def problem(self, record: Mapping[str, Any]) -> str:
        """Returns what is wrong with the trajectories of a unit, whose files have the record's
        hashes; "" if nothing is.
        """
        tensors = read(self._folder.path, record)
        noises = Noises(self._spec, range(record["first"], record["stop"]))
        return next(self._findings(record, tensors, noises), "")

    def _findings(
        self, record: Mapping[str, Any], tensors: Mapping[str, Tensor], noises: Noises
    ) -> Iterator[str]:
        ids = noises.ids
        for name in ("states", "slots", "samples", "log_prob"):
            if name in tensors and not bool(torch.isfinite(tensors[name]).all()):
                yield f"numbers that are not finite in {name}"
        for row, x_s in self._drawn(tensors):
            name, sample = rounded(x_s)
            if name:
                yield f"states rounded to {name}: sample {ids[sample]} after row {row}"
        yield from self._starts(tensors, ids)
        yield from self._draws(tensors, noises)
        if self._job is not None:
            yield from self._steps(record, tensors, noises, self._job)
        else:
            yield from of_log_prob(self._rows, tensors, noises, self._after(tensors))
            yield from self._samples(record, tensors, ids)

    # -- without the network -----------------------------------------------------------------------

    def _after(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns the states after the recorded rows."""
        return [tensors["states"][k] for k in self._places(1)]

    def _places(self, offset: int) -> list[int]:
        """Returns where in the file the states before (0) or after (1) rows are; -1 for x_T."""
        at, _ = places(self._rows)
        return [k + offset - (self._rows[0] == 0) for k in at]

    def _drawn(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Yields (row, the states after it) of the recorded rows that draw noise."""
        z = self._spec.plan.column("x.z")
        for row, x_s in zip(self._rows, self._after(tensors), strict=True):
            if z[row]:
                yield row, x_s

    def _starts(self, tensors: Mapping[str, Tensor], ids: range) -> Iterator[str]:
        """Yields where x_T is not that of the seed and the ids."""
        if "x_T" not in tensors:
            return
        stored = [bytes(row) for row in tensors["x_T"].numpy()]
        own = self._x_T(ids)
        local = self._x_T(range(len(ids)))
        for i, (found, expected) in enumerate(zip(stored, own, strict=True)):
            if found == expected:
                continue
            what = f"x_T not of this seed and id: sample {ids[i]}"
            if found in own:
                what += f" has that of sample {ids[own.index(found)]}"
            elif found in local:
                what += f" has that of id {local.index(found)}, a number within the batch"
            elif found in stored[:i]:
                what += f" has that of sample {ids[stored.index(found)]}"
            yield what

    def _x_T(self, ids: range) -> list[bytes]:
        shape, seed = (len(ids), *self._spec.model["shape"]), self._spec.seed
        state = self._sampler.start(shape, seed=seed, sample_ids=ids, guidance_scale=1.0)
        return [bytes(row) for row in digests(state.x.cpu().numpy()).reshape(-1, DIGEST)]

    def _draws(self, tensors: Mapping[str, Tensor], noises: Noises) -> Iterator[str]:
        """Yields where two draws of noise are one: of rows by the plan, of samples by the states.

        Ids differ, because every record has the ids of its unit.
        """
        drawn: dict[bytes, tuple[int, int]] = {}
        for row in self._rows:
            if not self._spec.plan.column("x.z")[row]:
                continue
            z = noises.of(row, most=COMPARED).flatten(1).numpy()
            for i, part in enumerate(z):
                first = drawn.setdefault(part.tobytes(), (noises.ids[i], row))
                if first != (noises.ids[i], row) and z.shape[1] >= SURE:
                    yield (
                        f"noise shared by two draws: row {first[1]} of sample {first[0]} and row"
                        f" {row} of sample {noises.ids[i]}"
                    )
        after = [x_s.flatten(1).numpy() for _, x_s in self._drawn(tensors)]
        if not after or after[0].shape[1] < SURE:
            return
        for i, sample in enumerate(noises.ids):
            key = hashlib.blake2b(digest_size=16)
            for x_s in after:
                key.update(x_s[i].tobytes())
            first_id = self._seen.setdefault(key.digest(), sample)
            if first_id != sample:
                yield (
                    f"noise shared by two samples: {first_id} and {sample} have the same states"
                    " after the same rows"
                )

    def _samples(
        self, record: Mapping[str, Any], tensors: Mapping[str, Tensor], ids: range
    ) -> Iterator[str]:
        """Yields where the unit's samples are not the last states, unless a decoder is needed."""
        final = tensors.get("samples", tensors["states"][-1])
        if record["dtype"] == "uint8":
            decoder = self._spec.model["identity"].get("decode"), self._spec.model["decode"]
            if any(part is not None for part in decoder):
                return
            final = images.levels(final).movedim(1, -1)
        yield from self._compare(record, final, ids)

    def _compare(self, record: Mapping[str, Any], final: Tensor, ids: range) -> Iterator[str]:
        stored = FORMATS[self._spec.format].read(self._folder.path, record)
        found = final.cpu().numpy()
        if found.shape != stored.shape:
            yield f"samples that are not the last states: {list(stored.shape)} in the samples' file"
            return
        for i, (a, b) in enumerate(zip(found, stored, strict=True)):
            if not np.array_equal(a, b):
                yield f"samples that are not the last states: sample {ids[i]}"

    # -- with the network --------------------------------------------------------------------------

    def _steps(
        self,
        record: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        noises: Noises,
        job: Job,
    ) -> Iterator[str]:
        """Executes the run from x_T on, each recorded row from its stored x_t."""
        spec, unit = self._spec, record["unit"]
        block, ids = spec.units.block(unit), noises.ids
        own = slice(ids.start - block.start, ids.stop - block.start)
        cond, uncond = job.model.conditions(job.conditions.entries(block.start, block.stop))
        state = job.sampler.start(
            (len(block), *job.model.shape),
            seed=spec.seed,
            sample_ids=block,
            cond=cond,
            uncond=uncond,
            log_prob=True,
        )
        before, after = self._places(0), self._places(1)
        made, scores, broken = [], [], ""
        for row in range(len(spec.plan)):
            k = self._rows.index(row) if row in self._rows else None
            if k is not None and before[k] >= 0:
                x_t = tensors["states"][before[k]].to(state.x)
                if row - 1 not in self._rows:
                    broken = broken or _lead(state.x[own], x_t, ids, f"before row {row}")
                state.x[own] = x_t
            if k is not None and "slots" in tensors and state.slots is not None:
                held = tensors["slots"][k].to(state.slots)
                found = state.slots[: len(held), own].movedim(1, 0)
                what = f"in what the solver remembers before row {row}"
                broken = broken or _lead(found, held.movedim(1, 0), ids, what)
            job.sampler.advance(state)
            if k is not None:
                assert state.log_prob is not None
                made.append(state.x[own].cpu().clone())
                scores.append(state.log_prob[own].cpu().clone())
                state.x[own] = tensors["states"][after[k]].to(state.x)
                self.transitions += len(ids)
        yield from of_steps(self._rows, self._after(tensors), made, noises)
        if broken:
            yield broken
        for k, row in enumerate(self._rows):
            for i in (tensors["log_prob"][k] != scores[k]).nonzero().flatten().tolist():
                stored, right = float(tensors["log_prob"][k, i]), float(scores[k][i])
                log_std = noises.log_std(row)
                yield noises.explain(stored, right, log_std, sample=ids[i], row=row)
        if "samples" in tensors:
            final = tensors["samples"].to(state.x)
            if what := _lead(state.x[own], final, ids, "after the last row"):
                yield what
            state.x[own] = final
        samples = job.decoded(job.sampler.decode(state.x))[own]
        yield from self._compare(record, job.levels(samples), ids)


def _lead(found: Tensor, stored: Tensor, ids: range, where: str) -> str:
    """Returns a finding where the rows before do not lead to what is stored."""
    for i in range(len(ids)):
        if not torch.equal(found[i], stored[i]):
            return f"a state that the rows before do not lead to: sample {ids[i]}, {where}"
    return ""
