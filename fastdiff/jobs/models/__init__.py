"""Models that datasets are made of, by name: a folder, a function of the user's, or a diffusers
pipeline.

A model is opened by every worker by the name in the run's spec, and its `identity` (hashes of
weights, configuration and source) must be the one that the spec was written with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...pretrained import shipped
from .conditioning import Classes, Conditioning, Unfit
from .decoder import Decoder, decoder_of, fits
from .factory import from_factory
from .folder import from_folder
from .model import Model, sizes
from .pipeline import INDEX, from_pipeline

__all__ = ["Classes", "Conditioning", "Model", "Unfit", "open_model"]

_WHERE = "fastdiff.jobs"


def open_model(
    name: str,
    *,
    shape: Sequence[int] | None = None,
    decode: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> Model:
    """The model of a name.

    Args:
        name: a folder or shipped model of fastdiff.pretrained; a folder with a diffusers pipeline's
            model_index.json; or `package.module:function`, a function that returns a `Model` or a
            `fastdiff.Sampler`.
        shape: one sample's state: needed where a factory's Sampler does not say, another size for a
            pipeline.
        decode: a folder with an autoencoder of diffusers, or `pipe` for the pipeline's own; None
            leaves latents, unless a factory's Model brings a decoder.
        dtype: in which a pipeline is loaded. Other networks stay as they are; `network_dtype` of a
            Sampler casts them.
        device: where to; None leaves it to the model.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: in one sentence, for what can't be
            opened.
    """
    own: Callable[[Tensor], Tensor] | None = None
    if (Path(name) / INDEX).is_file():
        model, own = from_pipeline(name, shape=shape, dtype=dtype, device=device)
    elif Path(name).is_dir() or name in shipped():
        model = from_folder(name)
    elif ":" in name:
        model = from_factory(name, shape)
        own = model.decode
    else:
        raise FileNotFoundError(
            f"{_WHERE}: expected a folder, a shipped model ({', '.join(shipped())}) or"
            f" package.module:function, got {name!r}. Models are not downloaded."
        )
    if shape is not None and model.shape != sizes(shape):
        raise ValueError(
            f"{_WHERE}: expected shape {list(model.shape)} for the model {name}, got"
            f" {list(sizes(shape))}."
        )
    if decode == "pipe" and own is None:
        raise ValueError(
            f"{_WHERE}: expected a pipeline with a VAE for decode='pipe', got {name}. Name the"
            " VAE's folder, or leave it out."
        )
    if decode is not None:
        model.decode = own if decode == "pipe" else decoder_of(decode, dtype)
        if isinstance(model.decode, Decoder):
            fits(model.decode, model.shape)
    _place(model, device)
    _json_safe(model, name)
    return model


def _place(model: Model, device: Any) -> None:
    for part in (model.network, model.decode, getattr(model.decode, "vae", None)):
        if device is not None and isinstance(part, nn.Module):
            part.to(device)


def _json_safe(model: Model, name: str) -> None:
    try:
        json.dumps(model.identity, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{_WHERE}: expected facts that JSON can hold from {name}, got others: {error}."
        ) from None
