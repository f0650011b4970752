"""Runs of a network along its plans: what `Sampler` and the probability flow's fixed grids share
(fastdiff.theory.score.flow).

A call becomes `RunOptions`, a `DevicePlan` and a source of samples; `Engine.run` loops over lanes.
This file is over 400 lines because every way to run (sample, stream, serve, rollout, start)
prepares its samples by the same methods.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..backend.eager.common import compute_dtype
from ..grad_mode import each_restored
from ..ops.common import windowed
from ..schedule import Schedule
from ..solvers import Plan
from ..table import uses
from ..whole import whole
from .arguments import SampleArguments, prepare
from .buffers import Lanes
from .device_plan import DevicePlan
from .fingerprint import fingerprint
from .graph import graphs
from .kept import KeptRuns, Run, kind_of
from .loop import run as loop
from .network import Model, Network, unsettled
from .options import GRAPH, ON_OOM, RunOptions
from .plans import Plans
from .recorder import recorder_of, rollout_of
from .requests import Batch, Request, Requests, Source
from .rollout import Rollout
from .settings import beside_a_plan, plan_settings
from .state import Scorer, State
from .upload import upload

_CALLERS = 6  # frames from a warning to the line of a user who calls `Sampler.sample`


class Engine:
    """A network, its plans and the options of the loop.

    Threads may share it: a run has its buffers for itself (fastdiff.sampling.kept).

    Args:
        model, schedule, plan, guide, network_batch, on_oom, graph, compile, network_dtype,
            channels_last: see `Sampler`.
        where: the name that error messages about the network begin with.
        settings: of `fastdiff.solvers.make_plan`; empty with a ready plan.

    Attributes:
        network: the `Network`. plans: the `Plans`. settings: as passed, with all defaults.

    Raises:
        ValueError, TypeError: for arguments outside those of `Sampler`.
    """

    def __init__(
        self,
        model: Model,
        schedule: Schedule | None,
        where: str = "fastdiff.Sampler",
        /,  # a setting of this name is not this one
        *,
        plan: Plan | None = None,
        network_batch: int | None = None,
        on_oom: str = "raise",
        graph: bool | str = "auto",
        compile: bool | Mapping[str, Any] = False,
        network_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        guide: Model | None = None,
        **settings: Any,
    ):
        self.network = Network(
            model,
            dtype=network_dtype,
            channels_last=channels_last,
            compile=compile,
            guide=guide,
            where=where,
        )
        if not isinstance(schedule, Schedule) and (schedule is not None or plan is None):
            raise TypeError(
                f"fastdiff.Sampler: expected a fastdiff.Schedule, got {type(schedule).__name__}."
            )
        self.settings = {} if plan is not None else plan_settings(**settings)
        if plan is not None and (others := beside_a_plan(plan, settings)):
            raise ValueError(
                "fastdiff.Sampler: expected no settings of a plan with a ready plan, got"
                f" {min(others)!r}. Make the plan with them, or leave plan out."
            )
        self.plans = Plans(schedule, self.settings, plan, model)
        if network_batch is not None:
            rows = whole(network_batch)
            if rows is None or rows < 1:
                raise ValueError(
                    f"fastdiff.Sampler: expected network_batch >= 1 or None, got {network_batch!r}."
                )
            network_batch = rows
        if not isinstance(on_oom, str) or on_oom not in ON_OOM:
            raise ValueError(
                f"fastdiff.Sampler: expected on_oom in {list(ON_OOM)}, got {on_oom!r}."
            )
        if not isinstance(graph, (bool, str)) or graph not in GRAPH:
            raise ValueError(f"fastdiff.Sampler: expected graph in {list(GRAPH)}, got {graph!r}.")
        self._kept = KeptRuns()
        self._warned = False
        self._call_options: dict[str, Any] = {
            "network_batch": network_batch,
            "on_oom": on_oom,
            "graph": graph,
        }

    @property
    def network_batch(self) -> int | None:
        """The number of rows of every network call; None for as many as there are."""
        return self._call_options["network_batch"]

    def options(
        self,
        shape: Sequence[int] | None,
        x: Tensor | None,
        dtype: torch.dtype | None,
        *,
        name: str = "x_T",
        inpaints: bool = False,
        classifier: Any = None,
        classifier_scale: float = 1.0,
        guidance: Any = None,
        through_network: bool = False,
        callback: Any = None,
        differentiable: bool = False,
        checkpoint: bool | int = False,
        last_k: int | None = None,
        keeps_x0: bool = False,
        window: tuple[int, int] | None = None,
    ) -> tuple[int, RunOptions]:
        """(number of samples, options) of a run; see `Sampler.sample` for the arguments.

        The state has x's shape and device where a state or image x is passed, else `shape` and the
        network's device. Without dtype it is float64 for a float64 x, else float32. name: the
        argument that x was passed as.

        Raises ValueError and TypeError for shapes and dtypes that no state has.
        """
        where = "fastdiff.Sampler.sample"
        hooks = {"callback": callback, "classifier": classifier, "guidance": guidance}
        for hook, function in hooks.items():
            if function is not None and not callable(function):
                raise TypeError(
                    f"{where}: expected {hook} as a function or None, got"
                    f" {type(function).__name__}."
                )
        if shape is not None and not isinstance(shape, Iterable):
            raise ValueError(f"{where}: expected shape [B, …] of sizes >= 0, got {shape!r}.")
        if x is not None:
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 1:
                got = f"{x.dtype} of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x)
                raise TypeError(f"{where}: expected {name} as a floating tensor [B, …], got {got}.")
            if shape is not None and tuple(shape) != tuple(x.shape):
                raise ValueError(
                    f"{where}: expected {name} of shape {list(shape)}, got {list(x.shape)}."
                )
            shape, device = x.shape, x.device
            dtype = compute_dtype(x) if dtype is None else dtype
        else:
            device = self.network.device
        sizes = () if shape is None else tuple(whole(s) for s in shape)
        if not sizes or any(s is None or s < 0 for s in sizes):
            raise ValueError(f"{where}: expected shape [B, …] of sizes >= 0, got {shape}.")
        shape = tuple(s for s in sizes if s is not None)
        dtype = torch.float32 if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{where}: expected dtype float32 or float64 (the state's), got"
                f" {dtype if isinstance(dtype, torch.dtype) else type(dtype).__name__}."
            )
        scale = float(classifier_scale)
        self._check_derivatives(differentiable, checkpoint, last_k, through_network)
        if window is not None:
            windowed("Sampler.sample", 0, window, math.prod(shape[1:]))
            window = (int(window[0]), int(window[1]))
        return shape[0], RunOptions(
            device=device,
            dtype=dtype,
            shape=tuple(shape[1:]),
            inpaints=inpaints,
            callback=callback,
            classifier=classifier if scale else None,
            classifier_scale=scale,
            guidance=guidance,
            through_network=through_network and guidance is not None,
            differentiable=differentiable and torch.is_grad_enabled(),
            checkpoint=int(checkpoint),
            last_k=last_k,
            keeps_x0=keeps_x0,
            window=window,
            **self._call_options,
        )

    def _check_derivatives(
        self, differentiable: bool, checkpoint: Any, last_k: Any, through_network: bool
    ) -> None:
        """Raises ValueError and TypeError for what has no right derivative."""
        where = "fastdiff.Sampler.sample"
        for name, value, least in (("checkpoint", checkpoint, 0), ("last_k", last_k, 1)):
            if value is None or (name == "checkpoint" and isinstance(value, bool)):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise TypeError(f"{where}: expected {name} as a number of rows, got {value!r}.")
        if not differentiable:
            if checkpoint or last_k is not None:
                raise ValueError(
                    f"{where}: expected differentiable=True with checkpoint or last_k, got False."
                )
            return
        if through_network:
            raise ValueError(
                f"{where}: expected through_network=False with differentiable=True, got True."
                " Differentiate the samples, or x0 within a step."
            )
        copies: list[Any] = [
            network.model
            for network in (self.network, self.network.guide)
            if network is not None and network.copied
        ]
        if any(p.requires_grad for model in copies for p in model.parameters()):
            raise ValueError(
                f"{where}: expected a network in its own dtype and memory format with"
                " differentiable=True, got a copy whose weights get the gradients. Pass the network"
                " as it should run, without network_dtype and channels_last."
            )

    def begin(self, options: RunOptions) -> Run:
        """A run: one like it that has ended, with its graphs, or a new one with empty plans."""
        self._warn_of_training()
        kind = None
        if options.capturable and graphs(options.graph, options.device) is not None:
            kind = kind_of(options, fingerprint(self.network.models))
            found = self._kept.take(kind)
            if found is not None:
                return found
        device_plan = DevicePlan(
            options.device,
            whole_times=self.plans.own.whole_times is True,
            classifier_scale=options.classifier_scale if options.classifier is not None else 0.0,
            splits=options.guidance is not None,
            inpaints=options.inpaints,
        )
        return Run(kind, device_plan)

    def _warn_of_training(self) -> None:
        """Warns once of a network in a mode in which its output is no function of its input.

        The mode is the user's: another thread may be training the network.
        """
        if self._warned:
            return
        for model in self.network.models:
            found = unsettled(model)
            if found is not None:
                self._warned = True
                warnings.warn(
                    f"fastdiff.Sampler: expected a network in eval mode, got {found} in training"
                    " mode, so samples change from call to call or with their batch. Call"
                    " model.eval() before sampling.",
                    stacklevel=_CALLERS,
                )

    def prepare(
        self,
        run: Run,
        options: RunOptions,
        arguments: SampleArguments,
        tickets: np.ndarray,
    ) -> Batch:
        """The samples of these arguments, checked, whose plans are added to the run's."""
        shape = (len(tickets), *options.shape)
        has_guide = self.network.guide is not None
        batch = prepare(
            self.plans, run.device_plan, arguments, shape, tickets, options.dtype, has_guide
        )
        if options.window is not None and uses(
            run.device_plan.used, "guidance_rescale", "guidance_kind", "clip_ratio"
        ):
            raise ValueError(
                "fastdiff.Sampler.sample: expected no guidance_rescale, guidance_type and"
                " dynamic_threshold with window, which need whole samples."
            )
        return batch

    def run(
        self,
        run: Run,
        options: RunOptions,
        source: Source | Requests,
        most: int,
        progress: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yields (tickets, samples) as they are done, and keeps the run for later ones.

        Args:
            run: from `begin`.
            source: of the samples, from `prepare` with the same run and options.
            most: the number of lanes, so of samples in flight.
            progress: called after every step.
        """

        def make(first: Batch, lanes: int) -> Lanes:
            found, run.lanes = run.lanes, None
            if found is not None and found.fits(first, lanes):
                found.reset(options)
                return found
            return self._lanes(run.device_plan, options, first, lanes)

        steps = loop(make, source, most, callback=options.callback, progress=progress)
        run.lanes = yield from steps
        self._kept.put(run)

    def _lanes(self, plan: DevicePlan, options: RunOptions, first: Batch, number: int) -> Lanes:
        """Returns empty lanes for samples like the first."""
        return Lanes(
            plan,
            self.network,
            options,
            number,
            first.conditions,
            halves=2 if first.guided else 1,
            host_strengths=not isinstance(first.gamma, Tensor),
            graphs=graphs(options.graph, options.device) if options.capturable else None,
        )

    def sample(
        self,
        arguments: SampleArguments,
        shape: Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = None,
        progress: bool = False,
        **hooks: Any,
    ) -> Tensor:
        """The samples [B, …] of one call; see `Sampler.sample`. hooks: see `options`."""
        x = arguments.x_T if arguments.x_T is not None else arguments.image
        name = "x_T" if arguments.image is None else "image"
        inpaints = arguments.mask is not None
        n, options = self.options(shape, x, dtype, name=name, inpaints=inpaints, **hooks)
        run = self.begin(options)
        batch = self.prepare(run, options, arguments, np.arange(n))
        whole = (n, *options.shape)
        if options.differentiable:
            left = run.device_plan.last_row[batch.rows] - batch.rows
            if len(set(left.tolist())) > 1:
                # a finished sample's network calls would add derivatives at times of no sample
                raise ValueError(
                    "fastdiff.Sampler.sample: expected one number of rows for all samples with"
                    f" differentiable=True, got {sorted(set(left.tolist()))}. Sample them apart."
                )
        if n == 0:
            return torch.empty(whole, dtype=options.dtype, device=options.device)
        bar = None
        if progress:
            longest = int((run.device_plan.last_row[batch.rows] - batch.rows).max())
            bar = tqdm(total=longest, desc="sampling", unit="step")
        result = None
        for tickets, done in self.run(run, options, Source(batch), n, bar.update if bar else None):
            if len(tickets) == n:
                result = done
                continue
            if result is None:
                result = torch.empty(whole, dtype=options.dtype, device=options.device)
            result[upload(tickets, options.device)] = done
        if bar:
            bar.close()
        assert result is not None
        return result

    def rollout(
        self,
        arguments: SampleArguments,
        shape: Sequence[int] | None = None,
        *,
        rows: Sequence[int] | None = None,
        outputs: bool = False,
        dtype: torch.dtype | None = None,
        window: tuple[int, int] | None = None,
    ) -> Rollout:
        """The samples of one call with their transitions; see `Sampler.rollout`."""
        x = arguments.x_T if arguments.x_T is not None else arguments.image
        name = "x_T" if arguments.image is None else "image"
        n, options = self.options(shape, x, dtype, name=name, window=window)
        if n == 0:
            raise ValueError("fastdiff.Sampler.rollout: expected at least one sample, got none.")
        run = self.begin(options)
        batch = self.prepare(run, options, arguments, np.arange(n))
        recorder = recorder_of(run.device_plan, batch, rows, outputs)
        options = dataclasses.replace(options, watcher=recorder)
        ((_, samples),) = self.run(Run(None, run.device_plan), options, Source(batch), n)
        return rollout_of(
            recorder, samples, run.device_plan, batch, self.network, self.network_batch, window
        )

    def start(
        self,
        arguments: SampleArguments,
        shape: Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = None,
        window: tuple[int, int] | None = None,
        log_prob: bool = False,
    ) -> State:
        """The state of samples that have not taken a step; see `Sampler.start`."""
        x = arguments.x_T if arguments.x_T is not None else arguments.image
        name = "x_T" if arguments.image is None else "image"
        inpaints = arguments.mask is not None
        n, options = self.options(
            shape, x, dtype, name=name, inpaints=inpaints, keeps_x0=True, window=window
        )
        if log_prob:
            options = dataclasses.replace(options, watcher=Scorer())
        run = self.begin(options)
        batch = self.prepare(run, options, arguments, np.arange(n))
        lanes = self._lanes(run.device_plan, options, batch, n)
        lanes.put(np.arange(n), batch)
        return State(lanes)

    def stream(
        self,
        arguments: SampleArguments,
        shape: Sequence[int],
        size: int,
        *,
        dtype: torch.dtype | None = None,
        **hooks: Any,
    ) -> Iterator[Tensor]:
        """Yields batches [at most size, …] of n samples in order, with at most `size` in flight;
        see `Sampler.stream`.

        Args:
            shape: [n, …] of all samples.
            size: the number of lanes, and the size of a batch.
            hooks: see `options`.
        """
        x = arguments.x_T if arguments.x_T is not None else arguments.image
        name = "x_T" if arguments.image is None else "image"
        inpaints = arguments.mask is not None
        n, options = self.options(shape, x, dtype, name=name, inpaints=inpaints, **hooks)
        run = self.begin(options)
        batch = self.prepare(run, options, arguments, np.arange(n))
        return each_restored(self._in_order(run, options, Source(batch), n, size))

    def serve(
        self,
        requests: Iterable[Request | None],
        arguments: Callable[[Request], SampleArguments],
        shape: Sequence[int],
        size: int,
        *,
        dtype: torch.dtype | None = None,
        **hooks: Any,
    ) -> Iterator[tuple[Request, Tensor]]:
        """Yields (request, its sample [*shape]) as they are done; see `Sampler.serve`.

        Args:
            arguments: of a request, for its one sample.
            size: the number of lanes.
            hooks: see `options`.
        """
        _, options = self.options((1, *shape), None, dtype, **hooks)
        run = self.begin(options)

        def batch(number: int, request: Request) -> Batch:
            return self.prepare(run, options, arguments(request), np.array([number]))

        source = Requests(iter(requests), batch)
        for tickets, x in each_restored(self.run(run, options, source, size)):
            for ticket, sample in zip(tickets.tolist(), x, strict=True):
                yield source.waiting.pop(ticket), sample.clone()

    def _in_order(
        self, run: Run, options: RunOptions, source: Source, n: int, size: int
    ) -> Iterator[Tensor]:
        """Yields batches of `size` samples in the order of their tickets 0 … n - 1."""
        waiting: dict[int, Tensor] = {}
        begin = 0
        for tickets, x in self.run(run, options, source, min(size, n)):
            if begin + size <= n and tickets.tolist() == list(range(begin, begin + size)):
                begin += size
                yield x
                continue
            waiting |= zip(tickets.tolist(), x, strict=True)
            while begin < n and all(i in waiting for i in range(begin, min(begin + size, n))):
                end = min(begin + size, n)
                yield torch.stack([waiting.pop(i) for i in range(begin, end)])
                begin = end
