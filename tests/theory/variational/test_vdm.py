"""The variational diffusion model: losses against closed forms, and the model as a system."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from gaussian import Gaussian
from tolerances import BOUND
from torch import Tensor

from fastdiff import Sampler, Schedule, ops, prediction
from fastdiff.models import features
from fastdiff.theory.likelihood import elbo, nll
from fastdiff.theory.variational import VDM, times
from fastdiff.theory.variational.diffusion import diffusion_terms
from fastdiff.theory.variational.gamma import CosineGamma, Gamma, LearnedGamma, LinearGamma, point

STD, LOW, HIGH = 0.5, -8.0, 5.0


class Optimal:
    """The optimal network of N(0, s²) data at gamma, for any prediction type, in float64."""

    def __init__(self, kind: str = "epsilon"):
        self.kind = kind

    def __call__(self, z: Tensor, gamma_t: Tensor) -> Tensor:
        wide = (-1,) + (1,) * (z.ndim - 1)
        alpha, sigma = (v.view(wide) for v in point(gamma_t))
        total = alpha**2 * STD**2 + sigma**2
        x0, eps = alpha * STD**2 / total * z.double(), sigma / total * z.double()
        return prediction.target(self.kind, x0, eps, alpha, sigma).to(z.dtype)


def paths() -> dict[str, Gamma]:
    bent = LearnedGamma(LOW, HIGH, hidden=8)
    with torch.no_grad():
        bent.w3 += torch.linspace(6.0, -1.0, 8, dtype=torch.float64)
    return {"linear": LinearGamma(LOW, HIGH), "cosine": CosineGamma(LOW, HIGH), "learned": bent}


def error(gamma: np.ndarray) -> np.ndarray:
    """E (eps - eps^)² per dimension: SNR·mmse = s² SNR/(1 + s² SNR)."""
    return STD**2 * np.exp(-gamma) / (1 + STD**2 * np.exp(-gamma))


LIMIT = 0.5 * (math.log1p(STD**2 * math.exp(-LOW)) - math.log1p(STD**2 * math.exp(-HIGH)))


@pytest.mark.parametrize("name", ["linear", "cosine", "learned"])
def test_the_continuous_loss_is_the_same_for_every_path(name: str) -> None:
    """∫ ½ gamma' E‖eps - eps^‖² du = ½ ln((1 + s² SNR_max)/(1 + s² SNR_min)) for three paths.

    It holds to the quadrature's 1e-12.
    """
    nodes, weights = np.polynomial.legendre.leggauss(400)
    gamma, slope = (v.detach().numpy() for v in paths()[name](torch.tensor(0.5 * (nodes + 1))))
    assert (0.25 * weights * slope * error(gamma)).sum() == pytest.approx(LIMIT, rel=1e-12)


def test_paths_differ_in_the_variance_of_the_estimator(backend: str) -> None:
    """Paths have equal means within 5 standard errors and different variances.

    At one time the mean is ½ gamma' E‖eps - eps^‖².
    """
    n, spread = 20_000, {}
    x0 = STD * ops.randn((n, 1), seed=4, dtype=torch.float64)
    for name, gamma in paths().items():
        u = times.uniform(torch.arange(n), seed=1, step=0)
        with torch.no_grad():
            value = diffusion_terms(Optimal(), x0, gamma, u, seed=2)
            assert abs(value.mean() - LIMIT) < 5 * value.std() / math.sqrt(n)
            spread[name] = value.var().item()
            fixed = diffusion_terms(
                Optimal(), x0, gamma, torch.full((n,), 0.3, dtype=torch.float64), seed=2
            )
            at, slope = gamma(torch.tensor([0.3], dtype=torch.float64))
        expected = 0.5 * slope.item() * error(at.numpy())[0]
        assert abs(fixed.mean().item() - expected) < 5 * fixed.std().item() / math.sqrt(n)
    assert spread["cosine"] > 1.5 * spread["linear"] and spread["learned"] != pytest.approx(
        spread["linear"], rel=0.1
    )


@pytest.mark.parametrize("name", ["linear", "cosine", "learned"])
def test_the_discrete_loss_is_the_bound_s_terms(name: str, backend: str) -> None:
    """Step i of the loss is T times term i of `likelihood.elbo`, for every sample.

    It is ½ T expm1(gamma_t - gamma_s)‖eps - eps^‖².
    """
    gamma, steps = paths()[name], 9
    schedule = gamma.schedule(steps + 1)
    x0 = ops.randn((4, 3), seed=3, dtype=torch.float64)
    model = Gaussian(schedule, "epsilon", 0.3, 0.8)  # not the optimum of these data
    terms = elbo(
        model,
        x0,
        schedule,
        prediction_type="epsilon",
        variance="fixed_small",
        seed=6,
        likelihood="gaussian",
    )
    levels = torch.tensor(schedule.log_snr)

    def predict(z: Tensor, gamma_t: Tensor) -> Tensor:
        return model(z, (levels + gamma_t[0]).abs().argmin().expand(len(z)))

    for i in range(1, steps + 1):
        u = torch.full((4,), (i - 0.5) / steps, dtype=torch.float64)
        value = diffusion_terms(predict, x0, gamma, u, num_steps=steps, seed=6, step=i)
        torch.testing.assert_close(value / steps, terms.denoising[:, i], rtol=BOUND, atol=BOUND)


def test_many_steps_come_to_the_continuous_loss() -> None:
    """L_T falls to L_∞ as 1/T (Kingma et al. 2021, section 4.1)."""
    gamma, gaps = LinearGamma(LOW, HIGH), []
    for steps in (50, 100, 200, 400):
        points = gamma(torch.arange(steps + 1, dtype=torch.float64) / steps)[0].numpy()
        gaps.append((0.5 * np.expm1(np.diff(points)) * error(points[1:])).sum() - LIMIT)
    assert all(g > 0 for g in gaps)
    assert [a / b for a, b in zip(gaps, gaps[1:], strict=False)] == pytest.approx(
        [2, 2, 2], rel=0.1
    )


def test_every_prediction_type_has_the_same_loss(backend: str) -> None:
    x0, gamma = ops.randn((5, 2, 3), seed=1, dtype=torch.float64), LinearGamma(LOW, HIGH)
    u = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    for steps in (None, 7):
        losses = [
            diffusion_terms(
                Optimal(kind), x0, gamma, u, prediction_type=kind, num_steps=steps, seed=0
            )
            for kind in ("epsilon", "x0", "score", "v", "flow", "edm")
        ]
        for loss in losses[1:]:
            torch.testing.assert_close(loss, losses[0], rtol=1e-9, atol=0)


def test_with_the_optimal_network_the_bound_of_gaussian_data_goes_to_the_entropy() -> None:
    """reconstruction + diffusion + prior = H + O(SNR_0^-1) + KL(q(z_1) || N(0, 1)) >= H."""
    entropy = 0.5 * math.log(2 * math.pi * math.e * STD**2)
    for low in (0.0, -4.0, -12.0):
        vdm = VDM(
            [1], schedule="linear", likelihood="gaussian", gamma_min=low, gamma_max=HIGH, widths=[4]
        )
        alpha, sigma = (float(v) for v in point(torch.tensor(HIGH, dtype=torch.float64)))
        x0 = torch.tensor([[STD], [-STD]], dtype=torch.float64)  # E over x0² is exact
        reconstruction = vdm.reconstruction(x0, seed=0, sample_ids=None).mean().item()
        prior = vdm.prior(x0).mean().item()
        diffusion = 0.5 * (
            math.log1p(STD**2 * math.exp(-low)) - math.log1p(STD**2 * math.exp(-HIGH))
        )
        total = alpha**2 * STD**2 + sigma**2
        expected = (
            entropy + 0.5 * math.log1p(math.exp(low) / STD**2) + 0.5 * (total - 1 - math.log(total))
        )
        assert reconstruction + diffusion + prior == pytest.approx(expected, rel=1e-12)
        assert expected > entropy


def test_the_reconstruction_is_a_distribution_over_levels() -> None:
    """Σ_k p(k|z_0) = 1, and the value is the op's at z_0/alpha_0 = x0 + e^(gamma_0/2) eps."""
    vdm = VDM([2], schedule="linear", gamma_min=-9.0, widths=[4])
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    x0 = levels[[3, 250]][None]
    got = vdm.reconstruction(x0, seed=5, sample_ids=torch.tensor([8]), step=2)
    eps = ops.randn(
        (1, 2), seed=5, sample_ids=torch.tensor([8]), step=2, stream=3, dtype=torch.float64
    )
    mean = x0 + math.exp(-4.5) * eps
    scale = torch.tensor(-4.5, dtype=torch.float64)
    assert got.item() == pytest.approx(
        ops.discretized_gaussian_nll(x0, mean, scale).item(), rel=1e-13
    )
    each = ops.discretized_gaussian_nll(levels[:, None], mean[:, :1].expand(256, 1), scale)
    assert torch.exp(-each).sum().item() == pytest.approx(1.0, rel=1e-12)


