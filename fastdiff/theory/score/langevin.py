"""Langevin dynamics: samples of p from its score alone, x <- x + c score(x) + sqrt(2c) z.

Luo 2022, eq. 158. For small c the law of x tends to p; a step of finite size is biased (on N(m, s²)
the variance becomes s²/(1 - c/(2 s²))). Where modes are far apart it does not mix, and far from
data a learned score is unreliable. Annealed Langevin dynamics therefore samples from p blurred by
decreasing noise levels, with step sizes that decrease with them (Song & Ermon 2019, algorithm 1;
Luo 2022, section "Score-based Generative Models").

The step size is c = 2 (snr r)², where `ratio` selects r:

    level   r = sigma, the noise level. c is then that of Song & Ermon 2019 up to a constant. It is
            the same for all samples, so the whole run is a plan of fused steps.
    norm    r = sqrt(D)/||score||, measured for each sample at its first step of a level and limited
            to [sigma, LIMIT sigma]. It grows with the standard deviation of the blurred data, which
            exceeds sigma where that of the data does.

Song et al. 2021, algorithms 4 and 5, use r = ||z||/||score|| with both norms averaged over the
batch, which makes a sample depend on the others. Norms per sample without limits fail: far from the
data the score is large and the steps stay small, and near a mode it vanishes. On a two-dimensional
mixture with weights 9 : 1, a third of the samples ended at the wrong mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import ops, rng
from ...backend.eager.sums import sum_samples
from ...grad_mode import restored
from ...prediction import Parametrization
from ...sampling.adaptive.prepared_run import Model, PreparedRun
from ...schedule import CLEAN, Schedule, Time
from ...solvers import Linear, Plan, Trace
from ...solvers.grids import grid
from ...whole import whole
from ..tensors import per_sample
from .local_model import local_model

RATIOS = ("norm", "level")
LIMIT = 2.0
PROBE = 0.01  # the distance of a probe in units of the noise level


class LangevinReport(NamedTuple):
    """What the last state of a run says about its steps, by E ||s||² = -E div s.

    The identity holds for samples of p with the score s (Hyvärinen 2005, eq. 4 and theorem 1).
    Samples that are too wide have a larger score than its slope accounts for: on N(m, s² I) the
    ratio of the means is the variance of the samples about m over s². The weights of separate modes
    do not show in it.

    Attributes:
        square: ||s||²/D of each sample, float64 [B].
        slope: -z·(s(x + h z) - s(x))/(h D), float64 [B]: an estimate of -div s/D by one probe z,
            stream 5 of the noise contract, with h = PROBE sigma.
    """

    square: Tensor
    slope: Tensor

    def width(self) -> tuple[float, float]:
        """Returns the ratio of the means, 1 for samples of p, and its standard error.

        Above 1 by more than the error, the run had too few steps: take more levels or steps, or a
        larger snr.
        """
        ratio = self.square.mean() / self.slope.mean()
        rest = (self.square - ratio * self.slope).std() / self.slope.mean().abs()
        return float(ratio), float(rest) / math.sqrt(len(self.square))


def move(x: Tensor, score: Tensor, z: Tensor, c: Tensor | float) -> Tensor:
    """x + c score + sqrt(2c) z for c, a number or [B]."""
    c = torch.as_tensor(c, dtype=torch.float64).expand(len(x))
    return x + per_sample(c, x) * score + per_sample(torch.sqrt(2.0 * c), x) * z


def step_sizes(score: Tensor, *, snr: float, sigma: float) -> Tensor:
    """c = 2 (snr r)² with r = sqrt(D)/||score|| limited to [sigma, LIMIT sigma], float64 [B]."""
    r = torch.sqrt(score[0].numel() / sum_samples(score.double().square()))
    return 2.0 * (snr * r.clamp_(sigma, LIMIT * sigma)) ** 2


@restored
@torch.no_grad()
def langevin(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    steps: int,
    step_size: float | Tensor,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    first: int = 0,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Unadjusted Langevin dynamics: x <- x + c score(x) + sqrt(2c) z (Luo 2022, eq. 158).

    Args:
        score: x [B, …] -> the score of the density at x.
        x: [B, …], the initial state, float32 or float64.
        steps: the number of steps.
        step_size: c, a number or a tensor [B].
        seed, sample_ids: of the noise z, stream 1 of the noise contract at the step's number.
        first: the number of the first step; a run continues another one from its last number + 1.
        watch: called with (number of the step, x) after each step.

    Raises:
        ValueError: a step size that is not positive, steps below 0, a score of another shape.
    """
    where = "fastdiff.theory.score.langevin"
    sizes = torch.as_tensor(step_size, dtype=torch.float64)
    if sizes.ndim > 1 or (sizes.ndim == 1 and len(sizes) != len(x)) or not bool((sizes > 0).all()):
        raise ValueError(
            f"{where}: expected step_size > 0 as a number or a tensor [{len(x)}], got"
            f" {step_size!r}."
        )
    if isinstance(steps, bool) or steps < 0:
        raise ValueError(f"{where}: expected steps >= 0, got {steps!r}.")
    for k in range(first, first + steps):
        value = score(x)
        if value.shape != x.shape:
            raise ValueError(
                f"{where}: expected a score of shape {list(x.shape)}, got {list(value.shape)}."
            )
        z = _draw(x, seed, sample_ids, k)
        x = move(x, value, z, sizes)
        if watch is not None:
            watch(k, x)
    return x


