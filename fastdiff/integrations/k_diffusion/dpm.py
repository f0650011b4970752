"""k-diffusion's DPM-Solver, with a fixed number of calls or adaptive steps (Lu et al. 2022a)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ... import ops
from ...grad_mode import restored
from ...sampling.adaptive.dpm import Array, Attempt, integrate
from ...sampling.adaptive.fast import dpm_fast_formula, fast_orders, fast_times
from .loop import Callback, Denoiser, Edits, Model, NoiseSampler, drawn, run_recipe
from .plans import Recipe, Sigmas, make, point
from .samplers import Extra


def _ends(where: str, sigma_min: float, sigma_max: float) -> tuple[float, float]:
    low, high = float(sigma_min), float(sigma_max)
    if not (0 < low < math.inf and 0 < high < math.inf):
        raise ValueError(
            f"fastdiff.integrations.k_diffusion.{where}: expected sigma_min and sigma_max > 0, got"
            f" {low} and"
            f" {high}."
        )
    return low, high


@functools.lru_cache(maxsize=64)
def _fast(low: float, high: float, calls: int, eta: float, s_noise: float) -> Recipe:
    times, orders = fast_times(Sigmas(), point(high), point(low), calls)

    def formula(trace: Any, times: Any) -> Any:
        return dpm_fast_formula(trace, times, orders, eta=eta, s_noise=s_noise)

    return make(formula, tuple(t.sigma for t in times), orders)


@restored
@torch.no_grad()
def sample_dpm_fast(
    model: Model,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    n: int,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver-fast: n network calls in steps of order 3, evenly spaced in ln sigma.

    (Lu et al. 2022a, section 3.4.) The arguments are described in
    `fastdiff.integrations.k_diffusion.samplers`; callbacks also get t and t_up, both -ln sigma.
    """
    low, high = _ends("sample_dpm_fast", sigma_min, sigma_max)
    if low == high:
        return x.clone()  # steps without a width
    if eta and not high > low:
        raise ValueError(
            "fastdiff.integrations.k_diffusion.sample_dpm_fast: expected eta = 0 from data to"
            " noise, got"
            f" {eta!r}."
        )
    fast_orders(n)
    recipe = _fast(low, high, n, float(eta), float(s_noise))
    sigmas = torch.tensor(recipe.sigmas, device=x.device, dtype=x.dtype)
    times = -sigmas.log()

    def further(step: int, denoised: Tensor) -> dict[str, Any]:
        # k-diffusion computes its denoised from the slope: never a tensor of the model
        return {"t": times[step], "t_up": times[step], "denoised": denoised.clone()}

    denoiser = Denoiser(
        model, extra_args, where="fastdiff.integrations.k_diffusion.sample_dpm_fast"
    )
    return run_recipe(
        recipe, denoiser, x, sigmas, callback, disable, noise_sampler, False, True, further
    )


@restored
@torch.no_grad()
def sample_dpm_adaptive(
    model: Model,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    extra_args: Extra = None,
    callback: Callback | None = None,
    disable: bool | None = None,
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
    noise_sampler: NoiseSampler | None = None,
    return_info: bool = False,
) -> Any:
    """DPM-Solver-12 and -23 with step sizes adapted per sample (Lu et al. 2022a, appendix C).

    k-diffusion measures one error for the whole batch, so a sample there depends on the others in
    its batch; at batch size 1 both agree. In callbacks and info the numbers of a batch are tensors
    [B]: steps tried, accepted (n_accept) and rejected (n_reject); nfe and steps are those of the
    sample that needed most.
    """
    low, high = _ends("sample_dpm_adaptive", sigma_min, sigma_max)
    denoiser = Denoiser(
        model, extra_args, where="fastdiff.integrations.k_diffusion.sample_dpm_adaptive"
    )
    batch, start = x.shape[0], x if x.dtype == torch.float64 else x.float()

    def like_x(values: Array) -> Tensor:
        return torch.as_tensor(values, dtype=x.dtype).to(x.device)

    with tqdm(disable=disable) as bar:

        def denoise(state: Tensor, half_log_snr: Array) -> Tensor:
            bar.update()
            times = denoiser.times(np.exp(-half_log_snr).tolist(), x)
            return denoiser(state.to(x.dtype), times).to(state.dtype)

        seed = int(torch.randint(2**63 - 1, ())) if eta and noise_sampler is None else None
        x_s, report = integrate(
            denoise,
            start,
            -math.log(high),
            -math.log(low),
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
            noise=_noise(start, noise_sampler, seed, denoiser.where),
            watch=_watch(callback, x, like_x, denoiser.where) if callback else None,
        )
    result = x_s.to(x.dtype)
    tries = (report.accepted + report.rejected).max(initial=0)
    info = {"steps": int(tries), "nfe": report.network_calls}
    info |= {"n_accept": _number(report.accepted), "n_reject": _number(report.rejected)}
    return (result, info) if return_info and batch else result


def _number(values: Any) -> Any:
    """The number itself for a batch of one, otherwise a tensor [B]."""
    return values[0].item() if len(values) == 1 else torch.as_tensor(values)


def _watch(
    callback: Callback, x: Tensor, like_x: Callable[[Array], Tensor], where: str
) -> Callable[[Attempt], None]:
    def watch(a: Attempt) -> None:
        # k-diffusion's state is the caller's tensor until a step is accepted
        shown = a.x.to(x.dtype) if a.accepted.any() else x
        edits = Edits(where, a.x, shown, a.x0, False)

        def scalar(values: Array) -> Tensor:
            return like_x(values)[0] if len(values) == 1 else like_x(values)

        t = scalar(a.after)
        callback(
            {
                "sigma": (-t).exp(),
                "sigma_hat": (-t).exp(),
                "x": shown,
                "i": a.number,
                "t": t,
                "t_up": t,
                "denoised": a.x0.to(x.dtype, copy=True),
                "error": scalar(a.error),
                "h": _number(a.h),
                "steps": a.number + 1,
                "nfe": a.network_calls,
                "n_accept": _number(a.accepted),
                "n_reject": _number(a.rejected),
            }
        )
        edits.apply()

    return watch


def _noise(
    x: Tensor, noise_sampler: NoiseSampler | None, seed: int | None, where: str
) -> Callable[[int, Array, Array], Tensor] | None:
    """Returns noise(try, lambda, lambda_next), or None for a run without noise.

    A noise_sampler is called for the levels of every sample; otherwise noise is fastdiff's.
    """
    if noise_sampler is None:
        return (
            None
            if seed is None
            else lambda index, before, after: ops.randn(
                x.shape, seed=seed, step=index, stream=1, dtype=x.dtype, device=x.device
            )
        )

    def noise(index: int, before: Array, after: Array) -> Tensor:
        out = torch.zeros_like(x)
        for b in np.flatnonzero(before != after):
            sigma, sigma_next = x.new_tensor([math.exp(-before[b]), math.exp(-after[b])])
            out[b] = drawn(noise_sampler, sigma, sigma_next, x, where)[b]
        return out

    return noise
