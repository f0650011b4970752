"""Lanes: the buffers of B samples in flight, and one step of all of them.

This file is over 400 lines because every kind of step (guided, inpainted, captured, recorded) uses
the same buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..grad_mode import restored
from ..rng import STREAM_FORWARD, STREAM_INITIAL
from .conditions import Conditions, alike
from .device_plan import DevicePlan
from .graph import CHUNK, Graphs
from .guidance import gradient
from .network import Network
from .network_inputs import BOTH, COND, UNCOND, NetworkInputs
from .options import RunOptions
from .recorded import recorded_steps
from .requests import Batch
from .stepper import Stepper
from .upload import upload

NONE = "none"
"""A step calls no network; otherwise it calls BOTH, COND or UNCOND."""


class Lanes:
    """Samples in flight, one in each lane, each with its own row, seed, id and guidance strength.

    Args:
        plan, network, options: of the run.
        batch: the number of lanes.
        arguments: the network's arguments of some samples, for their shapes and dtypes.
        halves: 2 where steps may call both guidance halves.
        host_strengths: whether the host knows all guidance strengths, so that it can leave out
            calls.
        graphs: of these buffers, or None.

    Attributes:
        rows: int64 [B] on the host, every lane's row.
        tickets: int64 [B], the ticket of the sample in each lane, -1 in an empty lane.
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
        host_strengths: bool,
        graphs: Graphs | None,
    ):
        device, shape, dtype = plan.device, (batch, *options.shape), options.dtype
        self.plan, self.network, self.options = plan, network, options
        self.halves, self.batch, self.graphs = halves, batch, graphs
        self.rows = np.zeros(batch, np.int64)
        self.tickets = np.full(batch, -1, np.int64)
        self._host_gamma = np.ones(batch) if host_strengths else None
        self._seeds, self._ids = (
            torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(2)
        )
        self._gamma = torch.ones(batch, dtype=dtype, device=device)
        state = torch.zeros(shape, dtype=dtype, device=device)
        self._mask = torch.ones_like(state) if options.inpaints else None
        self._known = torch.zeros_like(state) if options.inpaints else None
        self._noised = torch.empty_like(state) if options.inpaints else None
        self.inputs = NetworkInputs(plan, network, options, batch, arguments, halves=halves)
        self.stepper = Stepper(
            plan,
            state,
            seed=self._seeds,
            sample_ids=self._ids,
            input=self.inputs.next_input,
            times=self.inputs.next_times,
            wants_x0=options.wants_x0,
            recorded=options.differentiable,
            window=options.window,
        )
        self._captured_version = -1

    @property
    def x(self) -> Tensor:
        """[B, …] the states."""
        return self.stepper.x

    @property
    def x0(self) -> Tensor | None:
        """[B, …] the predictions of the latest step, where a callback reads them."""
        return self.stepper.x0

    @property
    def ids(self) -> Tensor:
        """int64 [B], the samples' ids, which name the noise of rows."""
        return self._ids

    @property
    def occupied(self) -> np.ndarray:
        """Which lanes hold a sample, [B]."""
        return self.tickets >= 0

    # -- further runs ------------------------------------------------------------------------------

    def fits(self, first: Batch, lanes: int) -> bool:
        """Whether these lanes can be those of another run that begins with these samples."""
        return (
            lanes == self.batch
            and first.guided == (self.halves == 2)
            and isinstance(first.gamma, Tensor) == (self._host_gamma is None)
            and alike(first.conditions, self.inputs.example)
        )

    def reset(self, options: RunOptions) -> None:
        """Empties all lanes for another run with options of the same shapes and dtypes."""
        self.options = self.inputs.options = options
        self.rows[:], self.tickets[:] = 0, -1
        if self._host_gamma is not None:
            self._host_gamma[:] = 1.0
        self._gamma.fill_(1.0)
        self.stepper.reset()

    # -- samples -----------------------------------------------------------------------------------

    @restored
    def put(self, lanes: np.ndarray, batch: Batch) -> None:
        """Puts the samples of a batch into these empty lanes.

        Recorded steps (fastdiff.sampling.recorded) read what the caller passed, not copies of it.
        """
        with torch.set_grad_enabled(self.options.differentiable):
            self._put(lanes, batch)

    def _put(self, lanes: np.ndarray, batch: Batch) -> None:
        device = self.x.device
        all_lanes = len(lanes) == self.batch
        index = upload(lanes, device)
        state = self._initial_state(batch, self.x if all_lanes else None)
        self.rows[lanes], self.tickets[lanes] = batch.rows, batch.tickets
        gamma = batch.gamma
        if self._host_gamma is not None:
            assert isinstance(gamma, np.ndarray)
            self._host_gamma[lanes] = gamma
        strengths = gamma if isinstance(gamma, Tensor) else upload(gamma, device)
        values = [
            (self.stepper.row, upload(batch.rows, device)),
            (self._seeds, batch.seeds),
            (self._ids, batch.ids),
        ]
        floating: list[tuple[Any, str, Tensor]] = [
            (self.stepper, "x", state),
            (self, "_gamma", strengths),
        ]
        if self._mask is not None:
            assert batch.mask is not None and batch.known is not None
            floating += [(self, "_mask", batch.mask), (self, "_known", batch.known)]
        for owner, name, value in floating:
            if self.options.differentiable:
                setattr(owner, name, value.to(device, self.options.dtype))
            else:
                values.append((getattr(owner, name), value))
        for buffer, value in values:
            if buffer is value:
                continue
            value = value.to(device, buffer.dtype)
            if all_lanes:
                buffer.copy_(value)
            else:
                buffer.index_copy_(0, index, value)
        self.inputs.put(lanes, index, state, batch)
        self.inputs.set_times(self.stepper.row)
        self.stepper.fit()

    def _initial_state(self, batch: Batch, buffer: Tensor | None) -> Tensor:
        """The states [n, …] that samples begin with; noise is drawn into `buffer` if there is
        one.
        """
        device, dtype = self.x.device, self.options.dtype
        if batch.state is not None:
            return batch.state.to(device, dtype)
        if batch.image is not None:
            assert batch.levels is not None
            alpha, sigma = (upload(v, device) for v in batch.levels.T)
            return ops.q_sample(
                batch.image.to(device, dtype),
                None,
                alpha,
                sigma,
                seed=batch.seeds,
                sample_ids=batch.start_ids,
                step=0,
                stream=STREAM_INITIAL,
                window=self.options.window,
            )
        shape = (len(batch), *self.options.shape)
        noise = torch.empty(shape, dtype=dtype, device=device) if buffer is None else buffer
        ops.randn(
            shape,
            seed=batch.seeds,
            sample_ids=batch.start_ids,
            stream=STREAM_INITIAL,
            window=self.options.window,
            out=noise,
        )
        if (batch.std != 1).any():
            std = upload(batch.std, device).to(dtype)
            noise *= std.view(-1, *(1,) * (noise.ndim - 1))
        return noise

    def release(self, lanes: np.ndarray) -> np.ndarray:
        """Empties lanes, whose samples are done, and returns their tickets."""
        self.plan.release(self.rows[lanes])
        tickets = self.tickets[lanes]
        self.tickets[lanes] = -1
        return tickets

    def finish(self, lanes: np.ndarray) -> None:
        """Marks lanes whose samples are done, and which keep them (fastdiff.sampling.state)."""
        self.tickets[lanes] = -1

    @restored
    @torch.no_grad()
    def resized(self, keep: np.ndarray, batch: int, halves: int) -> Lanes:
        """`batch` new lanes, of which the first ones hold the samples of the lanes `keep`."""
        new = Lanes(
            self.plan,
            self.network,
            self.options,
            batch,
            self.inputs.example,
            halves=halves,
            host_strengths=self._host_gamma is not None,
            graphs=None if self.graphs is None else self.graphs.fresh(),
        )
        index, n = upload(keep, self.x.device), len(keep)
        new.rows[:n], new.tickets[:n] = self.rows[keep], self.tickets[keep]
        if new._host_gamma is not None and self._host_gamma is not None:
            new._host_gamma[:n] = self._host_gamma[keep]
        for name in ("x", "x0", "_seeds", "_ids", "_gamma", "_mask", "_known"):
            old = getattr(self, name)
            if old is not None:
                getattr(new, name)[:n] = old[index]
        new.stepper.row.copy_(upload(new.rows, self.x.device))
        new.stepper.fit()
        old_slots, new_slots = self.stepper.slots, new.stepper.slots
        if old_slots is not None and new_slots is not None:
            new_slots[: len(old_slots), :n] = old_slots[:, index]
        new.inputs.copy_from(self.inputs, index, new.x, self.plan.input_scale[new.rows])
        new.inputs.set_times(new.stepper.row)
        return new

    def take_over_x(self) -> None:
        """Continues with the x that a callback may have written into.

        Raises ValueError for an x of another shape.
        """
        shape = (self.batch, *self.options.shape)
        if self.x.shape != shape:
            raise ValueError(
                f"fastdiff.Sampler: expected the callback to leave x of shape {list(shape)}, got"
                f" {list(self.x.shape)}. Write into x in place."
            )
        if not self.options.differentiable:
            self.inputs.set_state(self.x, self.stepper.row)

    # -- steps -------------------------------------------------------------------------------------

    def steps_to_next_end(self) -> int:
        """The number of steps until the first of the samples in flight is done."""
        rows = self.rows[self.occupied]
        return int((self.plan.last_row[rows] - rows).min())

    def calls_of_steps(self, steps: int) -> list[str]:
        """What each of the next steps calls: BOTH, COND, UNCOND or NONE."""
        if self.halves == 1 and self.plan.always_calls:
            return [COND] * steps
        occupied = self.occupied
        rows = self.rows[occupied] + np.arange(steps)[:, None]
        gamma = None if self._host_gamma is None else self._host_gamma[occupied]
        return calls_of_rows(self.plan, rows, gamma, guided=self.halves == 2)

    def steps(self, calls: Sequence[str], *, each: bool) -> Iterator[int]:
        """Executes a row for every lane and each of these calls, with gradients off.

        Yields how many rows have been executed since it last did: one, or with graphs several
        unless `each` asks for single ones.
        """
        if self.options.differentiable:
            yield from recorded_steps(self.stepper, self.one_step, self.options, calls, each=each)
            return
        if self.graphs is None:
            for kind in calls:
                self.one_step(kind)
                yield 1
            return
        if self._captured_version != self.plan.version:
            self.graphs.forget()
            self._captured_version = self.plan.version
        begin = 0
        while begin < len(calls):
            kind = calls[begin]
            several = not each and self._ready(kind) and set(calls[begin : begin + CHUNK]) == {kind}
            count = CHUNK if several and len(calls) - begin >= CHUNK else 1
            self._captured(self.graphs, kind, count)
            begin += count
            yield count

    def one_step(self, calls: str) -> None:
        """Executes one row for every lane, without a graph."""
        self._step(calls)
        self.stepper.advance()

    def _ready(self, calls: str) -> bool:
        assert self.graphs is not None
        return self.graphs.ready((calls, self.inputs.rows_per_call))

    def _captured(self, graphs: Graphs, calls: str, count: int) -> None:
        """Executes one row, or CHUNK rows in one graph, for every lane."""
        stepper, kind = self.stepper, (calls, self.inputs.rows_per_call)

        def one() -> None:
            self._step(calls)

        def several() -> None:
            # an even number: `row` is the same tensor after a replay, which does not run this
            for _ in range(count):
                self._step(calls)
                stepper.advance()

        if count == 1:
            graphs.run(kind, (stepper.swapped, 1), one)
            stepper.advance()
        else:
            graphs.run(kind, (stepper.swapped, count), several)

    @restored
    def _step(self, calls: str) -> None:
        """Executes one row for every lane, and leaves `stepper.row` as it is.

        The row's last kernel launch replaces the network's times by those of the next rows: what
        reads them comes before.
        """
        stepper, options = self.stepper, self.options
        gamma = self._gamma if calls == BOTH else None
        x = stepper.x
        out: Tensor | None = None
        push: Tensor | None = None
        if calls != NONE and options.differentiable:
            out = self.inputs.output_of(calls, stepper.row, x)
        elif calls != NONE and options.through_network:
            with torch.enable_grad():
                x = x.clone().requires_grad_()
                out = self.inputs.output_of(calls, stepper.row, x)
        elif calls != NONE:
            out = self.inputs.output(calls, stepper.row)
        if options.classifier is not None and out is not None:
            push = gradient(
                options.classifier, self.x, self._times(), recorded=torch.is_grad_enabled()
            )
            push = push.to(options.dtype)
        watcher = options.watcher
        if options.guidance is not None and out is not None:
            self._step_by_guided_x0(x, out, gamma, push)
        elif watcher is not None:
            log_prob = watcher.before(stepper, calls, out)
            stepper.execute(out, guidance=gamma, gradient=push, log_prob=log_prob)
            watcher.after(stepper)
        else:
            stepper.execute(out, guidance=gamma, gradient=push)
        if self._mask is not None:
            self._replace_known()

    @restored
    def _step_by_guided_x0(
        self, x: Tensor, out: Tensor, gamma: Tensor | None, push: Tensor | None
    ) -> None:
        """One row in two parts, with the user's guidance of x0 between them
        (fastdiff.sampling.guidance.split).

        x: the state; a copy that requires a gradient where the guidance differentiates x0 by it.
        """
        stepper, recorded = self.stepper, torch.is_grad_enabled()
        assert self.options.guidance is not None
        rows = self.plan.to_x0_rows
        with torch.set_grad_enabled(recorded or x.requires_grad):
            x0 = ops.reverse_step(
                x, out, rows.table, stepper.row, guidance=gamma, gradient=push, used=rows.used
            )
            assert isinstance(x0, Tensor)
            x0 = self.options.guidance(x0, x, self._times())
        if not isinstance(x0, Tensor) or x0.shape != self.x.shape:
            got = list(x0.shape) if isinstance(x0, Tensor) else type(x0).__name__
            raise ValueError(
                "fastdiff.Sampler: expected guidance(x0, x_t, t) to return x0 of shape"
                f" {list(self.x.shape)}, got {got}."
            )
        x0 = (x0 if recorded else x0.detach()).to(self.options.dtype)
        if out.shape[1:] != self.x.shape[1:]:  # the learned variance follows the prediction
            variance = out[: self.batch, self.x.shape[1] :]
            x0 = torch.cat([x0, variance.to(self.options.dtype)], dim=1)
        stepper.execute_rows(self.plan.from_x0_rows, x0)

    def _times(self) -> Tensor:
        """The network's times [B] of the rows that the lanes execute next."""
        if self.options.differentiable:
            return self.plan.times.index_select(0, self.stepper.row)
        return self.inputs.t[: self.batch]

    def _replace_known(self) -> None:
        """x = mask x + (1 - mask)(alpha known + sigma z), at the level that the row leads to.

        The network's next input is written again, because the row wrote it before x changed.
        """
        assert self._mask is not None and self._known is not None and self._noised is not None
        rows, inputs, recorded = (
            self.plan.known_rows,
            self.plan.input_rows,
            self.options.differentiable,
        )
        noised = ops.reverse_step(
            self._known,
            None,
            rows.table,
            self.stepper.row,
            slots=self.x[None],
            seed=self._seeds,
            sample_ids=self._ids,
            stream=STREAM_FORWARD,
            window=self.options.window,
            used=rows.used,
            out=None if recorded else self._noised,
        )
        if recorded:
            self.stepper.x = torch.lerp(noised[0], self.x, self._mask)
            return
        torch.lerp(self._noised, self.x, self._mask, out=self.x)
        ops.reverse_step(
            self.x,
            None,
            inputs.table,
            self.stepper.next_row,
            used=inputs.used,
            out=self.x,
            input_out=self.inputs.next_input,
        )

    def advance(self, steps: int) -> np.ndarray:
        """Moves the host's rows by these steps and returns the lanes of the samples that are
        done.
        """
        occupied = self.occupied
        self.rows[occupied] += steps
        return np.flatnonzero(occupied & (self.rows == self.plan.last_row[self.rows]))

    def row_and_time(self, steps: int) -> tuple[int | None, float | Tensor]:
        """(row in its plan, t) of the samples after this number of steps; where they differ,
        (None, t [B]).
        """
        occupied = self.occupied
        rows = self.rows + steps * occupied
        numbers, t = self.plan.row_in_plan[rows], self.plan.t[rows]
        if len(set(numbers[occupied])) == len(set(t[occupied])) == 1:
            return int(numbers[occupied][0]), float(t[occupied][0])
        return None, torch.from_numpy(t)


def calls_of_rows(
    plan: DevicePlan, rows: np.ndarray, gamma: np.ndarray | None, *, guided: bool
) -> list[str]:
    """What steps call, BOTH, COND, UNCOND or NONE, at which n samples are at rows [steps, n].

    gamma: the samples' guidance strengths [n], which the host may not know.
    """
    steps, calling = len(rows), plan.network[rows]
    # one, zero: the steps at which every calling sample has the strength 1, or 0
    if not guided:
        one = zero = np.ones(steps, bool)
    elif gamma is None:
        one = zero = np.zeros(steps, bool)
    else:
        weight = plan.guidance_weight[rows]
        strength = 1.0 + weight * (gamma - 1.0)
        one, zero = strength == 1.0, strength == 0.0
        zero &= ~plan.changes_uncond[rows]  # what follows from both halves
        one, zero = ((~calling | held).all(axis=1) for held in (one, zero))
    chosen = np.where(one, COND, np.where(zero, UNCOND, BOTH))
    return np.where(calling.any(axis=1), chosen, NONE).tolist()
