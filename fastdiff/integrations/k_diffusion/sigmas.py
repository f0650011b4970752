"""k-diffusion's grids of sigma, from noise to data and ending in 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _finished(sigmas: Tensor, device: torch.device | str) -> Tensor:
    """The float64 levels and a zero, in torch's default dtype."""
    levels = torch.cat([sigmas, sigmas.new_zeros(1)])
    return levels.to(device=device, dtype=torch.get_default_dtype())


def _ramp(first: float, last: float, n: int) -> Tensor:
    return torch.linspace(first, last, n, dtype=torch.float64)


def get_sigmas_karras(
    n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: torch.device | str = "cpu"
) -> Tensor:
    """sigma^(1/rho) evenly spaced (Karras et al. 2022, eq. 5): [n + 1]."""
    return _finished(_ramp(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n) ** rho, device)


def get_sigmas_exponential(
    n: int, sigma_min: float, sigma_max: float, device: torch.device | str = "cpu"
) -> Tensor:
    """ln sigma evenly spaced: [n + 1]."""
    return _finished(_ramp(math.log(sigma_max), math.log(sigma_min), n).exp(), device)


def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: torch.device | str = "cpu"
) -> Tensor:
    """ln sigma along u^rho, u from 1 to 0: [n + 1]; rho = 1 is the exponential grid."""
    low, high = math.log(sigma_min), math.log(sigma_max)
    return _finished((low + _ramp(1.0, 0.0, n) ** rho * (high - low)).exp(), device)


def get_sigmas_vp(
    n: int,
    beta_d: float = 19.9,
    beta_min: float = 0.1,
    eps_s: float = 1e-3,
    device: torch.device | str = "cpu",
) -> Tensor:
    """sigma(t) = sqrt(e^(beta_d t²/2 + beta_min t) - 1), t evenly from 1 to eps_s (Karras et al.
    2022, table 1): [n + 1].
    """
    t = _ramp(1.0, eps_s, n)
    return _finished(torch.expm1(0.5 * beta_d * t**2 + beta_min * t).sqrt(), device)
