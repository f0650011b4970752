"""Whole sampling loops around a network that costs nothing, compared with diffusers' and
k-diffusion's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import harness, solvers, traffic
from benchmarks.peers import Missing
from benchmarks.tiers import row
from fastdiff import Sampler
from fastdiff.cli.bench_measure import timed_network
from fastdiff.pretrained import load

SHAPES = {
    "256x3x32x32": (256, 3, 32, 32),
    "16x3x32x32": (16, 3, 32, 32),
    "1x3x32x32": (1, 3, 32, 32),
}
COMMON = ("ddim", "dpm++2m", "unipc", "euler_ancestral")
# dpm++sde: the peer's noise costs seconds per loop; repaint: hundreds of network calls
SLOW = ("dpm++sde", "repaint")
CASES = [
    row(
        (
            "quick"
            if (solver, shape) == ("ddim", "1x3x32x32")
            else (
                "default"
                if solver in COMMON or (shape == "16x3x32x32" and solver not in SLOW)
                else "full"
            )
        ),
        solver,
        shape,
        id=f"{solver}-{shape}",
    )
    for solver in solvers.PEERS
    for shape in SHAPES
]
SEED = 1


def loop(
    solver: str, shape: tuple[int, ...], device: str = "cpu"
) -> tuple[harness.Workload, Any, dict[str, Any]]:
    """Returns (a loop by `Sampler`, its plan, {peer: its loop})."""
    g = torch.Generator(device).manual_seed(0)
    out, start = (torch.randn(shape, generator=g, device=device) for _ in range(2))
    sampler = solvers.sampler(solver, out)
    check = solvers.check_loop(sampler.plan, start, out, SEED)
    work = harness.Workload(
        lambda: sampler.sample(x_T=start, seed=SEED), check, "bits equal to NumPy"
    )
    theirs = {"diffusers": solvers.diffusers_loop(solver, start, out)}
    k_diffusion = solvers.k_diffusion_loop(solver, start, out)
    if k_diffusion is not None:
        theirs["k-diffusion"] = k_diffusion
    return work, sampler.plan, theirs


def loop_arms(
    solver: str, shape: tuple[int, ...]
) -> tuple[dict[str, harness.Arm], Callable[[], None]]:
    """Returns (the arms of a loop on the CPU, without missing peers; the check of fastdiff's)."""
    work, _, theirs = loop(solver, shape)
    found = {name: arm for name, arm in theirs.items() if not isinstance(arm, Missing)}
    return {"fastdiff": work.call, **found}, work.verify


@pytest.mark.parametrize("solver, shape", CASES)
def test_loop(
    measured: Callable[..., Any], setting: harness.Setting, solver: str, shape: str
) -> None:
    size = SHAPES[shape]
    work, plan, theirs = loop(solver, size, setting.device)
    peer = solvers.scheduler(solver, "cpu")
    assert isinstance(peer, Missing) or len(peer.timesteps) == plan.network_calls, (
        "as many network calls on both sides"
    )
    state = 3 * 32 * 32 * size[0]
    measured(
        work,
        kind="loop",
        what=f"loop {solver}",
        peers=theirs,
        per="step",
        divide=plan.network_calls,
        case={"solver": solver, "shape": list(size), "batch": size[0], "steps": plan.network_calls},
        elements=plan.network_calls * state,
        bytes_floor=4 * state * traffic.of_run(plan),
    )


def overhead(batch: int, runs: int = 5, steps: int = 10) -> list[float]:
    """Returns, for each run, the share of a guided run of the shipped U-Net that is spent outside
    the network.
    """
    model, schedule, settings = load("fashion-mnist")
    network = timed_network(model)
    timed = Sampler(network, schedule, **{**settings, "steps": steps})
    y = torch.arange(batch) % 10
    shares = []
    for _ in range(runs + 1):
        network.seconds, begin = 0.0, time.perf_counter()
        timed.sample(
            (batch, 1, 28, 28), seed=0, cond={"y": y}, uncond={"y": torch.full_like(y, 10)}
        )
        total = time.perf_counter() - begin
        shares.append(1.0 - network.seconds / total)
    return shares[1:]
