"""Steps that autograd records: samples that can be differentiated (`Sampler.sample`).

The rows r = 1 … N of a run are one function x_0 = F_N(… F_1(x_T)), with F_r(x, slots) =
reverse_step_r(x, network(x, t_r), slots). Its gradient needs what every F_r stored, so memory grows
with N times the activations of a network call. With checkpoints (Chen et al. 2016) the run stores
only (x, slots) at the beginning of each segment of k rows, and the backward pass computes a segment
again before it goes through it: N/k states and the activations of k calls. Noise is a pure function
of (seed, sample, row), so the second computation has the same bits. With `last_k`, rows before the
last K are not recorded, and the gradient is that of the last K rows at the state that they begin
with (DRaFT-K, Clark et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .options import RunOptions
from .stepper import Stepper


def recorded_steps(
    stepper: Stepper,
    one_step: Callable[[str], None],
    options: RunOptions,
    calls: Sequence[str],
    *,
    each: bool,
) -> Iterator[int]:
    """Executes a row for every lane and each of these calls, which lead to the samples' end.

    Args:
        stepper: of the lanes, with `recorded`.
        one_step: (call) executes a row for every lane.
        each: whether single rows are asked for.

    Yields how many rows have been executed since it last did.
    """
    begin = 0
    first = 0 if options.last_k is None else max(len(calls) - options.last_k, 0)
    size = 1 if each or not options.checkpoint else options.checkpoint
    while begin < len(calls):
        end = min(begin + size, len(calls) if begin >= first else first)
        follow = partial(_follow, stepper, one_step, calls[begin:end])
        with torch.set_grad_enabled(begin >= first):
            if options.checkpoint and begin >= first:
                stepper.state = checkpoint(follow, *stepper.state, use_reentrant=False)
            else:
                stepper.state = follow(*stepper.state)
        yield end - begin
        begin = end


def _follow(
    stepper: Stepper,
    one_step: Callable[[str], None],
    calls: Sequence[str],
    x: Tensor,
    slots: Tensor | None,
    row: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The state after a segment of rows. It leaves the stepper as it is, because the backward pass
    calls it again when the run has moved on.
    """
    before, stepper.state = stepper.state, (x, slots, row)
    try:
        for kind in calls:
            one_step(kind)
        return stepper.state
    finally:
        stepper.state = before
