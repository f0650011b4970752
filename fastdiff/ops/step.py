"""The arguments of `reverse_step`: checked once, launched many times.

Every way to execute a row goes through `StepArguments`: the op itself, the sampling loop and the
drop-in schedulers. `check` validates the arguments and `launch` starts the kernel for checked ones.
`bind` makes a step for repeated calls: it checks the first call of each kind, and later moves only
the pointers of what changes from call to call, because checks and packing cost more than a small
step itself.

This file is over 400 lines because the arguments and all of their checks are one class.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import choice
from ..backend.abi import HEAD_ROWS
from ..backend.eager.common import compute_dtype
from ..backend.eager.sums import CHUNK, chunks
from ..table import ALL_COLUMNS, COLUMNS, OPERANDS, OUTPUTS, READS, SLOTS, columns
from ..whole import whole
from . import common
from .bound_step import WHERE, BoundStep


class StepArguments(NamedTuple):
    """What the execution of one row per sample needs (kernels/README.md section 4).

    B is the batch, R the number of rows; "compute type" is float64 for a float64 `x_t`, else
    float32. `reverse_step` documents what the arguments mean.
    """

    x_t: Tensor  # [B, …], any floating dtype
    model_output: Tensor | None  # [B, …] or with guidance [2B, …], any floating dtype
    table: Tensor  # float64 [R, 62]
    row: Tensor  # int64 [B] in [0, R)
    slots: Tensor | None = None  # compute type [S, B, …], S <= 4
    noise: Tensor | None = None  # [B, …], any floating dtype
    seed: int | Tensor | None = None  # in [0, 2**64), or int64 [] or [B] (two's complement)
    sample_ids: Tensor | None = None  # int64 [B]; None: 0 … B - 1
    guidance: Tensor | None = None  # [B], any floating dtype; checked: compute type
    gradient: Tensor | None = None  # [B, …], any floating dtype
    stream: int = 1  # of the noise counter, in [0, 256)
    mode: str = "exact"  # of the noise: "exact" or "fast"
    used: int | None = None  # bit mask of the table's columns that are not all zero; None: find out
    out: Tensor | None = None  # [B, …] like x_t, may be x_t; None: allocate the results
    slots_out: Tensor | None = None  # compute type [S, B, …], may be `slots`
    x0_out: Tensor | None = None  # [B, …], any floating dtype
    input_out: Tensor | None = None  # [B, …] or [2B, …], any floating dtype
    row_out: Tensor | None = None  # int64 [B], not the memory of `row`
    time_out: Tensor | None = None  # [B] or [2B], int64 or float32
    log_prob_out: Tensor | None = None  # compute type [B]
    workspace: Tensor | None = None  # compute type [workspace_rows, B]

    @property
    def fast(self) -> bool:
        """Returns whether noise may use the hardware's approximations."""
        return self.mode == "fast"

    @property
    def seeds(self) -> Tensor | None:
        """Returns the seeds [B] of the samples, or None where they share one."""
        seed = self.seed
        return None if seed is None or isinstance(seed, int) else seed

    @property
    def seed_number(self) -> int | None:
        """Returns the seed that all samples share: 0 where each has one, None without a seed."""
        seed = self.seed
        return seed if seed is None or isinstance(seed, int) else 0

    @property
    def rescale(self) -> Tensor | None:
        """Returns the buffer [B] for factors of rescaled guidance; None where no row needs them."""
        workspace = self.workspace
        return workspace[0] if workspace is not None and self.rescales else None

    @property
    def threshold(self) -> Tensor | None:
        """Returns the buffer [B] for dynamic thresholds; None where no row needs them."""
        workspace = self.workspace
        return workspace[1] if workspace is not None and self.thresholds else None

    @property
    def terms(self) -> Tensor | None:
        """Returns the buffer [4, B] by which kinds of guidance change the unconditional output.

        None where no row has such a kind.
        """
        workspace = self.workspace
        return workspace[2:HEAD_ROWS] if workspace is not None and self.changes else None

    @property
    def prepass_workspace(self) -> Tensor | None:
        """Returns the workspace without the partial sums of the log-probability."""
        workspace, rows = self.workspace, self.partial_rows
        return workspace if workspace is None or rows == 0 else workspace[:-rows]

    @property
    def partials(self) -> Tensor | None:
        """Returns the buffer for the log-probability's partial sums; None where it needs none."""
        workspace, rows = self.workspace, self.partial_rows
        return None if workspace is None or rows == 0 else workspace[-rows:]

    @property
    def partial_rows(self) -> int:
        """Returns the rows of the workspace for partial sums of the log-probability."""
        if self.log_prob_out is None:
            return 0
        return partial_rows(common.elements(self.x_t.shape))

    @property
    def tensors(self) -> list[Tensor]:
        """Returns the tensors among the inputs."""
        inputs: tuple[Any, ...] = (*self[:_SEED], self.seeds, *self[_SEED + 1 : _STREAM])
        return [value for value in inputs if value is not None]

    @property
    def outputs(self) -> tuple[Any, ...]:
        """Returns the outputs and the workspace, None for each that is missing."""
        return self[_FIRST_OUTPUT:]

    @property
    def rescales(self) -> bool:
        """Returns whether rows may need factors of rescaled guidance."""
        return self.guidance is not None and bool(self.used & _RESCALE)  # type: ignore[operator]

    @property
    def thresholds(self) -> bool:
        """Returns whether rows may need dynamic thresholds."""
        return bool(self.used & _RATIO)  # type: ignore[operator]

    @property
    def changes(self) -> bool:
        """Returns whether rows may have a kind of guidance with terms of whole samples."""
        return self.guidance is not None and bool(self.used & _KIND)  # type: ignore[operator]

    @property
    def whole_samples(self) -> bool:
        """Returns whether rows may read a number that belongs to a whole sample.

        These are the factor of rescaled guidance, the dynamic threshold and the terms of a kind of
        guidance.
        """
        return self.rescales or self.thresholds or self.changes

    def check(self, where: str = WHERE, *, scored: bool = False) -> StepArguments:
        """Validates all arguments and returns them normalised.

        Afterwards `table`, `row`, `seed`, `sample_ids` and `guidance` are dense, `seed` is an int,
        an int64 tensor [B] or None, `guidance` has the compute type, and `used` is a mask. With
        `scored` only the mean of the next x is computed: `used` has its columns, and no noise is
        needed. `where` is the op that errors name.

        Raises the errors that `reverse_step` documents.
        """
        x_t, table, guidance, used = self.x_t, self.table, self.guidance, self.used
        common.batched(where, "x_t", x_t)
        batch, compute = x_t.size(0), compute_dtype(x_t)
        _check_table(where, table, x_t)
        row = common.integers(where, "row", self.row, batch, x_t, "x_t")
        if guidance is not None:
            common.floating(where, "guidance", guidance)
            common.shaped(where, "guidance", guidance, (batch,))
            common.same_device(where, "guidance", guidance, x_t, "x_t")
            guidance = common.dense(guidance.to(compute))
        learned = self.model_output is not None and self._check_model_output(where)
        if not (self.noise is None and self.gradient is None and self.x0_out is None):
            self._check_state_like(where)
        slots = 0
        if not (self.slots is None and self.slots_out is None):
            slots = self._check_slots(where, compute)
        table = common.dense(table)
        if used is None:
            used = common.columns_used(table)
            known = common.readable(table)
        else:
            used = _mask(where, used)
            # on the CPU the backends look at the rows in use, which may need less than the table
            known = table.device.type != "cpu" and used != -1
        if scored:
            used &= SCORED
        if known:
            self._check_required(where, used, learned, slots, scored)
        _, stream, _ = common.counter_arguments(where, 0, self.stream, self.mode, window=True)
        if x_t.numel() > 2**34:
            common.sized(where, common.elements(x_t.shape))
        seed: int | Tensor | None = self.seed
        number, seeds = common.seed_arguments(where, seed, batch, x_t, "x_t", optional=True)
        sample_ids = self.sample_ids
        if sample_ids is not None:
            sample_ids = common.integers(where, "sample_ids", sample_ids, batch, x_t, "x_t")
        self._check_outputs(compute)
        if seeds is not None:
            seed = seeds
        elif type(seed) is not int and seed is not None:
            seed = common.unsigned(number)  # NumPy's integers are none for the backends
        if (
            table is self.table
            and row is self.row
            and seed is self.seed
            and sample_ids is self.sample_ids
            and guidance is self.guidance
            and used is self.used
            and stream is self.stream
        ):
            return self
        return StepArguments(
            x_t,
            self.model_output,
            table,
            row,
            self.slots,
            self.noise,
            seed,
            sample_ids,
            guidance,
            self.gradient,
            stream,
            self.mode,
            used,
            *self.outputs,
        )

    def _check_model_output(self, where: str) -> bool:
        """Checks the network's output and returns whether it has a variance half."""
        x_t, model_output = self.x_t, self.model_output
        assert model_output is not None
        common.floating(where, "model_output", model_output)
        common.same_device(where, "model_output", model_output, x_t, "x_t")
        rows = x_t.size(0) if self.guidance is None else 2 * x_t.size(0)
        plain = x_t.shape if self.guidance is None else (rows, *x_t.shape[1:])
        if model_output.shape == plain:
            return False
        if x_t.ndim < 2 or model_output.shape != (rows, 2 * x_t.shape[1], *x_t.shape[2:]):
            half = " for guidance (conditional half first)" if self.guidance is not None else ""
            raise ValueError(
                f"fastdiff.{where}: expected model_output of shape {list(plain)}{half}, got"
                f" {list(model_output.shape)}."
            )
        return True

    def _check_state_like(self, where: str) -> None:
        """Checks the optional tensors of x_t's shape."""
        for name in ("noise", "gradient", "x0_out"):
            value = getattr(self, name)
            if value is not None:
                common.floating(where, name, value)
                common.shaped(where, name, value, self.x_t.shape)
                common.same_device(where, name, value, self.x_t, "x_t")

    def _check_slots(self, where: str, compute: torch.dtype) -> int:
        """Checks both sets of slots and returns how many there are."""
        for name, value in (("slots", self.slots), ("slots_out", self.slots_out)):
            if value is not None:
                common.batched(where, name, value)
                common.shaped(where, name, value, (min(value.shape[0], SLOTS), *self.x_t.shape))
                common.same_device(where, name, value, self.x_t, "x_t")
                if value.dtype != compute:
                    raise TypeError(
                        f"fastdiff.{where}: expected {name} of dtype {compute}, got {value.dtype}."
                    )
        slots, slots_out = self.slots, self.slots_out
        if slots is None:
            return slots_out.shape[0]  # type: ignore[union-attr]
        if slots_out is not None and slots_out.shape[0] > slots.shape[0]:
            raise ValueError(  # the others would have no values to keep
                f"fastdiff.{where}: expected slots_out with at most the {slots.shape[0]} entries of"
                f" slots, got {slots_out.shape[0]}."
            )
        return slots.shape[0]

    def _check_required(
        self, where: str, used: int, learned: bool, slots: int, scored: bool
    ) -> None:
        """Raises where the table reads an operand that is missing."""
        missing = None
        if self.guidance is None:  # the only one to read what an earlier difference left
            used &= ~_MOMENTUM
        if self.model_output is None and used & _NETWORK:
            missing = "model_output, which rows of this table read"
        elif used & _LEARNED and used & READS["z"] and not learned:
            missing = (
                "model_output with a variance half (twice the channels), which rows of this table"
                " read"
            )
        elif not scored and self.noise is None and self.seed is None and used & READS["z"]:
            missing = "seed or noise, for rows that draw noise"
        elif self.gradient is None and used & _GRADIENT:
            missing = "gradient, which rows of this table read"
        elif used & _BEYOND[slots]:
            enough = next(n for n in range(slots, SLOTS + 1) if not used & _BEYOND[n])
            missing = f"slots with at least {enough} entries"
        if missing:
            raise ValueError(f"fastdiff.{where}: expected {missing}.")

    def _check_outputs(self, compute: torch.dtype) -> None:
        x_t, out, workspace = self.x_t, self.out, self.workspace
        others = not (
            self.slots_out is None
            and self.x0_out is None
            and self.input_out is None
            and self.row_out is None
            and self.time_out is None
            and self.log_prob_out is None
        )
        if out is None:
            if others:
                raise ValueError(
                    f"fastdiff.{WHERE}: expected out together with the other outputs. Pass out=."
                )
            return
        common.writable(WHERE, "out", out)
        if out is not x_t:
            common.shaped(WHERE, "out", out, x_t.shape)
            common.same_device(WHERE, "out", out, x_t, "x_t")
            if out.dtype != x_t.dtype:
                raise TypeError(
                    f"fastdiff.{WHERE}: expected out of dtype {x_t.dtype} like x_t, got"
                    f" {out.dtype}."
                )
        if others:
            self._check_other_outputs()
        if not out.is_contiguous():
            raise ValueError(_CONTIGUOUS)
        self._check_memory(out)
        if workspace is not None:
            check_workspace(WHERE, workspace, x_t, log_prob=self.log_prob_out is not None)

    def _check_memory(self, out: Tensor) -> None:
        """Refuses outputs that share a part of their memory with inputs or with each other."""
        if torch.compiler.is_compiling() or type(out) is not Tensor or out.is_meta:
            return  # without memory
        # written out for two results that are apart, because in small steps Python's time counts
        begin = out.data_ptr()
        end = begin + out.nbytes
        touching = False
        for value in (self.x_t, self.model_output, self.slots, self.noise, self.gradient):
            if value is not None and value is not out:
                first = value.data_ptr()
                touching |= first < end and begin < first + value.nbytes
        others = self.slots_out, self.x0_out, self.input_out
        if touching or not (others[0] is None and others[1] is None and others[2] is None):
            self._compare_memory(out, others)

    def _compare_memory(self, out: Tensor, others: tuple[Tensor | None, ...]) -> None:
        # inputs that are not contiguous are copied first
        inputs = [
            value
            for value in (self.x_t, self.model_output, self.slots, self.noise, self.gradient)
            if value is not None and value.is_contiguous()
        ]
        common.apart(WHERE, "out", out, inputs)
        before = [out]
        for name, value in zip(("slots_out", "x0_out", "input_out"), others, strict=True):
            if value is not None:
                common.apart(WHERE, name, value, inputs)
                common.apart(WHERE, name, value, before, same=False)
                before.append(value)

    def _check_other_outputs(self) -> None:
        x_t, input_out, batch = self.x_t, self.input_out, self.x_t.size(0)
        time_out, log_prob_out = self.time_out, self.log_prob_out
        if self.row_out is not None:
            common.integers(WHERE, "row_out", self.row_out, batch, x_t, "x_t")
        if input_out is not None:
            common.strided(WHERE, "input_out", input_out)
            common.same_device(WHERE, "input_out", input_out, x_t, "x_t")
            if input_out.shape not in (x_t.shape, (2 * batch, *x_t.shape[1:])):
                raise ValueError(
                    f"fastdiff.{WHERE}: expected input_out of shape {list(x_t.shape)}, got"
                    f" {list(input_out.shape)}."
                )
            common.floating(WHERE, "input_out", input_out)
        if time_out is not None:
            common.strided(WHERE, "time_out", time_out)
            if time_out.shape not in ((batch,), (2 * batch,)):
                raise ValueError(
                    f"fastdiff.{WHERE}: expected time_out of shape {[batch]} or {[2 * batch]}, got"
                    f" {list(time_out.shape)}."
                )
            if time_out.dtype not in (torch.int64, torch.float32):
                raise TypeError(
                    f"fastdiff.{WHERE}: expected time_out of int64 or float32, got"
                    f" {time_out.dtype}."
                )
            common.same_device(WHERE, "time_out", time_out, x_t, "x_t")
        if log_prob_out is not None:
            inputs = self.x_t, self.model_output, self.slots, self.noise, self.gradient, self.out
            check_log_prob(WHERE, "log_prob_out", log_prob_out, x_t, (*inputs, self.guidance))
        for value in (self.slots_out, self.x0_out, input_out, self.row_out, time_out):
            if value is not None and not value.is_contiguous():
                raise ValueError(_CONTIGUOUS)
        for name in ("slots_out", "x0_out", "input_out", "row_out", "time_out"):
            value = getattr(self, name)
            if value is not None:
                common.writable(WHERE, name, value)

    def launchable(self) -> StepArguments:
        """Returns checked arguments as the kernels take them.

        Inputs are dense, and there is a workspace where a prepass needs one.
        """
        lacks = self.workspace is None and (self.whole_samples or self.partial_rows > 0)
        for value in (self.x_t, self.model_output, self.slots, self.noise, self.gradient):
            if lacks or not (value is None or value.is_contiguous()):
                break
        else:
            return self
        ready: dict[str, Any] = {
            name: value.contiguous()
            for name, value in self._asdict().items()
            if name in _DENSE and value is not None
        }
        if lacks:
            x_t = self.x_t
            ready["workspace"] = workspace_for(x_t, log_prob=self.log_prob_out is not None)
        return self._replace(**ready)

    def into(self, out: Tensor, slots_out: Tensor | None) -> StepArguments:
        """Returns the same inputs with only these outputs."""
        arguments: list[Any] = [*self[:_FIRST_OUTPUT], out, slots_out]
        return StepArguments(*arguments)

    def launch(self) -> None:
        """Starts the kernel for checked arguments on the backend in use."""
        choice.launcher(WHERE, self.x_t.device)(self.launchable())

    def write(self) -> None:
        """Executes the rows of checked arguments into `out` and the other outputs.

        The launch goes past torch's dispatcher unless ops are being observed.
        """
        out: Any = self.out
        written: list[Any] = [value for value in self[_FIRST_OUTPUT:] if value is not None]
        if common.unobserved(*self.tensors, *written):
            self.launch()
            if not out.is_inference():
                torch.autograd.graph.increment_version(written)
        else:
            torch.ops.fastdiff.reverse_step_out.default(*self.flat())

    def bind(self, *moving: str, own: Sequence[str] = ()) -> BoundStep:
        """Returns a callable that executes rows with these arguments, except for the named ones.

        Each call takes the values of the named arguments, in the order of the names: `moving` and
        then `own`, which the caller makes to fit. See `BoundStep`.
        """
        return BoundStep(self, (*moving, *own), own)

    def flat(self) -> tuple[Any, ...]:
        """Returns the arguments of the registered op that writes its outputs.

        The first `FUNCTIONAL` of them are those of the op that returns new tensors.
        """
        seed = self.seed_number or 0
        return (
            *self[:_SEED],
            seed if seed < 2**63 else seed - 2**64,
            self.seeds,
            self.seed is not None,
            *self[_SEED + 1 : _MODE],
            self.mode == "fast",
            *self[_MODE + 1 :],
        )

    @staticmethod
    def from_flat(*values: Any) -> StepArguments:
        """Returns the arguments from those of a registered op: the inverse of `flat`."""
        seed, seeds, seeded = values[_SEED : _SEED + 3]
        mode = _MODE + 2  # `flat` has three values for the seed
        arguments: list[Any] = [
            *values[:_SEED],
            (common.unsigned(seed) if seeds is None else seeds) if seeded else None,
            *values[_SEED + 3 : mode],
            "fast" if values[mode] else "exact",
            *values[mode + 1 :],
        ]
        return StepArguments(*arguments)


