"""The VAE against models with known evidence, and its noise against the noise contract."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from theory.variational.latent_models import FLAT, build, linear_vae, normal, ppca
from tolerances import EVIDENCE, moments

from fastdiff import ops
from fastdiff.theory.variational import VAE

IMAGE: dict[str, Any] = {"shape": (1, 8, 8), "latent": 3, "widths": (4, 8, 16)}


def images(n: int, seed: int = 0, shape: tuple[int, ...] = (1, 8, 8)) -> torch.Tensor:
    levels = torch.randint(0, 256, (n, *shape), generator=torch.Generator("cpu").manual_seed(seed))
    return levels.float() / 127.5 - 1


def repeated_losses(vae: VAE, x: torch.Tensor, times: int) -> torch.Tensor:
    """Returns losses [times, B] of x with other noise each time, since the sample ids differ."""
    return vae.loss(x.repeat(times, 1), seed=0).detach().view(times, len(x))


@pytest.mark.parametrize("samples", [1, 5])
def test_the_loss_is_the_negative_bound_on_a_known_model(samples: int, backend: str) -> None:
    """With the exact posterior as encoder, the mean of the loss is -log p(x)."""
    model, x = ppca(), normal((6, 5), 3)
    vae = linear_vae(model, samples=samples)
    losses = repeated_losses(vae, x, 2_000)
    assert ((losses.mean(0) + model.log_prob(x)).abs() < 5 * losses.std(0) / math.sqrt(2_000)).all()
    terms = vae.bound(x, None, seed=0, samples=20, importance=True)
    torch.testing.assert_close(
        sum(terms.values()), -model.log_prob(x), rtol=EVIDENCE, atol=EVIDENCE
    )
    torch.testing.assert_close(
        terms["kl"], ops.gaussian_kl(*model.posterior(x)), rtol=EVIDENCE, atol=EVIDENCE
    )
    one = linear_vae(model)
    (
        torch.testing.assert_close(total(one, x, seed=0), one.loss(x, seed=0)),
        "the bound of one draw is the loss",
    )


def test_the_bound_is_that_of_the_objective(backend: str) -> None:
    x = normal((3, 5), 1)
    for name, terms in (("elbo", 2), ("importance", 3), ("prior", 1)):
        vae = linear_vae(ppca(), objective=name, samples=4)
        assert len(vae.bound(x, seed=2)) == terms
        torch.testing.assert_close(total(vae, x, seed=2, step=5), vae.loss(x, seed=2, step=5))
    assert len(vae.bound(x, seed=2, samples=9)) == 1 and vae.objective == "prior"


def total(vae: VAE, x: torch.Tensor, **options: Any) -> torch.Tensor:
    return sum(vae.bound(x, **options).values())  # type: ignore[return-value]


def test_draws_are_averaged(backend: str) -> None:
    """Draws are averaged, not summed: the mean stays, the spread is √L times smaller."""
    x = normal((6, 5), 3)
    one, eight = (repeated_losses(linear_vae(ppca(), samples=n), x, 2_000) for n in (1, 8))
    np.testing.assert_allclose((one.std(0) / eight.std(0)).numpy(), math.sqrt(8), rtol=0.15)
    assert ((one.mean(0) - eight.mean(0)).abs() < 6 * one.std(0) / math.sqrt(2_000)).all()


def test_without_its_kl_it_is_the_autoencoder(backend: str) -> None:
    """With kl_weight=0, z = μ(x) and the gradients are those of decoder(encoder(x)).

    The gradient of the log-variance is 0.
    """
    vae = build(**FLAT, covariance="isotropic", std=1.0, kl_weight=0.0).double()
    x = normal((7, 4), 1)
    assert torch.equal(vae.loss(x, seed=0), vae.loss(x, seed=1))
    parameters = list(vae.parameters())
    ours = torch.autograd.grad(vae.loss(x, seed=0).sum(), parameters)
    mean = vae.encoder(x)[:, :2]
    error = 0.5 * (vae.decoder(mean)[0][:, 0] - x).square().sum()
    for got, expected in zip(ours, torch.autograd.grad(error, parameters), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    bias = next(i for i, p in enumerate(parameters) if p is vae.encoder.body[-1][-1].bias)
    assert (ours[bias][2:] == 0).all() and (ours[bias][:2] != 0).all()


def test_the_kl_weight_weighs_the_kl(backend: str) -> None:
    x = normal((7, 4), 1)
    plain, heavy = (build(**FLAT, kl_weight=w).double() for w in (1.0, 3.0))
    torch.testing.assert_close(
        heavy.loss(x, seed=0) - plain.loss(x, seed=0), 2 * plain.bound(x, seed=0)["kl"]
    )
    assert torch.equal(total(heavy, x, seed=0), total(plain, x, seed=0)), (
        "the bound does not depend on kl_weight"
    )


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_gradients_against_differences(covariance: str, backend: str) -> None:
    """The gradient of the whole loss equals a directional difference in float64."""
    vae = build(**FLAT, covariance=covariance, samples=2).double()
    x, parameters = normal((3, 4), 1), list(vae.parameters())
    direction = [normal(tuple(p.shape), 5 + i) for i, p in enumerate(parameters)]
    grads = torch.autograd.grad(vae.loss(x, seed=0).sum(), parameters)
    slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))

    def moved(by: float) -> torch.Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += by * d
            value = vae.loss(x, seed=0).sum()
            for p, d in zip(parameters, direction, strict=True):
                p -= by * d
        return value

    h = 1e-5
    assert ((moved(h) - moved(-h)) / (2 * h)).item() == pytest.approx(slope.item(), rel=1e-7)


def test_samples_of_a_linear_model_have_its_moments(backend: str) -> None:
    model, n = ppca(), 40_000
    x = linear_vae(model).sample(n, seed=1)
    covariance = model.weight @ model.weight.T + model.std**2 * torch.eye(5, dtype=torch.float64)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), (x - model.mean).T, upper=False
    )
    assert white.mean(1).abs().max() < moments(n)["mean"]
    assert (white @ white.T / n - torch.eye(5)).abs().max() < moments(n)["variance"]
    torch.testing.assert_close(x, model.sample(n, seed=1)), "both have the same noise"


@pytest.mark.parametrize(
    "config", [IMAGE, {**FLAT, "prior": "mixture"}, {**FLAT, "covariance": "full"}]
)
def test_samples_are_functions_of_their_ids(config: dict[str, Any], backend: str) -> None:
    vae = build(**config).double()
    x = vae.sample(6, seed=5)
    some = vae.sample(2, seed=5, sample_ids=torch.tensor([4, 1]))
    torch.testing.assert_close(some, x[[4, 1]], rtol=1e-12, atol=1e-12)
    assert not torch.equal(vae.sample(6, seed=6), x) and x.shape == (6, *vae.shape)
    assert torch.equal(vae.sample(6, seed=5, mean=True), vae.sample(6, seed=5, mean=True))
    assert vae.reconstruct(x).shape == x.shape


@pytest.mark.parametrize(
    "config", [IMAGE, FLAT, {**FLAT, "covariance": "full", "prior": "mixture", "samples": 3}]
)
def test_losses_are_functions_of_seed_step_and_id(config: dict[str, Any], backend: str) -> None:
    vae = build(**config).double()
    x, ids = (
        images(6).double() if config is IMAGE else normal((6, 4), 1),
        torch.tensor([9, 3, 2**50, 0, 5, 1]),
    )
    loss = vae.loss(x, None, seed=1, sample_ids=ids, step=7)
    assert loss.shape == (6,)
    torch.testing.assert_close(
        vae.loss(x[2:3], seed=1, sample_ids=ids[2:3], step=7), loss[2:3], rtol=1e-12, atol=1e-12
    )
    assert not torch.equal(vae.loss(x, seed=1, sample_ids=ids, step=8), loss)
    assert not torch.equal(vae.loss(x, seed=2, sample_ids=ids, step=7), loss)


def test_backends_agree(backend: str) -> None:
    """Loss and gradients in float64 on every backend equal the torch backend's."""
    import fastdiff

    vae, x = build(**IMAGE, samples=2).double(), images(4).double()

    def run() -> list[torch.Tensor]:
        loss = vae.loss(x, seed=0).sum()
        return [loss.detach(), *torch.autograd.grad(loss, list(vae.parameters()))]

    ours = run()
    with fastdiff.use("torch"):
        reference = run()
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        IMAGE,
        FLAT,
        {**FLAT, "network": "linear", "widths": None, "covariance": "isotropic", "std": 0.5},
        {**FLAT, "prior": "mixture", "components": 3, "objective": "importance", "samples": 4},
    ],
)
def test_the_config_rebuilds_it(config: dict[str, Any]) -> None:
    vae = build(**config)
    again = VAE(**json.loads(json.dumps(vae.config)))
    again.load_state_dict(vae.state_dict())
    x = images(3) if config is IMAGE else normal((3, 4), 1).float()
    assert torch.equal(again.loss(x, seed=0), vae.loss(x, seed=0)) and again.config == vae.config


