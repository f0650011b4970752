"""Executes the rows of a plan, one kernel launch each, on the buffers of a batch of samples.

A `Stepper` owns the state x, the solver's slots, the row of every sample and the network's next
input, and executes a row through `fastdiff.ops.StepArguments`. The lanes of the sampling loop use
it, and so does `run_plan`, which executes a whole plan with functions of the caller around each
row, for samplers outside `Sampler`. The caller calls the network:

    stepper = Stepper(DevicePlan.of(plan, x.device), x.clone(), seed=0)
    for row in range(len(plan)):
        stepper.step(network(stepper.input, t[row]))
    stepper.x

A step overwrites these buffers, and the network's times where it was given memory for them. With
`keep` it writes x, the next input and x0 to new memory, so that the caller may keep earlier
tensors. After the first step nothing else is allocated, and nothing is read from the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..backend.eager.common import compute_dtype
from ..grad_mode import restored
from ..ops.bound_step import BoundStep
from ..ops.step import workspace_for
from ..rng import STREAM_SOLVER, windowed
from ..solvers import Plan
from .device_plan import DevicePlan, Rows

_MOVING = ("model_output", "noise", "guidance", "gradient", "log_prob_out")
_KEPT = ("x_t", "out", "input_out", "x0_out")


class Stepper:
    """B samples on the rows of a plan, which may grow between steps.

    Args:
        plan: the rows.
        x: [B, …] contiguous, the state's buffer, which steps overwrite.
        seed: an int or int64 [B], for rows that draw noise; None where none does or
            `step` is given the noise.
        sample_ids: int64 [B], default 0 … B - 1.
        input: where rows write the network's next input, [B, …] or, for both guidance halves,
            [2B, …]; None where the network reads x itself.
        times: where rows write the network's next times, [B] or, for both guidance halves, [2B],
            int64 or float32; or None.
        wants_x0: whether rows write their prediction of x0.
        recorded: whether a step writes x and the slots to new memory by ops that autograd records,
            instead of into these buffers. It does not write `input` and `times`.
        window: (offset, size) where x is a part of larger samples; see `fastdiff.randn`.

    Attributes:
        x: [B, …] the state.
        slots: compute type [S, B, …], what the solver remembers; None without slots.
        row: int64 [B], the row that each sample executes next; row 0 at first.
        input: the network's next input.
        x0: [B, …] the prediction of the latest row, None unless asked for.
        swapped: which of two tensors `row` is; every step exchanges it with `next_row`.
    """

    # A bound step is a call of the kernel whose arguments were checked once (fastdiff.ops.step). It
    # comes in two forms, which read one of two tensors of rows and write the other. `_plain`: the
    # steps without noise, guidance, gradient and keep, at [False] with the network's output and at
    # [True] without it. `_bound`: all others, by `keep` and by which inputs are None.
    _plain: list[tuple[BoundStep, BoundStep] | None]
    _bound: dict[tuple[bool, ...], tuple[BoundStep, BoundStep]]

    def __init__(
        self,
        plan: DevicePlan,
        x: Tensor,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
        input: Tensor | None = None,
        times: Tensor | None = None,
        wants_x0: bool = False,
        recorded: bool = False,
        window: tuple[int, int] | None = None,
    ):
        self.plan, self.x, self.seed, self.sample_ids = plan, x, seed, sample_ids
        self._input, self._times, self._recorded = input, times, recorded
        self._window = window
        self.x0 = torch.empty_like(x) if wants_x0 else None
        self.row = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.next_row = torch.empty_like(self.row)
        self._rows = self.row, self.next_row  # the two tensors that they exchange
        self.slots: Tensor | None = None
        self.workspace = workspace_for(x)
        self._version = -1
        self.swapped = False
        self._unbind()

    @property
    def input(self) -> Tensor:
        return self.x if self._input is None else self._input

    def fit(self) -> None:
        """Makes slots for the plan if it has changed since the last call; `execute` does so too."""
        if self._version == self.plan.version:
            return
        self._version = self.plan.version
        count = self.plan.slots
        held = 0 if self.slots is None else len(self.slots)
        if count > held:
            shape = (count, *self.x.shape)
            slots = torch.zeros(shape, dtype=self.workspace.dtype, device=self.x.device)
            if self.slots is not None:
                slots[:held] = self.slots
            self.slots = slots
        self._unbind()

    def step(
        self,
        output: Tensor | None,
        *,
        noise: Tensor | None = None,
        guidance: Tensor | None = None,
        gradient: Tensor | None = None,
        keep: bool = False,
        log_prob: Tensor | None = None,
    ) -> None:
        """Executes row[b] for every sample b and moves the rows on.

        Args:
            output: the network's output, None on rows without a network call.
            noise, guidance, gradient: see `fastdiff.reverse_step`.
            keep: whether x, the next input and x0 get new memory instead of being overwritten.
            log_prob: [B] in the compute type, where rows write the log-probability of the next
                state; see `fastdiff.reverse_step`.
        """
        self.execute(
            output,
            noise=noise,
            guidance=guidance,
            gradient=gradient,
            keep=keep,
            log_prob=log_prob,
        )
        self.advance()

    def execute(
        self,
        output: Tensor | None,
        *,
        noise: Tensor | None = None,
        guidance: Tensor | None = None,
        gradient: Tensor | None = None,
        keep: bool = False,
        log_prob: Tensor | None = None,
    ) -> None:
        """A step that leaves `row` as it is: `next_row` has the rows that follow."""
        if self._version != self.plan.version:
            self.fit()
        if self._recorded:
            assert log_prob is None, "recorded steps write no log-probability"
            plan = self.plan
            rows = Rows(plan.table, plan.used_without_network if output is None else plan.used)
            self._record(rows, output, noise, guidance, gradient)
            return
        if (
            keep
            or noise is not None
            or guidance is not None
            or gradient is not None
            or log_prob is not None
        ):
            self._execute((output, noise, guidance, gradient, log_prob), keep)
            return
        # the usual call is kept short: in small steps Python's time counts
        bound = self._plain[output is None]
        if bound is None:
            bound = self._plain[output is None] = self._bind(
                (output, None, None, None, None), False
            )
        if output is None:
            bound[self.swapped]()
        else:
            bound[self.swapped](output)

    def _execute(self, moving: tuple[Tensor | None, ...], keep: bool) -> None:
        """`execute` with any arguments, those of _MOVING."""
        key = (keep, *(value is None for value in moving))
        both_ways = self._bound.get(key)
        if both_ways is None:
            both_ways = self._bound[key] = self._bind(moving, keep)
        bound = both_ways[self.swapped]
        values = [value for value in moving if value is not None]
        if not keep:
            bound(*values)
            return
        x, new = self.x, torch.empty_like(self.x)
        fresh = None if self._input is None else torch.empty_like(self._input)
        x0 = None if self.x0 is None else torch.empty_like(x)
        bound(*values, x, new, fresh, x0)
        self.x, self._input, self.x0 = new, fresh, x0
        self._plain = [None, None]
        self._bound = {key: bound for key, bound in self._bound.items() if key[0]}

    def execute_rows(self, rows: Rows, output: Tensor | None) -> None:
        """`execute` with other rows than the plan's."""
        if self._recorded:
            self._record(rows, output, None, None, None)
            return
        ops.reverse_step(
            self.x,
            output,
            rows.table,
            self.row,
            seed=self.seed,
            sample_ids=self.sample_ids,
            window=self._window,
            used=rows.used,
            slots=self.slots,
            workspace=self.workspace,
            out=self.x,
            slots_out=self.slots,
            x0_out=self.x0,
            input_out=self._input,
            row_out=self.next_row,
            time_out=self._times,
        )

    @restored
    def _record(
        self,
        rows: Rows,
        output: Tensor | None,
        noise: Tensor | None,
        guidance: Tensor | None,
        gradient: Tensor | None,
    ) -> None:
        """`execute` into new memory, by ops that autograd records. x0 gets no gradient."""
        inputs: dict[str, Any] = {
            "slots": self.slots,
            "noise": noise,
            "seed": self.seed,
            "sample_ids": self.sample_ids,
            "window": self._window,
            "guidance": guidance,
            "gradient": gradient,
            "used": rows.used,
        }
        if self.x0 is not None:
            with torch.no_grad():
                self.x0, out = torch.empty_like(self.x0), torch.empty_like(self.x0)
                ops.reverse_step(
                    self.x, output, rows.table, self.row, **inputs, out=out, x0_out=self.x0
                )
        result = ops.reverse_step(self.x, output, rows.table, self.row, **inputs)
        self.x, self.slots = (result, None) if isinstance(result, Tensor) else result
        self.next_row = rows.following(self.row)

    @property
    def state(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """(x, slots, row): all that a recorded step reads and changes. It can be set."""
        return self.x, self.slots, self.row

    @state.setter
    def state(self, state: tuple[Tensor, Tensor | None, Tensor]) -> None:
        self.x, self.slots, self.row = state

    def advance(self) -> None:
        """Moves every sample to its next row."""
        self.row, self.next_row = self.next_row, self.row
        self.swapped = not self.swapped

    def reset(self) -> None:
        """Clears the states, the slots and the rows, for other samples in the same memory."""
        self.x.zero_()
        self.row.zero_()
        if self.slots is not None:
            self.slots.zero_()

    def replace(self, x: Tensor, scale: float) -> None:
        """Continues with another state [B, …], before a row whose input scale is `scale`."""
        if x is not self.x:
            self.x = x.contiguous()
            self._unbind()
        if self._input is not None:
            self._input.copy_(self.x * scale)

    def _unbind(self) -> None:
        """Forgets the bound steps, because a buffer has changed."""
        self._plain, self._bound = [None, None], {}

    def _bind(self, moving: tuple[Tensor | None, ...], keep: bool) -> tuple[BoundStep, BoundStep]:
        """The two forms of the bound step for calls in which the same of _MOVING are None."""
        plan, workspace = self.plan, self.workspace
        if moving[-1] is not None:
            workspace = workspace_for(self.x, log_prob=True)
        fixed = ops.StepArguments(
            self.x,
            None,
            plan.table,
            self._rows[0],
            slots=self.slots,
            seed=self.seed,
            sample_ids=self.sample_ids,
            stream=windowed(STREAM_SOLVER, self._window[0] if self._window else 0),
            used=plan.used_without_network if moving[0] is None else plan.used,
            out=self.x,
            slots_out=self.slots,
            x0_out=self.x0,
            input_out=self._input,
            row_out=self._rows[1],
            time_out=self._times,
            workspace=workspace,
        )
        given = (name for name, value in zip(_MOVING, moving, strict=True) if value is not None)
        return fixed.bind(*given, *(_KEPT if keep else ())).both_ways()


def run_plan(
    plan: Plan,
    predict: Callable[[int, Tensor], Tensor],
    x: Tensor,
    *,
    seed: int | Tensor | None = None,
    sample_ids: Tensor | None = None,
    noise: Callable[[int], Tensor] | None = None,
    watch: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None,
    correct: Callable[[int, Tensor], Tensor] | None = None,
    done: Callable[[int], None] | None = None,
) -> Tensor:
    """Returns x [B, …] after all rows of a plan, one kernel each.

    Args:
        predict: (row, network's input in x's dtype) -> the network's output.
        x: [B, …], any floating dtype, not changed; the state is float32, or float64 for float64.
        seed, sample_ids: of the noise contract.
        noise: (row) -> the noise [B, …] of a row that draws, instead of the noise contract's.
        watch: (row, state, network's input, output) -> the output that the row uses, called after
            each network call and before its row. It may write into the state; the input is the
            state itself where it has the state's dtype and scale. The tensors keep their values:
            with it every row writes to new memory.
        correct: (row, state) -> the state to continue with, called after each row.
        done: (row), called after each row.
    """
    if not len(plan):
        return x
    wide = compute_dtype(x)
    rows = DevicePlan.of(plan, x.device)
    scale = rows.input_scale.tolist()
    state = x.to(wide, copy=True, memory_format=torch.contiguous_format)
    buffer: Tensor | None = None
    if x.dtype != wide or (rows.input_scale != 1).any():
        buffer = torch.empty_like(state, dtype=x.dtype).copy_(state * scale[0])
    stepper = Stepper(
        rows, state, seed=seed if noise is None else 0, sample_ids=sample_ids, input=buffer
    )
    for k in range(len(plan)):
        out: Tensor | None = None
        if rows.network[k]:
            out = predict(k, stepper.input)
            if watch is not None:
                out = watch(k, stepper.x, stepper.input, out)
        drawn: Any = noise(k) if noise is not None and rows.draws[k] else None
        stepper.step(out, noise=drawn, keep=watch is not None)
        if correct is not None:
            stepper.replace(correct(k, stepper.x), scale[k + 1])
        if done is not None:
            done(k)
    return stepper.x.to(x.dtype)


def draws_noise(plan: Plan) -> list[bool]:
    """Whether each row of a plan draws noise."""
    return DevicePlan.of(plan, torch.device("cpu")).draws[: len(plan)].tolist()
