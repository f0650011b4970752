"""A pipeline's loop with one of diffusers' scheduler classes, or with fastdiff's of the same name.

The network costs nothing. A class with other arguments than most has a line in one of the tables.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from fastdiff.integrations.diffusers.base import DROP_INS

STEPS = 20
NAMES = tuple(sorted(DROP_INS))
# arguments of the class
_CONFIG: dict[str, dict[str, Any]] = {
    "CogVideoXDPMScheduler": {"prediction_type": "v_prediction"},
    "UnCLIPScheduler": {"variance_type": "fixed_small_log"},
}
# further arguments of set_timesteps
_GRID: dict[str, dict[str, Any]] = {
    "RePaintScheduler": {"jump_length": 1, "jump_n_sample": 1},
    "SCMScheduler": {"intermediate_timesteps": None},
}
# classes whose last timestep is where the last step goes
_GOAL_IN_GRID = ("DDPMWuerstchenScheduler", "SCMScheduler")
# classes that draw from torch's global generator where they get none
_UNSEEDED = ("DPMSolverSDEScheduler", "SASolverScheduler")


def made(name: str, *, mine: bool) -> Any:
    """Returns a scheduler of the class, or `Missing`."""
    if mine:
        return DROP_INS[name](**_CONFIG.get(name, {}))
    module = peers.diffusers()
    if isinstance(module, peers.Missing):
        return module
    try:
        return getattr(module, name)(**_CONFIG.get(name, {}))
    except ImportError as error:  # some need scipy or torchsde
        return peers.Missing(str(error).strip().splitlines()[0])


def loop(
    name: str, start: Tensor, out: Tensor, *, mine: bool, seed: int | None = None
) -> Callable[[], Tensor] | peers.Missing:
    """Returns the loop of a pipeline that keeps its scheduler, or `Missing`.

    seed: of a generator that every loop passes to its steps; None to pass none.
    """
    scheduler = made(name, mine=mine)
    if isinstance(scheduler, peers.Missing):
        return scheduler
    grid = _GRID.get(name, {})
    takes = inspect.signature(getattr(DROP_INS[name], "step")).parameters
    scale = getattr(scheduler, "scale_model_input", None)
    more: dict[str, Any] = {}
    if name == "RePaintScheduler":
        more = {"original_image": torch.zeros_like(start), "mask": torch.ones_like(start)}

    def run() -> Tensor:
        scheduler.set_timesteps(STEPS, **grid)
        if seed is not None and "generator" in takes:
            more["generator"] = torch.Generator().manual_seed(seed)
        x = start * getattr(scheduler, "init_noise_sigma", 1.0)
        timesteps = scheduler.timesteps
        if name in _GOAL_IN_GRID:
            timesteps = timesteps[:-1]
        old, back = None, None
        for t in timesteps:
            at = t.expand(len(x)) if name == "DDPMWuerstchenScheduler" else t
            if scale is not None:
                scale(x, t)
            if name == "CogVideoXDPMScheduler":
                x, old = scheduler.step(out, old, t, back, x, return_dict=False, **more)
                back = t
            else:
                x = scheduler.step(out, at, x, return_dict=False, **more)[0]
        return x

    return run


def check(name: str, start: Tensor, out: Tensor) -> Callable[[Tensor], None]:
    """Returns the check of the class: with one generator both loops return the same.

    Classes that draw from the global generator are compared with a loop of their own.
    """

    def verify(got: Tensor) -> None:
        assert bool(torch.isfinite(got).all())
        pair = [loop(name, start, out, mine=mine, seed=1) for mine in (True, False)]
        if isinstance(pair[1], peers.Missing) or name in _UNSEEDED:
            return
        mine, theirs = (run() for run in pair)  # type: ignore[operator]
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))

    return verify
