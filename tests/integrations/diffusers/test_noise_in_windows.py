"""sde_rows in pipelines: `fastdiff.Scheduler`, its configuration, `Sampler.from_diffusers`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fastdiff

pytest.importorskip("diffusers", reason="diffusers is not installed here")
pytest.importorskip("transformers", reason="diffusers' text-to-image pipelines import transformers")
from any_pipelines import FAMILIES, drawn, made  # noqa: E402
from any_runs import check, close, scheduler_for  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def drawing(plan: fastdiff.solvers.Plan) -> list[int]:
    return np.flatnonzero(plan.column("x.z")).tolist()


@pytest.mark.parametrize("solver", ["flow_sde", "dance_sde", "flow_cps", "dpm++2m_sde"])
@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_pipelines_take_the_windowed_steps(family: str, solver: str) -> None:
    scheduler = scheduler_for(family, solver, None, sde_rows=(1, 3))
    check(family, scheduler)
    assert drawing(scheduler.plan()) == [1, 2]


def test_an_image_to_image_run_keeps_the_window() -> None:
    """Runs that begin later draw in the same rows, also where the formula is traced anew."""
    for solver in ("flow_sde", "dpm++2m_sde"):
        scheduler = scheduler_for("sd3", solver, None, sde_rows=(1, 4))
        scheduler.set_timesteps(6)
        for begin in (0, 2, 5):
            plan = scheduler._run.begun_at(begin)
            rows = [row for row in (1, 2, 3) if row >= begin]
            assert drawing(plan) == [row - begin for row in rows]
            assert plan.column("noise_index")[drawing(plan)].tolist() == rows


def test_configurations_have_the_window(tmp_path: Path) -> None:
    scheduler = scheduler_for("sd3", "flow_sde", None, sde_rows=(2, 4), noise_level=0.9)
    scheduler.save_config(tmp_path)
    for again in (
        fastdiff.Scheduler.from_pretrained(tmp_path),
        fastdiff.Scheduler.from_config(scheduler.config),
        fastdiff.Scheduler.like(scheduler, solver="flow_sde"),
    ):
        again.set_timesteps(8)
        assert drawing(again.plan()) == [2, 3] and again.plan().info["noise_level"] == 0.9
    other = fastdiff.Scheduler.like(scheduler, solver="dpm++2m")
    other.set_timesteps(8)
    assert "sde_rows" not in other.plan().info
    late = scheduler_for("sd3", "flow_sde", None, sde_rows=(30, 35))
    late.set_timesteps(40)
    assert drawing(late.plan()) == [30, 31, 32, 33, 34]
    with pytest.raises(ValueError, match=r"expected sde_rows \(i, j\) with 0 <= i <= j <= 10"):
        late.set_timesteps(10)
    with pytest.raises(ValueError, match="expected sde_rows as two rows"):
        scheduler_for("sd3", "flow_sde", None, sde_rows=(3, 1))
    with pytest.raises(ValueError, match="expected a solver whose noise can be turned off"):
        scheduler_for("sd3", "dpm++2m", None, sde_rows=(0, 1))


@pytest.mark.parametrize("family", ["sd3", "sd"])
def test_the_sampler_of_a_pipeline_has_the_window(family: str) -> None:
    pipe, settings = made(family), {"solver": "flow_sde", "sde_rows": (1, 3), "noise_level": 0.5}
    sampler = fastdiff.Sampler.from_diffusers(pipe, steps=5, **settings)
    scheduler = scheduler_for(family, "flow_sde", None, sde_rows=(1, 3), noise_level=0.5)
    scheduler.set_timesteps(5)
    assert drawing(sampler.plan) == [1, 2] and sampler.plan.hash == scheduler.plan().hash
    with pytest.raises(ValueError, match="expected solver= with sde_rows="):
        fastdiff.Sampler.from_diffusers(pipe, steps=5, sde_rows=(1, 3))
    pipe.scheduler = scheduler_for(family, "flow_sde", None, noise_level=0.5)
    of_own = fastdiff.Sampler.from_diffusers(pipe, steps=5, sde_rows=(1, 3))
    assert of_own.plan.hash == sampler.plan.hash


def test_both_doors_draw_the_same_latents() -> None:
    pipe, x = made("sd"), fastdiff.randn((2, 4, 8, 8), seed=6)
    options = {"solver": "flow_sde", "sde_rows": (1, 4)}
    sampler = fastdiff.Sampler.from_diffusers(pipe, steps=5, guidance_scale=7.5, **options)
    pipe.scheduler = fastdiff.Scheduler.like(pipe.scheduler, **options)
    expected = drawn(pipe, "sd", latents=x)
    call = FAMILIES["sd"].call
    cond, uncond = (
        {"encoder_hidden_states": call[name]}
        for name in ("prompt_embeds", "negative_prompt_embeds")
    )
    seed = pipe.scheduler._state.seed or 0
    got = sampler.sample(x_T=x, cond=cond, uncond=uncond, seed=seed)
    close(got, torch.as_tensor(expected))
