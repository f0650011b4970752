"""Tables and timesteps that are assigned or written after set_timesteps, as diffusers' users do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from cases import CLASSES, arguments, both, network, set_timesteps, start
from loops import plain, scaled

STEPS = 7


def _slice(scheduler: Any) -> None:
    scheduler.timesteps = scheduler.timesteps[3:]


def _subset(scheduler: Any) -> None:
    scheduler.timesteps = scheduler.timesteps[::2].clone()


def _reverse(scheduler: Any) -> None:
    scheduler.timesteps = scheduler.timesteps[1::2].flip(0)


def _write(scheduler: Any) -> None:
    t = scheduler.timesteps
    t[1] = (t[0] + t[1]) // 2 if not t.is_floating_point() else 0.5 * (t[0] + t[1])


def _other_dtype(scheduler: Any) -> None:
    scheduler.timesteps = scheduler.timesteps.to(torch.float64)


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
    "timesteps sliced": _slice,
    "timesteps chosen": _subset,
    "timesteps reversed": _reverse,
    "timesteps written": _write,
    "timesteps of another dtype": _other_dtype,
    "alphas_cumprod assigned": _scale("alphas_cumprod", 0.9),
    "alphas_cumprod written": _scale_in_place("alphas_cumprod", 0.9),
    "alphas assigned": _scale("alphas", 0.99),
    "betas assigned": _scale("betas", 0.8),
    "betas written": _scale_in_place("betas", 0.8),
    "final_alpha_cumprod assigned": _scale("final_alpha_cumprod", 0.9),
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
    result = []
    timesteps = scheduler.timesteps
    if at:
        result = []
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


@pytest.mark.parametrize(("name", "edit"), CASES, ids=[f"{n}-{e}" for n, e in CASES])
def test_loops_after_an_edit_are_diffusers(name: str, edit: str) -> None:
    theirs, ours = both(plain(name), plain(name).kinds[0])
    attribute = edit.split()[0] if edit != "fewer sigmas" else "sigmas"
    if not hasattr(theirs, attribute):
        pytest.skip(f"diffusers' {name} has no {attribute}")
    try:
        wanted = states(theirs, name, EDITS[edit], 0)
    except Exception as error:  # what diffusers cannot do, a drop-in need not
        print("diffusers:", type(error).__name__, error)
        wanted = None
    if wanted is None:
        with pytest.raises(ValueError, match="fastdiff"):
            states(ours, name, EDITS[edit], 0)
        return
    got = states(ours, name, EDITS[edit], 0)
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted):
        scale = b[b.isfinite()].abs().max().clamp(min=1) if b.isfinite().any() else 1
        assert torch.equal(a.isfinite(), b.isfinite())
        assert ((a - b).nan_to_num().abs().max() <= 1e-5 * scale), (a - b).abs().max()
