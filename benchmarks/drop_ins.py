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
# classes of diffusers that draw a Brownian motion, or from torch's global generator
_OTHER_NOISE = (
    "CosineDPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "SASolverScheduler",
)


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
    takes = inspect.signature(DROP_INS[name].step).parameters
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


def checked(name: str) -> str:
    """Returns what `check` compares a class's loop with."""
    return "repeats to the bit" if name in _OTHER_NOISE else "diffusers to 1e-3"


def check(name: str, start: Tensor, out: Tensor) -> Callable[[Tensor], None]:
    """Returns the check of a class's loop: with one generator both libraries return the same.

    It compares to 1e-3 of the largest value. Where their noise differs, the result must be finite
    and equal that of another scheduler of the class with the same seed.
    """

    def verify(got: Tensor) -> None:
        assert bool(torch.isfinite(got).all()), name
        other = loop(name, start, out, mine=name in _OTHER_NOISE, seed=1)
        if isinstance(other, peers.Missing):
            return
        mine, theirs = (_seeded(run) for run in (loop(name, start, out, mine=True, seed=1), other))
        atol = 1e-3 * float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=atol)

    return verify


def _seeded(run: Any) -> Tensor:
    """Returns what a loop returns with torch's global generator at one place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result: Tensor = run()
    return result
