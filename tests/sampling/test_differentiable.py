"""Samples that are differentiated: gradients through whole runs, against central differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdiff
from fastdiff import Sampler, Schedule
from fastdiff.models import UNet
from fastdiff.solvers import SOLVERS

VP, FLOW = Schedule.scaled_linear(1000), Schedule.flow(1000)
SHAPE = (2, 2, 3)
STEPS = 4


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """A network in float64 of a condition y [B], for both guidance halves and learned variance."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Parameter(0.5 * normal(channels, SHAPE[1], seed=1))
        self.late = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        shift = 0.0 if y is None else y.view(-1, 1, 1)
        time = self.late * t.to(x.dtype).view(-1, 1, 1) / 1000
        return torch.tanh(torch.einsum("ij,bjk->bik", self.mix, x) + shift + time)


class Case:
    """A sampler with the tensors that its samples depend on, and their weighted sum."""

    def __init__(self, solver: str, /, *, guided: bool = True, **settings: Any):
        known = SOLVERS[solver]
        learned = "learned" in settings.get("variance_type", "")
        self.net = Net(SHAPE[1] * (2 if learned else 1))
        self.sampler = Sampler(
            self.net,
            FLOW if known.peer.space == "flow" else VP,
            solver=solver,
            steps=STEPS,
            prediction_type=known.peer.prediction_type,
            **settings,
        )
        self.leaves = {
            "mix": self.net.mix,
            "late": self.net.late,
            "x_T": normal(*SHAPE, seed=2).requires_grad_(),
            "y": normal(SHAPE[0], seed=3).requires_grad_(),
        }
        if guided:
            self.leaves["none"] = normal(SHAPE[0], seed=4).requires_grad_()
            # selected halves have a derivative by the strength too
            gamma = torch.tensor([2.5, 1.0], dtype=torch.float64)
            self.leaves["gamma"] = gamma.requires_grad_()
        self.more: dict[str, Any] = {}

    def sample(self, **arguments: Any) -> Tensor:
        leaves = self.leaves
        given: dict[str, Any] = {"x_T": leaves["x_T"], "seed": 5, "cond": {"y": leaves["y"]}}
        if "gamma" in leaves:
            given |= {"uncond": {"y": leaves["none"]}, "guidance_scale": leaves["gamma"]}
        given |= self.more | arguments
        return self.sampler.sample(**given)

    def value(self, **arguments: Any) -> Tensor:
        x = self.sample(**arguments)
        return (x * normal(*SHAPE, seed=6)).sum() + 0.1 * x.square().sum()

    def gradients(self, **arguments: Any) -> dict[str, Tensor]:
        value = self.value(differentiable=True, **arguments)
        found = torch.autograd.grad(value, list(self.leaves.values()), allow_unused=True)
        assert None not in found, "an input has no gradient"
        return dict(zip(self.leaves, found, strict=True))  # type: ignore[arg-type]

    def check(self) -> None:
        """Central differences by each input along a random direction, and equal samples."""
        assert torch.equal(self.sample(), self.sample(differentiable=True).detach())
        assert not self.sample().requires_grad
        gradients = self.gradients()
        for k, (name, leaf) in enumerate(self.leaves.items()):
            direction, h = normal(*leaf.shape, seed=10 + k), 1e-6
            with torch.no_grad():
                leaf += h * direction
                above = self.value()
                leaf -= 2 * h * direction
                below = self.value()
                leaf += h * direction
            wanted, got = (above - below) / (2 * h), (gradients[name] * direction).sum()
            assert abs(got - wanted) <= 1e-6 * (abs(wanted) + 1), (name, float(got), float(wanted))


