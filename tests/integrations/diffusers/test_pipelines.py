"""Drop-ins inside diffusers' pipelines, with tiny random networks; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tolerances import DROP_IN_PIPELINE

import fastdiff

pytest.importorskip("transformers", reason="diffusers' text-to-image pipelines import transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CROSS = 16


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(7)
    return make().eval()


def unet(channels: int = 4, **more: Any) -> Any:
    return seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=channels,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=CROSS,
            attention_head_dim=2,
            norm_num_groups=4,
            **more,
        )
    )


def vae(channels: int = 4, **more: Any) -> Any:
    return seeded(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            in_channels=3,
            out_channels=3,
            latent_channels=channels,
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            **more,
        )
    )


def ddpm(scheduler: Any) -> Any:
    network = seeded(
        lambda: diffusers.UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )
    )
    cls = (
        diffusers.DDIMPipeline
        if isinstance(scheduler, diffusers.DDIMScheduler)
        else diffusers.DDPMPipeline
    )
    return cls(network, scheduler)


def stable(cls: Any, scheduler: Any, **more: Any) -> Any:
    return cls(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet(**more),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(scheduler: Any) -> Any:
    width = CROSS + 24
    network = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=width,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=network,
        scheduler=scheduler,
        add_watermarker=False,
    )


def dit(scheduler: Any) -> Any:
    network = seeded(
        lambda: diffusers.DiTTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=4,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=4,
            num_embeds_ada_norm=1000,
        )
    )
    return diffusers.DiTPipeline(
        transformer=network, vae=vae(), scheduler=scheduler, id2label={0: "cat", 1: "dog"}
    )


def lcm(scheduler: Any) -> Any:
    return diffusers.LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet(time_cond_proj_dim=8),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd3(scheduler: Any) -> Any:
    network = seeded(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=CROSS,
            caption_projection_dim=16,
            pooled_projection_dim=CROSS,
            out_channels=4,
        )
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=network,
        scheduler=scheduler,
        vae=vae(shift_factor=0.06),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )


NOTHING = ("safety_checker", "text_encoder", "tokenizer", "feature_extractor", "image_encoder")


def words(*shape: int) -> torch.Tensor:
    return fastdiff.randn((2, *shape), seed=3)


PROMPT = {"prompt_embeds": words(5, CROSS), "negative_prompt_embeds": -words(5, CROSS)}
POOLED = {"pooled_prompt_embeds": words(CROSS), "negative_pooled_prompt_embeds": -words(CROSS)}
LATENT: dict[str, Any] = {"output_type": "latent", "num_inference_steps": 6}
IMAGE = {"image": fastdiff.randn((2, 3, 16, 16), seed=4).clamp(-1, 1), "strength": 0.7}
MASK = {
    "mask_image": (fastdiff.randn((2, 1, 16, 16), seed=5) > 0).float(),
    "height": 16,
    "width": 16,
}

# what a pipeline is made by, what it is called with, and the schedulers it is tried with
PIPELINES: dict[str, tuple[Callable[[Any], Any], dict[str, Any], tuple[Any, ...]]] = {
    "ddpm": (
        ddpm,
        {"batch_size": 2, "num_inference_steps": 6, "output_type": "np"},
        ("DDPMScheduler",),
    ),
    "ddim": (
        ddpm,
        {"batch_size": 2, "num_inference_steps": 6, "output_type": "np", "eta": 0.3},
        ("DDIMScheduler",),
    ),
    "text": (
        lambda s: stable(diffusers.StableDiffusionPipeline, s),
        {**LATENT, **PROMPT, "height": 16, "width": 16},
        (
            "DDIMScheduler",
            "PNDMScheduler",
            "LMSDiscreteScheduler",
            "EulerDiscreteScheduler",
            "HeunDiscreteScheduler",
            "EulerAncestralDiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "DPMSolverMultistepScheduler",
            "UniPCMultistepScheduler",
            "DEISMultistepScheduler",
            "DPMSolverSinglestepScheduler",
        ),
    ),
    "image": (
        lambda s: stable(diffusers.StableDiffusionImg2ImgPipeline, s),
        {**LATENT, **PROMPT, **IMAGE},
        (
            "DDIMScheduler",
            "PNDMScheduler",
            "LMSDiscreteScheduler",
            "EulerDiscreteScheduler",
            "HeunDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "DPMSolverMultistepScheduler",
            "UniPCMultistepScheduler",
        ),
    ),
    "inpaint": (
        lambda s: stable(diffusers.StableDiffusionInpaintPipeline, s),
        {**LATENT, **PROMPT, **IMAGE, **MASK},
        ("DDIMScheduler", "PNDMScheduler", "EulerAncestralDiscreteScheduler"),
    ),
    "inpaint9": (
        lambda s: stable(diffusers.StableDiffusionInpaintPipeline, s, channels=9),
        {**LATENT, **PROMPT, **IMAGE, **MASK, "strength": 1.0},
        ("EulerDiscreteScheduler",),
    ),
    "sdxl": (
        sdxl,
        {**LATENT, **PROMPT, **POOLED, "height": 16, "width": 16},
        (
            "EulerDiscreteScheduler",
            "DDIMScheduler",
            "DPMSolverMultistepScheduler",
        ),
    ),
    "dit": (
        dit,
        {"class_labels": [0, 1], "num_inference_steps": 6, "output_type": "np"},
        (
            "DDIMScheduler",
            "DPMSolverMultistepScheduler",
        ),
    ),
    "lcm": (
        lcm,
        {
            **LATENT,
            "prompt_embeds": PROMPT["prompt_embeds"],
            "height": 16,
            "width": 16,
            "num_inference_steps": 4,
        },
        ("LCMScheduler",),
    ),
    "sd3": (
        sd3,
        {**LATENT, **PROMPT, **POOLED, "height": 16, "width": 16},
        ("FlowMatchEulerDiscreteScheduler",),
    ),
}
RUNS = [(pipeline, name) for pipeline, (_, _, names) in PIPELINES.items() for name in names]
STABLE = ("text", "image", "inpaint", "inpaint9", "sdxl")


def scheduler_for(pipeline: str, name: str) -> Any:
    config = (
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        if pipeline in STABLE
        else {}
    )
    return getattr(diffusers, name)(**config)


def made(pipeline: str, name: str) -> Any:
    pipe = PIPELINES[pipeline][0](scheduler_for(pipeline, name))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, pipeline: str, generator: Any = None) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(pipe(**PIPELINES[pipeline][1], generator=generator)[0])


@pytest.mark.parametrize("pipeline, name", RUNS)
def test_pipelines_give_what_diffusers_gives(pipeline: str, name: str) -> None:
    pipe = made(pipeline, name)
    expected = draw(pipe, pipeline, torch.Generator().manual_seed(0))
    theirs = pipe.scheduler
    assert fastdiff.swap(pipe) is pipe and type(pipe.scheduler) is getattr(fastdiff, name)
    got = draw(pipe, pipeline, torch.Generator().manual_seed(0))
    assert expected.isfinite().all()
    assert (got - expected).abs().max() <= DROP_IN_PIPELINE * expected.abs().max()
    # and back: diffusers' own scheduler from the swapped pipeline's configuration
    pipe.scheduler = type(theirs).from_config(pipe.scheduler.config)
    assert torch.equal(draw(pipe, pipeline, torch.Generator().manual_seed(0)), expected)


@pytest.mark.parametrize("pipeline", ["text", "ddpm", "dit"])
def test_saved_pipelines_come_back_with_their_drop_in(pipeline: str, tmp_path: Path) -> None:
    name = PIPELINES[pipeline][2][0]
    pipe = fastdiff.swap(made(pipeline, name))
    expected = draw(pipe, pipeline, torch.Generator().manual_seed(0))
    pipe.save_pretrained(tmp_path)
    assert f'"fastdiff",\n    "{name}"' in (tmp_path / "model_index.json").read_text()
    again = type(pipe).from_pretrained(
        tmp_path, **{name: None for name in NOTHING if pipeline == "text"}
    )
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is getattr(fastdiff, name)
    assert torch.equal(draw(again, pipeline, torch.Generator().manual_seed(0)), expected)


def test_the_pipeline_that_makes_its_scheduler_anew() -> None:
    """DDIMPipeline's constructor replaces its scheduler; swap assigns one afterwards."""
    pipe = diffusers.DDIMPipeline(made("ddim", "DDIMScheduler").unet, fastdiff.DDIMScheduler())
    assert not type(pipe.scheduler).__module__.startswith("fastdiff")
    assert type(fastdiff.swap(pipe).scheduler) is fastdiff.DDIMScheduler


