"""The data set of pictures in files: decoded on demand, resampled, augmented, cached."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..outside import shown
from . import augment
from .decode import Unreadable, channels_of, cut_from, decode, prepare
from .listing import Listing, identity, split_of
from .options import WHERE, Options


class Pictures:
    """A split of a data set of pictures, see `Data`.

    A picture is decoded when a batch needs it. Decoded pictures are kept if all of them need at
    most options.cache_mib; worker processes that are forked share them.

    Args:
        listing: the examples.
        split: `train` or `test`.
        options: how they are read.
        origin: see `Data`.

    Attributes:
        skipped: names of the pictures that options.skip_broken left out, with the reason.

    Raises ValueError in one sentence: for no examples, and for a first picture that is unreadable;
    with skip_broken for pictures none of which is readable.
    """

    levels = 256

    def __init__(
        self,
        listing: Listing,
        split: str,
        options: Options,
        origin: Mapping[str, Any] | None = None,
    ):
        self._listing, self._options = listing, options
        self.origin = dict(origin or {})
        self.classes = listing.classes
        self.skipped: list[tuple[str, str]] = []
        self._chosen = split_of(listing, split, options)
        self._channels, self._stored = 0, (0, 0, 0)  # channels and shape before a crop
        self._cache = _Cache(0, (0, 0, 0))
        if options.skip_broken:
            self._scan()
        else:
            self._like(self._first(0))
        labels = listing.labels
        kept = np.zeros(len(self._chosen), np.int64) if labels is None else labels[self._chosen]
        self.labels = torch.from_numpy(np.ascontiguousarray(kept, dtype=np.int64))
        size = " by ".join(map(str, self.shape[1:]))
        self.name = (
            f"{listing.kind} {listing.base} {split} ({self.examples:,} pictures of {size},"
            f" {self.shape[0]} channel{'s' if self.shape[0] > 1 else ''},"
            f" {identity(listing, self._chosen, options)})"
        )

    @property
    def examples(self) -> int:
        return len(self._chosen)

    @property
    def names(self) -> list[str]:
        """Of the examples."""
        return [self._listing.names[i] for i in self._chosen.tolist()]

    @property
    def parts(self) -> list[str] | None:
        """Of the examples, the split that its folder names, or ""; None where none does."""
        parts = self._listing.parts
        return None if parts is None else [parts[i] for i in self._chosen.tolist()]

    @property
    def shape(self) -> tuple[int, ...]:
        size = self._options.size
        return self._stored if size is None else (self._channels, size, size)

    def batch(self, index: Tensor, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Returns (x0 float32 [B, C, H, W] in [-1, 1], labels [B]).

        Level k becomes k/127.5 - 1, or (k + u)/128 - 1 with options.dequantize. Raises ValueError
        in one sentence, with its name, for a picture that cannot be read.
        """
        levels, o = self.pictures(index), self._options
        if o.random_crop:
            assert o.size is not None
            tops, lefts = augment.corners(seed, epoch, index, cut_from(o) - o.size)
            cut = levels.new_empty((len(index), *self.shape))
            places = zip(tops.tolist(), lefts.tolist(), strict=True)
            for row, (top, left) in enumerate(places):
                cut[row] = levels[row, :, top : top + o.size, left : left + o.size]
            levels = cut
        if o.flip:
            mirrored = augment.flipped(seed, epoch, index)
            levels[mirrored] = levels[mirrored].flip(-1)
        if o.dequantize:
            return augment.within_level(levels, seed, epoch, index), self.labels[index]
        return levels.to(torch.float32) / 127.5 - 1.0, self.labels[index]

    def pictures(self, index: Tensor) -> Tensor:
        """Returns the levels uint8 [B, C, H, W] before a random crop and flip."""
        found = np.empty((len(index), *self._stored), np.uint8)
        for row, example in enumerate(index.tolist()):
            if not -self.examples <= example < self.examples:
                raise IndexError(
                    f"{WHERE}: expected examples below {self.examples}, of {self.name}, got"
                    f" {example}."
                )
            example %= self.examples
            if not self._cache.get(example, found[row]):
                found[row] = self._levels(example)
                self._cache.put(example, found[row])
        return torch.from_numpy(found)

    def _like(self, first: np.ndarray) -> None:
        """Takes channels and size of all pictures from the first one."""
        self._channels, self._stored = len(first), first.shape
        encoded = isinstance(self._listing.store.read(int(self._chosen[0])), bytes)
        limit = self._options.cache_mib << 20
        if (encoded or self._options.size) and first.size * self.examples <= limit:
            self._cache = _Cache(self.examples, self._stored)

    def _first(self, example: int) -> np.ndarray:
        try:
            image = decode(self._listing.store.read(int(self._chosen[example])))
        except (OSError, ValueError) as error:
            raise self._broken(example, error) from None
        self._channels = self._options.channels or channels_of(image)
        return prepare(image, self._options, self._channels)

    def _levels(self, example: int) -> np.ndarray:
        try:
            image = decode(self._listing.store.read(int(self._chosen[example])))
            levels = prepare(image, self._options, self._channels)
            if levels.shape != self._stored:
                raise Unreadable(
                    f"{_size(levels.shape)} and not {_size(self._stored)} as before, so pass --size"
                )
        except (OSError, ValueError) as error:
            raise self._broken(example, error) from None
        return levels

    def _broken(self, example: int, error: Exception) -> ValueError:
        name = self._listing.names[int(self._chosen[example])]
        return ValueError(
            f"{WHERE}: expected a picture as {shown(name)[:200]} of {self._listing.where}, got"
            f" {_reason(error)}. Remove it, or pass --skip-broken."
        )

    def _scan(self) -> None:
        """Decodes everything once and leaves out what is unreadable."""
        kept: list[int] = []
        first: np.ndarray | None = None
        listing, everything = self._listing, self._chosen
        for number, example in enumerate(everything.tolist()):
            try:
                if first is None:
                    first = self._first(number)
                    self._stored = first.shape
                else:
                    self._levels(number)
                kept.append(number)
            except ValueError as error:
                self.skipped.append((listing.names[example], str(error)))
        if first is None:
            raise ValueError(
                f"{WHERE}: expected a readable picture in {listing.where}, got"
                f" {len(everything):,} others, the first of them"
                f" {shown(self.skipped[0][0])[:200]}."
            )
        self._chosen = everything[kept]
        self._like(first)


