"""The formulas of grids that are known from other programs: positions in time, levels and angles.

    simple            timesteps T - 1 - floor(i T/n)
    ddim_uniform      timesteps 1 + i floor(T/n), of the first implementation of DDIM
    beta57            timesteps (T - 1) F^-1(1 - i/n), with F of Beta(0.5, 0.7) (Lee et al. 2024)
    normal            evenly from T - 1 to 0, both included, and the noise level there
    sgm_uniform       evenly from T - 1 to 0, without the last
    linear_quadratic  sigma/sigma_max falls linearly to 0.975 over half of the steps, then
                      quadratically (Polyak et al. 2024, section 3.4.2)
    bong_tangent      sigma/sigma_max along two arctangents, from 1 to 1/2 and from 1/2 to 0
    kl_optimal        arctan rho evenly between the schedule's ends (Sabour et al. 2024, for
                      Gaussian data)

Positions between two timesteps have the ln rho between theirs. `grids` has the entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..schedule import Schedule, Time

_LINEAR_DROP = 0.025  # of linear_quadratic, over the first half
_PIVOT, _SLOPE = 0.6, 0.2  # of bong_tangent: where it is steepest, and how steep, at 40 steps


def simple_timesteps(total: int, steps: int) -> list[int]:
    """Returns T - 1 - floor(i T/n)."""
    return [total - 1 - i * total // steps for i in range(steps)]


def ddim_timesteps(total: int, steps: int) -> list[int]:
    """Returns 1 + i floor(T/n), from the largest; all timesteps where n = T."""
    first = 0 if steps == total else 1
    return [first + i * (total // steps) for i in reversed(range(steps))]


def ddim_positions(total: int, steps: int, origin: float) -> list[float]:
    """Returns the same for a continuous schedule: one timestep above the `leading` ones."""
    width = (total - 1) / steps
    return [i * width + min(1.0, width) for i in reversed(range(steps))]


def beta57_positions(total: int, steps: int, origin: float) -> list[float]:
    """Returns T - 1 times the quantiles 1 - i/n of Beta(0.5, 0.7)."""
    shares = 1.0 - np.arange(steps) / steps
    return [(total - 1) * float(q) for q in beta_quantiles(shares, 0.5, 0.7)]


def beta_quantiles(shares: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """Returns the points below which Beta(a, b) has these shares of its mass, by bisection."""
    half, other = (float(_mass(np.array(0.5), *ab)) for ab in ((a, b), (b, a)))
    masses = shares * (half + other)
    low = _inverse(np.minimum(masses, half), a, b)
    high = 1.0 - _inverse(np.minimum((1.0 - shares) * (half + other), other), b, a)
    return np.where(masses <= half, low, high)


def _mass(x: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """Returns ∫_0^x u^(a-1) (1 - u)^(b-1) du for x <= 1/2, by the series of (1 - u)^(b-1)."""
    term, total = np.ones_like(x), np.ones_like(x) / a
    for k in range(1, 60):
        term = term * x * (k - b) / k
        total = total + term / (a + k)
    return x**a * total


def _inverse(mass: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """Returns x in [0, 1/2] with this mass below it."""
    low, high = np.zeros_like(mass), np.full_like(mass, 0.5)
    for _ in range(64):
        middle = 0.5 * (low + high)
        below = _mass(middle, a, b) < mass
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high


def normal(schedule: Schedule, steps: int) -> list[Time]:
    """Points evenly from T - 1 to 0 in time, both included."""
    return _between(schedule, np.linspace(schedule.num_train_timesteps - 1, 0, steps))


def sgm_uniform(schedule: Schedule, steps: int) -> list[Time]:
    """Points evenly from T - 1 to 0 in time, without the last."""
    return _between(schedule, np.linspace(schedule.num_train_timesteps - 1, 0, steps + 1)[:-1])


def _between(schedule: Schedule, positions: NDArray[np.float64]) -> list[Time]:
    points = []
    for t in positions.tolist():
        low = int(t)
        if schedule.continuous or t == low:
            points.append(schedule.at(t))
            continue
        below, above = float(schedule.log_snr[low]), float(schedule.log_snr[low + 1])
        # pure noise has no level between it and the timestep before
        points.append(
            schedule.at_log_snr(below + (t - low) * (above - below))
            if above > -math.inf
            else schedule.at(low)
        )
    return points


def kl_optimal(schedule: Schedule, steps: int) -> list[Time]:
    """Points between the schedule's ends, even in arctan rho."""
    last = schedule.num_train_timesteps - 1
    high, low = (math.atan(schedule.at(t).rho) for t in (last, 0))
    angles = [high + r * (low - high) for r in np.linspace(0.0, 1.0, steps)[1:-1].tolist()]
    inner = [schedule.at_log_snr(-2.0 * math.log(math.tan(angle))) for angle in angles]
    return [schedule.at(last), *inner, schedule.at(0)][:steps]


def shares_linear_quadratic(steps: int) -> list[float]:
    """sigma/sigma_max of each step, from 1.

    The quadratic part goes on with the slope of the linear one, and ends at 0 after the last step.
    """
    linear = steps // 2
    if not linear:
        return [1.0] * steps
    rest, slope = steps - linear, _LINEAR_DROP / linear
    bend = (1.0 - _LINEAR_DROP - slope * rest) / rest**2
    falls = [slope * i + bend * max(i - linear, 0) ** 2 for i in range(steps)]
    return [1.0 - fall for fall in falls]


def shares_bong_tangent(steps: int) -> list[float]:
    """sigma/sigma_max of each step, from 1: two arctangents of the step's number.

    With N = n + 2 the first has int(0.6 N) points from 1 to 1/2, the second those from 1/2 to 0.
    """
    if steps == 1:
        return [1.0]
    total = steps + 2
    first, slope = int(total * _PIVOT), _SLOPE / (total / 40)
    early = _arctangent(first, slope, first, 1.0, 0.5)
    return [*early[:-1], *_arctangent(total - first, slope, 0, 0.5, 0.0)[:-1]]


def _arctangent(count: int, slope: float, pivot: int, begin: float, end: float) -> list[float]:
    curve = [math.atan(slope * (pivot - i)) for i in range(count)]
    high, low = curve[0], curve[-1]
    return [end + (begin - end) * (value - low) / (high - low) for value in curve]


def of_shares(
    name: str, shares: Callable[[int], list[float]]
) -> Callable[[Schedule, int], list[Time]]:
    """Returns the grid of this name, whose levels are these shares of the schedule's largest.

    A level is sigma of a flow schedule, and sigma/alpha of others.
    """

    def points(schedule: Schedule, steps: int) -> list[Time]:
        last = schedule.at(schedule.num_train_timesteps - 1)
        flow = schedule.space == "flow"
        top = last.sigma if flow else last.rho
        if top == math.inf:
            raise ValueError(
                "fastdiff.Sampler: expected a schedule with a largest noise level for the spacing"
                f" {name!r}, got one that ends in pure noise. Use another one, or sigmas=."
            )
        levels = [share * top for share in shares(steps)[1:]]
        ratios = [v / (1.0 - v) if flow else v for v in levels]
        return [last, *(schedule.at_log_snr(-2.0 * math.log(rho)) for rho in ratios)]

    return points
