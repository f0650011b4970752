"""Comparisons of results with the NumPy oracle and with other networks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def as_numpy(x: Tensor) -> np.ndarray:
    """Returns a tensor as a NumPy array; half precision becomes float32."""
    x = x.detach().cpu()
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).numpy()


def first_and_last(batch: int) -> list[int]:
    """Returns the samples that are compared with NumPy: the first and the last."""
    return sorted({0, batch - 1})


def same_bits(got: Tensor, expected: np.ndarray, what: str) -> None:
    """Raises AssertionError unless `got` is the oracle's value, rounded once to its dtype."""
    rounded = torch.from_numpy(np.ascontiguousarray(expected)).to(got.dtype)
    if not torch.equal(got.cpu(), rounded):
        largest = float((got.cpu().double() - rounded.double()).abs().max())
        raise AssertionError(f"{what}: expected NumPy's bits, got differences up to {largest:.3g}")


def near(got: Tensor, expected: np.ndarray, rtol: float, what: str) -> None:
    np.testing.assert_allclose(as_numpy(got), expected, rtol=rtol, atol=0, err_msg=what)


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """Returns |got - expected| / |expected| in float64; NaN where any value is."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())
