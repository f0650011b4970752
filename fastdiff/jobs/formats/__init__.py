"""The formats that samples are kept in.

A format turns the block of samples of one unit into named files and reads it back; it also streams
a whole dataset into what other tools expect (`fastdiff export`). Formats hold no state, know
nothing of folders' commits, and write the same
bytes for the same block: no times, owners, hosts or orders of dicts.
"""

from __future__ import annotations

from .block import Block, Format, Source, pixels_sha256, shard_name
from .latents import Latents
from .npy import Npy
from .npz import Npz
from .png import Png
from .webdataset import WebDataset

FORMATS: dict[str, Format] = {f.name: f for f in (Npy(), Npz(), Png(), WebDataset(), Latents())}

__all__ = ["FORMATS", "Block", "Format", "Source", "pixels_sha256", "shard_name"]
