"""Every solver on every grid, with an exact network of a distribution that is known.

Each element of a sample is a draw from p = sum_k w_k N(m_k, s_k²), independent of the others. The
optimal network of x_t = alpha x0 + sigma eps is then a function of each element,

    E[x0 | x_t] = sum_k r_k (m_k + alpha s_k²/v_k (x_t - alpha m_k)),   v_k = alpha² s_k² + sigma²,
    r_k ∝ w_k N(x_t; alpha m_k, v_k),

and a run of any solver gives as many draws of one number as there are elements. The error is the
1-Wasserstein distance between the draws and the data, ∫ |F(x) - G(x)| dx, over the data's standard
deviation. It counts bias, a wrong spread and wrong weights of the two modes on one scale, for
solvers with noise and without.

x_T has the quantiles of a normal distribution at (i + 1/2)/n and not draws of it. The maps of
solvers without noise are then compared with the data without sampling error; those with noise get
more elements, and `floor` is the error of as many draws of the data itself.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.choosing.results import RESULT, read, write
from fastdiff import Sampler, Schedule
from fastdiff.schedule import Time
from fastdiff.solvers import SOLVERS
from fastdiff.solvers.grids import SPACINGS

CALLS = (4, 5, 6, 8, 10, 15, 20, 30, 50)
WEIGHTS, MEANS, STDS = (0.4, 0.6), (-1.0, 0.8), (0.15, 0.3)
EXACT, NOISY = 1 << 11, 1 << 16  # elements of solvers without and with noise
ROWS = 16  # samples that the elements are divided among
STRENGTH, LABEL = 4.0, 1  # of the case `guided`: u + 4 (c - u), c the network of the second mode
FINE = 500  # steps of that case's reference
LEFT_OUT = ("repaint",)  # it goes back and forth in time, for inpainting
GRIDS = tuple(name for name in SPACINGS if name != "lu")  # `lu` is `exponential`


class Case(NamedTuple):
    """A schedule, what the network predicts there, and whether it is guided."""

    schedule: Schedule
    prediction_type: str
    guided: bool = False


CASES = {
    "betas": Case(Schedule.scaled_linear(1000), "epsilon"),
    "edm": Case(Schedule.karras(1000, sigma_min=0.002, sigma_max=80.0), "epsilon"),
    "flow": Case(Schedule.flow(1000, shift=3.0), "flow"),
    "guided": Case(Schedule.scaled_linear(1000), "epsilon", guided=True),
}


def denoised(x: Tensor, alpha: float, sigma: float, labels: Iterable[int] = (0, 1)) -> Tensor:
    """Returns E[x0 | x_t = x] under the modes with these labels, in float64."""
    x, logits, means = x.double(), [], []
    for k in labels:
        v = alpha**2 * STDS[k] ** 2 + sigma**2
        off = x - alpha * MEANS[k]
        logits.append(math.log(WEIGHTS[k]) - 0.5 * math.log(v) - off.square() * (0.5 / v))
        means.append(MEANS[k] + (alpha * STDS[k] ** 2 / v) * off)
    if len(means) == 1:
        return means[0]
    first = torch.sigmoid(logits[0] - logits[1])
    return means[1] + first * (means[0] - means[1])


class Network:
    """The optimal network of the mixture on a case's schedule: (x, t [B]) -> its output like x."""

    def __init__(self, case: Case) -> None:
        self.case = case

    @staticmethod
    def network_time(point: Time) -> float:
        """The network's time is the schedule's own, also between the timesteps."""
        return point.t

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        point = self.case.schedule.at(float(t[0]))
        alpha, sigma = point.alpha, point.sigma
        x0 = denoised(x, alpha, sigma)
        if self.case.guided:
            x0 = x0 + STRENGTH * (denoised(x, alpha, sigma, [LABEL]) - x0)
        eps = (x.double() - alpha * x0) / sigma
        return (eps - x0 if self.case.prediction_type == "flow" else eps).to(x.dtype)


@functools.cache
def quantiles(n: int) -> np.ndarray:
    """Returns the data's quantiles at (i + 1/2)/n, float64 [n]."""
    x = np.linspace(-4.0, 4.0, 1 << 18)
    cdf = sum(w * ndtr((x - m) / s) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True))
    return np.interp((np.arange(n) + 0.5) / n, cdf, x)


def deviation() -> float:
    """Returns the data's standard deviation."""
    mean = sum(w * m for w, m in zip(WEIGHTS, MEANS, strict=True))
    square = sum(w * (s**2 + m**2) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True))
    return math.sqrt(square - mean**2)