_CONTIGUOUS = f"fastdiff.{WHERE}: expected contiguous outputs. State is stored in C order."
_FIELDS = StepArguments._fields
_SEED, _STREAM, _MODE, _FIRST_OUTPUT = (
    _FIELDS.index(name) for name in ("seed", "stream", "mode", "out")
)
FUNCTIONAL = _FIRST_OUTPUT + 2
"""How many flat arguments the functional op has."""
_DENSE = ("x_t", "model_output", "slots", "noise", "gradient")
_OUTPUT_NAMES = frozenset(_FIELDS[_FIRST_OUTPUT:])
WHOLE, PART, MOST_PARTS = 32_768, 16_384, 64
"""The elements of the longest sample that one program reads as a whole, the fewest of a part of a
longer one, and the most parts."""
PART_WORDS, SAMPLE_WORDS = 257, 4
"""What a part and a sample need of a workspace, in 64-bit words."""
_RESCALE, _RATIO, _NETWORK, _GRADIENT, _LEARNED, _KIND, _MOMENTUM = (
    columns(name)
    for name in (
        "guidance_rescale",
        "clip_ratio",
        "network",
        "out_grad",
        "noise_mode",
        "guidance_kind",
        "guidance_momentum",
    )
)
SCORED = ALL_COLUMNS & ~columns(*(f"{to}.{of}" for to in OUTPUTS[1:] for of in OPERANDS))
"""The columns that the mean of the next x may use, and its noise."""
_BEYOND = [
    functools.reduce(
        operator.or_,
        (
            READS[f"s{i + 1}"] | columns(*(f"s{i + 1}.{operand}" for operand in OPERANDS))
            for i in range(count, SLOTS)
        ),
        _MOMENTUM if count < SLOTS else 0,
    )
    for count in range(SLOTS + 1)
]
"""By the number of slots: the columns that need more slots."""


