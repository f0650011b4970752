"""Checkpoints of facebookresearch/DiT as `fastdiff.models.DiT` (Peebles & Xie 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models import DiT
from ..models.dit import positions
from ..outside import shown
from .files import read_tensors
from .mapping import both, filled

_WHERE = "fastdiff.pretrained"


def from_dit_checkpoint(
    source: str | PathLike[str] | Mapping[str, Tensor], *, heads: int | None = None
) -> DiT:
    """Returns the DiT of a checkpoint of facebookresearch/DiT.

    Its sizes follow from the tensors. The output has twice the channels where the network was
    trained with `learn_sigma`, and the last label is the null label.

    Args:
        source: the state dict, or a safetensors file of it. Read a .pt file with
            torch.load(path, weights_only=True), and pass its "ema" if it has one.
        heads: of every attention; None for those of the published width.

    Raises:
        FileNotFoundError, ValueError: in one sentence, for files that cannot be read and tensors of
            another network.
    """
    if isinstance(source, Mapping):
        tensors, file = dict(source), "the state dict"
    else:
        tensors, file = read_tensors(Path(source))[0], shown(source)
    needed = {"x_embedder.proj.weight": 4, "final_layer.linear.weight": 2, "pos_embed": 3}
    for name, rank in needed.items():
        if not isinstance(tensors.get(name), Tensor) or tensors[name].ndim != rank:
            raise ValueError(
                f"{_WHERE}: expected the tensor {name!r} of a DiT in {file}, got"
                f" {'another shape' if name in tensors else 'none'}."
            )
    hidden, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    published = {384: 6, 768: 12, 1024: 16, 1152: 16}
    if heads is None and hidden not in published:
        raise ValueError(
            f"{_WHERE}: expected heads for a DiT of width {hidden}, got none. The published widths"
            f" are {sorted(published)}."
        )
    depth = _count(tensors, "blocks.")
    out = tensors["final_layer.linear.weight"].shape[0] // patch**2
    labels = tensors.get("y_embedder.embedding_table.weight")
    mlp = tensors.get("blocks.0.mlp.fc1.weight")
    arguments: dict[str, Any] = {
        "channels": channels,
        "size": math.isqrt(tensors["pos_embed"].shape[1]) * patch,
        "num_classes": 0 if labels is None else len(labels) - 1,
        "patch": patch,
        "hidden": hidden,
        "depth": depth,
        "heads": published[hidden] if heads is None else heads,
        "mlp_ratio": 4.0 if mlp is None else len(mlp) / hidden,
        "learn_sigma": out == 2 * channels,
    }
    found = tensors.pop("pos_embed")
    expected = positions(arguments["size"] // patch, hidden)
    if found.shape != expected.shape or not torch.allclose(found.float(), expected, atol=1e-5):
        raise ValueError(
            f"{_WHERE}: expected the sines and cosines of a DiT as pos_embed in {file}, got other"
            " numbers."
        )
    mapping = both(
        {
            "patches": ("x_embedder.proj",),
            "embeddings.0.time.0": ("t_embedder.mlp.0",),
            "embeddings.0.time.2": ("t_embedder.mlp.2",),
            "modulation": ("final_layer.adaLN_modulation.1",),
            "linear_out": ("final_layer.linear",),
        }
    )
    if labels is not None:
        mapping["embeddings.0.label.weight"] = ("y_embedder.embedding_table.weight",)
    for i in range(depth):
        theirs = f"blocks.{i}."
        mapping |= both(
            {
                f"blocks.{i}.modulation": (theirs + "adaLN_modulation.1",),
                f"blocks.{i}.qkv": (theirs + "attn.qkv",),
                f"blocks.{i}.out": (theirs + "attn.proj",),
                f"blocks.{i}.mlp.0": (theirs + "mlp.fc1",),
                f"blocks.{i}.mlp.2": (theirs + "mlp.fc2",),
            }
        )
    return filled(DiT, arguments, mapping, tensors, file)  # type: ignore[return-value]


def _count(tensors: Iterable[str], prefix: str) -> int:
    """Returns 1 + the largest number after a prefix in the names."""
    numbers = (n.removeprefix(prefix).partition(".")[0] for n in tensors if n.startswith(prefix))
    return max((int(n) for n in numbers if n.isdecimal() and len(n) < 6), default=-1) + 1
