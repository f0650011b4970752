"""Objectives of a denoiser: weights, losses and times by their formulas, and equal bounds.

This file is over 400 lines because every prediction type, weighting and loss has its formula here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdiff import Sampler, Schedule, ops, prediction
from fastdiff.cli import main
from fastdiff.data import load_toy
from fastdiff.models import MLP
from fastdiff.prediction import PREDICTION_TYPES
from fastdiff.pretrained import load_system, read_config, save_system
from fastdiff.theory.systems import Denoiser, make
from fastdiff.theory.systems.presets import OBJECTIVES, options_of
from fastdiff.theory.variational.denoising import DenoisingLoss
from fastdiff.theory.variational.weights import TIMESTEP_WEIGHTINGS
from fastdiff.training import Settings, Trainer
from fastdiff.training.folder import read

MOONS = load_toy("moons")
IDS = torch.arange(64) + 5
NEW = ("loss", "weighting", "precondition", "times", "variance", "vlb_share")
SMALL: dict[str, Any] = {"width": 16, "depth": 1}


def denoiser(kind: str, schedule: Schedule | None = None, **options: Any) -> Denoiser:
    torch.manual_seed(0)
    learned = options.get("loss") == "hybrid"
    network = MLP(2, out=4 if learned else None, num_classes=2, width=8, depth=1)
    torch.nn.init.normal_(network.linear_out.weight, std=0.5)
    settings = {"label_dropout": 0.0, "clip_range": None, "likelihood": "gaussian", **options}
    return Denoiser(network, schedule or Schedule.cosine(40), kind, **settings)


def textbook(name: str, kind: str, schedule: Schedule, t: np.ndarray) -> np.ndarray:
    """The factor of ‖x0 - x̂0‖² by the papers, and for `output` of the output's own error."""
    alpha, sigma, size = schedule.alpha[t], schedule.sigma[t], schedule.num_train_timesteps
    snr, before = (alpha / sigma) ** 2, np.maximum(t - 1, 0)
    last = (schedule.alpha[before] / schedule.sigma[before]) ** 2
    if name == "output":  # |d output/d x0| at a fixed x_t
        slope = {
            "epsilon": alpha / sigma,
            "x0": 1.0,
            "v": alpha**2 / sigma + sigma,
            "edm": alpha**2 / sigma + sigma,
            "score": alpha / sigma**2,
            "flow": alpha / sigma + 1,
        }[kind]
        return slope**2 + 0 * snr
    return {
        "simple": lambda: snr,  # Ho et al. 2020, eq. 14
        "v": lambda: snr + 1,  # Salimans & Ho 2022, section 4
        "x0": lambda: np.ones_like(snr),
        "min_snr": lambda: np.minimum(snr, 5),  # Hang et al. 2023, eq. 8
        "edm": lambda: snr + 4,  # Karras et al. 2022, table 1 with sigma_data = 1/2
        "p2": lambda: snr / (1 + snr),  # Choi et al. 2022, eq. 8, k = gamma = 1
        # Kingma & Gao 2023: ½ w(lambda) (-d lambda/d t), w = sigmoid(2 - lambda)
        "sigmoid": lambda: size * np.log(last / snr) * snr / (1 + snr * np.exp(-2)) / 2,
        "vlb": lambda: size * (last - snr) / 2,  # Luo 2022, eq. 110
    }[name]()


@pytest.mark.parametrize("precondition", [False, True], ids=["bare", "preconditioned"])
@pytest.mark.parametrize("name", TIMESTEP_WEIGHTINGS)
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_weighted_loss_is_the_textbook_s(kind: str, name: str, precondition: bool) -> None:
    """In NumPy from the noise contract: w_t times the mean over elements of (x0 - x̂0)²."""
    schedule = Schedule.cosine(40)
    system = denoiser(kind, schedule, weighting=name, precondition=precondition).double()
    x0, labels = MOONS.batch(torch.arange(64))
    counter: dict[str, Any] = {"seed": 3, "sample_ids": IDS, "step": 7}
    with torch.no_grad():
        loss = system.loss(x0.double(), labels, **counter).numpy()
        t = system.draw_times(**counter)
        eps = ops.randn((64, 2), stream=2, dtype=torch.float64, **counter).numpy()
        alpha, sigma = (v[t.numpy()][:, None] for v in (schedule.alpha, schedule.sigma))
        x_t = alpha * x0.double().numpy() + sigma * eps
        out = system.network(torch.from_numpy(x_t), t, y=labels).numpy()
    got = prediction.convert("edm" if precondition else kind, "x0", out, x_t, alpha, sigma)
    expected = textbook(name, kind, schedule, t.numpy()) * ((x0.numpy() - got) ** 2).mean(1)
    later = t.numpy() > 0  # the weights of two levels have no level before the first
    assert later.sum() > 50
    np.testing.assert_allclose(loss[later], expected[later], rtol=1e-6)


