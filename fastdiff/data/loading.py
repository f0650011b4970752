"""Batches of a data set in a given order, made by this process or by worker processes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .contract import Condition, Data


def batches(
    data: Data, plan: Iterable[tuple[Tensor, int]], *, seed: int, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor, Condition]]:
    """Yields (index, x0, condition) for each (index, epoch) of the plan, in its order.

    Args:
        data: a data set, see `Data`.
        plan: indices int64 [B] with the epoch that augmentation and noise belong to; it may be
            endless, and is read a few batches ahead of what is yielded.
        seed: of augmentation and noise, in [0, 2**64).
        workers: processes that make the batches; 0 makes them here. The number changes no bit.

    An error of the data set is raised where its batch would have been yielded. Closing the
    generator ends the workers.
    """
    if workers < 0:
        raise ValueError(f"fastdiff.data: expected workers >= 0, got {workers}.")
    if workers == 0:
        for index, epoch in plan:
            yield index, *data.batch(index, seed=seed, epoch=epoch)
        return
    loader: Any = DataLoader(
        _Batches(data, seed),  # type: ignore[arg-type]
        sampler=plan,
        batch_size=None,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=_without_signals,
        generator=torch.Generator(),  # else the loader draws from torch's global generator
        # a fork shares mapped files and the cache of decoded pictures; elsewhere it is unsafe
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )
    for found in loader:
        if isinstance(found, Exception):
            raise found
        yield found


class _Batches:
    """The data set by plan entries: what a worker process holds."""

    def __init__(self, data: Data, seed: int):
        self.data, self.seed = data, seed

    def __getitem__(self, entry: tuple[Tensor, int]) -> Any:
        index, epoch = entry
        try:
            return index, *self.data.batch(index, seed=self.seed, epoch=epoch)
        except (ValueError, TypeError, OSError, RuntimeError, IndexError) as error:
            # as a value: raised here, the loader would put a worker's traceback into the sentence
            return error.with_traceback(None)


def _same(found: Any) -> Any:
    return found


def _without_signals(worker: int) -> None:
    """Leaves the handling of Ctrl-C to the first process, which ends the workers by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
