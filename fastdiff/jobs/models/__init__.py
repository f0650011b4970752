"""Opens the models to sample from by name: a model folder, a user's function, a diffusers pipeline.

Every worker opens the model by the name in the run's spec. Its `identity` (hashes of weights,
configuration and source) must be the one in the spec.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...pretrained import shipped
from ...pretrained.hub import is_repository
from .conditioning import Classes, Conditioning, InvalidEntry
from .decoder import Decoder, check_latents, load_decoder
from .factory import from_factory
from .folder import from_folder
from .model import Model, sizes
from .pictures import Pictures, SmallPictures
from .pipeline import INDEX, from_pipeline

__all__ = [
    "Classes",
    "Conditioning",
    "InvalidEntry",
    "Model",
    "Pictures",
    "SmallPictures",
    "is_code",
    "open_model",
]

_WHERE = "fastdiff.jobs"


def open_model(
    name: str,
    *,
    shape: Sequence[int] | None = None,
    decode: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
    trust: bool = False,
) -> Model:
    """Returns the model of a name.

    Args:
        name: a folder or shipped model of fastdiff.pretrained; a folder with a diffusers pipeline's
            model_index.json; or `package.module:function`, a function that returns a `Model` or a
            `fastdiff.Sampler`.
        shape: of one sample's state: required for a factory's Sampler that does not specify it;
            for a pipeline, another size than its own.
        decode: a folder with a diffusers autoencoder, or `pipe` for the pipeline's own. None
            leaves latents, unless a factory's Model has a decoder.
        dtype: of a loaded pipeline and decoder. Other networks keep theirs; `network_dtype` of a
            Sampler casts them.
        device: to move the model to; None leaves it where it is.
        trust: whether the code that a model folder names as its network may run. A factory's name
            is trust already.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: in one sentence, for names that
            cannot be opened.
    """
    own: Callable[[Tensor], Tensor] | None = None
    if (Path(name) / INDEX).is_file():
        model, own = from_pipeline(name, shape=shape, dtype=dtype, device=device)
    elif Path(name).is_dir() or name in shipped():
        model = from_folder(name, trust=trust)
    elif is_code(name):
        model = from_factory(name, shape)
        own = model.decode
    else:
        repository = name if is_repository(name) else "org/name"
        raise FileNotFoundError(
            f"{_WHERE}: expected a folder, a shipped model ({', '.join(shipped())}) or"
            f" package.module:function, got {name!r}. Models are not downloaded; `hf download"
            f" {repository} --local-dir DIR` makes a folder of a repository."
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
        model.decode = own if decode == "pipe" else load_decoder(decode, dtype)
        if isinstance(model.decode, Decoder):
            check_latents(model.decode, model.shape)
    _move_to_device(model, device)
    _check_identity(model, name)
    return model


def is_code(name: Any) -> bool:
    """Whether opening the model of this name imports and calls a function of the user's."""
    return (
        isinstance(name, str) and ":" in name and not Path(name).is_dir() and name not in shipped()
    )


def _move_to_device(model: Model, device: Any) -> None:
    for part in (model.network, model.decode, getattr(model.decode, "vae", None)):
        if device is not None and isinstance(part, nn.Module):
            part.to(device)


def _check_identity(model: Model, name: str) -> None:
    """Raises ValueError for an identity that JSON cannot hold."""
    try:
        json.dumps(model.identity, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{_WHERE}: expected `facts` of {name} that JSON can hold, got {error}."
        ) from None
