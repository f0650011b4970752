"""Every solver, and its peers in diffusers and k-diffusion with as many network calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.checks import as_numpy, first_and_last, same_bits
from fastdiff import Sampler, Schedule, reference
from fastdiff.solvers import SOLVERS, Peer, Plan

BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
VP, FLOW = Schedule.scaled_linear(1000), Schedule.flow(1000)
LEADING = {"timestep_spacing": "leading"}
PEERS: dict[str, Peer] = {name: SOLVERS[name].peer for name in sorted(SOLVERS)}


def schedule(solver: str) -> Schedule:
    return FLOW if PEERS[solver].space == "flow" else VP


def sampler(solver: str, out: Tensor, steps: int | None = None) -> Sampler:
    """Returns fastdiff's sampler around a network that costs nothing: it returns the same tensor at
    every call.
    """
    steps = steps or PEERS[solver].steps
    return Sampler(
        lambda x, t: out,
        schedule(solver),
        solver=solver,
        steps=steps,
        prediction_type=PEERS[solver].prediction_type,
        **LEADING,
    )


def scheduler(solver: str, device: str) -> Any:
    """Returns diffusers' scheduler with its timesteps set, or `Missing`."""
    peer, module = PEERS[solver], peers.diffusers()
    if isinstance(module, peers.Missing) or not peer.scheduler:
        return module if isinstance(module, peers.Missing) else peers.Missing(peer.reason)
    try:
        made = getattr(module, f"{peer.scheduler}Scheduler")(
            **(BETAS if peer.betas else {}), **peer.config
        )
        made.set_timesteps(peer.theirs, device=device)
    except ImportError as error:  # some need scipy or torchsde
        return peers.Missing(str(error).strip().splitlines()[0])
    return made


def diffusers_loop(solver: str, start: Tensor, out: Tensor) -> Any:
    """Returns a pipeline's loop around the network that costs nothing, or `Missing`."""
    made = scheduler(solver, start.device.type)
    if isinstance(made, peers.Missing):
        return made
    scaled = getattr(made, "scale_model_input", None)
    steps, deviation = PEERS[solver].theirs, getattr(made, "init_noise_sigma", 1.0)

    def loop() -> Tensor:
        made.set_timesteps(steps, device=start.device)
        x = start * deviation
        for t in made.timesteps:
            if scaled is not None:
                scaled(x, t)
            x = made.step(out, t, x, return_dict=False)[0]
        return x

    return loop


def k_diffusion_loop(solver: str, start: Tensor, out: Tensor) -> Any:
    """Returns k-diffusion's sampler over the same noise levels, with a denoiser that costs nothing.

    None where k-diffusion has no such sampler; `Missing` where it is not installed.
    """
    module, name = peers.k_diffusion(), PEERS[solver].sampler
    if not name or isinstance(module, peers.Missing):
        return module if name else None
    levels = sampler("euler", out, PEERS[solver].steps).plan.levels
    assert levels is not None
    ratios = levels[: PEERS[solver].steps, 1] / levels[: PEERS[solver].steps, 0]
    sigmas = torch.tensor([*ratios, 0.0], dtype=torch.float32, device=start.device)
    arguments = PEERS[solver].arguments
    run, begin = getattr(module, f"sample_{name}"), start * sigmas[0]
    return lambda: run(lambda x, sigma, **_: out, begin, sigmas, disable=True, **arguments)


def diffusers_step(solver: str, x: Tensor, out: Tensor, k: int) -> Any:
    """Returns the scheduler's step of the loop's k-th call, or `Missing`.

    The attributes that a step changes are restored before each, which costs a fraction of a
    microsecond.
    """
    made = scheduler(solver, x.device.type)
    if isinstance(made, peers.Missing):
        return made
    for t in made.timesteps[:k]:
        if hasattr(made, "scale_model_input"):
            made.scale_model_input(x, t)
        made.step(out, t, x, return_dict=False)
    t, before = made.timesteps[k], dict(vars(made))
    made.step(out, t, x, return_dict=False)
    changed = {name: value for name, value in before.items() if vars(made)[name] is not value}

    def step() -> Any:
        vars(made).update(changed)
        return made.step(out, t, x, return_dict=False)

    return step


def oracle(plan: Plan, x: np.ndarray, out: np.ndarray, *, seed: int, ids: list[int]) -> np.ndarray:
    """Returns the result of the plan's rows, by the NumPy oracle."""
    slots, k = np.zeros((max(plan.slots, 1), *x.shape), x.dtype), 0
    while k < len(plan):
        output = out if plan.column("network")[k] else None
        step = reference.reverse_step(
            x, output, plan.table, k, slots=slots, seed=seed, sample_ids=ids
        )
        x, slots, k = step.x_s, step.slots, int(plan.column("next")[k])
    return x


def check_loop(plan: Plan, start: Tensor, out: Tensor, seed: int) -> Callable[[Any], None]:
    """Returns a check that compares a loop's first and last sample with NumPy's, bit by bit."""
    which = first_and_last(len(start))
    expected: list[np.ndarray] = []

    def check(x: Tensor) -> None:
        if not expected:
            expected.append(
                oracle(plan, as_numpy(start[which]), as_numpy(out[which]), seed=seed, ids=which)
            )
        same_bits(x[which], expected[0], "loop")

    return check
