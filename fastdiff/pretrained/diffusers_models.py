"""Networks of diffusers as those of fastdiff.models; diffusers need not be installed.

UNet2DModel              AttentionUNet
DiTTransformer2DModel    DiT
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ..models import AttentionUNet, DiT
from ..outside import shown
from .checks import fits
from .files import folder_of, read_json, read_tensors
from .mapping import Names, both, filled

_WHERE = "fastdiff.pretrained"
WEIGHTS = "diffusion_pytorch_model.safetensors"
# diffusers' attention, and the names that it had in older files
_QKV = ("to_q", "to_k", "to_v")
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def from_diffusers_model(source: str | PathLike[str] | nn.Module) -> nn.Module:
    """Returns diffusers' UNet2DModel or DiTTransformer2DModel as a network of fastdiff.models.

    It has the same outputs to rounding, is in eval mode, and takes labels as `y`. A U-Net with
    class embeddings has no null label: all its classes are classes.

    Args:
        source: a folder with config.json and diffusion_pytorch_model.safetensors, or the model.

    Raises:
        FileNotFoundError, ValueError: in one sentence, for files that cannot be read, other classes
            and options that the networks here do not have.
    """
    if isinstance(source, nn.Module):
        config: Mapping[str, Any] = dict(getattr(source, "config", {}))
        name, file = type(source).__name__, f"the {type(source).__name__}"
        tensors = {k: v.detach() for k, v in source.state_dict().items()}
    else:
        folder = folder_of(source)
        config, file = read_json(folder / "config.json", finite=False), shown(folder)
        name, tensors = str(config.get("_class_name")), read_tensors(folder / WEIGHTS)[0]
    makers = {"UNet2DModel": _unet, "DiTTransformer2DModel": _dit}
    if name not in makers:
        raise ValueError(
            f"{_WHERE}: expected a model of diffusers among {sorted(makers)} in {file}, got"
            f" {shown(name)}."
        )
    kind, arguments, mapping = makers[name](_Options(config, name, file), tensors)
    return filled(kind, arguments, mapping, _renamed(tensors), file)


class _Options:
    """A config of diffusers, read option by option; what is not read must have its default."""

    def __init__(self, config: Mapping[str, Any], name: str, file: str):
        self.config, self.name, self.file = config, name, file

    def __call__(self, key: str, kind: Any, default: Any) -> Any:
        """Returns an option. Raises ValueError for a value of another type."""
        value = self.config.get(key, default)
        value = list(value) if isinstance(value, tuple) else value
        if not fits(value, kind):
            self.refuse(key, f"another type than {default!r}", value)
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Refuses an option that is not one of the allowed values; the first is the default."""
        if self.config.get(key, allowed[0]) not in allowed:
            self.refuse(key, " or ".join(map(repr, allowed)), self.config[key])

    def refuse(self, key: str, expected: str, got: Any) -> None:
        raise ValueError(
            f"{_WHERE}: expected {key} as {expected} in the config of a {self.name} in"
            f" {self.file}, got {shown(repr(got))[:60]}. The networks here have no such option."
        )


