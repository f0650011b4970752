"""The adaptive samplers, DPM-Solver-fast and samplers on a Brownian path, called like
`Sampler.sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import ops
from ...grad_mode import restored
from ...prediction import Parametrization
from ...rng import STREAM_SOLVER
from ...schedule import Schedule
from ...solvers import Plan, Trace, make_plan
from ..stepper import draws_noise
from .brownian import BrownianTree
from .dpm import Array, integrate
from .fast import dpm_fast_formula, fast_times
from .prepared_run import Model, PreparedRun, ends, point


@restored
@torch.no_grad()
def dpm_adaptive(
    model: Model,
    schedule: Schedule,
    shape: Sequence[int] | None = None,
    *,
    seed: int | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    x_T: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    guidance_scale: float | Tensor = 1.0,
    prediction_type: str | Parametrization = "epsilon",
    clip_range: float | None = None,
    dtype: torch.dtype = torch.float32,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    denoise: bool = True,
    return_info: bool = False,
) -> Any:
    """Samples by DPM-Solver-12 or -23, whose steps are chosen for each sample by its own error (Lu
    et al. 2022a, appendix C).

    Error, step size and the decision to take a step are per sample: a sample is the same alone and
    in any batch, to the bit where the network's rows are. The batch makes as many calls as its
    hardest sample needs.

    Args:
        model, schedule, prediction_type, clip_range, cond, uncond, guidance_scale, seed,
            sample_ids, dtype: see `Sampler`.
        shape: [B, …], or x_T: [B, …] the state at sigma_max.
        order: 2 or 3.
        rtol, atol: tolerances on x/alpha, which has the scale of the data.
        h_init: the first step in lambda.
        pcoeff, icoeff, dcoeff, accept_safety: see `fastdiff.sampling.adaptive.StepSize`.
        eta, s_noise: share and scale of the ancestral noise, stream 1 of the noise contract at the
            number of the attempt.
        sigma_max, sigma_min: noise levels sigma/alpha of the first and the last state, default the
            schedule's ends.
        denoise: whether a last call replaces the state at sigma_min by the x0 predicted there.
        return_info: whether the report is returned too.

    Returns:
        Samples [B, …]; with return_info, (samples, AdaptiveReport).

    Raises:
        ValueError, TypeError: for arguments outside these, and where a state or step is no longer
            finite.
    """
    high, low = ends(schedule, sigma_max, sigma_min)
    run = PreparedRun(
        "fastdiff.sampling.adaptive.dpm_adaptive",
        model,
        schedule,
        high,
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

    def noise(index: int, before: Array, after: Array) -> Tensor:
        return ops.randn(
            run.shape,
            seed=run.seed,
            sample_ids=run.ids,
            step=index,
            stream=STREAM_SOLVER,
            dtype=dtype,
            device=run.device,
        )

    x, report = integrate(
        run.call.x0,
        run.x / high.alpha,
        high.half_log_snr,
        low.half_log_snr,
        order=order,
        rtol=rtol,
        atol=atol,
        h_init=h_init,
        pcoeff=pcoeff,
        icoeff=icoeff,
        dcoeff=dcoeff,
        accept_safety=accept_safety,
        eta=eta,
        s_noise=s_noise,
        noise=noise,
    )
    if denoise:
        x = run.call.x0(x, np.full(len(x), low.half_log_snr)) if len(x) else x
        report = report._replace(network_calls=report.network_calls + 1)
    else:
        x = x * low.alpha
    return (x, report) if return_info else x


@restored
@torch.no_grad()
def dpm_fast(
    model: Model,
    schedule: Schedule,
    shape: Sequence[int] | None = None,
    *,
    calls: int = 20,
    seed: int | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    x_T: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    guidance_scale: float | Tensor = 1.0,
    prediction_type: str | Parametrization = "epsilon",
    clip_range: float | None = None,
    dtype: torch.dtype = torch.float32,
    eta: float = 0.0,
    s_noise: float = 1.0,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
) -> Tensor:
    """Samples by DPM-Solver-fast: `calls` network calls in steps of order 3, even in lambda (Lu et
    al. 2022a, section 3.4).

    The samples are states at sigma_min. The steps do not depend on the samples, so they are a plan
    (`fastdiff.sampling.adaptive.fast`). Arguments and errors: see `dpm_adaptive`.
    """
    high, low = ends(schedule, sigma_max, sigma_min)
    run = PreparedRun(
        "fastdiff.sampling.adaptive.dpm_fast",
        model,
        schedule,
        high,
        shape=shape,
        x_T=x_T,
        seed=seed,
        sample_ids=sample_ids,
        dtype=dtype,
        cond=cond,
        uncond=uncond,
        guidance_scale=guidance_scale,
        prediction_type=prediction_type,
    )
    times, orders = fast_times(schedule, high, low, calls)
    trace = Trace(run.call.parametrization, schedule, clip_range=clip_range)
    table = trace.table(dpm_fast_formula(trace, times, orders, eta=eta, s_noise=s_noise))
    return run.follow(Plan(table, levels=trace.levels(low)))


@restored
@torch.no_grad()
def on_tree(
    model: Model,
    schedule: Schedule,
    shape: Sequence[int] | None = None,
    *,
    solver: str = "dpm++sde",
    steps: int = 25,
    seed: int | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    x_T: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    guidance_scale: float | Tensor = 1.0,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Tensor:
    """Samples by a stochastic solver with noise from one Brownian path, which is the same for every
    number of steps.

    A row's draw is the path's increment in lambda since the previous draw, scaled to unit variance.
    With more steps the sample of a seed converges; independent draws would give another sample for
    every number of steps.

    Args:
        solver: `dpm++sde`, `dpm++2m_sde`, `dpm++3m_sde`, `euler_ancestral` … (`fastdiff solvers`:
            stochastic).
        steps, settings: as for `Sampler` (prediction_type, clip_range, timestep_spacing, eta …).
        other arguments: see `dpm_adaptive`.

    Raises:
        ValueError, TypeError: for arguments outside these, and for solvers with churn, which adds
            noise without a step towards the data.
    """
    plan = make_plan(schedule, solver=solver, steps=steps, **settings)
    run = PreparedRun(
        "fastdiff.sampling.adaptive.on_tree",
        model,
        schedule,
        point(plan, 0),
        shape=shape,
        x_T=x_T,
        seed=seed,
        sample_ids=sample_ids,
        dtype=dtype,
        cond=cond,
        uncond=uncond,
        guidance_scale=guidance_scale,
        prediction_type=settings.get("prediction_type", "epsilon"),
    )
    return run.follow(plan, path(plan, run.shape, run.seed, run.ids, dtype, run.device))


def path(
    plan: Plan,
    shape: Sequence[int],
    seed: int | Tensor,
    ids: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[int], Tensor]:
    """A function row -> noise [B, …]: the increment of one Brownian path in lambda since the
    previous row that draws, scaled to unit variance.
    """
    tree = BrownianTree(shape, seed=seed, sample_ids=ids, dtype=dtype, device=device)
    lam = [
        min(max(point(plan, row).half_log_snr, tree.low), tree.high) for row in range(len(plan) + 1)
    ]
    since, spans = lam[0], {}
    for row in (row for row, draws in enumerate(draws_noise(plan)) if draws):
        if not since < lam[row + 1]:
            raise ValueError(
                "fastdiff.sampling.adaptive.on_tree: expected a solver whose noise goes with a step"
                " towards the data, got one that adds noise. Use Sampler for churn."
            )
        spans[row], since = (since, lam[row + 1]), lam[row + 1]
    return lambda row: tree.normal(*spans[row])
