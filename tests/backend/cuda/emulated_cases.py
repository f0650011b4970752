"""Shapes, dtypes, inputs and comparisons that the tests of the emulated CUDA kernels share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_library import compute_of
from tolerances import CUDA_SUMS, ROUNDING
from torch import Tensor

SHAPES = [(1, 1), (3, 5), (7,), (0, 3), (3, 0), (2, 3, 7), (2, 1, 33, 33), (300, 2), (2, 2, 512)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SEED, STEP = 2**63 + 5, 11


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name)


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def truth(x: Tensor | None) -> np.ndarray | None:
    """Returns an array for the oracle: 16-bit values as float32, which holds them exactly."""
    return None if x is None else x.to(compute_of(x.dtype)).numpy()


def poisoned(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns a tensor of NaN, so that a value which a kernel does not write shows."""
    return torch.full_like(like, torch.nan, dtype=dtype or like.dtype)


def ids_of(batch: int) -> Tensor:
    return torch.arange(batch) * 3 + 2**40


def rounded(expected: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(expected)).to(dtype)


def assert_close(
    got: Tensor, expected: np.ndarray, dtype: torch.dtype, limits: dict[str, float] = CUDA_SUMS
) -> None:
    """Compares relative to the largest value: by `limits` of the compute type, or one rounding."""
    limit = max(ROUNDING[name(dtype)], limits[name(compute_of(dtype))])
    scale = float(np.abs(expected).max()) if expected.size else 1.0
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=limit, atol=limit * scale)