def _unet(options: _Options, tensors: Mapping[str, Tensor]) -> tuple[Any, dict[str, Any], Names]:
    """Returns (class, arguments, mapping) for a UNet2DModel."""
    options.only("center_input_sample", False)
    options.only("time_embedding_type", "positional")
    options.only("mid_block_type", "UNetMidBlock2D")
    options.only("mid_block_scale_factor", 1, 1.0)
    options.only("downsample_type", "conv")
    options.only("upsample_type", "conv")
    options.only("act_fn", "silu", "swish")
    options.only("downsample_padding", 1, 0)
    options.only("resnet_time_scale_shift", "default", "scale_shift")
    options.only("class_embed_type", None)
    widths = options("block_out_channels", list[int], [224, 448, 672, 896])
    down = options("down_block_types", list[str], ["DownBlock2D"] + ["AttnDownBlock2D"] * 3)
    up = options("up_block_types", list[str], ["AttnUpBlock2D"] * 3 + ["UpBlock2D"])
    attentive = [name == "AttnDownBlock2D" for name in down]
    if (
        len(down) != len(widths)
        or set(down) - {"DownBlock2D", "AttnDownBlock2D"}
        or set(up) - {"UpBlock2D", "AttnUpBlock2D"}
        or [name == "AttnUpBlock2D" for name in reversed(up)] != attentive
    ):
        options.refuse("down_block_types", "plain or attention blocks, the same way up", down)
    size = options("sample_size", int | list[int] | None, None)
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int):
        options.refuse("sample_size", "the size of square images", size)
    scale_shift = options.config.get("resnet_time_scale_shift") == "scale_shift"
    groups = options("norm_num_groups", int, 32)
    own_groups = options("attn_norm_num_groups", int | None, None)
    if own_groups not in (None, groups):
        options.refuse("attn_norm_num_groups", f"{groups} or None", own_groups)
    head_width = options("attention_head_dim", int | None, 8)
    classes = options("num_class_embeds", int | None, None)
    blocks = options("layers_per_block", int, 2)
    middle = options("add_attention", bool, True)
    channels = options("in_channels", int, 3)
    arguments = {
        "channels": channels,
        "size": size,
        "num_classes": classes or 0,
        "widths": widths,
        "blocks": blocks,
        "attention": [size >> level for level, has in enumerate(attentive) if has],
        "head_width": head_width,
        "groups": groups,
        "eps": options("norm_eps", float, 1e-5),
        "emb": options("time_embedding_dim", int | None, None),
        "scale_shift": scale_shift,
        "middle": middle,
        "middle_norm": own_groups is not None or not scale_shift,
        "corner": options("downsample_padding", int, 1) == 0,
        "sine_first": not options("flip_sin_to_cos", bool, True),
        "shift": float(options("freq_shift", float, 0)),
        "null_class": False,
    }
    out = options("out_channels", int, 3)
    arguments |= {"learn_sigma": True} if out == 2 * channels else {"out_channels": out}
    mapping = both(
        {
            "time.0": ("time_embedding.linear_1",),
            "time.2": ("time_embedding.linear_2",),
            "conv_in": ("conv_in",),
            "norm_out": ("conv_norm_out",),
            "conv_out": ("conv_out",),
            **_block("bottom.0", "mid_block.resnets.0"),
            **_block("bottom.1", "mid_block.resnets.1"),
        }
    )
    if classes:
        mapping["label.weight"] = ("class_embedding.weight",)
    mapping |= _attention("attention", "mid_block.attentions.0") if middle else {}
    levels = len(widths)
    for level in range(levels):
        for way, theirs, count in (
            ("down", "down_blocks", blocks),
            ("up", "up_blocks", blocks + 1),
        ):
            has = attentive[level if way == "down" else levels - 1 - level]
            for i in range(count):
                mapping |= both(_block(f"{way}.{level}.{i}.block", f"{theirs}.{level}.resnets.{i}"))
                if has:
                    mapping |= _attention(
                        f"{way}.{level}.{i}.attention", f"{theirs}.{level}.attentions.{i}"
                    )
        if level < levels - 1:
            mapping |= both(
                {
                    f"halve.{level}.conv": (f"down_blocks.{level}.downsamplers.0.conv",),
                    f"enlarge.{level}": (f"up_blocks.{level}.upsamplers.0.conv",),
                }
            )
    return AttentionUNet, arguments, mapping


