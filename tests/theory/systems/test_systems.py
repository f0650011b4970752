"""Systems of a network and a schedule: losses and bounds by the oracle, conditions, folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import Sampler, Schedule, ops, prediction, reference
from fastdiff.data import load_fashion_mnist, load_toy
from fastdiff.models import MLP, Classifier, ImageUNet, UNet
from fastdiff.pretrained import load, load_system, read_config, save_system
from fastdiff.theory.registry import SYSTEMS, find, name_of
from fastdiff.theory.systems import Denoiser, NoisyClassifier, SuperResolution, make
from fastdiff.theory.systems.presets import options_of

DATA = load_fashion_mnist()
SMALL: dict[str, Any] = {"widths": (8, 16), "emb": 16, "groups": 8}
IDS = torch.tensor([4, 4711, 2**40])


def stirred(system: Any) -> Any:
    """Moves every parameter away from zero, so that all of them have an effect."""
    torch.manual_seed(1)
    for parameter in system.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return system.eval()


def denoiser(kind: str = "v", schedule: Schedule | None = None, **changes: Any) -> Denoiser:
    torch.manual_seed(0)
    scale = {"time_scale": 1000.0} if schedule is not None and schedule.continuous else {}
    return stirred(
        Denoiser(UNet(**SMALL, **scale), schedule or Schedule.cosine(1000), kind, **changes)
    )


class Recorder(torch.nn.Module):
    """Records the arguments of a network's calls."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner, self.calls = inner, []

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        self.calls.append((args, kwargs))
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize(
    "schedule", [Schedule.cosine(1000), Schedule.flow(1000)], ids=["discrete", "continuous"]
)
@pytest.mark.parametrize("kind", ["epsilon", "v", "x0", "flow"])
def test_the_loss_is_the_oracle_s(kind: str, schedule: Schedule) -> None:
    """The loss follows from the noise contract (times, noise, labels) and the target's formula."""
    system = denoiser(kind, schedule, label_dropout=0.5)
    system.network = recorder = Recorder(system.network)
    x0, labels = DATA.batch(torch.arange(3))
    loss = system.loss(x0, labels, seed=3, sample_ids=IDS, step=5)
    counters = np.array([[0, 5, i & 0xFFFFFFFF, (4 << 24) | (i >> 32)] for i in IDS.tolist()])
    words = reference.philox4x32(counters, [3, 0])
    t = words[:, 0].astype(np.int64) * 1000 >> 32
    eps = reference.randn((3, 1, 28, 28), seed=3, sample_ids=IDS.numpy(), step=5, stream=2)
    (x_t, time), cond = recorder.calls[0]
    expected_x = reference.q_sample(x0.numpy(), t, schedule.alpha, schedule.sigma, noise=eps)
    assert np.array_equal(x_t.numpy(), expected_x)
    assert time.tolist() == (
        [pytest.approx(schedule.sigma[i]) for i in t] if schedule.continuous else t.tolist()
    )
    has_label = ((words[:, 1] >> 8) | 1) * 2.0**-24 >= 0.5
    assert cond["y"].tolist() == np.where(has_label, labels.numpy(), 10).tolist()
    a, s = (v[t].reshape(-1, 1, 1, 1) for v in (schedule.alpha, schedule.sigma))
    target = prediction.target(kind, x0.double().numpy(), eps.astype(np.float64), a, s)
    with torch.no_grad():
        out = recorder.inner(x_t, time, **cond).double().numpy()
    np.testing.assert_allclose(
        loss.detach().numpy(), ((out - target) ** 2).mean((1, 2, 3)), rtol=1e-5
    )


def test_labels_are_dropped_at_the_stated_rate() -> None:
    system, ids = denoiser(label_dropout=0.25), torch.arange(8000)
    dropped = (system.drop(ids % 10, seed=0, sample_ids=ids, step=1) == 10).double().mean()
    assert abs(float(dropped) - 0.25) < 5 * (0.25 * 0.75 / 8000) ** 0.5


def test_a_sample_s_loss_does_not_depend_on_its_batch() -> None:
    system = denoiser().double()
    x0, labels = DATA.batch(torch.arange(3))
    whole = system.loss(x0.double(), labels, seed=3, sample_ids=IDS, step=5)
    alone = system.loss(x0.double()[1:2], labels[1:2], seed=3, sample_ids=IDS[1:2], step=5)
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-12, atol=0)