@pytest.fixture
def images() -> Tensor:
    return (
        torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    )


def small(**options) -> VDM:
    """Returns a VDM of 8×8 images with a network that does not return 0."""
    torch.manual_seed(1)
    vdm = VDM((1, 8, 8), widths=(8, 16), **options)
    with torch.no_grad():
        vdm.network.conv_out.weight += 0.05 * torch.randn_like(vdm.network.conv_out.weight)
    return vdm


SYSTEMS = {
    "learned": {},
    "discrete": {"num_steps": 12, "schedule": "cosine"},
    "table": {"schedule": Schedule.linear(20), "prediction_type": "epsilon", "fourier": ()},
    "classes": {"num_classes": 3, "time_sampling": "uniform"},
}


@pytest.mark.parametrize("options", SYSTEMS.values(), ids=SYSTEMS)
def test_as_a_system(options: dict, images: Tensor) -> None:
    """JSON rebuilds the model; loss and bound are functions of (seed, step, ids)."""
    vdm = small(**options)
    again = VDM(**json.loads(json.dumps(vdm.config)))
    again.load_state_dict(vdm.state_dict())
    ids, labels = torch.arange(40, 46), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = vdm.loss(images, labels, seed=3, sample_ids=ids, step=7)
    assert loss.shape == (6,) and loss.isfinite().all() and loss.requires_grad
    assert torch.equal(again.loss(images, labels, seed=3, sample_ids=ids, step=7), loss)
    assert not torch.equal(vdm.loss(images, labels, seed=3, sample_ids=ids, step=8), loss)
    bound = vdm.bound(images, labels, seed=3, sample_ids=ids, times=4)
    assert (
        set(bound) == {"reconstruction", "denoising", "prior"}
        and not bound["denoising"].requires_grad
    )
    assert all(v.shape == (6,) and (v >= 0).all() for v in bound.values())
    for b in (0, 4):
        alone = vdm.bound(
            images[b : b + 1], labels[b : b + 1], seed=3, sample_ids=ids[b : b + 1], times=4
        )
        for name, value in alone.items():
            torch.testing.assert_close(value, bound[name][b : b + 1], rtol=1e-5, atol=1e-6)
    loss.mean().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in vdm.network.conv_out.parameters()
    )


