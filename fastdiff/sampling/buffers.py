"""Lanes: the buffers of B samples in flight, and one step of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..rng import STREAM_FORWARD, STREAM_INITIAL
from .device_plan import Program
from .graph import Graphs
from .guidance import Conditions, gradient
from .model_call import Network
from .network_inputs import Calls
from .requests import Batch

Classifier = Callable[[Tensor, Tensor], Tensor]
Guidance = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Options:
    """What holds for a whole run: see `Sampler.sample`."""

    network_batch: int | None = None
    on_oom: str = "raise"
    classifier: Classifier | None = None
    guidance: Guidance | None = None
    through_network: bool = False
    inpaints: bool = False
    wants_x0: bool = False
    graphs: Graphs | None = None


class Lanes:
    """Samples in flight.

    Attributes:
        x: [B, …] their states. x0: the latest predictions, where asked for.
        rows: [B] the host's knowledge of every lane's row; tickets: [B] whose sample it is, -1 for
            nobody's.
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
        host_strengths: bool,
    ):
        device, batch = program.device, shape[0]
        self.program, self.network, self.options = program, network, options
        self.halves, self.batch, self.dtype = halves, batch, dtype
        self.rows = np.zeros(batch, np.int64)
        self.tickets = np.full(batch, -1, np.int64)
        # strengths that the host knows let it leave out calls
        self._host_gamma = np.ones(batch) if host_strengths else None
        self.x = torch.zeros(shape, dtype=dtype, device=device)
        self.x0 = torch.empty_like(self.x) if options.wants_x0 else None
        self.row = torch.zeros(batch, dtype=torch.int64, device=device)
        self._row_out = torch.empty_like(self.row)
        self._seeds, self._ids = torch.zeros_like(self.row), torch.zeros_like(self.row)
        self._gamma = torch.ones(batch, dtype=dtype, device=device)
        self._workspace = torch.empty((2, batch), dtype=dtype, device=device)
        self._slots: Tensor | None = None
        self._mask = torch.ones_like(self.x) if options.inpaints else None
        self._known = torch.zeros_like(self.x) if options.inpaints else None
        self._noised = torch.empty_like(self.x) if options.inpaints else None
        self.calls = Calls(program, network, options, shape, like, halves=halves, dtype=dtype)
        self._version = 0

    def _bind(self) -> None:
        """Fits the step to the program, which may have grown."""
        program = self.program
        self._version = program.version
        slots = program.plan.slots
        held = 0 if self._slots is None else len(self._slots)
        if slots > held:
            grown = torch.zeros((slots, *self.x.shape), dtype=self.dtype, device=self.x.device)
            if self._slots is not None:
                grown[:held] = self._slots
            self._slots = grown
        self._steps = {
            quiet: ops.StepArguments(
                self.x,
                None,
                program.table,
                self.row,
                slots=self._slots,
                seed=self._seeds,
                sample_ids=self._ids,
                used=used,
                out=self.x,
                slots_out=self._slots,
                x0_out=self.x0,
                input_out=self.calls.next_input,
                workspace=self._workspace,
            ).bind("model_output", "row", "row_out", "guidance", "gradient")
            for quiet, used in ((False, program.used), (True, program.used_quiet))
        }

    # -- entering and leaving
    # -----------------------------------------------------------------------------------------

    @property
    def active(self) -> np.ndarray:
        """[B] which lanes hold a sample."""
        return self.tickets >= 0

    @torch.no_grad()
    def enter(self, where: np.ndarray, batch: Batch) -> None:
        """Puts samples into lanes."""
        device, program = self.x.device, self.program
        whole = len(where) == self.batch
        index = torch.from_numpy(where).to(device)
        state = self._state(batch, self.x if whole else None)
        self.rows[where], self.tickets[where] = batch.rows, batch.tickets
        gamma = batch.gamma
        if self._host_gamma is not None:
            assert isinstance(gamma, np.ndarray)
            self._host_gamma[where] = gamma
        values = gamma if isinstance(gamma, Tensor) else torch.from_numpy(gamma)
        arrivals = [
            (self.x, state),
            (self.row, torch.from_numpy(batch.rows)),
            (self._seeds, batch.seeds),
            (self._ids, batch.ids),
            (self._gamma, values),
        ]
        if self._mask is not None:
            assert batch.mask is not None and batch.known is not None and self._known is not None
            arrivals += [(self._mask, batch.mask), (self._known, batch.known)]
        for room, value in arrivals:
            if room is not value:
                _put(room, index, value.to(device, room.dtype), whole)
        self.calls.enter(where, index, state, batch, program.scale[batch.rows], whole)
        if self._version != program.version:
            self._bind()

    def _state(self, batch: Batch, room: Tensor | None) -> Tensor:
        """What the samples begin with, written into `room` where that can be done."""
        shape, device = (len(batch), *self.x.shape[1:]), self.x.device
        if batch.state is not None:
            return batch.state.to(device, self.dtype)
        if batch.image is not None:
            assert batch.levels is not None
            alpha, sigma = (
                torch.tensor(v, dtype=torch.float64, device=device) for v in batch.levels.T
            )
            return ops.q_sample(
                batch.image.to(device, self.dtype),
                None,
                alpha,
                sigma,
                seed=batch.seeds,
                sample_ids=batch.ids,
                step=0,
                stream=STREAM_INITIAL,
            )
        noise = room if room is not None else torch.empty(shape, dtype=self.dtype, device=device)
        ops.randn(shape, seed=batch.seeds, sample_ids=batch.ids, stream=STREAM_INITIAL, out=noise)
        if (batch.std != 1).any():
            noise *= _column(batch.std, noise)
        return noise

    def leave(self, where: np.ndarray) -> np.ndarray:
        """Empties lanes and returns whose they were."""
        tickets = self.tickets[where]
        self.tickets[where] = -1
        return tickets

    @torch.no_grad()
    def rebuilt(self, keep: np.ndarray, batch: int, halves: int) -> Lanes:
        """Other lanes, `batch` of them and so many halves, with what the lanes `keep` hold in the
        first of them.
        """
        shape = (batch, *self.x.shape[1:])
        new = Lanes(
            self.program,
            self.network,
            self.options,
            shape,
            self.calls.like,
            halves=halves,
            dtype=self.dtype,
            host_strengths=self._host_gamma is not None,
        )
        index, n = torch.from_numpy(keep).to(self.x.device), len(keep)
        new.rows[:n], new.tickets[:n] = self.rows[keep], self.tickets[keep]
        if new._host_gamma is not None and self._host_gamma is not None:
            new._host_gamma[:n] = self._host_gamma[keep]
        for name in ("x", "_seeds", "_ids", "_gamma", "_mask", "_known"):
            old = getattr(self, name)
            if old is not None:
                getattr(new, name)[:n] = old[index]
        new.row.copy_(torch.from_numpy(new.rows))
        new._bind()
        if self._slots is not None and new._slots is not None:
            new._slots[: len(self._slots), :n] = self._slots[:, index]
        new.calls.take_over(self.calls, index, new.x, self.program.scale[new.rows])
        return new

    # -- stepping
    # -----------------------------------------------------------------------------------------------------

    def stretch(self) -> int:
        """How many steps pass until the first sample in flight is done."""
        rows = self.rows[self.active]
        return int((self.program.stop[rows] - rows).min())

    def kinds(self, steps: int) -> list[str]:
        """What each of the next steps calls: `both` halves, `cond`, `uncond`, or `quiet`: no
        network.
        """
        if self.halves == 1 and self.program.always_calls:
            return ["cond"] * steps
        active = self.active
        rows = self.rows[active] + np.arange(steps)[:, None]
        calling = self.program.network[rows]
        if self.halves == 1:
            one = zero = np.ones(steps, bool)
        elif self._host_gamma is None:
            one = zero = np.zeros(steps, bool)
        else:
            gamma = 1.0 + self.program.weight[rows] * (self._host_gamma[active] - 1.0)
            one, zero = ((~calling | (gamma == value)).all(axis=1) for value in (1.0, 0.0))
        chosen = np.where(one, "cond", np.where(zero, "uncond", "both"))
        return np.where(calling.any(axis=1), chosen, "quiet").tolist()

    def step(self, kind: str) -> None:
        """One row for every lane; gradients are off."""
        graphs = self.options.graphs
        if graphs is None:
            self._step(kind)
        else:
            graphs.run((id(self), self._version, kind, self.calls.chunk), lambda: self._step(kind))

    def _step(self, kind: str) -> None:
        guided, push = kind == "both", None
        x, out = self.x, None
        if kind != "quiet" and self.options.through_network:
            with torch.enable_grad():
                x = self.x.clone().requires_grad_()
                out = self.calls.through(kind, self.row, x)
        elif kind != "quiet":
            out = self.calls.output(kind, self.row)
        if self.options.classifier is not None and out is not None:
            push = gradient(self.options.classifier, self.x, self.calls.t[: self.batch]).to(
                self.dtype
            )
        if self.options.guidance is not None and out is not None:
            self._split(x, out, guided, push)
        else:
            gamma = self._gamma if guided else None
            self._steps[out is None](out, self.row, self._row_out, gamma, push)
        if self._mask is not None:
            self._replace()
        if self.options.graphs is None:
            self.row, self._row_out = self._row_out, self.row
        else:
            self.row.copy_(self._row_out)

    def _split(self, x: Tensor, out: Tensor, guided: bool, push: Tensor | None) -> None:
        """A row in two, with the guided x0 between (fastdiff.sampling.guidance.split). x0 has a
        gradient by x where x does.
        """
        assert self.options.guidance is not None
        (table, used), (rest, used_rest) = self.program.convert, self.program.finish
        with torch.set_grad_enabled(x.requires_grad):
            gamma = self._gamma if guided else None
            x0 = ops.reverse_step(x, out, table, self.row, guidance=gamma, gradient=push, used=used)
            assert isinstance(x0, Tensor)
            x0 = self.options.guidance(x0, x, self.calls.t[: self.batch])
        if not isinstance(x0, Tensor) or x0.shape != self.x.shape:
            got = list(x0.shape) if isinstance(x0, Tensor) else type(x0).__name__
            raise ValueError(
                "fastdiff.Sampler: expected guidance(x0, x_t, t) to return x0 of shape"
                f" {list(self.x.shape)}, got {got}."
            )
        x0 = x0.detach().to(self.dtype)
        if out.shape[1:] != self.x.shape[1:]:  # the learned variance goes on
            x0 = torch.cat([x0, out[: self.batch, self.x.shape[1] :].to(self.dtype)], dim=1)
        ops.reverse_step(
            self.x,
            x0,
            rest,
            self.row,
            seed=self._seeds,
            sample_ids=self._ids,
            used=used_rest,
            slots=self._slots,
            workspace=self._workspace,
            out=self.x,
            slots_out=self._slots,
            x0_out=self.x0,
            input_out=self.calls.next_input,
            row_out=self._row_out,
        )

    def _replace(self) -> None:
        """x = mask x + (1 - mask)(alpha known + sigma z), at the level that the row led to."""
        assert self._mask is not None and self._known is not None and self._noised is not None
        (noised, used), (enter, used_enter) = self.program.noised, self.program.enter
        ops.reverse_step(
            self._known,
            None,
            noised,
            self.row,
            slots=self.x[None],
            seed=self._seeds,
            sample_ids=self._ids,
            stream=STREAM_FORWARD,
            used=used,
            out=self._noised,
        )
        torch.lerp(self._noised, self.x, self._mask, out=self.x)
        ops.reverse_step(
            self.x,
            None,
            enter,
            self._row_out,
            used=used_enter,
            out=self.x,
            input_out=self.calls.next_input,
        )

    def advance(self, steps: int) -> np.ndarray:
        """Moves the host's rows on and returns the lanes whose samples are done."""
        active = self.active
        self.rows[active] += steps
        return np.flatnonzero(active & (self.rows == self.program.stop[self.rows]))

    def place(self, steps: int) -> tuple[int | None, float | Tensor]:
        """(row in its plan, t) of the samples in flight, so many steps on; where they differ,
        (None, t [B]).
        """
        program, rows = self.program, self.rows + steps * self.active
        numbers, t = program.local[rows], program.time[rows]
        if len(set(numbers[self.active])) == len(set(t[self.active])) == 1:
            return int(numbers[self.active][0]), float(t[self.active][0])
        return None, torch.from_numpy(t)


def _put(room: Tensor, index: Tensor, value: Tensor, whole: bool) -> None:
    """Writes the rows of a room that `index` names."""
    if whole:
        room.copy_(value)
    else:
        room.index_copy_(0, index, value)


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    """A number per sample, to multiply samples with."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(
        -1, *(1,) * (like.ndim - 1)
    )
