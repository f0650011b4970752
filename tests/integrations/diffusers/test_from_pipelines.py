"""`Sampler.from_diffusers` against pipelines with drop-ins: the same latents and images."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from driving import GOALS
from test_pipelines import CROSS, PIPELINES, POOLED, PROMPT, made, seeded, vae
from tolerances import DROP_IN_PIPELINE

import fastdiff
import fastdiff.integrations.diffusers as classes

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

COND = {"encoder_hidden_states": PROMPT["prompt_embeds"]}
UNCOND = {"encoder_hidden_states": PROMPT["negative_prompt_embeds"]}
LATENTS = fastdiff.randn((2, 4, 8, 8), seed=6)


def drawn(pipe: Any, pipeline: str, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        images = pipe(**{**PIPELINES[pipeline][1], **more}).images
    return images if isinstance(images, torch.Tensor) else torch.as_tensor(images)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert (got - expected).abs().max() <= DROP_IN_PIPELINE * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "PNDMScheduler",
        "LMSDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_latents_of_stable_diffusion(name: str, scale: float) -> None:
    pipe = fastdiff.swap(made("text", name))
    size = LATENTS.shape[-1] * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    expected = drawn(pipe, "text", latents=LATENTS, guidance_scale=scale, height=size, width=size)
    sampler = fastdiff.Sampler.from_diffusers(pipe, steps=6, guidance_scale=scale)
    got = sampler.sample(x_T=LATENTS * sampler.plan.initial_std, cond=COND, uncond=UNCOND)
    close(got, expected)
    assert pipe.scheduler.num_inference_steps == 6  # the pipeline's own, left as it was


def test_a_schedulers_own_arguments() -> None:
    """Timesteps of one's own to set_timesteps and eta to step."""
    pipe = fastdiff.swap(made("text", "EulerDiscreteScheduler"))
    visits = [901, 640, 333, 20]
    sampler = fastdiff.Sampler.from_diffusers(pipe, timesteps=visits, s_churn=1.0)
    assert sampler.plan.column("t")[sampler.plan.column("network") == 1].tolist() == visits
    assert sampler.plan.stochastic
    pipe = fastdiff.swap(made("text", "DDIMScheduler"))
    assert not fastdiff.Sampler.from_diffusers(pipe).plan.stochastic
    assert fastdiff.Sampler.from_diffusers(pipe, eta=0.5).plan.stochastic
    with pytest.raises(TypeError, match="scheduler"):
        fastdiff.Sampler.from_diffusers(object())


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_latents_and_pictures_of_a_flow(scale: float) -> None:
    pipe = fastdiff.swap(made("sd3", "FlowMatchEulerDiscreteScheduler"))
    cond = {**COND, "pooled_projections": POOLED["pooled_prompt_embeds"]}
    uncond = {**UNCOND, "pooled_projections": POOLED["negative_pooled_prompt_embeds"]}
    for output_type, decode in (("latent", None), ("pt", pipe.vae)):
        expected = drawn(
            pipe, "sd3", latents=LATENTS, guidance_scale=scale, output_type=output_type
        )
        sampler = fastdiff.Sampler.from_diffusers(
            pipe, steps=6, guidance_scale=scale, decode=decode
        )
        got = sampler.sample(x_T=LATENTS, cond=cond, uncond=uncond)
        close(got if decode is None else (got / 2 + 0.5).clamp(0, 1), expected)


def test_pictures_of_stable_diffusion_also_streamed() -> None:
    pipe = fastdiff.swap(made("text", "DDIMScheduler"))
    expected = drawn(pipe, "text", latents=LATENTS, output_type="pt")
    sampler = fastdiff.Sampler.from_diffusers(pipe, steps=6, guidance_scale=7.5, decode=pipe.vae)
    close((sampler.sample(x_T=LATENTS, cond=COND, uncond=UNCOND) / 2 + 0.5).clamp(0, 1), expected)
    pictures = list(
        sampler.stream(2, LATENTS.shape[1:], seed=0, batch_size=1, cond=COND, uncond=UNCOND)
    )
    assert [p.shape for p in pictures] == [(1, *expected.shape[1:])] * 2
    with pytest.raises(ValueError, match="decode"):
        sampler.decode(torch.zeros(1, 16, 4))


