"""Guiders of diffusers in `Sampler.from_diffusers`, against the guider's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_from_pipelines import COND, LATENTS, UNCOND, close
from test_pipelines import made

import fastdiff

guiders = pytest.importorskip("diffusers.guiders")
adaptive_projected_guidance = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")

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
        momentum = getattr(guider, "adaptive_projected_guidance_momentum", None)
        if i == 0 and momentum is not None:  # as prepare_inputs does
            guider.momentum_buffer = adaptive_projected_guidance.MomentumBuffer(momentum)
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


APG = "adaptive_projected_guidance"
ZERO_STAR: list[dict[str, Any]] = [
    {"guidance_scale": 5.0},
    {"guidance_scale": 3.0, "zero_init_steps": 0, "use_original_formulation": True},
    {"guidance_scale": 4.0, "zero_init_steps": 2, "start": 0.2, "stop": 0.7},
    {"guidance_scale": 4.0, "zero_init_steps": 0, "guidance_rescale": 0.4},
    {"guidance_scale": 1.0, "zero_init_steps": 2},
    {"guidance_scale": 0.0, "zero_init_steps": 0},
    {"guidance_scale": 4.0, "enabled": False},
]
PROJECTED: list[dict[str, Any]] = [
    {"guidance_scale": 5.0, "eta": 0.0},
    {"guidance_scale": 5.0, f"{APG}_rescale": 3.0},
    {"guidance_scale": 3.0, "eta": 0.2, f"{APG}_rescale": 2.0, "use_original_formulation": True},
    {"guidance_scale": 4.0, "eta": 0.0, f"{APG}_momentum": -0.5, f"{APG}_rescale": 4.0},
    {"guidance_scale": 4.0, "eta": 0.5, f"{APG}_momentum": 0.3, "use_original_formulation": True},
    {"guidance_scale": 4.0, f"{APG}_momentum": -0.75, "start": 0.2, "stop": 0.7},
    {"guidance_scale": 4.0, "eta": 0.0, "guidance_rescale": 0.4, f"{APG}_rescale": 0.0},
    {"guidance_scale": 4.0, f"{APG}_rescale": 0.0},
    {"guidance_scale": 1.0},
]


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "EulerDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "HeunDiscreteScheduler",
    ],
)
@pytest.mark.parametrize(
    "guider, settings",
    [
        *(("ClassifierFreeZeroStarGuidance", settings) for settings in ZERO_STAR),
        *(("AdaptiveProjectedGuidance", settings) for settings in PROJECTED),
    ],
    ids=str,
)
def test_guiders_with_a_kind(name: str, guider: str, settings: dict[str, Any]) -> None:
    made_guider = getattr(guiders, guider)(**settings)
    sampler = fastdiff.Sampler.from_diffusers(made("text", name), steps=STEPS, guider=made_guider)
    got = sampler.sample(x_T=LATENTS * sampler.plan.initial_std, cond=COND, uncond=UNCOND)
    close(got, by_the_guider(made("text", name), made_guider))


def test_a_projected_guider_that_changes_nothing_has_the_plain_plan() -> None:
    pipe = made("text", "DDIMScheduler")
    plain, whole, part = (
        fastdiff.Sampler.from_diffusers(pipe, steps=STEPS, guider=guider).plan.hash
        for guider in (
            guiders.ClassifierFreeGuidance(4.0),
            guiders.AdaptiveProjectedGuidance(4.0, adaptive_projected_guidance_rescale=0.0),
            guiders.AdaptiveProjectedGuidance(4.0, adaptive_projected_guidance_rescale=1.0),
        )
    )
    assert plain == whole != part


@pytest.mark.parametrize("solver", [None, "ddim"])
@pytest.mark.parametrize(
    "settings, guider",
    [
        ({"guidance_rescale": 0.7}, guiders.ClassifierFreeGuidance(4.0, guidance_rescale=0.7)),
        (
            {"guidance_type": "cfg_zero_star", "zero_init_steps": 2},
            guiders.ClassifierFreeZeroStarGuidance(4.0, zero_init_steps=2),
        ),
        (
            {"guidance_type": "apg", "apg_space": "output", "apg_norm": 2.0, "apg_momentum": -0.5},
            guiders.AdaptiveProjectedGuidance(
                3.0,
                adaptive_projected_guidance_rescale=2.0,
                adaptive_projected_guidance_momentum=-0.5,
                eta=0.0,
                use_original_formulation=True,
            ),
        ),
    ],
    ids=["rescale", "zero star", "apg"],
)
def test_the_settings_of_guidance(
    settings: dict[str, Any], guider: Any, solver: str | None
) -> None:
    """They are those of a guider, with the scheduler's own steps and with another solver."""
    named = {} if solver is None else {"solver": solver}
    pipe = made("text", "DDIMScheduler")
    sampler = fastdiff.Sampler.from_diffusers(
        pipe, steps=STEPS, guidance_scale=4.0, **settings, **named
    )
    got = sampler.sample(x_T=LATENTS * sampler.plan.initial_std, cond=COND, uncond=UNCOND)
    if solver is None:
        close(got, by_the_guider(made("text", "DDIMScheduler"), guider))
        assert "expected guider or" in refusal(pipe, guider=guider, **settings)
    plain = fastdiff.Sampler.from_diffusers(pipe, steps=STEPS, guidance_scale=4.0, **named)
    assert sampler.plan.hash != plain.plan.hash


def refusal(pipe: Any, **settings: Any) -> str:
    with pytest.raises(ValueError) as error:
        fastdiff.Sampler.from_diffusers(pipe, steps=STEPS, **settings)
    return str(error.value)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_the_interval_of_noise_levels(name: str) -> None:
    """Guidance acts at the rows whose sigma/alpha is inside."""
    pipe = made("text", name)
    sampler = fastdiff.Sampler.from_diffusers(
        pipe, steps=STEPS, guidance_scale=4.0, guidance_interval=(0.2, 3.0)
    )
    plan = sampler.plan
    assert plan.levels is not None
    alpha, sigma = plan.levels[:STEPS].T
    inside = (sigma / alpha >= 0.2) & (sigma / alpha <= 3.0)
    assert 0 < inside.sum() < STEPS
    assert (plan.column("guidance_weight")[:STEPS] == inside).all()
    assert "Pass a solver too" in refusal(pipe, guidance_type="cfg++")
    assert "expected guidance_rescale in" in refusal(pipe, guidance_rescale=2.0)


def test_other_guiders_are_refused() -> None:
    pipe = made("text", "DDIMScheduler")
    changed = type("Mine", (guiders.AdaptiveProjectedGuidance,), {"forward": lambda *_: None})()
    auto = guiders.AutoGuidance(auto_guidance_layers=[1], dropout=1.0)
    for wrong in (guiders.TangentialClassifierFreeGuidance(), changed, auto, 3.0):
        with pytest.raises(TypeError, match=r"expected guider as diffusers' .*, .* or .*, got"):
            fastdiff.Sampler.from_diffusers(pipe, guider=wrong)
    some = guiders.AdaptiveProjectedGuidance(adaptive_projected_guidance_norm_dim=1)
    with pytest.raises(ValueError, match="whose norm is that of a whole sample, got 1"):
        fastdiff.Sampler.from_diffusers(pipe, guider=some)
    with pytest.raises(ValueError, match="expected guider or guidance_scale, got both"):
        fastdiff.Sampler.from_diffusers(
            pipe, guider=guiders.ClassifierFreeGuidance(), guidance_scale=2.0
        )
