"""`reverse_step` on torch: one row of a plan per sample, and its vector-Jacobian product.

Rows are linear in (x, out, slots, noise) apart from the clip, so the gradient is the transposed
combination. This file is over 400 lines because step_log_prob, the gradients and the step read the
same operands.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...table import COLUMNS, INDEX, OPERANDS, OUTPUTS, SLOTS, broken_rule, reads, uses
from . import log_prob
from .common import by_sample, checked_index, compute_dtype, per_sample, store
from .elementary import exp
from .guidance_kinds import kept_difference, reference
from .q_sample import regenerate
from .sums import halved

_OF_SLOTS = slice(INDEX["s1.x"], INDEX[f"s{SLOTS}.z"] + 1)
_Z = [INDEX[f"{output}.z"] for output in OUTPUTS]  # the columns that read the noise

ROW_ERROR = (
    "fastdiff.reverse_step: expected row in [0, {size}), got {value} at index {at}. Rows belong to"
    " the table."
)


class Row(NamedTuple):
    """What a row reads: its coefficients [B, 62] and the operands of the combinations."""

    c: Tensor
    mask: int
    operands: dict[str, Tensor | None]
    valid: Tensor | None = None
    strength: Tensor | None = None  # [B, 1, …], guidance
    factor: Tensor | None = None  # [B, 1, …], its rescale
    renoised: Tensor | None = None  # [B, 1, …], where combinations read the unconditional output
    divisor: Tensor | None = None  # [B, 1, …], the dynamic threshold
    half_logvar: Tensor | None = None  # half of the learned log-variance, per element
    z_scale: Tensor | None = None  # its exponential
    unclipped: Tensor | None = None  # where x0 was not clipped
    kept: tuple[Tensor, Tensor] | None = None  # what becomes slot 4, and [B, 1, …] where

    def coefficient(self, name: str) -> Tensor:
        """Returns a coefficient of each sample, [B, 1, …]."""
        return per_sample(self.c[:, INDEX[name]], self.operands["x"])  # type: ignore[arg-type]

    def writes(self, i: int) -> Tensor:
        """Returns whether each sample's row defines slot i + 1, [B, 1, …]."""
        written = per_sample(_written(self.c, i), self.operands["x"])  # type: ignore[arg-type]
        return written if i != SLOTS - 1 or self.kept is None else written | self.kept[1]

    def new_slot(self, i: int) -> Tensor:
        """Returns what slot i + 1 becomes where the row defines it."""
        value = self.combine([(f"s{i + 1}.{o}", self.operands[o]) for o in OPERANDS])
        if i != SLOTS - 1 or self.kept is None:
            return value
        return torch.where(self.kept[1], self.kept[0], value)

    def combine(self, names: list[tuple[str, Tensor | None]]) -> Tensor:
        """Returns the sum of coefficient·operand over (column, operand), from +0 and in order.

        Operands with a zero coefficient are not read.
        """
        total = torch.zeros_like(self.operands["x"])  # type: ignore[arg-type]
        for name, value in names:
            total = self.add(total, name, value)
        return total

    def add(self, total: Tensor, name: str, value: Tensor | None) -> Tensor:
        """Returns total + coefficient·operand where the coefficient is not zero."""
        if uses(self.mask, name) and value is not None:
            k = self.coefficient(name)
            total = torch.where(k != 0, total + k * value, total)
        return total


