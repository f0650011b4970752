"""Solvers over full loops against diffusers' schedulers that work on a table of alphas_cumprod, in
float64 (peers.py).

Where the peer is wrong and the native solver meets the oracle instead: DDPM's `learned`, where the
    peer takes the
network's second half for the variance, not its logarithm (test_solvers_variance.py has the native
one); TCD's last step, which the peer ends at timestep 0 instead of clean data (so is the native one
here); DDIM off the leading grid, where the peer's previous timestep is not its grid's.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from peers import KINDS, close, learned, lifted, loop, network, noise, run, start

from fastdiff import Schedule
from fastdiff.schedule import CLEAN
from fastdiff.solvers import make_plan

pytest.importorskip("diffusers", reason="diffusers is not installed here (make test installs it)")

STEPS = (1, 2, 3, 10, 50)


def plan_for(scheduler, timesteps, solver: str, kind: str, *, end=CLEAN, **options):
    """The native plan on the peer's table and timesteps."""
    schedule = Schedule.from_alphas_cumprod(scheduler.alphas_cumprod.numpy())
    times = [*(schedule.at(int(t)) for t in timesteps), end]
    return make_plan(
        schedule, solver=solver, steps=len(times) - 1, times=times, prediction_type=kind, **options
    )


@pytest.mark.parametrize("steps", [*STEPS, 1000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim(eta: float, kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if steps == 1000 and (kind != "epsilon" or eta == 0):
        pytest.skip("n = T is tried once")
    scheduler = lifted("DDIMScheduler", monkeypatch, prediction_type=KINDS[kind], clip_sample=False)
    scheduler.set_timesteps(steps)
    plan = plan_for(scheduler, scheduler.timesteps, "ddim", kind, eta=eta)
    close(run(plan, start()), loop(scheduler, start(), eta=eta))


@pytest.mark.parametrize("steps", [*STEPS, 1000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm(variance_type: str, kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if steps == 1000 and (kind != "epsilon" or variance_type == "fixed_large"):
        pytest.skip("n = T is tried twice")
    model = learned if variance_type == "learned_range" else network
    config = {"prediction_type": KINDS[kind], "variance_type": variance_type, "clip_sample": False}
    scheduler = lifted("DDPMScheduler", monkeypatch, **config)
    scheduler.set_timesteps(steps)
    plan = plan_for(scheduler, scheduler.timesteps, "ddpm", kind, variance_type=variance_type)
    close(run(plan, start(), model), loop(scheduler, start(), model))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_clipped(kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = lifted("DDPMScheduler", monkeypatch, prediction_type=KINDS[kind])
    scheduler.set_timesteps(steps)
    plan = plan_for(scheduler, scheduler.timesteps, "ddpm", kind, clip_range=1.0)
    close(run(plan, start()), loop(scheduler, start()))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_lcm(kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = lifted("LCMScheduler", monkeypatch, prediction_type=KINDS[kind])
    scheduler.set_timesteps(steps)
    plan = plan_for(scheduler, scheduler.timesteps, "lcm", kind)
    # an int64 tensor would make the peer's boundary coefficients float32
    close(run(plan, start()), loop(scheduler, start(), timesteps=scheduler.timesteps.tolist()))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd(eta: float, kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = lifted("TCDScheduler", monkeypatch, prediction_type=KINDS[kind])
    scheduler.set_timesteps(steps)
    end = Schedule.from_alphas_cumprod(scheduler.alphas_cumprod.numpy()).at(0)
    plan = plan_for(scheduler, scheduler.timesteps, "tcd", kind, end=end, eta=eta)
    close(run(plan, start()), loop(scheduler, start(), eta=eta))


@pytest.mark.parametrize("steps", [*STEPS, 1000])
@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_plms(kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first step takes two calls, its timesteps hold the second one twice: improved Euler. v is
    turned into epsilon with the sample of the step's start there, so v is compared where that is
    the state itself: from one step on.
    """
    if kind == "v" and steps > 1:
        pytest.skip("the peer's improved Euler converts v with another state")
    scheduler = lifted(
        "PNDMScheduler",
        monkeypatch,
        prediction_type=KINDS[kind],
        skip_prk_steps=True,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(steps)
    grid = sorted({int(t) for t in scheduler.timesteps}, reverse=True)
    plan = plan_for(scheduler, grid, "pndm", kind, improved_start=True)
    assert plan.network_calls == len(scheduler.timesteps)
    close(run(plan, start()), loop(scheduler, start()))


@pytest.mark.parametrize("steps", [5, 10, 50])
def test_pndm_with_runge_kutta(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = lifted("PNDMScheduler", monkeypatch, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    grid = [i * (1000 // steps) for i in reversed(range(steps))]
    plan = plan_for(scheduler, grid, "pndm", "epsilon", runge_kutta=True)
    assert plan.network_calls == len(scheduler.timesteps) and plan.slots == 4
    close(run(plan, start()), loop(scheduler, start()))


@pytest.mark.parametrize("steps", [*STEPS, 1000])
@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_ddim_inverse(kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From clean data, where x0-prediction says nothing of the noise (the peer divides by zero
    there).
    """
    scheduler = lifted(
        "DDIMInverseScheduler", monkeypatch, prediction_type=KINDS[kind], clip_sample=False
    )
    scheduler.set_timesteps(steps)
    plan = plan_for(scheduler, reversed(scheduler.timesteps.tolist()), "ddim_inverse", kind)
    assert (plan.levels[0] == [1.0, 0.0]).all()
    close(run(plan, start()), loop(scheduler, start()))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("jump_length, jump_n_sample", [(1, 1), (1, 4), (3, 2)])
def test_repaint(
    jump_length: int, jump_n_sample: int, eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing known. The way back in one row is the peer's many steps: their draws are put
    together here.
    """
    train = 20
    draws = itertools.count()
    scheduler = lifted(
        "RePaintScheduler",
        monkeypatch,
        draws,
        num_train_timesteps=train,
        eta=eta,
        clip_sample=False,
    )
    scheduler.set_timesteps(train, jump_length, jump_n_sample)
    plan = plan_for(
        scheduler,
        reversed(range(train)),
        "repaint",
        "epsilon",
        jump_length=jump_length,
        jump_n_sample=jump_n_sample,
        eta=eta,
    )
    x, nothing, last = start(), torch.zeros(()), int(scheduler.timesteps[0]) + 1
    back = []
    for t in (int(v) for v in scheduler.timesteps):
        if t < last:
            x = scheduler.step(network(x), t, x, original_image=nothing, mask=nothing).prev_sample
        else:
            back.append(last)
            if (
                len(back) % jump_length == 1 or jump_length == 1
            ):  # the first of a way back: all of it, with one draw
                share = scheduler.alphas_cumprod[last + jump_length - 1] / (
                    scheduler.alphas_cumprod[last - 1] if last > 0 else 1.0
                )
                x = share.sqrt() * x + (1 - share).sqrt() * noise(next(draws))
        last = t
    assert (plan.column("network") == 0).sum() == 1 + len(back) / jump_length
    close(run(plan, start()), x)