def test_the_loss_is_the_bound_at_one_time_in_bits() -> None:
    """The mean of the loss over steps is the bound per dimension, as is the sum of the terms."""
    torch.manual_seed(0)
    vdm = VDM([2], likelihood="gaussian", gamma_min=-6.0, widths=[4]).double()
    x0 = ops.randn((4_000, 2), seed=0, dtype=torch.float64)
    with torch.no_grad():
        loss = torch.stack([vdm.loss(x0, seed=1, step=s).mean() for s in range(6)])
    terms = vdm.terms(x0, seed=2, times=8)
    bits = sum(terms.bound.values()).mean() / (2 * math.log(2))
    assert loss.mean().item() == pytest.approx(bits.item(), rel=0.02)
    torch.testing.assert_close(terms.denoising.sum(1), terms.bound["denoising"])
    assert terms.denoising.shape == (4_000, 8) and (terms.log_snr.diff(dim=1) < 0).all()
    strata = -vdm.gamma(torch.arange(9) / 8)[0].detach()
    assert (terms.log_snr <= strata[:-1]).all() and (terms.log_snr >= strata[1:]).all()
    discrete = VDM([2], likelihood="gaussian", num_steps=5, widths=[4])
    terms = discrete.terms(x0[:3].float(), seed=2, times=64)
    expected = -discrete.gamma(torch.arange(1, 6, dtype=torch.float64) / 5)[0].detach()
    torch.testing.assert_close(terms.log_snr, expected.expand(3, 5), rtol=1e-12, atol=1e-12)