def configurations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every solver with the options that its tests run it with."""
    for name, solver in SOLVERS.items():
        for configuration in solver.configurations:
            yield name, dict(configuration.options)


ALL = list(configurations())


@pytest.mark.parametrize("solver, options", ALL, ids=[f"{n}{o or ''}" for n, o in ALL])
def test_gradients_of_every_solver(solver: str, options: dict[str, Any]) -> None:
    Case(solver, **options).check()


PARTS: dict[str, Callable[[], Case]] = {
    "no guidance": lambda: Case("dpm++2m", guided=False),
    "rescaled guidance": lambda: Case("unipc", guidance_rescale=0.7),
    "guidance between two levels": lambda: Case("ddim", guidance_interval=(0.2, 3.0)),
    "a number per row": lambda: with_arguments(
        Case("dpm++2m", guided=False),
        guidance_scale=[1.0, 3.0, 0.0, 2.0],
        uncond={"y": torch.zeros(2, dtype=torch.float64)},
    ),
    "a clip": lambda: Case("ddpm", clip_range=0.8),
    "a dynamic threshold": lambda: Case("ddim", clip_range=2.0, dynamic_threshold=0.8),
    "learned variance": lambda: Case("ddpm", variance_type="learned_range", clip_range=1.0),
    "a padded network batch": lambda: Case("dpm++2m", network_batch=3),
    "a guidance of x0": lambda: with_arguments(
        Case("dpm++2m"), guidance=lambda x0, x, t: x0 - 0.2 * x0**3 + 0.1 * torch.sin(x)
    ),
    "a classifier": lambda: with_arguments(
        Case("ddim"), classifier=lambda x, t: -(x**4).sum((1, 2)), classifier_scale=0.2
    ),
    "a classifier's gradient": lambda: with_arguments(
        Case("ddim"), classifier=lambda x, t: -4 * x**3, classifier_scale=0.2
    ),
}


def with_arguments(case: Case, **arguments: Any) -> Case:
    case.more = arguments
    return case


def inpainting() -> Case:
    case = Case("repaint", jump_length=2, jump_n_sample=2)
    case.leaves["known"] = normal(*SHAPE, seed=7).requires_grad_()
    case.leaves["mask"] = torch.full(SHAPE, 0.3, dtype=torch.float64).requires_grad_()
    return with_arguments(case, known=case.leaves["known"], mask=case.leaves["mask"])


def from_an_image() -> Case:
    case = Case("unipc")
    case.leaves["image"] = case.leaves.pop("x_T")
    case.leaves["x_T"] = case.leaves["image"]  # `sample` reads it; replaced by the image below
    return with_arguments(case, x_T=None, image=case.leaves["image"], strength=0.75)


PARTS |= {"inpainting": inpainting, "an image": from_an_image}


@pytest.mark.parametrize("part", PARTS)
def test_gradients_of_every_part_of_a_step(part: str) -> None:
    PARTS[part]().check()


@pytest.mark.parametrize("checkpoint", [True, 2, 3, 100])
@pytest.mark.parametrize(
    "solver, part",
    [(n, None) for n in ("dpm++2m", "unipc", "sa", "ddpm", "heun", "dpm++sde")]
    + [("", p) for p in PARTS],
)
def test_checkpointed_gradients_have_the_same_bits(
    solver: str, part: str | None, checkpoint: int
) -> None:
    case = PARTS[part]() if part else Case(solver)
    plain = case.gradients()
    case.net.calls = 0
    assert torch.equal(case.sample(differentiable=True, checkpoint=checkpoint), case.sample())
    again = case.gradients(checkpoint=checkpoint)
    for name, grad in plain.items():
        assert torch.equal(again[name], grad), name


@contextmanager
def saved() -> Iterator[dict[int, int]]:
    """The bytes of every memory that autograd stores meanwhile, by its address."""
    held: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield held


class Wide(nn.Module):
    """A network whose activations are 64 times its state."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 1024), nn.Linear(1024, 16)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def bytes_of(steps: int, **arguments: Any) -> int:
    torch.manual_seed(0)
    sampler = Sampler(Wide(), VP, solver="dpm++2m", steps=steps)
    x_T = torch.randn(32, 16)
    with saved() as held:
        loss = sampler.sample(x_T=x_T, differentiable=True, **arguments).square().sum()
    assert loss.requires_grad
    return sum(held.values())


