"""Latents of an autoencoder, computed once: mean and deviation are stored, each epoch draws anew.

    x0 = f · (m + s ε - shift - μ)/ς,    ε ~ N(0, I) for each (seed, epoch, example)

m, s are the encoder's mean and standard deviation of an example, and f, shift, μ, ς the scaling
factor, the shift and the statistics in the config of a diffusers autoencoder (1, 0, 0, 1 where it
has none). OUT.npy is float32 [N, 2, C, h, w]; OUT.json has everything else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..outside import parse_json, read_bytes, shown
from . import augment
from . import labels as label_files
from .arrays import Rows, Vectors, file_digest, map_npy
from .listing import Listing, Numbers
from .options import WHERE, Options

FORMAT = "fastdiff latents 1"
KEYS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]  # x0 -> (m, s), each [B, C, h, w]


class Latents(Vectors):
    """A split of latents, see `Data`; they are continuous, so `levels` is None."""

    def __init__(
        self,
        listing: Listing,
        split: str,
        options: Options,
        origin: Mapping[str, Any] | None = None,
    ):
        super().__init__(listing, split, options, origin)
        facts = listing.facts
        channels = self.shape[0]
        across = (channels, *(1,) * (len(self.shape) - 1))
        mean = torch.tensor(facts["latents_mean"] or [0.0] * channels).reshape(across)
        std = torch.tensor(facts["latents_std"] or [1.0] * channels).reshape(across)
        self._add = -(mean + (facts["shift_factor"] or 0.0))
        self._times = (facts["scaling_factor"] or 1.0) / std

    @property
    def shape(self) -> tuple[int, ...]:
        return super().shape[1:]

    def batch(self, index: Tensor, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Returns (x0 float32 [B, C, h, w], labels [B]); see the module for the formula."""
        moments, labels = super().batch(index)
        mean, deviation = moments.unbind(1)
        noise = augment.normals(mean[0].numel(), seed, epoch, index).reshape(mean.shape)
        return (mean + deviation * noise + self._add) * self._times, labels


def is_latents(path: Path) -> bool:
    """Whether there is a JSON file that `write` wrote with an npy file."""
    beside = path.with_suffix(".json")
    try:
        value = parse_json(read_bytes(beside))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def latents_file(path: Path, options: Options) -> Listing:
    """Returns the listing of an npy file of latents. Raises ValueError in one sentence."""
    beside = path.with_suffix(".json")
    facts = parse_json(read_bytes(beside))
    array = map_npy(path, "latents")
    wrong = _wrong(facts, array)
    if wrong:
        raise ValueError(
            f"{WHERE}: expected what `fastdiff data latents` writes in {shown(beside)}, got {wrong}"
            f" for {shown(path)}. The two files do not belong together."
        )
    labels, classes = facts["labels"], facts["classes"]
    if options.label_file not in (None, "none"):
        raise ValueError(
            f"{WHERE}: expected the labels of {shown(path)} in {shown(beside)}, got label_file"
            f" {shown(options.label_file)}. Label the pictures, and write the latents again."
        )
    numbers: np.ndarray | None = None
    if labels is not None and options.label_file is None:
        numbers, classes = label_files.numbered(labels, classes, str(beside))
    else:
        classes = ()
    names = facts["names"] if facts["names"] is not None else Numbers(len(array))
    rows = Rows(array, partial(map_npy, path, "latents"))
    return Listing(
        "latents",
        path.resolve().name,
        names,
        [array[0].nbytes] * len(array),
        rows,
        numbers,
        tuple(classes),
        facts["parts"],
        digest=f"{[facts[k] for k in KEYS]} {file_digest(path)}",
        facts={"rows": rows, **{k: facts[k] for k in KEYS}},
    )


def check_target(out: Path) -> None:
    """Raises ValueError for a path that latents are not written to."""
    if out.suffix != ".npy":
        raise ValueError(f"{WHERE}: expected a path that ends in .npy, got {shown(out)}.")


