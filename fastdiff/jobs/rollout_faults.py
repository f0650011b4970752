"""Names the faults of trajectories: what states and log-probabilities would be under the usual
mistakes in rollouts, compared with what is stored.

A row that draws noise is x_s = mean + std z with std = |c_z| of the table. Where the row, executed
again, gives x_s', the noise that the stored x_s was made with is z + (x_s - x_s')/c_z, and

    log N(x_s; mean, std² I) = -½ Σ z² - n log std - ½ n log 2π

needs nothing but the noise. Rows with learned variance have no such std and are not explained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .. import ops
from ..rng import STREAM_SOLVER
from .spec import RunSpec

SURE = 4  # elements from which on two draws that agree are no coincidence
CLOSE = 0.01  # root mean square difference of two draws that are one
EPSILON = 2.0**-23  # of float32
_UNKNOWN = "log-probability not of this transition"


class Noises:
    """The noise that the samples of a unit draw.

    Args:
        spec: of the run.
        ids: of the samples.
    """

    def __init__(self, spec: RunSpec, ids: range):
        self.spec, self.ids = spec, ids
        self.shape = tuple(spec.model["shape"])
        self.elements = math.prod(self.shape)

    def of(self, row: int, ids: range | None = None, *, most: int | None = None) -> Tensor:
        """Returns the noise [n, …] of a row; with `most` its first elements, [n, at most most]."""
        ids = self.ids if ids is None else ids
        shape = self.shape if most is None else (min(self.elements, most),)
        return ops.randn(
            (len(ids), *shape),
            seed=self.spec.seed,
            sample_ids=torch.arange(ids.start, ids.stop),
            stream=STREAM_SOLVER,
            step=int(self.spec.plan.column("noise_index")[row]),
            device="cpu",
        )

    def scale(self, row: int) -> float | None:
        """Returns c_z of a row; None for a row without noise or with learned variance."""
        plan = self.spec.plan
        c = float(plan.column("x.z")[row])
        return c if c and not plan.column("noise_mode")[row] else None

    def log_std(self, row: int) -> float | None:
        """Returns the logarithm of std; None where `scale` is."""
        c = self.scale(row)
        return None if c is None else math.log(abs(c))

    def log_prob(self, z: Tensor, row: int) -> Tensor:
        """Returns the log-probabilities float64 [n] of a row that drew z [n, …]."""
        log_std = self.log_std(row)
        assert log_std is not None
        squares = z.double().flatten(1).square().sum(1)
        return -squares / 2 - self.elements * (log_std + math.log(2 * math.pi) / 2)

    def explain(
        self,
        stored: float,
        right: float,
        log_std: float | None,
        *,
        sample: int,
        row: int,
        tolerance: float = 0.0,
    ) -> str:
        """Returns the finding for a log-probability that is not the right one."""
        where, n = f"sample {sample} in row {row}", self.elements
        tolerance = max(tolerance, 1e-5 * abs(right), 1e-4)
        unit, half = n * (log_std or 0.0), n * math.log(2 * math.pi) / 2
        for missing in (unit + half, half, unit):
            value = right + missing
            if log_std is None or abs(missing) <= 2 * tolerance:
                continue
            if abs(stored - value) <= tolerance:
                return f"log-probability without its normaliser: {where}"
            if n > 1 and abs(stored - value / n) <= tolerance / n:
                return (
                    "log-probability as the mean over elements, not their sum, and without its"
                    f" normaliser: {where}"
                )
        if n > 1 and abs(stored - right / n) <= tolerance / n:
            return f"log-probability as the mean over elements, not their sum: {where}"
        return f"{_UNKNOWN}: {where} has {stored:.9g}, not {right:.9g}"


def rounded(x: Tensor) -> tuple[str, int]:
    """Returns (the narrower type that all numbers of a sample fit into, the sample), or ("", 0).

    x: [n, …] states that hold noise, of which none fits by chance.
    """
    flat = x.flatten(1)
    if flat.shape[1] >= SURE:
        for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
            fits = (flat.to(dtype).to(flat.dtype) == flat).all(dim=1)
            if bool(fits.any()):
                return name, int(fits.nonzero()[0])
    return "", 0


def of_log_prob(
    rows: Sequence[int], tensors: Mapping[str, Tensor], noises: Noises, after: Sequence[Tensor]
) -> Iterator[str]:
    """Yields what the log-probabilities show without the network.

    after: the states after the rows, whose rounding limits how well the noise is known.
    """
    ids = noises.ids
    for k, row in enumerate(rows):
        stored, c = tensors["log_prob"][k].double(), noises.scale(row)
        if not noises.spec.plan.column("x.z")[row]:
            for i in stored.nonzero().flatten().tolist():
                yield f"log-probability of a row without noise: sample {ids[i]} in row {row}"
            continue
        if c is None:
            continue
        error = 1e-5 + 2 * EPSILON * float(after[k].abs().max()) / abs(c)
        tolerance = 1e-3 + noises.elements * error
        right = noises.log_prob(noises.of(row), row)
        local = noises.log_prob(noises.of(row, range(len(ids))), row)
        for i in ((stored - right).abs() > tolerance).nonzero().flatten().tolist():
            alike = ((stored - stored[i]).abs() <= tolerance).nonzero().flatten().tolist()
            others = [j for j in alike if j != i]
            what = noises.explain(
                float(stored[i]),
                float(right[i]),
                noises.log_std(row),
                sample=ids[i],
                row=row,
                tolerance=tolerance,
            )
            if abs(stored[i] - local[i]) <= tolerance and ids[i] != i:
                yield _within_the_batch(ids[i], i, row)
            elif what.startswith(_UNKNOWN) and others:
                yield f"noise shared by two samples: {ids[others[0]]} and {ids[i]} in row {row}"
            else:
                yield what


def of_steps(
    rows: Sequence[int], stored: Sequence[Tensor], made: Sequence[Tensor], noises: Noises
) -> Iterator[str]:
    """Yields what is wrong with states after rows.

    Args:
        stored, made: [n, …] for each row, the stored states and those of the rows executed again.
    """
    ids = noises.ids
    off = [(a != b).flatten(1).any(dim=1) for a, b in zip(stored, made, strict=True)]
    if len(rows) > 1 and rows[0] == 0 and not any(bool(o.any()) for o in off[1:]):
        for i in off[0].nonzero().flatten().tolist():
            yield f"x_T not of this seed and id: sample {ids[i]}, of which row 0 alone is off"
    for k, row in enumerate(rows):
        if not bool(off[k].any()):
            continue
        c = noises.scale(row)
        drawn = noises.of(row)
        used = drawn.double() + (stored[k].double() - made[k].double()) / (c or 1.0)
        for i in off[k].nonzero().flatten().tolist():
            far = float((stored[k][i].double() - made[k][i].double()).abs().max())
            what = "" if c is None else _other_noise(used, drawn, i, row, noises, stored[k], c)
            yield what or (
                "a step off the row (another table, another time or another state):"
                f" sample {ids[i]} in row {row}, by up to {far:.3g}"
            )


def _other_noise(
    used: Tensor, drawn: Tensor, i: int, row: int, noises: Noises, x_s: Tensor, c: float
) -> str:
    """Returns a finding where a sample has drawn other noise than its own; "" where it has not."""
    ids, mine = noises.ids, used[i].flatten()
    close = CLOSE + 4 * EPSILON * float(x_s[i].abs().max()) / abs(c)

    def same(z: Tensor) -> bool:
        return _rms(z.double().flatten() - mine) < close

    if len(mine) < SURE or _rms(drawn[i].double().flatten() - mine) < 0.5:
        return ""
    for j in range(len(ids)):
        if j != i and same(used[j]):
            return f"noise shared by two samples: {ids[j]} and {ids[i]} in row {row}"
    for j, z in enumerate(noises.of(row, range(len(ids)))):
        if same(z):
            return _within_the_batch(ids[i], j, row)
    plan = noises.spec.plan
    for other in range(len(plan)):
        differs = plan.column("noise_index")[other] != plan.column("noise_index")[row]
        if differs and same(noises.of(other, ids[i : i + 1])[0]):
            return f"noise of another row: sample {ids[i]} has that of row {other} in row {row}"
    both = mine @ drawn[i].double().flatten() / len(mine)
    if abs(_rms(mine) - 1) < 4 / math.sqrt(2 * len(mine)) and abs(both) < 0.5:
        return f"noise not of this seed and id: sample {ids[i]} in row {row}"
    return ""


def _within_the_batch(sample: int, number: int, row: int) -> str:
    return (
        f"noise shared by two samples: {sample} has that of id {number}, a number within the batch,"
        f" in row {row}"
    )


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
