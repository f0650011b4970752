"""The learned mixture prior: density, draws, KL and gradients."""

from __future__ import annotations

import math

import numpy as np
import scipy.stats
import torch
from theory.variational.latent_models import FLAT, build, normal

from fastdiff.theory.information import Gaussian, Sampled, kl
from fastdiff.theory.variational import iwae, log_weights
from fastdiff.theory.variational.bounds import draw, log_proposal


def test_a_learned_mixture_prior(backend: str) -> None:
    """The density equals scipy's, the draws follow it, and the KL is that of Monte Carlo."""
    prior = build(**FLAT, prior="mixture", components=3).double().prior
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.0, 1.0, -1.0])), prior.logvar.copy_(normal((3, 2), 4))
    weights, z = prior.logits.softmax(0).detach().numpy(), normal((5, 2), 5)
    parts = [
        w * scipy.stats.norm(m, s).pdf(z).prod(1)
        for w, m, s in zip(
            weights, prior.mean.detach(), (0.5 * prior.logvar).exp().detach(), strict=True
        )
    ]
    np.testing.assert_allclose(prior.log_prob(z).detach().numpy(), np.log(sum(parts)), rtol=1e-12)
    n = 40_000
    drawn, log_ratio = prior.draw(n, 1, like=z, seed=0)
    assert (log_ratio == 0).all() and log_ratio.requires_grad
    z, components = drawn[:, 0].detach(), torch.as_tensor(weights)
    variance = prior.logvar.exp().detach()
    for power, expected in ((1, prior.mean), (2, prior.mean**2 + variance)):
        values = z**power
        assert (
            (values.mean(0) - components @ expected).abs() < 5 * values.std(0) / math.sqrt(n)
        ).all()
    q = Gaussian(normal((4, 2), 6), normal((4, 2), 7))
    drawn = draw(q, 20_000, seed=1)
    ratio = log_proposal(q, drawn) - prior.log_prob(drawn)
    torch.testing.assert_close(prior.kl(q, drawn), ratio.mean(1))
    exact = kl(q, Sampled(prior.log_prob, q.sample), samples=50_000, seed=2)
    assert (
        (prior.kl(q, drawn) - exact.value).abs()
        < 5 * (exact.stderr + ratio.std(1) / math.sqrt(20_000))
    ).all()


def test_gradients_of_a_mixtures_weights_through_its_draws(backend: str) -> None:
    """Naive Monte Carlo's gradient for the mixture is that of log p(x), computed on a grid."""
    vae = build(
        shape=(1,),
        latent=1,
        network="linear",
        likelihood="gaussian",
        covariance="isotropic",
        std=0.8,
        prior="mixture",
        components=2,
    ).double()
    with torch.no_grad():
        vae.prior.logits.copy_(torch.tensor([0.3, -0.2]))
    x = torch.tensor([[0.4]], dtype=torch.float64)
    log_w = log_weights(vae, x, samples=200_000, seed=0, proposal="prior")
    got = torch.autograd.grad(iwae(log_w).sum(), list(vae.prior.parameters()))
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    joint = vae.log_prior(grid) + vae.log_likelihood(x.expand(4001, 1), grid)
    log_p = torch.logsumexp(joint, 0) + math.log(24 / 4000)
    expected = torch.autograd.grad(log_p, list(vae.prior.parameters()))
    assert abs(iwae(log_w).item() - log_p.item()) < 0.01
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.01)
