"""Sampling and encoding by the probability-flow ODE, on fixed grids or with adaptive steps.

dx = [f x - g² score/2] dt has the marginals of the SDE dx = f x dt + g dw and no noise (Song et al.
2021, eq. 13): a bijection between data and noise. On a fixed grid its solvers are plans (ddim,
heun, dpm++2m …) with one kernel a step. The solver `rk45` integrates it on the circle of
fastdiff.theory.score.velocity by the embedded pair of fastdiff.theory.score.embedded, with a step
size for every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...grad_mode import restored
from ...prediction import Parametrization
from ...sampling.adaptive.prepared_run import Model, PreparedRun, ends
from ...sampling.arguments import SampleArguments
from ...sampling.engine import Engine
from ...schedule import Schedule
from ...solvers import find
from .embedded import integrate
from .local_model import local_model
from .velocity import Velocity, angle, radius


class FlowReport(NamedTuple):
    """The steps accepted and rejected and the network evaluations of each sample, int64 [B]."""

    accepted: NDArray[np.int64]
    rejected: NDArray[np.int64]
    evaluations: NDArray[np.int64]


@restored
@torch.no_grad()
def probability_flow(
    model: Model,
    schedule: Schedule,
    shape: Sequence[int] | None = None,
    *,
    solver: str = "rk45",
    steps: int = 25,
    x_T: Tensor | None = None,
    x0: Tensor | None = None,
    seed: int | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    guidance_scale: float | Tensor = 1.0,
    prediction_type: str | Parametrization = "epsilon",
    dtype: torch.dtype = torch.float32,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    denoise: bool = True,
    network_batch: int | None = None,
    fractional_times: bool = False,
    return_info: bool = False,
    **options: Any,
) -> Any:
    """Integrates the probability flow, from noise to data or back (Song et al. 2021, eq. 13).

    With `rk45`, error, step and acceptance are per sample: a sample has the same result alone and
    in any batch, bit for bit where the network's rows have, and once it is finished it costs no
    further calls.

    There and back: the state at the cleanest point is alpha x0 there. To get x0 back, carry it to
    the noise, return with x_T and denoise=False, and divide by this alpha; the error falls with
    the tolerance. The last prediction of x0 (denoise=True) is a mean over all x0 that the state may
    come from, and moves it towards the mean of the data. With exact networks of a Gaussian and of
    two Gaussians, x0 = 1 returns as (`tests/theory/score/test_flow.py`)

        rk45, denoise=False, rtol = atol = 1e-7   1 ± 1e-5
        rk45, denoise=False or True, 1e-4         1 ± 0.0005
        ddim_inverse and ddim, 400 steps          0.989 to 0.996
        ddim_inverse and ddim, 25 steps           0.84 to 0.94

    Args:
        model, schedule, prediction_type, cond, uncond, guidance_scale, seed, sample_ids: see
            `Sampler`.
        shape: [B, …], for which x_T is drawn from stream 0 of the noise contract.
        x_T: [B, …], the state at the noisy end, instead of shape.
        x0: [B, …], data to carry to the noisy end, instead of shape and x_T.
        solver: `rk45`, or a deterministic solver of plans (`fastdiff solvers`): ddim, heun …
            towards the data, `ddim_inverse` towards the noise.
        steps: of a solver of plans. options: further arguments of it and of `Sampler`.
        dtype: of the state, float32 or float64.
        rtol, atol: tolerances of rk45, for states of unit size.
        sigma_max, sigma_min: the noise levels sigma/alpha between which rk45 integrates; None for
            the ends of the schedule.
        denoise: whether rk45 ends with a call that predicts x0 at sigma_min; otherwise the state
            there is returned.
        network_batch: the number of rows of every network call: more rows are divided into several
            calls and fewer are filled up. None for one call of all rows.
        fractional_times: whether rk45 passes float32 times between the timesteps of a discrete
            schedule; otherwise it passes the nearest timestep, and the flow has a kink between two
            timesteps.
        return_info: with rk45, whether to return a `FlowReport` too.

    Returns:
        x [B, …]: data, or the state at the noisy end. With return_info, (x, FlowReport).

    Raises:
        ValueError, TypeError: arguments outside these, stochastic solvers, states that are not
            finite.
    """
    where = "fastdiff.theory.score.probability_flow"
    if x0 is not None and (x_T is not None or shape is not None):
        raise ValueError(
            f"{where}: expected one of shape, x_T and x0, got x0 and another. Pass only the state"
            " to start from."
        )
    if solver != "rk45":
        if return_info or sigma_max is not None or sigma_min is not None or fractional_times:
            raise ValueError(
                f"{where}: expected return_info, sigma_max, sigma_min and fractional_times only"
                f" with rk45, got {solver!r}."
            )
        return _on_grid(
            where,
            model,
            schedule,
            shape,
            solver,
            steps,
            x_T,
            x0,
            seed=seed,
            sample_ids=sample_ids,
            cond=cond,
            uncond=uncond,
            guidance_scale=guidance_scale,
            prediction_type=prediction_type,
            dtype=dtype,
            network_batch=network_batch,
            **options,
        )
    if options:
        raise ValueError(f"{where}: expected no further options with rk45, got {min(options)!r}.")
    high, low = ends(schedule, sigma_max, sigma_min)
    run = PreparedRun(
        where,
        local_model(model, where),
        schedule,
        high,
        shape=shape,
        x_T=x_T if x0 is None else x0,
        seed=seed,
        sample_ids=sample_ids,
        dtype=dtype,
        cond=cond,
        uncond=uncond,
        guidance_scale=guidance_scale,
        prediction_type=prediction_type,
        fractional_times=fractional_times,
        network_batch=network_batch,
    )
    velocity = Velocity(run.call, len(run.x))
    begin, end = (high, low) if x0 is None else (low, high)
    # x0 is taken for the state at the cleanest point, divided by alpha
    y = run.x / radius(high) if x0 is None else run.x * (low.alpha / radius(low))
    done = integrate(
        lambda y, phi, samples: (velocity(y[0], phi, samples),),
        (y,),
        angle(begin),
        angle(end),
        rtol=rtol,
        atol=atol,
        where=where,
    )
    (y,), calls = done.state, done.evaluations
    if x0 is None and denoise and len(y):
        samples = torch.arange(len(y), device=y.device)
        x, calls = velocity.x0(y, np.full(len(y), angle(low)), samples), calls + 1
    else:
        x = y * radius(end)
    return (x, FlowReport(done.accepted, done.rejected, calls)) if return_info else x


def _on_grid(
    where: str,
    model: Model,
    schedule: Schedule,
    shape: Sequence[int] | None,
    solver: str,
    steps: int,
    x_T: Tensor | None,
    x0: Tensor | None,
    *,
    seed: int | None,
    sample_ids: Tensor | Sequence[int] | None,
    cond: Mapping[str, Any] | None,
    uncond: Mapping[str, Any] | None,
    guidance_scale: float | Tensor,
    dtype: torch.dtype,
    **settings: Any,
) -> Tensor:
    """The probability flow on a fixed grid, by the rows of a plan."""
    chosen = find(solver)
    if chosen.stochastic or settings.get("eta"):
        raise ValueError(
            f"{where}: expected a deterministic solver, got {solver!r} with noise. Use Sampler"
            " with it."
        )
    if chosen.reverse != (x0 is not None):
        raise ValueError(
            f"{where}: expected x0 only with solvers from data to noise, got {solver!r}"
            f" {'with' if x0 is not None else 'without'} it. Use ddim_inverse or rk45 with x0."
        )
    engine = Engine(model, schedule, where, solver=solver, steps=steps, **settings)
    state = x_T if x0 is None else x0
    arguments = SampleArguments(
        int(torch.randint(2**63 - 1, ())) if seed is None else seed,
        sample_ids,
        cond,
        uncond,
        guidance_scale,
        x_T=None if state is None else state.to(dtype),
    )
    return engine.sample(arguments, shape if state is None else None, dtype=dtype)
