"""`fastdiff.Scheduler`: any solver on any grid in any pipeline of diffusers.

A pipeline's scheduler describes its network (`sampler_settings`). `Scheduler` keeps that
description and makes the plan that `Sampler` would run, with any registered solver over any grid
(`visited`). The pipeline iterates over the times of the plan's network calls, and a step executes
the rows of its call.

Conventions of the state, in which formulas do not differ but pipelines do:

- betas: the variance-preserving state, init_noise_sigma 1, no scaled inputs and no `sigmas`,
  whatever diffusers' class has;
- flow: x = (1 - sigma) x0 + sigma eps, with `sigmas` [n + 1];
- EDM's levels: x = x0 + sigma eps, and `scale_model_input` has EDM's factor.

This file is over 400 lines because diffusers' interface of a scheduler is one class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...recent import Recent
from ...schedule import Time
from ...solvers import Plan, make_plan
from ...solvers.registry import Solver, find
from ...solvers.windows import WINDOW
from . import members
from .base import Generators
from .configurations import arguments_of, refuse
from .noising import Noising
from .runs import Order, Run, led, made
from .sampler_settings import Trained, trained
from .state import RunTable, State
from .traced import TracedPlan

_MOST_RUNS = 16  # whose plans a scheduler keeps
_CHECKED_STEPS = 10  # of the plan that shows at once whether solver, grid and network fit


class Scheduler(Noising, drop_in=False):
    """A scheduler for diffusers' pipelines that runs any solver of fastdiff on any grid.

    `Scheduler.like(pipe.scheduler, solver=…, grid=…)` makes one for the network of a pipeline;
    `Scheduler.from_config(pipe.scheduler.config, solver=…, grid=…)` does the same.

    Its configuration is that of diffusers' scheduler with `like`, the name of its class, `solver`,
    `grid` and `solver_options`, and it is saved and loaded like any scheduler's.

    Args:
        like: diffusers' class whose configuration this is.
        solver: the name of a registered solver (`fastdiff solvers` lists them).
        grid: the name of a grid (`fastdiff.solvers.grids`); None for diffusers' own points.
        solver_options: options of the solver, and sde_rows (see `fastdiff.Sampler`).
        configuration: of diffusers' class.

    Attributes:
        timesteps: [calls] of the plan, as the pipeline's network expects them.
        sigmas: [calls + 1] of a flow, before each call and at the end.
        order: network calls of a step; times a number of steps, the first call after them.
        init_noise_sigma: the deviation of the first state.
        alphas_cumprod: [T], where the network was trained on betas.

    Raises:
        ValueError: for names, options and configurations outside these, and for a solver or a grid
            that is undefined for the network.
    """

    _has_history = True
    _compatibles: list[str] = []
    sigmas: Any = RunTable()

    def __init__(
        self,
        *,
        like: str,
        solver: str,
        grid: str | None = None,
        solver_options: Mapping[str, Any] | None = None,
        **configuration: Any,
    ):
        self.register_to_config(
            **configuration,
            like=like,
            solver=solver,
            grid=grid,
            solver_options=dict(solver_options or {}),
        )
        self._runs: Recent[Run] = Recent(_MOST_RUNS)
        self._read: tuple[Any, Any] = (None, None)
        self._setup()
        dynamic = 1.0 if self.config.get("use_dynamic_shifting") else None
        most = self._network(dynamic).schedule.num_train_timesteps
        given = self.config.solver_options.get("sde_rows")
        window = WINDOW.check("sde_rows", given, "fastdiff.Scheduler") or (0, 0)
        self._made(min(max(_CHECKED_STEPS, window[1]), most), mu=dynamic)

    @classmethod
    def like(
        cls, scheduler: Any, *, solver: str, grid: str | None = None, **options: Any
    ) -> Scheduler:
        """The scheduler for the network of another one.

        Args:
            scheduler: diffusers', a drop-in, or a `Scheduler`; it is not changed.
            solver, grid: see the class.
            options: of the solver; sde_rows, see `fastdiff.Sampler`; and values of the scheduler's
                configuration to replace, such as prediction_type or shift.
        """
        name = type(scheduler).__name__
        own = {} if isinstance(scheduler, Scheduler) else {"_class_name": name}
        return cls.from_config({**scheduler.config, **own}, solver=solver, grid=grid, **options)

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any
    ) -> Any:
        """The scheduler of a configuration: its own, or one of diffusers with solver= and grid=.

        Options are those of `like`.
        """
        arguments = arguments_of(config, options)
        if options and not return_unused_kwargs:
            raise ValueError(
                "fastdiff.Scheduler: expected options of the solver"
                f" {arguments['solver']!r} ({sorted(find(arguments['solver']).options)}) or keys of"
                f" the configuration of {arguments['like']}, got {sorted(options)[0]!r}."
            )
        scheduler = cls(**arguments)
        return (scheduler, options) if return_unused_kwargs else scheduler

    def __reduce__(self) -> Any:
        return members.bare, (type(self),), {**self.__dict__, "_read": (None, None)}

    # -- the plan

    def _network(self, mu: float | None = None) -> Trained:
        """What the network was trained on. It is read anew where the configuration was replaced."""
        config, held = self._read
        if config is not self._internal_dict:
            held = {}
            self._read = (self._internal_dict, held)
            self._runs = Recent(_MOST_RUNS)
        if mu not in held:
            held[mu] = trained("Scheduler.set_timesteps", self.config.like, self.config, mu=mu)
        known: Trained = held[mu]
        return known

    @property
    def _known(self) -> Trained:
        """The network, whatever its shift."""
        return self._network(1.0 if self.config.get("use_dynamic_shifting") else None)

    @property
    def _solver(self) -> Solver:
        return find(self.config.solver)

    def _made(
        self,
        steps: int | None,
        *,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> Run:
        """The run over what is passed to `set_timesteps`."""
        return made(
            self._network(mu), self.config, steps, sigmas=sigmas, timesteps=timesteps, mu=mu
        )

    def plan(self, **settings: Any) -> Plan:
        """The plan of the current timesteps; `t` has the times that pipelines iterate over.

        settings: further arguments of `fastdiff.solvers.make_plan`, such as guidance_rescale.
        """
        run = self._run
        made = make_plan(run.known.points, **{**run.settings, **settings}, times=run.times)
        return dataclasses.replace(made, initial_std=float(self.init_noise_sigma))

    @property
    def _run(self) -> Run:
        run = self._state.extra["run"]
        if run is None:
            raise ValueError(
                "fastdiff.Scheduler: expected set_timesteps before the plan and its steps. Call it"
                " first."
            )
        found: Run = run
        return found

    # -- a run

    def _initial(self) -> State:
        known = self._known
        total = known.schedule.num_train_timesteps
        if known.kind != "flow":
            return State(torch.arange(total - 1, -1, -1), steps=None, run=None)
        sigma = torch.tensor(known.schedule.sigma[::-1].copy(), dtype=torch.float32)
        shown = 1.0 - sigma if known.inverted else sigma
        return State(shown * total, steps=None, tables={"sigmas": shown}, run=None)

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        return [], None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        timesteps: Any = None,
        mu: float | None = None,
        **unused: Any,
    ) -> None:
        """Starts a run.

        Args:
            num_inference_steps: the number of steps of the grid.
            device: of `timesteps`.
            sigmas: levels to visit instead of the grid: of a flow in (0, 1], to which its shift is
                applied, where they are evenly spaced from 1 only their number counts if the grid
                has a name; otherwise sigma/alpha.
            timesteps: times to visit instead, of betas or of a flow.
            mu: the logarithm of the shift of a flow with use_dynamic_shifting; the shift itself
                with time_shift_type="linear".
            unused: as of `step`.
        """
        refuse("set_timesteps", unused)
        given = [None if v is None else _numbers(v) for v in (sigmas, timesteps)]
        lengths = {len(v) for v in given if v is not None}
        if num_inference_steps is not None and not lengths:
            lengths.add(int(num_inference_steps))
        both = self._known.kind != "flow" and None not in given
        if len(lengths) != 1 or both:
            raise ValueError(
                "fastdiff.Scheduler.set_timesteps: expected num_inference_steps, sigmas or"
                f" timesteps, got {'both of these' if both else sorted(lengths) or 'none'}."
            )
        dynamic = bool(self.config.get("use_dynamic_shifting"))
        shift = None if mu is None or not dynamic else float(mu)
        steps = lengths.pop()
        self._network(shift)  # forgets the runs of a configuration that was replaced
        key = (steps, shift, *(None if v is None else tuple(v) for v in given))
        run = self._runs.get(key)
        if run is None:
            made = self._made(steps, sigmas=given[0], timesteps=given[1], mu=shift)
            run = self._runs.put(key, made)
        tables, values = {}, torch.tensor(run.values, dtype=torch.float64)
        if run.known.kind == "flow":
            levels = [run.level(call) for call in range(len(run.calls) + 1)]
            shown = [a if run.known.inverted else s for a, s in levels]
            tables["sigmas"] = torch.tensor(shown, dtype=torch.float32, device=device)
        visits = values.to(device, torch.int64 if run.plan.whole_times else torch.float32)
        # pipelines that pass their levels count the calls as steps
        steps_known = sigmas is None and timesteps is None
        state = State(visits, steps=steps, tables=tables, run=run, by_step=steps_known)
        self._begin(state)

    @property
    def order(self) -> int:  # type: ignore[override]
        """Network calls of a step, as pipelines use it to begin inside the grid (see `Order`)."""
        run: Run | None = self._state.extra["run"]
        calls = self._solver.calls
        if run is None:
            return calls
        steps, total, by_step = len(run.times) - 1, len(run.calls), self._state.extra["by_step"]
        if steps == total:
            return 1
        usual = calls * (steps - 2) <= total <= calls * steps
        # options may change the number of calls
        order = Order((calls if usual else -(-total // steps)) if by_step else 1)
        order.run, order.by_step = run, by_step
        return order

    @property
    def init_noise_sigma(self) -> float:
        """The deviation of the first state."""
        return 1.0 if self._solver.reverse else self._known.std

    def _first_shift(self, state: State, timestep: Any) -> int:
        """Where the timesteps, which may have been cut, begin in the run."""
        values, visits = state.values, self._run.values
        same = [float(v) for v in values]
        for begin in range(len(visits) - len(same) + 1):
            if np.allclose(visits[begin : begin + len(same)], same, rtol=1e-3, atol=1e-3):
                return begin
        raise ValueError(
            "fastdiff.Scheduler.step: expected timesteps of the run, one after the other, got"
            f" {same[:4]} and so on. Pass others to set_timesteps."
        )

    def _place(self, where: str, state: State, timestep: Any) -> int:
        """The index of a call. Raises ValueError for a timestep outside the run."""
        run, index = self._run, self._index(state, timestep)
        if index is None or index >= len(run.calls):
            raise ValueError(
                f"fastdiff.Scheduler.{where}: expected one of the {len(run.calls)}"
                f" scheduler.timesteps, got {timestep}. Iterate over them."
            )
        return index

    def _entered(self, run: Run, start: int) -> TracedPlan:
        """The plan of a run that begins with the call `start`."""
        found = run.entered.get(start)
        if found is None:
            plan = run.begun_at(start)
            traced = TracedPlan(plan, np.zeros(len(plan.table), bool), first_sees=True)
            found = run.entered.put(start, traced)
        return found

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input: the sample, or of EDM's levels the sample times EDM's factor.

        Where the plan adds noise before its first call, the input has it. The noise is fastdiff's.
        """
        state = self._state
        if state.extra["run"] is None:
            return sample
        run, index = self._run, self._place("scale_model_input", state, timestep)
        last = state.last_index
        begins = last is None or index not in (last, last + 1) or index == state.history_start
        if begins:
            traced = self._entered(run, index)
            if traced.leading:
                sample = led(traced, sample, self._seed(state))
                state.extra["led"] = index
        return sample if run.scales[index] == 1.0 else sample * run.scales[index]

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        **unused: Any,
    ) -> Any:
        """The state that the next call is given, from the network's output at one of the timesteps.

        Args:
            model_output: of the network, given `scale_model_input(sample, timestep)`.
            timestep: an element of `timesteps`.
            sample: [B, …] the state.
            generator: for the draws of rows that draw noise, one or one for each sample; None for
                fastdiff's noise, with a seed from torch's global generator.
            return_dict: whether the result is an object; otherwise a tuple of the next state and,
                but for flows, the prediction of x0.
            unused: options of diffusers' steps that some pipelines always pass, such as eta=0.0;
                they are refused unless they are zero, False or None.
        """
        refuse("step", unused)
        state = self._state
        run, index = self._run, self._place("step", state, timestep)
        start = self._history_start(state, index)
        traced, call = self._entered(run, start), index - start
        if call == 0 and traced.leading and state.extra.get("led") != index:
            raise ValueError(
                f"fastdiff.Scheduler.step: expected a pipeline that calls scale_model_input, with"
                f" which the solver {run.plan.info['solver']!r} adds noise before the first call."
                " Choose options without it, such as s_churn=0."
            )
        if sample.dtype != model_output.dtype:
            sample = self._widened(sample, model_output)
        model_output = self._mean(run, model_output, sample)
        slots, slots_out = state.slots(index, sample, traced, call)
        state.last_index, state.step_index = index, index + 1
        seed = None
        if traced.calls[call].draws and (generator is None or traced.leading):
            seed = self._seed(state)

        def drawn(row: int) -> Tensor | None:
            led = row in traced.leading
            return None if led else self._draw(model_output, sample, generator)

        shows_x0 = return_dict or run.known.kind != "flow"
        x, x0, slots_out = traced.execute(
            call,
            sample,
            model_output,
            noise=None if generator is None else drawn,
            seed=seed,
            slots=slots,
            slots_out=slots_out,
            with_x0=shows_x0,
        )
        if slots is not None and slots_out is not None:
            state.keep_slots(slots_out)
        if return_dict:
            return self._output(x, x0)
        return (x,) if x0 is None or not shows_x0 else (x, x0)

    def _mean(self, run: Run, model_output: Tensor, sample: Tensor) -> Tensor:
        """The output without a learned variance that the plan does not read."""
        double = sample.ndim > 1 and model_output.shape[1:2] == (2 * sample.shape[1],)
        if not double or run.plan.column("noise_mode").any():
            return model_output
        return model_output[:, : sample.shape[1]]


def _numbers(values: Any) -> list[float]:
    return [float(v) for v in torch.as_tensor(np.asarray(values)).reshape(-1).tolist()]