def _dit(options: _Options, tensors: Mapping[str, Tensor]) -> tuple[Any, dict[str, Any], Names]:
    """Returns (class, arguments, mapping) for a DiTTransformer2DModel."""
    options.only("norm_type", "ada_norm_zero")
    options.only("activation_fn", "gelu-approximate", "gelu")
    options.only("norm_elementwise_affine", False)
    heads, depth = options("num_attention_heads", int, 16), options("num_layers", int, 28)
    hidden = heads * options("attention_head_dim", int, 72)
    channels, classes = options("in_channels", int, 4), options("num_embeds_ada_norm", int, 1000)
    out = options("out_channels", int | None, None) or channels
    arguments = {
        "channels": channels,
        "size": options("sample_size", int, 32),
        "num_classes": classes,
        "patch": options("patch_size", int, 2),
        "hidden": hidden,
        "depth": depth,
        "heads": heads,
        "shift": 1.0,
        "mlp_eps": options("norm_eps", float, 1e-5),
        "tanh": options("activation_fn", str, "gelu-approximate") == "gelu-approximate",
        "shared": False,
    }
    arguments |= {"learn_sigma": True} if out == 2 * channels else {"out_channels": out}
    mapping = both(
        {
            "patches": ("pos_embed.proj",),
            "modulation": ("proj_out_1",),
            "linear_out": ("proj_out_2",),
        }
    )
    for i in range(depth):
        theirs = f"transformer_blocks.{i}."
        embedder = theirs + "norm1.emb."
        mapping |= both(
            {
                f"embeddings.{i}.time.0": (embedder + "timestep_embedder.linear_1",),
                f"embeddings.{i}.time.2": (embedder + "timestep_embedder.linear_2",),
                f"blocks.{i}.modulation": (theirs + "norm1.linear",),
                f"blocks.{i}.qkv": tuple(f"{theirs}attn1.{name}" for name in _QKV),
                f"blocks.{i}.out": (theirs + "attn1.to_out.0",),
                f"blocks.{i}.mlp.0": (theirs + "ff.net.0.proj",),
                f"blocks.{i}.mlp.2": (theirs + "ff.net.2",),
            }
        )
        table = embedder + "class_embedder.embedding_table.weight"
        mapping[f"embeddings.{i}.label.weight"] = (table,)
    if depth > 1 and _alike(tensors, depth):
        # the same embedding in every block, as a converted checkpoint has it, is kept once
        arguments["shared"] = True
        _share(mapping, tensors, depth)
    return DiT, arguments, mapping


def _alike(tensors: Mapping[str, Tensor], depth: int) -> bool:
    """Returns whether all blocks of a DiTTransformer2DModel have the same embedding."""
    names = [n for n in tensors if n.startswith("transformer_blocks.0.norm1.emb.")]
    return all(
        torch.equal(tensors[n], tensors.get(n.replace("blocks.0.", f"blocks.{i}.", 1), tensors[n]))
        for n in names
        for i in range(1, depth)
    )


def _share(mapping: Names, tensors: Any, depth: int) -> None:
    """Leaves out the embeddings of all blocks but the first, in the mapping and in the tensors."""
    for ours in [k for k in mapping if k.startswith("embeddings.") and k.split(".")[1] != "0"]:
        for theirs in mapping.pop(ours):
            tensors.pop(theirs, None)


def _block(ours: str, theirs: str) -> Names:
    """Returns the mapping of a ResnetBlock2D to a `ResidualBlock`, without its weights' names."""
    names = {
        "norm1": "norm1",
        "conv1": "conv1",
        "emb": "time_emb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
        "skip": "conv_shortcut",
    }
    return {f"{ours}.{a}": (f"{theirs}.{b}",) for a, b in names.items()}


def _attention(ours: str, theirs: str) -> Names:
    """Returns the mapping of diffusers' Attention to `Attention`."""
    return both(
        {
            f"{ours}.norm": (f"{theirs}.group_norm",),
            f"{ours}.qkv": tuple(f"{theirs}.{name}" for name in _QKV),
            f"{ours}.out": (f"{theirs}.to_out.0",),
        }
    )


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors by the names that diffusers gives to attention's today."""
    found = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if len(parts) > 1 and "attentions" in parts and parts[-2] in _OLD:
            parts[-2] = _OLD[parts[-2]]
        found[".".join(parts)] = value
    return found
