"""Plans over a host's own noise levels, kept for the next call with the same ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...sampling.adaptive.rows import draws_noise
from ...schedule import CLEAN, Time
from ...solvers import Linear, Plan, Trace
from .formulas import FORMULAS


def point(sigma: float) -> Time:
    """The point x = x0 + sigma eps; its network is told sigma."""
    return CLEAN._replace(t=0.0) if sigma == 0 else Time(sigma, 1.0, sigma, -2.0 * math.log(sigma))


class Sigmas:
    """Where solvers find points: every level sigma > 0."""

    def at(self, t: float) -> Time:
        return point(t)

    def at_log_snr(self, log_snr: float) -> Time:
        return point(math.exp(-0.5 * log_snr))

    def network_time(self, point: Time) -> float:
        return point.sigma


@dataclass(frozen=True)
class Recipe:
    """A plan and which of its rows begin a step.

    Attributes:
        sigmas: the grid it steps along.
        steps: for each row the index of its step.
        first: whether the row is the first network call of its step, where callbacks are called.
        ends: for each row that draws noise, the noise levels between which a host's noise_sampler
            is asked: the step's, but for the first of two draws, which goes to the level of the
            second call.
    """

    plan: Plan
    sigmas: tuple[float, ...]
    steps: tuple[int, ...]
    first: tuple[bool, ...]
    ends: dict[int, tuple[float, float]]


def make(
    formula: Callable[[Trace, list[Time]], Linear], sigmas: tuple[float, ...], calls: list[int]
) -> Recipe:
    """Traces formula(trace, times), whose step i makes calls[i] network calls."""
    times = [point(sigma) for sigma in sigmas]
    trace = Trace("x0", Sigmas())
    plan = Plan(
        trace.table(formula(trace, times)), initial_std=sigmas[0], levels=trace.levels(times[-1])
    )
    network = plan.column("network")[: len(plan)] != 0
    owners = [(step, call == 0) for step, n in enumerate(calls) for call in range(n)]
    assert len(owners) == network.sum(), "the calls of each step are those of the formula"
    of_row: list[tuple[int, bool]] = []
    for is_call in network:
        of_row.append(
            owners.pop(0) if is_call else (0, False)
        )  # only churn before the first call makes none
    ends = {}
    for row, draws in enumerate(draws_noise(plan)):
        if draws:
            step = of_row[row][0]
            again = row + 1 < len(plan) and of_row[row + 1][0] == step and network[row]
            following = float(plan.column("t")[row + 1]) if again else sigmas[step + 1]
            ends[row] = sigmas[step], following
    return Recipe(plan, sigmas, tuple(s for s, _ in of_row), tuple(f for _, f in of_row), ends)


@functools.lru_cache(maxsize=64)
def recipe(name: str, sigmas: tuple[float, ...], options: tuple[tuple[str, Any], ...]) -> Recipe:
    """The recipe of a sampler over these levels."""
    chosen, given = FORMULAS[name], dict(options)
    if len(sigmas) < 2:
        return Recipe(
            Plan(Trace("x0", Sigmas()).table(Linear({("x", 0): 1.0}))), sigmas, (), (), {}
        )
    calls = [chosen.calls(a, b, given) for a, b in zip(sigmas, sigmas[1:], strict=False)]
    return make(lambda trace, times: chosen.trace(trace, times, **given), sigmas, calls)