def reverse_step(step: Any) -> None:
    """Executes a row per sample; `step` is a checked fastdiff.ops.step.StepArguments."""
    table, slots, slots_out, input_out = step.table, step.slots, step.slots_out, step.input_out
    r = evaluate(step, ROW_ERROR)
    mean = r.combine([(f"x.{o}", r.operands[o]) for o in OPERANDS[:-1]])
    x = r.add(mean, "x.z", r.operands["z"])
    if r.valid is not None:
        x = torch.where(per_sample(r.valid, x), x, torch.nan)
    fresh = [r.new_slot(i) for i in _slots(slots_out)]
    follow = r.c[:, INDEX["next"]].to(torch.int64)
    # everything has been read: the outputs may be the inputs' memory
    for i, value in enumerate(fresh):
        written = r.writes(i)
        keep = slots[i] if slots is not None else slots_out[i]
        slots_out[i].copy_(torch.where(written, value, keep))
    step.out.copy_(x)
    if step.log_prob_out is not None:
        drawn = r.c[:, INDEX["x.z"]] != 0 if r.operands["z"] is not None else None
        value = log_prob.of_samples(r, mean, step.out)
        value = torch.zeros_like(value) if drawn is None else torch.where(drawn, value, 0.0)
        if r.valid is not None:
            value = torch.where(r.valid, value, torch.nan)
        step.log_prob_out.copy_(value)
    if step.x0_out is not None:
        store(step.x0_out, r.operands["x0"])  # type: ignore[arg-type]
    if input_out is not None:
        scale = (
            table[:, INDEX["input_scale"]]
            .index_select(0, follow.clamp(0, len(table) - 1))
            .to(x.dtype)
        )
        scaled = per_sample(scale, x) * x
        store(input_out, scaled if len(input_out) == len(x) else torch.cat([scaled, scaled]))
    if step.time_out is not None:
        _write_times(step.time_out, table, follow, r.valid)
    if step.row_out is not None:
        step.row_out.copy_(follow)


def _write_times(time_out: Tensor, table: Tensor, follow: Tensor, valid: Tensor | None) -> None:
    """Writes column t of the rows `follow` [B], as int64 or float32; NaN for rows outside."""
    inside = (follow >= 0) & (follow < len(table))
    if valid is not None:
        inside = inside & valid
    t = table[:, INDEX["t"]].index_select(0, follow.clamp(0, len(table) - 1))
    t = torch.where(inside, t, torch.nan)
    if not time_out.is_floating_point():
        t = torch.where(t.isnan(), 0.0, t.round())
    copies = len(time_out) // max(len(t), 1)
    time_out.copy_(t.repeat(copies))


