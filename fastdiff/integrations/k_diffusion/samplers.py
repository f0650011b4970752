"""k-diffusion's samplers with their names and signatures (crowsonkb/k-diffusion 0.1.1).

Each one runs a plan with one kernel per row. Their arguments are:

    model: (x [B, …], sigma [B], **extra_args) -> denoised x0 [B, …].
    x: the state at sigmas[0]. Only a callback may modify it.
    sigmas: [n + 1], falling; the last one may be 0. They are read once, and plans are cached.
    extra_args: keyword arguments of the model.
    disable: whether the progress bar is hidden.
    callback: called after the first network call of every step with a dict of x, i, sigma,
        sigma_hat and denoised. As in k-diffusion, the run continues with an x that the callback
        modifies in place, and x is the caller's own tensor before the first step without churn. A
        modified denoised counts too, except where k-diffusion has computed the step's slope by then
        (`Formula.slope_first`: Euler, Heun, DPM-2, LMS and DPM-Solver-fast); that slope is kept.
    eta, s_noise: the share and the scale of the noise of ancestral and SDE samplers.
    noise_sampler: (sigma, sigma_next) -> noise like x. By default it is fastdiff's noise of a seed
        from torch's global CPU generator.
    s_churn, s_tmin, s_tmax, s_noise: the noise added before steps (Karras et al. 2022, algorithm
        2).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor

from ...grad_mode import restored
from .loop import Callback, Model, NoiseSampler, sample

Extra = Mapping[str, Any] | None


@restored
@torch.no_grad()
def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler's method with churn (Karras et al. 2022, algorithm 2 without its second-order part)."""
    churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    return sample("euler", model, x, sigmas, extra_args, callback, disable, None, churn)


@restored
@torch.no_grad()
def sample_heun(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Heun's method with churn (Karras et al. 2022, algorithm 2)."""
    churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    return sample("heun", model, x, sigmas, extra_args, callback, disable, None, churn)


@restored
@torch.no_grad()
def sample_dpm_2(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Tensor:
    """The midpoint rule in ln sigma with churn (after Karras et al. 2022, algorithm 2)."""
    churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    return sample("dpm_2", model, x, sigmas, extra_args, callback, disable, None, churn)


@restored
@torch.no_grad()
def sample_lms(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 4,
) -> Tensor:
    """Adams-Bashforth on the uneven grid of sigma, order 1 to 4."""
    return sample("lms", model, x, sigmas, extra_args, callback, disable, None, {"order": order})


@restored
@torch.no_grad()
def sample_euler_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Euler's method with ancestral noise (Song, Meng & Ermon 2021, eq. 12 and 16, in sigma)."""
    noise = {"eta": eta, "s_noise": s_noise}
    return sample(
        "euler_ancestral", model, x, sigmas, extra_args, callback, disable, noise_sampler, noise
    )


@restored
@torch.no_grad()
def sample_dpm_2_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """The midpoint rule in ln sigma with ancestral noise."""
    noise = {"eta": eta, "s_noise": s_noise}
    return sample(
        "dpm_2_ancestral", model, x, sigmas, extra_args, callback, disable, noise_sampler, noise
    )


@restored
@torch.no_grad()
def sample_dpmpp_2s_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver++(2S) with ancestral noise (Lu et al. 2022b, algorithm 1)."""
    noise = {"eta": eta, "s_noise": s_noise}
    return sample(
        "dpmpp_2s_ancestral", model, x, sigmas, extra_args, callback, disable, noise_sampler, noise
    )


@restored
@torch.no_grad()
def sample_dpmpp_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    r: float = 1 / 2,
) -> Tensor:
    """DPM-Solver++ on the SDE in two stages; the default noise is a Brownian path in ln sigma."""
    noise = {"eta": eta, "s_noise": s_noise, "r": r}
    return sample(
        "dpmpp_sde", model, x, sigmas, extra_args, callback, disable, noise_sampler, noise
    )


@restored
@torch.no_grad()
def sample_dpmpp_2m(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2)."""
    return sample("dpmpp_2m", model, x, sigmas, extra_args, callback, disable, None, {})


@restored
@torch.no_grad()
def sample_dpmpp_2m_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, section 5).

    Its default noise is a Brownian path in ln sigma.
    """
    noise = {"eta": eta, "s_noise": s_noise, "solver_type": solver_type}
    return sample(
        "dpmpp_2m_sde", model, x, sigmas, extra_args, callback, disable, noise_sampler, noise
    )


@restored
@torch.no_grad()
def sample_dpmpp_3m_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(3M) as published, with half of the second derivative
    (`fastdiff.solvers.exponential.differences`).

    Its default noise is a Brownian path in ln sigma.
    """
    noise = {"eta": eta, "s_noise": s_noise}
    return sample(
        "dpmpp_3m_sde", model, x, sigmas, extra_args, callback, disable, noise_sampler, noise
    )
