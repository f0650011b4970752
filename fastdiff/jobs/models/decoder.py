"""Decodes latents to pictures with a diffusers autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...grad_mode import restored
from ...pretrained.files import read_json
from . import digest
from .weights import weights

_WHERE = "fastdiff.jobs"


class Decoder:
    """latents [B, C, H, W] -> pictures [B, 3, …] in [-1, 1], float32.

    Args:
        vae: a diffusers autoencoder. The scaling and shift of its latents are inverted first.
        identity: JSON-safe; equal on every worker of a run.
    """

    def __init__(self, vae: Any, identity: dict[str, Any]):
        self.vae, self.identity = vae.eval().requires_grad_(False), identity

    @restored
    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        # diffusers is imported only where it is needed
        from ...integrations.diffusers.pipeline import pictures

        return pictures(self.vae, latents).float()


def load_decoder(folder: str, dtype: torch.dtype) -> Decoder:
    """Returns the decoder of a folder with a diffusers autoencoder.

    Raises FileNotFoundError, ValueError and ImportError in one sentence.
    """
    path = Path(folder)
    name = read_json(path / "config.json", finite=False).get("_class_name")
    if not isinstance(name, str) or not name.startswith(("Autoencoder", "VQModel")):
        raise ValueError(
            f"{_WHERE}: expected an autoencoder of diffusers in {folder}, got {name!r} in its"
            " config.json. A pipeline's own is in its folder `vae`."
        )
    files = weights(path)
    try:
        import diffusers

        vae = getattr(diffusers, name).from_pretrained(
            path, local_files_only=True, use_safetensors=True, torch_dtype=dtype
        )
    except Exception as error:
        raise loading_error(f"an autoencoder of diffusers in {folder}", error) from error
    identity = {
        "name": name,
        "weights_sha256": digest.of_files(path, files),
        "config_sha256": digest.of_file(path / "config.json"),
    }
    return Decoder(vae, identity)


def check_latents(decoder: Decoder, shape: Sequence[int]) -> None:
    """Raises ValueError for a shape of samples that are no latents of this decoder."""
    channels = getattr(decoder.vae.config, "latent_channels", None)
    if len(shape) != 3 or (channels is not None and channels != shape[0]):
        raise ValueError(
            f"{_WHERE}: expected latents [{channels or 'C'}, H, W] for the decoder, got samples of"
            f" shape {list(shape)}. Name the VAE that the model was trained with."
        )


def loading_error(what: str, error: Exception) -> Exception:
    """Returns an error of a library, when it loads files, as an error of one sentence."""
    text = next(
        (line.strip() for line in str(error).splitlines() if line.strip()), "no reason given"
    ).rstrip(".")
    kind = ImportError if isinstance(error, ImportError) else ValueError
    return kind(f"{_WHERE}: expected {what}, got {type(error).__name__}: {text}.")
