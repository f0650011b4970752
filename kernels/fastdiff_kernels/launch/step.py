"""Launches reverse_step and step_log_prob: the kernel's variant, the prepasses that the table's
rows need, and the second pass of a log-probability's sum.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .common import ERRORS, Call, error_word, extent, noise_arguments, options, run, tiled
from .sums import sum_chunks_call

# Bit masks of columns of the table (kernels/README.md section 4): those outside the combinations
# that decide on the kernel's variant, and all columns before the coefficients.
# tests/backend/test_columns.py compares them with fastdiff.table.
OUT_GRAD, X0_X, X0_OUT, CLIP_MODE, NOISE_MODE, OUT_UNCOND = (
    1 << column for column in (5, 6, 7, 8, 12, 56)
)
GUIDANCE_KIND, GUIDANCE_X, GUIDANCE_MOMENTUM = (1 << column for column in (57, 59, 61))
KINDS = GUIDANCE_KIND | GUIDANCE_X | GUIDANCE_MOMENTUM
HEADER = (1 << 16) - 1

# Elements of a prepass's block, and elements per warp.
_BLOCK, _PER_WARP = 4096, 256
# What the prepasses keep of each part of a long sample, in 64-bit words: two sets of 256 counts and
# one key, or four moments, or three sums of a kind of guidance. And of each sample: what two digits
# found. fastdiff/ops/step.py allocates it, and thereby chooses how many parts there are.
PART_WORDS, SAMPLE_WORDS = 257, 4
HEAD_ROWS = 6  # of the workspace, before that memory: results of the prepasses
_MOST_PARTS = 64
_SCORED = (
    "x_s",
    "x_t",
    "model_output",
    "table",
    "row",
    "slots",
    "guidance",
    "gradient",
    "rescale",
    "terms",
    "threshold",
    "log_prob",
    "partials",
    "errors",
    "table_rows",
    "USES",
    "WIDTH",
)
"""The arguments of reverse_step's kernel that step_log_prob's has too."""
_SLOTS = 4


def reverse_step(step: Any) -> None:
    """Launches the kernels; `step` has the attributes of a checked StepArguments.

    (fastdiff.ops.step, which this package does not import.)
    """
    for call in reverse_step_calls(step):
        run(call, step.out)


def reverse_step_calls(step: Any) -> list[Call]:
    """Returns the calls of a step in order: the prepasses that its rows may need, and the step."""
    call = reverse_step_call(step)
    return [*reverse_step_prepass_calls(call, step.prepass_workspace), call, *_sums(step, call)]


def step_log_prob(step: Any, mean: bool) -> None:
    """Launches the kernels; `step` is a checked StepArguments, with x_s in place of `out`."""
    call = step_log_prob_call(step, mean)
    calls = [*reverse_step_prepass_calls(call, step.prepass_workspace), call]
    for each in [*calls, *_sums(step, call)]:
        run(each, step.out)


def step_log_prob_call(step: Any, mean: bool) -> Call:
    """Returns the main kernel's call."""
    arguments = _named(reverse_step_call(step, scored=True), *_SCORED)
    arguments |= {"ERROR": ERRORS["step_log_prob"], "MEAN": mean}
    return tiled("step_log_prob", step.out, arguments, whole_chunks=True)


def _sums(step: Any, call: Call) -> list[Call]:
    """Returns the call that adds the partial sums of a log-probability, where there are some."""
    partials = call.arguments["partials"]
    if partials is None:
        return []
    size, mean, scored = call.arguments["size"], call.arguments["MEAN"], call.op == "step_log_prob"
    return [
        sum_chunks_call(
            step.log_prob_out,
            partials,
            size,
            mean=mean,
            table=step.table,
            row=step.row,
            scored=scored,
        )
    ]