def write(
    data: Any,
    encode: Encode,
    out: Path,
    facts: Mapping[str, Any],
    *,
    batch_size: int = 16,
    progress: Callable[[int], Any] = lambda done: None,
) -> tuple[int, ...]:
    """Encodes all examples of a data set into OUT.npy and OUT.json; returns the shape of a latent.

    Args:
        data: a data set of pictures, see `Data`, without augmentation.
        encode: x0 [B, C, H, W] -> (mean, standard deviation), each [B, c, h, w].
        out: the path OUT.npy.
        facts: `KEYS` of the autoencoder, and what else OUT.json should say about it.
        batch_size: pictures that are encoded together.
        progress: called with the number of pictures of each batch.

    The files appear whole, or not at all if the process is killed. Raises ValueError for latents
    that are not finite.
    """
    check_target(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.parent / f".{out.name}.{os.getpid()}.tmp"
    array: Any = None
    labels: list[int] = []
    try:
        for index in torch.arange(data.examples).split(batch_size):
            x0, condition = data.batch(index)
            if not isinstance(condition, Tensor):
                raise ValueError(
                    f"{WHERE}: expected labels or nothing with the pictures of {data.name}, got"
                    f" {sorted(condition)}. Leave them out."
                )
            mean, deviation = encode(x0)
            both = torch.stack([mean, deviation], 1).float().cpu().numpy()
            if not np.isfinite(both).all():
                raise ValueError(
                    f"{WHERE}: expected finite latents of {data.name}, got others among the"
                    f" examples {int(index[0])}-{int(index[-1])}. Encode them in float32."
                )
            if array is None:
                shape = (data.examples, *both.shape[1:])
                array = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
            array[index.numpy()] = both
            labels += condition.tolist()
            progress(len(index))
        array.flush()
        description = {
            "format": FORMAT,
            "examples": data.examples,
            **{k: facts.get(k) for k in KEYS},
            "data": data.name,
            "classes": list(data.classes),
            "labels": labels if data.classes else None,
            "names": _listed(getattr(data, "names", None)),
            "parts": _listed(getattr(data, "parts", None)),
            **{k: v for k, v in facts.items() if k not in KEYS},
        }
        beside = out.with_suffix(".json")
        text = out.parent / f".{beside.name}.{os.getpid()}.tmp"
        text.write_text(json.dumps(description), encoding="utf-8")
        beside.unlink(missing_ok=True)  # never the old text with the new array
        os.replace(unfinished, out)
        os.replace(text, beside)
    finally:
        unfinished.unlink(missing_ok=True)
    return tuple(array.shape[2:])


def _listed(values: Sequence[str] | None) -> list[str] | None:
    # names that are no Unicode become escapes, which JSON can hold
    return None if values is None else [shown(v) for v in values]


def _wrong(facts: Any, array: np.ndarray) -> str | None:
    """Returns what does not fit in the description of an array of latents, None where all fits."""
    n = len(array)
    if array.dtype != np.float32 or array.ndim < 4 or array.shape[1] != 2 or not array.size:
        return f"{array.dtype} {list(array.shape)}"
    channels = array.shape[2]

    def number(v: Any) -> bool:
        return v is None or type(v) in (int, float)

    def listed(v: Any, length: int | None, kind: tuple[type, ...]) -> bool:
        if v is None:
            return True
        return (
            isinstance(v, list)
            and (length is None or len(v) == length)
            and all(type(entry) in kind for entry in v)
        )

    checks = {
        "scaling_factor": number(facts.get("scaling_factor", "")),
        "shift_factor": number(facts.get("shift_factor", "")),
        "latents_mean": listed(facts.get("latents_mean", ""), channels, (int, float)),
        "latents_std": listed(facts.get("latents_std", ""), channels, (int, float)),
        "labels": listed(facts.get("labels", ""), n, (int,)),
        "names": listed(facts.get("names", ""), n, (str,)),
        "parts": listed(facts.get("parts", ""), n, (str,)),
        "classes": isinstance(facts.get("classes"), list)
        and listed(facts.get("classes"), None, (str,)),
    }
    return next((f"another {key}" for key, fits in checks.items() if not fits), None)
