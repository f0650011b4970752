"""An embedded Runge–Kutta pair with a step size for every sample: Dormand–Prince 5(4).

    k_i = f(t + c_i h, y + h Σ_j a_ij k_j),  y' = y + h Σ_i b_i k_i,  error = h Σ_i e_i k_i,

where e = b - b* is the difference from the embedded solution of order 4, and the last stage of a
step is the first of the next one (Dormand & Prince 1980; Hairer, Nørsett & Wanner, Solving ODEs I,
section II.4 and table 5.2). The error norm is the root mean square over the elements of *one
sample*, in units of atol + rtol max(|y|, |y'|). A sample's steps and bits are therefore the same
alone and in any batch. Samples that have reached their end time leave the batch and cost no further
evaluations.

The loop does not communicate with other processes: a collective operation in it would wait for
ranks whose samples need fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...backend.eager.sums import sum_samples
from ...grad_mode import restored
from ...sampling.adaptive.control import Array, StepSize
from ..tensors import per_sample

State = tuple[Tensor, ...]
Field = Callable[[State, Array, Tensor], State]
"""(parts of the state [n, …], times [n], indices of these n samples in the batch) -> derivatives
of the parts.
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
    """The final state, and for each sample the steps accepted and rejected and the evaluations of
    the field, int64 [B].
    """

    state: State
    accepted: NDArray[np.int64]
    rejected: NDArray[np.int64]
    evaluations: NDArray[np.int64]


