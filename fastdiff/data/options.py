"""What is done with the pictures of a data set: size, channels, augmentation, split, limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from PIL import Image

from ..outside import shown

WHERE = "fastdiff.data"
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}
LARGEST_SIZE = 8192  # of a side
CROP_SHARE = 0.875  # of the side that a random crop keeps


@dataclass(frozen=True)
class Options:
    """How a data set of files is read.

    Attributes:
        size: of the square that each picture becomes. The largest centred square is resampled with
            the filter over its whole support, so a reduction does not alias. None: the pictures
            have one size.
        filter: `lanczos` (windowed sinc of 3 lobes) or `box` (the mean of the covered area).
        channels: 1 (luma, ITU-R 601) or 3; None: 3, or 1 where the first picture is grey.
        random_crop: resample to size/0.875 and draw where the square of `size` is cut out.
        flip: mirror half of the examples left to right.
        dequantize: level k becomes (k + u)/128 - 1, u uniform in (0, 1), and not k/127.5 - 1.
        label_file: of the labels; None finds it, or takes the folders; "none" leaves labels out.
        test_share: of the examples that the split `test` gets, by a hash of their names.
        skip_broken: decode everything first, and leave out what can't be read.
        cache_mib: decoded pictures are kept in memory if all need at most this many MiB.

    Raises ValueError for values that are none of these.
    """

    size: int | None = None
    filter: str = "lanczos"
    channels: int | None = None
    random_crop: bool = False
    flip: bool = False
    dequantize: bool = False
    label_file: str | None = None
    test_share: float | None = None
    skip_broken: bool = False
    cache_mib: int = 1024

    def __post_init__(self) -> None:
        checks = {
            f"size in 1…{LARGEST_SIZE}": self.size is None or 1 <= self.size <= LARGEST_SIZE,
            f"filter in {list(FILTERS)}": self.filter in FILTERS,
            "channels 1 or 3": self.channels in (None, 1, 3),
            "test_share in (0, 1)": self.test_share is None or 0 < self.test_share < 1,
            "cache_mib >= 0": self.cache_mib >= 0,
        }
        for condition, holds in checks.items():
            if not holds:
                got = getattr(self, condition.split()[0])
                raise ValueError(f"{WHERE}: expected {condition}, got {shown(got)}.")
        if self.random_crop and self.size is None:
            raise ValueError(f"{WHERE}: expected size with random_crop, got none. Pass --size.")

    def stored(self) -> dict[str, Any]:
        """Returns what differs from the defaults and changes the data, for JSON."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default and f.name != "cache_mib"
        }

    def plain(self) -> Options:
        """Returns the options without what is drawn, as evaluation needs them."""
        return dataclasses.replace(self, random_crop=False, flip=False, dequantize=False)


NAMES = tuple(f.name for f in dataclasses.fields(Options))


def from_stored(value: Any, where: str, **others: Any) -> Options:
    """Returns the options that `Options.stored` wrote, with others on top of them.

    where: they were found, for messages. Raises ValueError for content that is nothing of the kind.
    """
    hints = get_type_hints(Options)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{WHERE}: expected an object of options in {shown(where)}, got {type(value).__name__}."
        )
    for name, entry in value.items():
        hint = hints.get(name)
        number = type(entry) is int and hint == float | None
        if hint is None or not (number or any(type(entry) is t for t in _types(hint))):
            raise ValueError(
                f"{WHERE}: expected options of a data set in {shown(where)}, got"
                f" {shown(repr(name))[:60]} = {shown(repr(entry))[:60]}."
            )
    return Options(**{**value, **others})


def _types(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__args__", (hint,))
