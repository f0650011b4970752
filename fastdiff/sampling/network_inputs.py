"""The network's inputs in static buffers, cut into calls of the right size.

With two guidance halves the inputs of the B lanes are in the buffers twice, the conditional half
first. Where the network has a guide (autoguidance), each half is a call of its own, of the network
and of the guide. `network_batch` = N cuts them into calls of exactly N rows, the last one padded,
so that a row's arithmetic never depends on the number of other rows.

A network that computes its conditioning separately (`Network.offers_conditions`) is asked for it
when samples are put into lanes, for all rows that they will execute; the steps then only look it
up. This file is over 400 lines because buffers, calls and conditions share the places of lanes.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..table import INDEX
from .conditions import Conditions, same
from .device_plan import DevicePlan
from .network import Network, out_of_memory
from .options import RunOptions
from .requests import Batch
from .upload import upload

BOTH, COND, UNCOND = "both", "cond", "uncond"
"""The guidance halves of a network call: both, or one of them."""
_MAX_CONDITION_BYTES = 2**28  # of all conditions computed ahead; beyond, none are


class Call(NamedTuple):
    """Views of the buffers for one network call, of which the first `rows` rows count."""

    network: Network
    rows: int
    x: Tensor
    t: Tensor
    condition: Tensor | None
    arguments: dict[str, Any]


class NetworkInputs:
    """The inputs of a set of lanes, and the network calls on them.

    Args:
        plan, network, options: of the run.
        batch: the number of lanes.
        arguments: the network's arguments of some samples, for their shapes and dtypes.
        halves: 2 where calls may have both guidance halves.

    Attributes:
        next_input: [halves·B, …], where rows write the network's next input.
        t: [at least halves·B], the network's times of the rows that the lanes execute next, which
            `set_times` sets and then rows write, into its part `next_times` [halves·B].
        rows_per_call: the size of calls that memory has forced to be cut, else None.
    """

    def __init__(
        self,
        plan: DevicePlan,
        network: Network,
        options: RunOptions,
        batch: int,
        arguments: Conditions,
        *,
        halves: int,
    ):
        self._plan, self._network, self.options = plan, network, options
        self._batch, self._halves = batch, halves
        device, total, shape = plan.device, halves * batch, options.shape
        size = options.network_batch or total
        capacity = total + size - 1 if options.network_batch else total
        dtype = network.input_dtype(options.dtype)
        try:
            self._x = torch.zeros((capacity, *shape), dtype=dtype, device=device)
        except RuntimeError as error:
            if options.network_batch and out_of_memory(error):
                raise _too_large(options.network_batch) from None
            raise
        self.next_input = self._x[:total]
        self._network_x = self._x
        if network.channels_last and len(shape) == 3:
            self._network_x = torch.zeros_like(self._x, memory_format=torch.channels_last)
        self.t = torch.zeros(capacity, dtype=plan.times.dtype, device=device)
        self.next_times = self.t[:total]
        self._arguments = {k: _filled(v, capacity) for k, v in arguments.cond.items()}
        self._shared = arguments.shared
        self._conditions: Tensor | None = None  # [R, total, …] computed ahead, by row and position
        self._condition: Tensor | None = None  # [capacity, …] the conditions of the next call
        # A classifier and a guidance read t, which the network then reads too.
        self._ahead = (
            network.offers_conditions
            and network.guide is None
            and options.classifier is None
            and options.guidance is None
        )
        if self._ahead:
            self._position = torch.arange(total, device=device).view(halves, -1)
            self._index = torch.zeros_like(self._position)
        self.rows_per_call: int | None = None
        self._calls: dict[str, list[Call]] = {}
        self._joined: dict[str, Tensor] = {}
        self._scaling: tuple[Tensor, Tensor, Tensor] | None = None  # the buffers of `set_state`

    # -- samples -----------------------------------------------------------------------------------

    def put(self, lanes: np.ndarray, index: Tensor, state: Tensor, batch: Batch) -> None:
        """Sets inputs, arguments and conditions of samples that are put into these lanes.

        Args:
            lanes: [n]. index: the same on the device.
            state: [n, …] the samples' states.
        """
        scale, all_lanes = self._plan.input_scale[batch.rows], len(lanes) == self._batch
        if (scale != 1).any():
            factor = upload(scale, state.device).to(state.dtype)
            state = state * factor.view(-1, *(1,) * (state.ndim - 1))
        conditions = batch.conditions
        if (
            conditions.cond.keys() != self._arguments.keys()
            or conditions.shared.keys() != self._shared.keys()
            or not all(same(value, self._shared[key]) for key, value in conditions.shared.items())
        ):
            raise ValueError(
                "fastdiff.Sampler: expected the same arguments in every request's cond, tensors per"
                " sample and one value of all else, got others. Serve them in runs of their own."
            )
        for half, arguments in enumerate((conditions.cond, conditions.uncond)[: self._halves]):
            rows = slice(half * self._batch, (half + 1) * self._batch)
            inputs = self._x[rows]
            if self.options.differentiable:
                continue
            if all_lanes:
                inputs.copy_(state)
            else:
                inputs.index_copy_(0, index, state.to(inputs.dtype))
            for key, value in arguments.items():
                buffer = self._arguments[key]
                if value.shape[1:] != buffer.shape[1:] or value.dtype != buffer.dtype:
                    raise ValueError(
                        f"fastdiff.Sampler: expected {key!r} as {buffer.dtype} of shape"
                        f" {list(buffer.shape[1:])} in every request, got {value.dtype} of shape"
                        f" {list(value.shape[1:])}."
                    )
                buffer[rows].index_copy_(0, index, value)
        if self.options.differentiable:
            self._record(conditions)
        elif self._ahead:
            self._compute_conditions(lanes, batch.rows)

    def _record(self, conditions: Conditions) -> None:
        """Takes the arguments of all lanes as they are, with their gradients, not into buffers."""
        halves = (conditions.cond, conditions.uncond)[: self._halves]
        for key, buffer in self._arguments.items():
            padding = buffer[self._halves * self._batch :]
            self._arguments[key] = torch.cat([half[key] for half in halves] + [padding])

    @property
    def example(self) -> Conditions:
        """The first lane's arguments, from which buffers for other lanes can be made."""
        first = {k: v[:1] for k, v in self._arguments.items()}
        return Conditions(first, first, self._shared)

    def copy_from(self, old: NetworkInputs, index: Tensor, x: Tensor, scale: np.ndarray) -> None:
        """Copies the arguments and conditions of the lanes `index` of other inputs into the first
        lanes, and sets the inputs of the states x, scaled.
        """
        n, halves = len(index), range(min(self._halves, old._halves))
        factor = upload(scale, x.device).to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
        for half in range(self._halves):
            self._x[half * self._batch : (half + 1) * self._batch].copy_(x * factor)
            # Samples without an unconditional half never read its arguments: any will do.
            source = half if half in halves else 0
            for key, buffer in self._arguments.items():
                rows = old._arguments[key][source * old._batch :][index]
                buffer[half * self._batch : half * self._batch + n] = rows
        self.rows_per_call = old.rows_per_call
        self._ahead = old._ahead
        held = old._conditions
        if held is not None:
            each = held.shape[2:]
            grown = held.new_zeros((len(held), self._halves, self._batch, *each))
            view = held.view(len(held), old._halves, old._batch, *each)
            for half in range(self._halves):
                grown[:, half, :n] = view[:, half if half in halves else 0, index]
            self._conditions = grown.view(len(held), -1, *each)
            self._condition = held.new_zeros((len(self._x), *each))

    def _compute_conditions(self, lanes: np.ndarray, rows: np.ndarray) -> None:
        """Computes the network's conditions for every row that these lanes will execute, in calls
        of the size of the loop's.
        """
        plan, total = self._plan, self._halves * self._batch
        pairs = [
            (row, lane + half * self._batch)
            for lane, first in zip(lanes.tolist(), rows.tolist(), strict=True)
            for row in range(first, int(plan.last_row[first]))
            if plan.network[row]
            for half in range(self._halves)
        ]
        if not pairs:
            return
        pairs.sort()
        size = self.options.network_batch or total
        pairs += pairs[-1:] * (-len(pairs) % size)  # every call is a full one
        index = upload(np.array(pairs), plan.device).view(-1, 2).T.contiguous()
        times = plan.times.index_select(0, index[0])
        places = torch.add(index[1], index[0], alpha=total)
        count = len(plan.table)
        for begin in range(0, len(pairs), size):
            cut = slice(begin, begin + size)
            arguments = {k: v.index_select(0, index[1, cut]) for k, v in self._arguments.items()}
            made = self._network.condition(times[cut], self._shared | arguments)
            if count * total * made[0].numel() * made.element_size() > _MAX_CONDITION_BYTES:
                self._ahead, self._conditions = False, None
                self._calls.clear()
                return
            held = self._conditions
            if held is None or len(held) < count:
                grown = made.new_zeros((count, total, *made.shape[1:]))
                if held is not None:
                    grown[: len(held)] = held
                self._conditions = held = grown
            if self._condition is None:
                self._condition = made.new_zeros((len(self._x), *made.shape[1:]))
                self._calls.clear()
            held.flatten(0, 1).index_copy_(0, places[cut], made)

    def set_times(self, row: Tensor) -> None:
        """Sets the network's times of all lanes, which are at these rows [B]."""
        self.next_times.view(self._halves, -1).copy_(self._plan.times.index_select(0, row))

    def set_state(self, x: Tensor, row: Tensor) -> None:
        """Sets the next inputs of all lanes from their states x [B, …], which are at these rows.

        After the first call of a run it allocates nothing.
        """
        plan = self._plan
        if (plan.input_scale != 1).any():
            if self._scaling is None:
                wide = plan.table.new_empty(len(x))
                self._scaling = wide, x.new_empty(len(x)), torch.empty_like(x)
            wide, factor, scaled = self._scaling
            torch.index_select(plan.table[:, INDEX["input_scale"]], 0, row, out=wide)
            factor.copy_(wide)
            x = torch.mul(x, factor.view(-1, *(1,) * (x.ndim - 1)), out=scaled)
        for half in self.next_input.view(self._halves, *x.shape):
            half.copy_(x)

    def _scaled(self, x: Tensor, row: Tensor) -> Tensor:
        """The network's inputs [B, …] for states at these rows, in the state's dtype."""
        scale = self._plan.table[:, INDEX["input_scale"]].index_select(0, row).to(x.dtype)
        return x * scale.view(-1, *(1,) * (x.ndim - 1))

    # -- calls -------------------------------------------------------------------------------------

    def output(self, halves: str, row: Tensor) -> Tensor:
        """The network's output for the lanes at these rows; `halves` is BOTH, COND or UNCOND."""
        if self._ahead and self._conditions is not None:
            assert self._condition is not None
            total = self._halves * self._batch
            torch.add(self._position, row, alpha=total, out=self._index)
            flat = self._conditions.flatten(0, 1)
            torch.index_select(flat, 0, self._index.view(-1), out=self._condition[:total])
        if self._network_x is not self._x:
            self._network_x.copy_(self._x)
        while True:
            try:
                return self._run(halves)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            # After the handler, because the error's traceback holds the tensors that filled memory.
            self._cut_calls(halves)

    def output_of(self, halves: str, row: Tensor, x: Tensor) -> Tensor:
        """The output as a function of the states x [B, …], for gradients through the network."""
        inputs = self._scaled(x, row).to(self._x.dtype)
        t = self._plan.times.index_select(0, row)  # new memory: the network may keep it
        outputs = [
            self._output_of(network, begin, end - begin, inputs, t)
            for network, begin, end in self._spans(halves)
        ]
        if len(outputs) == 1:
            return outputs[0]
        _check_alike(outputs[0], outputs[1])
        return torch.cat(outputs)

    def _output_of(
        self, network: Network, begin: int, rows: int, inputs: Tensor, t: Tensor
    ) -> Tensor:
        """`output_of` for `rows` rows from `begin` on: inputs [B, …] once, or twice."""
        if rows > len(inputs):
            inputs, t = torch.cat([inputs, inputs]), torch.cat([t, t])
        size = self.options.network_batch or self.rows_per_call or rows
        if self.options.network_batch:
            inputs = torch.cat([inputs, inputs.new_zeros((-rows % size, *inputs.shape[1:]))])
            t = torch.cat([t, t.new_zeros(-rows % size)])
        inputs = network.input(inputs)
        parts = []
        for first in range(0, rows, size):
            at = slice(begin + first, begin + min(first + size, len(inputs)))
            arguments = self._shared | {k: v[at] for k, v in self._arguments.items()}
            cut = slice(first, first + size)
            parts.append(network.forward(inputs[cut], t[cut], arguments))
        return torch.cat(parts)[:rows]

    def _run(self, halves: str) -> Tensor:
        calls = self._calls.get(halves)
        if calls is None:
            calls = self._calls[halves] = self._make_calls(halves)
        if len(calls) == 1:
            out = self._call(calls[0])
            return out[: calls[0].rows] if self.options.network_batch else out
        begin, rows = 0, sum(call.rows for call in calls)
        for call in calls:
            out = self._call(call)
            if halves not in self._joined:
                self._joined[halves] = out.new_empty((rows, *out.shape[1:]))
            _check_alike(self._joined[halves], out)
            self._joined[halves][begin : begin + call.rows] = out[: call.rows]
            begin += call.rows
        return self._joined[halves]

    def _call(self, call: Call) -> Tensor:
        if call.condition is not None:
            return self._network.decode(call.x, call.condition)
        # the buffers have the network's own dtype and memory format, which a guide may not share
        x = call.x if call.network is self._network else call.network.input(call.x)
        return call.network.forward(x, call.t, call.arguments)

    def _make_calls(self, halves: str) -> list[Call]:
        calls = []
        for network, begin, end in self._spans(halves):
            size = self.options.network_batch or self.rows_per_call or end - begin
            for first in range(begin, end, size):
                rows = min(size, end - first)
                cut = slice(first, first + (size if self.options.network_batch else rows))
                condition = (
                    self._condition[cut] if self._ahead and self._condition is not None else None
                )
                arguments = self._shared | {k: v[cut] for k, v in self._arguments.items()}
                x, t = self._network_x[cut], self.t[cut]
                calls.append(Call(network, rows, x, t, condition, arguments))
        return calls

    def _spans(self, halves: str) -> list[tuple[Network, int, int]]:
        """(network, first row, end) of the buffers' rows that each network gets."""
        network, guide, batch = self._network, self._network.guide, self._batch
        if halves == COND:
            return [(network, 0, batch)]
        if halves == UNCOND:
            return [(guide or network, batch, 2 * batch)]
        if guide is None:
            return [(network, 0, self._halves * batch)]
        return [(network, 0, batch), (guide, batch, 2 * batch)]

    def _cut_calls(self, halves: str) -> None:
        """Makes calls smaller after memory ran out, or raises an error that names the largest
        batch that fits.
        """
        where, options = "fastdiff.Sampler", self.options
        calls = self._calls[halves]
        size = max(call.rows for call in calls)
        if options.network_batch:
            raise _too_large(options.network_batch) from None
        fits = size
        while fits > 1:
            fits //= 2
            if all(self._fits(call, fits) for call in {c.network: c for c in calls}.values()):
                break
        else:
            raise torch.OutOfMemoryError(
                f"{where}: expected memory for a network call on one sample, got too little. Use a"
                " smaller network or state."
            ) from None
        if options.on_oom != "split":
            each = self._halves if halves == BOTH and self._network.guide is None else 1
            raise torch.OutOfMemoryError(
                f"{where}: expected a batch that fits into memory, got {self._batch}: the largest"
                f" found to fit is {fits // each}. Pass that, or on_oom='split'."
            ) from None
        warnings.warn(
            f"{where}: memory ran out, network calls are split into {fits} rows each.", stacklevel=2
        )
        self.rows_per_call = fits
        self._calls.clear()

    def _fits(self, call: Call, rows: int) -> bool:
        if self._x.device.type == "cuda":
            torch.cuda.empty_cache()
        rows = min(rows, len(call.x))
        condition = None if call.condition is None else call.condition[:rows]
        arguments = self._shared | {k: call.arguments[k][:rows] for k in self._arguments}
        try:
            self._call(Call(call.network, rows, call.x[:rows], call.t[:rows], condition, arguments))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return False
        return True


def _check_alike(first: Tensor, second: Tensor) -> None:
    """Raises ValueError where a part of the output has another shape than the first one."""
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            "fastdiff.Sampler: expected outputs of one shape from every network call, got"
            f" {list(first.shape[1:])} and {list(second.shape[1:])} of a sample. A guide predicts"
            " what the model predicts, learned variance included."
        )


def _too_large(network_batch: int) -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError(
        "fastdiff.Sampler: expected a network_batch that fits into memory, got"
        f" {network_batch}. Pass a smaller one."
    )


def _filled(example: Tensor, capacity: int) -> Tensor:
    """A buffer of `capacity` rows that all repeat the example's first: valid arguments for empty
    lanes.
    """
    return example[:1].expand(capacity, *example.shape[1:]).clone()
