"""Samples that wait for lanes, and the sources they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .guidance import Conditions


@dataclasses.dataclass(frozen=True)
class Batch:
    """n samples with checked arguments, on the run's device.

    Attributes:
        rows: [n] where each begins, in the program's table.
        seeds, ids: int64 [n].
        gamma: [n] strengths, host numbers or a tensor that the host does not read.
        guided: whether an unconditional half is wanted.
        conditions: the network's arguments.
        state: [n, …] what each begins with; None: noise of deviation std[n].
        image: [n, …] clean data to begin from instead, noised to levels[n] = (alpha, sigma).
        mask, known: [n, …] for inpainting; 1 in the mask is drawn, 0 is known.
        tickets: [n] what the caller knows each by.
    """

    rows: NDArray[np.int64]
    seeds: Tensor
    ids: Tensor
    gamma: NDArray[np.float64] | Tensor
    guided: bool
    conditions: Conditions
    tickets: NDArray[np.int64]
    std: NDArray[np.float64]
    state: Tensor | None = None
    image: Tensor | None = None
    levels: NDArray[np.float64] | None = None
    mask: Tensor | None = None
    known: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, rows: slice) -> Batch:
        """Some of the samples."""
        cut = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in cut.items():
            if isinstance(value, (Tensor, np.ndarray, Conditions)):
                cut[name] = value.part(rows) if isinstance(value, Conditions) else value[rows]
        return Batch(**cut)


class Source:
    """Hands out samples in order: a whole batch, as many at a time as there are lanes free."""

    def __init__(self, batch: Batch):
        self._batch, self._next = batch, 0

    def take(self, most: int) -> Batch | None:
        """At least one and at most `most` samples, None when there are no more."""
        if self._next >= len(self._batch):
            return None
        begin, self._next = self._next, min(self._next + most, len(self._batch))
        whole = begin == 0 and self._next == len(self._batch)
        return self._batch if whole else self._batch.part(slice(begin, self._next))

    @property
    def empty(self) -> bool:
        """Whether it is known that there are no more."""
        return self._next >= len(self._batch)


class Requests:
    """Hands out samples one request at a time, pulled when a lane is free for it.

    prepare(number, request) makes a batch of one sample whose ticket is the number; `waiting` holds
    what was pulled.
    None in place of a request: none now.
    """

    def __init__(self, requests: Iterator[Any], prepare: Callable[[int, Any], Batch]):
        self._requests, self._prepare, self._number = requests, prepare, 0
        self.waiting: dict[int, Any] = {}
        self.empty = False

    def take(self, most: int) -> Batch | None:
        try:
            request = next(self._requests)
        except StopIteration:
            self.empty = True
            return None
        if request is None:
            return None
        self._number += 1
        self.waiting[self._number] = request
        return self._prepare(self._number, request)


def signed(seed: int | Tensor, n: int, device: torch.device) -> Tensor:
    """A seed per sample, int64 [n] in two's complement."""
    if isinstance(seed, Tensor):
        return seed.to(device).expand(n).contiguous()
    return torch.full(
        (n,), seed - 2**64 if seed >= 2**63 else seed, dtype=torch.int64, device=device
    )


@dataclasses.dataclass
class Request:
    """One sample that somebody waits for, with wishes of its own; see `Sampler.serve` and
    `Sampler.sample`.

    Tensors are one sample's, without a batch dimension, those in cond and uncond too. None stands
    for the sampler's own steps and guidance_scale.
    """

    sample_id: int
    seed: int
    steps: int | None = None
    start: int = 0
    strength: float | None = None
    x_T: Tensor | None = None
    image: Tensor | None = None
    guidance_scale: Any = None
    cond: Mapping[str, Any] | None = None
    uncond: Mapping[str, Any] | None = None
