"""Tables and timesteps that are assigned or written after set_timesteps, as diffusers' users do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CLASSES, arguments, both, network, set_timesteps, start
from loops import plain, scaled

STEPS = 7


def _assign(choose: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    def edit(scheduler: Any) -> None:
        scheduler.timesteps = choose(scheduler.timesteps)

    return edit


def _slice_and_begin(scheduler: Any) -> None:
    scheduler.timesteps = scheduler.timesteps[4:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(4)


def _write(scheduler: Any) -> None:
    t = scheduler.timesteps
    t[1] = (t[0] + t[1]) // 2 if not t.is_floating_point() else 0.5 * (t[0] + t[1])


def _scale(name: str, factor: float) -> Callable[[Any], None]:
    def edit(scheduler: Any) -> None:
        setattr(scheduler, name, getattr(scheduler, name) * factor)

    return edit


def _scale_in_place(name: str, factor: float) -> Callable[[Any], None]:
    def edit(scheduler: Any) -> None:
        getattr(scheduler, name).mul_(factor)

    return edit


def _fewer_sigmas(scheduler: Any) -> None:
    """The levels and timesteps of a distilled model, over those of set_timesteps."""
    kept = [0, 3, 5, len(scheduler.sigmas) - 1]
    scheduler.timesteps = scheduler.timesteps[kept[:-1]]
    scheduler.sigmas = 0.97 * scheduler.sigmas[kept]
    scheduler.num_inference_steps = len(kept) - 1


def _other_count(scheduler: Any) -> None:
    scheduler.num_inference_steps = 2 * STEPS


EDITS: dict[str, Callable[[Any], None]] = {
    "timesteps sliced": _assign(lambda t: t[3:]),
    "timesteps sliced at 4": _assign(lambda t: t[4:]),
    "timesteps sliced, begun at 4": _slice_and_begin,
    "timesteps with gaps": _assign(lambda t: t[::2]),
    "timesteps chosen": _assign(lambda t: t[[0, 1, 4, 6]]),
    "timesteps reversed": _assign(lambda t: t[1::2].flip(0)),
    "timesteps of another dtype": _assign(lambda t: t.double()),
    "timesteps written": _write,
    "alphas_cumprod assigned": _scale("alphas_cumprod", 0.9),
    "alphas_cumprod written": _scale_in_place("alphas_cumprod", 0.9),
    "alphas assigned": _scale("alphas", 0.99),
    "betas assigned": _scale("betas", 0.8),
    "betas written": _scale_in_place("betas", 0.8),
    "final_alpha_cumprod assigned": _scale("final_alpha_cumprod", 0.9999),
    "initial_alpha_cumprod assigned": _scale("initial_alpha_cumprod", 0.9999),
    "sigmas assigned": _scale("sigmas", 0.9),
    "sigmas written": _scale_in_place("sigmas", 0.9),
    "fewer sigmas": _fewer_sigmas,
    "num_inference_steps assigned": _other_count,
}


def states(scheduler: Any, name: str, edit: Callable[[Any], None], at: int) -> list[torch.Tensor]:
    """The states of a loop whose scheduler is edited before the step of index `at`."""
    case = plain(name)
    generator = torch.Generator().manual_seed(4)
    set_timesteps(case, scheduler, next((n for n in case.steps if n >= STEPS), case.steps[-1]))
    x = start(scheduler, torch.float64) * 0.5
    result, timesteps = [], scheduler.timesteps
    for t in timesteps[:at]:
        x = _step(scheduler, case, x, t, generator)
        result.append(x)
    edit(scheduler)
    for t in timesteps[at:] if at else scheduler.timesteps:
        x = _step(scheduler, case, x, t, generator)
        result.append(x)
    return result


def _step(scheduler: Any, case: Any, x: torch.Tensor, t: Any, generator: Any) -> torch.Tensor:
    out = network(scaled(scheduler, x, t), case.kinds[0], case.learned)
    return scheduler.step(out, t, x, **arguments(case, generator))[0]


CASES = [(name, edit) for name in CLASSES for edit in EDITS]
IDS = [f"{name.removesuffix('Scheduler')}-{edit}" for name, edit in CASES]
AT_ONCE = {edit for edit in EDITS if not edit.startswith(("timesteps", "fewer"))}
# classes that remember a sum with the levels of a step, always or between the calls of one step
SUMS = {"SASolverScheduler": (3, 4)} | dict.fromkeys(
    [
        "DPMSolverSDEScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "PNDMScheduler",
    ],
    (3,),
)


def _compare(name: str, edit: str, at: int) -> None:
    theirs, ours = both(plain(name), plain(name).kinds[0])
    attribute = edit.split()[0] if edit != "fewer sigmas" else "sigmas"
    if not hasattr(theirs, attribute):
        pytest.skip(f"diffusers' {name} has no {attribute}")
    try:
        wanted = states(theirs, name, EDITS[edit], at)
    except (IndexError, ValueError, TypeError, AttributeError, AssertionError):
        # what diffusers cannot do, a drop-in may, or it says so
        try:
            states(ours, name, EDITS[edit], at)
        except ValueError as error:
            assert str(error).startswith(("fastdiff.", "expected fastdiff")), error
        return
    try:
        got = states(ours, name, EDITS[edit], at)
    except ValueError as error:
        refused = "begun" in edit or at in SUMS.get(name, ())
        refused = refused or not wanted[-1].isfinite().all()
        assert refused and str(error).startswith("fastdiff."), error
        return
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        if not b.isfinite().all():
            return
        assert (a - b).abs().max() <= 2e-5 * b.abs().max().clamp(min=1)


@pytest.mark.parametrize(("name", "edit"), CASES, ids=IDS)
def test_loops_after_an_edit_are_diffusers(name: str, edit: str) -> None:
    _compare(name, edit, 0)


INSIDE = [(name, edit) for name, edit in CASES if edit in AT_ONCE]


@pytest.mark.parametrize("at", [3, 4])
@pytest.mark.parametrize(("name", "edit"), INSIDE)
def test_edits_inside_a_loop_are_diffusers_or_refused(name: str, edit: str, at: int) -> None:
    """Refused where the next step continues from a sum with the levels before, and only there."""
    _compare(name, edit, at)
