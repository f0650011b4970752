"""Samples that wait for lanes, and the sources that they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..rng import signed_seed
from .conditions import Conditions
from .upload import upload


@dataclasses.dataclass(frozen=True)
class Batch:
    """n samples with checked arguments, on the run's device.

    Attributes:
        rows: int64 [n], the row of the device's plan at which each begins.
        seeds, ids, start_ids: int64 [n]; ids name the noise of rows, start_ids that of x_T.
        gamma: [n] guidance strengths, host numbers or a tensor that the host does not read.
        guided: whether the unconditional half is needed.
        conditions: the network's arguments.
        tickets: int64 [n], the caller's number for each sample.
        std: [n] the deviation of the noise to begin with, where neither state nor image is given.
        state: [n, …] the states to begin with.
        image: [n, …] clean data to begin from, noised to levels[n] = (alpha, sigma).
        mask, known: [n, …] for inpainting; the mask is 1 where samples are drawn, 0 where they are
            known.
    """

    rows: NDArray[np.int64]
    seeds: Tensor
    ids: Tensor
    start_ids: Tensor
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
        """The batch of some of the samples."""
        cut = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in cut.items():
            if isinstance(value, (Tensor, np.ndarray, Conditions)):
                cut[name] = value.part(rows) if isinstance(value, Conditions) else value[rows]
        return Batch(**cut)


class Source:
    """Hands out the samples of one batch in order."""

    def __init__(self, batch: Batch):
        self._batch, self._next = batch, 0

    def take(self, most: int) -> Batch | None:
        """The next samples, at most `most`; None when there are no more."""
        if self._next >= len(self._batch):
            return None
        begin, self._next = self._next, min(self._next + most, len(self._batch))
        whole = begin == 0 and self._next == len(self._batch)
        return self._batch if whole else self._batch.part(slice(begin, self._next))

    @property
    def empty(self) -> bool:
        """Whether there are no more samples."""
        return self._next >= len(self._batch)


class Requests:
    """Hands out one request at a time, pulled from an iterator when a lane is free.

    Args:
        requests: a None among them means that no request waits now.
        prepare: (number, request) -> the batch of its sample, whose ticket is the number.

    Attributes:
        waiting: the requests in flight by number, which the caller removes.
        empty: whether the iterator has ended.
    """

    def __init__(self, requests: Iterator[Any], prepare: Callable[[int, Any], Batch]):
        self._requests, self._prepare, self._number = requests, prepare, 0
        self.waiting: dict[int, Any] = {}
        self.empty = False

    def take(self, most: int) -> Batch | None:
        """The next request's sample; None where no request waits."""
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
        return upload(seed, device).expand(n).contiguous()
    return torch.full((n,), signed_seed(seed), dtype=torch.int64, device=device)


@dataclasses.dataclass
class Request:
    """A request for one sample with its own arguments; see `Sampler.serve` and `Sampler.sample`.

    Tensors are one sample's, without a batch dimension, also those in cond and uncond. None for
    steps and guidance_scale means the sampler's own.
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
