"""Importance weights and bounds on probabilistic PCA with known log p(x), in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from theory.variational.latent_models import linear_vae, normal, ppca, worse
from tolerances import EVIDENCE

from fastdiff import ops
from fastdiff.theory import variational
from fastdiff.theory.information import Gaussian
from fastdiff.theory.variational import (
    ProbabilisticPCA,
    effective_sample_size,
    elbo,
    iwae,
    iwae_stderr,
    log_weights,
)


def close(a: torch.Tensor, b: torch.Tensor, **options: object) -> None:
    torch.testing.assert_close(a, b, rtol=EVIDENCE, atol=EVIDENCE, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_evidence_against_scipy(orthogonal: bool) -> None:
    model, x = ppca(orthogonal=orthogonal), normal((8, 5), 3)
    covariance = (
        model.weight @ model.weight.T + model.std**2 * torch.eye(5, dtype=torch.float64)
    ).numpy()
    expected = scipy.stats.multivariate_normal(model.mean.numpy(), covariance).logpdf(x.numpy())
    np.testing.assert_allclose(model.log_prob(x).numpy(), expected, rtol=EVIDENCE)


def test_the_exact_posterior_closes_the_gap(backend: str) -> None:
    """ELBO = log p(x) to rounding: KL(q‖p(z|x)) is zero where q is the posterior."""
    model, x = ppca(), normal((8, 5), 3)
    q = model.posterior(x)
    close(model.elbo(x, q), model.log_prob(x))
    close(model.gap(x, q), torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_gap_of_any_other_encoder_is_its_kl(orthogonal: bool, backend: str) -> None:
    model, x = ppca(orthogonal=orthogonal), normal((8, 5), 3)
    q = worse(model.posterior(x))
    gap = model.gap(x, q)
    assert (gap > 0.01).all()
    close(model.elbo(x, q) + gap, model.log_prob(x))


def test_the_exact_posterior_makes_constant_weights(backend: str) -> None:
    model, x = ppca(), normal((8, 5), 3)
    log_w = log_weights(model, x, samples=50, seed=1)
    close(log_w, model.log_prob(x)[:, None].expand(8, 50))
    close(effective_sample_size(log_w), torch.full((8,), 50.0, dtype=torch.float64))
    for bound in (elbo(log_w), iwae(log_w), iwae(log_w, 7)):
        close(bound, model.log_prob(x))
    # the same model as a VAE
    close(log_weights(linear_vae(model), x, samples=50, seed=1), log_w)


def test_evidence_over_iwae_over_elbo(backend: str) -> None:
    """log p >= IWAE_K >= IWAE_k >= ELBO for K > k; IWAE tends to log p within its error."""
    model, x = ppca(std=0.9), normal((4, 5), 3)
    log_w = log_weights(model, x, samples=100_000, seed=1, proposal=worse(model.posterior(x)))
    truth, bounds = model.log_prob(x), [iwae(log_w, k) for k in (1, 4, 16, 64, 100_000)]
    close(bounds[0], elbo(log_w))
    for lower, upper in zip(bounds, bounds[1:], strict=False):
        assert (lower < upper).all()
    assert (bounds[3] < truth).all(), (
        "the mean of many IWAE_64 is below log p by more than its spread"
    )
    assert ((bounds[-1] - truth).abs() < 5 * iwae_stderr(log_w)).all()
    closed = model.elbo(x, worse(model.posterior(x)))
    assert ((elbo(log_w) - closed).abs() < 5 * log_w.std(-1) / math.sqrt(100_000)).all()


def test_the_prior_as_proposal_rises_with_draws(backend: str) -> None:
    model, x = ppca(size=2, latent=1, std=0.6), normal((3, 2), 3)
    log_w = log_weights(model, x, samples=60_000, seed=1, proposal="prior")
    bounds = torch.stack([iwae(log_w, k) for k in (1, 2, 4, 8, 16, 32, 64, 128)])
    assert (bounds.diff(dim=0) > 0).all() and (bounds < model.log_prob(x)).all()
    assert ((iwae(log_w) - model.log_prob(x)).abs() < 5 * iwae_stderr(log_w)).all()


def test_the_prior_fails_in_high_dimension() -> None:
    """The number of draws that is needed grows exponentially with the dimension of the latent.

    The effective sample size of 4,096 draws falls to a few, and the bound falls by many nats.
    """
    sizes, deficit = [], []
    for latent in (1, 4, 16, 64):
        model = ProbabilisticPCA(
            2.0 * torch.eye(latent, dtype=torch.float64), normal((latent,), 1), 0.5
        )
        x = model.sample(16, seed=2)
        log_w = log_weights(model, x, samples=4_096, seed=1, proposal="prior")
        sizes.append(effective_sample_size(log_w).median().item())
        deficit.append((model.log_prob(x) - iwae(log_w)).mean().item())
    assert (
        sizes[0] > 300
        and sizes[2] < 3
        and all(a >= b for a, b in zip(sizes, sizes[1:], strict=False))
    )
    assert abs(deficit[0]) < 0.1 and deficit[2] > 3 and deficit[3] > 5 * deficit[2]


def test_a_likelihood_in_place_of_the_prior_is_no_marginal_likelihood(backend: str) -> None:
    """Weights p(x|z) p(x|z)/q have the mean ∫ p(x|z)² dz, which is another number than p(x).

    With the part r of x - μ outside the columns of W, ∫ p(x|z)² dz is
    (2π s²)^(-D) (π s²)^(L/2) det(WᵀW)^(-½) exp(-r²/s²).
    """
    model, x = ppca(size=3, latent=2, std=0.5), normal((4, 3), 3)
    counter = {"samples": 200_000, "seed": 1}
    q = worse(model.posterior(x))
    log_w = log_weights(model, x, **counter, proposal=q)
    z = variational.bounds.draw(q, **counter)
    squared = log_w + variational.bounds.log_likelihoods(model, x, z) - model.log_prior(z)
    gram, centred = model.weight.T @ model.weight, x - model.mean
    outside = centred - centred @ model.weight @ torch.linalg.inv(gram) @ model.weight.T
    wrong = (
        math.log(math.pi * model.std**2)
        - 3 * math.log(2 * math.pi * model.std**2)
        - 0.5 * torch.logdet(gram)
        - outside.square().sum(1) / model.std**2
    )
    assert ((iwae(squared) - wrong).abs() < 5 * iwae_stderr(squared)).all()
    assert ((iwae(log_w) - model.log_prob(x)).abs() < 5 * iwae_stderr(log_w)).all()
    assert ((wrong - model.log_prob(x)).abs() > 20 * iwae_stderr(squared)).all(), (
        "far from the evidence"
    )


def test_draws_of_the_prior_contain_the_prior(backend: str) -> None:
    """Draws of p(z) weighted by p(x|z) p(z) have the mean of another prior, N(0, ½ I).

    ∫ p(x|z) p(z)² dz = (4π)^(-L/2) N(x; μ, ½ W Wᵀ + s² I).
    """
    model, x = ppca(size=3, latent=2, std=0.8), normal((4, 3), 3)
    once = log_weights(model, x, samples=200_000, seed=1, proposal="prior")
    z, _ = model.draw_prior(4, 200_000, like=x, seed=1)
    twice = once + model.log_prior(z)
    narrow = ProbabilisticPCA(model.weight / math.sqrt(2), model.mean, model.std)
    wrong = narrow.log_prob(x) - math.log(4 * math.pi)
    assert ((iwae(twice) - wrong).abs() < 5 * iwae_stderr(twice)).all()
    assert ((iwae(once) - model.log_prob(x)).abs() < 5 * iwae_stderr(once)).all()
    assert ((wrong - model.log_prob(x)).abs() > 20 * iwae_stderr(twice)).all()


def test_without_a_draw_the_objective_is_no_bound(backend: str) -> None:
    """log p(x|mean of q) - KL is above log p(x) by ½ tr(W Σ Wᵀ)/s² for the exact posterior."""
    model, x = ppca(), normal((8, 5), 3)
    q = model.posterior(x)
    at_mean = variational.bounds.log_likelihoods(model, x, q.mean[:, None])[:, 0]
    objective = at_mean - ops.gaussian_kl(*q)
    excess = 0.5 * (torch.exp(q.logvar) * model.weight.square().sum(0)).sum(1) / model.std**2
    close(objective - model.log_prob(x), excess)
    assert (excess > 0.5).all()


def test_a_higher_bound_may_be_a_lower_likelihood(backend: str) -> None:
    """At a fixed encoder the ELBO rises from one noise level to another and log p(x) falls."""
    column = torch.ones(1, 1, dtype=torch.float64)
    q = Gaussian(0.6 * column, -column)
    models = [ProbabilisticPCA(column, 0 * column[0], math.sqrt(v)) for v in (0.25, 0.528)]
    low, high = (m.elbo(column, q) for m in models)
    before, after = (m.log_prob(column) for m in models)
    assert high - low > 0.18 and after - before < -0.027
    for model, bound, evidence in zip(models, (low, high), (before, after), strict=True):
        close(bound + model.gap(column, q), evidence)


def test_a_sum_over_draws_is_no_expectation(backend: str) -> None:
    """Without 1/L the best encoder is the posterior for s²/L, which is too narrow."""
    model, x, draws = ppca(), normal((8, 5), 3), 4
    counted = ProbabilisticPCA(model.weight, model.mean, model.std / math.sqrt(draws))
    zero = Gaussian(*(torch.zeros(8, 3, dtype=torch.float64) for _ in range(2)))

    def best(weight: float) -> Gaussian:
        """Returns the q that maximises weight·E_q[log p(x|z)] - KL, found by L-BFGS."""
        values = [v.clone().requires_grad_() for v in zero]
        optimizer = torch.optim.LBFGS(
            values, lr=1, max_iter=200, tolerance_grad=1e-12, tolerance_change=0
        )

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            kl = ops.gaussian_kl(*values)
            value = -(weight * (model.elbo(x, Gaussian(*values)) + kl) - kl).sum()
            value.backward()
            return value

        optimizer.step(loss)
        return Gaussian(*(v.detach() for v in values))

    right, wrong = best(1), best(draws)
    torch.testing.assert_close(right.logvar, model.posterior(x).logvar, rtol=0, atol=1e-5)
    torch.testing.assert_close(wrong.logvar, counted.posterior(x).logvar, rtol=0, atol=1e-5)
    assert (wrong.logvar < right.logvar - 0.1).all() and (model.gap(x, wrong) > 0.05).all()
    # the sum does not estimate the bound: it differs by (L - 1) reconstructions
    q = model.posterior(x)
    z = variational.bounds.draw(q, draws, seed=0)
    log_likelihood = variational.bounds.log_likelihoods(model, x, z)
    summed = log_likelihood.sum(1) - ops.gaussian_kl(*q)
    assert (summed + 5 < model.log_prob(x)).any() and (
        (summed - elbo(log_likelihood) * 3) < 0
    ).all()


def test_diagnostics_of_known_weights() -> None:
    log_w = torch.log(
        torch.tensor([[1.0, 1.0, 2.0, 4.0], [0.0, 0.0, 0.0, 5.0]], dtype=torch.float64)
    )
    close(effective_sample_size(log_w), torch.tensor([64 / 22, 1.0], dtype=torch.float64))
    close(iwae(log_w), torch.tensor([2.0, 1.25], dtype=torch.float64).log())
    w = log_w.exp()
    close(iwae_stderr(log_w), w.std(-1) / w.mean(-1) / 2)
    (
        close(iwae_stderr(log_w - 2_000), iwae_stderr(log_w)),
        close(iwae(log_w - 2_000), iwae(log_w) - 2_000),
    )
    assert elbo(log_w).tolist()[1] == -math.inf
    close(iwae(log_w, 2)[:1], torch.tensor([0.5 * math.log(3.0)], dtype=torch.float64))
    (
        close(iwae(log_w, 3)[:1], torch.tensor([math.log(4 / 3)], dtype=torch.float64)),
        "an incomplete last group is left out",
    )


def test_draws_do_not_depend_on_batch_number_or_memory(backend: str) -> None:
    model, x, ids = ppca(), normal((6, 5), 3), torch.tensor([7, 2**40, 0, 1, 2, 3])
    all_of_them = log_weights(model, x, samples=10, seed=4, sample_ids=ids, step=3)
    assert torch.equal(
        log_weights(model, x, samples=10, seed=4, sample_ids=ids, step=3, rows=7), all_of_them
    )
    close(log_weights(model, x, samples=4, seed=4, sample_ids=ids, step=3), all_of_them[:, :4])
    close(
        log_weights(model, x[2:3], samples=10, seed=4, sample_ids=ids[2:3], step=3),
        all_of_them[2:3],
    )
    for other in ({"seed": 5, "step": 3}, {"seed": 4, "step": 2}):
        assert not torch.equal(
            log_weights(model, x, samples=10, sample_ids=ids, **other), all_of_them
        )
    assert log_weights(model, x[:0], samples=3, seed=0).shape == (0, 3)


def test_gradients_of_the_bounds(backend: str) -> None:
    """Gradients with respect to the proposal agree with finite differences.

    The backward pass regenerates the noise of z.
    """
    model, x = ppca(), normal((3, 5), 3)
    q = [v.clone().requires_grad_() for v in worse(model.posterior(x))]
    for bound in (elbo, iwae):
        f = lambda m, v, bound=bound: bound(  # noqa: E731
            log_weights(model, x, samples=5, seed=1, proposal=(m, v))
        )
        assert torch.autograd.gradcheck(f, q)


def test_the_reparameterised_gradient_against_the_score_functions(backend: str) -> None:
    """Gradients of E (μ + σ eps)²: equal means 2μ and 2σ, larger variance of the score function."""
    n, mu, sigma = 100_000, 0.7, 1.3
    values = [
        torch.full((n, 1), v, dtype=torch.float64, requires_grad=True)
        for v in (mu, 2 * math.log(sigma))
    ]
    z = ops.reparameterize(*values, seed=0)
    path = torch.cat(torch.autograd.grad((z**2).sum(), values), 1)
    density = Gaussian(*values).log_prob(z.detach())
    score = torch.cat(torch.autograd.grad((density * z.detach()[:, 0] ** 2).sum(), values), 1)
    expected = torch.tensor(
        [2 * mu, 2 * sigma * sigma / 2], dtype=torch.float64
    )  # d σ / d logvar = σ/2
    for estimate in (path, score):
        assert ((estimate.mean(0) - expected).abs() < 5 * estimate.std(0) / math.sqrt(n)).all()
    assert (score.var(0) > 2 * path.var(0)).all()


def test_fit_is_the_maximum_of_the_likelihood() -> None:
    """At the fitted model the gradient is 0 and the posterior is diagonal."""
    x = ppca(orthogonal=False).sample(500, seed=0)
    fitted = ProbabilisticPCA.fit(x, 3)
    weight, mean = fitted.weight.clone().requires_grad_(), fitted.mean.clone().requires_grad_()
    ProbabilisticPCA(weight, mean, fitted.std).log_prob(x).mean().backward()
    assert weight.grad.abs().max() < 1e-10 and mean.grad.abs().max() < 1e-10
    by_std = [
        ProbabilisticPCA(fitted.weight, fitted.mean, fitted.std * f).log_prob(x).mean()
        for f in (0.99, 1, 1.01)
    ]
    assert by_std[1] > by_std[0] and by_std[1] > by_std[2]
    q = fitted.posterior(x)
    close(fitted.elbo(x, q), fitted.log_prob(x))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda m, x: log_weights(m, x, samples=0, seed=0),
            "fastdiff.theory.variational.log_weights: expected samples >= 1, got 0.",
        ),
        (
            lambda m, x: log_weights(m, x, samples=2, seed=0, proposal="posterior"),
            (
                "fastdiff.theory.variational.log_weights: expected proposal None, 'prior' or a"
                " Gaussian, got 'posterior'."
            ),
        ),
        (
            lambda m, x: iwae(torch.zeros(2, 4), 5),
            "fastdiff.theory.variational.iwae: expected k in [1, 4], got 5.",
        ),
        (
            lambda m, x: elbo(torch.zeros(())),
            "fastdiff.theory.variational.elbo: expected log-weights [..., K], K >= 1, got [].",
        ),
        (
            lambda m, x: iwae_stderr(torch.zeros(2, 1)),
            (
                "fastdiff.theory.variational.iwae_stderr: expected log-weights [..., K >= 2], got K"
                " = 1."
            ),
        ),
        (
            lambda m, x: ProbabilisticPCA(torch.zeros(3, 2), torch.zeros(2), 1.0),
            (
                "fastdiff.theory.variational.ProbabilisticPCA: expected weight [D, latent] and mean"
                " [D], got [3, 2] and [2]."
            ),
        ),
        (
            lambda m, x: ProbabilisticPCA(torch.zeros(3, 2), torch.zeros(3), 0.0),
            "fastdiff.theory.variational.ProbabilisticPCA: expected std > 0, got 0.0.",
        ),
        (
            lambda m, x: ProbabilisticPCA.fit(x, 5),
            "fastdiff.theory.variational.ProbabilisticPCA.fit: expected latent in [1, 5), got 5.",
        ),
    ],
)
def test_bad_input(call, message) -> None:
    with pytest.raises(ValueError) as error:
        call(ppca(), normal((8, 5), 3))
    assert str(error.value) == message
