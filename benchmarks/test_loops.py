"""Whole sampling loops next to diffusers', with a network that costs nothing: what a user's own loop adds to it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import harness
from fastdiff import Sampler, Schedule
from fastdiff.pretrained import load

STEPS = 50
SCHEDULE = Schedule.scaled_linear(1000)
BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# our solver, diffusers' class and what makes it take the same steps
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}),
    "unipc": ("UniPCMultistepScheduler", {"timestep_spacing": "leading"}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}),
}
SHAPES = {"256x3x32x32": (256, 3, 32, 32), "1x3x32x32": (1, 3, 32, 32)}


def loop_arms(solver: str, shape: tuple[int, ...]) -> tuple[dict[str, harness.Arm], Callable[[], None]]:
    """A loop of 50 steps by `Sampler` and by diffusers; and the check of ours."""
    out, start = torch.randn(shape), torch.randn(shape)
    sampler = Sampler(lambda x, t: out, SCHEDULE, solver=solver, steps=STEPS, timestep_spacing="leading")

    def ours() -> torch.Tensor:
        return sampler.sample(x_T=start, seed=1)

    def check() -> None:
        whole = ours()
        assert whole.isfinite().all()
        alone = Sampler(lambda x, t: out[-1:], SCHEDULE, solver=solver, steps=STEPS, timestep_spacing="leading").sample(
            x_T=start[-1:], seed=1, sample_ids=[len(start) - 1]
        )
        assert torch.equal(alone[0], whole[-1])

    arms: dict[str, harness.Arm] = {"fastdiff": ours}
    try:
        import diffusers
    except ImportError:
        return arms, check
    name, config = PEERS[solver]
    scheduler = getattr(diffusers, name)(**BETAS, **config)
    scheduler.set_timesteps(STEPS)

    def theirs() -> torch.Tensor:
        scheduler.set_timesteps(STEPS)
        x = start * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(out, t, x, return_dict=False)[0]
        return x

    return {**arms, "diffusers": theirs}, check


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("solver", PEERS)
def test_loop(benchmark: Any, solver: str, shape: str) -> None:
    arms, check = loop_arms(solver, SHAPES[shape])
    elements = STEPS * math.prod(SHAPES[shape])
    harness.report(benchmark, arms, elements=elements, bytes_floor=12 * elements, check=check)


class Timed(torch.nn.Module):
    """A network of fastdiff's that adds up the time spent in it."""

    def __init__(self, network: Any):
        super().__init__()
        self.network, self.seconds = network, 0.0

    def _time(self, call: Callable[..., torch.Tensor], *arguments: Any, **named: Any) -> torch.Tensor:
        begin = time.perf_counter()
        out = call(*arguments, **named)
        self.seconds += time.perf_counter() - begin
        return out

    def forward(self, x: torch.Tensor, t: torch.Tensor, **cond: Any) -> torch.Tensor:
        return self._time(self.network, x, t, **cond)

    def condition(self, t: torch.Tensor, **cond: Any) -> torch.Tensor:
        return self._time(self.network.condition, t, **cond)

    def decode(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self._time(self.network.decode, x, condition)


def overhead(batch: int, runs: int = 5) -> list[float]:
    """The share of a guided run of the shipped U-Net that is spent outside the network, run by run."""
    model, schedule, settings = load("fashion-mnist")
    network = Timed(model)
    timed = Sampler(network, schedule, **{**settings, "steps": 10})
    y = torch.arange(batch) % 10
    shares = []
    for _ in range(runs + 1):
        network.seconds, begin = 0.0, time.perf_counter()
        timed.sample((batch, 1, 28, 28), seed=0, cond={"y": y}, uncond={"y": torch.full_like(y, 10)})
        total = time.perf_counter() - begin
        shares.append(1.0 - network.seconds / total)
    return shares[1:]


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_overhead(benchmark: Any, batch: int) -> None:
    """What the engine adds to the shipped U-Net: the loop, its set-up and the steps, without the network's calls."""
    low, middle, high = harness.spread(overhead(batch))
    benchmark.extra_info["overhead_percent_p20_p50_p80"] = [round(100 * v, 2) for v in (low, middle, high)]
    benchmark.pedantic(lambda: overhead(batch, runs=1), rounds=1)
    print(f"\n{benchmark.name}: {100 * middle:.2f} % [{100 * low:.2f}, {100 * high:.2f}] outside the network")
