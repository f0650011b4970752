"""Pipelines of CogVideoX, SANA-Sprint and Stable Cascade give diffusers' results with drop-ins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from test_pipelines import seeded, words
from tolerances import DROP_IN_PIPELINE

import fastdiff

transformers = pytest.importorskip("transformers", reason="Stable Cascade has a text encoder")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

WIDTH = 16


def cogvideox(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    network = seeded(
        lambda: diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=WIDTH,
            num_layers=1,
            sample_width=2,
            sample_height=2,
            sample_frames=5,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=6,
        )
    )
    vae = seeded(
        lambda: diffusers.AutoencoderKLCogVideoX(
            in_channels=3,
            out_channels=3,
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        )
    )
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=network, scheduler=scheduler
    )
    call = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 6}
    embeds = {
        "prompt_embeds": words(6, WIDTH),
        "negative_prompt_embeds": -words(6, WIDTH),
    }
    return pipe, {**call, **embeds, "num_inference_steps": 4, "guidance_scale": 3.0}


def sana(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    network = seeded(
        lambda: diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=WIDTH,
            sample_size=8,
            qk_norm="rms_norm_across_heads",
            guidance_embeds=True,
        )
    )
    vae = seeded(
        lambda: diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        )
    )
    pipe = diffusers.SanaSprintPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=network, scheduler=scheduler
    )
    call = {"height": 32, "width": 32, "use_resolution_binning": False, "num_inference_steps": 2}
    embeds = {
        "prompt_embeds": words(6, WIDTH),
        "prompt_attention_mask": torch.ones(2, 6),
    }
    return pipe, {**call, **embeds}


def cascade(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    prior = seeded(
        lambda: diffusers.models.StableCascadeUNet(
            conditioning_dim=16,
            block_out_channels=(16, 16),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            down_blocks_repeat_mappers=(1, 1),
            up_blocks_repeat_mappers=(1, 1),
            block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock"),) * 2,
            switch_level=(False,),
            clip_image_in_channels=WIDTH,
            clip_text_in_channels=WIDTH,
            clip_text_pooled_in_channels=WIDTH,
            dropout=(0.0, 0.0),
        )
    )
    shape = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "projection_dim": WIDTH}
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    encoder = seeded(
        lambda: transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**shape))
    )
    pipe = diffusers.StableCascadePriorPipeline(
        tokenizer=None, text_encoder=encoder, prior=prior, scheduler=scheduler
    )
    embeds = {
        "prompt_embeds": words(6, WIDTH),
        "prompt_embeds_pooled": words(1, WIDTH),
        "negative_prompt_embeds": -words(6, WIDTH),
        "negative_prompt_embeds_pooled": -words(1, WIDTH),
    }
    return pipe, {**embeds, "height": 128, "width": 128, "num_inference_steps": 4}


RUNS: list[tuple[str, dict[str, Any], Callable[[Any], tuple[Any, dict[str, Any]]]]] = [
    ("CogVideoXDDIMScheduler", {"prediction_type": "v_prediction"}, cogvideox),
    (
        "CogVideoXDDIMScheduler",
        {
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
            "snr_shift_scale": 1.0,
        },
        cogvideox,
    ),
    ("CogVideoXDPMScheduler", {"prediction_type": "v_prediction"}, cogvideox),
    ("SCMScheduler", {}, sana),
    ("DDPMWuerstchenScheduler", {}, cascade),
]


@pytest.mark.parametrize(
    "name, config, build", RUNS, ids=[f"{run[0]}-{i}" for i, run in enumerate(RUNS)]
)
def test_pipelines_give_what_diffusers_gives(
    name: str, config: dict[str, Any], build: Callable[[Any], tuple[Any, dict[str, Any]]]
) -> None:
    pipe, call = build(getattr(diffusers, name)(**config))
    pipe.set_progress_bar_config(disable=True)
    results = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            given = {**call, "generator": generator, "return_dict": False}
            output = "pt" if name == "DDPMWuerstchenScheduler" else "latent"
            results.append(pipe(**given, output_type=output)[0])
        assert type(fastdiff.swap(pipe).scheduler) is getattr(fastdiff, name)
    expected, got = results
    assert (got - expected).abs().max() <= DROP_IN_PIPELINE * expected.abs().max().clamp(min=1)
