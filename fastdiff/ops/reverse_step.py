"""`reverse_step`: one row of a plan for every sample, in one kernel.

Between two network calls any solver is x_s = c·(x_t, x0, out, slots, noise) with coefficients from
a table; see fastdiff.table and kernels/README.md section 4.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backend import choice
from ..backend.eager.common import compute_dtype
from ..backend.eager.reverse_step import evaluate, vjp
from . import autograd, common, formulas
from .bound_step import WHERE
from .step import FUNCTIONAL, StepArguments

INPUTS = (
    "Tensor x_t, Tensor? model_output, Tensor table, Tensor row, Tensor? slots, Tensor? noise,"
    " SymInt seed, Tensor? seeds, bool seeded, Tensor? sample_ids, Tensor? guidance,"
    " Tensor? gradient, int stream, bool fast, int used"
)
OUTPUTS = (
    "Tensor(a!) out, Tensor(b!)? slots_out, Tensor(c!)? x0_out, Tensor(d!)? input_out, Tensor(e!)?"
    " row_out, Tensor(f!)? time_out, Tensor(g!)? log_prob_out, Tensor(h!)? workspace"
)
"""The registered ops' flat arguments, in the order of `StepArguments.flat`."""

_SLOTS = StepArguments._fields.index("slots")
_FAST = [StepArguments._fields.index(n) for n in ("x_t", "model_output", "slots")]
"""The inputs whose gradients `vjp` computes; those of the next ones are the formula's."""
_OTHERS = [INPUTS.split(", ").index(f"Tensor? {n}") for n in ("noise", "guidance", "gradient")]


def _launch_out(*flat: Any) -> None:
    StepArguments.from_flat(*flat).launch()


def _launch(*flat: Any) -> tuple[Tensor, Tensor]:
    slots: Tensor | None = flat[_SLOTS]
    out, slots_out = _results(flat[0], slots)
    written = None if slots is None else slots_out
    StepArguments.from_flat(*flat, out, written).launch()
    return out, slots_out


def _launch_new(arguments: StepArguments) -> tuple[Tensor, Tensor]:
    """Launches into new tensors."""
    out, slots_out = _results(arguments.x_t, arguments.slots)
    arguments.into(out, None if arguments.slots is None else slots_out).launch()
    return out, slots_out


def _results(x_t: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
    out = torch.empty(x_t.shape, dtype=x_t.dtype, device=x_t.device)
    shape = (0,) if slots is None else slots.shape
    return out, torch.empty(shape, dtype=compute_dtype(x_t), device=x_t.device)


common.define(WHERE, f"({INPUTS}) -> (Tensor, Tensor)", _launch)
common.define(f"{WHERE}_out", f"({INPUTS}, {OUTPUTS}) -> ()", _launch_out)


@common.register_fake(WHERE)
def _(*flat):
    arguments = StepArguments.from_flat(*flat)
    return _results(arguments.x_t, arguments.slots)


@common.register_fake(f"{WHERE}_out")
def _(*_):
    return None


_TENSORS = [i for i, name in enumerate(INPUTS.split(", ")) if name.startswith("Tensor")]
_NUMBERS = [i for i in range(FUNCTIONAL) if i not in _TENSORS]
_tensors, _numbers = itemgetter(*_TENSORS), itemgetter(*_NUMBERS)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*_tensors(inputs))
    ctx.numbers = _numbers(inputs)


def _backward(ctx, g_x, g_slots):
    tensors = zip(_TENSORS, ctx.saved_tensors, strict=True)
    flat = dict(tensors) | dict(zip(_NUMBERS, ctx.numbers, strict=True))
    inputs = [flat[i] for i in range(FUNCTIONAL)]
    step = StepArguments.from_flat(*inputs)
    others = any(ctx.needs_input_grad[i] for i in _OTHERS)
    if torch.is_grad_enabled() or step.whole_samples or others:
        given = g_slots if step.slots is not None else None
        kinds = (*_FAST, *_OTHERS)
        needed = [ctx.needs_input_grad[i] and i in kinds for i in range(FUNCTIONAL)]
        return tuple(autograd.by_formula(formulas.reverse_step, inputs, needed, g_x, given))
    grads = vjp(evaluate(step), step, g_x, None if step.slots is None else g_slots)
    result: list[Tensor | None] = [None] * FUNCTIONAL
    for place, grad in zip(_FAST, grads, strict=True):
        if ctx.needs_input_grad[place]:
            result[place] = grad
    return tuple(result)


_functional = autograd.differentiable(WHERE, _launch, _save, _backward, formulas.reverse_step)


