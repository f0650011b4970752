"""The diffusion loss of a variational diffusion model, at one time per sample, in nats.

    T steps      ½ T expm1(gamma(t) - gamma(s))·‖eps - eps^‖²,  t = i/T, s = (i - 1)/T     (Kingma et al. 2021, eq. 14)
    T → ∞        ½ gamma'(t)·‖eps - eps^‖²                                                  (ibid., eq. 17)

Its mean over t is the loss. In continuous time that mean depends on the ends of gamma alone,
½ ∫ ‖x0 - x̂0‖² dSNR (eq. 18): for Gaussian data N(m, s²) ½ ln((1 + s² SNR_max)/(1 + s² SNR_min)) a
dimension. The path between the ends changes the variance, and can be learned by E[L²], whose
gradient is the variance's (eq. 60–62).
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
    """The loss at the times u, [B] in nats: an unbiased estimate of the whole one for uniform u.

    Args:
        predict: (z_t [B, …], gamma_t float64 [B]) -> output like z_t, of the prediction type.
        x0: [B, …]. gamma: the schedule. u: float64 [B] in [0, 1].
        prediction_type: epsilon, x0, score, v or edm; all give the same loss for the same denoiser.
        num_steps: T; the step with (i - 1)/T <= u < i/T is taken. None for T → ∞.
        seed, sample_ids, step: of the noise, stream 2; the fused loss regenerates it.
        variance_path: c, in continuous time alone: the path s of gamma then gets the gradient of
            loss²/c instead of the loss's, in mean that of the variance over c; the ends and the
            network keep the gradient of the loss.

    Returns:
        [B] float64, with gradients to the network and gamma.
    """
    low, high = gamma.ends()
    counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
    if num_steps is None:
        s, slope = gamma.path(u.double())
        factor: list[Tensor] = []
        if variance_path is not None and s.requires_grad:
            # the sample's own loss is known only below: the gradient passes here later
            s, slope = (v * 1.0 for v in (s, slope))
            for v in (s, slope):
                v.register_hook(lambda g: g * factor[0])
        gamma_t, weight = low + (high - low) * s, 0.5 * (high - low) * slope
    else:
        i = (u.double() * num_steps).floor().clamp(0, num_steps - 1) + 1
        gamma_t, before = gamma(i / num_steps)[0], gamma((i - 1) / num_steps)[0]
        weight = 0.5 * num_steps * torch.expm1(gamma_t - before)
    alpha, sigma = point(gamma_t)
    z_t = ops.q_sample(x0, None, alpha, sigma, **counter)
    keep, out = to_eps_coefficients(prediction_type, alpha, sigma)
    wide = (-1,) + (1,) * (x0.ndim - 1)
    output = predict(z_t, gamma_t)
    keep, out = (
        torch.as_tensor(v, dtype=torch.float64, device=x0.device).expand_as(alpha).view(wide)
        for v in (keep, out)
    )
    eps = keep.to(z_t.dtype) * z_t + out.to(output.dtype) * output
    terms = weight * math.prod(x0.shape[1:]) * ops.noise_mse(eps, **counter).double()
    if num_steps is None and variance_path is not None:
        factor.append(2 * terms.detach() / variance_path)
    return terms
