"""The likelihoods p(x|z) of decoders against scipy, and the samples drawn from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from theory.variational.latent_models import FLAT, build, normal
from torch.nn import functional as F

from fastdiff.theory.variational.observation import Correlated


@pytest.mark.parametrize("std", [1.0, 0.3])
def test_a_fixed_isotropic_decoder_has_the_squared_errors_gradients(
    std: float, backend: str
) -> None:
    """grad(-log p(x|z)) = grad(½‖x - f(z)‖²)/s², for every weight of the decoder."""
    vae = build(**FLAT, covariance="isotropic", std=std).double()
    x, z = normal((7, 4), 1), normal((7, 2), 2)
    parameters = list(vae.decoder.parameters())
    ours = torch.autograd.grad(-vae.log_likelihood(x, z).sum(), parameters)
    squared = 0.5 * F.mse_loss(vae.decode(z).mean, x, reduction="sum") / std**2
    for got, expected in zip(ours, torch.autograd.grad(squared, parameters), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    constant = -vae.log_likelihood(x, z).sum() - squared
    assert constant.item() == pytest.approx(
        7 * 4 * (0.5 * math.log(2 * math.pi) + math.log(std)), rel=1e-12
    )


def test_a_diagonal_decoder_against_scipy(backend: str) -> None:
    vae = build(**FLAT, covariance="diagonal").double()
    x, z = normal((7, 4), 1), normal((7, 2), 2)
    p = vae.decode(z)
    assert p.log_std.std() > 0.01, "each element of each sample has its own scale"
    expected = scipy.stats.norm(p.mean.detach(), p.log_std.exp().detach()).logpdf(x).sum(1)
    np.testing.assert_allclose(vae.log_likelihood(x, z).detach().numpy(), expected, rtol=1e-12)


def test_what_a_learned_deviation_starts_from(backend: str) -> None:
    """Initial standard deviations are close to initial_std, the smallest ones at the floor."""
    for std in (1.0, 0.1):
        vae = build(
            shape=(4,),
            latent=2,
            network="linear",
            likelihood="gaussian",
            covariance="isotropic",
            initial_std=std,
        ).double()
        assert vae.decode(normal((3, 2), 2)).log_std.exp().item() == pytest.approx(std, rel=0.01)
        with torch.no_grad():
            vae.observation.log_std.fill_(-50.0)
        assert vae.decode(normal((3, 2), 2)).log_std.item() == pytest.approx(-7.0, abs=1e-12)


def test_a_full_decoder_against_scipy(backend: str) -> None:
    vae = build(**FLAT, covariance="full").double()
    x, z = normal((7, 4), 1), normal((7, 2), 2)
    p = vae.decode(z)
    assert isinstance(p, Correlated) and torch.equal(p.factor, p.factor.tril())
    for i in range(7):
        covariance = (p.factor[i] @ p.factor[i].T).detach().numpy()
        expected = scipy.stats.multivariate_normal(p.mean[i].detach().numpy(), covariance).logpdf(
            x[i].numpy()
        )
        assert vae.log_likelihood(x, z)[i].item() == pytest.approx(expected, rel=1e-11)
    assert abs(covariance[0, 1]) > 1e-4
    loss = vae.loss(x, seed=0).mean()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(vae.parameters())))


def test_discretised_likelihoods_sum_to_one(backend: str) -> None:
    """Over all 256 levels of a pixel."""
    vae = build(shape=(1,), latent=1, network="linear", covariance="isotropic").double()
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[:, None]
    z = torch.full((256, 1), 0.3, dtype=torch.float64)
    assert vae.log_likelihood(levels, z).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_discretised_samples_follow_the_likelihood(backend: str) -> None:
    """The levels of 20,000 samples of one z have the model's probabilities (chi-squared test)."""
    vae = build(shape=(1,), latent=1, network="linear", covariance="isotropic").double()
    with torch.no_grad():
        vae.decoder.body[0].weight.zero_(), vae.decoder.body[0].bias.fill_(-0.95)
        vae.observation.log_std.fill_(math.log(0.05))
    x = vae.sample(20_000, seed=3)
    level = ((x + 1) * 127.5).round().long()[:, 0]
    torch.testing.assert_close(level.double() / 127.5 - 1, x[:, 0])
    counts = torch.bincount(level, minlength=256).double()
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[:, None]
    p = vae.log_likelihood(levels, torch.zeros(256, 1).double()).exp().detach()
    frequent = p * 20_000 > 5
    rest = torch.tensor([counts[~frequent].sum(), p[~frequent].sum() * 20_000])
    observed = torch.cat([counts[frequent], rest[:1]])
    expected = torch.cat([p[frequent] * 20_000, rest[1:]])
    assert scipy.stats.chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-4
    assert counts[0] > 2_000, "the open end has mass"
