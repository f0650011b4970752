"""Plans over given noise levels, cached for later calls with the same levels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...sampling.stepper import draws_noise
from ...schedule import CLEAN, Time
from ...solvers import Linear, Plan, Trace
from .formulas import FORMULAS


def point(sigma: float) -> Time:
    """The point x = x0 + sigma eps; its network time is sigma."""
    return CLEAN._replace(t=0.0) if sigma == 0 else Time(sigma, 1.0, sigma, -2.0 * math.log(sigma))


class Sigmas:
    """The points that solvers may visit: every level sigma > 0."""

    def at(self, t: float) -> Time:
        return point(t)

    def at_log_snr(self, log_snr: float) -> Time:
        return point(math.exp(-0.5 * log_snr))

    def network_time(self, point: Time) -> float:
        return point.sigma


@dataclass(frozen=True)
class Recipe:
    """A plan and how its rows form steps.

    Attributes:
        sigmas: the grid of the steps.
        steps: the index of every row's step.
        first: whether a row is the first network call of its step, where callbacks are called.
        ends: for each row that draws noise, the two noise levels that a noise_sampler gets. They
            are the step's; the first of two draws in a step ends at the level of the second call.
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
    # the only row without a call is churn before the first one
    of_row = [owners.pop(0) if is_call else (0, False) for is_call in network]
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
    chosen, keywords = FORMULAS[name], dict(options)
    if len(sigmas) < 2:
        return Recipe(
            Plan(Trace("x0", Sigmas()).table(Linear({("x", 0): 1.0}))), sigmas, (), (), {}
        )
    calls = [chosen.calls(a, b, keywords) for a, b in zip(sigmas, sigmas[1:], strict=False)]
    return make(lambda trace, times: chosen.trace(trace, times, **keywords), sigmas, calls)
