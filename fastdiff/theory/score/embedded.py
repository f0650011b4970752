"""An embedded Runge–Kutta pair with a step of its own for every sample: Dormand–Prince 5(4).

    k_i = f(t + c_i h, y + h Σ_j a_ij k_j),  y' = y + h Σ_i b_i k_i,  error = h Σ_i e_i k_i,

e = b - b* being the difference to the embedded solution of order 4; the last stage of a step is the
first of the next one (Dormand & Prince 1980; Hairer, Nørsett & Wanner, Solving ODEs I, section II.4
and table 5.2). The error norm is the root of the mean square over *one sample's* elements in units
of atol + rtol max(|y|, |y'|), so a sample's steps, verdicts and
bits are the same alone and in any batch. Samples that have arrived leave the batch: they cost no
    further evaluation.

The loop speaks to no other process. A collective inside it would wait for ranks whose samples need
fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...backend.eager.sums import sum_samples
from ...sampling.adaptive.control import Array, StepSize
from ...sampling.adaptive.dpm import column

State = tuple[Tensor, ...]
Field = Callable[[State, Array, Tensor], State]
"""(parts [n, …] of the running samples, their times [n], which samples of the batch they are [n])
-> derivatives.
"""

C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
E = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
ORDER = 5.0  # of the error of one step
LIMITS = (0.2, 10.0)


class Integration(NamedTuple):
    """Where the samples arrived, and what each needed: steps taken and refused, evaluations of the
    field, int64 [B].
    """

    state: State
    accepted: NDArray[np.int64]
    rejected: NDArray[np.int64]
    evaluations: NDArray[np.int64]


@torch.no_grad()
def integrate(
    field: Field,
    state: State,
    start: float | Array,
    end: float | Array,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 100_000,
    where: str = "fastdiff.theory.score.integrate",
) -> Integration:
    """y(end) of dy/dt = field(y, t) from y(start), with a step size for each sample.

    Args:
        field: see `Field`.
        state: parts [B, …] that move together, float32 or float64; a step's error is the largest of
            its parts'.
        start, end: times, of all samples or [B].
        rtol, atol: tolerances on one step's error per element.
        max_evaluations: of one sample, before it is given up.
        where: who speaks in errors.

    Raises:
        ValueError: tolerances below what the dtype resolves, a start or state that is not finite.
        RuntimeError: a sample that needs steps below the resolution of time, or more evaluations
            than allowed.
    """
    batch = len(state[0])
    if not (
        rtol >= 0
        and atol >= 0
        and rtol + atol >= 10 * max(torch.finfo(part.dtype).eps for part in state)
    ):
        raise ValueError(
            f"{where}: expected rtol + atol >= 10 roundings of {state[0].dtype}, got {rtol!r} and"
            f" {atol!r}. Raise them or take float64."
        )
    run = _Run(field, state, start, end, rtol, atol, where)
    while len(run.rows):
        run.attempt()
        late = run.evaluations[run.rows_host] > max_evaluations
        if late.any():
            raise RuntimeError(
                f"{where}: expected at most {max_evaluations} evaluations, got more in sample "
                f"{int(run.rows_host[np.argmax(late)])}. Raise rtol or atol, or look at the field."
            )
    assert len(run.evaluations) == batch
    return Integration(run.result, run.accepted, run.rejected, run.evaluations)


class _Run:
    """The samples that are still on their way."""

    def __init__(
        self,
        field: Field,
        state: State,
        start: float | Array,
        end: float | Array,
        rtol: float,
        atol: float,
        where: str,
    ):
        batch, device = len(state[0]), state[0].device
        self.field, self.rtol, self.atol, self.where = field, rtol, atol, where
        self.t, self.end = (
            np.array(np.broadcast_to(v, batch), dtype=np.float64) for v in (start, end)
        )
        if not (np.isfinite(self.t).all() and np.isfinite(self.end).all()):
            raise ValueError(f"{where}: expected finite times, got {start!r} and {end!r}.")
        self.way = np.where(self.end >= self.t, 1.0, -1.0)
        self.result = tuple(part.clone() for part in state)
        self.accepted, self.rejected, self.evaluations = (
            np.zeros(batch, dtype=np.int64) for _ in range(3)
        )
        self.rows_host = np.flatnonzero(self.t != self.end)
        self.rows = torch.from_numpy(self.rows_host).to(device)
        self.y = tuple(part[self.rows] for part in state)
        self.t, self.end, self.way = (v[self.rows_host] for v in (self.t, self.end, self.way))
        self.first = self.y
        self.steps = StepSize(0.0, 0, order=ORDER)
        if len(self.rows):
            self.first = self._evaluate(self.y, self.t)
            bad = ~np.isfinite(self._norm(self.first, self.y, self.y))
            if bad.any():
                raise ValueError(
                    f"{where}: expected a finite start, got a derivative or state that is not in"
                    f" sample {int(self.rows_host[np.argmax(bad)])}."
                )
            self.steps = StepSize(self._first_step(), len(self.rows), order=ORDER, limits=LIMITS)

    def _evaluate(self, y: State, t: Array) -> State:
        self.evaluations[self.rows_host] += 1
        return self.field(y, t, self.rows)

    def _norm(self, change: State, y: State, z: State) -> Array:
        """The largest of the parts' roots of mean squares in units of the tolerance, [n]."""
        norms = []
        for c, a, b in zip(change, y, z, strict=True):
            scale = torch.maximum(a.abs(), b.abs()).mul_(self.rtol).add_(self.atol)
            mean = sum_samples((c / scale).square_()) / max(c[0].numel(), 1)
            norms.append(np.array(mean.sqrt().tolist()))
        return np.maximum.reduce(norms)

    def _first_step(self) -> Array:
        """Hairer, Nørsett & Wanner I, section II.4, "starting step size"."""
        length = np.abs(self.end - self.t)
        d0, d1 = self._norm(self.y, self.y, self.y), self._norm(self.first, self.y, self.y)
        with np.errstate(divide="ignore", invalid="ignore"):
            h = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        h = np.minimum(h, length)
        move = tuple(
            y + column(h * self.way, y) * k for y, k in zip(self.y, self.first, strict=True)
        )
        second = self._evaluate(move, self.t + h * self.way)
        change = tuple(b - a for a, b in zip(self.first, second, strict=True))
        d2 = self._norm(change, self.y, self.y) / h
        steep = np.maximum(d1, d2)
        with np.errstate(divide="ignore", invalid="ignore"):
            other = np.where(
                steep <= 1e-15, np.maximum(1e-6, h * 1e-3), (0.01 / steep) ** (1.0 / ORDER)
            )
        other = np.where(np.isfinite(other), other, h)  # the trial may have left the field's domain
        return np.minimum(np.minimum(100 * h, other), length)

    def attempt(self) -> None:
        """One tried step of every sample on its way; those that arrive leave."""
        least = 10 * np.abs(np.nextafter(self.t, self.way * np.inf) - self.t)
        stuck = (self.steps.h < least) & self.steps.refused
        if stuck.any():
            i = int(np.argmax(stuck))
            raise RuntimeError(
                f"{self.where}: expected steps that move, got {self.steps.h[i]:.3g} at"
                f" {self.t[i]:.6g} in sample {int(self.rows_host[i])}. Raise rtol or atol."
            )
        h = np.maximum(self.steps.h, least)
        goal = self.t + self.way * h
        goal = np.where(self.way * (goal - self.end) > 0, self.end, goal)
        signed = goal - self.t
        self.steps.h = np.abs(signed)
        stages, new = [self.first], self.y
        for c, row in zip(C[1:], A[1:], strict=True):
            new = self._along(row, stages, signed)
            # the last two stages are at the step's very end, whatever t + h rounds to
            stages.append(self._evaluate(new, goal if c == 1.0 else self.t + c * signed))
        change = tuple(column(signed, k) * k for k in self._sum(E, stages))
        error = self._norm(change, self.y, new)
        taken = self.steps.propose(
            np.where(np.isnan(error), np.inf, error), np.ones(len(goal), dtype=bool)
        )
        self.accepted[self.rows_host] += taken
        self.rejected[self.rows_host] += ~taken
        if taken.any():
            self._move(taken, goal, new, stages[-1])

    def _sum(self, weights: tuple[float, ...], stages: list[State]) -> State:
        """Σ w k of each part, in the order of the stages.

        Products are rounded before they are added: whether add_(k, alpha=w) fuses them is a build's
            choice, which need not
        be one for the lanes and the rest of an array.
        """
        total = tuple(weights[0] * k for k in stages[0])
        for weight, stage in zip(weights[1:], stages[1:], strict=True):
            if weight:
                for part, k in zip(total, stage, strict=True):
                    part.add_(weight * k)
        return total

    def _along(self, weights: tuple[float, ...], stages: list[State], h: Array) -> State:
        return tuple(
            y + column(h, y) * k for y, k in zip(self.y, self._sum(weights, stages), strict=True)
        )

    def _move(self, taken: NDArray[np.bool_], goal: Array, new: State, last: State) -> None:
        chosen = torch.from_numpy(taken).to(self.rows.device)

        def choose(a: State, b: State) -> State:
            return tuple(
                torch.where(chosen.view(-1, *(1,) * (q.ndim - 1)), q, p)
                for p, q in zip(a, b, strict=True)
            )

        self.t = np.where(taken, goal, self.t)
        self.y, self.first = choose(self.y, new), choose(self.first, last)
        running = self.t != self.end
        if running.all():
            return
        keep = torch.from_numpy(running).to(self.rows.device)
        for whole, part in zip(self.result, self.y, strict=True):
            whole[self.rows[~keep]] = part[~keep]
        self.y, self.first = tuple(v[keep] for v in self.y), tuple(v[keep] for v in self.first)
        self.rows, self.rows_host = self.rows[keep], self.rows_host[running]
        self.t, self.end, self.way = self.t[running], self.end[running], self.way[running]
        self.steps.keep(running)
