"""`fastdiff.Scheduler`: its plans, what pipelines pass to it, its configurations and its runs.

This file is over 400 lines because the cases of these four parts share their small schedulers.
"""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.schedule import Schedule
from fastdiff.solvers import make_plan
from fastdiff.table import INDEX

pytest.importorskip("transformers", reason="diffusers' text-to-image pipelines import transformers")
from any_pipelines import FAMILIES, drawn, made  # noqa: E402
from any_runs import close, recorded, scheduler_for  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

BEGINS = "expected a run to begin where a step of the solver"


def planned(scheduler: Any, **of_grid: Any) -> Any:
    scheduler.set_timesteps(**of_grid)
    return scheduler.plan()


BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
MU = 0.7


@pytest.mark.parametrize(
    "theirs, of_grid, schedule, kind, scale",
    [
        (
            diffusers.DDIMScheduler(**VP, clip_sample=False),
            {},
            Schedule.from_betas(BETAS),
            "epsilon",
            1.0,
        ),
        (
            diffusers.EulerDiscreteScheduler(**VP, prediction_type="v_prediction"),
            {},
            Schedule.from_betas(BETAS),
            "v",
            1.0,
        ),
        (
            diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            {},
            Schedule.flow(1000, shift=3.0),
            "flow",
            1000.0,
        ),
        (
            diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            {"mu": MU},
            Schedule.flow(1000, shift=math.exp(MU)),
            "flow",
            1000.0,
        ),
        (
            diffusers.FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, time_shift_type="linear"
            ),
            {"mu": 2.0},
            Schedule.flow(1000, shift=2.0),
            "flow",
            1000.0,
        ),
    ],
)
@pytest.mark.parametrize("solver", ["dpm++2m_sde", "heun"])
def test_the_plan_is_that_of_the_schedule(
    theirs: Any, of_grid: dict[str, Any], schedule: Any, kind: str, scale: float, solver: str
) -> None:
    scheduler = fastdiff.Scheduler.like(theirs, solver=solver, grid="beta")
    got = planned(scheduler, num_inference_steps=6, **of_grid)
    expected = make_plan(
        schedule, solver=solver, steps=6, prediction_type=kind, timestep_spacing="beta"
    )
    table = expected.table.copy()
    table[:, INDEX["t"]] *= scale
    np.testing.assert_allclose(got.table, table, rtol=2e-5, atol=1e-6)
    calls = got.column("network") == 1
    shown = got.column("t")[calls]
    shown = shown.round() if got.whole_times else shown
    np.testing.assert_allclose(scheduler.timesteps.numpy(), shown, rtol=1e-6)
    assert scheduler.timesteps.dtype == (torch.int64 if kind != "flow" else torch.float32)


@pytest.mark.parametrize("cls, clock", [("EDMEuler", "log"), ("CosineDPMSolverMultistep", "angle")])
def test_levels_of_edm(cls: str, clock: str) -> None:
    theirs = getattr(diffusers, f"{cls}Scheduler")()
    scheduler = fastdiff.Scheduler.like(theirs, solver="dpm++2m")
    scheduler.set_timesteps(5)
    theirs.set_timesteps(5)
    torch.testing.assert_close(scheduler.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-6)
    assert float(scheduler.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma))
    x = torch.randn(2, 3, 4, 4)
    for t, theirs_t in zip(scheduler.timesteps, theirs.timesteps, strict=True):
        got = scheduler.scale_model_input(x, t)
        close(got, theirs.scale_model_input(x, theirs_t))
        theirs._step_index += 1
        scheduler.step(x, t, x)
    assert not hasattr(scheduler, "sigmas") and not hasattr(scheduler, "alphas_cumprod")


def test_levels_in_continuous_time() -> None:
    """Stable Video Diffusion: EDM's levels for a network of v and unit variance."""
    theirs = diffusers.EulerDiscreteScheduler(
        **VP,
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    scheduler = fastdiff.Scheduler.like(theirs, solver="euler")
    for each in (theirs, scheduler):
        each.set_timesteps(6)
    assert float(scheduler.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma))
    torch.testing.assert_close(scheduler.timesteps, theirs.timesteps)
    x = theirs_x = 700.0 * torch.randn(2, 3, 4, 4)
    for t, s in zip(scheduler.timesteps, theirs.timesteps, strict=True):
        x = scheduler.step(scheduler.scale_model_input(x, t).sin(), t, x)[0]
        theirs_x = theirs.step(theirs.scale_model_input(theirs_x, s).sin(), s, theirs_x)[0]
    close(x, theirs_x)


