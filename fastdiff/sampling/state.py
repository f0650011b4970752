"""Samples on their way, which the caller moves on step by step, chooses among and branches.

Sequential Monte Carlo over samples (Feynman-Kac steering, Singhal et al. 2025) and tree searches
need a run that stops between steps: `Sampler.start` makes a `State`, `advance` executes rows, and
`fork` continues with some of the samples, some of them several times, under new ids: two branches
of one sample have the same past and different noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..grad_mode import restored
from ..rng import IDS
from ..whole import whole
from .buffers import Lanes
from .stepper import Stepper
from .upload import upload

_WHERE = "fastdiff.Sampler"


class Scorer:
    """Keeps the log-probabilities of the latest row.

    Attributes:
        log_prob: [B] in nats, 0 where the sample's row drew no noise; None before the first row.
    """

    def __init__(self) -> None:
        self.log_prob: Tensor | None = None

    def before(self, stepper: Stepper, calls: str, out: Tensor | None) -> Tensor:
        """Returns where the row writes its log-probability."""
        if self.log_prob is None:
            self.log_prob = stepper.x.new_empty(len(stepper.x))
        return self.log_prob

    def after(self, stepper: Stepper) -> None:
        """Does nothing: the row has written what is kept."""


class State:
    """B samples at some row of their plans; made by `Sampler.start`.

    Attributes:
        x: [B, …] the states. It is a buffer that steps overwrite, and may be written into.
        x0: [B, …] the predictions of x0 of the latest step; zero before the first.
        slots: [S, B, …] what multistep solvers remember, a buffer too; None without.
        log_prob: [B] of the latest row, see `Rollout.log_prob`; a buffer that steps overwrite, and
            None before the first row and unless `Sampler.start` was asked for it.
        ids: int64 [B], which name the noise of rows to come.
        row: the row of the plan that is executed next, of the first sample.
        done: whether all samples have reached the end of their plans.
    """

    def __init__(self, lanes: Lanes):
        self._lanes = lanes

    def __len__(self) -> int:
        return self._lanes.batch

    @property
    def x(self) -> Tensor:
        return self._lanes.x

    @property
    def x0(self) -> Tensor:
        assert self._lanes.x0 is not None
        return self._lanes.x0

    @property
    def slots(self) -> Tensor | None:
        return self._lanes.stepper.slots

    @property
    def log_prob(self) -> Tensor | None:
        watcher = self._lanes.options.watcher
        return watcher.log_prob if isinstance(watcher, Scorer) else None

    @property
    def ids(self) -> Tensor:
        return self._lanes.ids

    @property
    def row(self) -> int:
        return int(self._lanes.plan.row_in_plan[self._lanes.rows[0]])

    @property
    def done(self) -> bool:
        return not self._lanes.occupied.any()

    def __repr__(self) -> str:
        return f"State({list(self.x.shape)}, row {self.row}{', done' if self.done else ''})"


@restored
@torch.no_grad()
def advance(state: State, steps: int) -> None:
    """Executes this number of rows for every sample, fewer where the plans end.

    Raises ValueError where `steps` is no number >= 0.
    """
    count = whole(steps)
    if count is None or count < 0:
        raise ValueError(f"{_WHERE}.advance: expected steps >= 0, got {steps!r}.")
    lanes = state._lanes
    lanes.take_over_x()
    while count and not state.done:
        now = min(count, lanes.steps_to_next_end())
        for _ in lanes.steps(lanes.calls_of_steps(now), each=False):
            pass  # the iterator executes the rows
        lanes.finish(lanes.advance(now))
        count -= now


@restored
@torch.no_grad()
def fork(state: State, parents: Sequence[int] | Tensor, new_ids: Sequence[int] | Tensor) -> State:
    """Returns a state with the samples parents[i] of a state, which it leaves as it is.

    Args:
        parents: [n] numbers of samples, any number of times each.
        new_ids: [n] the ids under which they draw noise from here on.

    Raises ValueError for numbers and ids outside these.
    """
    lanes = state._lanes
    held = np.asarray(parents.cpu() if isinstance(parents, Tensor) else parents)
    if held.ndim != 1 or not len(held) or held.dtype.kind not in "iu":
        raise ValueError(f"{_WHERE}.fork: expected parents as numbers of samples, got {parents!r}.")
    if not 0 <= held.min() <= held.max() < len(state):
        raise ValueError(
            f"{_WHERE}.fork: expected parents in [0, {len(state)}), got {held.tolist()}."
        )
    ids = np.asarray(new_ids.cpu() if isinstance(new_ids, Tensor) else new_ids)
    if ids.shape != held.shape or ids.dtype.kind not in "iu":
        raise ValueError(
            f"{_WHERE}.fork: expected new_ids with {len(held)} whole numbers, one per parent, got"
            f" {new_ids!r}."
        )
    if not 0 <= ids.min() <= ids.max() < IDS:
        raise ValueError(f"{_WHERE}.fork: expected new_ids in [0, 2**56), got {ids.tolist()}.")
    new = lanes.resized(held.astype(np.int64), len(held), lanes.halves)
    new.ids.copy_(upload(ids.astype(np.int64), new.ids.device))
    return State(new)