def test_the_images_default_is_small_and_trains(backend: str) -> None:
    """After a few steps on eight images the bound is better by more than a bit per pixel."""
    vae, x = build(**IMAGE), images(8)
    x[:, :, 2:6] = -1.0
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    with torch.no_grad():
        before = total(vae, x, seed=0).mean()
    for step in range(60):
        optimizer.zero_grad()
        vae.loss(x, seed=0, step=step).mean().backward()
        optimizer.step()
    with torch.no_grad():
        after = total(vae, x, seed=0).mean()
    assert (before - after) / (64 * math.log(2)) > 1
    assert sum(p.numel() for p in VAE().parameters()) < 2_500_000


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"shape": (1, 30, 28)},
            (
                "expected shape [C, H, W] with H and W divisible by 4 for 'conv', got [1, 30, 28]."
                " Pad the images or use 'mlp'."
            ),
        ),
        ({"shape": ()}, "expected shape of sizes >= 1, got []."),
        ({"network": "cnn"}, "expected network in ['conv', 'mlp', 'linear'], got 'cnn'."),
        (
            {"widths": (8,)},
            "expected 3 widths (fine channels, coarse channels, hidden) for 'conv', got [8].",
        ),
        ({"latent": 0}, "expected latent >= 1, got 0."),
        ({"samples": 0}, "expected samples >= 1, got 0."),
        (
            {"likelihood": "bernoulli"},
            "expected likelihood in ['discretized', 'gaussian'], got 'bernoulli'.",
        ),
        (
            {"covariance": "banded"},
            "expected covariance in ['isotropic', 'diagonal', 'full'], got 'banded'.",
        ),
        (
            {"network": "mlp", "covariance": "full"},
            (
                "expected likelihood 'gaussian' with a full covariance, got "
                "'discretized'. The mass of a correlated Gaussian on a bin has no closed form."
            ),
        ),
        ({"std": 0.5}, "expected std > 0 with covariance 'isotropic', got 0.5 with 'diagonal'."),
        ({"initial_std": 1e-4}, "expected initial_std above its floor e^-7, got 0.0001."),
        ({"prior": "flow"}, "expected prior in ['normal', 'mixture'], got 'flow'."),
        ({"objective": "vi"}, "expected objective in ['elbo', 'importance', 'prior'], got 'vi'."),
        ({"kl_weight": -1.0}, "expected kl_weight >= 0, got -1.0."),
        (
            {"kl_weight": 0.5, "objective": "prior"},
            "expected kl_weight 1 with objective 'prior', got 0.5. This objective has no KL.",
        ),
    ],
)
def test_bad_configurations(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        VAE(**config)
    assert str(error.value) == "fastdiff.theory.variational.VAE: " + message


def test_bad_input() -> None:
    with pytest.raises(ValueError) as error:
        build(**IMAGE).loss(torch.zeros(2, 8, 8), seed=0)
    assert (
        str(error.value)
        == "fastdiff.theory.variational.VAE: expected x0 of shape [B, 1, 8, 8], got [2, 8, 8]."
    )
    with pytest.raises(ValueError) as error:
        build(**IMAGE).bound(images(2), seed=0, samples=0)
    assert (
        str(error.value) == "fastdiff.theory.variational.VAE.bound: expected samples >= 1, got 0."
    )
