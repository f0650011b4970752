"""The formats that samples are stored in.

A format writes the samples of one unit to named files and reads them back; it also streams a whole
dataset into the layout that other tools read (`fastdiff export`). A new format is one module with a
subclass of `Format`, and one entry of FORMATS.
"""

from __future__ import annotations

from .base import Format
from .block import Block, Source, pixels_sha256, shard_name
from .latents import Latents
from .npy import Npy
from .npz import Npz
from .png import Png
from .webdataset import WebDataset

FORMATS: dict[str, Format] = {f.name: f for f in (Npy(), Npz(), Png(), WebDataset(), Latents())}

__all__ = ["FORMATS", "Block", "Format", "Source", "pixels_sha256", "shard_name"]
