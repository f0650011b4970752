"""From the data range [-1, 1] to pictures: 8-bit levels and labelled grids."""

from __future__ import annotations

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


def grid(
    pictures: np.ndarray, labels: np.ndarray | None, names: Sequence[str], *, columns: int = 16
) -> Image.Image:
    """Pictures [N, H, W, C] uint8 on one sheet; with labels [N], one or more rows per class with
    its name at the left.
    """
    height, width = pictures.shape[1:3]
    scale = max(1, 56 // height)
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
            picture = pictures[index]
            image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
            image = image.convert("RGB").resize(
                (width * scale, height * scale), Image.Resampling.NEAREST
            )
            sheet.paste(image, (margin + x * cell_w + scale, y * cell_h + scale))
    return sheet
