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
    p2       (k + SNR)^-gamma on epsilon           Choi et al. 2022, eq. 8
    sigmoid  sigmoid(bias - ln SNR) on epsilon,    Kingma & Gao 2023, section 4 and appendix B;
             as a density over ln SNR              Hoogeboom et al. 2024, section 3

The bound itself has the weight ½ (SNR_{t-1} - SNR_t) on x0 (Luo 2022, eq. 110), which needs two
noise levels: `vlb_weight`. `sigmoid` multiplies the same integral, ½ ∫ ‖eps - eps^‖² d ln SNR.

A training draws timesteps of a schedule; `timestep_weights` has the factors of the error of its
network's output at all of them, for any prediction type.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...prediction import normalize, to_eps_coefficients, to_x0_coefficients
from ...schedule import Schedule
from ..likelihood.table import steps

WEIGHTINGS = ("simple", "v", "x0", "min_snr", "edm", "p2", "sigmoid")
# of a schedule's timesteps: `output` is 1 on the network's own output
TIMESTEP_WEIGHTINGS = ("output", *WEIGHTINGS, "vlb")


def weight(
    name: str,
    log_snr: Tensor,
    *,
    cap: float = 5.0,
    sigma_data: float = 0.5,
    k: float = 1.0,
    gamma: float = 1.0,
    bias: float = 2.0,
) -> Tensor:
    """Returns the factor of ‖eps - eps^‖², float64 in the shape of log_snr.

    Args:
        name: one of WEIGHTINGS.
        log_snr: float64.
        cap: of `min_snr`.
        sigma_data: of `edm`, the standard deviation of the data.
        k, gamma: of `p2`.
        bias: of `sigmoid`, whose factor here is that of a density over ln SNR.

    Raises ValueError for another name or numbers that are not positive.
    """
    if name not in WEIGHTINGS:
        raise ValueError(
            f"fastdiff.theory.variational.weight: expected weighting in {list(WEIGHTINGS)}, got"
            f" {name!r}."
        )
    if not (cap > 0 and sigma_data > 0 and k > 0):
        raise ValueError(
            f"fastdiff.theory.variational.weight: expected cap, sigma_data, k > 0, got {cap},"
            f" {sigma_data} and {k}."
        )
    levels = log_snr.double()
    if name == "simple":
        return torch.ones_like(levels)
    if name == "sigmoid":
        return torch.sigmoid(bias - levels)
    if name == "p2":
        return torch.exp(-gamma * torch.logaddexp(torch.full_like(levels, math.log(k)), levels))
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


def timestep_weights(
    name: str,
    schedule: Schedule,
    prediction_type: str = "epsilon",
    *,
    of: str | None = None,
    sigma_data: float = 0.5,
) -> Tensor:
    """Returns the factors of the mean squared error of the output at all timesteps, float64 [T].

    For timesteps drawn uniformly. With `vlb` the mean is the bound's denoising and reconstruction
    terms, up to a constant, in nats per dimension.

    Args:
        name: one of TIMESTEP_WEIGHTINGS.
        schedule: of the timesteps.
        prediction_type: what the network gives.
        of: for `output`, the prediction type on which the weight is 1; None for prediction_type.
        sigma_data: of `edm`.

    Raises:
        ValueError: for another name, and where a factor is infinite, as `sigmoid` is at pure noise.
    """
    if name not in TIMESTEP_WEIGHTINGS:
        raise ValueError(
            "fastdiff.theory.variational.weights: expected weighting in"
            f" {list(TIMESTEP_WEIGHTINGS)}, got {name!r}."
        )
    alpha, sigma = torch.tensor(schedule.alpha), torch.tensor(schedule.sigma)
    levels, size = torch.tensor(schedule.log_snr), schedule.num_train_timesteps
    if name == "output" and (of is None or normalize(of) == normalize(prediction_type)):
        return torch.ones(size, dtype=torch.float64)
    own = output_weight(prediction_type, alpha, sigma)
    if name == "output":
        factors = own / output_weight(str(of), alpha, sigma)
    elif name == "vlb":
        factors = size * _bound_weights(schedule, levels) * own
    elif name == "sigmoid":
        falls = (levels[:-1] - levels[1:]) if size > 1 else levels.new_ones(1)
        falls = torch.cat([falls[:1], falls])  # the first level has none before it
        factors = 0.5 * size * falls * weight(name, levels) * own
    else:
        factors = weight(name, levels, sigma_data=sigma_data) * own
    pure = levels.isinf() & ~factors.isfinite()
    if bool(pure.any()) and name != "sigmoid":
        # at pure noise epsilon is known and its weights are infinite: those of x0 are not
        before = torch.cat([levels[:1], levels[:-1]])[pure].exp()
        limit = {"v": 1.0, "x0": 1.0, "edm": sigma_data**-2, "vlb": 0.5 * size * before}
        on_x0 = torch.as_tensor(limit.get(name, 0.0))
        if name == "output":
            on_x0 = 1 / _on_x0(str(of), alpha[pure], sigma[pure])
        factors[pure] = on_x0 * _on_x0(prediction_type, alpha[pure], sigma[pure])
    if not bool(factors.isfinite().all()):
        t = int((~factors.isfinite()).nonzero()[0])
        raise ValueError(
            f"fastdiff.theory.variational.weights: expected a finite weight {name!r} of"
            f" {prediction_type!r}, got {float(factors[t])} at timestep {t}. Choose another"
            " weighting or a schedule without pure noise."
        )
    return factors


def _on_x0(prediction_type: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Returns ‖x0 - x̂0‖²/‖output error‖² for a prediction type at (alpha, sigma)."""
    _, out = to_x0_coefficients(prediction_type, alpha, sigma)
    return torch.as_tensor(out, dtype=torch.float64).square().expand_as(alpha)


def _bound_weights(schedule: Schedule, levels: Tensor) -> Tensor:
    """Returns the factors of ‖eps - eps^‖² in the bound's terms, [T].

    At t = 0 it is that of a Gaussian decoder with the variance of the next posterior.
    """
    posterior = steps(schedule).posterior
    variance = posterior[1] if len(posterior) > 1 else steps(schedule).variance[0]
    first = 0.5 * torch.exp(-levels[:1]) / float(variance)
    return torch.cat([first, vlb_weight(levels[:-1], levels[1:])])
