"""DDIM and DDPM against diffusers 0.42.1, step by step on the leading grid, with its known quirks.

diffusers' tables are float32; the schedule here starts from its alphas_cumprod in float64. Each
step is compared twice: in float32 as users run it, within the error of 1 - a and 1 - a_t/a_p in
float32, and with diffusers' formulas computed in float64, where only the formula can differ. Random
draws are shared: every step of diffusers gets the noise that fastdiff's row draws.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import DIFFUSERS, DIFFUSERS_FLOAT64

from fastdiff import Sampler, Schedule, ops, randn

diffusers = pytest.importorskip(
    "diffusers", reason="diffusers is not installed here (make test installs it)"
)

SHAPE = (2, 3, 8, 8)


def _schedule(scheduler: Any) -> Schedule:
    return Schedule.from_alphas_cumprod(scheduler.alphas_cumprod.double().numpy())


def _network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x + 0.001 * t.view(-1, 1, 1, 1).to(x.dtype))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_ddim(
    steps: int, eta: float, clip: bool, prediction_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        clip_sample=clip,
        set_alpha_to_one=True,
        timestep_spacing="leading",
        prediction_type=prediction_type,
    )
    theirs.set_timesteps(steps)
    sampler = Sampler(
        _network,
        _schedule(theirs),
        solver="ddim",
        steps=steps,
        eta=eta,
        clip_range=1.0 if clip else None,
        timestep_spacing="leading",
        prediction_type=prediction_type,
    )
    _walk(
        sampler,
        theirs,
        lambda out, t, x, z: theirs.step(out, t, x, eta=eta, variance_noise=z if eta else None),
    )


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_ddpm(steps: int, clip: bool, variance_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=1000,
        clip_sample=clip,
        variance_type=variance_type,
        timestep_spacing="leading",
    )
    theirs.set_timesteps(steps)
    sampler = Sampler(
        _network,
        _schedule(theirs),
        solver="ddpm",
        steps=steps,
        clip_range=1.0 if clip else None,
        timestep_spacing="leading",
        variance_type=variance_type,
    )
    import diffusers.schedulers.scheduling_ddpm as module

    def step(out: torch.Tensor, t: torch.Tensor, x: torch.Tensor, z: torch.Tensor) -> Any:
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: z)
        return theirs.step(out, t, x)

    _walk(sampler, theirs, step)


def _walk(sampler: Sampler, scheduler: Any, step: Any) -> None:
    times = scheduler.timesteps
    assert sampler.plan.column("t")[:-1].tolist() == times.tolist()
    table, single = torch.tensor(sampler.plan.table), scheduler.alphas_cumprod
    double = single.double()
    rows = range(len(times)) if len(times) <= 50 else [0, 1, 2, 500, 750, 996, 997, 998, 999]
    for dtype in (torch.float32, torch.float64):
        scheduler.alphas_cumprod = single if dtype == torch.float32 else double
        scheduler.final_alpha_cumprod = scheduler.one = torch.tensor(1.0, dtype=dtype)
        x = randn(SHAPE, seed=1, dtype=dtype)
        for k in rows:
            out = _network(x, times[k].expand(SHAPE[0]))
            z = randn(SHAPE, seed=1, step=k, stream=1, dtype=dtype)
            ours = ops.reverse_step(
                x, out, table, torch.full((SHAPE[0],), k), seed=1, used=sampler.plan.used
            )
            theirs = step(out, times[k], x, z).prev_sample
            a, a_p = (
                float(double[times[k]]),
                (float(double[times[k + 1]]) if k + 1 < len(times) else 1.0),
            )
            # float32 leaves 1 - a and 1 - a/a_p this relative error, and x0 is divided by alpha
            amplification = 1 / a**0.5 + 1 / (1 - a / a_p)
            limit = (
                DIFFUSERS * amplification
                if dtype == torch.float32
                else DIFFUSERS_FLOAT64 * amplification
            )
            assert float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0)) < limit, (
                f"row {k}, {dtype}"
            )
            x = theirs  # each step is compared on its own