def evaluate(
    step: Any,
    message: str | None = None,
    *,
    smooth: bool = False,
    scored: bool = False,
    where: str = "reverse_step",
) -> Row:
    """Computes all operands of the row's combinations (kernels/README.md sections 4.1 to 4.5).

    With a `message` for rows outside the table, rows and operands are checked, on the CPU. With
    `smooth`, guidance of strength 1 and 0 has its derivative by the strength, instead of selecting.
    With `scored`, the rows are those of `step_log_prob`: the columns of the slots count as zero, no
    noise is drawn, and rows without noise are refused on the CPU and not valid elsewhere. `where`
    is the op that errors name.
    """
    x_t, model_output, slots, guidance = step.x_t, step.model_output, step.slots, step.guidance
    table, gradient, used = step.table, step.gradient, step.used
    batch, compute = x_t.shape[0], compute_dtype(x_t)
    row, valid = checked_index(step.row, table.shape[0], message)
    wide = table.index_select(0, row)
    if scored:
        wide[:, _OF_SLOTS] = 0.0
    drawn = step.noise is not None or step.seed is not None
    # as in C++, rows of samples without elements are not looked at
    if message is not None and table.device.type == "cpu" and x_t.numel():
        broken = broken_rule(wide, len(table))
        if broken is not None:
            sentence = broken[1].format(row=f"{int(row[broken[0]])} of the table")
            raise ValueError(f"fastdiff.{where}: {sentence}.")
        for i in [] if used == -1 else (wide != 0).any(0).nonzero().flatten().tolist():
            if used >> i & 1:
                continue
            raise ValueError(
                f"fastdiff.{where}: expected used with every column that the rows in use have,"
                f" got a mask without {COLUMNS[i]}. Leave used out, or pass plan.used."
            )
        _check_operands(
            where,
            wide,
            row,
            0 if slots is None else len(slots),
            output=model_output is not None,
            learned=model_output is not None and model_output.shape[1:] != x_t.shape[1:],
            gradient=gradient is not None,
            noise=drawn or scored,
            guided=model_output is not None and guidance is not None,
        )
    if scored and x_t.numel():
        valid = log_prob.drawn(where, wide[:, INDEX["x.z"]].to(compute), row, valid, message)
    operands: dict[str, Tensor | None] = dict.fromkeys(OPERANDS)
    operands["x"] = x = x_t.to(compute)
    for i in _slots(slots):
        operands[f"s{i + 1}"] = slots[i]
    r = Row(wide.to(compute), used, operands, valid)
    half = None
    if model_output is not None:
        out, half = split(model_output[:batch].to(compute), x_t)
        if guidance is not None:
            uncond, _ = split(model_output[batch:].to(compute), x_t)
            w, gamma = r.coefficient("guidance_weight"), per_sample(guidance.to(compute), x_t)
            g = torch.where(w == 1, gamma, w * (gamma - 1) + 1)
            if uses(used, "guidance_kind"):
                slot = None if slots is None or len(slots) < SLOTS else slots[SLOTS - 1]
                r = r._replace(kept=kept_difference(wide, out, uncond, slot, g))
                uncond = reference(wide, out, uncond, slot, x, g)
            one, zero = out, uncond
            if smooth:
                one, zero = out + (g - 1) * (out - uncond), uncond + g * (out - uncond)
            guided = torch.where(
                g == 1, one, torch.where(g == 0, zero, uncond + g * (out - uncond))
            )
            if uses(used, "guidance_rescale"):
                phi = per_sample(wide[:, INDEX["guidance_rescale"]], x_t)
                plain = phi == 0 if smooth else (phi == 0) | (g == 1)
                factor = rescale_factor(out, guided, phi, plain)
                scaled = factor * guided
                guided = scaled if smooth else torch.where(factor == 1, guided, scaled)
                r = r._replace(factor=factor)
            out = guided
            r = r._replace(strength=g)
        if gradient is not None and uses(used, "out_grad"):
            k = r.coefficient("out_grad")
            out = torch.where(k != 0, out + k * gradient.to(compute), out)
        operands["out"] = out
    x0 = r.combine([("x0_x", operands["x"]), ("x0_out", operands["out"])])
    if uses(used, "clip_mode"):
        bound, clip = r.coefficient("clip_bound"), r.coefficient("clip_mode") == 1
        dynamic = r.coefficient("clip_mode") == 2
        if uses(used, "clip_ratio"):
            s = dynamic_threshold(x0, per_sample(wide[:, INDEX["clip_ratio"]], x_t), bound)
            bound, clip = torch.where(dynamic, s, bound), clip | dynamic
        above, below = clip & (x0 > bound), clip & (x0 < -bound)
        x0 = torch.where(above, bound, torch.where(below, -bound, x0))
        if uses(used, "clip_ratio"):
            divisor = torch.where(dynamic, bound, 1.0)
            x0 = torch.where(dynamic, x0 / divisor, x0)
            r = r._replace(divisor=divisor)
        r = r._replace(unclipped=~(above | below))
    operands["x0"] = x0
    if r.strength is not None and uses(used, "out_uncond"):
        renoised = (r.coefficient("out_uncond") != 0) & (r.strength != 1)
        operands["out"] = torch.where(renoised, uncond, operands["out"])  # type: ignore[arg-type]
        r = r._replace(renoised=renoised)
    if half is not None and reads(used, "z") and uses(used, "noise_mode"):
        lo, hi = r.coefficient("logvar_lo"), r.coefficient("logvar_hi")
        r = r._replace(half_logvar=(lo + (hi - lo) * ((half + 1) * 0.5)) * 0.5)
    if reads(used, "z") and drawn:
        z = _noise(step, wide, None if message is None else "reverse_step").to(compute)
        if r.half_logvar is not None:
            scale = exp(r.half_logvar)
            scale = torch.where(r.coefficient("noise_mode") == 1, scale, 1.0)
            z = z * scale
            r = r._replace(z_scale=scale)
        operands["z"] = z
    return r


