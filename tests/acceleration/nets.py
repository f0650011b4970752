"""Small networks of every class that `fastdiff.accelerate` knows, with arguments to call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from fastdiff.models import AttentionUNet, DiT, ImageUNet, UNet

BATCH, SIZE = 3, 16
WIDTHS = (32, 64)


def seeded(make: Callable[[], Any]) -> Any:
    """The network with random parameters: zero initialisations would hide what precedes them."""
    torch.manual_seed(3)
    network = make().eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return network


def unet2d(**more: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": SIZE,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": WIDTHS,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 16,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return seeded(lambda: diffusers.UNet2DModel(**settings | more))


def unet_condition(**more: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": SIZE,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": WIDTHS,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": 24,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return seeded(lambda: diffusers.UNet2DConditionModel(**settings | more))


def dit(**more: Any) -> Any:
    return seeded(
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            num_layers=2,
            sample_size=SIZE,
            patch_size=2,
            num_embeds_ada_norm=10,
            **more,
        )
    )


def own(**more: Any) -> Any:
    return seeded(
        lambda: UNet(**{"channels": 3, "size": SIZE, "widths": (32, 64), "heads": 4} | more)
    )


def own_attention(**more: Any) -> Any:
    settings: dict[str, Any] = {"size": SIZE, "widths": WIDTHS, "attention": (8,), "blocks": 1}
    return seeded(lambda: AttentionUNet(**settings | more))


def own_dit(**more: Any) -> Any:
    return seeded(lambda: DiT(**{"size": SIZE, "hidden": 32, "depth": 2, "heads": 2} | more))


def labels() -> torch.Tensor:
    return torch.tensor([1, 4, 0])


def text() -> torch.Tensor:
    return torch.randn(BATCH, 5, 24, generator=torch.Generator().manual_seed(4))


# name -> (network, channels of x, keyword arguments)
CASES: dict[str, tuple[Callable[[], Any], int, Callable[[], dict[str, Any]]]] = {
    "unet2d": (unet2d, 3, dict),
    "unet2d like cifar's": (
        lambda: unet2d(
            norm_eps=1e-6,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            attention_head_dim=None,
        ),
        3,
        dict,
    ),
    "unet2d scale shift": (lambda: unet2d(resnet_time_scale_shift="scale_shift"), 3, dict),
    "unet2d labels": (lambda: unet2d(num_class_embeds=10), 3, lambda: {"class_labels": labels()}),
    "unet2d label times": (
        lambda: unet2d(class_embed_type="timestep"),
        3,
        lambda: {"class_labels": labels()},
    ),
    "unet2d resnets between": (
        lambda: unet2d(downsample_type="resnet", upsample_type="resnet"),
        3,
        dict,
    ),
    "unet2d resnet blocks": (
        lambda: unet2d(
            down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
        ),
        3,
        dict,
    ),
    "unet2d skips": (
        lambda: unet2d(
            down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            block_out_channels=(32, 64),
            up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
            norm_num_groups=None,
        ),
        3,
        dict,
    ),
    "unet2d fourier": (lambda: unet2d(time_embedding_type="fourier"), 3, dict),
    "unet2d no middle": (lambda: unet2d(mid_block_type=None, center_input_sample=True), 3, dict),
    "unet2d scaled middle": (
        lambda: unet2d(mid_block_scale_factor=1.5, add_attention=False),
        3,
        dict,
    ),
    "text": (unet_condition, 4, lambda: {"encoder_hidden_states": text()}),
    "text linear": (
        lambda: unet_condition(use_linear_projection=True),
        4,
        lambda: {"encoder_hidden_states": text()},
    ),
    "text scale shift": (
        lambda: unet_condition(resnet_time_scale_shift="scale_shift", class_embed_type="timestep"),
        4,
        lambda: {"encoder_hidden_states": text(), "class_labels": labels()},
    ),
    "text simple": (
        lambda: unet_condition(
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            attention_head_dim=16,
        ),
        4,
        lambda: {"encoder_hidden_states": text()},
    ),
    "dit": (dit, 4, lambda: {"class_labels": labels()}),
    "own": (own, 3, lambda: {"y": labels()}),
    "own twice": (lambda: own(out_channels=6, mid_blocks=1), 3, dict),
    "own attention": (own_attention, 3, dict),
    "own attention labels": (
        lambda: own_attention(num_classes=5, scale_shift=True, corner=True, middle_norm=False),
        3,
        lambda: {"y": labels()},
    ),
    "own dit": (lambda: own_dit(num_classes=5), 3, lambda: {"y": labels()}),
    "own image": (
        lambda: seeded(lambda: ImageUNet(channels=3, size=SIZE, widths=(32, 64), heads=4)),
        3,
        lambda: {"y": labels(), "image": noise(3) * 0.5},
    ),
}


def noise(channels: int, batch: int = BATCH, seed: int = 5) -> torch.Tensor:
    return torch.randn(batch, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def times() -> torch.Tensor:
    return torch.tensor([999, 3, 500])


def run(network: Any, x: torch.Tensor, t: Any, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        out = network(x, t, **arguments)
    return getattr(out, "sample", out)
