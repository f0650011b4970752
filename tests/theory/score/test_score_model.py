"""The score model: an unbiased bound as its loss, its configuration, and a learned density."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import Gaussian
from torch import Tensor, nn

import fastdiff
from fastdiff import Sampler, reference, rng
from fastdiff.data import load_toy
from fastdiff.models import MLP, UNet, features
from fastdiff.theory.likelihood import nll
from fastdiff.theory.score import ScoreModel, network_for

IDS = torch.arange(8)
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "emb": 8}


class ExactScore(ScoreModel):
    """A model with the exact network of N(mean, s² I), so that its bound is known."""

    def __init__(self, std: float, dims: int, **config: Any):
        super().__init__(network_for((dims,), **SMALL), likelihood="gaussian", **config)
        self.std = std

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        span = self.log_snr_max - self.log_snr_min
        rho2 = torch.exp(t.double() * span - self.log_snr_max).view(-1, 1)
        alpha, sigma = 1 / torch.sqrt(1 + rho2), torch.sqrt(rho2 / (1 + rho2))  # on the circle
        wide = x.double()
        x0 = alpha * self.std**2 * wide / (alpha**2 * self.std**2 + sigma**2)
        eps = (wide - alpha * x0) / sigma
        return fastdiff.prediction.target(self.prediction_type, x0, eps, alpha, sigma).to(x.dtype)


@pytest.mark.parametrize("sde", ["vp", "sub_vp", "ve"])
@pytest.mark.parametrize("kind", ["v", "epsilon"])
def test_the_diffusion_term_is_its_integral(sde: str, kind: str) -> None:
    """On N(0, s²) it is ½ ln((1 + s² SNR_max)/(1 + s² SNR_min)) per dimension.

    This holds however the times are drawn.
    """
    std, dims, n = 0.5, 64, 300
    x0, ids = std * fastdiff.randn((n, dims), seed=1, dtype=torch.float64), torch.arange(n)
    model = ExactScore(std, dims, sde=sde, prediction_type=kind)
    want = 0.5 * math.log(
        (1 + std**2 * math.exp(model.log_snr_max)) / (1 + std**2 * math.exp(model.log_snr_min))
    )
    spread = {}
    for times in ("independent", "stratified"):
        model.times = times
        means = torch.stack(
            [model.loss(x0, seed=3, sample_ids=ids, step=s) for s in range(30)]
        ).mean(1)
        assert abs(float(means.mean()) - want) < 5 * float(means.std()) / 30**0.5
        spread[times] = float(means.std())
    assert spread["stratified"] < 0.6 * spread["independent"]
    # with uniform t nearly all of VP's loss comes from t < 0.001: integrate over t^(1/5) instead
    model.importance = False
    first = float(model.sde.time(model.log_snr_max))
    edges = torch.linspace(first**0.2, 1.0, n + 1, dtype=torch.float64) ** 5
    model._uniform = lambda **_: (0.5 * (edges[1:] + edges[:-1]) - first) / (1 - first)  # type: ignore[method-assign]
    parts = [
        model.loss(x0, seed=3, sample_ids=ids, step=s) * (edges[1:] - edges[:-1]) / (1 - first)
        for s in range(5)
    ]
    assert float(torch.stack(parts).sum()) / 5 == pytest.approx(want, rel=0.02)
    bound = model.bound(x0, seed=5, sample_ids=ids, times=16)
    per_dim = {k: float(v.mean()) / dims for k, v in bound.items()}
    slack = 5 * float(bound["denoising"].std()) / n**0.5 / dims
    assert abs(per_dim["denoising"] - want) < slack
    # the whole bound is that of data blurred by the lowest noise level; the prior is nearly reached
    rho = math.exp(-0.5 * model.log_snr_max)
    entropy = 0.5 * math.log(2 * math.pi * math.e * (std**2 + rho**2))
    assert abs(sum(per_dim.values()) - entropy) < slack + 0.02
    timed = model.terms(x0, seed=5, sample_ids=ids, times=16)  # the terms that `bound` sums
    assert torch.equal(
        timed.bound["denoising"], timed.denoising.sum(1)
    ) and timed.log_snr.shape == (n, 16)
    assert bool((timed.log_snr.diff(dim=1) < 0).all())


def test_the_likelihood_it_names_is_the_flows() -> None:
    """The bound is above -ln p of the model's own probability flow, both exact here.

    `nll` takes the arguments of `for_likelihood`.
    """
    model = ExactScore(0.5, 3)
    x = 0.5 * fastdiff.randn((40, 3), seed=2, dtype=torch.float64)
    got = nll(x=x, **model.for_likelihood(), seed=0, rtol=1e-6, atol=1e-6)
    low = model.schedule.at_log_snr(model.log_snr_max)
    want = Gaussian([0.0] * 3, np.eye(3) * 0.25).flow_nll(x, model.schedule, low)
    np.testing.assert_allclose(got.nats, want, atol=1e-4)
    bound = sum(model.bound(x, seed=0, sample_ids=torch.arange(40), times=200).values())
    assert isinstance(bound, Tensor) and float((bound - got.nats).mean()) > -0.05


@pytest.mark.parametrize("weighting", ["likelihood", "simple"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_loss_is_the_oracles(weighting: str, backend: str) -> None:
    """The loss from the times, noise and weights of the noise contract, in NumPy."""
    torch.manual_seed(0)
    model = ScoreModel(
        MLP(3, time_scale=1000.0, **SMALL), weighting=weighting, importance=False, label_dropout=0.0
    )
    nn.init.normal_(model.network.linear_out.weight)
    x0 = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    with fastdiff.use(backend):
        got = model.loss(x0, seed=3, sample_ids=IDS + 5, step=11)
    u = rng.uniform(seed=3, sample_ids=IDS + 5, step=11).double().numpy()
    first = float(model.sde.time(13.3))
    t = first + u * (1 - first)
    total = 0.5 * t**2 * 19.9 + 0.1 * t
    alpha, sigma = np.exp(-total / 2)[:, None], np.sqrt(-np.expm1(-total))[:, None]
    eps = reference.randn((8, 3), seed=3, sample_ids=(IDS + 5).numpy(), step=11, stream=2).astype(
        np.float64
    )
    x_t = alpha * x0.double().numpy() + sigma * eps
    log_snr = 2 * np.log(alpha / sigma)[:, 0]
    network_time = torch.from_numpy((13.3 - log_snr) / (13.3 - model.log_snr_min)).float()
    v = model.network(torch.from_numpy(x_t).float(), network_time).detach().double().numpy()
    weight = (
        0.5 * (1 - first) * (0.1 + 19.9 * t) / sigma[:, 0] ** 2
        if weighting == "likelihood"
        else 1.0
    )
    want = weight * ((sigma * x_t + alpha * v - eps) ** 2).mean(1)
    np.testing.assert_allclose(got.detach(), want, rtol=2e-3)
    got.sum().backward()
    assert all(
        p.grad is not None and bool(p.grad.isfinite().all())
        for p in model.network.linear_out.parameters()
    )


def test_a_samples_loss_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    model = ScoreModel(MLP(3, num_classes=4, time_scale=1000.0, **SMALL))
    nn.init.normal_(model.network.linear_out.weight)
    x0, labels = torch.randn(8, 3), IDS % 4
    whole = model.loss(x0, labels, seed=3, sample_ids=IDS, step=2)
    part = model.loss(x0[5:6], labels[5:6], seed=3, sample_ids=IDS[5:6], step=2)
    torch.testing.assert_close(part, whole[5:6], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(whole, model.loss(x0, labels, seed=3, sample_ids=IDS, step=3))


def test_labels_are_dropped_at_the_stated_rate() -> None:
    seen: list[Tensor] = []

    class Watched(MLP):
        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            assert y is not None
            seen.append(y)
            return x

    fastdiff.models.build.__globals__["MODELS"]["Watched"] = Watched
    try:
        model = ScoreModel(Watched(2, num_classes=3, **SMALL), label_dropout=0.25)
    finally:
        del fastdiff.models.build.__globals__["MODELS"]["Watched"]
    labels = torch.arange(4000) % 3
    model.loss(torch.zeros(4000, 2), labels, seed=0, sample_ids=torch.arange(4000), step=0)
    dropped = seen[0] == 3
    assert torch.equal(seen[0][~dropped], labels[~dropped])
    assert abs(float(dropped.double().mean()) - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize("sde", ["vp", "sub_vp", "ve"])
def test_a_configuration_rebuilds_it_and_the_sampler_draws(sde: str) -> None:
    torch.manual_seed(0)
    options = {"sigma_min": 0.02, "sigma_max": 9.0} if sde == "ve" else {"beta_max": 10.0}
    model = ScoreModel(
        network_for((1, 8, 8), fourier=(6, 7), classes=3, widths=(8, 16), emb=16, mid_blocks=1),
        sde=sde,
        sde_options=options,
        fourier=(6, 7),
        times="stratified",
        log_snr_max=7.0,
    )
    assert isinstance(model.network, UNet)
    nn.init.normal_(model.network.conv_out.weight, std=0.003)
    again = ScoreModel(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    y, counter = torch.tensor([0, 2]), {"seed": 1, "sample_ids": torch.arange(2), "step": 0}
    assert torch.equal(model.loss(x, y, **counter), again.loss(x, y, **counter))
    assert again.config == model.config
    network, schedule, settings = model.for_sampler()
    drawn = Sampler(network, schedule, solver="dpm++2m", steps=4, **settings).sample(
        (2, 1, 8, 8), seed=0, cond={"y": y}
    )
    assert drawn.shape == (2, 1, 8, 8) and float(drawn.abs().max()) <= 1.0
    levels = (torch.randint(256, (2, 1, 8, 8)) / 127.5 - 1).float()
    found = nll(x=levels, **model.for_likelihood(y), seed=0, rtol=1e-2, atol=1e-2)
    assert bool(found.nats.isfinite().all()) and found.nats.shape == (2,)


def test_fourier_features_are_appended_to_the_input() -> None:
    model = ScoreModel(
        network_for((1, 4, 4), fourier=(2, 3), widths=(8,), emb=16, mid_blocks=1), fourier=(2, 3)
    )
    seen: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.rand(2, 1, 4, 4)
    assert model(x, torch.zeros(2)).shape == (2, 1, 4, 4)
    torch.testing.assert_close(seen[0], features(x, (2, 3)), rtol=0, atol=0)


def test_training_reaches_the_density() -> None:
    """A few hundred steps on moons in the plane.

    The flow's NLL comes near the entropy, which no Gaussian reaches.
    """
    torch.manual_seed(0)
    data = load_toy("moons", n=20_000)
    model = ScoreModel(
        network_for((2,), width=64, depth=2, emb=32),
        likelihood="gaussian",
        log_snr_max=7.0,
        times="stratified",
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(300):
        ids = torch.arange(512) + 512 * (step % 39)
        x0, labels = data.batch(ids)
        loss = model.loss(x0, labels, seed=0, sample_ids=ids, step=step).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / 300)
    test = load_toy("moons", split="test", n=300)
    got = nll(x=test.points, **model.for_likelihood(), divergence="exact", rtol=1e-3, atol=1e-3)
    truth = -test.log_density(test.points)
    covariance = np.cov(data.points.numpy().T)
    gaussian = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    gap = float((got.nats - truth).mean())
    assert -0.05 < gap < 0.3 * (gaussian - float(truth.mean())), gap


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sde": "vpsde"}, r"expected sde in \['vp', 've', 'sub_vp'\], got 'vpsde'"),
        ({"weighting": "g2"}, "expected weighting in"),
        ({"times": "antithetic"}, "expected times in"),
        ({"likelihood": "laplace"}, "expected likelihood in"),
        ({"dequantization": "gaussian"}, "expected dequantization in"),
        ({"label_dropout": 1.5}, r"expected label_dropout in \[0, 1\], got 1.5"),
        ({"log_snr_max": -20.0}, "expected log_snr_max above -10.05"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="fastdiff.theory.score.ScoreModel: " + message):
        ScoreModel(network_for((2,), **SMALL), **changes)


def test_uniform_noise_in_training_is_not_the_forward_noise() -> None:
    """The mean loss with dequantization equals that on data dequantized beforehand.

    The dequantisation noise is drawn at the shifted step.
    """
    from fastdiff.theory.dequantization import dequantize

    torch.manual_seed(0)
    config = network_for((3,), **SMALL)
    model, plain = ScoreModel(config, dequantization="uniform"), ScoreModel(config)
    plain.load_state_dict(model.state_dict())
    x = torch.tensor([[3, 90, 255], [0, 1, 2]]) / 127.5 - 1
    counter: dict[str, Any] = {"seed": 1, "sample_ids": torch.arange(2)}
    z, _ = dequantize(x, "uniform", rho=1.0, step=7 + 2**31, **counter)
    assert torch.equal(model.loss(x, step=7, **counter), plain.loss(z, step=7, **counter))
    assert (
        model.for_likelihood()["dequantization"] == "uniform"
        and plain.for_likelihood()["dequantization"] == "gaussian"
    )