def _draw(
    x: Tensor,
    seed: int | Tensor,
    ids: Tensor | None,
    step: int,
    stream: int = rng.STREAM_SOLVER,
) -> Tensor:
    return ops.randn(
        tuple(x.shape),
        seed=seed,
        sample_ids=ids,
        step=step,
        stream=stream,
        dtype=x.dtype,
        device=x.device,
    )


@restored
@torch.no_grad()
def annealed_langevin(
    model: Model,
    schedule: Schedule,
    shape: Sequence[int] | None = None,
    *,
    levels: int = 100,
    steps: int = 10,
    snr: float = 0.3,
    ratio: str = "norm",
    spacing: str = "exponential",
    denoise: bool = True,
    seed: int | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    x_T: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    guidance_scale: float | Tensor = 1.0,
    prediction_type: str | Parametrization = "epsilon",
    clip_range: float | None = None,
    dtype: torch.dtype = torch.float32,
    return_info: bool = False,
) -> Any:
    """Samples by Langevin dynamics at falling noise levels (Song & Ermon 2019, algorithm 1).

    Args:
        model, schedule, prediction_type, cond, uncond, guidance_scale, clip_range, seed,
            sample_ids, dtype: see `Sampler`.
        shape: [B, …]. x_T: the state at the noisiest level, instead of shape.
        levels: the number of noise levels. spacing: as the `timestep_spacing` of `Sampler`;
            `exponential` is the published geometric sequence.
        steps: the number of steps at each level.
        snr, ratio: the step size c = 2 (snr r)², with r by `norm` or `level`; see the module.
        denoise: whether the x0 predicted at the last state is returned. Otherwise the noise of the
            lowest level remains (Jolicoeur-Martineau et al. 2021, section 3.1).
        return_info: whether to return a `LangevinReport` too, for two more network calls.

    The defaults take 1,000 steps. On two modes of weights 0.85 and 0.15 and standard deviation 0.5
    (`tests/theory/score/test_langevin.py`) they give a weight of 0.82 to 0.83 and a deviation of
    0.50, while 50 levels of 5 steps with snr 0.16 give 0.76 to 0.77 and 0.64 to 0.72.

    Returns:
        Samples [B, …]. With return_info, (samples, LangevinReport).

    Raises:
        ValueError, TypeError: for arguments outside these.
    """
    where = "fastdiff.theory.score.annealed_langevin"
    check(where, snr, ratio, steps)
    times = [t for t in grid(schedule, levels, spacing) if t is not CLEAN and t.alpha > 0]
    run = PreparedRun(
        where,
        local_model(model, where),
        schedule,
        times[0],
        shape=shape,
        x_T=x_T,
        seed=seed,
        sample_ids=sample_ids,
        dtype=dtype,
        cond=cond,
        uncond=uncond,
        guidance_scale=guidance_scale,
        prediction_type=prediction_type,
        clip_range=clip_range,
    )
    if ratio == "level":
        clean = denoise and not return_info
        x = run.follow(annealed_plan(run, times, steps, snr, clean, clip_range))
        if not return_info:
            return x
    else:
        x, number = run.x, 0
        for t in times:
            x, number = at_level(run, x, t, steps, snr, number, ratio), number + steps
    if not (denoise or return_info):
        return x
    last = times[-1]

    def predicted(x: Tensor) -> Tensor:
        return run.call.x0(x / last.alpha, np.full(len(x), last.half_log_snr))

    x0 = predicted(x)
    if not return_info:
        return x0
    z = _draw(x, run.seed, run.ids, 0, rng.STREAM_PROBES)
    step = PROBE * last.sigma
    score = (last.alpha * x0 - x) / last.sigma**2
    other = (last.alpha * predicted(x + step * z) - x - step * z) / last.sigma**2
    size = max(x[:1].numel(), 1)
    report = LangevinReport(
        sum_samples(score.double().square()) / size,
        sum_samples(z.double() * (score.double() - other.double())) / (step * size),
    )
    return (x0 if denoise else x), report


