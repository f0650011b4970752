"""Guiders of diffusers in `Sampler.from_diffusers`, against the guider's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_from_pipelines import COND, LATENTS, UNCOND, close
from test_pipelines import made

import fastdiff

guiders = pytest.importorskip("diffusers.guiders")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

STEPS = 6


def by_the_guider(pipe: Any, guider: Any, steps: int = STEPS) -> torch.Tensor:
    """diffusers' own loop: its scheduler, the network twice, and the guider's forward."""
    scheduler, x = pipe.scheduler, LATENTS
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        guider.set_state(i, steps, t)
        inputs = scheduler.scale_model_input(x, t)
        with torch.no_grad():
            c, u = (pipe.unet(inputs, t, **half).sample for half in (COND, UNCOND))
        x = scheduler.step(guider.forward(c, u).pred, t, x).prev_sample
    return x


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"]
)
@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 5.0},
        {"guidance_scale": 3.0, "use_original_formulation": True},
        {"guidance_scale": 4.0, "guidance_rescale": 0.7},
        {"guidance_scale": 4.0, "guidance_rescale": 0.4, "start": 0.2, "stop": 0.7},
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0, "use_original_formulation": True},
        {"guidance_scale": 4.0, "enabled": False},
    ],
    ids=str,
)
def test_classifier_free_guidance(name: str, settings: dict[str, Any]) -> None:
    guider = guiders.ClassifierFreeGuidance(**settings)
    sampler = fastdiff.Sampler.from_diffusers(made("text", name), steps=STEPS, guider=guider)
    got = sampler.sample(x_T=LATENTS * sampler.plan.initial_std, cond=COND, uncond=UNCOND)
    close(got, by_the_guider(made("text", name), guider))
    if sampler.guidance_scale == 1.0:  # the guider is off: the plan is the scheduler's
        plain = fastdiff.Sampler.from_diffusers(made("text", name), steps=STEPS)
        assert sampler.plan.hash == plain.plan.hash


def test_a_skipped_step_does_not_call_the_unconditional_half() -> None:
    guider = guiders.ClassifierFreeGuidance(4.0, start=0.5)
    pipe, rows = made("text", "DDIMScheduler"), []
    sampler = fastdiff.Sampler.from_diffusers(pipe, steps=4, guider=guider)
    pipe.unet.register_forward_hook(lambda module, inputs, out: rows.append(len(out.sample)))
    sampler.sample(x_T=LATENTS, cond=COND, uncond=UNCOND)
    assert rows == [2, 2, 4, 4]


def test_other_guiders_are_refused() -> None:
    pipe = made("text", "DDIMScheduler")
    for wrong in (guiders.TangentialClassifierFreeGuidance(), 3.0):
        with pytest.raises(TypeError, match="expected guider as diffusers' ClassifierFreeGuidance"):
            fastdiff.Sampler.from_diffusers(pipe, guider=wrong)
    with pytest.raises(ValueError, match="expected guider or guidance_scale, got both"):
        fastdiff.Sampler.from_diffusers(
            pipe, guider=guiders.ClassifierFreeGuidance(), guidance_scale=2.0
        )