def error(samples: Tensor, target: np.ndarray) -> float | None:
    """Returns the 1-Wasserstein distance to sorted values, in deviations; None if not finite."""
    found = np.sort(samples.double().numpy().ravel())
    if not np.isfinite(found).all():
        return None
    return float(np.abs(found - target).mean()) / deviation()


def floor(n: int, draws: int = 8) -> float:
    """Returns the mean error of n independent draws of the data itself."""
    r = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        k = (r.random(n) < WEIGHTS[1]).astype(int)
        x = np.array(MEANS)[k] + np.array(STDS)[k] * r.standard_normal(n)
        found.append(error(torch.from_numpy(x), quantiles(n)))
    return float(np.mean([v for v in found if v is not None]))


def sample(case: Case, solver: str, grid: str, steps: int, n: int) -> Tensor:
    """Returns n draws of a solver; raises ValueError where it is undefined."""
    sampler = Sampler(
        Network(case),
        case.schedule,
        solver=solver,
        steps=steps,
        timestep_spacing=grid,
        prediction_type=case.prediction_type,
    )
    start = ndtri((np.arange(n) + 0.5) / n) * sampler.plan.initial_std
    x_T = torch.from_numpy(start).float().reshape(ROWS, -1)
    return sampler.sample(x_T=x_T, seed=0)


@functools.cache
def target(name: str, n: int) -> np.ndarray:
    """Returns the sorted values that a case's error is measured from, float64 [n]: the data's
    quantiles, or a fine solution of the guided probability flow, whose law has no formula.
    """
    if not CASES[name].guided:
        return quantiles(n)
    fine = sample(CASES[name], "unipc", "karras", FINE, n)
    return np.sort(fine.double().numpy().ravel())


def steps_of(solver: str, calls: int) -> int | None:
    """Returns the most steps with at most so many network calls, None if they use under 0.7 of
    them.
    """
    count = SOLVERS[solver].network_calls
    fitting = [n for n in range(1, calls + 1) if 0.7 * calls < count(n) <= calls]
    return max(fitting, default=None)


def solvers_of(case: Case) -> list[str]:
    """Returns the solvers that go from noise to data, and only those without noise where the case
    is guided: with noise its law depends on the noise.
    """
    return [
        s.name
        for s in SOLVERS.values()
        if not s.reverse and s.name not in LEFT_OUT and not (case.guided and s.stochastic)
    ]


def row(name: str, solver: str, grid: str, calls: Sequence[int], noisy: int) -> dict[str, Any]:
    """Returns a solver's errors on a grid, one for each number of calls; None where it is undefined
    or diverges.
    """
    n = noisy if SOLVERS[solver].stochastic else EXACT
    errors: list[float | None] = []
    for most in calls:
        steps, found = steps_of(solver, most), None
        if steps is not None:
            # a ValueError says that it is undefined on this schedule, or for so few steps
            with contextlib.suppress(ValueError):
                found = error(sample(CASES[name], solver, grid, steps, n), target(name, n))
        errors.append(None if found is None else float(f"{found:.3g}"))
    return {"case": name, "solver": solver, "grid": grid, "errors": errors}


def rows(
    names: Iterable[str] = tuple(CASES),
    solvers: Iterable[str] = tuple(SOLVERS),
    grids: Iterable[str] = GRIDS,
    calls: Sequence[int] = CALLS,
    noisy: int = NOISY,
) -> list[dict[str, Any]]:
    """Returns the rows of all these cases, solvers and grids that have an error."""
    wanted = [
        (name, solver, grid)
        for name in names
        for solver in solvers_of(CASES[name])
        if solver in set(solvers)
        for grid in grids
        if grid in GRIDS
    ]
    bar = tqdm(wanted, desc="mixture", disable=None, file=sys.stderr)
    found = [row(*each, calls, noisy) for each in bar]
    return [r for r in found if any(v is not None for v in r["errors"])]


def measure(path: Path = RESULT, **choice: Any) -> None:
    """Measures rows and puts them into the result file's part of the mixture, in place of older
    ones; `choice` is that of `rows`.
    """
    found = {_name(r): r for r in rows(**choice)}
    content = read(path)
    older = {
        _name(r): r
        for r in content.get("mixture", {}).get("rows", [])
        if r["solver"] in SOLVERS and r["grid"] in GRIDS
    }
    part = {"floor": float(f"{floor(NOISY):.3g}"), "calls": choice.get("calls", CALLS)}
    content["mixture"] = part | {"rows": sorted((older | found).values(), key=_place)}
    write(content, path)


def _name(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["case"], row["solver"], row["grid"]


def _place(row: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns a row's place in the file: by case, solver and grid, as the registries list them."""
    orders: list[list[str]] = [list(CASES), list(SOLVERS), list(GRIDS)]
    return tuple(order.index(name) for order, name in zip(orders, _name(row), strict=True))