def reverse_step_prepass_calls(call: Call, workspace: Tensor | None) -> list[Call]:
    """Returns the calls that compute a row's values of whole samples, in order.

    workspace: as of StepArguments, with memory for the parts of long samples.
    """
    parts = None if workspace is None else _parts(workspace, call)
    calls = []
    if call.arguments["terms"] is not None:
        calls += _guidance_calls(call, parts)
    if call.arguments["rescale"] is not None:
        calls += _rescale_calls(call, parts)
    if call.arguments["threshold"] is not None:
        calls += _threshold_calls(call, parts)
    return calls


def reverse_step_call(step: Any, scored: bool = False) -> Call:
    """Returns the main kernel's call; `scored`: with what step_log_prob's kernel takes of it.

    Operands that no column reads become None, and columns of absent operands leave the mask, so
    that equal work compiles one variant.
    """
    x_s, model_output, noise = step.out, step.model_output, step.noise
    slots, slots_out, guidance = step.slots, step.slots_out, step.guidance
    batch, size = extent(x_s)
    halves = 1 if guidance is None else 2
    width = (
        1 if model_output is None else max(1, model_output.numel() // max(1, halves * batch * size))
    )
    memory, stored = 0 if slots is None else len(slots), 0 if slots_out is None else len(slots_out)
    uses, reads_out, reads_z, reads_slots = _needed(
        step.used,
        model_output is not None,
        memory,
        stored,
        noise is not None or step.seed is not None,
        step.gradient is not None,
        step.x0_out is not None,
        width,
        guidance is not None,
        scored,
    )
    generated = reads_z and noise is None
    copied = (
        slots is not None and slots_out is not None and slots.data_ptr() != slots_out.data_ptr()
    )
    guided = reads_out and guidance is not None and size > 0
    terms = step.terms if guided and uses & GUIDANCE_KIND else None
    if terms is None:
        uses &= ~KINDS
    reads_output = reads_out or bool(uses & NOISE_MODE)
    arguments = {
        "x_s": x_s,
        "x_t": step.x_t,
        "table": step.table,
        "row": step.row,
        "errors": error_word(x_s.device),
        "model_output": model_output if reads_output else None,
        "guidance": guidance if reads_out else None,
        "gradient": step.gradient if uses & OUT_GRAD else None,
        "noise": noise if reads_z else None,
        "slots": slots if copied or reads_slots or uses & GUIDANCE_MOMENTUM else None,
        "slots_out": slots_out,
        "rescale": step.rescale if guided else None,
        "terms": terms,
        "threshold": step.threshold if size and uses & CLIP_MODE else None,
        "x0_out": step.x0_out,
        "input_out": step.input_out,
        "row_out": step.row_out,
        "time_out": step.time_out,
        "log_prob": step.log_prob_out,
        "partials": step.partials,
        "table_rows": len(step.table),
        "ERROR": ERRORS["reverse_step"],
        "USES": uses,
        "WIDTH": width if reads_output else 1,
        "COPY": stored if copied else 0,
        "COPIES": 1 if step.input_out is None or not batch else len(step.input_out) // batch,
        "KEEPS": terms is not None and stored == _SLOTS,
        "TIMES": 1 if step.time_out is None or not batch else len(step.time_out) // batch,
        "MEAN": False,
        "SCORED": False,
    }
    arguments |= noise_arguments(
        generated, step.seed_number, step.seeds, step.sample_ids, step.stream
    )
    whole_chunks = step.log_prob_out is not None
    return tiled("reverse_step", x_s, arguments, step.fast and generated, whole_chunks)


@functools.lru_cache(maxsize=1024)
def _needed(
    uses: int,
    output: bool,
    memory: int,
    stored: int,
    draws: bool,
    gradient: bool,
    x0_out: bool,
    width: int,
    guided: bool,
    scored: bool,
) -> tuple[int, bool, bool, bool]:
    """Returns the mask that decides on the variant, and whether it reads output, noise and slots.

    `uses` is the table's mask. The others say which operands there are: `output` the network's
    with `width` elements for an element of the state, `memory` slots to read and `stored` to write,
    `draws` noise or a seed, `gradient`, `x0_out` an output for the prediction of x0, and whether
    the network's output has both halves, `guided`. `scored`: the noise was drawn before.
    """
    present = [True, True, output, *(i < memory for i in range(4)), draws]
    uses &= (
        sum(_reads(operand, 1 + stored) for operand in range(8) if present[operand])
        | HEADER
        | OUT_UNCOND
        | KINDS
    )
    reads_x0, reads_z = bool(uses & _reads(1) or x0_out), bool(uses & _reads(7))
    if not reads_x0:
        uses &= ~(X0_X | X0_OUT | CLIP_MODE)
    if not output:
        uses &= ~X0_OUT
    reads_out = bool(uses & (_reads(2) | X0_OUT))
    if not (gradient and reads_out):
        uses &= ~OUT_GRAD
    if width == 1 or not (reads_z or scored):
        uses &= ~NOISE_MODE
    if not (guided and uses & _reads(2)):
        uses &= ~OUT_UNCOND
    if not (guided and output):
        uses &= ~KINDS
    elif memory < _SLOTS:
        uses &= ~GUIDANCE_MOMENTUM
    reads_out |= bool(uses & GUIDANCE_KIND)  # for the difference, whatever else reads it
    uses &= (
        sum(_reads(operand) for operand in range(8))
        | OUT_GRAD
        | X0_X
        | X0_OUT
        | CLIP_MODE
        | NOISE_MODE
        | OUT_UNCOND
        | KINDS
    )
    return uses, reads_out, reads_z, bool(uses & sum(_reads(operand) for operand in range(3, 7)))


class _Parts(NamedTuple):
    """How long samples are divided, and memory for what their parts pass on."""

    number: int
    span: int  # elements of a part
    words: Tensor  # int64

    def memory(self, begin: int, words: int, dtype: torch.dtype) -> Tensor:
        return self.words[begin : begin + words].view(dtype)


def _parts(workspace: Tensor, call: Call) -> _Parts | None:
    """Returns the parts that the workspace has memory for; None where a sample is one part."""
    batch, size = call.arguments["batch"], call.arguments["size"]
    if len(workspace) == HEAD_ROWS or not batch:
        return None
    words = workspace[HEAD_ROWS:].view(-1).view(torch.int64)
    most = min(_MOST_PARTS, (len(words) // batch - SAMPLE_WORDS) // PART_WORDS)
    span = -(-size // (most * _BLOCK)) * _BLOCK
    return _Parts(-(-size // span), span, words)


def _of_kinds(call: Call) -> dict[str, Any]:
    """Returns the operands of kinds of guidance, None for each that no row reads."""
    uses = call.arguments["USES"] & KINDS
    return {
        "terms": call.arguments["terms"],
        "x_t": call.arguments["x_t"] if uses & GUIDANCE_X else None,
        "slots": call.arguments["slots"] if uses & GUIDANCE_MOMENTUM else None,
        "USES": uses,
    }


def _guidance_calls(call: Call, parts: _Parts | None) -> list[Call]:
    outputs = _named(call, "terms", "guidance", "table", "row", "batch", "table_rows")
    reads = _named(call, "model_output", "size", "WIDTH") | _of_kinds(call)
    # of float64 states more registers hold what is loaded
    share = 2 if call.arguments["terms"].dtype == torch.float64 else 1
    if parts is None:
        whole = {"partials": None, "span": _BLOCK * -(-call.arguments["size"] // _BLOCK)}
        return [_prepass("reverse_step_guidance", call, outputs | reads | whole, share=share)]
    count = parts.number
    sums = {"partials": parts.memory(0, 4 * call.arguments["batch"] * count, torch.float64)}
    between = sums | {"span": parts.span}
    return [
        _prepass("reverse_step_guidance", call, outputs | reads | between, count, share=share),
        _finish("reverse_step_guidance_combine", call, outputs | sums | {"parts": count}),
    ]


def _rescale_calls(call: Call, parts: _Parts | None) -> list[Call]:
    outputs = _named(call, "rescale", "guidance", "table", "row", "size", "table_rows")
    reads = _named(call, "model_output", "batch", "WIDTH") | _of_kinds(call)
    if parts is None:
        whole = {"partials": None, "span": _BLOCK * -(-call.arguments["size"] // _BLOCK)}
        return [_prepass("reverse_step_rescale", call, outputs | reads | whole)]
    count = parts.number
    moments = parts.memory(0, 4 * call.arguments["batch"] * count, torch.float64)
    between = {"partials": moments, "span": parts.span}
    return [
        _prepass("reverse_step_rescale", call, outputs | reads | between, count),
        _finish("reverse_step_rescale_combine", call, outputs | between | {"parts": count}),
    ]


def _threshold_calls(call: Call, parts: _Parts | None) -> list[Call]:
    names = ("x_t", "gradient", "USES", "rescale", "terms", "model_output", "guidance", "WIDTH")
    reads, row = (
        _named(call, *names) | {"slots": _of_kinds(call)["slots"]},
        _named(call, "table", "row", "batch", "size", "table_rows"),
    )
    threshold = call.arguments["threshold"]
    if parts is None:
        whole = reads | row | {"threshold": threshold}
        return [_prepass("reverse_step_threshold", call, whole)]
    batch, count = call.arguments["batch"], parts.number
    wide = threshold.dtype == torch.float64
    between = {
        "counts": parts.memory(SAMPLE_WORDS * batch, 256 * batch * count, torch.int32),
        "found": parts.memory(0, SAMPLE_WORDS * batch, torch.int64),
        "larger": parts.memory(
            (SAMPLE_WORDS + 256 * count) * batch,
            batch * count,
            torch.int64 if wide else torch.int32,
        ),
    }
    calls = [
        _prepass(
            "reverse_step_threshold_count",
            call,
            reads | row | between | {"span": parts.span, "index": index},
            count,
        )
        for index in range(8 if wide else 4)
    ]
    last = row | between | {"threshold": threshold, "parts": count}
    return [*calls, _finish("reverse_step_threshold_finish", call, last)]


def reverse_step_guidance_call(call: Call) -> Call:
    """Returns the call that computes the terms of samples of one part."""
    return _guidance_calls(call, None)[0]


def reverse_step_rescale_call(call: Call) -> Call:
    """Returns the call that computes the factors of samples of one part."""
    return _rescale_calls(call, None)[0]


def reverse_step_threshold_call(call: Call) -> Call:
    """Returns the call that computes the thresholds of samples of one part."""
    return _threshold_calls(call, None)[0]


def _named(call: Call, *names: str) -> dict[str, Any]:
    return {name: call.arguments[name] for name in names}


def _prepass(
    op: str, call: Call, arguments: dict[str, Any], parts: int = 1, share: int = 1
) -> Call:
    """Returns a call with one program per part of a sample.

    share: by which a block and its elements per warp are smaller.
    """
    most = _BLOCK // share
    elements = min(most, max(4, 1 << max(call.arguments["size"] - 1, 0).bit_length()))
    arguments |= {"E": elements, "FAST": False}
    warps = max(1, elements * share // _PER_WARP)
    grid = (call.arguments["batch"], parts, 1)
    return Call(op, "reverse_step_prepass", grid, arguments, options(warps=warps))


def _finish(op: str, call: Call, arguments: dict[str, Any]) -> Call:
    """Returns a call with one program per sample, which adds what its parts left."""
    arguments |= {"E": _MOST_PARTS, "FAST": False}
    grid = (call.arguments["batch"], 1, 1)
    return Call(op, "reverse_step_prepass", grid, arguments, options(warps=4))


def _reads(operand: int, outputs: int = 5) -> int:
    """Returns the columns by which the next x and the slots read an operand."""
    return sum(1 << (16 + 8 * output + operand) for output in range(outputs))
