"""`reverse_step` on torch: one row of a plan per sample, and its vector-Jacobian product.

Rows are linear in (x, out, slots, noise) apart from the clip, so the gradient is the transposed combination.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..table import INDEX, OPERANDS, reads, uses
from .common import checked_index, compute_dtype, per_sample
from .q_sample import regenerate

ROW_ERROR = "fastdiff.reverse_step: expected row in [0, {size}), got {value} at index {at}. Rows belong to the table."


class Row(NamedTuple):
    """Everything a step reads, evaluated: coefficients [B, 54] and the operands of the combinations."""

    c: Tensor
    mask: int
    operands: dict[str, Tensor | None]
    strength: Tensor | None  # [B, 1, …], guidance
    z_scale: Tensor | None  # exp(half log-variance), per element
    unclipped: Tensor | None  # where x0 was not clipped
    valid: Tensor | None

    def coefficient(self, name: str) -> Tensor:
        """[B, 1, …]"""
        return per_sample(self.c[:, INDEX[name]], self.operands["x"])  # type: ignore[arg-type]

    def combine(self, names: list[tuple[str, Tensor | None]]) -> Tensor:
        """sum of coefficient·operand over (column, operand), from +0 and in order, zero coefficients unread."""
        total = torch.zeros_like(self.operands["x"])  # type: ignore[arg-type]
        for name, value in names:
            if uses(self.mask, name) and value is not None:
                k = self.coefficient(name)
                total = torch.where(k != 0, total + k * value, total)
        return total


def reverse_step(
    x_s: Tensor,
    x_t: Tensor,
    model_output: Tensor | None,
    table: Tensor,
    row: Tensor,
    slots: Tensor | None,
    noise: Tensor | None,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    guidance: Tensor | None,
    gradient: Tensor | None,
    stream: int,
    fast: bool,
    used: int,
    slots_out: Tensor | None,
    x0_out: Tensor | None,
    input_out: Tensor | None,
    row_out: Tensor | None,
) -> None:
    r = evaluate(
        x_t,
        model_output,
        table,
        row,
        slots,
        noise,
        seed,
        seeds,
        sample_ids,
        guidance,
        gradient,
        stream,
        fast,
        used,
        ROW_ERROR,
    )
    x = r.combine([(f"x.{o}", r.operands[o]) for o in OPERANDS])
    if r.valid is not None:
        x = torch.where(per_sample(r.valid, x), x, torch.nan)
    fresh = [r.combine([(f"s{i + 1}.{o}", r.operands[o]) for o in OPERANDS]) for i in _slots(slots_out)]
    follow = r.c[:, INDEX["next"]].to(torch.int64)
    # every read is done: the outputs may be the inputs' memory
    for i, value in enumerate(fresh):
        written = per_sample(_written(r.c, i), value)
        keep = slots[i] if slots is not None else slots_out[i]  # type: ignore[index]
        slots_out[i].copy_(torch.where(written, value, keep))  # type: ignore[index]
    x_s.copy_(x)
    if x0_out is not None:
        x0_out.copy_(r.operands["x0"])  # type: ignore[arg-type]
    if input_out is not None:
        scale = table[:, INDEX["input_scale"]].index_select(0, follow.clamp(0, len(table) - 1)).to(x.dtype)
        scaled = per_sample(scale, x) * x
        input_out.copy_(scaled if len(input_out) == len(x) else torch.cat([scaled, scaled]))
    if row_out is not None:
        row_out.copy_(follow)


def evaluate(
    x_t: Tensor,
    model_output: Tensor | None,
    table: Tensor,
    row: Tensor,
    slots: Tensor | None,
    noise: Tensor | None,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    guidance: Tensor | None,
    gradient: Tensor | None,
    stream: int,
    fast: bool,
    used: int,
    message: str | None = None,
) -> Row:
    """Sections 4.1 to 4.5 of kernels/README.md: all operands of the row's combinations."""
    batch, compute = x_t.shape[0], compute_dtype(x_t)
    row, valid = checked_index(row, table.shape[0], message)
    wide = table.index_select(0, row)
    operands: dict[str, Tensor | None] = dict.fromkeys(OPERANDS)
    operands["x"] = x_t.to(compute)
    for i in _slots(slots):
        operands[f"s{i + 1}"] = slots[i]  # type: ignore[index]
    r = Row(wide.to(compute), used, operands, None, None, None, valid)
    half = None
    if model_output is not None:
        out, half = split(model_output[:batch].to(compute), x_t)
        if guidance is not None:
            uncond, _ = split(model_output[batch:].to(compute), x_t)
            w, gamma = r.coefficient("guidance_weight"), per_sample(guidance.to(compute), x_t)
            g = torch.where(w == 1, gamma, w * (gamma - 1) + 1)
            out = torch.where(g == 1, out, torch.where(g == 0, uncond, uncond + g * (out - uncond)))
            r = r._replace(strength=g)
        if gradient is not None and uses(used, "out_grad"):
            k = r.coefficient("out_grad")
            out = torch.where(k != 0, out + k * gradient.to(compute), out)
        operands["out"] = out
    x0 = r.combine([("x0_x", operands["x"]), ("x0_out", operands["out"])])
    if uses(used, "clip_mode"):
        bound, clip = r.coefficient("clip_bound"), r.coefficient("clip_mode") == 1
        above, below = clip & (x0 > bound), clip & (x0 < -bound)
        x0 = torch.where(above, bound, torch.where(below, -bound, x0))
        r = r._replace(unclipped=~(above | below))
    operands["x0"] = x0
    if reads(used, "z") and (noise is not None or seed is not None or seeds is not None):
        z = _noise(x_t, wide, noise, seed or 0, seeds, sample_ids, stream, fast).to(compute)
        if half is not None and uses(used, "noise_mode"):
            lo, hi = r.coefficient("logvar_lo"), r.coefficient("logvar_hi")
            exp = torch.exp if compute == torch.float64 else _exp32
            scale = exp((lo + (hi - lo) * ((half + 1) * 0.5)) * 0.5)
            scale = torch.where(r.coefficient("noise_mode") == 1, scale, 1.0)
            z = z * scale
            r = r._replace(z_scale=scale)
        operands["z"] = z
    return r