def check(where: str, snr: float, ratio: str, steps: int) -> None:
    """Raises ValueError for arguments of a Langevin step outside their ranges."""
    if ratio not in RATIOS:
        raise ValueError(f"{where}: expected ratio in {list(RATIOS)}, got {ratio!r}.")
    most = 1.0 / LIMIT if ratio == "norm" else 1.0
    if not 0 < snr < most:
        raise ValueError(
            f"{where}: expected snr in (0, {most:g}), got {snr!r}. Larger steps"
            " diverge from the data."
        )
    count = whole(steps)
    if count is None or count < 0:
        raise ValueError(f"{where}: expected steps >= 0, got {steps!r}.")


def at_level(
    run: PreparedRun, x: Tensor, t: Time, steps: int, snr: float, number: int, ratio: str
) -> Tensor:
    """x after Langevin steps at the level t; noise is drawn at the steps number, number + 1, …"""
    c: Tensor | float = 2.0 * (snr * t.sigma) ** 2
    for k in range(steps):
        x0 = run.call.x0(x / t.alpha, np.full(len(x), t.half_log_snr))
        score = (t.alpha * x0 - x) / t.sigma**2
        if ratio == "norm" and k == 0 and len(x):
            c = step_sizes(score, snr=snr, sigma=t.sigma)
        x = move(x, score, _draw(x, run.seed, run.ids, number + k), c)
    return x


def annealed_plan(
    run: PreparedRun,
    times: Sequence[Time],
    steps: int,
    snr: float,
    denoise: bool,
    clip_range: float | None,
) -> Plan:
    """The plan of a run with ratio `level`, whose steps are linear in x, the output and noise."""
    p = Trace(run.call.parametrization, run.call.schedule, clip_range=clip_range)
    x: Linear = p.start
    for t in times:
        c = 2.0 * (snr * t.sigma) ** 2
        for _ in range(steps):
            x0, _, _ = p.predict(x, t)
            x = p.x() + (c / t.sigma**2) * (t.alpha * x0 - p.x()) + math.sqrt(2.0 * c) * p.noise()
    if denoise:
        x, _, _ = p.predict(x, times[-1])
    return Plan(p.table(x), levels=p.levels(CLEAN if denoise else times[-1]))