class Implied(nn.Module):
    """A network that gives a shared x̂0 as a prediction type."""

    null_label = 0

    def __init__(self, x0: Tensor, kind: str, schedule: Schedule):
        super().__init__()
        self.x0, self.kind, self.schedule = x0, kind, schedule

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        alpha, sigma = (
            torch.tensor(v)[t][:, None] for v in (self.schedule.alpha, self.schedule.sigma)
        )
        return prediction.convert("x0", self.kind, self.x0, x_t, alpha, sigma)


@pytest.mark.parametrize("loss", ["mse", "vlb"])
@pytest.mark.parametrize("name", TIMESTEP_WEIGHTINGS[1:])
def test_all_types_have_the_same_gradient(name: str, loss: str) -> None:
    """At the same weighting and the same implied x̂0, the loss and its gradient to x̂0 are equal."""
    schedule, found = Schedule.cosine(40), {}
    x0 = MOONS.points[:64].double()
    for kind in PREDICTION_TYPES:
        for precondition in (False, True):
            system = denoiser(
                kind, schedule, weighting=name, precondition=precondition, loss=loss
            ).double()
            guess = (x0 + 0.1).requires_grad_()
            system.network = Implied(guess, system.output_type, schedule)
            value = system.loss(x0, MOONS.labels[:64], seed=1, sample_ids=IDS, step=2)
            (gradient,) = torch.autograd.grad(value.sum(), guess)
            found[kind, precondition] = value.detach(), gradient
    for value, gradient in found.values():
        torch.testing.assert_close(value, found["x0", False][0], rtol=1e-7, atol=0)
        torch.testing.assert_close(gradient, found["x0", False][1], rtol=1e-7, atol=0)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_mean_of_the_vlb_weighting_is_the_bound(kind: str) -> None:
    """Its mean over times and noise, times the dimensions, is denoising and reconstruction without
    its constant, within five standard errors of the Monte-Carlo estimates.
    """
    size, steps = 20, 200
    schedule = Schedule.cosine(size)
    system = denoiser(kind, schedule, weighting="vlb", precondition=kind == "score").double()
    x0, labels = (v[:64] for v in (MOONS.points.double(), MOONS.labels))
    with torch.no_grad():
        losses = torch.stack(
            [system.loss(x0, labels, seed=1, sample_ids=IDS, step=s) for s in range(steps)]
        )
    bounds = [
        system.bound(x0, labels, seed=s, sample_ids=IDS, times=size) for s in range(steps // 10)
    ]
    from fastdiff.table import VLB_COLUMNS
    from fastdiff.theory.likelihood import vlb_table

    table = vlb_table(schedule, prediction_type="v")
    constant = math.log(2 * math.pi) + table[0, VLB_COLUMNS.index("logvar_q")]
    expected = torch.stack([b["denoising"] + b["reconstruction"] - constant for b in bounds])
    error = math.hypot(
        float((2 * losses).std()) / losses.numel() ** 0.5,
        float(expected.std()) / expected.numel() ** 0.5,
    )
    difference = float(2 * losses.mean() - expected.mean())
    assert abs(difference) < 5 * error, (difference, error)
    assert error < 0.1 * float(expected.mean()), "the estimates say something"


def trained(steps: int, **options: Any) -> float:
    """The bound of a small training, in nats."""
    torch.manual_seed(0)
    system = make("unet", MOONS, width=32, depth=1, timesteps=200, **options)
    trainer = Trainer(system, MOONS, Settings(steps=steps, batch_size=128, lr=4e-3, ema=0.95))
    while trainer.step < steps:
        trainer.train_step()
        system.record(system.pending())
    test = load_toy("moons", "test", n=400)
    terms = trainer.ema.bound(test.points, seed=0, sample_ids=torch.arange(400), times=24)
    return float(sum(v.double().mean() for v in terms.values()))


def test_all_prediction_types_reach_about_one_bound() -> None:
    """With the weight 1 on their own outputs, the bounds of x0 and score are far from v's."""
    found = {kind: trained(150, prediction_type=kind) for kind in PREDICTION_TYPES}
    assert max(found.values()) - min(found.values()) < 0.35, found
    bare: dict[str, Any] = {"weighting": "output", "precondition": False}
    for kind in ("x0", "score"):
        assert trained(150, prediction_type=kind, **bare) > found["v"] + 2


def test_types_with_the_same_output_and_weights_train_alike() -> None:
    """By default x0, v and edm, and epsilon and score, take the same steps."""
    found = {}
    for kind in PREDICTION_TYPES:
        torch.manual_seed(0)
        system = make("unet", MOONS, prediction_type=kind, timesteps=200, **SMALL)
        trainer = Trainer(system, MOONS, Settings(steps=9, batch_size=32))
        found[kind] = [trainer.train_step()[0] for _ in range(9)]
    assert found["x0"] == found["v"] == found["edm"] != found["epsilon"] == found["score"]


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "vlb"},
        {"loss": "hybrid"},
        {"times": "loss_aware"},
        {"times": "stratified", "weighting": "vlb"},
        {"weighting": "sigmoid"},
    ],
    ids=str,
)
def test_other_objectives_train_too(options: dict[str, Any]) -> None:
    assert trained(150, **options) < trained(150) + 0.5


