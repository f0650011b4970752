"""A classifier that learns a diffusion model's gradient: its loss in closed form, and its input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import Sampler, Schedule, ops
from fastdiff.cli import main
from fastdiff.data import load_toy
from fastdiff.models import MLP, Classifier
from fastdiff.pretrained import load_system, save_system
from fastdiff.theory.systems import NoisyClassifier, make

M, SCHEDULE = 1.5, Schedule.cosine(200)
IDS = torch.arange(400)
ALPHA, SIGMA = (torch.tensor(v) for v in (SCHEDULE.alpha, SCHEDULE.sigma))


class Logits(MLP):
    """factor times the exact logits of two unit-variance classes at ±M, for scaled input."""

    factor = 1.0

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.cat([x, -x], 1) * (M * self.factor)


class Teacher:
    """The exact v of the two classes; y = 2 is the null label. Class 0 is at +M."""

    null_label = 2

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        a, s = ALPHA[t][:, None], SIGMA[t][:, None]
        centre = M * torch.tanh(a * M * x)
        if y is not None:
            centre = torch.where(y[:, None] == 2, centre, M * (1.0 - 2 * y[:, None]))
        x0 = centre + a * (x - a * centre)
        return (a * x - x0) / s


class Unconditional(Teacher):
    null_label = 0

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is None, "a teacher without labels is called without them"
        return super().__call__(x, t)


def taught(guide: Any, factor: float = 1.0, **options: Any) -> NoisyClassifier:
    options = {"scaled": True, "teacher": "exact", "match": 3.0, "matched": 1.0} | options
    system = NoisyClassifier(MLP(1, out=2, width=4, emb=4), SCHEDULE, **options).double()
    system.network = Logits(1, out=2, width=4, emb=4).double()
    system.network.factor = factor
    if guide is not None:
        system.teach(guide, SCHEDULE, "v")
    return system


def points() -> tuple[Tensor, Tensor]:
    labels = IDS % 2
    noise = torch.randn(len(IDS), 1, generator=torch.Generator().manual_seed(0)).double()
    return M * (1.0 - 2 * labels[:, None]) + noise, labels


def terms(teacher: Any, factor: float = 1.0) -> Tensor:
    """The loss less the cross-entropy, over match: the loss of the gradient [B]."""
    x0, labels = points()
    counter: dict[str, Any] = {"seed": 1, "sample_ids": IDS, "step": 2}
    whole = taught(teacher, factor).loss(x0, labels, **counter)
    plain = taught(None, factor, teacher=None).loss(x0, labels, **counter)
    return (whole - plain).detach() / 3.0


def test_the_exact_classifier_has_the_gradient_of_its_teacher() -> None:
    assert float(terms(Teacher()).abs().max()) < 1e-20


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_the_loss_of_the_gradient_is_its_definition(factor: float) -> None:
    """For labels of both kinds: ∇ln p(y|x_t) = ±2 k alpha M s(∓2 k alpha M x_t), k the factor."""
    x0, labels = points()
    system = taught(None)
    t = system.draw_times(1, IDS, 2)
    x_t = ops.q_sample(x0, t, ALPHA, SIGMA, seed=1, sample_ids=IDS, step=2)
    a, s = ALPHA[t][:, None], SIGMA[t][:, None]

    def gradient(sign: Tensor) -> Tensor:
        return 2 * factor * sign * a * M * torch.sigmoid(-2 * factor * sign * a * M * x_t)

    free = M * torch.tanh(a * M * x_t)  # of x̂0, in which alpha(x_t - alpha c) is also linear in c
    expected = []
    for sign in (torch.ones_like(x0), -torch.ones_like(x0)):
        d = (sign * M - free) * (1 - a * a)
        expected.append((((s * s / a) * gradient(sign) - d) / s).square()[:, 0])
    found = terms(Teacher(), factor)
    near = torch.stack([(found - e).abs() <= 1e-9 + 1e-9 * e for e in expected])
    assert bool(near.any(0).all())
    share = float(near[0].double().mean())
    assert 0.4 < share < 0.6, "labels are drawn, whatever the labels of the data"

    sign = 1.0 - 2 * labels[:, None].double()
    d = x0 - (free + a * (x_t - a * free))
    expected_free = (((s * s / a) * gradient(sign) - d) / s).square()[:, 0]
    torch.testing.assert_close(terms(Unconditional(), factor), expected_free, rtol=1e-9, atol=1e-9)


def test_a_share_of_the_examples_has_the_loss_of_the_gradient() -> None:
    """Their loss is divided by the share; which they are follows from their ids."""
    x0, labels = points()
    counter: dict[str, Any] = {"seed": 1, "step": 2}
    plain = taught(None, 0.5, teacher=None).loss(x0, labels, sample_ids=IDS, **counter)
    system = taught(Teacher(), 0.5, matched=0.25)
    found = (system.loss(x0, labels, sample_ids=IDS, **counter) - plain).detach() / 3.0
    has = found.abs() > 1e-12
    assert 0.15 < float(has.double().mean()) < 0.35
    torch.testing.assert_close(found[has], terms(Teacher(), 0.5)[has] / 0.25, rtol=1e-6, atol=1e-9)
    backwards = system.loss(x0.flip(0), labels.flip(0), sample_ids=IDS.flip(0), **counter).flip(0)
    torch.testing.assert_close((backwards - plain).detach() / 3.0, found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("teacher", [Teacher(), Unconditional()])
def test_the_exact_classifier_is_the_minimum(teacher: Any) -> None:
    at = {k: float(terms(teacher, k).mean()) for k in (0.0, 0.5, 1.0, 2.0)}
    assert min(at, key=at.__getitem__) == 1.0, at


def test_a_taught_classifier_trains_and_guides_as_its_teacher() -> None:
    """From random weights, by gradient descent on the loss, an MLP comes to guide."""
    torch.manual_seed(0)
    system = NoisyClassifier(
        MLP(1, out=2, width=32, depth=1, emb=16), SCHEDULE, scaled=True, teacher="exact"
    )  # with the default share of matched examples
    system.teach(Teacher(), SCHEDULE, "v")
    optimizer = torch.optim.Adam(system.parameters(), lr=1e-2)
    x0, labels = (v.float() if v.is_floating_point() else v for v in points())
    for step in range(80):
        loss = system.loss(x0, labels, seed=0, sample_ids=IDS, step=step).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    system.requires_grad_(False)
    sampler = Sampler(Unconditional(), SCHEDULE, solver="ddim", steps=50, prediction_type="v")
    guided = sampler.sample(
        (400, 1), seed=0, classifier=system.log_prob_of(torch.zeros(400, dtype=torch.int64))
    )
    assert abs(float(guided.mean()) - M) < 0.3, "γ = 1 gives the distribution of class 0"
    assert float(guided.std()) == pytest.approx(1, abs=0.2)


SCHEDULES = {
    "cosine": Schedule.cosine(50),
    "flow": Schedule.flow(50),
    "linear": Schedule.linear(50),
    "ve": Schedule.ve(50),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_input_is_scaled_at_and_between_timesteps(schedule: Schedule) -> None:
    system = NoisyClassifier(MLP(2, out=2, width=4, emb=4), schedule, scaled=True)
    gain = system.alpha / (system.alpha.square() + system.sigma.square())
    torch.testing.assert_close(system._gain(system.times), gain, rtol=1e-5, atol=1e-12)
    x = torch.ones(50, 2)
    calls = []
    system.network.forward = lambda x, t: calls.append(x) or x  # type: ignore[assignment,func-returns-value]
    system.logits(x, system.times)
    torch.testing.assert_close(calls[0][:, 0].double(), gain, rtol=1e-5, atol=1e-12)
    if schedule.continuous:
        between = system._gain((system.times[1:] + system.times[:-1]) / 2)
        low, high = torch.minimum(gain[1:], gain[:-1]), torch.maximum(gain[1:], gain[:-1])
        assert bool(((low - 1e-6 <= between) & (between <= high + 1e-6)).all())


def test_the_scaled_gradient_is_bounded_where_the_signal_ends() -> None:
    """(sigma²/alpha) ∇ln p, by which x̂0 moves, at the last timestep, where alpha is 5e-5."""
    x = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    moved = {}
    for scaled in (False, True):
        torch.manual_seed(0)
        schedule = Schedule.cosine(1000)
        system = NoisyClassifier(Classifier(widths=(8, 16), emb=16), schedule, scaled=scaled)
        t, leaf = torch.full((8,), 999), x.clone().requires_grad_()
        system.log_prob(leaf, t, torch.arange(8)).sum().backward()
        assert leaf.grad is not None
        moved[scaled] = float(leaf.grad.flatten(1).norm(dim=1).mean() / schedule.alpha[999])
    assert moved[True] < 10 < 100 < moved[False]


def test_a_folder_keeps_the_options(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = NoisyClassifier(MLP(2, out=2, width=4, emb=4), SCHEDULE)
    assert set(plain.config) == {"network", "schedule"}, "as older folders have it"
    moons = load_toy("moons", n=64)
    system = make("classifier", moons, width=8, depth=1, teacher="runs/unet", match=7.0)
    save_system(tmp_path, system)
    again = load_system(tmp_path)
    assert (again.scaled, again.teacher, again.match) == (True, "runs/unet", 7.0)
    x, t = torch.randn(5, 2), torch.arange(5)
    assert torch.equal(again.logits(x, t), system.logits(x, t))


def test_what_does_not_fit_is_refused() -> None:
    x0, labels = points()
    with pytest.raises(ValueError, match="expected the teacher 'exact' for the loss, got none"):
        taught(None).loss(x0, labels, seed=0, sample_ids=IDS, step=0)
    for options in ({"scaled": False}, {"match": 0.0}, {"teacher": 3}, {"matched": 0.0}):
        with pytest.raises(ValueError, match="expected teacher as a name, with scaled=True"):
            taught(None, **options)
    with pytest.raises(ValueError, match="expected a teacher of the classifier's schedule"):
        taught(None).teach(Teacher(), Schedule.cosine(100), "v")
    other = Teacher()
    other.null_label = 10
    with pytest.raises(ValueError, match="expected a teacher of 2 classes, or of none, got 10"):
        taught(None).teach(other, SCHEDULE, "v")


@pytest.mark.cpu_only
def test_the_command_teaches_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is stopped and resumed gives the same weights as one without interruption."""
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    small = ("--batch-size", "4", "--widths", "8", "--option", "emb=8", "--threads", "1")
    flags = ("train", "--model", "classifier", *small, "--option", "teacher=fashion-mnist")
    assert main([*flags, "--steps", "2", "--out", whole]) == 0
    assert main([*flags, "--steps", "2", "--out", parts, "--minutes", "1e-9"]) == 0
    assert main(["train", "--out", parts, "--resume"]) == 0
    files = [(Path(folder) / "model.safetensors").read_bytes() for folder in (whole, parts)]
    assert files[0] == files[1]
    config = json.loads((Path(whole) / "config.json").read_text())
    assert config["system"]["config"]["teacher"] == "fashion-mnist"
    for teacher, reason in (("nothing", "got none"), (whole, "expected a system with samples in")):
        out = str(tmp_path / "other")
        assert main([*flags[:-1], f"teacher={teacher}", "--steps", "1", "--out", out]) == 2
        assert reason in capsys.readouterr().err