def test_memory_of_checkpoints_does_not_grow_with_the_networks_activations() -> None:
    state, activations = 32 * 16 * 4, 32 * 1024 * 4
    plain = bytes_of(16) - bytes_of(8)
    assert plain >= 8 * activations, "a row stores the activations of its call"
    rows = bytes_of(16, checkpoint=True) - bytes_of(8, checkpoint=True)
    assert rows <= 8 * 4 * state, "a row stores its state and slots"
    segments = bytes_of(16, checkpoint=4) - bytes_of(8, checkpoint=4)
    assert segments <= 2 * 4 * state, "a segment stores the state that it begins with"
    assert bytes_of(16, last_k=2) <= bytes_of(2) + 8 * state


def test_the_backward_pass_of_checkpoints_calls_the_network_once_more() -> None:
    case = Case("dpm++2m")
    case.gradients()
    assert case.net.calls == STEPS
    case.net.calls = 0
    case.gradients(checkpoint=2)
    assert case.net.calls == 2 * STEPS


@pytest.mark.parametrize("checkpoint", [0, 1, 2])
@pytest.mark.parametrize("last_k", [1, 2, 3, STEPS, 100])
def test_the_last_rows_alone_are_differentiated(last_k: int, checkpoint: int) -> None:
    """They are a run of their own from the state that they begin with (a solver of one row)."""
    case = Case("euler_ancestral")
    got = case.value(differentiable=True, last_k=last_k, checkpoint=checkpoint)
    weights = [case.net.mix, case.net.late]
    found = torch.autograd.grad(got, weights, retain_graph=True)
    states: list[Tensor] = [case.leaves["x_T"].detach()]
    case.sample(callback=lambda row, t, x, x0: states.append(x.clone()))
    start = max(STEPS - last_k, 0)
    tail = case.value(differentiable=True, x_T=states[start], start=start)
    assert torch.equal(got, tail)
    for a, b in zip(found, torch.autograd.grad(tail, weights), strict=True):
        assert torch.equal(a, b)
    through = torch.autograd.grad(got, case.leaves["x_T"], allow_unused=True)[0]
    assert (through is None) == (last_k < STEPS)


def test_a_callback_sees_the_same_and_may_write_into_the_state() -> None:
    case = Case("dpm++2m")
    seen: list[list[Any]] = [[], []]
    for differentiable, into in ((False, seen[0]), (True, seen[1])):
        case.sample(
            differentiable=differentiable,
            checkpoint=3 if differentiable else 0,
            callback=lambda row, t, x, x0, into=into: into.append(
                (row, t, x.detach().clone(), x0.clone())
            ),
        )
    assert len(seen[0]) == len(seen[1]) == STEPS
    for a, b in zip(*seen, strict=True):
        assert a[:2] == b[:2] and torch.equal(a[2], b[2]) and torch.equal(a[3], b[3])
        assert not b[3].requires_grad
    with_arguments(case, callback=lambda row, t, x, x0: x.mul_(0.9)).check()