def vjp(
    r: Row, x_t: Tensor, model_output: Tensor | None, slots: Tensor | None, g_x: Tensor, g_slots: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients to (x_t, model_output, slots) of a row, from those to its next x and its slots."""
    upstream = {"x": g_x.to(r.c.dtype)}
    if slots is not None and g_slots is not None:
        upstream |= {f"s{i + 1}": g_slots[i] for i in _slots(slots)}

    def to_operand(o: str) -> Tensor:
        return r.combine([(f"{to}.{o}", g) for to, g in upstream.items()])

    to_x0 = to_operand("x0")
    if r.unclipped is not None:
        to_x0 = torch.where(r.unclipped, to_x0, 0.0)
    to_x = to_operand("x") + r.combine([("x0_x", to_x0)])
    grad_output = grad_slots = None
    if model_output is not None:
        to_out = to_operand("out") + r.combine([("x0_out", to_x0)])
        to_half = torch.zeros_like(to_out)
        if r.z_scale is not None:
            # d exp(½ lo + ½ (hi - lo)(v + 1)/2) / dv = ¼ (hi - lo)·exp(…)
            z = r.operands["z"]
            slope = (r.coefficient("logvar_hi") - r.coefficient("logvar_lo")) * 0.25
            slope = torch.where(r.coefficient("noise_mode") == 1, slope, 0.0)
            to_half = to_operand("z") * z * slope  # type: ignore[operator]
        parts = [to_out]
        if r.strength is not None:
            parts = [to_out * r.strength, to_out * (1 - r.strength)]
        if model_output[:1].numel() != x_t[:1].numel():
            halves = [to_half, torch.zeros_like(to_half)][: len(parts)]
            parts = [torch.cat([p, h], dim=1) for p, h in zip(parts, halves, strict=True)]
        grad_output = torch.cat(parts).to(model_output.dtype).reshape(model_output.shape)
    if slots is not None:
        grads = []
        for i in _slots(slots):
            passed = per_sample(~_written(r.c, i), g_x) * upstream[f"s{i + 1}"] if g_slots is not None else 0.0
            grads.append(to_operand(f"s{i + 1}") + passed)
        grad_slots = torch.stack(grads)
    return to_x.to(x_t.dtype), grad_output, grad_slots


def split(out: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A model output with twice the channels is (prediction, variance half)."""
    if out.shape[1:] == x.shape[1:]:
        return out, None
    first, second = out.chunk(2, dim=1)
    return first, second


def _slots(slots: Tensor | None) -> range:
    return range(0 if slots is None else slots.shape[0])


def _written(c: Tensor, i: int) -> Tensor:
    """[B]: whether the row defines slot i + 1."""
    first = INDEX[f"s{i + 1}.x"]
    return (c[:, first : first + len(OPERANDS)] != 0).any(dim=1)


def _noise(
    x: Tensor,
    wide: Tensor,
    noise: Tensor | None,
    seed: int,
    seeds: Tensor | None,
    ids: Tensor | None,
    stream: int,
    fast: bool,
) -> Tensor:
    if noise is not None:
        return noise
    return regenerate(x, seed, seeds, ids, wide[:, INDEX["noise_index"]].to(torch.int64), stream, fast)


def _exp32(x: Tensor) -> Tensor:
    """exp of float32 by the polynomial of kernels/README.md section 4, saturating outside [-87, 88]."""
    h = float.fromhex
    x = torch.where(x > 88.0, 88.0, x)
    x = torch.where(x < -87.0, -87.0, x)
    k = (x * h("0x1.715476p+0") + 12582912.0) - 12582912.0
    r = (x - k * h("0x1.62e4p-1")) - k * h("0x1.7f7d1cp-20")
    p = r * h("0x1.6db414p-10") + h("0x1.123b46p-7")
    for e in ("0x1.55545ep-5", "0x1.55549p-3", "0x1.0p-1"):
        p = p * r + h(e)
    y = (r + (r * r) * p) + 1.0
    return (y.view(torch.int32) + (k.to(torch.int32) << 23)).view(torch.float32)