def test_inverted_flow() -> None:
    """Mochi's time goes from 0 at noise to 1, and its network returns minus the velocity."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler = fastdiff.Scheduler.like(theirs, solver="euler")
    x = theirs_x = torch.randn(2, 3, 4, 4)
    for each in (theirs, scheduler):
        each.set_timesteps(sigmas=[1.0, 0.7, 0.2])
    torch.testing.assert_close(scheduler.timesteps, theirs.timesteps)
    torch.testing.assert_close(scheduler.sigmas, theirs.sigmas)
    for t, s in zip(scheduler.timesteps, theirs.timesteps, strict=True):
        x = scheduler.step(x.sin(), t, x)[0]
        theirs_x = theirs.step(theirs_x.sin(), s, theirs_x)[0]
    close(x, theirs_x)


def test_what_a_pipeline_passes() -> None:
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    named = fastdiff.Scheduler.like(flow, solver="euler", grid="beta")
    named.set_timesteps(6)
    grid = named.timesteps
    named.set_timesteps(sigmas=np.linspace(1.0, 1 / 6, 6))  # as most pipelines of flows do
    assert torch.equal(named.timesteps, grid)
    levels = [1.0, 0.9, 0.5, 0.1]
    flow.set_timesteps(sigmas=levels)
    named.set_timesteps(sigmas=levels)
    torch.testing.assert_close(named.timesteps, flow.timesteps)
    torch.testing.assert_close(named.sigmas, flow.sigmas)
    # both: the network has the timesteps and the state the shifted levels (CogView4)
    times = np.array([1000.0, 700.0, 300.0])
    for each in (flow, named):
        each.set_timesteps(timesteps=times, sigmas=times / 1000)
    torch.testing.assert_close(named.timesteps, flow.timesteps.float())
    torch.testing.assert_close(named.sigmas, flow.sigmas)
    named.set_timesteps(timesteps=[900.0, 500.0])
    assert named.timesteps.tolist() == pytest.approx([900, 500])
    betas = fastdiff.Scheduler.like(diffusers.DDIMScheduler(), solver="ddim")
    betas.set_timesteps(timesteps=[900, 500, 20])
    assert betas.timesteps.tolist() == [900, 500, 20]
    betas.set_timesteps(sigmas=[10.0, 1.0, 0.1])
    assert len(betas.timesteps) == 3 and not hasattr(betas, "sigmas")
    with pytest.raises(ValueError, match="got both"):
        betas.set_timesteps(timesteps=[900], sigmas=[10.0])
    with pytest.raises(ValueError, match="got none"):
        betas.set_timesteps()
    betas.set_timesteps(4, original_inference_steps=None)
    with pytest.raises(ValueError, match="expected no strength"):
        betas.set_timesteps(4, strength=0.5)
    edm = fastdiff.Scheduler.like(diffusers.EDMEulerScheduler(), solver="ddim")
    with pytest.raises(ValueError, match="Pass sigmas="):
        edm.set_timesteps(timesteps=[3.0])
    turned = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="expected mu with use_dynamic_shifting"):
        fastdiff.Scheduler.like(turned, solver="euler").set_timesteps(5)


# -- configurations


def test_configurations_round_trip(tmp_path: Path) -> None:
    theirs = diffusers.DPMSolverMultistepScheduler(**VP, algorithm_type="sde-dpmsolver++")
    made_here = fastdiff.Scheduler.like(theirs, solver="ddim", grid="karras", eta=0.5)
    assert made_here.config.like == "DPMSolverMultistepScheduler"
    assert made_here.config.beta_start == 0.00085
    made_here.save_config(tmp_path)
    for again in (
        fastdiff.Scheduler.from_pretrained(tmp_path),
        fastdiff.Scheduler.from_config(made_here.config),
        fastdiff.Scheduler.like(made_here, solver="ddim", grid="karras"),
        fastdiff.Scheduler.from_config(theirs.config, solver="ddim", grid="karras", eta=0.5),
        copy.deepcopy(made_here),
        pickle.loads(pickle.dumps(made_here)),
    ):
        got = planned(again, num_inference_steps=7)
        assert got.hash == planned(made_here, num_inference_steps=7).hash
        assert got.info["eta"] == 0.5
    # diffusers reads its own configuration out of it
    back = diffusers.DPMSolverMultistepScheduler.from_config(made_here.config)
    assert back.config.algorithm_type == "sde-dpmsolver++"
    other = fastdiff.Scheduler.from_config(made_here.config, solver="unipc", grid=None)
    assert other.config.solver_options == {} and other.config.grid is None
    v = fastdiff.Scheduler.like(theirs, solver="ddim", prediction_type="v_prediction")
    assert planned(v, num_inference_steps=3).info["prediction_type"] == "v"
    for options, sentence in (
        ({"solver": "dimm"}, "expected solver in"),
        ({"solver": "ddim", "grid": "carras"}, "expected timestep_spacing in"),
        ({"solver": "ddim", "etta": 1.0}, "got 'etta'"),
        ({"solver": "ddim", "eta": -1.0}, "eta"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fastdiff.Scheduler.like(theirs, **options)
    old = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}  # others are defaults
    assert fastdiff.Scheduler.from_config(old, solver="ddim").config.beta_end == 0.02
    with pytest.raises(ValueError, match="expected the name of a solver"):
        fastdiff.Scheduler.from_config(theirs.config)
    with pytest.raises(ValueError, match="expected a scheduler of betas"):
        fastdiff.Scheduler.like(diffusers.CMStochasticIterativeScheduler(), solver="ddim")


def test_saved_pipelines_come_back(tmp_path: Path) -> None:
    pipe = made("sd")
    pipe.scheduler = scheduler_for("sd", "dpm++2m", "karras")
    expected = drawn(pipe, "sd", generator=torch.Generator().manual_seed(0))
    pipe.save_pretrained(tmp_path)
    absent = ("safety_checker", "text_encoder", "tokenizer", "feature_extractor", "image_encoder")
    again = type(pipe).from_pretrained(tmp_path, **dict.fromkeys(absent))
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is fastdiff.Scheduler
    assert torch.equal(drawn(again, "sd", generator=torch.Generator().manual_seed(0)), expected)


def test_a_configuration_that_a_pipeline_replaces() -> None:
    """Stable Diffusion's constructor writes steps_offset=1 into its scheduler's configuration."""
    scheduler = fastdiff.Scheduler.like(
        diffusers.PNDMScheduler(**VP, skip_prk_steps=True, steps_offset=0), solver="ddim"
    )
    before = planned(scheduler, num_inference_steps=5).column("t")
    pipe = FAMILIES["sd"].make(scheduler)
    assert pipe.scheduler is scheduler and scheduler.config.steps_offset == 1
    np.testing.assert_array_equal(
        planned(scheduler, num_inference_steps=5).column("t")[:5], before[:5] + 1
    )


# -- runs


def run(scheduler: Any, x: torch.Tensor, calls: Any, generator: Any = None) -> torch.Tensor:
    for t in calls:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(0.3 * scaled.sin(), t, x, generator=generator)[0]
    return x


@pytest.mark.parametrize("solver", ["dpm++3m_sde", "heun", "unipc", "edm"])
def test_copies_go_on_from_the_middle_of_a_run(solver: str) -> None:
    scheduler = scheduler_for("sd", solver, "trailing")
    scheduler.set_timesteps(6)
    calls, x = scheduler.timesteps, torch.randn(2, 4, 4, 4)
    torch.manual_seed(0)
    x = run(scheduler, x, calls[:3])
    others = copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))
    expected = run(scheduler, x, calls[3:])
    for other in others:
        assert torch.equal(run(other, x, other.timesteps[3:]), expected)


def test_generators_and_the_global_seed() -> None:
    pipe = made("sd")
    pipe.scheduler = scheduler_for("sd", "euler_ancestral", "karras")
    lists = [[torch.Generator().manual_seed(i) for i in (3, 4)] for _ in range(2)]
    first, second = (drawn(pipe, "sd", generator=each) for each in lists)
    assert torch.equal(first, second)
    swapped = drawn(pipe, "sd", generator=[torch.Generator().manual_seed(i) for i in (4, 3)])
    assert not torch.equal(first, swapped)
    torch.manual_seed(5)
    first, other = drawn(pipe, "sd"), drawn(pipe, "sd")
    torch.manual_seed(5)
    assert torch.equal(drawn(pipe, "sd"), first) and not torch.equal(first, other)


def test_callbacks_change_latents_and_interrupt() -> None:
    pipe = made("sd")
    pipe.scheduler = scheduler_for("sd", "dpm++2m", "karras")
    seen: list[int] = []

    def change(pipe: Any, i: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(i)
        pipe._interrupt = i >= 3
        return {"latents": values["latents"] * (0.5 if i == 1 else 1.0)}

    steps = recorded(pipe.scheduler)
    drawn(pipe, "sd", callback_on_step_end=change)
    assert seen == [0, 1, 2, 3] and len(steps) == 4
    close(steps[2].sample, 0.5 * steps[1].result)


@pytest.mark.parametrize("solver", ["dpm++2m_sde", "ddim", "dpm++2s"])
def test_a_run_that_begins_inside_the_grid(solver: str) -> None:
    """It has the formula's steps from there, and the noise of the whole run."""
    options = {"eta": 1.0} if solver == "ddim" else {}
    scheduler = scheduler_for("sd", solver, "trailing", **options)
    scheduler.set_timesteps(6)
    plan, begin = scheduler.plan(), 2 * scheduler.order
    rows = scheduler._entered(scheduler._run, begin).plan
    assert len(rows) == len(plan) - begin
    np.testing.assert_array_equal(rows.column("t")[:-1], plan.column("t")[begin:-1])
    drawing = rows.column("x.z") != 0
    np.testing.assert_array_equal(
        rows.column("noise_index")[drawing], plan.column("noise_index")[begin:][drawing]
    )
    assert rows.levels is not None and plan.levels is not None
    np.testing.assert_array_equal(rows.levels, plan.levels[begin:])
    scheduler.set_begin_index(begin)
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    alpha, sigma = plan.levels[begin]
    at = scheduler.timesteps[begin : begin + 1]
    close(scheduler.add_noise(x0, noise, at), alpha * x0 + sigma * noise)
    run(scheduler, x0, scheduler.timesteps[begin:])
    if solver == "dpm++2s":
        scheduler.set_timesteps(6)
        with pytest.raises(ValueError, match=BEGINS + ".* calls .0, 1, 3, 5, 7, 9.|" + BEGINS):
            run(scheduler, x0, scheduler.timesteps[1:])


