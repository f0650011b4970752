"""Rollouts that were stored: `Rollout` again from states, log-probabilities and the arguments of
the run that recorded them (`Sampler.stored_rollout`).

x_T and the noise of every row are functions of (seed, id), so they need not be stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .arguments import SampleArguments
from .device_plan import DevicePlan
from .recorder import Recorder, recorder_of, rollout_of
from .requests import Batch
from .rollout import Rollout, places

if TYPE_CHECKING:
    from .engine import Engine

_WHERE = "fastdiff.Sampler.stored_rollout"


def stored_rollout(
    engine: Engine,
    arguments: SampleArguments,
    shape: Sequence[int],
    *,
    rows: Sequence[int],
    states: Sequence[Tensor],
    log_prob: Tensor,
    samples: Tensor,
    slots: Tensor | None,
) -> Rollout:
    """Returns the rollout of a run with these arguments; see `Sampler.stored_rollout`."""
    _, options = engine.options(shape, samples, samples.dtype, name="samples")
    run = engine.begin(options)
    batch = engine.prepare(run, options, arguments, np.arange(len(samples)))
    recorder = recorder_of(run.device_plan, batch, rows, outputs=False)
    count = places(recorder.rows)[1]
    recorder.states = list(states)
    first = int(run.device_plan.row_in_plan[batch.rows[0]])
    if recorder.rows[:1] == (first,) and len(states) == count - 1:
        begun = engine.start(arguments, shape, dtype=samples.dtype).x
        recorder.states.insert(0, begun.to(samples.device))
    recorder.log_prob = list(log_prob)
    recorder.slots = [] if slots is None else list(slots)
    _check(recorder, run.device_plan, batch, count, samples)
    return rollout_of(
        recorder, samples, run.device_plan, batch, engine.network, engine.network_batch, None
    )


def _check(recorder: Recorder, plan: DevicePlan, batch: Batch, count: int, samples: Tensor) -> None:
    """Raises ValueError for tensors that are no rollout of these rows."""
    slots = max(plan.plan_at(row).slots for row in batch.rows.tolist())
    expected = {
        "states": [count, *samples.shape],
        "log_prob": [len(recorder.rows), len(samples)],
        "slots": [len(recorder.rows), slots, *samples.shape] if slots else [0],
    }
    for name, shape in expected.items():
        parts = getattr(recorder, name)
        got = [len(parts), *parts[0].shape] if parts else [0]
        if any(part.shape != parts[0].shape for part in parts) or got != shape:
            raise ValueError(
                f"{_WHERE}: expected {name} of shape {shape} for the rows {list(recorder.rows)},"
                f" got {got}."
            )
        wrong = [part.dtype for part in parts if part.dtype != samples.dtype]
        if wrong:
            raise ValueError(f"{_WHERE}: expected {name} in {samples.dtype}, got {wrong[0]}.")
