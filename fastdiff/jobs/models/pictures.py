"""The condition of super-resolution: a small picture for each sample, from files or an array.

A picture of the small size is used as it is. One of the model's own size is made small first, as in
training: by the means of blocks, on 256 levels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...outside import shown
from .conditioning import Conditioning, Halves, InvalidEntry

_WHERE = "fastdiff.jobs"
_MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
Pictures = Sequence[str | PathLike[str]] | np.ndarray


class SmallPictures(Conditioning):
    """Entries are small pictures, uint8 [C, h, w]; cond = {"image": enlarge(small)}.

    There is no unconditional half.

    Args:
        shape: of the model's samples, (C, H, W).
        factor: H/h and W/w.
        reduce, enlarge: [B, C, H, W] -> [B, C, h, w] and back, in [-1, 1].
    """

    KEYS = frozenset({"small"})  # of `identity`

    def __init__(
        self,
        shape: Sequence[int],
        factor: int,
        reduce: Callable[[Tensor], Tensor],
        enlarge: Callable[[Tensor], Tensor],
    ):
        channels, height, width = shape
        self.full = (channels, height, width)
        self.small = (channels, height // factor, width // factor)
        self.reduce, self.enlarge = reduce, enlarge
        self.identity = {"small": list(self.small)}

    def parse(self, value: Any) -> Any:
        raise InvalidEntry("small pictures by --image (in Python images=) for this model", value)

    def conditions(self, entries: Sequence[Any]) -> Halves:
        small = torch.from_numpy(np.stack(entries)).float() / 127.5 - 1
        return {"image": self.enlarge(small)}, None

    def read(self, pictures: Pictures) -> np.ndarray:
        """Returns the small pictures, uint8 [n, C, h, w].

        Args:
            pictures: paths of picture files, or of folders of them, in the order of their names; or
                an array, uint8 [n, C, H, W] or [n, C, h, w].

        Raises ValueError and FileNotFoundError in one sentence that names the file.
        """
        if isinstance(pictures, np.ndarray):
            if pictures.dtype != np.uint8 or pictures.ndim != 4 or not len(pictures):
                raise ValueError(
                    f"{_WHERE}: expected images as uint8 [n, C, H, W], got {pictures.dtype}"
                    f" {list(pictures.shape)}."
                )
            return self._small(pictures, "the array")
        if isinstance(pictures, (str, PathLike)):
            raise ValueError(f"{_WHERE}: expected images as a list of paths, got one path.")
        parts = [self._small(self._open(path)[None], shown(path)) for path in _files(pictures)]
        if not parts:
            raise ValueError(f"{_WHERE}: expected at least one image, got none.")
        return np.concatenate(parts)

    def _open(self, path: Path) -> np.ndarray:
        """Returns a picture file as uint8 [C, H, W], with the model's number of channels."""
        mode = _MODES.get(self.full[0])
        if mode is None:
            raise ValueError(
                f"{_WHERE}: expected a model of 1 or 3 channels for picture files, got one of"
                f" {self.full[0]}. Pass images as an array."
            )
        try:
            with warnings.catch_warnings(), Image.open(path) as picture:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                self._refuse_size((self.full[0], picture.height, picture.width), shown(path))
                pixels = np.array(picture.convert(mode))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{_WHERE}: expected a picture in {shown(path)}, got no such file."
            ) from None
        except (OSError, SyntaxError, Warning, Image.DecompressionBombError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"{_WHERE}: expected a picture in {shown(path)}, got {type(error).__name__}:"
                f" {shown(reason)}."
            ) from None
        return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))

    def _refuse_size(self, size: tuple[int, ...], name: str) -> None:
        if size not in (self.full, self.small):
            raise ValueError(
                f"{_WHERE}: expected pictures of {list(self.small)} (channels, height, width), or"
                f" of {list(self.full)} to make small, got {list(size)} in {name}."
            )

    def _small(self, pictures: np.ndarray, name: str) -> np.ndarray:
        self._refuse_size(pictures.shape[1:], name)
        if pictures.shape[1:] == self.small:
            return pictures
        x0 = torch.from_numpy(pictures).float() / 127.5 - 1
        return ((self.reduce(x0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def _files(paths: Sequence[str | PathLike[str]]) -> list[Path]:
    """Returns the files, with the picture files of a folder in the order of their names."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(
                    f"{_WHERE}: expected pictures ({', '.join(SUFFIXES)}) in the folder"
                    f" {shown(path)}, got none."
                )
            found += inside
        else:
            found.append(path)
    return found
