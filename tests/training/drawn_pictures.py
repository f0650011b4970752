"""Draws folders of coloured pictures, a class per subfolder, each a function of its number."""

from __future__ import annotations

import colorsys
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

CLASSES = ("circle", "cross", "square", "triangle")


def picture(number: int, size: int = 32) -> Image.Image:
    """Returns picture `number`: a shape of class number mod 4, at a random place, on a gradient."""
    draw = random.Random(number)
    hue = draw.random()
    light, dark = (
        tuple(round(255 * v) for v in colorsys.hsv_to_rgb((hue + shift) % 1, 0.7, value))
        for shift, value in ((0.0, 0.95), (0.45, 0.35))
    )
    image = Image.new("RGB", (size, size), dark)
    pen = ImageDraw.Draw(image)
    for y in range(size):
        share = 0.5 * y / size
        pen.line((0, y, size, y), tuple(round(d + share * (255 - d)) for d in dark))
    r = draw.uniform(0.2, 0.35) * size
    x, y = (draw.uniform(r, size - r) for _ in range(2))
    box = (x - r, y - r, x + r, y + r)
    kind = CLASSES[number % len(CLASSES)]
    if kind == "circle":
        pen.ellipse(box, fill=light)
    elif kind == "square":
        pen.rectangle(box, fill=light)
    elif kind == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=light)
    else:
        wide = max(2, round(r / 2))
        pen.line((x - r, y - r, x + r, y + r), fill=light, width=wide)
        pen.line((x - r, y + r, x + r, y - r), fill=light, width=wide)
    return image


def draw_folder(folder: Path, count: int = 500, size: int = 32) -> Path:
    """Writes `count` PNG files into a subfolder for each class, and returns the folder."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = CLASSES[number % len(CLASSES)]
        picture(number, size).save(folder / name / f"{number:04d}.png")
    return folder


def features() -> Callable[[Tensor], Tensor]:
    """Returns a feature extractor for `fastdiff metrics`: the colours of a grid of 3 × 3 cells."""
    return lambda x: F.adaptive_avg_pool2d(x.float(), 3).flatten(1)
