"""`reparameterize` against the oracle: bits in float32, gradients with the noise drawn again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.cases import DTYPES, SHAPES, name, truth
from tolerances import ROUNDING, moments

import fastdiff
from fastdiff import ops, reference


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_oracle(shape, dtype, backend) -> None:
    mean, logvar = torch.randn(shape).to(dtype), (torch.randn(shape) * 3).to(dtype)
    got = fastdiff.reparameterize(mean, logvar, seed=2**63 + 1, step=7)
    wide = np.float64 if dtype == torch.float64 else np.float32
    expected = reference.reparameterize(
        truth(mean).astype(wide), truth(logvar).astype(wide), seed=2**63 + 1, step=7
    )
    if dtype == torch.float64:
        np.testing.assert_allclose(got.numpy(), expected, rtol=8 * ROUNDING["float64"], atol=1e-15)
    else:
        assert torch.equal(got, torch.from_numpy(expected).to(dtype)), (
            "float32 arithmetic, rounded once"
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_gradients_of_every_dtype(dtype, backend) -> None:
    mean, logvar = (torch.randn(3, 700).to(dtype).requires_grad_() for _ in range(2))
    upstream = torch.randn(3, 700).to(dtype)
    got = torch.autograd.grad(ops.reparameterize(mean, logvar, seed=4), (mean, logvar), upstream)
    eps = torch.from_numpy(reference.randn((3, 700), seed=4, stream=3)).double()
    g, v = upstream.double(), logvar.detach().double()
    assert torch.equal(got[0], upstream)
    # a few roundings in the compute type, and one of the stored gradient
    compute = "float64" if dtype == torch.float64 else "float32"
    limit = 8 * ROUNDING[compute] + ROUNDING[name(dtype)]
    torch.testing.assert_close(
        got[1].double(), g * eps * 0.5 * torch.exp(0.5 * v), rtol=limit, atol=limit
    )


def test_gradcheck_and_broadcasting(backend) -> None:
    mean = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    logvar = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, v: ops.reparameterize(m, v, seed=1), (mean, logvar))


def test_opcheck(backend) -> None:
    mean, logvar = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    inputs = (mean, logvar, 5, None, None, 0, 3, False)
    torch.library.opcheck(torch.ops.fastdiff.reparameterize.default, inputs)


def test_the_gradient_of_a_square(backend) -> None:
    """d E z²/d mu = 2 mu and d E z²/d sigma = 2 sigma for z = mu + sigma eps, E z² = mu² + sigma².

    Each to five standard errors of the estimates 2 z and 2 z eps.
    """
    n, mu, s = 200_000, 0.7, 1.3
    mean, sigma = (torch.full((n, 1), v, requires_grad=True) for v in (mu, s))
    z = ops.reparameterize(mean, 2 * sigma.log(), seed=0)
    by_mean, by_sigma = torch.autograd.grad((z**2).sum(), (mean, sigma))
    deviations = 2 * s, 2 * (mu**2 + 2 * s**2) ** 0.5
    for got, expected, deviation in zip((by_mean, by_sigma), (mu, s), deviations, strict=True):
        assert abs(got.mean().item() - 2 * expected) < deviation * moments(n)["mean"]


def test_only_logvar_is_kept(backend) -> None:
    """The backward pass draws the noise again, and the gradient to the mean needs no tensor."""
    mean, logvar = torch.randn(8, 64, requires_grad=True), torch.randn(8, 64, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        ops.reparameterize(mean, logvar, seed=3)
    assert [v.data_ptr() for v in kept if v.numel()] == [logvar.data_ptr()]


def test_out_and_compilation(backend) -> None:
    mean, logvar = torch.randn(4, 3, 5).transpose(0, 1), torch.randn(3, 4, 5)
    expected = ops.reparameterize(
        mean.contiguous(), logvar, seed=9, sample_ids=torch.tensor([5, 2**40, 0])
    )
    out = torch.full((3, 4, 5), torch.nan)
    assert (
        ops.reparameterize(mean, logvar, seed=9, sample_ids=torch.tensor([5, 2**40, 0]), out=out)
        is out
    )
    assert torch.equal(out, expected)
    compiled = torch.compile(
        lambda m, v: ops.reparameterize(m, v, seed=9), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(mean, logvar), ops.reparameterize(mean, logvar, seed=9))
