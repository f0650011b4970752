"""Encodes prompts to the arguments of a pipeline's network, with the pipeline's own encoders.

A unit's prompts are always encoded as one batch of the unit's size, padded to the encoder's full
length, so that their embeddings are as repeatable as the network's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...grad_mode import restored
from .conditioning import Conditioning, Halves, InvalidEntry

KEYS = ("prompt", "negative_prompt")
Encoder = Callable[[Any, list[str], list[str]], tuple[dict[str, Tensor], dict[str, Tensor]]]


class Prompts(Conditioning):
    """Entries {"prompt": text, "negative_prompt": text or None}; a text alone is the prompt.

    Args:
        pipe: the pipeline whose encode_prompt is used.
        encoder: (pipe, prompts, negative prompts) -> (cond, uncond).
        zeros: whether the negative embedding of entries without a negative prompt is zero, instead
            of the embedding of the empty text.
        shared: arguments [1, …] of both halves, equal for all samples.
    """

    any_text = True
    identity = {"prompts": list(KEYS)}

    def __init__(
        self,
        pipe: Any,
        encoder: Encoder,
        *,
        zeros: bool = False,
        shared: Mapping[str, Tensor] | None = None,
    ):
        self._pipe, self._encoder, self._zeros, self._shared = (
            pipe,
            encoder,
            zeros,
            dict(shared or {}),
        )

    def parse(self, value: Any) -> dict[str, Any]:
        entry = {"prompt": value} if isinstance(value, str) else value
        fits = isinstance(entry, Mapping) and "prompt" in entry and entry.keys() <= set(KEYS)
        if not fits or not isinstance(entry["prompt"], str):
            raise InvalidEntry(
                'a prompt, as text or {"prompt": text, "negative_prompt": text}', value
            )
        negative = entry.get("negative_prompt")
        if negative is not None and not isinstance(negative, str):
            raise InvalidEntry("the negative_prompt as text", negative)
        return {"prompt": entry["prompt"], "negative_prompt": negative}

    @restored
    @torch.no_grad()
    def conditions(self, entries: Sequence[Any]) -> Halves:
        negative = [entry["negative_prompt"] for entry in entries]
        cond, uncond = self._encoder(
            self._pipe, [entry["prompt"] for entry in entries], [n or "" for n in negative]
        )
        if self._zeros:
            for value in uncond.values():
                value[[i for i, n in enumerate(negative) if n is None]] = 0.0
        shared = {
            k: v.expand(len(entries), *v.shape[1:]).to(next(iter(cond.values())))
            for k, v in self._shared.items()
        }
        return cond | shared, uncond | shared


def stable_diffusion(
    pipe: Any, prompts: list[str], negative: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns encoder_hidden_states (Rombach et al. 2022) of prompts and negative prompts."""
    cond, uncond = pipe.encode_prompt(prompts, pipe.device, 1, True, negative)
    return {"encoder_hidden_states": cond}, {"encoder_hidden_states": uncond}


def pooled(name: str, *others: str) -> Encoder:
    """Returns an encoder of encoder_hidden_states and of the pooled embedding under `name`.

    others: arguments of `encode_prompt` for the prompts of further encoders, left to the pipeline's
    default.
    """

    def encode(
        pipe: Any, prompts: list[str], negative: list[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        cond, uncond, cond_pooled, uncond_pooled = pipe.encode_prompt(
            prompt=prompts,
            negative_prompt=negative,
            device=pipe.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            **dict.fromkeys(others),
        )
        return (
            {"encoder_hidden_states": cond, name: cond_pooled},
            {"encoder_hidden_states": uncond, name: uncond_pooled},
        )

    return encode