class _Cache:
    """Decoded pictures in memory that processes share when they are forked."""

    def __init__(self, examples: int, shape: tuple[int, ...]):
        self._shape = (examples, *shape)
        self._made()

    def _made(self) -> None:
        size = int(np.prod(self._shape, dtype=np.int64))
        if size:
            # anonymous shared memory: only the pages that are written to take any
            self._levels = np.frombuffer(mmap.mmap(-1, size), np.uint8).reshape(self._shape)
            self._present = np.frombuffer(mmap.mmap(-1, self._shape[0]), np.uint8)

    def get(self, example: int, out: np.ndarray) -> bool:
        """Copies a picture to out, if it is here."""
        if not self._shape[0] or not self._present[example]:
            return False
        _barrier()
        out[...] = self._levels[example]
        return True

    def put(self, example: int, levels: np.ndarray) -> None:
        if self._shape[0]:
            self._levels[example] = levels
            _barrier()
            self._present[example] = 1

    def __getstate__(self) -> dict[str, Any]:
        return {"_shape": self._shape}  # a process that is not forked starts with an empty one

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._made()


def _barrier() -> None:
    """Orders a picture before its mark, for other processes on other cores."""
    with threading.Lock():
        pass


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} by {shape[1]} pixels"


def _reason(error: Exception) -> str:
    found = (error.strerror if isinstance(error, OSError) else None) or error
    return shown(found)[:200].rstrip(".")
