"""Weights w(SNR) of noise levels, as factors of the squared error of a prediction.

The squared errors of one denoiser at the same x_t are related by (Luo 2022, eq. 99, 130 and 148;
Salimans & Ho 2022, section 4)

    ‖eps - eps^‖² = SNR ‖x0 - x̂0‖²,  ‖score - score^‖² = SNR/sigma² ‖x0 - x̂0‖²
    ‖v - v^‖² = (SNR + 1) ‖x0 - x̂0‖²,  if alpha² + sigma² = 1

The weights are

    simple   1 on epsilon                          Ho et al. 2020, eq. 14
    v        1 on v: SNR + 1 on x0                 Salimans & Ho 2022, section 4
    x0       1 on x0
    min_snr  min(SNR, 5) on x0                     Hang et al. 2023, eq. 8
    edm      SNR + 1/sigma_data² on x0             Karras et al. 2022, table 1:
                                                   (rho² + sigma_data²)/(rho sigma_data)²

The bound itself has the weight ½ (SNR_{t-1} - SNR_t) on x0 (Luo 2022, eq. 110), which needs two
noise levels: `vlb_weight`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...prediction import normalize, to_eps_coefficients

WEIGHTINGS = ("simple", "v", "x0", "min_snr", "edm")


def weight(name: str, log_snr: Tensor, *, cap: float = 5.0, sigma_data: float = 0.5) -> Tensor:
    """Returns the factor of ‖eps - eps^‖², float64 in the shape of log_snr.

    Args:
        name: one of WEIGHTINGS.
        log_snr: float64.
        cap: of `min_snr`.
        sigma_data: of `edm`, the standard deviation of the data.

    Raises ValueError for another name or numbers that are not positive.
    """
    if name not in WEIGHTINGS:
        raise ValueError(
            f"fastdiff.theory.variational.weight: expected weighting in {list(WEIGHTINGS)}, got"
            f" {name!r}."
        )
    if not (cap > 0 and sigma_data > 0):
        raise ValueError(
            f"fastdiff.theory.variational.weight: expected cap, sigma_data > 0, got {cap} and"
            f" {sigma_data}."
        )
    levels = log_snr.double()
    if name == "simple":
        return torch.ones_like(levels)
    inverse = torch.exp(-levels)  # 1/SNR: a weight on x0 is divided by SNR
    if name == "v":
        return 1 + inverse
    if name == "x0":
        return inverse
    if name == "min_snr":
        return torch.exp((math.log(cap) - levels).clamp(max=0.0))
    return 1 + inverse / sigma_data**2


def vlb_weight(log_snr_s: Tensor, log_snr_t: Tensor) -> Tensor:
    """Returns the factor of ‖eps - eps^‖² in the bound's term of the step s -> t, float64, >= 0.

    ½ expm1(log_snr_s - log_snr_t) = ½ (SNR_s - SNR_t)/SNR_t (Kingma et al. 2021, eq. 14).
    """
    return 0.5 * torch.expm1(log_snr_s.double() - log_snr_t.double())


def output_weight(prediction_type: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Returns ‖eps - eps^‖²/‖output error‖² for a prediction type at (alpha, sigma).

    A factor of the first squared error times this ratio is the factor of the second.
    """
    _, out = to_eps_coefficients(normalize(prediction_type), alpha.double(), sigma.double())
    return (
        torch.as_tensor(out).square().expand_as(alpha)
        if not isinstance(out, float)
        else torch.full_like(alpha, out**2)
    )
