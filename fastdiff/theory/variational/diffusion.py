"""The diffusion loss of a variational diffusion model, at one time per sample, in nats.

    T steps      ½ T expm1(gamma(t) - gamma(s))·‖eps - eps^‖²,  t = i/T, s = (i - 1)/T
    T → ∞        ½ gamma'(t)·‖eps - eps^‖²

(Kingma et al. 2021, eq. 14 and 17.) The mean over t is the loss. In continuous time this mean
depends only on the end points of gamma, ½ ∫ ‖x0 - x̂0‖² dSNR (eq. 18): for Gaussian data N(m, s²) it
is ½ ln((1 + s² SNR_max)/(1 + s² SNR_min)) per dimension. The path between the end points changes
the variance of the estimate. It can be learned by E[L²], which has the gradient of the variance
(eq. 60–62).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...prediction import to_eps_coefficients
from .gamma import Gamma, point

Predict = Callable[[Tensor, Tensor], Tensor]


def diffusion_terms(
    predict: Predict,
    x0: Tensor,
    gamma: Gamma,
    u: Tensor,
    *,
    prediction_type: str = "epsilon",
    num_steps: int | None = None,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    step: int = 0,
    variance_path: float | None = None,
) -> Tensor:
    """Returns the loss at the times u, [B] in nats.

    For uniform u it is an unbiased estimate of the mean over all times.

    Args:
        predict: (z_t [B, …], gamma_t float64 [B]) -> output like z_t, of the prediction type.
        x0: [B, …].
        gamma: the schedule.
        u: float64 [B] in [0, 1].
        prediction_type: epsilon, x0, score, v or edm; all give the same loss for the same denoiser.
        num_steps: T; the step with (i - 1)/T <= u < i/T is used. None for T → ∞.
        seed, sample_ids, step: of the noise, stream 2; the fused loss regenerates it.
        variance_path: c, for continuous time only. The path s of gamma then gets the gradient of
            loss²/c instead of the loss; in the mean that is the gradient of the variance over c.
            The end points and the network get the gradient of the loss.

    Returns:
        [B] float64, with gradients to the network and gamma.
    """
    low, high = gamma.ends()
    counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
    if num_steps is None:
        s, slope = gamma.path(u.double())
        factor: list[Tensor] = []
        if variance_path is not None and s.requires_grad:
            # the factor is computed below, before the backward pass calls this hook
            s, slope = (v * 1.0 for v in (s, slope))
            for v in (s, slope):
                v.register_hook(lambda g: g * factor[0])
        gamma_t, weight = low + (high - low) * s, 0.5 * (high - low) * slope
    else:
        i = (u.double() * num_steps).floor().clamp(0, num_steps - 1) + 1
        gamma_t, gamma_s = gamma(i / num_steps)[0], gamma((i - 1) / num_steps)[0]
        weight = 0.5 * num_steps * torch.expm1(gamma_t - gamma_s)
    alpha, sigma = point(gamma_t)
    z_t = ops.q_sample(x0, None, alpha, sigma, **counter)
    coefficients = to_eps_coefficients(prediction_type, alpha, sigma)
    wide = (-1,) + (1,) * (x0.ndim - 1)
    output = predict(z_t, gamma_t)
    on_z_t, on_output = (
        torch.as_tensor(v, dtype=torch.float64, device=x0.device).expand_as(alpha).view(wide)
        for v in coefficients
    )
    eps = on_z_t.to(z_t.dtype) * z_t + on_output.to(output.dtype) * output
    terms = weight * math.prod(x0.shape[1:]) * ops.noise_mse(eps, **counter).double()
    if num_steps is None and variance_path is not None:
        factor.append(2 * terms.detach() / variance_path)
    return terms