def workspace_rows(per_sample: int, compute: torch.dtype, *, log_prob: bool = False) -> int:
    """Returns the rows of a workspace [rows, B] of the compute type, for samples of this size.

    The first `HEAD_ROWS` are for rescale factors, thresholds and terms of guidance. The others are
    memory for what a GPU's programs pass on about the parts of long samples (kernels/README.md
    section 4), and with `log_prob` for the partial sums of its terms (section 13).
    """
    parts = min(MOST_PARTS, -(-per_sample // PART)) if per_sample > WHOLE else 0
    words = parts * PART_WORDS + SAMPLE_WORDS if parts else 0
    rows = HEAD_ROWS + words * 8 // compute.itemsize
    return rows + (partial_rows(per_sample) if log_prob else 0)


def partial_rows(per_sample: int) -> int:
    """Returns how many partial sums of a log-probability a sample needs memory for."""
    return chunks(per_sample) if per_sample > CHUNK else 0


def workspace_for(x_t: Tensor, *, log_prob: bool = False) -> Tensor:
    """Returns a workspace for states like x_t, whatever the rows need."""
    compute = compute_dtype(x_t)
    rows = workspace_rows(common.elements(x_t.shape), compute, log_prob=log_prob)
    return torch.empty(rows, x_t.size(0), dtype=compute, device=x_t.device)


def check_workspace(where: str, workspace: Tensor, x_t: Tensor, *, log_prob: bool) -> None:
    """Checks a caller's workspace; `log_prob`: whether a log-probability is summed in it."""
    compute, n = compute_dtype(x_t), common.elements(x_t.shape)
    common.writable(where, "workspace", workspace)
    if workspace.dtype != compute:
        common.floating(where, "workspace", workspace)
    rows = workspace_rows(n, compute, log_prob=log_prob)
    common.shaped(where, "workspace", workspace, (rows, x_t.size(0)))
    common.same_device(where, "workspace", workspace, x_t, "x_t")
    if workspace.dtype != compute or not workspace.is_contiguous():
        raise TypeError(
            f"fastdiff.{where}: expected a contiguous workspace of {compute}, got"
            f" {workspace.dtype}."
        )
    begin = workspace.storage_offset() * compute.itemsize
    if n > WHOLE and begin % 8:
        raise ValueError(
            f"fastdiff.{where}: expected a workspace that begins at a multiple of 8 bytes"
            f" in its storage, got one at {begin}. Make it by torch.empty."
        )


def check_log_prob(
    where: str, name: str, out: Tensor, x_t: Tensor, inputs: Sequence[Tensor | None]
) -> None:
    """Checks a caller's memory for the log-probabilities of samples: apart from the inputs."""
    common.writable(where, name, out)
    common.shaped(where, name, out, (x_t.size(0),))
    common.same_device(where, name, out, x_t, "x_t")
    if out.dtype != compute_dtype(x_t) or not out.is_contiguous():
        raise TypeError(
            f"fastdiff.{where}: expected a contiguous {name} of {compute_dtype(x_t)}, got"
            f" {out.dtype}."
        )
    common.apart(where, name, out, inputs, same=False)


def _mask(where: str, used: Any) -> int:
    """Returns a caller's mask of columns as an int."""
    mask = whole(used)
    if mask is None:
        raise TypeError(
            f"fastdiff.{where}: expected used as a bit mask, got {type(used).__name__}. Use"
            " Plan.used or None."
        )
    return mask


def _check_table(where: str, table: Tensor, x_t: Tensor) -> None:
    common.strided(where, "table", table)
    if table.dtype != torch.float64 or table.ndim != 2 or table.shape[1] != len(COLUMNS):
        raise ValueError(
            f"fastdiff.{where}: expected table as float64 [R, {len(COLUMNS)}], got"
            f" {str(table.dtype).removeprefix('torch.')} {list(table.shape)}. Use"
            " plan.table."
        )
    common.same_device(where, "table", table, x_t, "x_t")
