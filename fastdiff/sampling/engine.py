"""What a sampler's calls have in common: a program for the run's plans, lanes for its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .arguments import Given, prepare
from .buffers import Lanes, Options
from .device_plan import Program
from .graph import graphs
from .loop import run as loop
from .model_call import Network
from .plans import Plans
from .requests import Batch, Requests, Source

ON_OOM = ("raise", "split")


class Run(NamedTuple):
    """What holds for all samples of a call; see `Sampler.sample`."""

    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, ...]  # one sample's
    inpaints: bool = False
    callback: Callable[[int, Any, Tensor, Tensor], None] | None = None
    classifier: Callable[[Tensor, Tensor], Tensor] | None = None
    classifier_scale: float = 1.0
    guidance: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    through_network: bool = False


class Engine:
    """Network, plans and the options of the loop. It keeps no state between or during calls, so
    threads may share it.

    Raises ValueError for options outside those of `Sampler`.
    """

    def __init__(
        self,
        network: Network,
        plans: Plans,
        *,
        network_batch: int | None,
        on_oom: str,
        graph: bool | str,
    ):
        if network_batch is not None and (not isinstance(network_batch, int) or network_batch < 1):
            raise ValueError(
                f"fastdiff.Sampler: expected network_batch >= 1 or None, got {network_batch!r}."
            )
        if on_oom not in ON_OOM:
            raise ValueError(
                f"fastdiff.Sampler: expected on_oom in {list(ON_OOM)}, got {on_oom!r}."
            )
        if graph not in (True, False, "auto"):
            raise ValueError(
                f"fastdiff.Sampler: expected graph in [True, False, 'auto'], got {graph!r}."
            )
        self.network, self.plans = network, plans
        self._network_batch, self._on_oom, self._graph = network_batch, on_oom, graph

    def program(self, run: Run) -> Program:
        """An empty program for a run."""
        return Program(
            run.device,
            whole_times=self.plans.own.whole_times is True,
            classifier_scale=float(run.classifier_scale) if run.classifier is not None else 0.0,
            splits=run.guidance is not None,
            inpaints=run.inpaints,
        )

    def prepare(
        self, program: Program, given: Given, shape: tuple[int, ...], tickets: np.ndarray
    ) -> Batch:
        """Checked samples of this run."""
        return prepare(self.plans, program, given, shape, tickets)

    def run(
        self,
        program: Program,
        run: Run,
        source: Source | Requests,
        most: int,
        progress: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yields (tickets, samples) as they are done, at most `most` of them in flight."""
        called = run.classifier is not None or run.guidance is not None
        options = Options(
            network_batch=self._network_batch,
            on_oom=self._on_oom,
            classifier=run.classifier if program.classifier_scale else None,
            guidance=run.guidance,
            through_network=run.through_network and run.guidance is not None,
            inpaints=run.inpaints,
            wants_x0=run.callback is not None,
            # functions of the user are not for a graph
            graphs=None if called else graphs(self._graph, run.device),
        )

        def make(first: Batch, lanes: int) -> Lanes:
            shape = (lanes, *run.shape)
            halves = 2 if first.guided else 1
            host = not isinstance(first.gamma, Tensor)
            return Lanes(
                program,
                self.network,
                options,
                shape,
                first.conditions,
                halves=halves,
                dtype=run.dtype,
                host_strengths=host,
            )

        return loop(make, source, most, callback=run.callback, progress=progress)

    def in_order(
        self, program: Program, run: Run, source: Source, n: int, size: int
    ) -> Iterator[Tensor]:
        """Batches of `size` samples in the order of their tickets 0 … n - 1."""
        waiting: dict[int, Tensor] = {}
        begin = 0
        for tickets, x in self.run(program, run, source, min(size, n)):
            if begin + size <= n and tickets.tolist() == list(range(begin, begin + size)):
                begin += size
                yield x
                continue
            waiting |= zip(tickets.tolist(), x, strict=True)
            while begin < n and all(i in waiting for i in range(begin, min(begin + size, n))):
                end = min(begin + size, n)
                yield torch.stack([waiting.pop(i) for i in range(begin, end)])
                begin = end
