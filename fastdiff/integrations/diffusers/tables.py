"""Training tables as diffusers computes them: beta, alpha_bar_t and sigma_t.

alpha_bar_t = prod(1 - beta_i) and sigma_t² = 1/alpha_bar_t - 1. A drop-in reproduces diffusers'
numbers, so its plans start from the tables that diffusers rounds: they are computed in `FLOAT` with
the same operations. Everything after that is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...schedule import CLEAN, Time, on_curve

FLOAT = torch.float32
"""The dtype of diffusers' tables; tests that compare formulas alone set float64 on both sides."""


def numpy_float() -> Any:
    """NumPy's type of the dtype `FLOAT`."""
    return np.dtype(str(FLOAT).removeprefix("torch.")).type


def _cosine(u: float) -> float:
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(u: float) -> float:
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * math.fabs(0.5 - u) + 1e-6))
    return math.sqrt(snr / (1 + snr))


def _exponential(u: float) -> float:
    return math.exp(-12.0 * u)


def _from_curve(curve: Callable[[float], float], size: int) -> Tensor:
    """Betas, at most 0.999, of a curve alpha_bar(u), u in [0, 1] (Nichol & Dhariwal, eq. 17)."""
    values = [min(1 - curve((i + 1) / size) / curve(i / size), 0.999) for i in range(size)]
    return torch.tensor(values, dtype=FLOAT)


def betas(config: Mapping[str, Any], where: str) -> Tensor:
    """beta_t [T] of a scheduler's configuration.

    Raises NotImplementedError for a schedule that diffusers lacks.
    """
    if config.get("trained_betas") is not None:
        table = torch.tensor(config["trained_betas"], dtype=FLOAT)
    else:
        start, end = config.get("beta_start", 0.0), config.get("beta_end", 0.0)
        size, name = config["num_train_timesteps"], config["beta_schedule"]
        curves = {"squaredcos_cap_v2": _cosine, "laplace": _laplace, "exp": _exponential}
        if name == "linear":
            table = torch.linspace(start, end, size, dtype=FLOAT)
        elif name == "scaled_linear":
            table = torch.linspace(start**0.5, end**0.5, size, dtype=FLOAT) ** 2
        elif name == "sigmoid":
            table = torch.sigmoid(torch.linspace(-6, 6, size, dtype=FLOAT)) * (end - start) + start
        elif name in curves:
            table = _from_curve(curves[name], size)
        else:
            known = ["linear", "scaled_linear", "sigmoid", *curves]
            raise NotImplementedError(
                f"fastdiff.{where}: expected beta_schedule in {known}, got {name!r}."
            )
    return zero_terminal_snr(table) if config.get("rescale_betas_zero_snr") else table


def zero_terminal_snr(table: Tensor) -> Tensor:
    """Betas whose alpha_bar ends at 0 (Lin et al. 2024, algorithm 1)."""
    alphas_cumprod = zero_terminal(torch.cumprod(1.0 - table, dim=0))
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


def zero_terminal(alphas_cumprod: Tensor) -> Tensor:
    """alpha_bar with its root shifted and scaled to end at 0."""
    root = alphas_cumprod.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * (first / (first - last))) ** 2


def sigmas(alphas_cumprod: Tensor) -> NDArray[Any]:
    """sigma/alpha of every training timestep, in `FLOAT`."""
    return (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).numpy()


def preserving(t: float, alpha_squared: float) -> Time:
    """The variance-preserving point of an alpha_bar; 0 is pure noise and 1 clean data."""
    if alpha_squared == 1:
        return CLEAN
    log_snr = (
        math.log(alpha_squared) - math.log1p(-alpha_squared) if alpha_squared > 0 else -math.inf
    )
    return Time(float(t), math.sqrt(alpha_squared), math.sqrt(1.0 - alpha_squared), log_snr)


def exploding(t: float, sigma: float) -> Time:
    """The point x = x0 + sigma eps."""
    return Time(float(t), 1.0, sigma, -2.0 * math.log(sigma)) if sigma > 0 else CLEAN


def flowing(sigma: float) -> Time:
    """The point x = (1 - sigma) x0 + sigma eps; its time is sigma."""
    if sigma == 0:
        return CLEAN
    return Time(
        sigma,
        1.0 - sigma,
        sigma,
        2.0 * (math.log1p(-sigma) - math.log(sigma)) if sigma < 1 else -math.inf,
    )


class Points:
    """The points that a formula may use between those of its grid."""

    def __init__(self, space: str, at: Callable[[float], Time]):
        self.space, self.at = space, at

    def at_log_snr(self, log_snr: float) -> Time:
        """The point of a log-SNR.

        It has no time: the network's times are the scheduler's timesteps.
        """
        return Time(math.nan, *on_curve(self.space, log_snr), log_snr)

    def network_time(self, point: Time) -> float:
        """A placeholder: the plan's times are replaced by the scheduler's timesteps."""
        return 0.0
