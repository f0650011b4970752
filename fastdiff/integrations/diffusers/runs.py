"""The runs of `fastdiff.Scheduler`: a plan, and what a pipeline sees of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...ops import randn
from ...recent import Recent
from ...schedule import Time
from ...solvers import Plan, make_plan
from ...solvers.registry import find
from ...solvers.windows import later
from ...table import INDEX
from . import visited
from .sampler_settings import Trained, variance_type
from .traced import TracedPlan

_MOST_BEGINS = 16  # whose traced plans a run keeps


class Run(NamedTuple):
    """A plan and what pipelines see of it.

    Attributes:
        known: the network.
        plan: its `t` column has the pipelines' times.
        times: the points that it was traced over.
        calls: the rows that call the network.
        scales: the factor of the network's input at each call.
        values: the time of each call, as pipelines iterate over them.
        settings: the arguments of `make_plan`.
        entered: traced plans by the call that they begin with.
    """

    known: Trained
    plan: Plan
    times: tuple[Time, ...]
    calls: list[int]
    scales: list[float]
    values: list[float]
    settings: dict[str, Any]
    entered: Recent[TracedPlan]

    def level(self, call: int) -> tuple[float, float]:
        """(alpha, sigma) of the state that a call is given; after the last call of the result."""
        levels = self.plan.levels
        assert levels is not None
        row = len(self.plan) if call >= len(self.calls) else self.calls[call] if call else 0
        return float(levels[row][0]), float(levels[row][1])

    def begun_at(self, call: int) -> Plan:
        """The plan of a run that begins with a call.

        It is the rest of the plan where that reads nothing of the rows before it, and otherwise the
        formula traced anew from there, if it then calls the network at the same times. Noise
        indices are those of the whole plan.

        Raises ValueError for other calls.
        """
        rest = self._rest(call)
        if rest is not None:
            return rest
        raise ValueError(
            "fastdiff.Scheduler.step: expected a run to begin where a step of the solver"
            f" {self.plan.info['solver']!r} begins, at one of the calls {list(self.begins())}, got"
            f" call {call}. Choose another strength or number of steps."
        )

    def begins(self) -> Iterator[int]:
        """The calls at which a run may begin, in their order."""
        return (call for call in range(len(self.calls)) if self._rest(call) is not None)

    def _rest(self, call: int) -> Plan | None:
        plan, row = self.plan, self.calls[call] if call else 0
        if plan.enterable(row):
            table = plan.table[row:].copy()
            table[:, INDEX["next"]] -= row
            levels = None if plan.levels is None else plan.levels[row:]
            return dataclasses.replace(plan, table=table, levels=levels)
        for k, point in enumerate(self.times[:-1]):
            if (point.alpha, point.sigma) != self.level(call):
                continue
            rest = make_plan(self.known.points, **later(self.settings, row), times=self.times[k:])
            at, before = rest.column("network") == 1, len(plan) - len(rest)
            visits = plan.column("t")[self.calls[call:]]
            if before >= 0 and np.array_equal(rest.column("t")[at], visits):
                table = rest.table.copy()
                table[:-1, INDEX["noise_index"]] += before
                return dataclasses.replace(rest, table=table)
        return None


class Order(int):
    """Network calls of a step; times a number of steps it is the first call after them.

    Pipelines begin inside the grid at `timesteps[steps * scheduler.order]`. A step from pure noise
    may have fewer calls than the others, so that is no product of numbers.

    Attributes:
        run: the run.
        by_step: whether the pipeline counts steps; otherwise it counts calls, and the product is
            the next call at which a run may begin.
    """

    run: Run
    by_step: bool

    def __mul__(self, steps: Any) -> Any:
        run = self.run
        if not isinstance(steps, int):
            return int(self) * steps
        if self.by_step:
            if not 0 < steps < len(run.times) - 1:
                return len(run.calls) if steps == len(run.times) - 1 else int(self) * steps
            return next(itertools.islice(run.begins(), steps, None), int(self) * steps)
        if not 0 < steps < len(run.calls):
            return steps
        return next((call for call in run.begins() if call >= steps), steps)

    __rmul__ = __mul__


def made(
    known: Trained,
    config: Any,
    steps: int | None,
    *,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    mu: float | None = None,
) -> Run:
    """The run over what a pipeline passes to `set_timesteps`, of a `Scheduler`'s configuration."""
    if known.kind == "flow" and sigmas is not None and timesteps is not None:
        known = known._replace(clock="unshifted")
    times = visited.points(
        known,
        config.like,
        config,
        spacing=config.grid,
        steps=steps,
        sigmas=sigmas,
        timesteps=timesteps,
        mu=mu,
    )
    learned: Mapping[str, str] = {}
    if find(config.solver).name == "ddpm":
        learned = variance_type(config)
    settings = {
        "solver": config.solver,
        "steps": len(times) - 1,
        "prediction_type": known.parametrization,
        **known.limits,
        **learned,
        **config.solver_options,
    }
    plan = make_plan(known.points, **settings, times=times)
    calls = [row for row in range(len(plan)) if plan.column("network")[row]]
    values = plan.column("t")[calls]
    values = values.round() if plan.whole_times else values
    scales = plan.column("input_scale")[calls].tolist()
    entered: Recent[TracedPlan] = Recent(_MOST_BEGINS)
    return Run(known, plan, tuple(times), calls, scales, values.tolist(), settings, entered)


def led(traced: TracedPlan, sample: Tensor, seed: int) -> Tensor:
    """The state after the rows before the first call, which add fastdiff's noise.

    Pipelines repeat the batch for guidance; a repeated sample gets the noise of the first.
    """
    count, rest = len(sample), (1,) * (sample.ndim - 1)
    repeats = (
        k
        for k in (3, 2)
        if count % k == 0 and torch.equal(sample[: count // k].repeat(k, *rest), sample)
    )
    batch = count // next(repeats, 1)
    ids = torch.arange(count, device=sample.device) % batch
    plan, x = traced.plan, sample
    for row in traced.leading:
        z = randn(
            tuple(sample.shape),
            seed=seed,
            sample_ids=ids,
            step=int(plan.column("noise_index")[row]),
            stream=1,
            dtype=sample.dtype,
            device=sample.device,
        )
        x = plan.column("x.x")[row] * x + plan.column("x.z")[row] * z
    return x