@pytest.mark.parametrize(
    "pipeline, name",
    [
        ("ddpm", "DDPMScheduler"),
        ("text", "EulerAncestralDiscreteScheduler"),
        ("text", "DDIMScheduler"),
        ("lcm", "LCMScheduler"),
    ],
)
def test_the_global_seed_governs(pipeline: str, name: str) -> None:
    pipe = fastdiff.swap(made(pipeline, name))
    torch.manual_seed(0)
    first, second = draw(pipe, pipeline), draw(pipe, pipeline)
    torch.manual_seed(0)
    assert torch.equal(draw(pipe, pipeline), first) and not torch.equal(first, second)


@pytest.mark.parametrize("pipeline", ["text", "sdxl", "sd3"])
def test_swapping_a_deterministic_scheduler_does_not_move_the_latents(pipeline: str) -> None:
    name = PIPELINES[pipeline][2][0]
    pipe = made(pipeline, name)
    torch.manual_seed(0)
    expected = draw(pipe, pipeline)
    fastdiff.swap(pipe)
    torch.manual_seed(0)
    assert (draw(pipe, pipeline) - expected).abs().max() <= DROP_IN_PIPELINE * expected.abs().max()


def test_callbacks_that_change_latents_and_interrupt() -> None:
    pipe = made("text", "EulerDiscreteScheduler")

    def change(pipe: Any, i: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = i >= 4
        return {"latents": values["latents"] * (0.9 if i == 1 else 1.0)}

    def run() -> torch.Tensor:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            return pipe(**PIPELINES["text"][1], generator=generator, callback_on_step_end=change)[0]

    expected = run()
    fastdiff.swap(pipe)
    assert (run() - expected).abs().max() <= DROP_IN_PIPELINE * expected.abs().max()


def test_schedulers_own_timesteps_and_sigmas() -> None:
    """Pipelines look for these arguments in the signature."""
    for options in ({"timesteps": [999, 700, 400, 100]}, {"sigmas": [10.0, 5.0, 1.0, 0.5, 0.0]}):
        pipe = made("text", "EulerDiscreteScheduler")
        call = {**PIPELINES["text"][1], **options, "num_inference_steps": 4}
        expected, got = None, None
        for swapped in (False, True):
            pipe = fastdiff.swap(pipe) if swapped else pipe
            with torch.no_grad():
                image = pipe(**call, generator=torch.Generator().manual_seed(0))[0]
            expected, got = (expected, image) if swapped else (image, None)
        assert (got - expected).abs().max() <= DROP_IN_PIPELINE * expected.abs().max()
