"""Any map-style data set of PyTorch as a data set of fastdiff."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..outside import shown
from . import augment
from .contract import Condition
from .decode import Unreadable, channels_of, decode, prepare
from .options import WHERE, Options

X = ("x0", "x", "image", "img", "pixel_values", "images", "png", "jpg")  # keys of dict items
_PROBED = 3  # examples whose content is part of the name
_DOMAIN = 0x64726177  # of the seeds of a data set's own random numbers


def wrap(
    dataset: Any,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    channels: int | None = None,
    flip: bool = False,
) -> Wrapped:
    """Returns a data set, see `Data`, of a map-style `torch.utils.data.Dataset`.

    Args:
        dataset: has `len` and `[i]`. An item is x, (x, label), (x, dict of conditions), or a dict
            with x under one of `X` and conditions under other keys; a single condition that is a
            whole number is the label. x is a picture of Pillow's, or an array or tensor: uint8
            [H, W], [H, W, C] or [C, H, W] is a picture; floating point is used as it is, so scale
            pictures to [-1, 1].
        name: for provenance; by default that of the class.
        classes: the names of the labels; by default the data set's `classes`, or numbers up to its
            largest label, for which every item is read once.
        size, channels, flip: of pictures, see `Options`.

    The global random numbers of torch, NumPy and Python are set for each item by (seed, epoch,
    index), and put back after it: what a transform draws is the same in any worker process.

    Raises TypeError for other objects, ValueError for items of other forms, in one sentence.
    """
    return Wrapped(dataset, name, classes, Options(size=size, channels=channels, flip=flip))


class Wrapped:
    """See `wrap`."""

    def __init__(
        self, dataset: Any, name: str | None, classes: Sequence[str] | None, options: Options
    ):
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"{WHERE}: expected a map-style data set with len and [index], got"
                f" {type(dataset).__name__}. An iterable one has no order to repeat."
            )
        self._dataset, self._options = dataset, options
        self._base = shown(name or type(dataset).__name__)
        self.origin: dict[str, Any] = {}
        self.examples = len(dataset)
        if not self.examples:
            raise ValueError(f"{WHERE}: expected examples in {self._base}, got none.")
        self._shape: tuple[int, ...] | None = None
        self._channels = options.channels or 0
        self._labelled = True
        x, condition = self._example(0, 0, 0)
        self.levels = 256 if x.dtype == np.uint8 else None
        self._shape, self._keys = x.shape, _keys(condition)
        self.classes = self._classes(classes)
        self.name = (
            f"dataset {self._base} ({self.examples:,} of shape {list(x.shape)}, {self._digest()})"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        assert self._shape is not None
        return self._shape

    def batch(self, index: Tensor, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Condition]:
        """Returns (x0 float32 [B, …], labels [B] or a dict of conditions [B, …])."""
        found = [self._example(i, seed, epoch) for i in index.tolist()]
        stacked = np.stack([x for x, _ in found]) if found else np.zeros((0, *self.shape))
        x0 = torch.from_numpy(stacked)
        if self.levels is not None:
            if self._options.flip:
                mirrored = augment.flipped(seed, epoch, index)
                x0[mirrored] = x0[mirrored].flip(-1)
            x0 = x0.to(torch.float32) / 127.5 - 1.0
        if self._keys is None:
            return x0.float(), torch.tensor([c for _, c in found], dtype=torch.int64)
        return x0.float(), {k: torch.stack([c[k] for _, c in found]) for k in self._keys}

    def _example(self, i: int, seed: int, epoch: int) -> tuple[np.ndarray, Any]:
        """Returns (x as uint8 [C, H, W] or float32, the label or {name: tensor})."""
        with _random_numbers(seed, epoch, i):
            item = self._dataset[i]
        x, condition = self._parts(item, i)
        try:
            x = self._levels(x)
        except Unreadable as error:
            raise self._wrong(f"a picture as example {i}", str(error)) from None
        if self._shape is not None and x.shape != self._shape:
            raise self._wrong(f"shape {list(self._shape)} of example {i}", str(list(x.shape)))
        if self._shape is None:
            self._labelled = condition is not None
        try:
            condition = _tensors(condition)
        except (TypeError, ValueError, RuntimeError):
            raise self._wrong(
                f"a label or conditions of numbers with example {i}", type(condition).__name__
            ) from None
        if self._shape is not None and _keys(condition) != self._keys:
            wanted = "a label" if self._keys is None else f"the conditions {list(self._keys)}"
            raise self._wrong(f"{wanted} with example {i}", "others")
        if type(condition) is int and hasattr(self, "classes"):
            if not 0 <= condition < max(len(self.classes), 1):
                expected = f"labels in 0…{max(len(self.classes), 1) - 1}"
                raise self._wrong(expected, f"{condition} with example {i}")
        return x, condition

    def _parts(self, item: Any, i: int) -> tuple[Any, Any]:
        """Returns (x, condition) of an item."""
        if isinstance(item, Mapping):
            key = next((k for k in X if k in item), None)
            if key is None:
                raise self._wrong(f"x under one of {list(X)} in item {i}", f"{sorted(item)[:6]}")
            return item[key], {k: v for k, v in item.items() if k != key} or None
        if isinstance(item, (tuple, list)):
            if len(item) == 1:
                return item[0], None
            if len(item) == 2:
                return item[0], item[1]
            raise self._wrong(f"item {i} as (x, label) or (x, dict)", f"{len(item)} values")
        return item, None

    def _levels(self, x: Any) -> np.ndarray:
        """Returns a picture as uint8 [C, H, W], continuous data as float32."""
        if isinstance(x, Image.Image):
            x = np.asarray(x.convert("RGBA") if x.mode in ("P", "PA", "LA", "CMYK") else x)
            if x.dtype == np.bool_:
                x = x.astype(np.uint8) * 255
        array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        if array.dtype.kind == "f" and array.ndim:
            if not np.isfinite(array).all():
                raise Unreadable("numbers that are not finite")
            return np.ascontiguousarray(array, np.float32)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise Unreadable(f"{array.dtype} {list(array.shape)}")
        if array.ndim == 2:
            array = array[..., None]
        elif array.shape[-1] not in (1, 3, 4):
            array = array.transpose(1, 2, 0)
        if array.shape[-1] not in (1, 3, 4):
            raise Unreadable(f"uint8 {list(array.shape)}")
        image = decode(np.ascontiguousarray(array))
        self._channels = self._channels or channels_of(image)
        return prepare(image, self._options, self._channels)

    def _classes(self, given: Sequence[str] | None) -> tuple[str, ...]:
        if given is None:
            found = getattr(self._dataset, "classes", None)
            given = found if isinstance(found, (list, tuple)) else None
        if self._keys is not None or not self._labelled:
            return ()
        if given is not None:
            return tuple(map(str, given))
        tensors = getattr(self._dataset, "tensors", None)
        if isinstance(tensors, tuple) and len(tensors) == 2 and isinstance(tensors[1], Tensor):
            labels = tensors[1].tolist()
        else:
            labels = [_tensors(self._parts(self._dataset[i], i)[1]) for i in range(self.examples)]
        wrong = next((v for v in labels if type(v) is not int or not 0 <= v < 1 << 16), None)
        if wrong is not None:
            raise self._wrong("labels as whole numbers from 0", shown(repr(wrong))[:60])
        return tuple(map(str, range(max(labels) + 1)))

    def _digest(self) -> str:
        digest = hashlib.sha256(f"{sorted(self._options.stored().items())}".encode())
        for k in range(_PROBED):
            x, _ = self._example(k * (self.examples - 1) // (_PROBED - 1), 0, 0)
            digest.update(x.tobytes())
        return digest.hexdigest()[:12]

    def _wrong(self, expected: str, got: str) -> ValueError:
        return ValueError(f"{WHERE}: expected {expected} of {self._base}, got {shown(got)[:200]}.")


def _tensors(condition: Any) -> Any:
    """Returns a label as an int, other conditions as {name: tensor}."""
    if condition is None:
        return 0  # all examples have the one label of data without classes
    if isinstance(condition, Mapping):
        if len(condition) == 1 and isinstance(_tensors(next(iter(condition.values()))), int):
            return _tensors(next(iter(condition.values())))
        return {str(k): torch.as_tensor(v) for k, v in condition.items()}
    if isinstance(condition, (bool, np.bool_)):
        return int(condition)
    if isinstance(condition, (int, np.integer)):
        return int(condition)
    if isinstance(condition, (Tensor, np.ndarray)) and condition.ndim == 0:
        value = condition.item()
        return value if type(value) is int else {"y": torch.as_tensor(condition)}
    return {"y": torch.as_tensor(condition)}


def _keys(condition: Any) -> tuple[str, ...] | None:
    """Returns the names of conditions, None for a label."""
    return tuple(sorted(condition)) if isinstance(condition, dict) else None


@contextmanager
def _random_numbers(seed: int, epoch: int, i: int) -> Iterator[None]:
    """Sets the global random numbers of the block by an example, and puts them back after it."""
    words = np.random.SeedSequence([seed ^ _DOMAIN, epoch, i]).generate_state(2, np.uint64)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.random.default_generator.manual_seed(int(words[0]))
        np.random.seed(int(words[1]) % 2**32)
        random.seed(int(words[1]))
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
