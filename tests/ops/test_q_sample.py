"""`q_sample` against the oracle: bits in float32 and float64, and one rounding to 16 bits.

Also its layouts and its gradients.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.cases import DTYPES, SHAPES, name, truth
from tolerances import ROUNDING

import fastdiff
from fastdiff import Schedule, reference

SCHEDULE = Schedule.cosine(100)
ALPHA, SIGMA = torch.tensor(SCHEDULE.alpha), torch.tensor(SCHEDULE.sigma)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x0 = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x0, torch.arange(shape[0]) * 13 % 100


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_oracle(shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    x0, t = _inputs(shape, dtype)
    got = fastdiff.q_sample(x0, t, ALPHA, SIGMA, seed=2**63 + 1, step=7)
    assert got.dtype == dtype and got.shape == x0.shape
    expected = reference.q_sample(
        truth(x0), t.numpy(), SCHEDULE.alpha, SCHEDULE.sigma, seed=2**63 + 1, step=7
    )
    if dtype in (torch.float32, torch.float64):
        assert np.array_equal(got.numpy(), expected)
    else:
        wide = reference.q_sample(
            truth(x0).astype(np.float32),
            t.numpy(),
            SCHEDULE.alpha,
            SCHEDULE.sigma,
            seed=2**63 + 1,
            step=7,
        )
        assert torch.equal(got, torch.from_numpy(wide).to(dtype)), (
            "float32 arithmetic, rounded once"
        )


@pytest.mark.parametrize("noise_dtype", DTYPES, ids=name)
def test_given_noise_and_continuous_time(noise_dtype: torch.dtype, backend: str) -> None:
    x0, _ = _inputs((4, 3, 5), torch.float32)
    noise = torch.randn(4, 3, 5).to(noise_dtype)
    alpha, sigma = torch.rand(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    got = fastdiff.q_sample(x0, None, alpha, sigma, noise=noise)
    expected = reference.q_sample(
        x0.numpy(), None, alpha.numpy(), sigma.numpy(), noise=truth(noise)
    )
    assert np.array_equal(got.numpy(), expected)


def test_regenerated_noise_is_that_of_randn(backend: str) -> None:
    x0, t = _inputs((3, 4, 4), torch.float32)
    ids = torch.tensor([5, 2**33, 1])
    noise = fastdiff.randn((3, 4, 4), seed=4, sample_ids=ids, step=9, stream=2)
    a = fastdiff.q_sample(x0, t, ALPHA, SIGMA, seed=4, sample_ids=ids, step=9)
    assert torch.equal(a, fastdiff.q_sample(x0, t, ALPHA, SIGMA, noise=noise))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded"])
def test_layouts(layout: str, backend: str) -> None:
    base = torch.randn(4, 6, 5, 8)
    x0 = {
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "transposed": base.transpose(1, 3),
        "sliced": base[:, 1:4, ::2],
        "expanded": base[:1].expand(4, 6, 5, 8),
    }[layout]
    t = torch.arange(4)
    got = fastdiff.q_sample(x0, t, ALPHA, SIGMA, seed=1)
    assert got.is_contiguous()
    assert torch.equal(got, fastdiff.q_sample(x0.contiguous(), t, ALPHA, SIGMA, seed=1))


def test_gradients(backend: str) -> None:
    x0 = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    alpha = ALPHA[:10].clone().requires_grad_()
    sigma = SIGMA[:10].clone().requires_grad_()
    t = torch.tensor([1, 7, 7])
    assert torch.autograd.gradcheck(
        lambda *a: fastdiff.q_sample(a[0], t, a[2], a[3], noise=a[1]), (x0, noise, alpha, sigma)
    )
    assert torch.autograd.gradcheck(
        lambda *a: fastdiff.q_sample(a[0], t, a[1], a[2], seed=3), (x0, alpha, sigma)
    )


def test_bfloat16_is_no_further_from_float64_than_eager(backend: str) -> None:
    x0, t = _inputs((64, 3, 16, 16), torch.bfloat16)
    noise = torch.randn(x0.shape).to(torch.bfloat16)
    exact = reference.q_sample(
        x0.double().numpy(), t.numpy(), SCHEDULE.alpha, SCHEDULE.sigma, noise=truth(noise)
    )
    got = fastdiff.q_sample(x0, t, ALPHA, SIGMA, noise=noise)
    a, s = (v[t].to(torch.bfloat16).view(-1, 1, 1, 1) for v in (ALPHA, SIGMA))
    eager = a * x0 + s * noise
    error = np.abs(got.double().numpy() - exact).max()
    assert error <= np.abs(eager.double().numpy() - exact).max()
    assert (
        np.abs(got.double().numpy() - exact) <= ROUNDING["bfloat16"] * np.abs(exact) + 1e-6
    ).all()
