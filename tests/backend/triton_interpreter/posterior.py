"""q_posterior and reparameterize in Triton's interpreter against the NumPy oracle.

tests/backend/test_triton.py starts this file with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import DTYPES, compute, name, numbers, poisoned, same_bits
from fastdiff_kernels import launch
from tolerances import ROUNDING

from fastdiff.reference.elementary import exp
from fastdiff.reference.q_posterior import q_posterior
from fastdiff.reference.randn import randn
from fastdiff.reference.reparameterize import reparameterize

SHAPES = [(1, 1), (3, 5), (7,), (0, 3), (3, 0), (2, 3, 7), (2, 1, 33, 33), (300, 2)]
SEED = 2**64 - 3


def normal(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randn((count, *shape), generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("times", [1, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_q_posterior(dtype: torch.dtype, shape: tuple[int, ...], times: int) -> None:
    x0, x_t = normal(2, shape, dtype)
    t = torch.arange(shape[0]) % times
    cumulative = torch.linspace(0.9999, 0.001, times, dtype=torch.float64)
    mean = poisoned(shape, dtype)
    variance, log_variance = (poisoned((shape[0],), compute(dtype)) for _ in range(2))
    before = launch.launches["q_posterior"]
    launch.q_posterior(mean, variance, log_variance, x0, x_t, t, cumulative)
    want = q_posterior(numbers(x0), numbers(x_t), t.numpy(), cumulative.numpy())
    for got, expected in zip((mean, variance, log_variance), want, strict=True):
        same_bits(got, expected)
    assert launch.launches["q_posterior"] == before + (shape[0] > 0)
    launch.check("cpu")


def test_q_posterior_marks_samples_whose_t_is_outside() -> None:
    for size in (3, 2000):
        x0, x_t = normal(2, (4, size), torch.float32)
        mean, variance, log_variance = poisoned((4, size)), poisoned((4,)), poisoned((4,))
        t = torch.tensor([0, 5, -1, 4])
        launch.q_posterior(
            mean,
            variance,
            log_variance,
            x0,
            x_t,
            t,
            torch.linspace(0.99, 0.1, 5, dtype=torch.float64),
        )
        assert (
            mean.isnan().all(1).tolist()
            == mean.isnan().any(1).tolist()
            == [False, True, True, False]
        )
        assert (
            variance.isnan().tolist() == log_variance.isnan().tolist() == [False, True, True, False]
        )
        with pytest.raises(IndexError, match="q_posterior"):
            launch.check("cpu")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_reparameterize(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    mean, logvar = normal(2, shape, dtype)
    ids = torch.arange(shape[0]) * 2**33 + 1
    z = poisoned(shape, dtype)
    launch.reparameterize(z, mean, logvar, SEED, None, ids, 5, 3, False)
    want = reparameterize(numbers(mean), numbers(logvar), seed=SEED, sample_ids=ids.numpy(), step=5)
    same_bits(z, want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_gradients_of_reparameterize(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """They have the bits of the formula in kernels/README.md, and are the analytic gradient.

    The comparison with the latter allows a few roundings, and 1e-7 where the noise is near zero.
    """
    grad, logvar = normal(2, shape, dtype)
    ids, seeds = torch.arange(shape[0]) + 9, torch.arange(shape[0]) * -(2**40)
    arguments = (grad, logvar, None, seeds, ids, 5, 3, False)
    g_mean, g_logvar = poisoned(shape, dtype), poisoned(shape, dtype)
    launch.reparameterize_backward(g_mean, g_logvar, *arguments)
    kind = np.float64 if dtype == torch.float64 else np.float32
    unsigned = seeds.numpy().view(np.uint64)
    eps = randn(shape, seed=unsigned, sample_ids=ids.numpy(), step=5, stream=3, dtype=kind)
    same_bits(g_mean, numbers(grad))
    same_bits(g_logvar, (numbers(grad) * eps) * (kind(0.5) * exp(kind(0.5) * numbers(logvar))))
    want = grad.double() * torch.from_numpy(eps).double() * 0.5 * torch.exp(0.5 * logvar.double())
    torch.testing.assert_close(g_logvar.double(), want, rtol=8 * ROUNDING[name(dtype)], atol=1e-7)
    for only in range(2):  # a gradient alone has the same bits
        given = [poisoned(shape, dtype) if i == only else None for i in range(2)]
        launch.reparameterize_backward(*given, *arguments)
        assert torch.equal(given[only], (g_mean, g_logvar)[only])


def test_reparameterize_saturates_and_passes_nan() -> None:
    mean = torch.zeros(1, 8)
    logvar = torch.tensor([[math.nan, math.inf, -math.inf, 200.0, -200.0, 170.0, -170.0, 0.0]])
    z = poisoned((1, 8))
    launch.reparameterize(z, mean, logvar, 1, None, None, 0, 3, False)
    same_bits(z, reparameterize(mean.numpy(), logvar.numpy(), seed=1))
    assert z[0, 0].isnan() and z[0, [1, 3]].isinf().all() and z[0, [2, 4]].eq(0).all()


def test_fast_reparameterize_is_near_the_exact_one() -> None:
    """The noise's difference, 1e-6, is multiplied by deviations up to 6."""
    mean, logvar = normal(2, (2, 500), torch.float32)
    fast, exact = poisoned((2, 500)), poisoned((2, 500))
    for z, mode in ((fast, True), (exact, False)):
        launch.reparameterize(z, mean, logvar, 1, None, None, 0, 3, mode)
    torch.testing.assert_close(fast, exact, rtol=1e-5, atol=1e-5)
