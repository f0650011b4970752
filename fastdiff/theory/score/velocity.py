"""The probability flow as motion on a circle: dy/dphi = v(y, phi).

Every Gaussian path x_t = alpha x0 + sigma eps has the same states up to a factor: y =
x_t/sqrt(alpha² + sigma²) = cos(phi) x0 + sin(phi) eps with tan(phi) = rho = sigma/alpha. The
probability-flow ODE (Song et al. 2021, eq. 13) of VP, VE, sub-VP and flow matching then is

    dy/dphi = cos(phi) eps - sin(phi) x0 = v,

the v-prediction (Salimans & Ho 2022, section 4 and appendix D). It has unit size and is regular at
both ends, clean data at phi = 0 and pure noise at phi = pi/2. Whatever a network predicts, v is
linear in its output and in y (fastdiff.prediction).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...prediction import to_eps_coefficients, to_x0_coefficients
from ...sampling.model_call import ModelCall
from ...schedule import Time
from ..tensors import per_sample

Array = NDArray[np.float64]


def angle(point: Time) -> float:
    """phi = atan(sigma/alpha)."""
    return math.atan2(point.sigma, point.alpha)


def radius(point: Time) -> float:
    """sqrt(alpha² + sigma²): a state divided by it is on the circle."""
    return math.hypot(point.alpha, point.sigma)


class Velocity:
    """v(y, phi) of a network.

    Args:
        call: the network's calls, with its schedule and prediction type.
        batch: the number of samples of the whole run, which index the network's arguments.
    """

    def __init__(self, call: ModelCall, batch: int):
        self.call, self.batch = call, batch

    def __call__(
        self, y: Tensor, phi: Array, samples: Tensor, *, differentiable: bool = False
    ) -> Tensor:
        """v [n, …] at y [n, …] and phi [n], for the samples of these indices in the batch.

        Raises ValueError if it must be differentiable and the network's output does not depend on
        its input.
        """
        cos, sin = np.cos(phi), np.sin(phi)
        size = self.call.schedule.geometry.radius(cos, sin)
        alpha, sigma, kind = size * cos, size * sin, self.call.parametrization
        scale, data = size, 1.0
        if kind.unit_input:  # the network's circle is that of x0/data (fastdiff.prediction)
            data = kind.sigma_data
            unit = np.hypot(alpha * data, sigma)
            scale, alpha, sigma = size / unit, alpha * data / unit, sigma / unit
        x0_x, x0_out = to_x0_coefficients(kind.prediction_type, alpha, sigma)
        eps_x, eps_out = to_eps_coefficients(kind.prediction_type, alpha, sigma)
        v_x, v_out = cos * eps_x - sin * data * x0_x, cos * eps_out - sin * data * x0_out
        x = y if (scale == 1.0).all() else per_sample(scale, y) * y
        out = self.call.part(samples, self.batch)(x, self._times(phi)).to(y.dtype)
        if differentiable and not out.requires_grad:
            raise ValueError(
                f"{self.call.where}: expected a network that can be differentiated in x, got an"
                " output without a gradient. Remove no_grad and detach from it."
            )
        return per_sample(v_x, y) * x + per_sample(v_out, y) * out

    def x0(self, y: Tensor, phi: Array, samples: Tensor) -> Tensor:
        """x0 = cos(phi) y - sin(phi) v."""
        return per_sample(np.cos(phi), y) * y - per_sample(np.sin(phi), y) * self(y, phi, samples)

    def _times(self, phi: Array) -> Array:
        """The network's times at these angles, [n]."""
        with np.errstate(divide="ignore"):
            log_snr = np.where(phi < 0.5 * math.pi, -2.0 * np.log(np.tan(phi)), -math.inf)
        return self.call.times_of_log_snr(log_snr)
