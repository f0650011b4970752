"""`q_posterior` against the oracle, its closed form for Gaussian data, and its gradients.

The mean has the oracle's bits in float32, and is rounded once to a 16-bit dtype.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.cases import DTYPES, SHAPES, name, outside, truth
from tolerances import ROUNDING

import fastdiff
from fastdiff import Schedule, ops, reference

SCHEDULE = Schedule.cosine(100)
CUMPROD = torch.tensor(SCHEDULE.alphas_cumprod)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_oracle(shape, dtype, backend) -> None:
    x0, x_t, t = (
        torch.randn(shape).to(dtype),
        torch.randn(shape).to(dtype),
        torch.arange(shape[0]) * 13 % 100,
    )
    mean, variance, log_variance = fastdiff.q_posterior(x0, x_t, t, CUMPROD)
    wide = np.float64 if dtype == torch.float64 else np.float32
    expected = reference.q_posterior(
        truth(x0).astype(wide), truth(x_t).astype(wide), t.numpy(), SCHEDULE.alphas_cumprod
    )
    if dtype == torch.float64:  # torch's float64 square root may be one unit in the last place off
        np.testing.assert_allclose(
            mean.numpy(), expected[0], rtol=4 * ROUNDING["float64"], atol=ROUNDING["float64"]
        )
    else:
        assert torch.equal(mean, torch.from_numpy(expected[0]).to(dtype)), (
            "computed wide, rounded once"
        )
    assert np.array_equal(
        variance.numpy(), expected[1]
    ) and variance.dtype == ops.common.compute_dtype(x0)
    # the platforms' logarithms differ by a unit in the last place
    np.testing.assert_allclose(
        log_variance.numpy(), expected[2], rtol=2 * ROUNDING[name(variance.dtype)]
    )


def test_the_first_step_has_no_variance(backend) -> None:
    x = torch.randn(2, 3)
    mean, variance, log_variance = ops.q_posterior(x, x * 2, torch.tensor([0, 1]), CUMPROD)
    assert torch.equal(mean[0], x[0]) and variance[0] == 0 and log_variance[0] == log_variance[1]
    _, variance, log_variance = ops.q_posterior(
        x[:1], x[:1], torch.tensor([0]), torch.tensor([0.75], dtype=torch.float64)
    )
    assert variance[0] == 0 and log_variance[0] == np.float32(np.log(0.25))


def test_closed_form_for_gaussian_data(backend) -> None:
    """On N(0, 1) data E[x_{t-1} | x_t] = sqrt(a_t/a_{t-1}) x_t, with a = alphas_cumprod.

    The mean is linear in x0, so it is that of E[x0 | x_t] = sqrt(a_t) x_t.
    """
    t = torch.arange(1, 100)
    x_t = torch.ones(99, 1, dtype=torch.float64)
    denoised = CUMPROD[t].sqrt()[:, None] * x_t
    mean, _, _ = ops.q_posterior(denoised, x_t, t, CUMPROD)
    torch.testing.assert_close(mean[:, 0], (CUMPROD[t] / CUMPROD[t - 1]).sqrt(), rtol=1e-12, atol=0)


def test_gradients(backend) -> None:
    x0, x_t = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    t = torch.tensor([0, 5, 99])
    assert torch.autograd.gradcheck(lambda a, b: ops.q_posterior(a, b, t, CUMPROD)[0], (x0, x_t))


def test_opcheck(backend) -> None:
    x0, x_t = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    inputs = (x0, x_t, torch.tensor([0, 5, 99]), CUMPROD)
    torch.library.opcheck(torch.ops.fastdiff.q_posterior.default, inputs)


def test_layouts_and_out(backend) -> None:
    x0, x_t, t = (
        torch.randn(4, 6, 5),
        torch.randn(6, 4, 5).transpose(0, 1),
        torch.tensor([0, 1, 50, 99]),
    )
    expected = ops.q_posterior(x0, x_t.contiguous(), t, CUMPROD)
    out = (
        torch.full((4, 6, 5), torch.nan),
        torch.full((4,), torch.nan),
        torch.full((4,), torch.nan),
    )
    got = ops.q_posterior(x0, x_t, t, CUMPROD, out=out)
    assert got is out and all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    compiled = torch.compile(
        lambda a, b: ops.q_posterior(a, b, t, CUMPROD), fullgraph=True, backend="aot_eager"
    )
    assert all(torch.equal(a, b) for a, b in zip(compiled(x0, x_t), expected, strict=True))


def test_times_outside_raise(backend) -> None:
    x = torch.randn(2, 3)
    for bad in (-1, 100):  # the table has 100 entries
        message = f"fastdiff.q_posterior: expected t in [0, 100), got {bad} at index 1"
        outside(
            backend,
            lambda bad=bad: ops.q_posterior(x, x, torch.tensor([3, bad]), CUMPROD)[0],
            message,
            1,
        )