@pytest.mark.parametrize(
    "solver, options, order",
    [
        ("ddim", {}, 1),
        ("heun", {}, 2),
        ("res_3s", {}, 3),
        ("heunpp2", {}, 3),
        ("rk", {}, 4),
        ("rk", {"tableau": "midpoint"}, 2),
    ],
)
def test_calls_of_a_step(solver: str, options: dict[str, Any], order: int) -> None:
    """The timestep of index i · order is that of the step i."""
    scheduler = scheduler_for("sd", solver, "trailing", **options)
    assert scheduler.order == (4 if options else order)
    scheduler.set_timesteps(6)
    assert scheduler.order == order
    begins = scheduler.timesteps[:-1:order][:5]
    scheduler = scheduler_for("sd", "ddim", "trailing")
    scheduler.set_timesteps(6)
    assert torch.equal(begins, scheduler.timesteps[:5])


def test_noise_before_the_first_call_is_in_the_networks_input() -> None:
    scheduler = scheduler_for("sd", "edm", "trailing", s_tmax=1000.0)
    scheduler.set_timesteps(5)
    t, x = scheduler.timesteps[0], torch.randn(2, 4, 4, 4)
    with pytest.raises(ValueError, match="expected a pipeline that calls scale_model_input"):
        scheduler.step(x, t, x)
    twice = scheduler.scale_model_input(torch.cat([x, x]), t)
    assert torch.equal(twice[:2], twice[2:]) and not torch.equal(twice[:2], x)
    assert torch.equal(twice[:2], scheduler.scale_model_input(x, t))


