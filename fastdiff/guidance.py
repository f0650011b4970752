"""Classifier-free guidance: out = u + gamma (c - u) from a conditional and an unconditional call.

The strength decides on the host which calls are made (Ho & Salimans 2022): a Python 1 needs only the conditional one, a
Python 0 only the unconditional one; anything else, and any tensor, needs both, made as one call on a doubled batch with
the conditional half first. The combination itself happens inside `reverse_step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Conditions:
    """The keyword arguments of every network call of a run.

    Attributes:
        halves: 1, or 2 when both calls are made.
        arguments: what the model is called with; tensors [halves·B, …].
        conditional: what it is called with where only the conditional half is needed; tensors [B, …].
        guidance: gamma [B] for the kernel, or None.

    Raises:
        ValueError: uncond missing, rows that do not match the batch, or halves with different keys.
    """

    def __init__(
        self,
        cond: Mapping[str, Any] | None,
        uncond: Mapping[str, Any] | None,
        gamma: float | Tensor,
        batch: int,
        device: torch.device,
    ):
        cond = _on_device("cond", cond, batch, device)
        self.guidance: Tensor | None = None
        self.halves = 1
        self.conditional = cond
        self.host = not isinstance(gamma, Tensor)  # whether the host may skip calls
        if not isinstance(gamma, Tensor) and gamma == 1:
            self.arguments = cond
            return
        if uncond is None:
            raise ValueError(
                "fastdiff.Sampler: expected uncond with a guidance_scale other than 1. Pass the keyword arguments of "
                "the unconditional call."
            )
        uncond = _on_device("uncond", uncond, batch, device)
        if not isinstance(gamma, Tensor) and gamma == 0:
            self.arguments = self.conditional = uncond
            return
        if cond.keys() != uncond.keys():
            raise ValueError(
                f"fastdiff.Sampler: expected the same keys in cond and uncond, got {sorted(cond)} and {sorted(uncond)}."
            )
        self.halves = 2
        self.arguments = {key: _both(key, cond[key], uncond[key]) for key in cond}
        self.guidance = gamma if isinstance(gamma, Tensor) else torch.full((batch,), gamma, device=device)


def _both(key: str, cond: Any, uncond: Any) -> Any:
    if isinstance(cond, Tensor) and cond.ndim and isinstance(uncond, Tensor) and uncond.ndim:
        return torch.cat([cond, uncond])
    same = torch.equal(cond, uncond) if isinstance(cond, Tensor) and isinstance(uncond, Tensor) else cond == uncond
    if not same:
        raise ValueError(
            f"fastdiff.Sampler: expected one value of {key!r} for both halves, or tensors indexed by sample, "
            f"got {cond!r} and {uncond!r}."
        )
    return cond


def _on_device(name: str, given: Mapping[str, Any] | None, batch: int, device: torch.device) -> dict[str, Any]:
    """A copy with tensors on the device; tensors with a batch dimension must have one row per sample."""
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            f"fastdiff.Sampler: expected {name} as a dict of keyword arguments, got {type(given).__name__}."
        )
    arguments = {}
    for key, value in (given or {}).items():
        if isinstance(value, Tensor):
            if value.ndim and value.shape[0] != batch:
                raise ValueError(
                    f"fastdiff.Sampler: expected {name}[{key!r}] with {batch} rows, one per sample, got {value.shape[0]}."
                )
            value = value.to(device)
        arguments[key] = value
    return arguments