def test_times_are_spread_without_bias() -> None:
    """scale·Σ_j f(t_j) is Σ f(t) for K = T - 1, and has this mean for small K.

    Its variance is less than with independent times.
    """
    system = denoiser(schedule=Schedule.cosine(50))
    f = torch.arange(50, dtype=torch.float64).square()
    ids = torch.arange(4000)
    t, scale = system.spread_times(7, 0, ids)
    assert t.shape == (4000, 7) and int(t.min()) == 1 and int(t.max()) == 49 and scale == 7.0
    sums = scale * f[t].sum(1)
    exact = float(f[1:].sum())
    deviation = float(sums.std())
    assert abs(float(sums.mean()) - exact) < 5 * deviation / 4000**0.5
    assert deviation < 0.3 * scale * 7**0.5 * float(f[1:].std())
    everything, scale = system.spread_times(1000, 0, ids[:5])
    assert scale == 1.0 and torch.equal(everything, torch.arange(1, 50).expand(5, 49))
    counts = torch.bincount(t.flatten(), minlength=50)[1:].double()
    assert float((counts - 4000 / 7).abs().max()) < 5 * (4000 / 7) ** 0.5, (
        "all timesteps are equally probable"
    )


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_bound_is_the_oracle_s(variance: str) -> None:
    """For a network that returns v = 0, x̂0 = alpha x_t, so every term follows from the noise."""
    torch.manual_seed(0)
    schedule = Schedule.cosine(20)
    system = Denoiser(UNet(**SMALL), schedule).double()  # an untrained U-Net returns 0
    x0, _ = DATA.batch(torch.arange(3))
    terms = system.bound(x0.double(), seed=9, sample_ids=IDS, times=1000, variance=variance)
    noise_power, signal_power = schedule.one_minus_alphas_cumprod, schedule.alphas_cumprod
    x = x0.double().numpy()
    total = np.zeros(3)
    for column, t in enumerate(range(1, 20)):
        eps = reference.randn(
            x.shape, seed=9, sample_ids=IDS.numpy(), step=20 + column, stream=2
        ).astype(np.float64)
        x_t = schedule.alpha[t] * x + schedule.sigma[t] * eps
        x0_hat = np.clip(schedule.alpha[t] * x_t, -1, 1)
        beta, small = schedule.betas[t], schedule.betas[t] * noise_power[t - 1] / noise_power[t]
        mean = np.sqrt(signal_power[t - 1]) * beta / noise_power[t] * (x - x0_hat)
        model = beta if variance == "fixed_large" else small
        total += 0.5 * (np.log(model / small) - 1 + (small + mean**2) / model).sum((1, 2, 3))
    np.testing.assert_allclose(terms["denoising"].numpy(), total, rtol=1e-10)
    s, a = schedule.sigma[-1] ** 2, schedule.alpha[-1]
    prior = 0.5 * (s - 1 - np.log(s) + (a * x) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(terms["prior"].numpy(), prior, rtol=1e-9)
    assert set(terms) == {"reconstruction", "denoising", "prior"} and bool(
        (terms["reconstruction"] > 0).all()
    )


def test_few_times_estimate_all_of_them() -> None:
    system = stirred(
        Denoiser(
            MLP(2, width=8, depth=1, emb=8),
            Schedule.cosine(100),
            clip_range=None,
            likelihood="gaussian",
        )
    )
    x0 = load_toy("moons", n=1).points.expand(3000, 2)
    ids = torch.arange(3000)
    few = system.bound(x0, seed=1, sample_ids=ids, times=4)["denoising"].double()
    whole = system.bound(x0[:300], seed=2, sample_ids=ids[:300], times=99)["denoising"].double()
    error = math.sqrt(float(few.var()) / 3000 + float(whole.var()) / 300)
    assert abs(float(few.mean() - whole.mean())) < 5 * error < 0.2 * float(whole.mean())


def test_a_classifier_s_loss_and_guesses() -> None:
    torch.manual_seed(0)
    system = stirred(
        NoisyClassifier(Classifier(widths=(8, 16), emb=16), Schedule.linear(1000))
    ).double()
    x0, labels = DATA.batch(torch.arange(3))
    x0 = x0.double()
    loss = system.loss(x0, labels, seed=3, sample_ids=IDS, step=5)
    t = system.draw_times(3, IDS, 5)
    x_t = ops.q_sample(x0, t, system.alpha, system.sigma, seed=3, sample_ids=IDS, step=5)
    logits = system.network(x_t, t)
    expected = torch.logsumexp(logits, 1) - logits[torch.arange(3), labels]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(-system.log_prob(x_t, t, labels), expected, rtol=1e-12, atol=0)
    guesses = system.guesses(x0, labels, seed=3, sample_ids=IDS, times=5)
    assert guesses.log_snr.shape == guesses.cross_entropy.shape == guesses.correct.shape == (3, 5)
    assert bool(((guesses.log_snr[:, 1:] - guesses.log_snr[:, :-1]) < 0).all())


def test_a_classifier_guides_as_the_exact_one() -> None:
    """A classifier with exact logits moves samples as the gradient in closed form does.

    The data are two unit-variance classes at ±m in one dimension.
    """
    schedule, m = Schedule.linear(200), 1.5
    alpha = torch.tensor(schedule.alpha)

    class Exact(MLP):
        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            logit = alpha[t][:, None] * m * x  # V = 1, for s = 1
            return torch.cat([logit, -logit], 1)

    system = NoisyClassifier(MLP(1, out=2, width=4, emb=4), schedule).double()
    exact = Exact(1, out=2, width=4, emb=4).double()
    system.network = exact
    labels = torch.zeros(500, dtype=torch.int64)

    def score_free(x: Tensor, t: Tensor) -> Tensor:
        """Returns eps of ½ N(m, 1) + ½ N(-m, 1); x_t has unit variance around ±alpha m."""
        a, s = alpha[t][:, None], torch.tensor(schedule.sigma)[t][:, None]
        return s * (x - a * m * torch.tanh(a * m * x))

    def gradient(x: Tensor, t: Tensor) -> Tensor:
        a = alpha[t][:, None]
        return 2 * a * m * torch.sigmoid(-2 * a * m * x)

    sampler = Sampler(score_free, schedule, solver="ddpm", steps=50)
    common: dict[str, Any] = {"seed": 0, "classifier_scale": 1.0, "dtype": torch.float64}
    ours = sampler.sample((500, 1), classifier=system.log_prob_of(labels), **common)
    theirs = sampler.sample((500, 1), classifier=gradient, **common)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert abs(float(ours.mean()) - m) < 5 / 500**0.5, (
        "samples guided by the exact classifier have the mean of the class"
    )


def test_super_resolution_knows_the_small_image() -> None:
    torch.manual_seed(0)
    system = stirred(SuperResolution(ImageUNet(**SMALL), Schedule.cosine(1000)))
    x0, labels = DATA.batch(torch.arange(3))
    small = system.reduce(x0)
    blocks = x0.reshape(3, 1, 14, 2, 14, 2).mean((3, 5))
    assert (
        small.shape == (3, 1, 14, 14) and float((small - blocks).abs().max()) <= 0.5 / 127.5 + 1e-6
    )
    assert float(((small + 1) * 127.5 - ((small + 1) * 127.5).round()).abs().max()) < 1e-3
    flat = torch.full((1, 1, 14, 14), 0.25)
    torch.testing.assert_close(system.enlarge(flat), torch.full((1, 1, 28, 28), 0.25))
    system.network = recorder = Recorder(system.network)
    system.loss(x0, labels, seed=0, sample_ids=IDS, step=0)
    assert torch.equal(recorder.calls[0][1]["image"], system.enlarge(small))
    sampler = Sampler(*system.for_sampler()[:2], steps=2, prediction_type="v")
    x = sampler.sample((3, 1, 28, 28), seed=0, cond={"image": system.enlarge(small), "y": labels})
    y = sampler.sample(
        (3, 1, 28, 28), seed=0, cond={"image": system.enlarge(small.flip(0)), "y": labels}
    )
    assert x.shape == x0.shape and float((x - y)[0].abs().max()) > 1e-4
    assert float(sum(system.bound(x0, seed=0, sample_ids=IDS, times=2).values()).min()) > 0
    with pytest.raises(ValueError, match="expected factor >= 2, got 1"):
        SuperResolution(ImageUNet(**SMALL), Schedule.cosine(10), factor=1)


SMALLEST: dict[str, dict[str, Any]] = {
    "score": {"widths": [8, 16], "emb": 16, "fourier": [2]},
    "vae": {"widths": [8, 8, 16], "latent": 3},
    "unet": {"widths": [8, 16], "emb": 16, "timesteps": 50},
    "superres": {"widths": [8, 16], "emb": 16, "timesteps": 50, "factor": 4},
    "classifier": {"widths": [8, 16], "emb": 16, "timesteps": 50, "schedule": "linear"},
}


@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_a_folder_rebuilds_the_system(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    system = stirred(make(name, DATA, **SMALLEST[name]))
    assert name_of(system) == name and isinstance(system, find(name))
    assert type(system)(**json.loads(json.dumps(system.config))).config == system.config
    save_system(tmp_path, system, data={"classes": []}, training={})
    twin: Any = load_system(tmp_path)
    assert not twin.training and twin.config == system.config
    x0, labels = DATA.batch(torch.arange(3))
    losses = [s.loss(x0, labels, seed=0, sample_ids=IDS, step=1) for s in (system, twin)]
    assert torch.equal(*losses)
    assert read_config(tmp_path)["system"]["name"] == name


def test_the_shipped_folder_is_a_denoiser() -> None:
    system: Any = load_system("fashion-mnist")
    network, schedule, settings = load("fashion-mnist")
    assert (
        isinstance(system, Denoiser)
        and system.prediction_type == "v"
        and system.label_dropout == 0.1
    )
    assert settings["guidance_scale"] > 1 and schedule.to_config() == system.schedule.to_config()
    for (name, ours), theirs in zip(
        system.network.state_dict().items(), network.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_a_denoiser_s_folder_holds_the_network_s_names(tmp_path: Path) -> None:
    system = denoiser()
    save_system(tmp_path, system)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["system"]
    (tmp_path / "config.json").write_text(
        json.dumps(config)
    )  # as versions without systems wrote it
    network, _, settings = load(tmp_path)
    assert settings == {"prediction_type": "v", "clip_range": 1.0}
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), system.parameters(), strict=True)
    )