def test_a_config_without_the_keys_is_the_former_loss() -> None:
    """It has weight 1 on the output and uniform times; defaults write none of the keys."""
    system = denoiser("x0")
    assert not system.config.keys() & set(NEW)
    shipped: Any = load_system("fashion-mnist")
    assert not shipped.config.keys() & set(NEW) and shipped._weights is None
    assert not make("unet", MOONS, **SMALL).config.keys() & set(NEW), "v is what it was"
    x0, labels = MOONS.batch(torch.arange(64))
    counter: dict[str, Any] = {"seed": 3, "sample_ids": IDS, "step": 7}
    t = system.draw_times(**counter)
    eps = ops.randn((64, 2), stream=2, **counter)
    x_t = ops.q_sample(x0, t, system.alpha, system.sigma, noise=eps)
    plain = (system.network(x_t, t, y=labels) - x0).square().mean(1)
    assert torch.equal(system.loss(x0, labels, **counter), plain)


def test_defaults_follow_the_prediction_type() -> None:
    assert options_of("unet", MOONS)["weighting"] == "auto"
    for kind in PREDICTION_TYPES:
        weighting, precondition = OBJECTIVES.get(kind, ("output", False))
        system = make("unet", MOONS, prediction_type=kind, **SMALL)
        assert system.config.get("weighting", "output") == weighting
        assert system.config.get("precondition", False) is precondition
        assert system.for_sampler()[2]["prediction_type"] == ("edm" if precondition else kind)
        bare = make("unet", MOONS, prediction_type=kind, precondition=False, **SMALL)
        assert bare.for_sampler()[2]["prediction_type"] == kind


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "hybrid", "vlb_share": 0.01},
        {"loss": "vlb", "variance": "learned"},
        {"times": "loss_aware"},
        {"times": "antithetic", "weighting": "p2", "prediction_type": "x0"},
    ],
    ids=str,
)
def test_a_folder_keeps_the_objective(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    system = make("unet", MOONS, timesteps=30, **SMALL, **options)
    system.record(torch.tensor([[3.0, 0.5]], dtype=torch.float64))
    save_system(tmp_path, system)
    twin: Any = load_system(tmp_path)
    assert twin.config == system.config and twin.output_type == system.output_type
    for name, value in system.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
    x0, labels = MOONS.batch(torch.arange(64))
    losses = [s.loss(x0, labels, seed=1, sample_ids=IDS, step=3) for s in (system.eval(), twin)]
    assert torch.equal(*losses)


def test_the_unit_of_the_loss() -> None:
    data = load_toy("moons", n=8)
    for loss, unit in (("mse", "MSE"), ("vlb", "bits/dim"), ("hybrid", "MSE + bits/dim")):
        system = make("unet", data, loss=loss, width=8, depth=1, timesteps=20)
        assert system.loss_unit == unit
    x0, labels = data.batch(torch.arange(8))
    bits = make("unet", data, loss="vlb", width=8, depth=1, timesteps=20)
    nats = bits.terms(x0, seed=0, sample_ids=torch.arange(8), times=19).denoising.mean(1) * 20
    counter: dict[str, Any] = {"seed": 0, "sample_ids": torch.arange(8)}
    drawn = torch.stack([bits.loss(x0, labels, step=j, **counter) for j in range(400)]).mean()
    per_dim = float(nats.mean()) / (2 * math.log(2))
    assert 0.5 * per_dim < float(drawn.detach()) < 2 * per_dim, "T terms of the bound, by dimension"


def test_the_losses_with_the_bound_are_those_of_denoising_loss() -> None:
    schedule = Schedule.cosine(40)
    x0, labels = MOONS.batch(torch.arange(64))
    counter: dict[str, Any] = {"seed": 3, "sample_ids": IDS, "step": 7}
    for options, arguments in (
        ({"loss": "vlb"}, {"objective": "vlb"}),
        (
            {"loss": "hybrid", "weighting": "simple"},
            {"objective": "hybrid", "variance": "learned_range"},
        ),
    ):
        system = denoiser("epsilon", schedule, **options)
        other = DenoisingLoss(schedule, **arguments)  # type: ignore[arg-type]
        expected = other(
            system.network, x0, system.draw_times(**counter), cond={"y": labels}, **counter
        )
        torch.testing.assert_close(system.loss(x0, labels, **counter), expected)


@pytest.mark.parametrize("times", ["stratified", "antithetic", "loss_aware"])
def test_shares_of_a_batch_draw_the_times_of_the_whole(times: str) -> None:
    system = denoiser("v", times=times).double()
    x0, labels = MOONS.points[:64].double(), MOONS.labels[:64]
    counter: dict[str, Any] = {"seed": 3, "step": 7}
    whole = system.loss(x0, labels, sample_ids=IDS, **counter)
    rows = system.pending()
    losses, parts = [], []
    for start in (0, 24):
        part = slice(start, 24 if start == 0 else 64)
        losses.append(
            system.loss(x0[part], labels[part], sample_ids=IDS[part], part=(start, 64), **counter)
        )
        parts.append(system.pending())
    torch.testing.assert_close(torch.cat(losses), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat(parts), rows, rtol=1e-12, atol=0)
    assert rows.shape == ((64, 2) if times == "loss_aware" else (0, 2))
    assert rows.dtype == torch.float64 and len(system.pending()) == 0, "forgotten"


def test_loss_aware_times_learn_from_what_is_recorded() -> None:
    """Until every timestep has ten losses the times are uniform; then they follow the losses, with
    factors that keep the mean.
    """
    system = denoiser("v", Schedule.cosine(5), times="loss_aware").double()
    x0, labels = MOONS.points[:64].double(), MOONS.labels[:64]
    counter: dict[str, Any] = {"seed": 3, "sample_ids": IDS}
    plain = system.loss(x0, labels, step=0, **counter)
    rows = system.pending()
    torch.testing.assert_close(plain, rows[:, 1])
    for _ in range(10):
        system.record(torch.tensor([[t, 10.0 if t == 4 else 1.0] for t in range(5)]).double())
    drawn, factors = [], []
    for step in range(40):
        loss = system.loss(x0, labels, step=step, **counter)
        rows = system.pending()
        drawn.append(rows[:, 0])
        factors.append(loss.detach() / rows[:, 1])
    share = float((torch.cat(drawn) == 4).double().mean())
    assert abs(share - 10 / 14) < 0.03
    assert float(torch.cat(factors)[torch.cat(drawn) == 4].max()) == pytest.approx(
        14 / 50, rel=0.01
    )


def test_objectives_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Learned variance and loss-aware times train, sample with every solver, and are evaluated."""
    out = tmp_path / "run"
    options = ("loss=hybrid", "times=loss_aware", "weighting=min_snr", "width=8", "depth=1")
    flags = [word for option in options for word in ("--option", option)]
    few = ["--steps", "3", "--batch-size", "8", "--timesteps", "20", "--threads", "1"]
    assert main(["train", "--data", "moons", "--out", str(out), *few, *flags]) == 0
    config = read_config(out)["system"]["config"]
    assert config["loss"] == "hybrid" and config["network"]["config"]["out"] == 4
    for solver in (["--solver", "ddpm", "--option", "variance_type=learned_range"], []):
        made = str(tmp_path / f"samples{len(solver)}")
        command = ["sample", "--model", str(out), "--out", made, "--num", "4", "--unit", "4"]
        assert main([*command, "--steps", "3", "--threads", "1", *solver]) == 0
    assert main(["eval", str(out), "--images", "8", "--times", "4", "--probes", "1"]) == 0
    assert "bound" in capsys.readouterr().out
    assert main(["train", "--data", "moons", "--out", str(tmp_path / "x"), "--option", "loss=l1"])
    assert "expected loss in ['mse', 'vlb', 'hybrid'], got 'l1'" in capsys.readouterr().err


def test_a_run_that_began_with_other_defaults_resumes(tmp_path: Path) -> None:
    """The system of a resumed run is the checkpoint's, whatever the defaults are by then."""
    from fastdiff.theory.systems import presets

    out = tmp_path / "run"
    command = ["train", "--data", "moons", "--out", str(out), "--objective", "x0"]
    few = ["--steps", "4", "--batch-size", "8", "--option", "width=8", "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "OBJECTIVES", {})
        assert main([*command, *few, "--minutes", "1e-9"]) == 0
    assert main(["train", "--out", str(out), "--resume", "--threads", "1"]) == 0
    saved = read(out)[1]
    assert saved["step"] == 4 and not saved["identity"]["system"]["config"].keys() & set(NEW)


@pytest.mark.parametrize(
    "make_it, message",
    [
        (lambda: denoiser("v", loss="l1"), "expected loss in .*, got 'l1'"),
        (lambda: denoiser("v", weighting="auto"), "expected weighting in .*, got 'auto'"),
        (lambda: denoiser("v", times="even"), "expected times in .*, got 'even'"),
        (lambda: denoiser("v", variance="small"), "expected variance in .*, got 'small'"),
        (
            lambda: denoiser("v", loss="hybrid", variance="fixed_small"),
            "expected variance in .* for the loss hybrid, got 'fixed_small'",
        ),
        (
            lambda: denoiser(
                "v", Schedule.cosine(40).rescale_zero_terminal_snr(), weighting="sigmoid"
            ),
            "expected a finite weight 'sigmoid' of 'v', got .* at timestep 39",
        ),
    ],
)
def test_errors(make_it: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_every_type_trains_on_a_flow_schedule_by_default(kind: str) -> None:
    """Its end is pure noise, where epsilon and score say nothing of the data."""
    system = make("unet", MOONS, prediction_type=kind, schedule="flow", timesteps=40, **SMALL)
    x0, labels = MOONS.batch(torch.arange(64))
    losses = system.loss(x0, labels, seed=1, sample_ids=IDS, step=0)
    losses.mean().backward()
    assert losses.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in system.parameters())
    network, schedule, settings = system.for_sampler()
    for solver in ("flow_euler", "dpm++2m"):
        sampler = Sampler(network, schedule, solver=solver, steps=3, **settings)
        assert sampler.sample((2, 2), seed=0).isfinite().all()


@pytest.mark.parametrize("name", [w for w in TIMESTEP_WEIGHTINGS if w != "sigmoid"])
def test_weights_at_pure_noise(name: str) -> None:
    """Where the SNR is 0 the weight of v is that of x0, and finite."""
    schedule = Schedule.cosine(40).rescale_zero_terminal_snr()
    system = denoiser("v", schedule, weighting=name)
    expected = {
        "output": 1.0,
        "v": 1.0,
        "x0": 1.0,
        "edm": 4.0,
        "vlb": 20 * (schedule.alpha[38] / schedule.sigma[38]) ** 2,
    }
    weight = 1.0 if system._weights is None else float(system._weights[39])
    assert weight == pytest.approx(expected.get(name, 0.0), rel=1e-9)