def test_a_step_of_training_by_a_reward_goes_up() -> None:
    torch.manual_seed(0)
    net = UNet(size=8, widths=(8, 16), emb=16, num_classes=0)
    sampler = Sampler(net, VP, solver="dpm++2m", steps=3, clip_range=1.0)

    def reward(**arguments: Any) -> Tensor:
        return -(sampler.sample((2, 1, 8, 8), seed=0, **arguments) - 0.5).square().mean()

    before = reward()
    assert not before.requires_grad
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (-reward(differentiable=True, checkpoint=True)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
    assert reward() > before


def test_a_decoder_is_differentiated_too() -> None:
    case = Case("ddim")
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    case.sampler = Sampler(case.net, VP, solver="ddim", steps=2, decode=lambda z: weight * z)
    assert not case.sample().requires_grad
    grad = torch.autograd.grad(case.sample(differentiable=True).sum(), weight)[0]
    assert torch.allclose(grad, case.sample().sum() / 2)


def test_runs_and_modes_around_do_not_matter() -> None:
    case = Case("dpm++2m")
    wanted = case.gradients()
    with torch.inference_mode():
        assert not case.sample(differentiable=True).requires_grad
    with torch.no_grad():
        assert not case.sample(differentiable=True, checkpoint=True).requires_grad
    values = [case.value(differentiable=True, checkpoint=c) for c in (0, 2)]
    case.sample()  # another run before the backward passes
    for value in values:
        grad = torch.autograd.grad(value, case.net.mix)[0]
        assert torch.equal(grad, wanted["mix"])


def test_recorded_steps_are_never_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph would replay the forward pass of other tensors. `graphs` is asked for no run."""
    from fastdiff.sampling import engine

    asked: list[Any] = []
    monkeypatch.setattr(engine, "graphs", lambda *arguments: asked.append(arguments))
    case = Case("dpm++2m")
    case.sample(differentiable=True)
    assert not asked and not case.sampler._engine._kept._runs
    case.sample()
    assert asked


def test_second_derivatives_and_forward_mode() -> None:
    case = Case("unipc")
    x_T, v = case.leaves["x_T"], normal(*SHAPE, seed=8)
    first = torch.autograd.grad(case.value(differentiable=True), x_T, create_graph=True)[0]
    second = torch.autograd.grad((first * v).sum(), x_T)[0]
    h = 1e-5
    above, below = (
        torch.autograd.grad(case.value(differentiable=True, x_T=x), x)[0]
        for x in ((x_T + s * h * v).detach().requires_grad_() for s in (1, -1))
    )
    assert torch.allclose(second, (above - below) / (2 * h), atol=1e-7)
    _, tangent = torch.func.jvp(
        lambda x: case.value(differentiable=True, x_T=x), (x_T.detach(),), (v,)
    )
    assert torch.allclose(tangent, (first * v).sum())


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"checkpoint": True}, ValueError, "expected differentiable=True with checkpoint"),
        ({"last_k": 2}, ValueError, "expected differentiable=True with checkpoint or last_k"),
        ({"differentiable": True, "last_k": 0}, TypeError, "expected last_k as a number of rows"),
        ({"differentiable": True, "checkpoint": -1}, TypeError, "expected checkpoint as a number"),
        (
            {"differentiable": True, "guidance": lambda x0, x, t: x0, "through_network": True},
            ValueError,
            "expected through_network=False",
        ),
        ({"differentiable": True, "steps": [3, 4]}, ValueError, "expected one number of rows"),
    ],
)
def test_what_has_no_right_derivative_is_refused(
    arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        Case("ddim").sample(**arguments)


@pytest.mark.parametrize("settings", [{"network_dtype": torch.float32}, {"channels_last": True}])
def test_a_copy_of_the_network_takes_no_gradients(settings: dict[str, Any]) -> None:
    case = Case("ddim", **settings)
    with pytest.raises(ValueError, match="got a copy whose weights get the gradients"):
        case.sample(differentiable=True)
    case = Case("ddim", **settings)
    for p in case.sampler._engine.network.model.parameters():  # type: ignore[union-attr]
        p.requires_grad_(False)
    assert case.sample(differentiable=True).requires_grad, "by x_T, which no copy takes"


def test_gradients_are_the_same_on_every_backend(backend: str) -> None:
    case = Case("sa")
    with fastdiff.use("torch"):
        wanted = case.gradients()
    for name, grad in case.gradients().items():
        assert torch.allclose(grad, wanted[name], rtol=1e-12)