def test_the_probability_flow_gives_its_likelihood() -> None:
    """For N(0, s²) data and the optimal network, `for_likelihood` gives the flow's closed form."""
    torch.manual_seed(0)
    vdm = VDM(
        [2], likelihood="gaussian", schedule="linear", gamma_min=-9.0, gamma_max=6.0, widths=[4]
    )
    vdm.predict = lambda z, g, y=None: Optimal("v")(z, g)  # type: ignore[method-assign]
    x0 = STD * ops.randn((3, 2), seed=1, dtype=torch.float64)
    arguments = vdm.for_likelihood()
    assert arguments["dequantization"] is None and arguments["schedule"].num_train_timesteps == 1000
    got = nll(x=x0, divergence="exact", rtol=1e-7, atol=1e-7, **arguments).nats
    rho = math.exp(-4.5)
    variance = STD**2 + rho**2
    expected = 0.5 * (x0.square() / variance + math.log(2 * math.pi * variance)).sum(1)
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)


def test_labels_and_their_dropout(images: Tensor) -> None:
    vdm = small(num_classes=3, label_dropout=0.5)
    passed = []
    vdm.network.register_forward_hook(
        lambda module, inputs, kwargs, out: passed.append(kwargs.get("y")), with_kwargs=True
    )
    many, labels = images.repeat(20, 1, 1, 1), torch.arange(120) % 3
    vdm.loss(many, labels, seed=0)
    dropped = passed[0] == 3
    assert 0.3 < dropped.float().mean() < 0.7 and torch.equal(passed[0][~dropped], labels[~dropped])
    vdm.bound(images, torch.tensor([0, 1, 2, 0, 1, 2]), seed=0, times=1)
    assert passed[1].tolist() == [0, 1, 2, 0, 1, 2], "never dropped in evaluation"
    vdm.bound(images, seed=0, times=1)
    assert passed[2] is None


def test_the_network_time_is_gamma_and_the_input_has_fourier_features(images: Tensor) -> None:
    vdm = small(fourier=(5, 6), gamma_min=-10.0, gamma_max=4.0)
    passed = []
    vdm.network.register_forward_hook(lambda module, inputs, out: passed.append(inputs))
    vdm.predict(images, torch.linspace(-10, 4, 6, dtype=torch.float64))
    x, t = passed[0]
    assert x.shape == (6, 5, 8, 8) and t.tolist() == pytest.approx(
        [0, 200, 400, 600, 800, 1000], abs=1e-3
    )
    torch.testing.assert_close(x, features(images, (5, 6)), rtol=0, atol=0)
    with torch.no_grad():
        vdm.gamma.gamma_min += 1.0
    vdm.predict(images, torch.full((6,), 4.0, dtype=torch.float64))
    assert passed[1][1].tolist() == pytest.approx([1000] * 6), (
        "the time scale is that of the initial end points"
    )


