"""Prediction types: six linear views of one denoiser.

With x_t = alpha x0 + sigma eps every common network output is a linear combination of x_t and x0:

    epsilon  eps   = (x_t - alpha x0)/sigma   (Ho et al. 2020, eq. 9)
    x0       x0
    v        v     = alpha eps - sigma x0     (Salimans & Ho 2022, section 4)
    score    s     = -eps/sigma               (Song et al. 2021, eq. 7; Tweedie, Luo 2022, eq. 133)
    flow     u     = eps - x0                 (Lipman et al. 2023, for alpha = 1 - sigma)
    edm      F     = -v                       (Karras et al. 2022, eq. 7 and table 1, unit data)

A type is therefore a pair (a, b) with output = a·x0 + b·eps, and a conversion is 2×2 linear
algebra. The coefficients are computed without differences, so they keep their digits. alpha² +
sigma² = 1 is not assumed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

PREDICTION_TYPES = ("epsilon", "x0", "v", "score", "flow", "edm")
_ALIASES = {"sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


def normalize(prediction_type: str) -> str:
    """The canonical name of a prediction type.

    The aliases are `sample` (x0), `v_prediction` and `flow_prediction`. Raises ValueError for an
    unknown type.
    """
    name = _ALIASES.get(prediction_type, prediction_type)
    if name not in PREDICTION_TYPES:
        raise ValueError(
            f"fastdiff.prediction: expected prediction_type in {list(PREDICTION_TYPES)}, got"
            f" {prediction_type!r}."
        )
    return name


def to_x0_coefficients(prediction_type: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """(a, b) with x0 = a·x_t + b·output, for alpha and sigma floats, arrays or tensors.

    epsilon and score need alpha > 0.
    """
    kind = normalize(prediction_type)
    zero, one = 0.0 * alpha, 0.0 * alpha + 1.0
    if kind == "epsilon":
        return 1.0 / alpha, -sigma / alpha
    if kind == "x0":
        return zero, one
    if kind == "v":
        norm = alpha * alpha + sigma * sigma
        return alpha / norm, -sigma / norm
    if kind == "edm":
        norm = alpha * alpha + sigma * sigma
        return alpha / norm, sigma / norm
    if kind == "score":
        return 1.0 / alpha, sigma * sigma / alpha
    return 1.0 / (alpha + sigma), -sigma / (alpha + sigma)


def to_eps_coefficients(prediction_type: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """(a, b) with eps = a·x_t + b·output. The type x0 needs sigma > 0."""
    kind = normalize(prediction_type)
    zero, one = 0.0 * alpha, 0.0 * alpha + 1.0
    if kind == "epsilon":
        return zero, one
    if kind == "x0":
        return 1.0 / sigma, -alpha / sigma
    if kind == "v":
        norm = alpha * alpha + sigma * sigma
        return sigma / norm, alpha / norm
    if kind == "edm":
        norm = alpha * alpha + sigma * sigma
        return sigma / norm, -alpha / norm
    if kind == "score":
        return zero, -sigma
    return 1.0 / (alpha + sigma), alpha / (alpha + sigma)


def target(prediction_type: str, x0: Any, eps: Any, alpha: Any, sigma: Any) -> Any:
    """The output that a network of this type should give for x_t = alpha x0 + sigma eps.

    Arguments broadcast. The score needs sigma > 0.
    """
    kind = normalize(prediction_type)
    if kind == "epsilon":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return alpha * eps - sigma * x0
    if kind == "score":
        return -eps / sigma
    if kind == "edm":
        return sigma * x0 - alpha * eps
    return eps - x0


def convert(source: str, destination: str, output: Any, x_t: Any, alpha: Any, sigma: Any) -> Any:
    """Converts an output of the type `source` to the type `destination`.

    At pure noise (alpha = 0) epsilon and the score give each other and no other type. At clean data
    (sigma = 0) x0 and the score give x0 only, and no type gives the score.

    Args:
        source, destination: prediction types.
        output, x_t: [B, …].
        alpha, sigma: floats, or arrays or tensors that broadcast, [B, 1, …].

    Raises:
        ValueError: an unknown type, or alpha = 0 or sigma = 0 in a conversion that is undefined
            there. Numbers, arrays and CPU tensors are checked. Those on a device are not read: the
            result has inf or nan in such samples.
    """
    source, destination = normalize(source), normalize(destination)
    if source == destination:
        return output
    of_noise = ("epsilon", "score")
    if source in of_noise and destination not in of_noise:
        _refuse_zero("alpha", "pure noise", alpha, source, destination)
    if destination == "score" or (source in ("x0", "score") and destination != "x0"):
        _refuse_zero("sigma", "clean data", sigma, source, destination)
    x0 = eps = None  # what the destination does not need may be undefined
    if destination not in of_noise:
        a, b = to_x0_coefficients(source, alpha, sigma)
        x0 = a * x_t + b * output
    if destination != "x0":
        c, d = to_eps_coefficients(source, alpha, sigma)
        eps = c * x_t + d * output
    return target(destination, x0, eps, alpha, sigma)


def _refuse_zero(name: str, where: str, value: Any, source: str, destination: str) -> None:
    """Raises ValueError if a value that the host has is 0."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu" or torch.compiler.is_compiling():
            return
        try:
            zero = bool((value == 0).any())
        except RuntimeError:  # a fake, traced or mapped tensor has no values to read
            return
    else:
        zero = bool(np.any(np.asarray(value) == 0))
    if zero:
        raise ValueError(
            f"fastdiff.prediction.convert: expected {name} > 0, got 0 ({where}), where"
            f" {source} does not determine {destination}. Leave out that point."
        )


