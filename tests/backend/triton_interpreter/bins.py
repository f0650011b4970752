"""A bin's term has the same bits whatever other bins are in its tile, under TRITON_INTERPRET=1.

Started by tests/backend/test_triton.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from cases import BITS
from fastdiff_kernels.discretized_gaussian_nll import discretized, level_minus
from sums import name, normal
from torch import Tensor

BINS = 256


@triton.jit
def terms_kernel(nll, by_mean, by_log_scale, x0, mean, log_scale, BINS: tl.constexpr):
    i = tl.arange(0, BINS)[None, :]
    x, m, s = tl.load(x0 + i), tl.load(mean + i), tl.load(log_scale + i)
    tl.store(nll + i, discretized(x, m, s, False))
    a, b = discretized(x, m, s, True)
    tl.store(by_mean + i, a)
    tl.store(by_log_scale + i, b)


@triton.jit
def level_kernel(out, u, mean, BINS: tl.constexpr):
    i = tl.arange(0, BINS)[None, :]
    tl.store(out + i, level_minus(tl.load(u + i), tl.load(mean + i)))


def terms(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """[3, BINS]: each bin's term and its derivatives, as integers."""
    out = torch.empty((3, BINS), dtype=x0.dtype)
    terms_kernel[(1,)](*out, x0, mean, log_scale, BINS)
    return out.view(BITS[x0.dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_terms_do_not_depend_on_the_tile(dtype: torch.dtype) -> None:
    """Without the last bin, a tile has only narrow bins; it becomes open or wide and closed."""
    x0 = (torch.arange(BINS) % 254 + 1).to(dtype) / 127.5 - 1
    mean = x0 + 0.02 * normal(1, BINS, dtype=dtype)[0]
    log_scale = torch.full((BINS,), -1.5, dtype=dtype)
    alone = terms(x0, mean, log_scale)
    x0[-1] = 1.0
    mean[-1] = 0.9995
    with_end = terms(x0, mean, log_scale)
    assert torch.equal(alone[:, :-1], with_end[:, :-1])
    # open ends on both sides, in the tail and in the middle, with and without a wide closed bin
    x0[::3], x0[1::3] = -1.0, 1.0
    mean = x0 + 0.02 * normal(2, BINS, dtype=dtype)[0]
    log_scale[::5] = -6
    log_scale[2::3] = -1.5  # closed bins stay narrow
    x0[-1], mean[-1] = 1.0, 0.998
    with_ends = terms(x0, mean, log_scale)
    x0[-1], log_scale[-1] = 0.0, -6.0
    with_all = terms(x0, mean, log_scale)
    assert torch.equal(with_ends[:, :-1], with_all[:, :-1])
    assert not torch.equal(with_ends[:, -1], with_all[:, -1])


@pytest.mark.parametrize(
    ("dtype", "floats", "integers"),
    [(torch.float32, np.float32, np.int32), (torch.float64, np.float64, np.int64)],
    ids=["float32", "float64"],
)
def test_every_level_less_a_mean_as_by_a_division(
    dtype: torch.dtype, floats: type, integers: type
) -> None:
    """kernels/README.md section 10 divides by 255; the kernel multiplies."""
    u = 2 * np.arange(256, dtype=floats) - 255
    high = ((u / floats(255)).view(integers) >> 12 << 12).view(floats)
    for mean in (0.0, 0.3, -1.0, 0.9999):
        means = np.full_like(u, mean)
        want = (high - means) + (u - high * floats(255)) * floats(1 / 255)
        out = torch.empty(BINS, dtype=dtype)
        level_kernel[(1,)](out, torch.from_numpy(u), torch.from_numpy(means), BINS)
        assert np.array_equal(out.numpy().view(integers), want.view(integers))
