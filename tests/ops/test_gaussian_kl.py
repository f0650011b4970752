"""`gaussian_kl`: its numerics and its broadcasting.

test_sums.py tests what it shares with the other sums.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ops.cases import name, truth
from ops.sums import OPS, normal
from tolerances import SUM

from fastdiff import ops, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_kl_has_no_cancellation_near_equal_variances(dtype, backend) -> None:
    """Against the series ½ Σ d^n/n!, n ≥ 2, of ½ (e^d - 1 - d), for d from 1e-12 to 0.1."""
    d = torch.logspace(-12, -1, 40, dtype=dtype)[:, None]
    got = ops.gaussian_kl(torch.zeros_like(d), d, torch.zeros_like(d), torch.zeros_like(d))
    exact = 0.5 * sum(d[:, 0].double() ** n / math.factorial(n) for n in range(2, 12))
    np.testing.assert_allclose(got.numpy(), exact.numpy(), rtol=SUM[name(dtype)])


def test_short_floats_are_no_further_from_float64_than_eager(backend) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        inputs = OPS["gaussian_kl"].inputs((64, 3, 40), dtype)
        m1, v1, m2, v2 = inputs.values()
        exact = reference.gaussian_kl(*(truth(v) for v in inputs.values()))
        eager = (
            (0.5 * (v2 - v1 - 1 + torch.exp(v1 - v2) + (m1 - m2) ** 2 * torch.exp(-v2)))
            .flatten(1)
            .sum(1)
        )
        ours = np.abs(ops.gaussian_kl(**inputs).double().numpy() - exact)
        assert ours.max() <= np.abs(eager.double().numpy() - exact).max()


def test_a_broadcast_input_gives_the_bits_of_an_expanded_one(backend) -> None:
    """For gaussian_kl and the NLL; the gradient of a broadcast input is summed."""
    m, v = normal((4, 3, 5), torch.float32, 1), normal((4, 3, 5), torch.float32, 2)
    for shape in [(), (1,), (4, 1, 1), (1, 1, 1), (3, 1), (1, 3, 5), (4, 3, 1), (5,)]:
        other = normal(shape, torch.float32, 3)
        got = ops.gaussian_kl(m, other, v, other * 0.5)
        wide = other.expand(4, 3, 5).contiguous()
        assert torch.equal(got, ops.gaussian_kl(m, wide, v, wide * 0.5)), shape
        got = ops.discretized_gaussian_nll(m.clamp(-1, 1), v, other)
        assert torch.equal(got, ops.discretized_gaussian_nll(m.clamp(-1, 1), v, wide)), shape
    scalar = torch.zeros((), requires_grad=True)
    ops.gaussian_kl(m, v, m * 0.5, scalar).sum().backward()
    wide = torch.zeros(4, 3, 5, requires_grad=True)
    ops.gaussian_kl(m, v, m * 0.5, wide).sum().backward()
    torch.testing.assert_close(scalar.grad, wide.grad.sum())


def test_closed_form() -> None:
    """KL(N0 || N1) = ½ (ln s1²/s0² + (s0² + (m0 - m1)²)/s1² - 1); KL(p || p) = 0."""
    m0, s0, m1, s1 = 0.3, 0.7, -0.5, 1.9
    values = [
        torch.tensor([[v]], dtype=torch.float64)
        for v in (m0, 2 * math.log(s0), m1, 2 * math.log(s1))
    ]
    expected = 0.5 * (math.log(s1**2 / s0**2) + (s0**2 + (m0 - m1) ** 2) / s1**2 - 1)
    assert abs(ops.gaussian_kl(*values).item() - expected) < 1e-15
    assert ops.gaussian_kl(*values[:2], *values[:2]).item() == 0


def test_bad_input() -> None:
    x = torch.zeros(2, 3)
    for arguments, message in [
        ((x, x, x), "expected mean2 and logvar2 together or neither"),
        (
            (x, torch.zeros(2, 4)),
            "expected shapes that broadcast to one, got mean1 [2, 3], logvar1 [2, 4]",
        ),
        ((torch.zeros(()), torch.zeros(())), "expected shapes [B, …], got scalars"),
    ]:
        with pytest.raises(ValueError) as error:
            ops.gaussian_kl(*arguments)
        assert message in str(error.value)
