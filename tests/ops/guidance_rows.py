"""Rows of every kind of guidance, and inputs for them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.table import COLUMNS, INDEX

PLAIN: dict[str, float] = {"guidance_kind": 0}
KINDS: dict[str, dict[str, float]] = {
    "zero star": {"guidance_kind": 1},
    "projected": {"guidance_kind": 2},
    "a part along": {"guidance_kind": 2, "guidance_parallel": 0.3, "guidance_bound": 4.0},
    "bounded only": {"guidance_kind": 2, "guidance_parallel": 1.0, "guidance_bound": 2.0},
    "on x0": {"guidance_kind": 2, "guidance_x": -0.7, "guidance_bound": 9.0},
    "from u": {"guidance_kind": 3, "guidance_bound": 3.0},
    "from u, on x0": {"guidance_kind": 3, "guidance_parallel": -0.5, "guidance_x": 1.2},
    "first of momentum": {"guidance_kind": 4, "guidance_bound": 5.0},
    "momentum": {"guidance_kind": 4, "guidance_momentum": -0.75, "guidance_bound": 6.0},
    "momentum, on x0": {"guidance_kind": 4, "guidance_momentum": 0.4, "guidance_x": -1.1},
    "momentum, from u": {"guidance_kind": 5, "guidance_momentum": -0.5, "guidance_parallel": 0.2},
}
GAMMA = [7.5, 0.0, 1.0, -2.0, 3.0]
SHAPE = (5, 3, 211)


def table_of(*rows: dict[str, float], **columns: float) -> Tensor:
    """Returns a row for each kind, whose next x is the output; `s1__x` is the column s1.x."""
    table = torch.zeros(len(rows), len(COLUMNS), dtype=torch.float64)
    for at, row in enumerate(rows):
        given = {"network": 1, "input_scale": 1, "guidance_weight": 1, "x__out": 1}
        for column, value in (given | row | columns).items():
            table[at, INDEX[column.replace("__", ".")]] = value
    return table


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns x, the network's output, four slots and strengths; c and u are alike."""
    g = torch.Generator().manual_seed(seed)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x, cond, apart = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
    output = torch.cat([cond, 0.8 * cond + 0.5 * apart])
    slots = torch.randn((4, *shape), generator=g, dtype=torch.float64).to(compute)
    gamma = torch.tensor(GAMMA * shape[0], dtype=compute)[: shape[0]]
    return x.to(dtype), output.to(dtype), slots, gamma
