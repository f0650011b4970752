"""Makes tiny random diffusers pipelines with text encoders and tokenizers, saved to folders."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

CROSS, LENGTH, WIDTH = 16, 12, 24
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def seeded(make: Callable[[], Any], seed: int = 7) -> Any:
    torch.manual_seed(seed)
    return make().eval()


def tokenizer() -> Any:
    """Returns a tokenizer of letters and digits, with the start and end tokens of CLIP's texts."""
    letters = string.ascii_lowercase + string.digits
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=LENGTH
    )


def encoder(cls: Any, seed: int, width: int = CROSS) -> Any:
    size = len(tokenizer())
    config = transformers.CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    return seeded(lambda: cls(config), seed)


def unet(**more: Any) -> Any:
    return seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2,
            norm_num_groups=4,
            **{"cross_attention_dim": CROSS, **more},
        )
    )


def vae(**more: Any) -> Any:
    return seeded(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            in_channels=3,
            out_channels=3,
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            **{"latent_channels": 4, **more},
        )
    )


def plain(scheduler: Any = None, learned: bool = False, **more: Any) -> Any:
    """Returns a pipeline with a U-Net of pictures, without conditions unless it has classes."""
    network = seeded(
        lambda: diffusers.UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=6 if learned else 3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            **more,
        )
    )
    return diffusers.DDPMPipeline(network, scheduler or diffusers.DDPMScheduler())


def dit(
    classes: int = 1000, learned: bool = False, scheduler: Any = None, channels: int = 4
) -> Any:
    network = seeded(
        lambda: diffusers.DiTTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=4,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=channels,
            out_channels=2 * channels if learned else channels,
            num_embeds_ada_norm=classes,
        )
    )
    return diffusers.DiTPipeline(
        transformer=network,
        vae=vae(latent_channels=channels),
        scheduler=scheduler or diffusers.DDIMScheduler(),
    )


def stable(scheduler: Any = None, **more: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=encoder(transformers.CLIPTextModel, 1),
        tokenizer=tokenizer(),
        unet=unet(**more),
        scheduler=scheduler or diffusers.DDIMScheduler(**STABLE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def xl(zeros: bool = True) -> Any:
    network = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 24,
        cross_attention_dim=2 * CROSS,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=encoder(transformers.CLIPTextModel, 1),
        text_encoder_2=encoder(transformers.CLIPTextModelWithProjection, 2),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=network,
        scheduler=diffusers.EulerDiscreteScheduler(**STABLE),
        add_watermarker=False,
        force_zeros_for_empty_prompt=zeros,
    )


def three() -> Any:
    network = seeded(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * CROSS,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            out_channels=4,
        )
    )
    projected = [encoder(transformers.CLIPTextModelWithProjection, seed) for seed in (1, 2)]
    return diffusers.StableDiffusion3Pipeline(
        transformer=network,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06),
        text_encoder=projected[0],
        tokenizer=tokenizer(),
        text_encoder_2=projected[1],
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def saved(pipe: Any, folder: Path) -> str:
    pipe.save_pretrained(folder)
    return str(folder)
