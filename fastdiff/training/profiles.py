"""Averages of the weights with power-function profiles, and their combinations.

    average(t) = ∫_0^t p(τ, t) weights(τ) dτ,    p(τ, t) = (γ + 1) τ^γ / t^(γ+1)

(Karras et al. 2024, arXiv 2312.02696, section 3.1.) The profile keeps its shape while the run gets
longer: its width relative to t is sigma_rel = √((γ + 1)/((γ + 2)² (γ + 3))). With one set of
weights per step it is the recursion

    average_k = β_k average_(k-1) + (1 - β_k) weights_k,    β_k = (1 - 1/k)^(γ+1)

Averages that were stored at several steps span a space of profiles. The one that is
nearest to another profile, in the least-squares sense, gives an average of any length afterwards
(section 3.2 and appendix C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..grad_mode import restored

Numbers = np.ndarray | np.floating
# γ = 0, the mean of all weights, has 1/√12 = 0.2887
LARGEST_SIGMA_REL = 0.28


def exponent(sigma_rel: float) -> float:
    """Returns γ > 0 for a relative length: the largest root of (γ+2)²(γ+3) = (γ+1)/sigma_rel².

    Raises ValueError for a length outside (0, LARGEST_SIGMA_REL].
    """
    if not 0 < sigma_rel <= LARGEST_SIGMA_REL:
        raise ValueError(
            f"fastdiff.training: expected sigma_rel in (0, {LARGEST_SIGMA_REL}], got {sigma_rel}."
        )
    square = float(sigma_rel) ** -2
    return float(np.roots([1.0, 7.0, 16.0 - square, 12.0 - square]).real.max())


def relative_length(gamma: float) -> float:
    """Returns sigma_rel of γ: the inverse of `exponent`."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def product(t_a: Numbers, gamma_a: Numbers, t_b: Numbers, gamma_b: Numbers) -> Any:
    """Returns ∫ p_a(τ) p_b(τ) dτ for profiles that end at t_a and t_b; the arguments broadcast.

    (γ_a+1)(γ_b+1)/(γ_a+γ_b+1) · m^(γ_a+γ_b+1) / (t_a^(γ_a+1) t_b^(γ_b+1)), m = min(t_a, t_b)
    (Karras et al. 2024, appendix C.2). Computed by logarithms: the powers overflow.
    """
    total = gamma_a + gamma_b + 1
    exponents = (
        total * np.log(np.minimum(t_a, t_b))
        - (gamma_a + 1) * np.log(t_a)
        - (gamma_b + 1) * np.log(t_b)
    )
    return (gamma_a + 1) * (gamma_b + 1) / total * np.exp(exponents)


def combination(
    stored: Sequence[tuple[float, float]], target: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Returns (factors [n], error) of the combination of stored profiles nearest to a target.

    The factors minimise ‖Σ_i x_i p_i - p‖² (Karras et al. 2024, appendix C) under Σ_i x_i = 1,
    which the paper does not ask for: the average of constant weights is then these weights.

    Args:
        stored: (t, γ) of each average.
        target: (t, γ).

    Returns:
        The factors, float64, and the distance √(‖Σ_i x_i p_i - p‖²/‖p‖²) of the two profiles.
    """
    t, gamma = (np.array(v, dtype=np.float64) for v in zip(*stored, strict=True))
    end, wanted = (np.float64(v) for v in target)
    # in units of the target's time, for numbers near 1
    t, end = t / end, np.float64(1.0)
    gram = product(t[:, None], gamma[:, None], t[None], gamma[None])
    right = product(t, gamma, end, wanted)
    # profiles of unit norm make the system as well-conditioned as it can be by scaling
    norms = np.sqrt(np.diag(gram))
    n = len(norms)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = gram / np.outer(norms, norms)
    system[:n, n] = system[n, :n] = 1 / norms
    solved = np.linalg.lstsq(system, np.append(right / norms, 1.0), rcond=1e-13)[0]
    factors = solved[:n] / norms
    length = float(product(end, wanted, end, wanted))
    square = float(factors @ gram @ factors - 2 * factors @ right) + length
    return factors, math.sqrt(max(square, 0.0) / length)


class PowerAverage:
    """An average of tensors with the profile of a relative length.

    Args:
        parameters: the tensors that are averaged.
        sigma_rel: the relative length.

    Attributes:
        values: the averages, in the order of the parameters.
    """

    def __init__(self, parameters: Sequence[Tensor], sigma_rel: float):
        self.sigma_rel, self.gamma = sigma_rel, exponent(sigma_rel)
        self.values = [p.detach().clone() for p in parameters]

    @restored
    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor], step: int) -> None:
        """Includes the weights after `step` steps; the first step is 1."""
        # 1 - β by expm1: β is near 1
        weight = -math.expm1((self.gamma + 1) * math.log1p(-1 / step)) if step > 1 else 1.0
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], weight)
