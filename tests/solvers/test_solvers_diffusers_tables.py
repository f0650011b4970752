"""Compares solvers over full loops with diffusers' schedulers that work on a table of
alphas_cumprod, in float64 (peers.py).

Left out is what diffusers computes differently from the papers: DDPM's `learned`, where it takes
the network's second half for the variance and not for its logarithm (test_solvers_variance.py tests
it); and DDIM off the leading grid, where its previous timestep is not that of the grid. TCD ends at
timestep 0 in diffusers and at clean data in fastdiff; here both end at timestep 0.
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
    """Returns fastdiff's plan on the scheduler's table and timesteps."""
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
    # with an int64 tensor diffusers' boundary coefficients would be float32
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
    """The first step takes two network calls (improved Euler), so diffusers' timesteps have the
    second one twice. For that step diffusers converts v to epsilon with a different state, so v is
    compared for one step only.
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
    """The run starts from clean data, where diffusers divides an x0-prediction by zero, so it is
    left out.
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
    """The picture has no known part. fastdiff goes back in one row and diffusers in many steps,
    whose draws this test adds up.
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
            ):  # the first step back: all steps back at once, with one draw
                share = scheduler.alphas_cumprod[last + jump_length - 1] / (
                    scheduler.alphas_cumprod[last - 1] if last > 0 else 1.0
                )
                x = share.sqrt() * x + (1 - share).sqrt() * noise(next(draws))
        last = t
    assert (plan.column("network") == 0).sum() == 1 + len(back) / jump_length
    close(run(plan, start()), x)