def test_steps_outside_the_run_and_tables_that_are_cut() -> None:
    scheduler = scheduler_for("sd", "ddim", "trailing")
    with pytest.raises(ValueError, match="expected set_timesteps before"):
        scheduler.step(torch.zeros(1, 4), 3, torch.zeros(1, 4))
    scheduler.set_timesteps(6)
    x = torch.randn(2, 4, 4, 4)
    whole = run(scheduler, x, scheduler.timesteps[2:])
    scheduler.timesteps = scheduler.timesteps[2:].float()
    assert torch.equal(run(scheduler, x, scheduler.timesteps), whole)
    scheduler.set_timesteps(6)
    with pytest.raises(ValueError, match="expected one of the 6"):
        scheduler.step(x, 123.0, x)
    with pytest.raises(ValueError, match="expected no eta"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=0.5)
    scheduler.step(x, scheduler.timesteps[0], x, eta=0.0, use_clipped_model_output=None)
    scheduler.timesteps = torch.tensor([900, 3])
    with pytest.raises(ValueError, match="expected timesteps of the run"):
        scheduler.step(x, scheduler.timesteps[0], x)


def test_outputs_with_a_variance_that_the_plan_does_not_read() -> None:
    scheduler = scheduler_for("sd", "ddim", "trailing")
    scheduler.set_timesteps(4)
    t, x, out = scheduler.timesteps[0], torch.randn(2, 3, 4, 4), torch.randn(2, 6, 4, 4)
    got = scheduler.step(out, t, x).prev_sample
    assert torch.equal(got, scheduler.step(out[:, :3], t, x).prev_sample)


