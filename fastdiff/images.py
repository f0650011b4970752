"""From the data range [-1, 1] to pictures: 8-bit levels, labelled grids, and points as dots."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """round(127.5 (x + 1)) clipped to [0, 255], uint8: the inverse of x = level/127.5 - 1.

    Raises ValueError when x holds NaN.
    """
    if bool(torch.isnan(x).any()):
        raise ValueError(
            "fastdiff.to_uint8: expected numbers, got NaN. The network or the schedule diverged."
        )
    return levels(x)


def levels(x: Tensor) -> Tensor:
    """`to_uint8` without the check for NaN, which would read the device; NaN becomes an arbitrary
    level.
    """
    return ((x.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def enlarged(height: int) -> int:
    """Returns how many times as large pictures of this height are on a sheet."""
    return max(1, 56 // height)


def grid(
    pictures: np.ndarray, labels: np.ndarray | None, names: Sequence[str], *, columns: int = 16
) -> Image.Image:
    """Pictures [N, H, W, C] uint8 on one sheet; with labels [N], one or more rows per class with
    its name at the left.

    More than 2·columns classes would make a strip: their pictures fill a square, ordered by class,
    each above its class's name, of which as much is written as fits.
    """
    if labels is not None and len(np.unique(labels)) > 2 * columns:
        return _captioned(pictures, labels, names)
    height, width = pictures.shape[1:3]
    scale = enlarged(height)
    cell_h, cell_w = (height + 2) * scale, (width + 2) * scale
    groups = [("", np.arange(len(pictures)))]
    if labels is not None:
        present = sorted(set(labels.tolist()))
        groups = [
            (names[k] if k < len(names) else str(k), np.flatnonzero(labels == k)) for k in present
        ]
    columns = min(columns, max(len(members) for _, members in groups))
    rows = [
        (name if start == 0 else "", members[start : start + columns])
        for name, members in groups
        for start in range(0, len(members), columns)
    ]
    font = ImageFont.load_default(size=12 * scale / 2 + 6)
    margin = int(max(font.getlength(name) for name, _ in rows)) + (
        4 * scale if labels is not None else 0
    )
    sheet = Image.new("RGB", (margin + columns * cell_w, len(rows) * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (name, members) in enumerate(rows):
        draw.text((2 * scale, y * cell_h + cell_h // 2), name, fill="black", font=font, anchor="lm")
        for x, index in enumerate(members):
            at = (margin + x * cell_w + scale, y * cell_h + scale)
            sheet.paste(_enlarged(pictures[index], scale), at)
    return sheet


def _captioned(pictures: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    height, width = pictures.shape[1:3]
    scale = enlarged(height)
    font = ImageFont.load_default(size=12)
    cell_w, cell_h = (width + 2) * scale, (height + 2) * scale + 14
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * cell_w, rows * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(np.argsort(labels, kind="stable").tolist()):
        x, y = place % columns * cell_w + scale, place // columns * cell_h + scale
        sheet.paste(_enlarged(pictures[index], scale), (x, y))
        label = int(labels[index])
        name = names[label] if label < len(names) else str(label)
        while font.getlength(name) > width * scale:
            name = name[:-1]
        draw.text((x, y + height * scale), name, fill="black", font=font)
    return sheet


def _enlarged(picture: np.ndarray, scale: int) -> Image.Image:
    height, width, channels = picture.shape
    image = Image.fromarray(picture[..., 0] if channels == 1 else picture).convert("RGB")
    return image.resize((width * scale, height * scale), Image.Resampling.NEAREST)


def scatter(points: np.ndarray, *, size: int = 512, dot: int = 3) -> Image.Image:
    """Points of the plane [N, 2] as dots, darker where many are; the first coordinate to the right.

    Both axes have the same scale. The picture shows all points that are finite.
    """
    points = points[np.isfinite(points).all(1)].astype(np.float64)
    shades = np.zeros((size, size))
    if len(points):
        low, high = points.min(0), points.max(0)
        scale = (size - 8 * dot) / max(float((high - low).max()), 1e-12)
        column, row = (((points - (low + high) / 2) * (scale, -scale)) + size / 2).T.astype(int)
        for down in range(dot):
            for right in range(dot):
                at = row + down - dot // 2, column + right - dot // 2
                np.add.at(shades, at, 1.0)
    light = 0.6 ** shades[..., None]
    colours = 255 * light + np.array([27, 108, 168]) * (1 - light)
    return Image.fromarray(colours.round().astype(np.uint8))
