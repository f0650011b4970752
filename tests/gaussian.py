"""Gaussian data N(m, s²): the optimal denoiser and the samplers' results, in closed form.

With a = alpha² and V = a s² + 1 - a the denoiser is affine in x, so the result of a sampler is
affine in x_T and in the noise. Running it on 0, on 1 and on unit noise gives the result's mean and
variance without sampling error.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastdiff import Schedule, prediction


class Gaussian:
    """The optimal network for data N(mean, std²), for any prediction type."""

    def __init__(
        self,
        schedule: Schedule,
        prediction_type: str = "epsilon",
        mean: float = 0.0,
        std: float = 1.0,
    ):
        self.kind, self.mean, self.variance = prediction_type, mean, std**2
        self.alpha, self.sigma = (
            torch.from_numpy(v.copy()) for v in (schedule.alpha, schedule.sigma)
        )

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v[t].view(-1, *(1,) * (x.ndim - 1)) for v in (self.alpha, self.sigma))
        wide = x.to(torch.float64)
        total = alpha**2 * self.variance + sigma**2
        x0 = self.mean + alpha * self.variance / total * (wide - alpha * self.mean)
        eps = sigma * (wide - alpha * self.mean) / total
        return prediction.target(self.kind, x0, eps, alpha, sigma).to(x.dtype)


def ddim_gain(schedule: Schedule, timesteps: list[int], std: float = 1.0) -> float:
    """Returns the factor by which DDIM multiplies x_T on N(0, s²) data.

    It is prod (sqrt(a_p a_t) s² + sqrt((1 - a_p)(1 - a_t)))/V_t.
    """
    gain = 1.0
    for t, p in zip(timesteps, [*timesteps[1:], None], strict=True):
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]
        alpha_p, sigma_p = (1.0, 0.0) if p is None else (schedule.alpha[p], schedule.sigma[p])
        gain *= (alpha_p * alpha * std**2 + sigma_p * sigma) / (alpha**2 * std**2 + sigma**2)
    return float(gain)


def ddim_gain_by_angles(schedule: Schedule, timesteps: list[int]) -> float:
    """Returns the same factor on N(0, 1): prod cos(theta_t - theta_prev), cos theta = alpha."""
    theta = [math.atan2(schedule.sigma[t], schedule.alpha[t]) for t in timesteps] + [0.0]
    return float(np.prod([math.cos(a - b) for a, b in zip(theta, theta[1:], strict=False)]))


def ddpm_moments(
    schedule: Schedule, timesteps: list[int], variance_type: str
) -> tuple[float, float]:
    """Returns (gain on x_T, variance added by noise) of DDPM on N(0, 1) data.

    The posterior mean is sqrt(a_t/a_p)·x.
    """
    gain, variance = 1.0, 0.0
    for t, p in zip(timesteps, [*timesteps[1:], None], strict=True):
        a, one_minus = schedule.alphas_cumprod[t], schedule.one_minus_alphas_cumprod[t]
        a_p, one_minus_p = (
            (1.0, 0.0)
            if p is None
            else (schedule.alphas_cumprod[p], schedule.one_minus_alphas_cumprod[p])
        )
        beta = (one_minus - one_minus_p) / a_p
        noise = (
            0.0
            if p is None
            else beta * one_minus_p / one_minus
            if variance_type == "fixed_small"
            else beta
        )
        gain, variance = gain * math.sqrt(a / a_p), variance * (a / a_p) + noise
    return gain, variance