class Coefficients(NamedTuple):
    """The coefficients of a network at one point of a schedule.

    Its input is scale·x_t; x0 = x0_x·x_t + x0_out·output; eps = eps_x·x_t + eps_out·output.
    """

    scale: float
    x0_x: float
    x0_out: float
    eps_x: float
    eps_out: float


class Parametrization(NamedTuple):
    """The input and output conventions of a network, for a state x_t = alpha x0 + sigma eps.

    Attributes:
        prediction_type: the type of the output.
        unit_input: False if the input is x_t. True if it is x_t/sqrt(alpha² sigma_data² + sigma²),
            which has unit variance; prediction_type then refers to that space, where the data are
            x0/sigma_data. With alpha = 1 this is the input of networks trained on variance-
            preserving noise (sigma_data = 1) and, with the type `edm`, the preconditioning of
            Karras et al. 2022, table 1: c_in = 1/sqrt(sigma² + sigma_data²), c_skip = sigma_data²
            c_in², c_out = sigma sigma_data c_in.
        sigma_data: the standard deviation of the data, used with unit_input.
    """

    prediction_type: str = "epsilon"
    unit_input: bool = False
    sigma_data: float = 1.0

    def at(self, alpha: float, sigma: float) -> Coefficients:
        """The coefficients at a point (alpha, sigma).

        Raises:
            ValueError: the type is undefined there, which is the case for epsilon and the score at
                alpha = 0, and for x0 and the score at sigma = 0.
        """
        kind = normalize(self.prediction_type)
        if (alpha == 0 and kind in ("epsilon", "score")) or (
            sigma == 0 and kind in ("x0", "score")
        ):
            where = "pure noise (alpha = 0)" if alpha == 0 else "clean data (sigma = 0)"
            raise ValueError(
                f"fastdiff.prediction: expected a prediction type that is defined at {where}, got"
                f" {kind!r}. Train v or flow, or choose a grid without that point."
            )
        scale, data = 1.0, 1.0
        if self.unit_input:
            data = self.sigma_data
            scale = 1.0 / math.hypot(alpha * data, sigma)
            alpha, sigma = alpha * data * scale, sigma * scale
        a, b = to_x0_coefficients(self.prediction_type, alpha, sigma)
        c, d = to_eps_coefficients(self.prediction_type, alpha, sigma)
        return Coefficients(scale, data * a * scale, data * b, c * scale, d)
