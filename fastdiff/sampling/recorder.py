"""Records the transitions of a run for a `Rollout`, as the watcher of its steps
(fastdiff.sampling.options).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..table import INDEX
from ..whole import whole
from .device_plan import DevicePlan
from .network import Network
from .requests import Batch
from .rollout import Rollout
from .stepper import Stepper

_NOISE = [INDEX["x.z"]]


class Recorder:
    """Keeps the transitions of some rows of a run in which all samples are at the same row.

    Args:
        rows: of the plan, ascending. first: the row that the run begins at.
        outputs: whether the network's outputs are kept.
    """

    def __init__(self, rows: Sequence[int], first: int, *, outputs: bool):
        self.rows, self._row = tuple(rows), first
        self.states: list[Tensor] = []
        self.slots: list[Tensor] = []
        self.outputs: list[Tensor] | None = [] if outputs else None
        self.log_prob: list[Tensor] = []
        self._chosen = frozenset(rows)
        self._after = -1  # the row after which the last state was kept

    def before(self, stepper: Stepper, calls: str, out: Tensor | None) -> Tensor | None:
        """Keeps what the row reads, and returns where it writes its log-probability."""
        if self._row not in self._chosen:
            return None
        if self._after != self._row:
            self.states.append(stepper.x.clone())
        if stepper.slots is not None:
            self.slots.append(stepper.slots.clone())
        if self.outputs is not None:
            assert out is not None
            self.outputs.append(out.clone())
        self.log_prob.append(stepper.x.new_empty(len(stepper.x)))
        return self.log_prob[-1]

    def after(self, stepper: Stepper) -> None:
        """Keeps the state that the row leads to."""
        if self._row in self._chosen:
            self.states.append(stepper.x.clone())
            self._after = self._row + 1
        self._row += 1


def recorder_of(
    plan: DevicePlan, batch: Batch, rows: Sequence[int] | None, outputs: bool
) -> Recorder:
    """Returns the recorder of a run that begins with these samples.

    Args:
        rows: of the plan; None for those at which some sample draws noise.

    Raises ValueError for samples at different rows, for rows outside the plan, and for none.
    """
    first, last = plan.row_in_plan[batch.rows], plan.row_in_plan[plan.last_row[batch.rows]]
    if len(set(first.tolist())) > 1 or len(set(last.tolist())) > 1:
        raise ValueError(
            "fastdiff.Sampler.rollout: expected one start and one number of rows for all samples,"
            f" got rows {sorted(set(first.tolist()))} to {sorted(set(last.tolist()))}."
        )
    begin, end = int(first[0]), int(last[0])
    if rows is None:
        drawn = plan.draws[batch.rows + np.arange(end - begin)[:, None]].any(axis=1)
        chosen = (begin + np.flatnonzero(drawn)).tolist()
        if not chosen:
            raise ValueError(
                "fastdiff.Sampler.rollout: expected a solver whose rows draw noise, got none of"
                f" {end - begin} rows. Use flow_sde, or ddim with eta=1; or pass rows=."
            )
        return Recorder(chosen, begin, outputs=outputs)
    numbers = [whole(row) for row in rows]
    chosen = sorted({row for row in numbers if row is not None})
    if len(chosen) != len(numbers) or (chosen and not begin <= chosen[0] <= chosen[-1] < end):
        raise ValueError(
            f"fastdiff.Sampler.rollout: expected different rows in [{begin}, {end}), got"
            f" {list(rows)}."
        )
    return Recorder(chosen, begin, outputs=outputs)


def rollout_of(
    recorder: Recorder,
    samples: Tensor,
    plan: DevicePlan,
    batch: Batch,
    network: Network,
    network_batch: int | None,
    window: tuple[int, int] | None,
) -> Rollout:
    """Returns the rollout of a run that has ended."""
    held = {id(p): p for p in (plan.plan_at(row) for row in batch.rows.tolist())}
    numbers = {key: i for i, key in enumerate(held)}
    plans = tuple(held.values())
    plan_of = np.array([numbers[id(plan.plan_at(row))] for row in batch.rows.tolist()], np.int64)
    draws = np.array(
        [[plans[p].table[row, _NOISE].any() for p in plan_of] for row in recorder.rows], bool
    ).reshape(len(recorder.rows), len(batch))
    reads = any(p.slots for p in plans)
    empty = samples.new_empty((0, *samples.shape))
    return Rollout(
        samples=samples,
        rows=recorder.rows,
        states=torch.stack(recorder.states) if recorder.states else empty,
        log_prob=torch.stack(recorder.log_prob)
        if recorder.log_prob
        else samples.new_empty((0, len(samples))),
        draws=draws,
        slots=torch.stack(recorder.slots) if reads and recorder.slots else None,
        outputs=None if recorder.outputs is None else tuple(recorder.outputs),
        ids=batch.ids,
        start_ids=batch.start_ids,
        seeds=batch.seeds,
        plans=plans,
        plan_of=plan_of,
        guidance_scale=batch.gamma,
        guided=batch.guided,
        conditions=batch.conditions,
        network=network,
        network_batch=network_batch,
        whole_times=plan.whole_times,
        window=window,
    )
