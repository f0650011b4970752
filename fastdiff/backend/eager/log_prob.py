"""log N(x_s; mean, std² I) of a row's draw on torch (kernels/README.md section 13).

A step that is being sampled and one that is scored later use the same functions on the same values,
so both give the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .elementary import exp
from .sums import sum_samples

HALF_LOG_2PI = 0.91893853320467274178


def drawn(
    where: str, c: Tensor, row: Tensor, valid: Tensor | None, message: str | None
) -> Tensor | None:
    """Returns `valid` [B] without the samples whose next x has no noise, which c [B] says.

    On the CPU, with a message, they are refused.
    """
    noisy = c != 0
    if c.device.type == "cpu" and message is not None:
        if not bool(noisy.all()):
            at = int((~noisy).to(torch.int8).argmax())
            raise ValueError(
                f"fastdiff.{where}: expected rows that draw noise, got row {int(row[at])} at index"
                f" {at}, which draws none. A step without noise has no density."
            )
        return valid
    return noisy if valid is None else valid & noisy


def standardised(r: Any, mean: Tensor, x_s: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (x_s - mean)/std and 1/std, per element; `r` is a Row of reverse_step."""
    inverse = (1.0 / r.coefficient("x.z").double().abs()).to(mean.dtype)
    y = (x_s.to(mean.dtype) - mean) * inverse
    if r.half_logvar is None:
        return y, inverse.expand_as(y)
    learned, narrow = r.coefficient("noise_mode") == 1, exp(-r.half_logvar)
    return torch.where(learned, y * narrow, y), torch.where(learned, inverse * narrow, inverse)


def of_samples(r: Any, mean: Tensor, x_s: Tensor, *, average: bool = False) -> Tensor:
    """Returns the log-probability of each sample, float64 [B]; with `average` per element."""
    y, _ = standardised(r, mean, x_s)
    terms = (y * y) * 0.5
    if r.half_logvar is not None:
        terms = torch.where(r.coefficient("noise_mode") == 1, terms + r.half_logvar, terms)
    n = math.prod(mean.shape[1:])
    c = r.coefficient("x.z").double().abs().reshape(len(mean))
    return of_sums(sum_samples(terms), c, n, average=average)


def of_sums(sums: Tensor, deviation: Tensor, n: int, *, average: bool) -> Tensor:
    """Returns the log-probabilities from sums of n terms and |c_z|, both float64 [B]."""
    if n == 0:
        return torch.zeros_like(sums)
    value = (-sums - n * deviation.log()) - n * HALF_LOG_2PI
    return value / n if average else value