@restored
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
    """Integrates dy/dt = field(y, t) from y(start) to y(end), with a step size for each sample.

    Args:
        field: the derivatives, see `Field`.
        state: parts [B, …] that are integrated together, float32 or float64. The error of a step
            is the largest error of a part.
        start, end: times, one for all samples or [B].
        rtol, atol: relative and absolute tolerance of one step's error per element.
        max_evaluations: the limit for one sample.
        where: the name that error messages begin with.

    Raises:
        ValueError: tolerances below what the dtype resolves, a start or state that is not finite.
        RuntimeError: a sample that needs steps below the resolution of time, or more evaluations
            than the limit.
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
    while len(run.samples):
        run.attempt()
        late = run.evaluations[run.samples_host] > max_evaluations
        if late.any():
            raise RuntimeError(
                f"{where}: expected at most {max_evaluations} evaluations, got more in sample "
                f"{int(run.samples_host[np.argmax(late)])}. Raise rtol or atol, or check the field."
            )
    assert len(run.evaluations) == batch
    return Integration(run.result, run.accepted, run.rejected, run.evaluations)


class _Run:
    """The integration of the samples that have not reached their end time.

    `samples` holds their indices in the batch, on the device, and `samples_host` the same on the
    host; all other tensors and arrays except `result` and the counts have one entry for each.
    """

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
        self.direction = np.where(self.end >= self.t, 1.0, -1.0)
        self.result = tuple(part.clone() for part in state)
        self.accepted, self.rejected, self.evaluations = (
            np.zeros(batch, dtype=np.int64) for _ in range(3)
        )
        self.samples_host = np.flatnonzero(self.t != self.end)
        self.samples = torch.from_numpy(self.samples_host).to(device)
        self.y = tuple(part[self.samples] for part in state)
        self._keep_times(self.samples_host)
        self.first = self.y
        self.steps = StepSize(0.0, 0, order=ORDER)
        if len(self.samples):
            self.first = self._evaluate(self.y, self.t)
            bad = ~np.isfinite(self._norm(self.first, self.y, self.y))
            if bad.any():
                raise ValueError(
                    f"{where}: expected a finite start, got a derivative or state that is not"
                    f" finite in sample {int(self.samples_host[np.argmax(bad)])}."
                )
            self.steps = StepSize(self._first_step(), len(self.samples), order=ORDER, limits=LIMITS)

    def _keep_times(self, chosen: NDArray[Any]) -> None:
        self.t, self.end, self.direction = (v[chosen] for v in (self.t, self.end, self.direction))

    def _evaluate(self, y: State, t: Array) -> State:
        self.evaluations[self.samples_host] += 1
        return self.field(y, t, self.samples)

    def _norm(self, change: State, y: State, z: State) -> Array:
        """The largest root mean square of a part in units of the tolerance, [n]."""
        norms = []
        for c, a, b in zip(change, y, z, strict=True):
            scale = torch.maximum(a.abs(), b.abs()).mul_(self.rtol).add_(self.atol)
            mean = sum_samples((c / scale).square_()) / max(c[0].numel(), 1)
            norms.append(np.array(mean.sqrt().tolist()))
        return np.maximum.reduce(norms)

    def _first_step(self) -> Array:
        """Step sizes [n] by Hairer, Nørsett & Wanner I, section II.4, "starting step size"."""
        length = np.abs(self.end - self.t)
        d0, d1 = self._norm(self.y, self.y, self.y), self._norm(self.first, self.y, self.y)
        with np.errstate(divide="ignore", invalid="ignore"):
            h = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        h = np.minimum(h, length)
        trial = tuple(
            y + per_sample(h * self.direction, y) * k
            for y, k in zip(self.y, self.first, strict=True)
        )
        second = self._evaluate(trial, self.t + h * self.direction)
        change = tuple(b - a for a, b in zip(self.first, second, strict=True))
        d2 = self._norm(change, self.y, self.y) / h
        steep = np.maximum(d1, d2)
        with np.errstate(divide="ignore", invalid="ignore"):
            other = np.where(
                steep <= 1e-15, np.maximum(1e-6, h * 1e-3), (0.01 / steep) ** (1.0 / ORDER)
            )
        # `other` is not finite if the field is not finite where the trial step ends
        other = np.where(np.isfinite(other), other, h)
        return np.minimum(np.minimum(100 * h, other), length)

    def attempt(self) -> None:
        """Tries one step of every sample; samples that reach their end time leave."""
        least = 10 * np.abs(np.nextafter(self.t, self.direction * np.inf) - self.t)
        stuck = (self.steps.h < least) & self.steps.refused
        if stuck.any():
            i = int(np.argmax(stuck))
            raise RuntimeError(
                f"{self.where}: expected steps above the resolution of time, got"
                f" {self.steps.h[i]:.3g} at {self.t[i]:.6g} in sample"
                f" {int(self.samples_host[i])}. Raise rtol or atol."
            )
        h = np.maximum(self.steps.h, least)
        goal = self.t + self.direction * h
        goal = np.where(self.direction * (goal - self.end) > 0, self.end, goal)
        signed = goal - self.t
        self.steps.h = np.abs(signed)
        stages, new = [self.first], self.y
        for c, row in zip(C[1:], A[1:], strict=True):
            new = self._advanced(row, stages, signed)
            # c = 1 is the end of the step, `goal`; t + signed may round to another time
            stages.append(self._evaluate(new, goal if c == 1.0 else self.t + c * signed))
        change = tuple(per_sample(signed, k) * k for k in self._sum(E, stages))
        error = self._norm(change, self.y, new)
        accepted = self.steps.propose(
            np.where(np.isnan(error), np.inf, error), np.ones(len(goal), dtype=bool)
        )
        self.accepted[self.samples_host] += accepted
        self.rejected[self.samples_host] += ~accepted
        if accepted.any():
            self._move(accepted, goal, new, stages[-1])

    def _sum(self, weights: tuple[float, ...], stages: list[State]) -> State:
        """Σ w k of each part, in the order of the stages.

        Each product is rounded before it is added. add_(k, alpha=w) would not do: whether it fuses
        multiplication and addition may differ between the vectorised body of an array and its
        tail.
        """
        total = tuple(weights[0] * k for k in stages[0])
        for weight, stage in zip(weights[1:], stages[1:], strict=True):
            if weight:
                for part, k in zip(total, stage, strict=True):
                    part.add_(weight * k)
        return total

    def _advanced(self, weights: tuple[float, ...], stages: list[State], h: Array) -> State:
        return tuple(
            y + per_sample(h, y) * k
            for y, k in zip(self.y, self._sum(weights, stages), strict=True)
        )

    def _move(self, accepted: NDArray[np.bool_], goal: Array, new: State, last: State) -> None:
        """Moves the samples with an accepted step; stores and drops those at their end time."""
        chosen = torch.from_numpy(accepted).to(self.samples.device)

        def choose(a: State, b: State) -> State:
            return tuple(
                torch.where(chosen.view(-1, *(1,) * (q.ndim - 1)), q, p)
                for p, q in zip(a, b, strict=True)
            )

        self.t = np.where(accepted, goal, self.t)
        self.y, self.first = choose(self.y, new), choose(self.first, last)
        running = self.t != self.end
        if running.all():
            return
        keep = torch.from_numpy(running).to(self.samples.device)
        for whole, part in zip(self.result, self.y, strict=True):
            whole[self.samples[~keep]] = part[~keep]
        self.y, self.first = tuple(v[keep] for v in self.y), tuple(v[keep] for v in self.first)
        self.samples, self.samples_host = self.samples[keep], self.samples_host[running]
        self._keep_times(running)
        self.steps.keep(running)
