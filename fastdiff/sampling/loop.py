"""The loop itself: lanes are filled, stepped until a sample is done, emptied, and filled again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .buffers import Lanes
from .requests import Batch, Requests, Source

Callback = Callable[[int, Any, Tensor, Tensor], None]


def run(
    make: Callable[[Batch, int], Lanes],
    source: Source | Requests,
    most: int,
    *,
    callback: Callback | None = None,
    progress: Callable[[], Any] | None = None,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yields (tickets, states [k, …]) as samples are done.

    make: lanes, so many, for a run whose first samples these are; most: the number of lanes.
        callback: called after every
    step with (row in the plan, t, x, x0), or (step of the run, t [B], x, x0) while lanes are at
    different rows.
    """
    arrived, steps = source.take(most), 0
    while arrived is None:
        if source.empty:
            return
        arrived = source.take(most)
    lanes = make(arrived, most)
    while True:
        lanes = _fill(lanes, source, arrived)
        arrived = None
        if not lanes.active.any():
            if source.empty:
                return
            continue
        count = lanes.stretch()
        if count and not source.empty and not lanes.active.all():
            count = 1  # somebody may come for the free lanes
        with torch.no_grad():
            for number, kind in enumerate(lanes.kinds(count)):
                lanes.step(kind)
                if progress is not None:
                    progress()
                if callback is not None:
                    row, t = lanes.place(number)
                    callback(steps + number if row is None else row, t, lanes.x, lanes.x0)  # type: ignore[arg-type]
        steps += count
        done = lanes.advance(count)
        if len(done):
            last = source.empty and len(done) == lanes.batch
            x = lanes.x if last else lanes.x[torch.from_numpy(done).to(lanes.x.device)]
            yield lanes.leave(done), x
        lanes = _narrow(lanes, source)


def _fill(lanes: Lanes, source: Source | Requests, arrived: Batch | None) -> Lanes:
    """Samples for all idle lanes, as far as there are any."""
    while True:
        idle = np.flatnonzero(~lanes.active)
        if arrived is None and len(idle):
            arrived = source.take(len(idle))
        if arrived is None or not len(idle):
            return lanes
        if arrived.guided and lanes.halves == 1:
            lanes = lanes.rebuilt(np.arange(lanes.batch), lanes.batch, 2)
        lanes.enter(idle[: len(arrived)], arrived)
        arrived = None


def _narrow(lanes: Lanes, source: Source | Requests) -> Lanes:
    """Fewer lanes when half of them would stay idle to the end, where nobody counts on their
    number.
    """
    active, options = np.flatnonzero(lanes.active), lanes.options
    settled = options.graphs is not None or options.network_batch is not None or options.wants_x0
    if settled or not source.empty or not 0 < len(active) <= lanes.batch // 2:
        return lanes
    return lanes.rebuilt(active, len(active), lanes.halves)
