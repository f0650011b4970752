"""k-diffusion's DPM-Solver with a fixed number of calls and with adaptive steps (Lu et al.
2022a).
"""

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
from ...sampling.adaptive.dpm import Array, Attempt, integrate
from ...sampling.adaptive.fast import dpm_fast_formula, fast_orders, fast_times
from .loop import Callback, Model, NoiseSampler, run_recipe
from .plans import Recipe, Sigmas, make, point
from .samplers import Extra


def _ends(where: str, sigma_min: float, sigma_max: float) -> tuple[float, float]:
    low, high = float(sigma_min), float(sigma_max)
    if not (0 < low < math.inf and 0 < high < math.inf):
        raise ValueError(
            f"fastdiff.k_diffusion.{where}: expected sigma_min and sigma_max > 0, got {low} and"
            f" {high}."
        )
    return low, high


@functools.lru_cache(maxsize=64)
def _fast(low: float, high: float, calls: int, eta: float, s_noise: float) -> Recipe:
    times, orders = fast_times(Sigmas(), point(high), point(low), calls)

    def formula(trace: Any, times: Any) -> Any:
        return dpm_fast_formula(trace, times, orders, eta=eta, s_noise=s_noise)

    return make(formula, tuple(t.sigma for t in times), orders)


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
    """DPM-Solver-fast: n network calls in steps of order 3, even in ln sigma (Lu et al. 2022a,
    section 3.4).

    Arguments: see `fastdiff.integrations.k_diffusion.samplers`; callbacks also get t and t_up = -ln
        sigma.
    """
    low, high = _ends("sample_dpm_fast", sigma_min, sigma_max)
    if eta and not high > low:
        raise ValueError(
            "fastdiff.k_diffusion.sample_dpm_fast: expected eta = 0 from data to noise, got"
            f" {eta!r}."
        )
    fast_orders(n)
    recipe = _fast(low, high, n, float(eta), float(s_noise))
    sigmas = torch.tensor(recipe.sigmas, device=x.device, dtype=x.dtype)
    times = -sigmas.log()

    def further(step: int) -> dict[str, Any]:
        return {"t": times[step], "t_up": times[step]}

    return run_recipe(
        recipe, model, x, sigmas, extra_args, callback, disable, noise_sampler, False, further
    )


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
    """DPM-Solver-12 and -23 with adaptive steps (Lu et al. 2022a, appendix C), for every sample by
    itself.

    k-diffusion measures one error for the whole batch, so that neighbours change a sample; at batch
    1 both agree. In callbacks and info the numbers of a batch are tensors [B]: steps tried, taken
    (n_accept) and refused (n_reject); nfe and steps are those of the sample that needed most.
    """
    low, high = _ends("sample_dpm_adaptive", sigma_min, sigma_max)
    arguments, batch = dict(extra_args or {}), x.shape[0]
    wide = x if x.dtype == torch.float64 else x.float()

    def told(values: Array) -> Tensor:
        return torch.as_tensor(values, dtype=x.dtype).to(x.device)

    with tqdm(disable=disable) as bar:

        def denoise(state: Tensor, half_log_snr: Array) -> Tensor:
            bar.update()
            return model(state.to(x.dtype), told(np.exp(-half_log_snr)), **arguments).to(
                state.dtype
            )

        seed = int(torch.randint(2**63 - 1, ())) if eta and noise_sampler is None else None
        x_s, report = integrate(
            denoise,
            wide,
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
            noise=_noise(wide, noise_sampler, seed),
            watch=_watch(callback, told, order) if callback else None,
        )
    result = x_s.to(x.dtype)
    tries = (report.accepted + report.rejected).max(initial=0)
    info = {"steps": int(tries), "nfe": report.network_calls}
    info |= {"n_accept": _number(report.accepted), "n_reject": _number(report.rejected)}
    return (result, info) if return_info and batch else result


def _number(values: Any) -> Any:
    """The number of a batch of one, a tensor [B] of others."""
    return values[0].item() if len(values) == 1 else torch.as_tensor(values)


def _watch(
    callback: Callback, told: Callable[[Array], Tensor], order: int
) -> Callable[[Attempt], None]:
    def watch(a: Attempt) -> None:
        def scalar(values: Array) -> Tensor:
            return told(values)[0] if len(values) == 1 else told(values)

        t = scalar(a.after)
        callback(
            {
                "sigma": (-t).exp(),
                "sigma_hat": (-t).exp(),
                "x": a.x,
                "i": a.number,
                "t": t,
                "t_up": t,
                "denoised": a.x0,
                "error": scalar(a.error),
                "h": _number(a.h),
                "steps": a.number + 1,
                "nfe": a.network_calls,
                "n_accept": _number(a.accepted),
                "n_reject": _number(a.rejected),
            }
        )

    return watch


def _noise(
    x: Tensor, noise_sampler: NoiseSampler | None, seed: int | None
) -> Callable[[int, Array, Array], Tensor] | None:
    """noise(try, lambda, lambda_next) of fastdiff, or of a host's sampler, asked about each
    sample's own levels.
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
            sigmas = x.new_tensor([math.exp(-before[b]), math.exp(-after[b])])
            out[b] = noise_sampler(*sigmas)[b]
        return out

    return noise
