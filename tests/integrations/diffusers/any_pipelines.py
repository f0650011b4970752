"""Tiny pipelines of every family, with random networks, for schedulers of any solver.

This file is over 400 lines because every family has its own smallest network.

Each family has a function of its scheduler, the scheduler of its published models, the arguments of
a call and the shape of its latents. Text encoders are left out: the prompts are embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers
import torch
from test_pipelines import (
    CROSS,
    IMAGE,
    LATENT,
    MASK,
    PIPELINES,
    POOLED,
    PROMPT,
    dit,
    sd3,
    sdxl,
    seeded,
    stable,
    vae,
    words,
)

NO_TEXT = {"text_encoder": None, "tokenizer": None}
NO_TEXTS = {**NO_TEXT, "text_encoder_2": None, "tokenizer_2": None}
SIZE = {"height": 32, "width": 32}
ATTENDED = torch.ones(2, 5, dtype=torch.long)


class Family(NamedTuple):
    """A pipeline, its scheduler and its call.

    Attributes:
        make: (scheduler) -> pipeline.
        scheduler: diffusers' class and configuration.
        call: arguments of the pipeline.
    """

    make: Callable[[Any], Any]
    scheduler: tuple[str, Mapping[str, Any]]
    call: Mapping[str, Any]


def flux(cls: Any, scheduler: Any) -> Any:
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
    return cls(scheduler=scheduler, vae=vae(shift_factor=0.06), transformer=network, **NO_TEXTS)


def sd3_image(scheduler: Any) -> Any:
    parts = sd3(scheduler).components
    return diffusers.StableDiffusion3Img2ImgPipeline(
        **{k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    )


def pix2pix(scheduler: Any) -> Any:
    parts = stable(diffusers.StableDiffusionPipeline, scheduler, channels=8).components
    return diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)


def qwen(scheduler: Any) -> Any:
    network = seeded(
        lambda: diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=CROSS,
            axes_dims_rope=(2, 2, 4),
        )
    )
    return diffusers.QwenImagePipeline(
        scheduler=scheduler, vae=None, transformer=network, **NO_TEXT
    )


def lumina(scheduler: Any) -> Any:
    network = seeded(
        lambda: diffusers.Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(32, 32, 32),
            cap_feat_dim=CROSS,
        )
    )
    return diffusers.Lumina2Pipeline(scheduler=scheduler, vae=None, transformer=network, **NO_TEXT)


def wan(scheduler: Any) -> Any:
    network = seeded(
        lambda: diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=CROSS,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
        )
    )
    return diffusers.WanPipeline(scheduler=scheduler, vae=None, transformer=network, **NO_TEXT)


def ltx(scheduler: Any) -> Any:
    network = seeded(
        lambda: diffusers.LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=CROSS,
        )
    )
    return diffusers.LTXPipeline(scheduler=scheduler, vae=None, transformer=network, **NO_TEXT)


def cogvideox(scheduler: Any) -> Any:
    network = seeded(
        lambda: diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=4,
            text_embed_dim=CROSS,
            num_layers=1,
            sample_width=4,
            sample_height=4,
            sample_frames=5,
            patch_size=2,
            max_text_seq_length=5,
        )
    )
    return diffusers.CogVideoXPipeline(
        scheduler=scheduler, vae=None, transformer=network, **NO_TEXT
    )


def hunyuan(scheduler: Any) -> Any:
    network = seeded(
        lambda: diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            text_embed_dim=CROSS,
            pooled_projection_dim=CROSS,
            rope_axes_dim=(2, 2, 4),
        )
    )
    return diffusers.HunyuanVideoPipeline(
        scheduler=scheduler, vae=None, transformer=network, **NO_TEXTS
    )


def sana(scheduler: Any) -> Any:
    network = seeded(
        lambda: diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=CROSS,
            sample_size=4,
        )
    )
    return diffusers.SanaPipeline(scheduler=scheduler, vae=None, transformer=network, **NO_TEXT)


def stable_audio(scheduler: Any) -> Any:
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

    network = seeded(
        lambda: diffusers.StableAudioDiTModel(
            sample_size=4,
            in_channels=3,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            out_channels=3,
            cross_attention_dim=CROSS,
            time_proj_dim=8,
            global_states_input_dim=2 * CROSS,
            cross_attention_input_dim=CROSS,
        )
    )
    decoder = seeded(
        lambda: diffusers.AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[1, 2],
            decoder_channels=3,
            decoder_input_channels=3,
            audio_channels=2,
            channel_multiples=[2, 4],
            sampling_rate=4,
        )
    )
    lengths = seeded(
        lambda: StableAudioProjectionModel(
            text_encoder_dim=CROSS, conditioning_dim=CROSS, min_value=0, max_value=32
        )
    )
    return diffusers.StableAudioPipeline(
        scheduler=scheduler,
        vae=decoder,
        transformer=network,
        projection_model=lengths,
        **NO_TEXT,
    )


STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V = {"prediction_type": "v_prediction"}
FLOW = "FlowMatchEulerDiscreteScheduler"
TURNED = {"use_dynamic_shifting": True, "shift": 3.0}
CUT = {"num_inference_steps": 5}
ATTENTION = {
    "prompt_attention_mask": ATTENDED,
    "negative_prompt_attention_mask": ATTENDED,
}
TEXTS = {**LATENT, **PROMPT, **CUT}
FAMILIES: dict[str, Family] = {
    "sd": Family(
        PIPELINES["text"][0], ("PNDMScheduler", STABLE), {**TEXTS, "height": 16, "width": 16}
    ),
    "sd image": Family(
        PIPELINES["image"][0],
        ("DDIMScheduler", STABLE),
        {**TEXTS, **IMAGE},
    ),
    "sd inpaint": Family(
        PIPELINES["inpaint"][0],
        ("EulerDiscreteScheduler", STABLE),
        {**TEXTS, **IMAGE, **MASK},
    ),
    "sdxl": Family(
        sdxl,
        ("EulerDiscreteScheduler", {**STABLE, **V, "rescale_betas_zero_snr": True}),
        {**TEXTS, **POOLED, "height": 16, "width": 16},
    ),
    "edm": Family(
        lambda s: stable(diffusers.StableDiffusionPipeline, s),
        ("EDMEulerScheduler", {}),
        {**TEXTS, "height": 16, "width": 16},
    ),
    "dit": Family(dit, ("DDIMScheduler", {}), {"class_labels": [0, 1], **CUT, "output_type": "np"}),
    "sd3": Family(sd3, (FLOW, {"shift": 3.0}), {**TEXTS, **POOLED, "height": 16, "width": 16}),
    "flux": Family(
        lambda s: flux(diffusers.FluxPipeline, s),
        (FLOW, TURNED),
        {
            **LATENT,
            **CUT,
            **SIZE,
            "prompt_embeds": PROMPT["prompt_embeds"],
            "pooled_prompt_embeds": POOLED["pooled_prompt_embeds"],
        },
    ),
    "flux image": Family(
        lambda s: flux(diffusers.FluxImg2ImgPipeline, s),
        (FLOW, TURNED),
        {
            **LATENT,
            **CUT,
            "height": 16,
            "width": 16,
            **IMAGE,
            "prompt_embeds": PROMPT["prompt_embeds"],
            "pooled_prompt_embeds": POOLED["pooled_prompt_embeds"],
        },
    ),
    "flux inpaint": Family(
        lambda s: flux(diffusers.FluxInpaintPipeline, s),
        (FLOW, TURNED),
        {
            **LATENT,
            **CUT,
            **IMAGE,
            **MASK,
            "prompt_embeds": PROMPT["prompt_embeds"],
            "pooled_prompt_embeds": POOLED["pooled_prompt_embeds"],
        },
    ),
    "sd3 image": Family(
        sd3_image,
        (FLOW, {"shift": 3.0}),
        {**TEXTS, **POOLED, **IMAGE, "height": 16, "width": 16},
    ),
    "pix2pix": Family(
        pix2pix, ("EulerAncestralDiscreteScheduler", STABLE), {**TEXTS, "image": IMAGE["image"]}
    ),
    "qwen": Family(
        qwen,
        (FLOW, {**TURNED, "shift_terminal": 0.02}),
        {
            **TEXTS,
            **SIZE,
            "true_cfg_scale": 2.0,
            "prompt_embeds_mask": ATTENDED,
            "negative_prompt_embeds_mask": ATTENDED,
        },
    ),
    "lumina": Family(lumina, (FLOW, {"shift": 6.0}), {**TEXTS, **ATTENTION, **SIZE}),
    "wan": Family(
        wan,
        (
            "UniPCMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
        {**TEXTS, **SIZE, "num_frames": 5},
    ),
    "ltx": Family(
        ltx,
        (FLOW, {**TURNED, "shift_terminal": 0.1}),
        {**TEXTS, **ATTENTION, "height": 64, "width": 64, "num_frames": 9},
    ),
    "cogvideox": Family(
        cogvideox,
        (
            "CogVideoXDDIMScheduler",
            {
                **STABLE,
                **V,
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
                "snr_shift_scale": 1.0,
                "clip_sample": False,
            },
        ),
        {**TEXTS, **SIZE, "num_frames": 5},
    ),
    "hunyuan": Family(
        hunyuan,
        (FLOW, {"shift": 7.0}),
        {
            **LATENT,
            **CUT,
            **SIZE,
            "num_frames": 5,
            "prompt_embeds": PROMPT["prompt_embeds"],
            "pooled_prompt_embeds": POOLED["pooled_prompt_embeds"],
            "prompt_attention_mask": ATTENDED,
        },
    ),
    "sana": Family(
        sana,
        (
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
        {
            **TEXTS,
            **ATTENTION,
            "height": 128,
            "width": 128,
            "use_resolution_binning": False,
            "negative_prompt": None,
        },
    ),
    "stable audio": Family(
        stable_audio,
        ("CosineDPMSolverMultistepScheduler", {}),
        {
            **TEXTS,
            "attention_mask": ATTENDED,
            "negative_attention_mask": ATTENDED,
            "audio_end_in_s": 1.0,
        },
    ),
}


def made(family: str) -> Any:
    """The family's pipeline with diffusers' scheduler."""
    name, config = FAMILIES[family].scheduler
    pipe = FAMILIES[family].make(getattr(diffusers, name)(**config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, family: str, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(pipe(**{**FAMILIES[family].call, **more}, return_dict=False)[0])


__all__ = ["FAMILIES", "Family", "drawn", "made", "words"]
