"""The loop: lanes are filled, stepped until a sample is done, emptied, and filled again."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .buffers import Lanes
from .options import Callback
from .requests import Batch, Requests, Source
from .upload import upload


def run(
    make: Callable[[Batch, int], Lanes],
    source: Source | Requests,
    most: int,
    *,
    callback: Callback | None = None,
    progress: Callable[[], Any] | None = None,
) -> Generator[tuple[np.ndarray, Tensor], None, Lanes | None]:
    """Yields (tickets [k], states [k, …]) of samples as they are done.

    It returns the lanes, or None where the source had no sample.

    Args:
        make: (first samples of the run, n) -> n empty lanes.
        source: of the samples.
        most: the number of lanes.
        callback: called after every step with (row in the plan, t, x, x0), or with (step of the
            run, t [B], x, x0) while lanes are at different rows. It may write into x.
        progress: called after every step.
    """
    arrived, steps = source.take(most), 0
    while arrived is None:
        if source.empty:
            return None
        arrived = source.take(most)
    lanes = make(arrived, most)
    while True:
        lanes = _fill(lanes, source, arrived)
        arrived = None
        if not lanes.occupied.any():
            if source.empty:
                return lanes
            continue
        count = lanes.steps_to_next_end()
        if count and not source.empty and not lanes.occupied.all():
            count = 1  # a request may arrive for an empty lane
        with torch.set_grad_enabled(lanes.options.differentiable):
            number = -1
            calls = lanes.calls_of_steps(count)
            for executed in lanes.steps(calls, each=callback is not None):
                number += executed
                if progress is not None:
                    for _ in range(executed):
                        progress()
                if callback is not None:
                    row, t = lanes.row_and_time(number)
                    callback(steps + number if row is None else row, t, lanes.x, lanes.x0)  # type: ignore[arg-type]
                    lanes.take_over_x()
        steps += count
        done = lanes.advance(count)
        if len(done):
            last = source.empty and len(done) == lanes.batch
            if not last:
                x = lanes.x[upload(done, lanes.x.device)]
            else:  # the lanes of graphs stay in use
                x = lanes.x if lanes.graphs is None else lanes.x.clone()
            yield lanes.release(done), x
        lanes = _narrow(lanes, source)


def _fill(lanes: Lanes, source: Source | Requests, arrived: Batch | None) -> Lanes:
    """Puts `arrived` and then samples of the source into empty lanes, until either runs out.

    Returns the lanes, which are new ones where the first guided sample needs a second half.
    """
    while True:
        empty = np.flatnonzero(~lanes.occupied)
        if arrived is None and len(empty):
            arrived = source.take(len(empty))
        if arrived is None or not len(empty):
            return lanes
        if arrived.guided and lanes.halves == 1:
            lanes = lanes.resized(np.arange(lanes.batch), lanes.batch, 2)
        lanes.put(empty[: len(arrived)], arrived)
        arrived = None


def _narrow(lanes: Lanes, source: Source | Requests) -> Lanes:
    """The occupied lanes alone, if half of all lanes or more would stay empty to the end.

    The number of lanes is fixed with CUDA graphs, `network_batch`, a callback and recorded steps.
    """
    occupied, options = np.flatnonzero(lanes.occupied), lanes.options
    fixed = lanes.graphs is not None or options.network_batch is not None or options.wants_x0
    fixed = fixed or options.differentiable
    if fixed or not source.empty or not 0 < len(occupied) <= lanes.batch // 2:
        return lanes
    return lanes.resized(occupied, len(occupied), lanes.halves)
