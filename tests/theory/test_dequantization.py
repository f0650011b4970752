"""Dequantisation: its formulas, and bits per dimension of data with known probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import SCHEDULES, Exact, Gaussian
from scipy.special import ndtr

from fastdiff import Schedule, reference
from fastdiff.theory.dequantization import dequantize, on_levels
from fastdiff.theory.evaluation.uniform import Uniform as Uniform256
from fastdiff.theory.likelihood import bits_per_dim, nll


def test_the_control_has_eight_bits_exactly() -> None:
    """256 equal levels per pixel cost 8.000 bits.

    A uniform density costs the same after adding the offset -log2 of a level's width.
    """
    x = torch.arange(4.0).view(2, 1, 2, 1)
    nats = Uniform256().bound(x)["uniform"]
    assert bits_per_dim(nats, 2).tolist() == [8.0, 8.0]
    for width, offset in ((2.0, 7), (1.0, 8)):  # [-1, 1] and [0, 1], 256 levels
        assert -math.log2(width / 256) == offset
        assert bits_per_dim(torch.tensor(2 * math.log(width)), 2).item() + offset == 8.0


class Uniform(Exact):
    """Uniform data on [-1, 1]: x0 is the mean of N(x/alpha, rho²) truncated to it."""

    def x0(self, x: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        rho, z = sigma / alpha, x / alpha
        a, b = (-1 - z) / rho, (1 - z) / rho
        # log-differences of Φ, computed in the smaller tail
        flip = a > 0
        lo, hi = torch.where(flip, -b, a), torch.where(flip, -a, b)
        log_hi, log_lo = torch.special.log_ndtr(hi), torch.special.log_ndtr(lo)
        log_mass = log_hi + torch.log1p(-torch.exp((log_lo - log_hi).clamp(max=-1e-300)))
        density = lambda v: torch.exp(-0.5 * v**2 - 0.5 * math.log(2 * math.pi) - log_mass)  # noqa: E731
        return z + rho * (density(a) - density(b))


def test_uniform_data_have_eight_bits() -> None:
    """256 uniform levels cost 8 bits with every dequantisation, without an offset.

    The edges of [-1, 1] are blurred: by quadrature the data cost log2 ∫ U log2(1/U*N) more.
    """
    levels = (
        torch.arange(256)
        .repeat(2)
        .view(2, 256)[:, torch.randperm(256, generator=torch.Generator().manual_seed(1))]
    )
    x = (levels / 127.5 - 1).double()
    schedule, rho = Schedule.vp(1000), 0.01
    settings: dict[str, Any] = {
        "seed": 1,
        "prediction_type": "v",
        "sigma_min": rho,
        "rtol": 1e-4,
        "atol": 1e-4,
    }
    got = nll(Uniform(), x, schedule, dequantization="uniform", **settings)
    bits = bits_per_dim(got.nats, 256)
    grid = np.linspace(-1, 1, 200_001)
    blurred = 0.5 * (ndtr((grid + 1) / rho) - ndtr((grid - 1) / rho))
    want = 7 - np.log2(blurred).mean()
    assert 8.0 < want < 8.02
    # u is random, and so is the cost of the edges
    np.testing.assert_allclose(bits, want, atol=0.006)
    density = nll(Uniform(), dequantize(x, "uniform", rho=rho, seed=1)[0], schedule, **settings)
    np.testing.assert_allclose(bits_per_dim(density.nats, 256) + 7, bits, atol=1e-9)


@pytest.mark.parametrize("convention", ["uniform", "centred", "gaussian"])
def test_dequantisation_is_its_formula(convention: str) -> None:
    x = torch.tensor([[0, 1, 128, 255], [7, 7, 200, 3]]).double() / 127.5 - 1
    ids = torch.tensor([5, 2**40])
    z, constant = dequantize(x, convention, rho=0.001, seed=3, sample_ids=ids, step=4)
    k = np.array([[0, 1, 128, 255], [7, 7, 200, 3]])
    if convention == "gaussian":
        eps = reference.randn((2, 4), seed=3, sample_ids=ids.numpy(), step=4, stream=2).astype(
            np.float64
        )
        np.testing.assert_allclose(z, x.numpy() + 0.001 * eps, rtol=1e-15)
        log_q = (-0.5 * eps**2 - 0.5 * np.log(2 * np.pi) - np.log(0.001)).sum(1)
        decoded = reference.discretized_gaussian_nll(
            x.numpy(), z.numpy(), np.full((2, 4), np.log(0.001))
        )
        np.testing.assert_allclose(constant, log_q + decoded, rtol=1e-12)
        return
    words = np.stack(
        [
            reference.philox4x32(
                np.array([0, 4, i & 0xFFFFFFFF, (i >> 32) | (2 << 24)]), np.array([3, 0])
            )
            for i in (5, 2**40)
        ]
    )
    u = ((words >> 8) | 1) * 2.0**-24
    if convention == "uniform":
        np.testing.assert_allclose(z, (k + u) / 128 - 1, rtol=1e-15)
        assert float(z.min()) > -1 and float(z.max()) < 1
        np.testing.assert_allclose(constant / (4 * math.log(2)), 7.0, rtol=1e-15)
    else:
        np.testing.assert_allclose(z, x.numpy() + (u - 0.5) / 127.5, rtol=1e-15, atol=1e-16)
        np.testing.assert_allclose(constant / (4 * math.log(2)), math.log2(127.5), rtol=1e-15)


def test_the_bounds_of_all_conventions_lie_above_a_known_probability() -> None:
    """Pixels that take two levels with equal probability have 1 bit.

    The dequantisation `gaussian` adds only the decoder's uncertainty.
    """
    pair = torch.tensor([40, 220]) / 127.5 - 1

    class Pair(Exact):
        def x0(self, x: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
            low, high = (float(v) for v in pair)
            return low + (high - low) * torch.sigmoid(
                alpha * (high - low) * (x - alpha * (low + high) / 2) / sigma**2
            )

    x, schedule = pair[torch.arange(64).view(2, 32) % 2].double(), Schedule.vp(1000)
    for rho, most in ((0.001, 1.01), (0.006, 3.0)):
        got = nll(
            Pair(),
            x,
            schedule,
            dequantization="gaussian",
            seed=0,
            prediction_type="v",
            sigma_min=rho,
            rtol=1e-6,
            atol=1e-6,
        )
        z, _ = dequantize(x, "gaussian", rho=rho, seed=0)
        doubt = reference.discretized_gaussian_nll(
            x.numpy(), z.numpy(), np.full((2, 32), np.log(rho))
        )
        np.testing.assert_allclose(got.nats - doubt, 32 * math.log(2), atol=32 * 3e-5)
        bits = bits_per_dim(got.nats, 32)
        assert bool((bits > 1.0).all()) and float(bits.max()) < most


def test_images_on_their_levels_are_refused() -> None:
    """Without dequantisation a density on a lattice is unbounded: bits can be negative."""
    x = (torch.arange(64).view(2, 32) * 3 / 127.5 - 1).float()
    assert (
        on_levels(x)
        and not on_levels(x + 0.001)
        and not on_levels(x[:, :4])
        and not on_levels(x * 1.2)
    )
    assert not on_levels(torch.zeros(2, 32)) and not on_levels(x[:0])
    model, schedule = Gaussian([0.0] * 32, np.eye(32) * 0.3), SCHEDULES["vp"]
    with pytest.raises(
        ValueError,
        match="nll: expected continuous x, got images on 256 levels.* Pass dequantization=",
    ):
        nll(model, x, schedule, prediction_type="v")
    with pytest.raises(
        ValueError,
        match="expected x on 256 levels of .* with dequantization 'uniform', got other values",
    ):
        nll(model, x + 0.001, schedule, prediction_type="v", dequantization="uniform")
    with pytest.raises(ValueError, match=r"expected dequantization in .* or None, got 'logit'"):
        nll(model, x, schedule, prediction_type="v", dequantization="logit")
