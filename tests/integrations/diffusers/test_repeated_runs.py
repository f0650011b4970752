"""Runs that begin like an earlier one, and steps that follow one of their kind.

Both are shortcuts: what they give equals to the bit what the whole way gives, in every class, and
whatever changes in between is seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import FrameType
from typing import Any

import pytest
import torch
from driving import ROWS, Drive, Row
from torch import Tensor

import fastdiff
from fastdiff.backend.eager import LAUNCHERS
from fastdiff.integrations.diffusers import following, repeated

BY_ID = {row.id: row for row in ROWS}
# Python functions that `set_timesteps` and a step may call in a run like an earlier one
OF_SET, OF_STEP = 50, 30
# classes whose calls have several rows, whose steps have other arguments than most, and limits that
# need memory of their own
WHOLE_WAY = ("PNDM", "CogVideoXDPM", "DDIM(threshold)")


@pytest.fixture
def whole_way(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(following.Following, "step", lambda *_: None)
    monkeypatch.setattr(repeated, "_key", lambda *_: None)
    yield


def two_runs(row: Row, generator: bool) -> list[Any]:
    """What the steps of two runs of one scheduler return."""
    drive = Drive(row, True)
    if not generator:
        drive.generator = None
    for seed in (3, 4):
        torch.manual_seed(seed)
        drive.loop(drive.begin())
    return drive.seen


@pytest.mark.parametrize("generator", [True, False])
@pytest.mark.parametrize("name", BY_ID)
def test_shortcuts_change_no_bit(
    name: str, generator: bool, request: pytest.FixtureRequest
) -> None:
    got = two_runs(BY_ID[name], generator)
    request.getfixturevalue("whole_way")
    expected = two_runs(BY_ID[name], generator)
    assert len(got) == len(expected) > 0
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "name", [n for n in BY_ID if not n.startswith(WHOLE_WAY) and not BY_ID[n].case.stochastic]
)
def test_a_repeated_run_calls_few_functions(name: str) -> None:
    drive = Drive(BY_ID[name], True)
    drive.generator = None
    for _ in range(2):  # some change their configuration in the first run
        drive.loop(drive.begin())
    x, calls = drive.start(), 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    def counted(function: Callable[[], Any]) -> Any:
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            return function()
        finally:
            sys.setprofile(before)

    options = {**drive.options(x), "return_dict": False}
    timesteps = counted(drive.begin)
    assert calls <= OF_SET
    calls = 0
    for t in timesteps:
        out = drive.output(x, t)
        x = counted(lambda out=out, t=t, x=x: drive.scheduler.step(out, t, x, **options))[0]
    assert calls / len(timesteps) <= OF_STEP


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_a_generator_that_no_step_uses_costs_nothing(name: str) -> None:
    scheduler = getattr(fastdiff, name)()
    start = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    results, most = [], 0
    for generator in (None, torch.Generator().manual_seed(5)):
        for _ in range(2):
            scheduler.set_timesteps(8)
            x, taken = start, []
            for t in scheduler.timesteps:
                taken.append(scheduler._states.get().following)
                x = scheduler.step(0.5 * x, t, x, generator=generator, return_dict=False)[0]
            most = len({id(f) for f in taken if f is not None})
            results.append(x)
    assert most == 1, "all steps of the last run were taken one way"
    assert all(torch.equal(x, results[0]) for x in results)


def run(scheduler: Any, x: Tensor, at: int, change: Callable[..., Any] | None) -> list[Tensor]:
    """The states of a loop of Euler, with a change before the step at an index."""
    scheduler.set_timesteps(8)
    seen = []
    for index, t in enumerate(scheduler.timesteps):
        options: dict[str, Any] = {"return_dict": False}
        out = 0.5 * scheduler.scale_model_input(x, t)
        if change is not None and index >= at:
            out, t, x, options = change(scheduler, index, out, t, x, options)
        x = scheduler.step(out, t, x, **options)[0]
        seen.append(x.detach().clone())
    return seen


def _halves(_: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    return out.to(torch.bfloat16), t, x.to(torch.bfloat16), options


def _double(_: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    return out.double(), t, x.double(), options


def _gradient(_: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    return out.detach().requires_grad_(), t, x.detach(), options


def _number(_: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    return out, float(t), x, options


def _strided(_: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    return out.transpose(2, 3).contiguous().transpose(2, 3), t, x, options


def _fewer(_: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    return out[:1], t, x[:1], options


def _sigma(scheduler: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    if index == 4:
        scheduler.sigmas[5:7] *= 0.5
    return out, t, x, options


def _assigned(scheduler: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    if index == 4:
        scheduler.sigmas = scheduler.sigmas * torch.tensor([1.0] * 5 + [0.5] * 3 + [0.0])
    return out, t, x, options


def _counter(scheduler: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    return out, scheduler.timesteps[max(index - 1, 4)], x, options


def _configuration(scheduler: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    if index == 4:
        scheduler.register_to_config(prediction_type="sample")
    return out, t, x, options


def _churn(_: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    return out, t, x, {**options, "s_churn": 2.0}


def _negated(_: Any, index: int, out: Any, t: Any, x: Any, options: Any) -> Any:
    return torch._neg_view(out), t, x, options


CHANGES = [
    _halves, _double, _gradient, _number, _strided, _fewer, _sigma, _assigned, _counter,
    _configuration, _churn, _negated,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_change_between_steps_is_seen(
    change: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    def both_runs() -> list[Tensor]:
        scheduler = fastdiff.EulerDiscreteScheduler()
        x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 10
        torch.manual_seed(0)
        plain = run(scheduler, x, 0, None)
        changed = run(scheduler, x, 4, change)
        assert not all(a.equal(b) for a, b in zip(plain, changed, strict=True)) or change in (
            _gradient,
            _number,
            _strided,
        )
        again = run(scheduler, x, 0, None)
        if change is not _configuration:
            assert all(a.equal(b) for a, b in zip(plain, again, strict=True))
        return [*plain, *changed, *again]

    got = both_runs()
    request.getfixturevalue("whole_way")
    for mine, theirs in zip(got, both_runs(), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_an_attribute_that_a_step_reads_is_seen() -> None:
    """Scale factors that are set inside a run make the next state larger."""
    scheduler = fastdiff.FlowMatchLCMScheduler()
    for _ in range(2):
        scheduler.set_timesteps(4)
        x = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        for index, t in enumerate(scheduler.timesteps):
            if index == 2:
                scheduler.set_scale_factors([1.0, 1.0, 2.0], "nearest")
            x = scheduler.step(0.5 * x, t, x).prev_sample
        assert x.shape == (1, 2, 16, 16)
        scheduler.set_scale_factors(None, None)


def test_a_backend_chosen_between_steps_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    eager = LAUNCHERS["reverse_step"]
    monkeypatch.setitem(LAUNCHERS, "reverse_step", lambda *a: (used.append(1), eager(*a))[1])
    scheduler = fastdiff.DDIMScheduler(clip_sample=False)
    x = torch.randn(2, 3, 4, 5)
    for _ in range(2):
        scheduler.set_timesteps(6)
        for index, t in enumerate(scheduler.timesteps):
            with fastdiff.use("torch") if index >= 3 else nullcontext():
                scheduler.step(x, t, x)
    assert len(used) == 6


def test_tables_belong_to_their_run() -> None:
    scheduler = fastdiff.EulerDiscreteScheduler()
    scheduler.set_timesteps(6)
    first = scheduler.sigmas
    kept = first.clone()
    scheduler.set_timesteps(6)
    second = scheduler.sigmas
    assert second is not first and torch.equal(second, kept)
    second *= 2.0
    scheduler.timesteps[0] = 500.0
    scheduler.set_timesteps(6)
    assert torch.equal(scheduler.sigmas, kept) and scheduler.timesteps[0] != 500.0
    assert torch.equal(first, kept)


@pytest.mark.parametrize("way", ["written", "assigned", "shift", "configuration", "argument"])
def test_what_set_timesteps_reads_makes_another_run(way: str) -> None:
    flow = way in ("shift", "argument")
    scheduler: Any = (
        fastdiff.FlowMatchEulerDiscreteScheduler() if flow else fastdiff.EulerDiscreteScheduler()
    )
    arguments: dict[str, Any] = {"num_inference_steps": 6}
    if way == "argument":
        arguments = {"sigmas": [1.0, 0.6, 0.3]}
    for _ in range(2):
        scheduler.set_timesteps(**arguments)
    before = scheduler.sigmas.clone()
    if way == "written":
        scheduler.alphas_cumprod *= 0.9
    elif way == "assigned":
        scheduler.alphas_cumprod = scheduler.alphas_cumprod * 0.9
    elif way == "shift":
        scheduler.set_shift(3.0)
    elif way == "configuration":
        scheduler.register_to_config(timestep_spacing="trailing")
    else:
        arguments["sigmas"][1] = 0.5
    scheduler.set_timesteps(**arguments)
    assert not torch.equal(scheduler.sigmas, before)
    fresh: Any = (
        fastdiff.FlowMatchEulerDiscreteScheduler()
        if flow
        else fastdiff.EulerDiscreteScheduler(
            timestep_spacing="trailing" if way == "configuration" else "linspace"
        )
    )
    if way == "shift":  # the ends of training stay as they were
        fresh.set_shift(3.0)
    if way in ("written", "assigned"):
        fresh.alphas_cumprod = fresh.alphas_cumprod * 0.9
    fresh.set_timesteps(**arguments)
    assert torch.equal(scheduler.timesteps, fresh.timesteps)
    assert torch.equal(scheduler.sigmas, fresh.sigmas)


def test_a_users_class_takes_its_own_steps() -> None:
    seen = []

    class Watched(fastdiff.DDIMScheduler):
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            seen.append("set")
            super().set_timesteps(*args, **kwargs)

        def step(self, model_output: Any, timestep: Any, sample: Any, **kwargs: Any) -> Any:
            seen.append("step")
            return super().step(model_output, timestep, sample, **kwargs)

    scheduler, x = Watched(), torch.randn(1, 2, 3)
    for _ in range(3):
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * x, t, x).prev_sample
    assert seen == ["set", *["step"] * 4] * 3


def test_the_construction_computes_no_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(fastdiff.DDIMScheduler, "_points", refuse)
    fastdiff.DDIMScheduler()
