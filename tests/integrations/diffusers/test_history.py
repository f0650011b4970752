"""What diffusers remembers between steps, read and assigned on drop-ins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CLASSES, arguments, both, network, set_timesteps, start
from loops import plain, scaled

import fastdiff

STEPS = 8
HISTORY = {name: list(getattr(fastdiff, name)._history) for name in CLASSES}
WITH = [name for name in CLASSES if HISTORY[name]]


def _loop(scheduler: Any, name: str, touch: dict[int, Any]) -> list[torch.Tensor]:
    """The states of a loop, with functions of the scheduler that are called before some steps."""
    case = plain(name)
    generator = torch.Generator().manual_seed(4)
    set_timesteps(case, scheduler, next(n for n in case.steps if n >= STEPS))
    x = start(scheduler, torch.float64) * 0.5
    states = []
    for i, t in enumerate(scheduler.timesteps):
        if i in touch:
            touch[i](scheduler)
        out = network(scaled(scheduler, x, t), case.kinds[0], case.learned)
        x = scheduler.step(out, t, x, **arguments(case, generator))[0]
        states.append(x)
    return states


def _close(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("at", [0, 1, 2, 4, 5, 8])
@pytest.mark.parametrize("name", WITH)
def test_a_run_whose_history_is_read_goes_on_as_diffusers(name: str, at: int) -> None:
    theirs, ours = both(plain(name), plain(name).kinds[0])
    refused = []

    def read(scheduler: Any) -> None:
        try:
            for attribute in HISTORY[name]:
                getattr(scheduler, attribute)
        except AttributeError as error:
            refused.append(str(error))

    wanted, got = _loop(theirs, name, {}), _loop(ours, name, {at: read})
    _close(got, wanted)
    assert not refused or (at and "between steps" in refused[0])
    if name == "SASolverScheduler" or getattr(ours, "order", 1) == 2 and at % 2:
        assert at == 0 or refused
    elif name != "PNDMScheduler":
        assert not refused, refused


@pytest.mark.parametrize("at", [0, 3, 8])
@pytest.mark.parametrize("name", WITH)
def test_histories_have_diffusers_values(name: str, at: int) -> None:
    """Where a drop-in has a value; what no later step reads may be missing."""
    theirs, ours = both(plain(name), plain(name).kinds[0])
    seen: list[dict[str, Any]] = []

    def read(scheduler: Any) -> None:
        seen.append({a: getattr(scheduler, a, None) for a in HISTORY[name]})

    _loop(theirs, name, {at: read})
    _loop(ours, name, {at: read})
    wanted, got = seen
    for attribute, value in got.items():
        for a, b in zip(_flat(value)[::-1], _flat(wanted[attribute])[::-1], strict=False):
            if isinstance(a, torch.Tensor):
                assert (a - b).abs().max() <= 2e-5 * b.abs().max().clamp(min=1), attribute
            elif a is not None and not attribute.startswith("this_"):
                assert a == b, attribute


def _flat(value: Any) -> list[Any]:
    return [*value] if isinstance(value, list) else [value]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("UniPCMultistepScheduler", lambda s: setattr(s, "last_sample", s.last_sample * 0.9)),
        ("UniPCMultistepScheduler", lambda s: s.model_outputs.__setitem__(-1, s.model_outputs[-1])),
        ("DPMSolverMultistepScheduler", lambda s: s.model_outputs[-1].mul_(0.9)),
        ("DPMSolverMultistepScheduler", lambda s: setattr(s, "lower_order_nums", 0)),
        ("DEISMultistepScheduler", lambda s: s.model_outputs[-1].mul_(0.9)),
        ("LMSDiscreteScheduler", lambda s: s.derivatives[-1].mul_(0.9)),
        ("IPNDMScheduler", lambda s: s.ets[-1].mul_(0.9)),
        ("IPNDMScheduler", lambda s: s.ets.clear()),
    ],
)
def test_a_changed_history_has_diffusers_effect(name: str, change: Any) -> None:
    theirs, ours = both(plain(name), plain(name).kinds[0])
    _close(_loop(ours, name, {4: change}), _loop(theirs, name, {4: change}))


def test_pndm_has_its_two_steps() -> None:
    """Runge-Kutta steps, then multistep ones, by the methods' own names."""
    results = []
    for scheduler in both(plain("PNDMScheduler"), "epsilon", skip_prk_steps=False):
        scheduler.set_timesteps(8)
        x = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
        for t in scheduler.prk_timesteps:
            x = scheduler.step_prk(0.3 * x.tanh(), t, x).prev_sample
        for t in scheduler.plms_timesteps:
            x = scheduler.step_plms(0.3 * x.tanh(), t, x).prev_sample
        results.append(x)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in WITH if n != "SASolverScheduler"])
def test_a_second_loop_without_set_timesteps_is_diffusers_or_refused(name: str) -> None:
    """diffusers then goes on with the first loop's history."""
    theirs, ours = both(plain(name), plain(name).kinds[0])
    ends = []
    for scheduler in (theirs, ours):
        _loop(scheduler, name, {})
        case, generator = plain(name), torch.Generator().manual_seed(5)
        x = start(scheduler, torch.float64) * 0.5
        try:
            scheduler._step_index = None
            for t in scheduler.timesteps:
                out = network(scaled(scheduler, x, t), case.kinds[0], case.learned)
                x = scheduler.step(out, t, x, **arguments(case, generator))[0]
        except ValueError as error:
            assert scheduler is ours and "Call set_timesteps" in str(error)
            assert name not in ("IPNDMScheduler", "LMSDiscreteScheduler")
            return
        ends.append(x)
    assert (ends[0] - ends[1]).abs().max() <= 1e-4 * ends[0].abs().max().clamp(min=1)