def vjp(
    r: Row, step: Any, g_x: Tensor, g_slots: Tensor | None, g_half: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the gradients to (x_t, model_output, slots), from those to next x and next slots.

    `g_half` is one to the half log-variance, where it does not come from the noise.

    A sample's rescale factor and dynamic threshold count as constants; the op uses its formula
    where rows have them (fastdiff.ops.formulas).
    """
    x_t, model_output, slots = step.x_t, step.model_output, step.slots
    upstream = {"x": g_x.to(r.c.dtype)}
    if slots is not None and g_slots is not None:
        upstream |= {f"s{i + 1}": g_slots[i] for i in _slots(slots)}

    def to_operand(o: str) -> Tensor:
        return r.combine([(f"{to}.{o}", g) for to, g in upstream.items()])

    to_x0 = to_operand("x0")
    if r.unclipped is not None:
        to_x0 = torch.where(r.unclipped, to_x0, 0.0)
    if r.divisor is not None:
        to_x0 = to_x0 / r.divisor
    to_x = to_operand("x") + r.combine([("x0_x", to_x0)])
    grad_output = grad_slots = None
    if model_output is not None:
        to_out, to_uncond = to_operand("out"), None
        if r.renoised is not None:
            to_uncond = torch.where(r.renoised, to_out, 0.0)
            to_out = torch.where(r.renoised, 0.0, to_out)
        to_out = to_out + r.combine([("x0_out", to_x0)])
        to_half = torch.zeros_like(to_out)
        if r.z_scale is not None:  # d exp(h)/dh = exp(h), which z has as a factor
            g_half = to_operand("z") * r.operands["z"]  # type: ignore[operator]
        if g_half is not None:
            # d(½ lo + ½ (hi - lo)(v + 1)/2)/dv = ¼ (hi - lo)
            slope = (r.coefficient("logvar_hi") - r.coefficient("logvar_lo")) * 0.25
            to_half = g_half * torch.where(r.coefficient("noise_mode") == 1, slope, 0.0)
        parts = [to_out]
        if r.factor is not None:
            parts = [to_out * r.factor]
        if r.strength is not None:
            to_out = parts[0]
            parts = [to_out * r.strength, to_out * (1 - r.strength)]
            if to_uncond is not None:
                parts[1] = parts[1] + to_uncond
        if model_output[:1].numel() != x_t[:1].numel():
            halves = [to_half, torch.zeros_like(to_half)][: len(parts)]
            parts = [torch.cat([p, h], dim=1) for p, h in zip(parts, halves, strict=True)]
        grad_output = torch.cat(parts).to(model_output.dtype).reshape(model_output.shape)
    if slots is not None:
        grads = []
        for i in _slots(slots):
            passed = (
                per_sample(~_written(r.c, i), g_x) * upstream[f"s{i + 1}"]
                if g_slots is not None
                else 0.0
            )
            grads.append(to_operand(f"s{i + 1}") + passed)
        grad_slots = torch.stack(grads)
    return to_x.to(x_t.dtype), grad_output, grad_slots


def _check_operands(
    where: str,
    wide: Tensor,
    row: Tensor,
    slots: int,
    *,
    output: bool,
    learned: bool,
    gradient: bool,
    noise: bool,
    guided: bool,
) -> None:
    """Raises ValueError where a sample's row reads an operand that is missing, as in C++."""

    def read(operand: str) -> Tensor:
        return (wide[:, [INDEX[f"{to}.{operand}"] for to in OUTPUTS]] != 0).any(1)

    def nonzero(name: str) -> Tensor:
        return wide[:, INDEX[name]] != 0

    needs = {
        "model_output": (output, read("out") | (read("x0") & nonzero("x0_out"))),
        "gradient": (gradient or not output, nonzero("out_grad")),
        "seed or noise": (noise, read("z")),
        "model_output with a variance half": (
            learned,
            read("z") & (wide[:, INDEX["noise_mode"]] == 1),
        ),
    } | {f"at least {i} slots": (i <= slots, read(f"s{i}")) for i in range(1, SLOTS + 1)}
    if guided:  # slot 4 holds an earlier difference
        name = f"at least {SLOTS} slots"
        needs[name] = (SLOTS <= slots, read(f"s{SLOTS}") | nonzero("guidance_momentum"))
    for name, (present, needed) in needs.items():
        if not present and bool(needed.any()):
            at = int(needed.to(torch.int8).argmax())
            raise ValueError(
                f"fastdiff.{where}: expected {name}, which row {int(row[at])} reads at index"
                f" {at}, got none."
            )


def rescale_factor(cond: Tensor, guided: Tensor, phi: Tensor, plain: Tensor) -> Tensor:
    """Returns phi std(cond)/std(guided) + 1 - phi, [B, 1, …]; 1 for `plain` samples.

    The statistics are float64.
    """

    def deviation(v: Tensor) -> Tensor:
        flat = by_sample(v.double())
        n = flat.shape[1]
        if n == 1:  # 0/0, also where it is not used: its gradient is no number either
            return torch.where(plain, 1.0, torch.full_like(v.double(), torch.nan))
        apart = flat - halved(flat) / n
        variance = per_sample((halved(apart * apart) / (n - 1)).flatten(), v)
        return torch.where(plain, 1.0, variance).sqrt()  # whose slope at 0 is infinite

    factor = phi * (deviation(cond) / deviation(guided)) + (1 - phi)
    return torch.where(plain, 1.0, factor.to(cond.dtype))


def dynamic_threshold(x0: Tensor, ratio: Tensor, bound: Tensor) -> Tensor:
    """Returns the ratio-quantile of |x0|, interpolated and clamped to [1, bound], [B, 1, …]."""
    n = x0[0].numel() if len(x0) else 0
    if n == 0:
        return bound
    ordered = by_sample(x0.abs()).sort(dim=1).values  # NaN last
    position = ratio.flatten() * (n - 1)
    below = position.to(torch.int64).clamp(0, n - 1)
    low, high = (ordered.gather(1, i[:, None])[:, 0] for i in (below, (below + 1).clamp(max=n - 1)))
    s = per_sample(low + (position - below).to(x0.dtype) * (high - low), x0)
    s = torch.where(s > bound, bound, s)
    return torch.where(s < 1, 1.0, s)


def split(out: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Splits a model output with twice the channels into (prediction, variance half)."""
    if out.shape[1:] == x.shape[1:]:
        return out, None
    first, second = out.chunk(2, dim=1)
    return first, second


def _slots(slots: Tensor | None) -> range:
    return range(0 if slots is None else slots.shape[0])


def _written(c: Tensor, i: int) -> Tensor:
    """Returns whether each sample's row defines slot i + 1, [B]."""
    first = INDEX[f"s{i + 1}.x"]
    return (c[:, first : first + len(OPERANDS)] != 0).any(dim=1)


def _noise(step: Any, wide: Tensor, where: str | None) -> Tensor:
    if step.noise is not None:
        return step.noise
    index = wide[:, INDEX["noise_index"]].to(torch.int64)
    ids = step.sample_ids if step.x_t.numel() else None
    if ids is not None:  # the ids of samples whose rows read no noise are not looked at
        ids = torch.where((wide[:, _Z] != 0).any(1), ids, 0)
    draw = (step.seed_number or 0, step.seeds, ids, index, step.stream, step.fast)
    return regenerate(step.x_t, *draw, where=where)
