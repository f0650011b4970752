"""The three objectives: unbiased estimates, equalities, and training on data of known evidence."""

from __future__ import annotations

import math

import pytest
import torch
from theory.variational.latent_models import linear_vae, normal, ppca
from tolerances import EVIDENCE

from fastdiff.theory.variational import VAE, ProbabilisticPCA, gradient_moments, objective
from fastdiff.theory.variational.objectives import OBJECTIVES


def test_with_the_exact_posterior_two_of_them_are_the_evidence(backend: str) -> None:
    model, x = ppca(), normal((6, 5), 3)
    for name in ("importance", "elbo"):
        got = objective(model, x, name, samples=3, seed=0)
        torch.testing.assert_close(got, -model.log_prob(x), rtol=EVIDENCE, atol=EVIDENCE)


def test_estimates_of_the_evidence_are_unbiased_before_the_logarithm(backend: str) -> None:
    """E e^(-objective) = p(x) for both estimators, here with three draws and a poor encoder."""
    model, n = ppca(size=2, latent=1), 50_000
    vae = linear_vae(model)
    with torch.no_grad():
        vae.encoder.body[1][0].bias += 0.4
    x = normal((1, 2), 3).expand(n, 2)
    for name in ("prior", "importance"):
        p = torch.exp(-objective(vae, x, name, samples=3, seed=1).detach())
        assert abs(p.mean() - model.log_prob(x[:1]).exp()) < 5 * p.std() / math.sqrt(n), name
        assert -p.log().mean() > -model.log_prob(x[:1]), (
            "by Jensen's inequality the objective is above -log p(x)"
        )


def test_the_sampled_and_the_closed_kl_agree_in_mean(backend: str) -> None:
    torch.manual_seed(0)
    vae = VAE((4,), 2, network="mlp", widths=(8,), likelihood="gaussian", samples=2).double()
    x = normal((3, 4), 1).repeat(4_000, 1)
    difference = (
        (vae.loss(x, seed=0) - objective(vae, x, "elbo", samples=2, seed=1)).detach().view(4_000, 3)
    )
    assert (difference.mean(0).abs() < 5 * difference.std(0) / math.sqrt(4_000)).all()


def test_the_loss_of_a_model_is_its_objective(backend: str) -> None:
    x = normal((3, 5), 1)
    for name in ("prior", "importance"):
        vae = linear_vae(ppca(), objective=name, samples=4)
        assert torch.equal(
            vae.loss(x, seed=2, step=5), objective(vae, x, name, samples=4, seed=2, step=5)
        )
    vae = linear_vae(ppca(), objective="prior", samples=4)
    vae.loss(x, seed=2).sum().backward()
    assert all(p.grad is None for p in vae.encoder.parameters()), (
        "draws of the prior do not use the encoder"
    )
    assert all((p.grad != 0).any() for p in vae.decoder.parameters())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_trains_a_model_to_its_maximum_likelihood(name: str) -> None:
    """A linear VAE with learned noise reaches the maximum of the exact log p(x) of linear data."""
    data = ppca(size=3, latent=1, std=0.5).sample(400, seed=0)
    best = ProbabilisticPCA.fit(data, 1).log_prob(data).mean()
    torch.manual_seed(0)
    samples = {"prior": 64, "importance": 8, "elbo": 1}[name]
    vae = VAE(
        (3,),
        1,
        network="linear",
        likelihood="gaussian",
        covariance="isotropic",
        objective=name,
        samples=samples,
    ).double()

    def evidence() -> torch.Tensor:
        layer, std = (
            vae.decoder.body[0],
            vae.decode(torch.zeros(1, 1).double()).log_std.detach().exp(),
        )
        return (
            ProbabilisticPCA(layer.weight.detach(), layer.bias.detach(), float(std))
            .log_prob(data)
            .mean()
        )

    start = evidence()
    optimizer = torch.optim.Adam(vae.parameters(), 0.03)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * (1 - step / 400)
        optimizer.zero_grad()
        vae.loss(data, seed=0, step=step).mean().backward()
        optimizer.step()
    deficit = (best - evidence()).item()
    assert best - start > 0.5 and 0 <= deficit < (0.05 if name == "prior" else 0.01), deficit


def test_gradient_moments_of_a_known_gradient() -> None:
    """g = c + diag(s) eps: |E g| = |c|, √(tr Cov) = |s|."""
    parameter = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    unused = torch.zeros(2, requires_grad=True)
    c, s = torch.tensor([3.0, -2.0, 0.5]).double(), torch.tensor([1.0, 0.5, 2.0]).double()
    noise = normal((2_000, 3), 0)
    got = gradient_moments(
        [parameter, unused], lambda seed: (parameter @ (c + s * noise[seed]))[None], range(2_000)
    )
    expected = c + s * noise
    assert (
        got.std == pytest.approx(expected.var(0).sum().sqrt().item(), rel=1e-10)
        and got.draws == 2_000
    )
    assert got.norm == pytest.approx(c.norm().item(), abs=5 * s.norm().item() / math.sqrt(2_000))
    with pytest.raises(
        ValueError,
        match="^fastdiff.theory.variational.gradient_moments: expected at least two seeds, got 1.$",
    ):
        gradient_moments([parameter], lambda seed: parameter.sum()[None], [0])


def test_the_priors_gradient_is_the_noisiest(backend: str) -> None:
    """At the maximum and with equal draws, naive Monte Carlo's gradient is much noisier."""
    model = ppca(size=8, latent=4, std=0.4)
    vae, x = linear_vae(model), model.sample(32, seed=0)
    std = {}
    for name in OBJECTIVES:
        loss = lambda seed, name=name: objective(vae, x, name, samples=16, seed=seed)  # noqa: E731
        std[name] = gradient_moments(vae.decoder.parameters(), loss, range(20)).std
    assert std["prior"] > 3 * std["importance"] and std["prior"] > 3 * std["elbo"]


def test_bad_names() -> None:
    with pytest.raises(ValueError) as error:
        objective(ppca(), normal((2, 5), 0), "vimco", samples=2, seed=0)
    assert (
        str(error.value)
        == "fastdiff.theory.variational.objective: expected name in ['elbo', 'importance',"
        " 'prior'], got 'vimco'."
    )
