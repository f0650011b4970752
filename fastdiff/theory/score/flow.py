"""Sampling and encoding by the probability-flow ODE, on fixed grids or with a step for every
sample.

dx = [f x - g² score/2] dt has the marginals of the SDE dx = f x dt + g dw and no noise (Song et al.
2021, eq. 13): a bijection between data and noise. On a fixed grid its solvers are plans (ddim,
heun, dpm++2m …), one kernel a step; with `rk45` it is integrated on the circle of
fastdiff.theory.score.velocity by the embedded pair of fastdiff.theory.score.embedded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...prediction import Parametrization
from ...sampler import Sampler
from ...sampling.adaptive.start import Model, Start, ends
from ...schedule import Schedule
from ...solvers import find
from .embedded import integrate
from .velocity import Velocity, angle, local, radius


class Report(NamedTuple):
    """What each sample needed, int64 [B]: steps taken and refused, and evaluations of the
    network.
    """

    accepted: NDArray[np.int64]
    rejected: NDArray[np.int64]
    evaluations: NDArray[np.int64]


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
    """From noise to data along the probability flow, or with x0 from data to noise (Song et al.
    2021, eq. 13).

    With `rk45` error, step and verdict are per sample: a sample is the same alone and in any batch,
    to the bit where the network's rows are, and one that has arrived costs no further call.

    Args:
        model, schedule, prediction_type, cond, uncond, guidance_scale, seed, sample_ids: see
            `Sampler`.
        shape: [B, …] to draw x_T by stream 0 of the noise contract; or x_T [B, …], the state at the
            noisy end; or x0 [B, …], data that is carried to the noisy end.
        solver: `rk45`, or a deterministic solver of plans over `steps` steps (`fastdiff solvers`):
            ddim, heun … towards the data, `ddim_inverse` towards the noise. `options` are theirs
            and `Sampler`'s.
        dtype: of the state, float32 or float64. rtol, atol: of rk45, for states of unit size.
        sigma_max, sigma_min: noise levels sigma/alpha between which rk45 goes, default the
            schedule's ends.
        denoise: after rk45 a last call gives the x0 predicted at sigma_min; otherwise that state is
            returned.
        network_batch: every call of the network gets exactly so many rows, several calls or filled
            up.
        fractional_times: a discrete schedule's network is told float32 times between its timesteps
            by rk45; otherwise the nearest timestep, and the flow has a kink at each.
        return_info: with rk45, also what each sample needed.

    Returns:
        x [B, …]: data, or the state at the noisy end. With return_info, (x, Report).

    Raises:
        ValueError, TypeError: for arguments outside these, stochastic solvers, states that are not
            finite.
    """
    where = "fastdiff.theory.score.probability_flow"
    if x0 is not None and (x_T is not None or shape is not None):
        raise ValueError(
            f"{where}: expected one of shape, x_T and x0, got x0 and another. Give the state to"
            " start from."
        )
    if solver != "rk45":
        if return_info or sigma_max is not None or sigma_min is not None or fractional_times:
            raise ValueError(
                f"{where}: expected return_info, sigma_max, sigma_min and fractional_times with"
                f" rk45 alone, got {solver!r}."
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
    start = Start(
        where,
        local(model, where),
        schedule,
        shape,
        high,
        x_T if x0 is None else x0,
        seed,
        sample_ids,
        dtype,
        cond,
        uncond,
        guidance_scale,
        prediction_type,
        None,
        fractional_times=fractional_times,
    )
    velocity = Velocity(start.network, len(start.x), network_batch)
    begin, end = (high, low) if x0 is None else (low, high)
    # data are the state at the cleanest point, over alpha
    y = start.x / radius(high) if x0 is None else start.x * (low.alpha / radius(low))
    done = integrate(
        lambda y, phi, rows: (velocity(y[0], phi, rows),),
        (y,),
        angle(begin),
        angle(end),
        rtol=rtol,
        atol=atol,
        where=where,
    )
    (y,), calls = done.state, done.evaluations
    if x0 is None and denoise and len(y):
        rows = torch.arange(len(y), device=y.device)
        x, calls = velocity.x0(y, np.full(len(y), angle(low)), rows), calls + 1
    else:
        x = y * radius(end)
    return (x, Report(done.accepted, done.rejected, calls)) if return_info else x


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
    """The same by a plan."""
    chosen = find(solver)
    if chosen.stochastic or settings.get("eta"):
        raise ValueError(
            f"{where}: expected a deterministic solver, got {solver!r} with noise. Use Sampler"
            " for it."
        )
    if chosen.reverse != (x0 is not None):
        raise ValueError(
            f"{where}: expected x0 with solvers from data to noise and with no other, got"
            f" {solver!r} {'with' if x0 is not None else 'without'} it. `ddim_inverse` and rk45 go"
            " from x0."
        )
    sampler = Sampler(model, schedule, solver=solver, steps=steps, **settings)
    given = x_T if x0 is None else x0
    return sampler.sample(
        None if given is not None else shape,
        seed=seed,
        sample_ids=sample_ids,
        cond=cond,
        uncond=uncond,
        guidance_scale=guidance_scale,
        x_T=None if given is None else given.to(dtype),
        dtype=dtype,
    )
