"""Pipelines of few-step, flow and inpainting schedulers give diffusers' results with drop-ins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.deprecated.repaint.pipeline_repaint import RePaintPipeline
from test_pipelines import CROSS, IMAGE, POOLED, PROMPT, seeded, unet, vae
from tolerances import DROP_IN_PIPELINE

import fastdiff

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LATENT: dict[str, Any] = {"output_type": "latent", "num_inference_steps": 4}
NO_TEXT = {"text_encoder": None, "tokenizer": None}
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
EMBEDS = {"prompt_embeds": PROMPT["prompt_embeds"]}


def pixels(out: int = 3) -> Any:
    return seeded(
        lambda: diffusers.UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=out,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )
    )


def transformer() -> Any:
    return seeded(
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


def consistency(scheduler: Any) -> Any:
    return diffusers.ConsistencyModelPipeline(pixels(), scheduler)


def lcm_image(scheduler: Any) -> Any:
    return diffusers.LatentConsistencyModelImg2ImgPipeline(
        vae=vae(), unet=unet(time_cond_proj_dim=8), scheduler=scheduler, **NO_TEXT, **UNCHECKED
    )


def text(scheduler: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(), unet=unet(), scheduler=scheduler, **NO_TEXT, **UNCHECKED
    )


def flow_image(scheduler: Any) -> Any:
    return diffusers.StableDiffusion3Img2ImgPipeline(
        transformer=transformer(),
        scheduler=scheduler,
        vae=vae(shift_factor=0.06),
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
        **NO_TEXT,
    )


RUNS: list[tuple[str, dict[str, Any], Callable[[Any], Any], dict[str, Any]]] = [
    (
        "CMStochasticIterativeScheduler",
        {},
        consistency,
        {"batch_size": 2, "num_inference_steps": 1, "output_type": "pt"},
    ),
    (
        "CMStochasticIterativeScheduler",
        {},
        consistency,
        {
            "batch_size": 2,
            "num_inference_steps": None,
            "timesteps": [22, 9, 0],
            "output_type": "pt",
        },
    ),
    ("LCMScheduler", {}, lcm_image, {**LATENT, **EMBEDS, **IMAGE, "original_inference_steps": 40}),
    ("TCDScheduler", {}, text, {**LATENT, **PROMPT, "eta": 0.5, "height": 16, "width": 16}),
    (
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 3.0},
        flow_image,
        {**LATENT, **PROMPT, **POOLED, **IMAGE},
    ),
    ("FlowMatchHeunDiscreteScheduler", {}, flow_image, {**LATENT, **PROMPT, **POOLED, **IMAGE}),
    (
        "RePaintScheduler",
        {},
        lambda s: RePaintPipeline(pixels(), s),
        {
            "image": IMAGE["image"][:, :, :8, :8],
            "mask_image": torch.ones(2, 1, 8, 8).tril(),
            "num_inference_steps": 10,
            "jump_length": 2,
            "jump_n_sample": 3,
            "eta": 1.0,
            "output_type": "np",
        },
    ),
]


@pytest.mark.parametrize(
    "name, config, build, call", RUNS, ids=[f"{run[0]}-{i}" for i, run in enumerate(RUNS)]
)
def test_pipelines_give_what_diffusers_gives(
    name: str, config: dict[str, Any], build: Callable[[Any], Any], call: dict[str, Any]
) -> None:
    pipe = build(getattr(diffusers, name)(**config))
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for _ in range(2):
        with torch.no_grad():
            result = pipe(**call, generator=torch.Generator().manual_seed(2)).images
        pictures.append(torch.as_tensor(result))
        assert type(fastdiff.swap(pipe).scheduler) is getattr(fastdiff, name)
    expected, got = pictures
    assert (got - expected).abs().max() <= DROP_IN_PIPELINE * expected.abs().max().clamp(min=1)


def test_a_network_with_learned_variance_in_the_loop() -> None:
    """DDPM reads both halves of the output; the loop with the drop-in's seed gives the same."""
    pipe = diffusers.DDPMPipeline(pixels(6), diffusers.DDPMScheduler(variance_type="learned_range"))
    pipe.set_progress_bar_config(disable=True)
    fastdiff.swap(pipe)
    torch.manual_seed(11)
    with torch.no_grad():
        expected = torch.as_tensor(
            pipe(batch_size=2, num_inference_steps=6, output_type="np").images
        )
    torch.manual_seed(11)
    x = torch.randn(2, 3, 8, 8)
    got = fastdiff.Sampler.from_diffusers(pipe, steps=6).sample(
        x_T=x, seed=pipe.scheduler._state.seed
    )
    assert (
        (got / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) - expected
    ).abs().max() <= DROP_IN_PIPELINE
    pipe.scheduler = diffusers.DDPMScheduler(variance_type="learned")
    with pytest.raises(ValueError, match="variance_type"):
        fastdiff.Sampler.from_diffusers(pipe)