def test_systems_for_points() -> None:
    moons, roll = load_toy("moons", n=50), load_toy("swiss-roll", n=50)
    ids = torch.arange(50)
    for name in ("unet", "classifier"):
        system = make(name, moons, width=8, depth=1, emb=8, timesteps=20)
        loss = system.loss(*moons.batch(ids), seed=0, sample_ids=ids, step=0)
        assert loss.shape == (50,) and bool(loss.isfinite().all())
    system = make("unet", roll, width=8, depth=1, emb=8, timesteps=20)
    assert bool(torch.isfinite(system.loss(*roll.batch(ids), seed=0, sample_ids=ids, step=0)).all())
    assert system.clip_range is None and system.likelihood == "gaussian"
    with pytest.raises(ValueError, match=r"expected images for superres, got moons train"):
        make("superres", moons)
    with pytest.raises(
        ValueError, match=r"expected data with classes for a classifier, got swiss-roll"
    ):
        make("classifier", roll)


def test_options_are_what_they_say() -> None:
    assert options_of("unet", DATA)["widths"] == (32, 64, 96) and "channels" not in options_of(
        "unet", DATA
    )
    assert options_of("superres", DATA)["factor"] == 2 and "heads" in options_of("superres", DATA)
    with pytest.raises(
        ValueError, match=r"expected an option of unet \(.*prediction_type=v, .*\), got 'latent'"
    ):
        make("unet", DATA, latent=3)
    with pytest.raises(ValueError, match=r"expected schedule in \['linear', .*\], got 'zigzag'"):
        make("unet", DATA, schedule="zigzag")
    with pytest.raises(
        ValueError, match=r"expected a system in \['autoregressive', 'classifier'.*\], got 'gan'"
    ):
        find("gan")
    with pytest.raises(TypeError, match="expected a system among autoregressive, classifier"):
        name_of(MLP())


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_system_of_the_registry_is_there(name: str) -> None:
    kind: Any = find(name)
    assert callable(kind.loss) and issubclass(kind, torch.nn.Module)


def test_tables_keep_float64() -> None:
    system = denoiser().to(torch.float16).float()
    assert system.alpha.dtype == torch.float64 and system.times.dtype == torch.int64
    assert np.array_equal(system.alpha.numpy(), Schedule.cosine(1000).alpha)


def test_no_sampler_of_a_classifier(tmp_path: Path) -> None:
    save_system(tmp_path, make("classifier", DATA, widths=[8], emb=8))
    with pytest.raises(
        ValueError, match="expected a system with samples in .*, got the system 'classifier'"
    ):
        Sampler.from_pretrained(tmp_path)