def test_it_samples_and_has_a_bound_by_its_schedule(images: Tensor) -> None:
    """The network of `for_sampler`, whose time is gamma, works in Sampler and likelihood.elbo."""
    vdm = small()
    network, schedule, settings = vdm.for_sampler(50)
    assert (schedule.log_snr[0], schedule.log_snr[-1]) == (pytest.approx(13.3), pytest.approx(-5.0))
    x = Sampler(network, schedule, solver="ddpm", steps=8, **settings).sample((2, 1, 8, 8), seed=0)
    assert x.shape == (2, 1, 8, 8) and x.isfinite().all() and x.abs().max() <= 1.5
    prediction_type = settings["prediction_type"]
    terms = elbo(
        network,
        images,
        schedule,
        prediction_type=prediction_type,
        variance="fixed_small",
        seed=0,
        times=[10, 20],
    )
    by_hand = diffusion_terms(
        vdm.predict,
        images,
        vdm.gamma,
        torch.full((6,), 19.5 / 49, dtype=torch.float64),
        prediction_type="v",
        num_steps=49,
        seed=0,
        step=20,
    )
    torch.testing.assert_close(
        terms.denoising[:, 1].double(), by_hand.detach() / 49, rtol=1e-3, atol=1e-4
    )


def test_training_lowers_the_bound_and_moves_an_end() -> None:
    """On two narrow bumps of known entropy, eighty steps close more than half of the gap."""
    torch.manual_seed(0)
    vdm = VDM([1], likelihood="gaussian", gamma_min=-5.0, gamma_max=3.0, widths=[8])
    signs = torch.sign(ops.randn((2_048, 1), seed=0))
    x0 = 0.8 * signs + 0.1 * ops.randn((2_048, 1), seed=1)
    entropy = (math.log(2) + 0.5 * math.log(2 * math.pi * math.e * 0.01)) / math.log(2)
    optimizer = torch.optim.Adam(vdm.parameters(), lr=1e-2)
    bits = []
    for step in range(80):
        if step in (0, 79):
            bits.append(
                (sum(vdm.bound(x0[:512], seed=9, times=8).values()).mean() / math.log(2)).item()
            )
        ids = torch.arange(step * 128, (step + 1) * 128) % 2_048
        optimizer.zero_grad()
        vdm.loss(x0[ids], seed=0, sample_ids=ids, step=step).mean().backward()
        optimizer.step()
    assert bits[0] - bits[1] > 0.5 * (bits[0] - entropy) and bits[1] > entropy - 0.05
    assert vdm.gamma.gamma_min < -5.2, "for such narrow data the optimal gamma_min is lower"


def test_errors_are_one_sentence() -> None:
    for options, message in (
        (
            {"likelihood": "laplace"},
            "fastdiff.theory.variational.VDM: expected likelihood in .*, got 'laplace'",
        ),
        ({"num_steps": 0}, "expected num_steps >= 1 or None, got 0"),
        ({"time_sampling": "sobol"}, "expected time_sampling in .*, got 'sobol'"),
        ({"label_dropout": 2.0}, r"expected label_dropout in \[0, 1\], got 2.0"),
        ({"schedule": "sigmoid"}, "expected schedule in .*, got 'sigmoid'"),
        ({"shape": [1, 8, 6]}, r"expected shape \[C, S, S\] or \[D\], got \[1, 8, 6\]"),
        ({"prediction_type": "noise"}, "expected prediction_type in"),
    ):
        with pytest.raises(ValueError, match=message):
            VDM(**{"shape": [2], "widths": [4]} | options)