def test_ancestral_noise_is_the_drop_ins() -> None:
    """Without a generator a drop-in draws fastdiff's noise, as the loop with its seed does."""
    pipe = fastdiff.swap(made("ddpm", "DDPMScheduler"))
    torch.manual_seed(11)
    pictures = drawn(pipe, "ddpm")
    torch.manual_seed(11)
    x = torch.randn(2, 3, 8, 8)
    sampler = fastdiff.Sampler.from_diffusers(pipe, steps=6)
    got = sampler.sample(x_T=x, seed=pipe.scheduler._state.seed)
    close((got / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), pictures)


def test_latent_consistency() -> None:
    pipe = fastdiff.swap(made("lcm", "LCMScheduler"))
    torch.manual_seed(11)
    expected = drawn(pipe, "lcm", latents=LATENTS, guidance_scale=8.5)
    weight = pipe.get_guidance_scale_embedding(torch.full((2,), 7.5), embedding_dim=8)
    sampler = fastdiff.Sampler.from_diffusers(pipe, steps=4)
    got = sampler.sample(
        x_T=LATENTS, cond={**COND, "timestep_cond": weight}, seed=pipe.scheduler._state.seed
    )
    close(got, expected)


def test_flux_gets_a_thousandth_of_the_timesteps() -> None:
    network = seeded(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=CROSS,
            pooled_projection_dim=CROSS,
            axes_dims_rope=(2, 2, 4),
        )
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = diffusers.FluxPipeline(
        scheduler=scheduler,
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=network,
    )
    pipe.set_progress_bar_config(disable=True)
    fastdiff.swap(pipe)
    packed = fastdiff.randn((2, 16, 16), seed=6)
    side = 8 * pipe.vae_scale_factor
    with torch.no_grad():
        expected = pipe(
            prompt_embeds=PROMPT["prompt_embeds"],
            pooled_prompt_embeds=POOLED["pooled_prompt_embeds"],
            latents=packed,
            num_inference_steps=5,
            height=side,
            width=side,
            output_type="latent",
        ).images
    length = PROMPT["prompt_embeds"].shape[1]
    places = pipe._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32)
    mu = float(torch.tensor(diffusers.pipelines.flux.pipeline_flux.calculate_shift(16)))
    sampler = fastdiff.Sampler.from_diffusers(
        pipe, sigmas=torch.linspace(1, 1 / 5, 5).tolist(), mu=mu
    )
    cond = {
        **COND,
        "pooled_projections": POOLED["pooled_prompt_embeds"],
        "img_ids": places.expand(2, -1, -1),
        "txt_ids": torch.zeros(2, length, 3),
    }
    close(sampler.sample(x_T=packed, cond=cond), expected)
    with pytest.raises(ValueError, match="mu"):
        fastdiff.Sampler.from_diffusers(pipe, steps=5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [c for c in classes.__all__ if c.endswith("Scheduler")])
def test_every_drop_in_makes_a_plan_with_a_call_for_each_timestep(name: str) -> None:
    """Also entered inside the grid, from an image at the level that the plan notes there."""
    pipe = made("text", "DDIMScheduler")
    pipe.scheduler = getattr(classes, name)()
    steps = 2 if name == "SCMScheduler" else 6  # of its defaults
    sampler = fastdiff.Sampler.from_diffusers(pipe, steps=steps)
    pipe.scheduler.set_timesteps(steps)
    timesteps = pipe.scheduler.timesteps.tolist()
    if name in GOALS:
        del timesteps[-1]
    assert sampler.plan.network_calls == len(timesteps)
    called = sampler.plan.column("t")[sampler.plan.column("network") == 1]
    assert called.tolist() == timesteps
    whole = sampler.sample((2, 4, 8, 8), seed=1, cond=COND)
    half = sampler.sample(image=torch.zeros(2, 4, 8, 8), strength=0.5, seed=1, cond=COND)
    assert torch.isfinite(whole).all() and torch.isfinite(half).all()
    assert (whole - half).abs().max() > 0.01