# -- the other door


def test_sampler_with_a_solver_and_a_grid() -> None:
    pipe = made("sd")
    sampler = fastdiff.Sampler.from_diffusers(
        pipe, steps=6, solver="dpm++2m_sde", grid="karras", eta=0.5, guidance_rescale=0.7
    )
    scheduler = scheduler_for("sd", "dpm++2m_sde", "karras", eta=0.5)
    scheduler.set_timesteps(6)
    assert sampler.plan.hash == scheduler.plan(guidance_rescale=0.7).hash
    assert sampler.plan.info["eta"] == 0.5 and type(pipe.scheduler).__module__ != "fastdiff"
    with pytest.raises(ValueError, match="expected solver= with grid="):
        fastdiff.Sampler.from_diffusers(pipe, grid="karras")
    flow = made("flux")
    with pytest.raises(ValueError, match="expected mu with use_dynamic_shifting"):
        fastdiff.Sampler.from_diffusers(flow, steps=5, solver="dpm++2m", grid="trailing")
    plan = fastdiff.Sampler.from_diffusers(
        flow, steps=5, solver="dpm++2m", grid="trailing", mu=0.6
    ).plan
    assert float(plan.column("t")[0]) == pytest.approx(1.0)  # Flux gets a thousandth


@pytest.mark.parametrize("solver, grid", [("res_2m", "beta57"), ("dpm++2m_sde", "karras")])
def test_both_doors_give_the_same_latents(solver: str, grid: str) -> None:
    pipe, x = made("sd"), fastdiff.randn((2, 4, 8, 8), seed=6)
    sampler = fastdiff.Sampler.from_diffusers(
        pipe, steps=5, solver=solver, grid=grid, guidance_scale=7.5
    )
    pipe.scheduler = fastdiff.Scheduler.like(pipe.scheduler, solver=solver, grid=grid)
    expected = drawn(pipe, "sd", latents=x)
    call = FAMILIES["sd"].call
    cond, uncond = (
        {"encoder_hidden_states": call[name]}
        for name in ("prompt_embeds", "negative_prompt_embeds")
    )
    seed = pipe.scheduler._state.seed or 0
    got = sampler.sample(x_T=x, cond=cond, uncond=uncond, seed=seed)
    close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_of_other_types(dtype: torch.dtype) -> None:
    """The state keeps its type, and slots are of the type that the kernel computes in."""
    scheduler = scheduler_for("sd", "dpm++2m_sde", "karras")
    x, results = torch.randn(2, 4, 4, 4, dtype=torch.float64), []
    for kind in (torch.float64, dtype):
        torch.manual_seed(0)
        scheduler.set_timesteps(5)
        results.append(run(scheduler, x.to(kind), scheduler.timesteps))
    assert results[1].dtype == dtype
    most = 0.1 if dtype == torch.bfloat16 else 0.02
    close(results[1].double(), results[0], most)
