"""`discretized_gaussian_nll`: every bin, far tails, narrow bins.

test_sums.py tests what it shares with the other sums.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.cases import name
from ops.sums import nll_inputs
from tolerances import SUM

from fastdiff import ops, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_nll_is_finite_and_right_in_far_tails_and_narrow_bins(dtype, backend) -> None:
    """Each sample is one bin: means up to 1.9 away, scales from e^-18 to e^12."""
    offset = torch.tensor([0.0, 1e-4, 0.02, 0.3, 1.0, 1.9], dtype=dtype)
    log_scale = torch.arange(-18.0, 12.1, 0.5, dtype=dtype)
    level = torch.tensor([0, 1, 100, 127, 128, 254, 255])
    o, s, k = (
        v.flatten()[:, None]
        for v in torch.meshgrid(offset, log_scale, level.to(dtype), indexing="ij")
    )
    x0 = (2 * k - 255) / 255
    mean = torch.where(x0 > 0, x0 - o, x0 + o)
    got = ops.discretized_gaussian_nll(x0, mean, s)
    expected = reference.discretized_gaussian_nll(x0.numpy(), mean.numpy(), s.numpy())
    assert np.isfinite(expected).all() and got.isfinite().all()
    # exp(-log_scale) carries |log_scale| roundings, squared into the term
    limit = 40 * SUM[name(dtype)] if dtype == torch.float64 else 8 * SUM[name(dtype)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=limit, atol=SUM[name(dtype)])


def test_256_bins_sum_to_one(backend) -> None:
    """The probabilities of all levels, in float64."""
    x0 = (torch.arange(256, dtype=torch.float64) * 2 - 255)[:, None] / 255
    for mean, log_scale in [(0.0, -1.0), (0.9, -5.0), (-1.3, 0.5), (0.1, -9.0)]:
        nll = ops.discretized_gaussian_nll(
            x0, torch.full_like(x0, mean), torch.full_like(x0, log_scale)
        )
        assert abs(torch.exp(-nll).sum().item() - 1) < 1e-12


@pytest.mark.cpu_only
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 255), st.floats(-3, 3), st.floats(-15, 8))
def test_any_bin(level: int, mean: float, log_scale: float) -> None:
    x0 = torch.tensor([[(2 * level - 255) / 255]], dtype=torch.float64)
    m, s = (torch.tensor([[v]], dtype=torch.float64) for v in (mean, log_scale))
    got = ops.discretized_gaussian_nll(x0, m, s)
    expected = reference.discretized_gaussian_nll(x0.numpy(), m.numpy(), s.numpy())
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10, atol=1e-13)


def test_nll_inputs_reach_every_branch() -> None:
    """The inputs of test_sums.py have bins at the ends, narrow ones, tails and middles."""
    v = nll_inputs((2, 4, 33, 33), torch.float64)
    width = torch.exp(-v["log_scale"]) * 2 / 255
    centre = (v["x0"] - v["mean"]).abs() * torch.exp(-v["log_scale"])
    end = v["x0"].abs() == 1
    narrow = ~end & (width < 0.25) & (centre * width / 2 < 0.5)
    tail = ~end & ~narrow & (centre >= width / 2)
    for kind in (end, narrow, tail, ~(end | narrow | tail)):
        assert kind.sum() > 10