@pytest.mark.parametrize(
    "given", [torch.nn.Linear(2, 2), object(), None], ids=["network", "object", "None"]
)
def test_what_is_no_pipeline_is_not_swapped(given: object) -> None:
    expected = f"expected a diffusers pipeline, got {type(given).__name__}"
    with pytest.raises(TypeError, match=expected):
        fastdiff.swap(given)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"prediction_type": "v_prediction"}, "EulerDiscreteScheduler.from_config(pipe.scheduler"),
        ({"timestep_spacing": "leading"}, "EulerDiscreteScheduler.from_config(pipe.scheduler"),
        ({"solver": "unipc", "prediction_type": "v"}, "EulerDiscreteScheduler.from_config(pipe."),
        ({"solver": "unipc", "timestep_spacing": "leading"}, "Pass grid."),
        ({"num_inference_steps": 7}, "Pass steps."),
        ({"num_inference_steps": 7, "steps": 3}, "Pass steps."),
        ({"clip_range": 1.0}, "Pass solver= for those of a solver."),
        ({"order": 3}, "Pass solver= for those of a solver."),
        ({"eta": 0.5}, "Pass solver= for those of a solver."),
        ({"solver": "unipc", "eta": 0.5}, "The solver 'unipc' has no such option."),
        ({"device": "cpu"}, "Move the network to its device"),
        ({"schedule": fastdiff.Schedule.linear(1000)}, "got 'schedule'."),
        ({"plan": None}, "got 'plan'."),
        ({"stepz": 3}, "Did you mean 'steps'?"),
        ({"stepz": None}, "Did you mean 'steps'?"),
        ({"solver": "unipc", "stepz": 3}, "Did you mean 'steps'?"),
    ],
    ids=str,
)
def test_settings_that_would_be_left_out_are_refused(settings: dict[str, Any], advice: str) -> None:
    pipe = made("text", "EulerDiscreteScheduler")
    with pytest.raises(ValueError, match="expected settings of a Sampler's runs or of") as caught:
        fastdiff.Sampler.from_diffusers(pipe, **settings)
    assert advice in str(caught.value)


def test_a_solvers_settings_are_the_plans() -> None:
    pipe = made("text", "EulerDiscreteScheduler")
    settings: dict[str, Any] = {"solver": "dpm++2m_sde", "eta": 0.5, "clip_range": 2.0}
    sampler = fastdiff.Sampler.from_diffusers(pipe, steps=7, grid="karras", **settings)
    assert {"steps": 7, **settings}.items() <= sampler.plan.info.items()
    assert fastdiff.Sampler.from_diffusers(pipe, steps=7, eta=0.0).plan.stochastic is False
    # a pipeline's own Scheduler keeps what is not replaced
    expected = {
        order: fastdiff.Sampler.from_diffusers(pipe, solver="unipc", grid="karras", order=order)
        for order in (2, 3)
    }
    pipe.scheduler = fastdiff.Scheduler.like(pipe.scheduler, solver="unipc", grid="karras")
    for settings, order in (({}, 2), ({"order": 3}, 3), ({"grid": "karras", "order": 3}, 3)):
        plan = fastdiff.Sampler.from_diffusers(pipe, **settings).plan
        assert plan.info["order"] == order and plan.hash == expected[order].plan.hash
    other = fastdiff.Sampler.from_diffusers(pipe, grid="leading").plan
    assert other.hash != expected[2].plan.hash


def test_values_that_only_diffusers_grids_read_are_refused() -> None:
    scheduler = diffusers.DDIMScheduler()
    for name, value in (("timestep_spacing", "leading"), ("use_karras_sigmas", True)):
        with pytest.raises(ValueError, match=f"expected no {name}.*Pass grid="):
            fastdiff.Scheduler.like(scheduler, solver="unipc", **{name: value})
