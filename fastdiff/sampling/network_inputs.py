"""The network's side of the lanes: its inputs as buffers that stay, cut into calls of the right
size.

With two guidance halves the inputs of the B lanes lie twice in a row, conditional first.
`network_batch` = N cuts them into calls of exactly N rows, the last one filled up, so that a row's
arithmetic never depends on how many others there are.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..table import INDEX
from .device_plan import Program
from .guidance import Conditions, same
from .model_call import Network, out_of_memory
from .requests import Batch

if TYPE_CHECKING:
    from .buffers import Options

_MOST_CONDITIONS = 2**28  # bytes of conditions worth computing ahead


class Call(NamedTuple):
    """Views of the buffers for one call, of which the first `rows` rows count."""

    rows: int
    x: Tensor
    t: Tensor
    condition: Tensor | None
    arguments: dict[str, Any]


class Calls:
    """Buffers and calls of one set of lanes.

    Attributes:
        next_input: [halves·B, …] where the step kernel writes. t: [≥ halves·B] network times, valid
            after `output`.
        chunk: rows of a call, where memory has forced calls to be cut.
    """

    def __init__(
        self,
        program: Program,
        network: Network,
        options: Options,
        shape: tuple[int, ...],
        like: Conditions,
        *,
        halves: int,
        dtype: torch.dtype,
    ):
        self._program, self._network, self._options = program, network, options
        self._batch, self._halves, self._shape = shape[0], halves, shape[1:]
        device, total = program.device, halves * shape[0]
        size = options.network_batch or total
        capacity = total + size - 1 if options.network_batch else total
        self._x = torch.zeros(
            (capacity, *shape[1:]), dtype=network.input_dtype(dtype), device=device
        )
        self.next_input = self._x[:total]
        self._given = self._x
        if network.channels_last and len(shape) == 4:
            self._given = torch.zeros_like(self._x, memory_format=torch.channels_last)
        self.t = torch.zeros(capacity, dtype=program.times.dtype, device=device)
        self._halves_of_t = self.t[:total].view(halves, -1).unbind()
        self._arguments = {k: _room(v, capacity) for k, v in like.cond.items()}
        self._shared = like.shared
        self._conditions: Tensor | None = None  # [R, total, …] computed ahead, by row and position
        self._condition: Tensor | None = None  # [capacity, …] those of the next call
        # t is needed by name where someone else than the network reads it
        self._ahead = (
            network.offers_conditions and options.classifier is None and options.guidance is None
        )
        if self._ahead:
            self._position = torch.arange(total, device=device).view(halves, -1)
            self._index = torch.zeros_like(self._position)
        self.chunk: int | None = None
        self._made: dict[str, list[Call]] = {}
        self._joined: dict[str, Tensor] = {}

    def enter(
        self,
        where: np.ndarray,
        index: Tensor,
        state: Tensor,
        batch: Batch,
        scale: np.ndarray,
        whole: bool,
    ) -> None:
        """The inputs, arguments and conditions of samples that come into the lanes `where` (`index`
        on the device).
        """
        if (scale != 1).any():
            factor = torch.tensor(scale, dtype=state.dtype, device=state.device)
            state = state * factor.view(-1, *(1,) * (state.ndim - 1))
        fitting = batch.conditions
        if (
            fitting.cond.keys() != self._arguments.keys()
            or fitting.shared.keys() != self._shared.keys()
            or not all(same(value, self._shared[key]) for key, value in fitting.shared.items())
        ):
            raise ValueError(
                "fastdiff.Sampler: expected the same arguments in every request's cond, tensors per"
                " sample and one value of all else, got others. Serve them in runs of their own."
            )
        for half, arguments in enumerate((fitting.cond, fitting.uncond)[: self._halves]):
            rows = slice(half * self._batch, (half + 1) * self._batch)
            inputs = self._x[rows]
            if whole:
                inputs.copy_(state)
            else:
                inputs.index_copy_(0, index, state.to(inputs.dtype))
            for key, value in arguments.items():
                room = self._arguments[key]
                if value.shape[1:] != room.shape[1:] or value.dtype != room.dtype:
                    raise ValueError(
                        f"fastdiff.Sampler: expected {key!r} as {room.dtype} of shape"
                        f" {list(room.shape[1:])} in every request, got {value.dtype} of shape"
                        f" {list(value.shape[1:])}."
                    )
                room[rows].index_copy_(0, index, value)
        if self._ahead:
            self._compute_conditions(where, batch.rows)

    @property
    def like(self) -> Conditions:
        """Arguments from which other lanes' buffers can be made."""
        first = {k: v[:1] for k, v in self._arguments.items()}
        return Conditions(first, first, self._shared)

    def take_over(self, old: Calls, index: Tensor, x: Tensor, scale: np.ndarray) -> None:
        """Arguments and conditions of other lanes' samples, and the inputs of their states."""
        n, halves = len(index), range(min(self._halves, old._halves))
        factor = torch.tensor(scale, dtype=x.dtype, device=x.device).view(-1, *(1,) * (x.ndim - 1))
        for half in range(self._halves):
            self._x[half * self._batch : (half + 1) * self._batch].copy_(x * factor)
            # lanes that had one half needed no unconditional arguments: any will do
            source = half if half in halves else 0
            for key, room in self._arguments.items():
                rows = old._arguments[key][source * old._batch :][index]
                room[half * self._batch : half * self._batch + n] = rows
        self.chunk = old.chunk
        self._ahead = old._ahead
        if old._conditions is not None:
            kept = old._conditions
            shape = (len(kept), self._halves, self._batch, *kept.shape[2:])
            grown = kept.new_zeros(shape)
            view = kept.view(len(kept), old._halves, old._batch, *kept.shape[2:])
            for half in range(self._halves):
                grown[:, half, :n] = view[:, half if half in halves else 0, index]
            self._conditions = grown.view(len(kept), -1, *kept.shape[2:])
            self._condition = kept.new_zeros((len(self._x), *kept.shape[2:]))

    def _compute_conditions(self, where: np.ndarray, rows: np.ndarray) -> None:
        """The conditions of every row that the lanes `where` will come by, in calls of the size
        that the loop's have.
        """
        program, total = self._program, self._halves * self._batch
        pairs = [
            (row, lane + half * self._batch)
            for lane, first in zip(where.tolist(), rows.tolist(), strict=True)
            for row in range(first, int(program.stop[first]))
            if program.network[row]
            for half in range(self._halves)
        ]
        if not pairs:
            return
        pairs.sort()
        size = self._options.network_batch or total
        pairs += pairs[-1:] * (-len(pairs) % size)  # every call is a full one
        index = torch.tensor(pairs, device=program.device).view(-1, 2).T.contiguous()
        times = program.times.index_select(0, index[0])
        places = torch.add(index[1], index[0], alpha=total)
        for begin in range(0, len(pairs), size):
            cut = slice(begin, begin + size)
            arguments = {k: v.index_select(0, index[1, cut]) for k, v in self._arguments.items()}
            made = self._network.condition(times[cut], self._shared | arguments)
            if (
                len(program.plan.table) * total * made[0].numel() * made.element_size()
                > _MOST_CONDITIONS
            ):
                self._ahead, self._conditions = False, None
                self._made.clear()
                return
            held = self._conditions
            if held is None or len(held) < len(program.plan.table):
                grown = made.new_zeros((len(program.plan.table), total, *made.shape[1:]))
                if held is not None:
                    grown[: len(held)] = held
                self._conditions = held = grown
            if self._condition is None:
                self._condition = made.new_zeros((len(self._x), *made.shape[1:]))
                self._made.clear()
            held.flatten(0, 1).index_copy_(0, places[cut], made)

    def output(self, kind: str, row: Tensor) -> Tensor:
        """The network's output for one kind of step (`both`, `cond`, `uncond`), the lanes being at
        these rows.
        """
        if self._ahead and self._conditions is not None:
            assert self._condition is not None
            total = self._halves * self._batch
            torch.add(self._position, row, alpha=total, out=self._index)
            flat = self._conditions.flatten(0, 1)
            torch.index_select(flat, 0, self._index.view(-1), out=self._condition[:total])
        else:
            self._read_times(row)
        if self._given is not self._x:
            self._given.copy_(self._x)
        while True:
            try:
                return self._run(kind)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            # outside of the handler: the error's traceback holds what filled the memory
            self._cut(kind)

    def _read_times(self, row: Tensor) -> None:
        torch.index_select(self._program.times, 0, row, out=self._halves_of_t[0])
        if self._halves == 2:
            self._halves_of_t[1].copy_(self._halves_of_t[0])

    def through(self, kind: str, row: Tensor, x: Tensor) -> Tensor:
        """The output as a function of the states x [B, …], for gradients through the network."""
        self._read_times(row)
        scale = self._program.table[:, INDEX["input_scale"]].index_select(0, row).to(x.dtype)
        inputs = (x * scale.view(-1, *(1,) * (x.ndim - 1))).to(self._x.dtype)
        if kind == "both":
            inputs = torch.cat([inputs, inputs])
        begin, rows = self._batch if kind == "uncond" else 0, len(inputs)
        size = self._options.network_batch or self.chunk or rows
        if self._options.network_batch:
            inputs = torch.cat([inputs, inputs.new_zeros((-rows % size, *inputs.shape[1:]))])
        parts = []
        for first in range(0, rows, size):
            at = slice(begin + first, begin + min(first + size, len(inputs)))
            arguments = self._shared | {k: v[at] for k, v in self._arguments.items()}
            parts.append(self._network.forward(inputs[first : first + size], self.t[at], arguments))
        return torch.cat(parts)[:rows]

    def _run(self, kind: str) -> Tensor:
        calls = self._made.get(kind)
        if calls is None:
            calls = self._made[kind] = self._cut_into(kind)
        if len(calls) == 1:
            out = self._call(calls[0])
            return out[: calls[0].rows] if self._options.network_batch else out
        begin, rows = 0, sum(call.rows for call in calls)
        for call in calls:
            out = self._call(call)
            if kind not in self._joined:
                self._joined[kind] = out.new_empty((rows, *out.shape[1:]))
            self._joined[kind][begin : begin + call.rows] = out[: call.rows]
            begin += call.rows
        return self._joined[kind]

    def _call(self, call: Call) -> Tensor:
        if call.condition is not None:
            return self._network.decode(call.x, call.condition)
        return self._network.forward(call.x, call.t, call.arguments)

    def _cut_into(self, kind: str) -> list[Call]:
        begin = self._batch if kind == "uncond" else 0
        end = begin + self._batch * (self._halves if kind == "both" else 1)
        size = self._options.network_batch or self.chunk or end - begin
        calls = []
        for first in range(begin, end, size):
            rows = min(size, end - first)
            cut = slice(first, first + (size if self._options.network_batch else rows))
            condition = (
                self._condition[cut] if self._ahead and self._condition is not None else None
            )
            arguments = self._shared | {k: v[cut] for k, v in self._arguments.items()}
            calls.append(Call(rows, self._given[cut], self.t[cut], condition, arguments))
        return calls

    def _cut(self, kind: str) -> None:
        """Smaller calls after memory ran out, or an error that names the largest batch that
        fits.
        """
        where, options = "fastdiff.Sampler", self._options
        calls = self._made[kind]
        size = max(call.rows for call in calls)
        if options.network_batch:
            raise torch.OutOfMemoryError(
                f"{where}: expected a network_batch that fits into memory, got"
                f" {options.network_batch}. Pass a smaller one."
            ) from None
        fits = size
        while fits > 1:
            fits //= 2
            if self._fits(calls[0], fits):
                break
        else:
            raise torch.OutOfMemoryError(
                f"{where}: expected memory for a network call on one sample, got too little. Use a"
                " smaller network or state."
            ) from None
        if options.on_oom != "split":
            halves = self._halves if kind == "both" else 1
            raise torch.OutOfMemoryError(
                f"{where}: expected a batch that fits into memory, got {self._batch}: the largest"
                f" found to fit is {fits // halves}. Pass that, or on_oom='split'."
            ) from None
        warnings.warn(
            f"{where}: memory ran out, network calls are split into {fits} rows each.", stacklevel=2
        )
        self.chunk = fits
        self._made.clear()

    def _fits(self, call: Call, rows: int) -> bool:
        if self._x.device.type == "cuda":
            torch.cuda.empty_cache()
        condition = None if call.condition is None else call.condition[:rows]
        arguments = self._shared | {k: call.arguments[k][:rows] for k in self._arguments}
        try:
            self._call(Call(rows, call.x[:rows], call.t[:rows], condition, arguments))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return False
        return True


def _room(like: Tensor, capacity: int) -> Tensor:
    """A buffer of rows like these, each filled with the first: valid arguments wherever no sample
    is.
    """
    return like[:1].expand(capacity, *like.shape[1:]).clone()
