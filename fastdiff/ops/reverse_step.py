"""`reverse_step`: one row of a plan for every sample, in one kernel.

Between two network calls any solver is x_s = c·(x_t, x0, out, slots, noise) with coefficients from
a table; see fastdiff.table and kernels/README.md section 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import choice as backends
from ..backend.eager.common import compute_dtype
from ..backend.eager.reverse_step import evaluate, vjp
from ..table import ALL_COLUMNS, COLUMNS, OPERANDS, READS, SLOTS, columns
from . import autograd, common

_ARGUMENTS = (
    "Tensor x_t, Tensor? model_output, Tensor table, Tensor row, Tensor? slots, Tensor? noise, int"
    " seed, Tensor? seeds, bool seeded, Tensor? sample_ids, Tensor? guidance, Tensor? gradient, int"
    " stream, bool fast, int used"
)
_OUTPUTS = (
    "Tensor(a!) out, Tensor(b!)? slots_out, Tensor(c!)? x0_out, Tensor(d!)? input_out, Tensor(e!)?"
    " row_out, Tensor(f!)? workspace"
)


def _launch_out(
    x_t,
    model_output,
    table,
    row,
    slots,
    noise,
    seed,
    seeds,
    seeded,
    sample_ids,
    guidance,
    gradient,
    stream,
    fast,
    used,
    out,
    slots_out,
    x0_out,
    input_out,
    row_out,
    workspace,
):
    launch = backends.launcher("reverse_step", x_t.device)
    launch(
        *launch_arguments(
            x_t,
            model_output,
            table,
            row,
            slots,
            noise,
            seed,
            seeds,
            seeded,
            sample_ids,
            guidance,
            gradient,
            stream,
            fast,
            used,
            out,
            slots_out,
            x0_out,
            input_out,
            row_out,
            workspace,
        )
    )


def launch_arguments(
    x_t,
    model_output,
    table,
    row,
    slots,
    noise,
    seed,
    seeds,
    seeded,
    sample_ids,
    guidance,
    gradient,
    stream,
    fast,
    used,
    out,
    slots_out,
    x0_out,
    input_out,
    row_out,
    workspace,
):
    """The op's checked arguments as a backend's launcher takes them."""
    rescales, thresholds = guidance is not None and used & _RESCALE, used & _RATIO
    if workspace is None and (rescales or thresholds):
        workspace = torch.empty(2, x_t.shape[0], dtype=compute_dtype(x_t), device=x_t.device)
    return (
        out,
        _dense(x_t),
        _dense(model_output),
        table,
        row,
        _dense(slots),
        _dense(noise),
        common.unsigned(seed) if seeded else None,
        seeds,
        sample_ids,
        guidance,
        _dense(gradient),
        stream,
        fast,
        used,
        slots_out,
        x0_out,
        input_out,
        row_out,
        workspace[0] if rescales else None,
        workspace[1] if thresholds else None,
    )


def _launch(
    x_t,
    model_output,
    table,
    row,
    slots,
    noise,
    seed,
    seeds,
    seeded,
    sample_ids,
    guidance,
    gradient,
    stream,
    fast,
    used,
):
    out, slots_out = _outputs(x_t, slots)
    _launch_out(
        x_t,
        model_output,
        table,
        row,
        slots,
        noise,
        seed,
        seeds,
        seeded,
        sample_ids,
        guidance,
        gradient,
        stream,
        fast,
        used,
        out,
        slots_out if slots is not None else None,
        None,
        None,
        None,
        None,
    )
    return out, slots_out


def _outputs(x_t: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
    out = torch.empty(x_t.shape, dtype=x_t.dtype, device=x_t.device)
    shape = (0,) if slots is None else slots.shape
    return out, torch.empty(shape, dtype=compute_dtype(x_t), device=x_t.device)


def _dense(value: Tensor | None) -> Tensor | None:
    return None if value is None else common.dense(value)


common.define("reverse_step", f"({_ARGUMENTS}) -> (Tensor, Tensor)", _launch)
common.define("reverse_step_out", f"({_ARGUMENTS}, {_OUTPUTS}) -> ()", _launch_out)


@torch.library.register_fake("fastdiff::reverse_step")
def _(x_t, model_output, table, row, slots, *_):
    return _outputs(x_t, slots)


@torch.library.register_fake("fastdiff::reverse_step_out")
def _(*_):
    return None


def _save(ctx, inputs, output):
    (
        x_t,
        model_output,
        table,
        row,
        slots,
        noise,
        seed,
        seeds,
        seeded,
        ids,
        guidance,
        gradient,
        stream,
        fast,
        used,
    ) = inputs
    ctx.save_for_backward(
        x_t, model_output, table, row, slots, noise, seeds, ids, guidance, gradient
    )
    ctx.counter = (seed, seeded, stream, fast, used)


def _backward(ctx, g_x, g_slots):
    x_t, model_output, table, row, slots, noise, seeds, ids, guidance, gradient = ctx.saved_tensors
    seed, seeded, stream, fast, used = ctx.counter
    r = evaluate(
        x_t,
        model_output,
        table,
        row,
        slots,
        noise,
        common.unsigned(seed) if seeded else None,
        seeds,
        ids,
        guidance,
        gradient,
        stream,
        fast,
        used,
    )
    grads = vjp(r, x_t, model_output, slots, g_x, None if slots is None else g_slots)
    needed = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[4])
    g_state, g_output, g_memory = (g if n else None for g, n in zip(grads, needed, strict=True))
    return g_state, g_output, None, None, g_memory, *(None,) * 10


_functional = autograd.differentiable("reverse_step", _launch, _save, _backward)
_into = torch.ops.fastdiff.reverse_step_out.default


def columns_used(table: Tensor) -> int:
    """The bit mask of the columns with a non-zero entry; a table on a device is not read (then all
    columns count).
    """
    if table.device.type != "cpu":
        return ALL_COLUMNS
    return sum(1 << i for i in (table != 0).any(0).nonzero().flatten().tolist())


def reverse_step(
    x_t: Tensor,
    model_output: Tensor | None,
    table: Tensor,
    row: Tensor,
    *,
    slots: Tensor | None = None,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    sample_ids: Tensor | None = None,
    guidance: Tensor | None = None,
    gradient: Tensor | None = None,
    stream: int = 1,
    mode: str = "exact",
    used: int | None = None,
    out: Tensor | None = None,
    slots_out: Tensor | None = None,
    x0_out: Tensor | None = None,
    input_out: Tensor | None = None,
    row_out: Tensor | None = None,
    workspace: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """x_s = c_x x_t + c_x0 x0 + c_out out + Σ c_k slot_k + c_z z for the table's row[b] of each
    sample b.

    x0 is the (clipped) prediction from x_t and the network's output, e.g. (x_t - sigma eps)/alpha
    (Ho et al. 2020, eq. 15); the coefficients are a solver's, DDPM's posterior for instance (ibid.,
    eq. 7).

    Args:
        x_t: [B, …] state, any floating dtype; arithmetic is float32, float64 for float64.
        model_output: [B, …] like x_t in any floating dtype, with guidance [2B, …], conditional half
            first; twice the channels with learned variance; None for rows without a network call.
        table: float64 [R, 56], see fastdiff.table. row: int64 [B] in [0, R).
        slots: [S, B, …] in the compute type, S <= 4, the solver's memory.
        noise: like x_t, else regenerated from seed, sample_ids and the row's noise_index (see
            `randn`).
        guidance: [B] strength: out = u + gamma (c - u) (Ho & Salimans 2022, eq. 6); 1 and 0 select
            c and u.
        gradient: like x_t, added to the output with the row's `out_grad` (Dhariwal & Nichol 2021,
            eq. 14).
        used: the table's column mask (`Plan.used`); None reads it from a table on the CPU.
        out, slots_out: where to write x_s and the slots (x_t and slots themselves are fine);
            nothing is allocated and no gradient recorded. Optional further outputs: x0_out like
            x_t, input_out (the network's next input, [B, …] or [2B, …]), row_out int64 [B] (not
            row's own memory).
        workspace: [2, B] in the compute type, room for rescale factors and dynamic thresholds where
            rows have them; allocated when missing.

    Returns:
        x_s; with slots and without `out`, (x_s, new slots). Gradients flow to x_t, model_output and
        slots.

    Raises:
        IndexError: row outside the table (CPU; other devices give NaN for that sample).
        ValueError, TypeError: for arguments outside these, or rows that read what is not given.
    """
    arguments = checked_arguments(
        x_t,
        model_output,
        table,
        row,
        slots,
        noise,
        seed,
        sample_ids,
        guidance,
        gradient,
        stream,
        mode,
        used,
        slots_out,
        x0_out,
    )
    if backend:
        with backends.use(backend):
            return _run(arguments, out, slots_out, x0_out, input_out, row_out, workspace)
    return _run(arguments, out, slots_out, x0_out, input_out, row_out, workspace)


def checked_arguments(
    x_t: Tensor,
    model_output: Tensor | None,
    table: Tensor,
    row: Tensor,
    slots: Tensor | None,
    noise: Tensor | None,
    seed: int | Tensor | None,
    sample_ids: Tensor | None,
    guidance: Tensor | None,
    gradient: Tensor | None,
    stream: int,
    mode: str,
    used: int | None,
    slots_out: Tensor | None,
    x0_out: Tensor | None,
) -> tuple[Any, ...]:
    """The registered op's arguments from the public ones. Raises as `reverse_step` says."""
    where = "reverse_step"
    common.batched(where, "x_t", x_t)
    batch, compute, learned = x_t.size(0), compute_dtype(x_t), False
    if (
        not isinstance(table, Tensor)
        or table.dtype != torch.float64
        or table.ndim != 2
        or table.shape[1] != len(COLUMNS)
    ):
        got = list(table.shape) if isinstance(table, Tensor) else type(table).__name__
        raise ValueError(
            f"fastdiff.{where}: expected table as float64 [R, {len(COLUMNS)}], got {got}. Use"
            " plan.table."
        )
    common.same_device(where, "table", table, x_t, "x_t")
    row = common.integers(where, "row", row, batch, x_t, "x_t")
    halves = 1
    if guidance is not None:
        halves = 2
        common.floating(where, "guidance", guidance)
        common.shaped(where, "guidance", guidance, (batch,))
        common.same_device(where, "guidance", guidance, x_t, "x_t")
        guidance = common.dense(guidance.to(compute))
    if model_output is not None:
        common.floating(where, "model_output", model_output)
        common.same_device(where, "model_output", model_output, x_t, "x_t")
        plain = x_t.shape if halves == 1 else (2 * batch, *x_t.shape[1:])
        learned = model_output.shape != plain
        if learned and (
            x_t.ndim < 2 or model_output.shape != (halves * batch, 2 * x_t.shape[1], *x_t.shape[2:])
        ):
            half = " for guidance (conditional half first)" if guidance is not None else ""
            raise ValueError(
                f"fastdiff.{where}: expected model_output of shape {list(plain)}{half}, got"
                f" {list(model_output.shape)}."
            )
    if not (noise is None and gradient is None and x0_out is None):
        for name, value in (("noise", noise), ("gradient", gradient), ("x0_out", x0_out)):
            if value is not None:
                common.floating(where, name, value)
                common.shaped(where, name, value, x_t.shape)
                common.same_device(where, name, value, x_t, "x_t")
    memory = slots if slots is not None else slots_out
    if memory is not None:
        for name, value in (("slots", slots), ("slots_out", slots_out)):
            if value is not None:
                common.shaped(where, name, value, (min(value.shape[0], SLOTS), *x_t.shape))
                common.same_device(where, name, value, x_t, "x_t")
                if value.dtype != compute:
                    raise TypeError(
                        f"fastdiff.{where}: expected {name} of dtype {compute}, got {value.dtype}."
                    )
    table = common.dense(table)
    if used is None:
        used = columns_used(table)
        known = table.device.type == "cpu"
    else:
        # on the CPU the backends look at the rows in use, which may need less than the whole table
        known = table.device.type != "cpu" and used != -1
    if known:
        _required(
            used,
            model_output,
            learned,
            noise,
            seed,
            gradient,
            0 if memory is None else memory.shape[0],
        )
    fast = common.counter_arguments(where, 0, stream, mode)
    if x_t.numel() > 2**34:
        common.sized(where, common.elements(x_t.shape))
    number, seeds = common.seed_arguments(where, seed, batch, x_t, "x_t")
    if sample_ids is not None:
        sample_ids = common.integers(where, "sample_ids", sample_ids, batch, x_t, "x_t")
    return (
        x_t,
        model_output,
        table,
        row,
        slots,
        noise,
        number,
        seeds,
        seed is not None,
        sample_ids,
        guidance,
        gradient,
        stream,
        fast,
        used,
    )


def _run(
    arguments: Any,
    out: Tensor | None,
    slots_out: Tensor | None,
    x0_out: Tensor | None,
    input_out: Tensor | None,
    row_out: Tensor | None,
    workspace: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The op with checked inputs: functional, or into checked outputs."""
    where, x_t = "reverse_step", arguments[0]
    if out is None:
        if not (slots_out is None and x0_out is None and input_out is None and row_out is None):
            raise ValueError(
                f"fastdiff.{where}: expected out together with the other outputs. Pass out=."
            )
        x_s, fresh = _functional(*arguments)
        return x_s if arguments[4] is None else (x_s, fresh)
    written = checked_outputs(x_t, out, slots_out, x0_out, input_out, row_out, workspace)
    everything: Any = (*arguments, out, slots_out, x0_out, input_out, row_out, workspace)
    if common.unobserved(x_t, out):
        _launch_out(*everything)
        if not out.is_inference():
            torch.autograd.graph.increment_version(written)
    else:
        _into(*everything)
    return out


def checked_outputs(
    x_t: Tensor,
    out: Tensor,
    slots_out: Tensor | None,
    x0_out: Tensor | None,
    input_out: Tensor | None,
    row_out: Tensor | None,
    workspace: Tensor | None,
) -> list[Tensor]:
    """The tensors that the op writes. Raises as `reverse_step` says."""
    where = "reverse_step"
    common.shaped(where, "out", out, x_t.shape)
    batch = x_t.size(0)
    if row_out is not None:
        common.integers(where, "row_out", row_out, batch, x_t, "x_t")
    if input_out is not None and tuple(input_out.shape) not in {
        (k * batch, *x_t.shape[1:]) for k in (1, 2)
    }:
        raise ValueError(
            f"fastdiff.{where}: expected input_out of shape {[batch, *x_t.shape[1:]]}, got"
            f" {list(input_out.shape)}."
        )
    if out.dtype != x_t.dtype:
        raise TypeError(
            f"fastdiff.{where}: expected out of dtype {x_t.dtype} like x_t, got {out.dtype}."
        )
    written = [out]
    if not (x0_out is None and input_out is None):
        for name, value in (("x0_out", x0_out), ("input_out", input_out)):
            if value is not None:
                common.floating(where, name, value)
    if not (x0_out is None and input_out is None and slots_out is None and row_out is None):
        written += [value for value in (x0_out, input_out, slots_out, row_out) if value is not None]
    for value in written:
        if not value.is_contiguous():
            raise ValueError(
                f"fastdiff.{where}: expected contiguous outputs. State is stored in C order."
            )
    if workspace is not None:
        common.shaped(where, "workspace", workspace, (2, batch))
        common.same_device(where, "workspace", workspace, x_t, "x_t")
        compute = compute_dtype(x_t)
        if workspace.dtype != compute or not workspace.is_contiguous():
            raise TypeError(
                f"fastdiff.{where}: expected a contiguous workspace of {compute}, got"
                f" {workspace.dtype}."
            )
        written.append(workspace)
    return written


_RESCALE, _RATIO, _NETWORK, _GRADIENT, _LEARNED = (
    columns(name)
    for name in ("guidance_rescale", "clip_ratio", "network", "out_grad", "noise_mode")
)
_BEYOND = [
    sum(
        READS[f"s{i + 1}"] | columns(*(f"s{i + 1}.{operand}" for operand in OPERANDS))
        for i in range(kept, SLOTS)
    )
    for kept in range(SLOTS + 1)
]  # columns of slots that `kept` slots do not hold


def _required(
    used: int,
    model_output: Tensor | None,
    learned: bool,
    noise: Tensor | None,
    seed: int | Tensor | None,
    gradient: Tensor | None,
    slots: int,
) -> None:
    """Raises where the table reads an operand that was not given."""
    missing = None
    if model_output is None and used & _NETWORK:
        missing = "model_output, which rows of this table read"
    elif used & _LEARNED and used & READS["z"] and not learned:
        missing = (
            "model_output with a variance half (twice the channels), which rows of this table read"
        )
    elif noise is None and seed is None and used & READS["z"]:
        missing = "seed or noise, for rows that draw noise"
    elif gradient is None and used & _GRADIENT:
        missing = "gradient, which rows of this table read"
    elif used & _BEYOND[slots]:
        missing = (
            "slots with at least"
            f" {next(i for i in range(slots, SLOTS + 1) if not used & _BEYOND[i])} entries"
        )
    if missing:
        raise ValueError(f"fastdiff.reverse_step: expected {missing}.")