def reverse_step(
    x_t: Tensor,
    model_output: Tensor | None,
    table: Tensor | np.ndarray,
    row: Tensor,
    *,
    slots: Tensor | None = None,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    sample_ids: Tensor | None = None,
    guidance: Tensor | None = None,
    gradient: Tensor | None = None,
    stream: int = 1,
    window: tuple[int, int] | None = None,
    mode: str = "exact",
    used: int | None = None,
    out: Tensor | None = None,
    slots_out: Tensor | None = None,
    x0_out: Tensor | None = None,
    input_out: Tensor | None = None,
    row_out: Tensor | None = None,
    time_out: Tensor | None = None,
    log_prob_out: Tensor | None = None,
    workspace: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Executes row[b] of a plan's table for every sample b.

        x_s = c_x x_t + c_x0 x0 + c_out out + Σ c_k slot_k + c_z z

    x0 is the (clipped) prediction from x_t and the network's output, e.g. (x_t - sigma eps)/alpha
    (Ho et al. 2020, eq. 15); the coefficients are a solver's, DDPM's posterior for instance (ibid.,
    eq. 7).

    Args:
        x_t: [B, …] state, any floating dtype; arithmetic is float32, float64 for float64.
        model_output: [B, …] like x_t in any floating dtype, with guidance [2B, …], conditional half
            first; twice the channels with learned variance; None for rows without a network call.
        table: float64 [R, 62], see fastdiff.table; an array such as `plan.table` is copied to the
            device of x_t. row: int64 [B] in [0, R).
        slots: [S, B, …] in the compute type, S <= 4: what the solver remembers between rows.
        noise: like x_t; None: the noise of seed, sample_ids and the row's noise_index, as `randn`
            draws it.
        guidance: [B] strength: out = u + gamma (c - u) (Ho & Salimans 2022, eq. 6); 1 and 0 select
            c and u.
        gradient: like x_t, added to the output with the row's `out_grad` (Dhariwal & Nichol 2021,
            eq. 14).
        stream, window, mode: see `randn`. With a window, log-probabilities are those of its
            elements, and rows of whole samples (rescaled guidance, dynamic thresholds) are refused.
        used: the bit mask of the columns that the table uses (`Plan.used`); None reads it from a
            table on the CPU.
        out, slots_out: where to write x_s and the slots, which may be x_t and slots; nothing is
            allocated and no gradient recorded.
        x0_out, input_out, row_out, time_out: optional outputs next to `out`: x0 like x_t, the
            network's next input [B, …] or [2B, …], the next rows, int64 [B] in other memory than
            `row`, and the network's next times, column t of the next rows, [B] or [2B] as float32
            or, rounded half to even, as int64.
        log_prob_out: optional output next to `out`: [B] in the compute type, the log-probability in
            nats of x_s as it is stored, with the bits of `step_log_prob`; 0 for rows whose next x
            has no noise, because a deterministic step has no density.
        workspace: [R, B] in the compute type, a buffer for rescale factors, dynamic thresholds and
            terms of guidance where rows have them, and for `log_prob_out`, with R from
            `fastdiff.ops.step.workspace_rows` (6 up to 32,768 elements a sample, without
            `log_prob_out`); None allocates it.
        backend: see `randn`.

    Returns:
        x_s; with slots and without `out`, (x_s, new slots). Gradients flow to x_t, model_output,
        slots, noise, guidance and gradient.

    Raises:
        IndexError: row outside the table or, where noise is drawn, sample_ids outside [0, 2**56)
            (CPU; other devices give NaN for that sample).
        ValueError, TypeError: for other arguments, or rows that read an operand that is missing.
    """
    if window is not None or stream.__class__ is not int or stream != 1:
        stream = _windowed(x_t, stream, window)
    arguments = StepArguments(
        x_t,
        model_output,
        common.from_array(table, x_t),
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
        out,
        slots_out,
        x0_out,
        input_out,
        row_out,
        time_out,
        log_prob_out,
        workspace,
    ).check()
    if window is not None and arguments.whole_samples:
        raise ValueError(
            f"fastdiff.{WHERE}: expected rows without rescaled guidance and dynamic thresholds with"
            " window, got rows that need whole samples."
        )
    if backend:
        with choice.use(backend):
            return _run(arguments)
    return _run(arguments)


def _windowed(x_t: Tensor, stream: int, window: tuple[int, int] | None) -> int:
    common.batched(WHERE, "x_t", x_t)
    return common.windowed(WHERE, stream, window, common.elements(x_t.shape))


def _run(arguments: StepArguments) -> Tensor | tuple[Tensor, Tensor]:
    """Executes the op with checked arguments: into their outputs, or into new tensors."""
    if arguments.out is not None:
        arguments.write()
        return arguments.out
    tensors = arguments.tensors
    if autograd.recorded(tensors) or autograd.forward_mode() or not common.unobserved(*tensors):
        x_s, slots = _functional(*arguments.flat()[:FUNCTIONAL])
    else:
        x_s, slots = _launch_new(arguments)
    return x_s if arguments.slots is None else (x_s, slots)
