"""Kinds of guidance on torch: what a row takes as the unconditional output (kernels/README.md 4.1).

A kind changes u to A c + B u + M m + X x, with four numbers for each sample that follow from sums
over it, and m the difference that an earlier row left in slot 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...table import INDEX, KEEPING, PROJECTED, ZERO_STAR
from .common import by_sample, per_sample
from .sums import halved


def reference(
    wide: Tensor, cond: Tensor, uncond: Tensor, slot: Tensor | None, x: Tensor, g: Tensor
) -> Tensor:
    """Returns the unconditional output [B, …] that guidance takes, by each sample's row.

    It is `uncond` where the row has no kind and at strength 1, which reads none.

    Args:
        wide: float64 [B, columns], the rows.
        cond, uncond, x: [B, …] of the compute type. slot: slot 4 likewise, None where there is
            none, which no row reads then.
        g: [B, 1, …] strengths.
    """
    changed = (_column(wide, "guidance_kind", x) != 0) & (g != 1)
    total = torch.zeros_like(cond)
    terms = _terms(wide, cond, uncond, slot, x, g, changed)
    for term, value in zip(terms, (cond, uncond, slot, x), strict=True):
        if value is not None:
            k = term.to(cond.dtype)
            total = torch.where(k != 0, total + k * value, total)
    return torch.where(changed, total, uncond)


def kept_difference(
    wide: Tensor, cond: Tensor, uncond: Tensor, slot: Tensor | None, g: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the differences [B, …] that rows with momentum leave in slot 4, and where they do."""
    kind = _column(wide, "guidance_kind", cond)
    momentum = _column(wide, "guidance_momentum", cond).to(cond.dtype)
    value = cond - uncond
    if slot is not None:
        value = torch.where(momentum != 0, value + momentum * slot, value)
    return value, ((kind == KEEPING[0]) | (kind == KEEPING[1])) & (g != 1)


def _terms(
    wide: Tensor,
    cond: Tensor,
    uncond: Tensor,
    slot: Tensor | None,
    x: Tensor,
    g: Tensor,
    changed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (A, B, M, X) in float64, [B, 1, …] each.

    Divisors that a sample does not need are 1, so that its gradient is a number.
    """

    def column(name: str) -> Tensor:
        return _column(wide, name, x)

    def total(values: Tensor) -> Tensor:
        return per_sample(halved(by_sample(values)).flatten(), values)

    c, u, kind = cond.double(), uncond.double(), column("guidance_kind")
    momentum, on_x = column("guidance_momentum"), column("guidance_x")
    star = kind == ZERO_STAR
    v, p = c - u, c
    if slot is not None:
        v = torch.where(momentum != 0, v + momentum * slot.double(), v)
    p = torch.where(on_x != 0, c + on_x * x.double(), c)
    v, p = torch.where(star, c, v), torch.where(star, u, p)
    vv, vp, pp = total(v * v), total(v * p), total(p * p)
    scale = vp / torch.where(star & changed, pp + 1e-8, 1.0)

    bound = column("guidance_bound")
    long = (bound > 0) & (vv.detach().sqrt() > bound) & changed & ~star
    k = torch.where(long, bound / torch.where(long, vv, 1.0).sqrt(), 1.0)
    along = 1 - column("guidance_parallel")
    projects = (along != 0) & (pp != 0) & changed & ~star
    e = torch.where(projects, k * (along * (vp / torch.where(projects, pp, 1.0))), 0.0)
    on_m, on_x = k * momentum, e * on_x
    rest = torch.where(g == 1, 1.0, 1 - g.double())
    wide_g = g.double()
    plain = (kind == PROJECTED) | (kind == KEEPING[0])
    of_cond = torch.where(plain, (1 - k) + e, wide_g * ((k - e) - 1) / rest)
    of_uncond = torch.where(plain, k, (1 - wide_g * k) / rest)
    of_memory = torch.where(plain, 0 - on_m, wide_g * on_m / rest)
    of_state = torch.where(plain, on_x, 0 - wide_g * on_x / rest)
    zero = torch.zeros_like(of_cond)
    return (
        torch.where(star, zero, of_cond),
        torch.where(star, scale, of_uncond),
        torch.where(star, zero, of_memory),
        torch.where(star, zero, of_state),
    )


def _column(wide: Tensor, name: str, like: Tensor) -> Tensor:
    """Returns a column of the rows, [B, 1, …] in float64."""
    return per_sample(wide[:, INDEX[name]], like)
