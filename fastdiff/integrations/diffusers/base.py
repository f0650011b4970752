"""The base of the drop-ins: a configuration gives a grid, a formula and a parametrization.

Together they give a plan, and a step executes the rows of one network call. A class says which
timesteps it visits, which points they are and which formula it uses. This module does the rest: the
plan of a run, the index of a step, the slots, the noise, and diffusers' conventions for arguments
and results. It is over 400 lines because diffusers' interface of a scheduler is one class.

`set_timesteps` starts a run:

1. The class computes the grid: timesteps [n] for the network, noise levels [n] as diffusers rounds
   them, and the level that the last step goes to. Most classes do this in `_levels` and
   `grids.ended`; those with grids of training timesteps need the timesteps alone.
2. `_state_of` makes a `State` of the grid: the tables that diffusers' attributes show. Some classes
   have both parts in one method `_grid(steps, device)`, which `_initial` calls too.
3. `_begin` computes the points (`Time`) of these tables by `_points`, and makes the state that of
   the calling context. Where a user edits a table later, `_renew` computes the points again.

`step` takes the network's output, a timestep and the sample:

1. The class checks its arguments, collects those that change the plan in `options`, and calls
   `_advance`.
2. `_index` finds the index of the timestep on the grid.
3. `_traced` returns the plan from the run's start to the end of the grid. The first step with these
   options traces it: `_formula` runs symbolically and gives a table, and `TracedPlan` groups the
   table's rows by network call.
4. `State.slots` returns the tensors that the step reads as its history, and those that it writes.
5. If a row draws noise, it is a draw from the generator, the user's tensor, or the noise contract's
   with the run's seed.
6. `TracedPlan.execute` launches `reverse_step` for each row of the call, and the next state comes
   back as diffusers returns it.

Drop-ins do not use the buffers of the sampling loop (`fastdiff.sampling.stepper`): the state
belongs to the pipeline, which may change its values, shape and dtype between steps, skip steps or
take them again, while a `Stepper` owns its state, overwrites it, and moves on with every step. So
all tensors of a drop-in's step change from call to call and slots are written into another tensor
than they are read from, while a `Stepper` binds its steps to buffers that stay. What both share is
below that: the table of a `DevicePlan`, `StepArguments`, and the `BoundStep` that has checked them.

Both methods have a short way for what a pipeline repeats, with the same results: a run that begins
like an earlier one (`repeated`), and a step like the one before it (`following`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, overload

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from ...backend.eager.common import compute_dtype
from ...prediction import Parametrization
from ...schedule import Time
from ...solvers import Linear, Plan, Trace
from ...table import INDEX
from . import checks, history, members
from .checks import Generators as Generators
from .following import Following
from .reading import nowhere, reading
from .state import RunTable, State, States, traced_plans
from .tables import Points
from .traced import TracedPlan

# arguments of diffusers' steps that change the plan
_OPTIONS = ("eta", "use_clipped_model_output", "s_churn", "s_tmin", "s_tmax", "s_noise", "order")
DROP_INS: dict[str, type[DropIn]] = {}
"""The drop-in classes by name, which is that of diffusers' class; they enter it when defined."""


@dataclass
class StepOutput(BaseOutput):
    """What `step` returns.

    Attributes:
        prev_sample: the next state, in the sample's dtype.
        pred_original_sample: the prediction of x0 from this call (after clipping), where diffusers'
            class returns it.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class DropIn(SchedulerMixin, ConfigMixin):
    """What every drop-in shares. A class defines:

    - `__init__` under `register_to_config` with diffusers' arguments and defaults, which ends in
      `self._setup()`;
    - `_prepare()`: training tables from the configuration;
    - `_initial()`: the State before `set_timesteps`, in most classes of all training timesteps;
    - `_points(state)`: the points (`Time`) of a state's tables;
    - `set_timesteps(...)`: computes a State and passes it to `_begin`;
    - `_formula(trace, state, start, **options)`: the formula from the timestep of index `start` to
      the end of the grid, run with `trace`; returns the final state as a linear term;
    - `step(...)` with diffusers' signature, which ends in `self._advance(...)`.

    The module's docstring says in which order they are called. The methods and attributes under
    "what classes define or change" have defaults that a class may override.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]
    config_name: Any = "scheduler_config.json"
    order = 1
    init_noise_sigma: Any = 1.0
    _space = "vp"
    _output: Any = StepOutput
    _returns_x0 = True  # whether diffusers' step returns pred_original_sample
    # whether diffusers' step returns another term, which `_write_slot_1` makes the plan's slot 1
    _returns_slot_1 = False
    _has_history = False  # whether the formula depends on where the run began
    _traces: type[Trace] = Trace
    _ignores = False  # whether there are calls for which `_ignores_sample` is true
    # whether the next state has the output's dtype, as in diffusers' class; otherwise the wider one
    # of the sample's and the output's
    _typed_as_output: Any = False
    # options of the step on which the meaning of slots depends, so that they cannot change in a run
    # or between the calls of a step, of which there are `_calls`
    _settled: tuple[str, ...] = ()
    _calls: int | None = None
    # whether a sample of less precision than the output is computed in the output's dtype
    _widens = True

    _own = False  # whether it is one of fastdiff's classes and not a user's

    _of_batch = False  # whether steps take a tensor of timesteps, one for each sample

    is_scale_input_called = False
    _history: history.Defaults = {}
    # the scheduler's own tables that its steps read, which users may edit
    _reads: tuple[str, ...] = ()
    _edits = 0  # the number of assignments to such tables

    timesteps: Any = RunTable()  # [n] in the order of the network's calls, on set_timesteps' device

    _states: States
    config: Any
    _internal_dict: Any

    def __init_subclass__(cls, *, drop_in: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        checks.checked(cls)
        cls._own = False
        if not cls.__name__.endswith("Scheduler"):
            return
        if drop_in and cls.__module__.split(".")[0] == "fastdiff":
            DROP_INS[cls.__name__] = cls
        # A pipeline saves this module's name with the class's name, and loads the class from it.
        cls.__module__ = "fastdiff"
        cls._own = DROP_INS.get(cls.__name__) is cls
        for name in cls._history:
            if not hasattr(cls, name):
                setattr(cls, name, history.Remembered(name))

    @overload
    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: Literal[False] = False, **kwargs: Any
    ) -> Self: ...

    @overload
    @classmethod
    def from_config(
        cls, config: Any, return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[Self, dict[str, Any]]: ...

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Self | tuple[Self, dict[str, Any]]:
        """The scheduler of a configuration, and with `return_unused_kwargs` the rest of kwargs."""
        return super().from_config(config, return_unused_kwargs, **kwargs)

    # -- what classes define or change

    def _prepare(self) -> None:
        """Sets training tables from the configuration."""

    def _initial(self) -> State:
        """The state before `set_timesteps`."""
        raise NotImplementedError

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        """The points of a state's tables, and the divisor of the network's input at each timestep.

        They are the points that diffusers' step takes from these tables, edited or not.
        """
        raise NotImplementedError

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        """The final state of a run from the timestep of index `start`, as a linear term."""
        raise NotImplementedError

    def _off_grid(
        self, trace: Trace, state: State, timestep: float, **options: Any
    ) -> Linear | None:
        """One step from a timestep off the grid; None where diffusers' class has no such step."""
        return None

    def _parametrization(self) -> Parametrization:
        return Parametrization(self.config.prediction_type)

    def _limits(self) -> dict[str, Any]:
        """The arguments of `Trace` that clip or threshold x0."""
        return self._limits_of(self.config)

    @classmethod
    def _limits_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The limits of x0 that the class has with a configuration."""
        if config.get("thresholding"):
            ratio = config.get("dynamic_thresholding_ratio", 0.995)
            return {"clip_range": config.get("sample_max_value", 1.0), "dynamic_threshold": ratio}
        clips = config.get("clip_sample")
        return {"clip_range": config.get("clip_sample_range", 1.0)} if clips else {}

    def _point_of(self, t: float) -> Time:
        """The point (alpha, sigma) of a training timestep.

        Raises ValueError for one that the tables do not have.
        """
        raise NotImplementedError

    def _point(self, t: float) -> Time:
        """The point of a training timestep; NaN for one that the tables do not have.

        Only the steps from and to it are refused, and only when they are taken.
        """
        try:
            return self._point_of(t)
        except ValueError:
            return nowhere(t)

    def _write_slot_1(
        self, table: NDArray[np.float64], state: State, options: Mapping[str, Any]
    ) -> None:
        """Writes the coefficients of slot 1, for classes whose steps return it."""

    def _held(self, options: Mapping[str, Any]) -> int:
        """The number of last calls whose outputs diffusers' history has after a run."""
        return 0

    def _recall(self, state: State, driven: dict[str, Any]) -> bool:
        """Fills what diffusers remembers from the slots; whether they have all that it needs."""
        return False

    def _sums(self, state: State) -> bool:
        """Whether the last step remembered a sum with its levels, which cannot be edited."""
        return False

    def _ignores_sample(self, state: State, call: int) -> bool:
        """Whether a call of a run, counted from its history's start, ignores the given sample.

        Then it continues from what the call before returned.
        """
        return False

    def _counted(self, state: State, index: int) -> int:
        """diffusers' counter after the step of an index."""
        return index + 1

    def _always_draws(self, index: int, options: Mapping[str, Any]) -> bool:
        """Whether diffusers draws at this index even where the noise is multiplied by zero."""
        return False

    # -- shared

    def _setup(self) -> None:
        if "trained_betas" in self.config and self.config["trained_betas"] is not None:
            # a configuration is written as JSON, which has lists only
            self.register_to_config(trained_betas=np.asarray(self.config["trained_betas"]).tolist())
        self._prepare()
        self._states = States(self._initial())  # its points are computed if a step needs them

    def _begin(self, state: State) -> None:
        """Starts a new run in the calling context."""
        self._renew(state)
        self._states.set(state)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The drop-in's class, which counts as a subclass of diffusers' class of the same name."""
        cls: Any = type(self)
        return cls if self._peer is None else members.twin(cls, self._peer)

    @property
    def _peer(self) -> Any:
        """diffusers' class of the same name; None where an optional package is missing."""
        cls: Any = type(self)
        return members.peer(cls, DROP_INS)

    def __reduce__(self) -> Any:
        return members.bare, (type(self),), self.__dict__

    def __getattr__(self, name: str) -> Any:
        if "_internal_dict" in self.__dict__ and not name.startswith("__"):
            if name in self._history:
                return history.handed_over(self)[name]
            try:
                return members.borrowed(self, self._peer, name)
            except AttributeError:
                pass
        return super().__getattr__(name)

    @property
    def _state(self) -> State:
        state = self._states.get()
        if state.edits == self._edits:
            version = 0
            for table in state.watched:
                version += table._version
            if version == state.version:
                return state
        self._renew(state)
        return state

    def _renew(self, state: State) -> None:
        """Computes what follows from the tables of a state, which may have been edited."""
        state.watch(self._edits, [self.__dict__.get(name) for name in self._reads])
        before = state.times
        state.times, state.scales = self._points(state)
        state.plans, state.config = traced_plans(), None
        if state.last_index is not None and before != state.times and self._sums(state):
            state.broken = True

    @property
    def num_inference_steps(self) -> int | None:
        return self._state.num_inference_steps

    @num_inference_steps.setter
    def num_inference_steps(self, value: int | None) -> None:
        self._state.set_steps(value)

    @property
    def _step_index(self) -> int | None:
        return self._state.step_index

    @_step_index.setter
    def _step_index(self, value: int | None) -> None:
        state = self._state
        if self._history and state.last_index is not None and value != state.last_index + 1:
            history.restarted(self)
        state.step_index = value

    def _require_steps(self, state: State) -> int:
        """The number of steps of a run. Raises ValueError before set_timesteps."""
        if state.num_inference_steps is None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.step: expected set_timesteps before step. Call it"
                " first."
            )
        return state.num_inference_steps

    def scale_model_input(self, sample: Tensor, timestep: Any = None, *_: Any, **__: Any) -> Tensor:
        """The network's input: in variance-preserving space the sample itself.

        Further arguments are accepted, as by most of diffusers' classes, and have no effect.
        """
        return sample

    def __len__(self) -> int:
        return self.config.get("num_train_timesteps", 1000)

    def _number(self, timestep: float) -> int:
        """A number of a timestep off the grid, in place of its index, for its noise."""
        return len(self) + int(timestep)

    def plan(self, **options: Any) -> Plan:
        """The plan of the current timesteps; options are those of `step` (eta, s_churn, order, …).

        Its `t` column has the scheduler's timesteps, and `initial_std` is its init_noise_sigma.
        """
        parameters = inspect.signature(self.step).parameters
        defaults = {name: parameters[name].default for name in _OPTIONS if name in parameters}
        return self._traced(self._state, 0, {**defaults, **options}, holds=False).plan

    def _traced(
        self, state: State, start: int, options: Mapping[str, Any], *, holds: bool = True
    ) -> TracedPlan:
        """The plan from an index to the end of the grid, traced once for each set of options.

        holds: whether what diffusers remembers at the end stays in the slots.
        """
        if state.config is not self._internal_dict:  # pipelines replace configurations in place
            state.share_plans(self._states, self._internal_dict)
        key = (start, holds, *options.values())
        traced = state.plans.get(key)
        if traced is None:
            trace = self._trace()
            trace.holds = self._held(options) if holds else 0
            with self._finite():
                end = self._formula(trace, state, start, **options)
                traced = self._traced_plan(trace, state, end, state.values[start:], options)
            state.plans.put(key, traced)
        return traced

    @contextmanager
    def _finite(self) -> Iterator[None]:
        """Raises ValueError with a sentence where a formula leaves the numbers."""
        try:
            yield
        except (ArithmeticError, ValueError) as error:
            if str(error).startswith("fastdiff"):
                raise
            raise ValueError(
                f"fastdiff.{type(self).__name__}.step: expected tables that give finite steps, got"
                f" others ({error}). Assign timesteps, sigmas or alphas that differ from step to"
                " step and are above 0 before the last one."
            ) from None

    def _traced_off_grid(
        self, state: State, timestep: float, options: Mapping[str, Any]
    ) -> TracedPlan:
        """The plan of one step from a timestep off the grid, traced once like `_traced`."""
        key = ("single", timestep, *options.values())
        found = state.plans.get(key)
        if found is None:
            trace = self._trace()
            with self._finite():
                end = self._off_grid(trace, state, timestep, **options)
            if end is None:
                raise ValueError(
                    f"fastdiff.{type(self).__name__}.step: expected one of scheduler.timesteps, got"
                    f" {timestep}. Call set_timesteps first and pass its timesteps."
                )
            traced = self._traced_plan(trace, state, end, [timestep], options)
            # All such rows are the first of their plan and share a seed, so the timestep numbers
            # their noise.
            table = traced.plan.table.copy()
            drawing = table[:, INDEX["x.z"]] != 0
            table[drawing, INDEX["noise_index"]] = self._number(timestep)
            undefined = np.isin(np.arange(len(table)), list(traced.undefined))
            found = TracedPlan(replace(traced.plan, table=table), undefined)
            state.plans.put(key, found)
        if len(found.calls) - 1 in found.undefined:
            self._refuse_step(timestep)
        return found

    def _trace(self) -> Trace:
        name = type(self).__name__
        parametrization, limits = reading(name, self._parametrization(), self._limits())
        return self._traces(parametrization, Points(self._space, self._point), **limits)

    def _traced_plan(
        self,
        trace: Trace,
        state: State,
        end: Linear,
        timesteps: list[float],
        options: Mapping[str, Any],
    ) -> TracedPlan:
        """The plan of a formula whose final state is `end`, with a timestep for each call."""
        table = trace.table(end)
        calls = np.flatnonzero(table[:, INDEX["network"]])
        calls = calls[: len(timesteps)]  # edited levels may outnumber the timesteps
        table[calls, INDEX["t"]] = timesteps[: len(calls)]
        self._write_slot_1(table, state, options)
        undefined: NDArray[np.bool_] = np.logical_not(np.isfinite(table).all(axis=1))
        table[undefined] = 0.0  # these steps are refused
        table[undefined, INDEX["network"]] = 1.0
        info = {"scheduler": type(self).__name__, "timesteps": len(timesteps), **options}
        std = float(self.init_noise_sigma)
        levels = trace.levels(state.times[-1])
        return TracedPlan(Plan(table, info, initial_std=std, levels=levels), undefined)

    def _index(self, state: State, timestep: Any) -> int | None:
        """The index of a timestep, None if it is not one of the timesteps.

        A view of `timesteps` is found by its memory address, without a read of the device; another
        timestep by diffusers' counter, or else by its value.
        """
        if state.step_index is None or state.shift is None:
            state.shift = self._first_shift(state, timestep)
        shift = state.shift
        if isinstance(timestep, Tensor):
            index = state.view_index(timestep)
            if index is not None:
                return index + shift
        counter = state.step_index if state.step_index is not None else state.begin_index
        if isinstance(timestep, Tensor):
            if counter is not None and timestep.device.type != "cpu":
                return counter
            timestep = timestep.item()
        if counter is not None and (
            state.step_index is None or self._holds(state, counter - shift, timestep)
        ):
            return counter
        found = [i + shift for i, t in enumerate(state.values) if t == timestep]
        if not found:
            return None
        # a run that starts inside the grid starts at the second of two equal timesteps, like
        # diffusers'
        return found[1] if counter is None and len(found) > 1 else found[0]

    def _first_shift(self, state: State, timestep: Any) -> int:
        """The shift at a run's first call, and where its timesteps were assigned."""
        return 0

    @staticmethod
    def _holds(state: State, index: int, timestep: float) -> bool:
        if not 0 <= index < len(state.values):
            return False
        return timestep in (state.values[index], int(state.values[index]))

    def _advance(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *,
        options: Mapping[str, Any] | None = None,
        generator: Generators = None,
        noise: Tensor | float | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Executes one step, and returns what diffusers' step returns.

        Args:
            options: arguments of the step that change the plan.
            generator: for the draw of a step that draws noise; None for fastdiff's noise.
            noise: the noise of the step instead of a draw, a number or broadcast to the sample.
        """
        options, state, given = options or {}, self._state, (model_output, timestep, sample)
        if state.driven is not None:
            more = {"generator": generator, "variance_noise": noise, "return_dict": return_dict}
            return history.step(self, model_output, timestep, sample, **options, **more)
        index = self._index(state, timestep)
        slots = slots_out = seed = None
        if index is None:
            traced, call = self._traced_off_grid(state, float(timestep), options), 0
            if sample.dtype is not model_output.dtype:
                sample = self._widened(sample, model_output)
        else:
            first = self._history_start(state, index) if self._has_history else 0
            if state.broken and state.last_index is not None:
                raise ValueError(
                    f"fastdiff.{type(self).__name__}.step: expected the tables of the last step,"
                    " whose results this step continues from, got edited ones. Edit sigmas and"
                    " alphas before a run or between the steps of another class."
                )
            traced, call = self._traced(state, first, options), index - first
            if call >= len(traced.calls):
                self._refuse_levels("step", state, index)
            if traced.undefined and call in traced.undefined:
                self._refuse_step(*state.values[index : index + 2])
            if self._ignores and self._ignores_sample(state, call):
                sample = state.given_or_returned(index, sample)
            if sample.dtype is not model_output.dtype:
                sample = self._widened(sample, model_output)
            if self._settled:
                self._settle(state, call, {name: options[name] for name in self._settled})
            slots, slots_out = state.slots(index, sample, traced, call)
            state.last_index, state.last = index, (traced, call)
            state.step_index = self._counted(state, index)
        if self._returns_slot_1:
            shape = (1, *sample.shape)
            slots_out = torch.empty(shape, dtype=compute_dtype(sample), device=sample.device)
        if noise is not None:
            noise = self._like(sample, noise)
        else:
            draws = traced.calls[call].draws
            if generator is None:
                seed = self._seed(state) if draws else None
            elif draws or self._always_draws(index or 0, options):
                noise = self._draw(model_output, sample, generator)
        x, second, slots_out = traced.execute(
            call,
            sample,
            model_output,
            noise=noise,
            seed=seed,
            slots=slots,
            slots_out=slots_out,
            with_x0=self._returns_x0,
        )
        if slots is not None and slots_out is not None:
            state.keep_slots(slots_out)
        if self._ignores and index is not None and self._ignores_sample(state, call + 1):
            state.keep_returned(index, x)
        if self._returns_slot_1 and second is None and slots_out is not None:
            second = slots_out[0].to(sample.dtype)
        if x.dtype is not model_output.dtype and self._typed_as_output:
            x = x.to(model_output.dtype)
        values = (x,) if second is None else (x, second)
        result = self._output(*values) if return_dict else values
        if (
            self._own
            and noise is None
            and (generator is None or type(self)._always_draws is DropIn._always_draws)
            and index is not None
            and not (self._ignores or self._returns_slot_1)
            and x.dtype is given[0].dtype is given[2].dtype
            and traced.single(call) is not None
        ):
            state.following = Following(
                self, state, traced, index - call, (*given, result), return_dict, generator is None
            )
        return result

    def _refuse_step(self, *timesteps: float) -> None:
        """Raises ValueError for a step from the first timestep, whose coefficients are NaN."""
        for t in timesteps:
            self._point_of(t)
        raise ValueError(
            f"fastdiff.{type(self).__name__}.step: expected a prediction_type and tables that give"
            f" finite steps, got {self.config.get('prediction_type')!r} at timestep"
            f" {timesteps[0]}, where it is undefined. Train v or flow, or choose a grid"
            " without that point."
        )

    def _settle(self, state: State, call: int, options: dict[str, Any]) -> None:
        """Notes the options at the first call. Raises ValueError for others at later calls."""
        if call == 0 or (self._calls and call % self._calls == 0):
            state.settled = options
        elif options != state.settled:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.step: expected {state.settled} as in the calls"
                f" before, got {options}. Change them where a run or a step begins."
            )

    def _widened(self, sample: Tensor, model_output: Tensor) -> Tensor:
        """The sample in the wider one of both dtypes, in which diffusers computes."""
        if not self._widens:
            return sample
        return sample.to(torch.promote_types(sample.dtype, model_output.dtype))

    def _refuse_levels(self, method: str, state: State, index: int) -> None:
        """Raises ValueError for a step after the last one, or whose levels are not there."""
        where, count = f"fastdiff.{type(self).__name__}.{method}", len(state.values)
        if index >= count:
            raise ValueError(
                f"{where}: expected at most {count} steps, as many as timesteps, got one of index"
                f" {index}. Call set_timesteps before another run."
            )
        raise ValueError(
            f"{where}: expected levels for the step of index {index}, got {len(state.times)} for"
            f" {count} timesteps. Assign one more level than timesteps."
        )

    def _like(self, sample: Tensor, noise: Tensor | float) -> Tensor:
        """The user's noise in the sample's shape."""
        if isinstance(noise, Tensor):
            if noise.shape == sample.shape:
                return noise
            if noise.is_floating_point() and noise.device == sample.device:
                try:
                    return noise.expand(sample.shape)
                except RuntimeError:
                    pass
        elif isinstance(noise, (int, float)):
            return torch.full_like(sample, noise)
        got = (
            f"{noise.dtype} of shape {list(noise.shape)} on {noise.device}"
            if isinstance(noise, Tensor)
            else type(noise).__name__
        )
        raise ValueError(
            f"fastdiff.{type(self).__name__}.step: expected noise as a number or a floating tensor"
            f" that broadcasts to {list(sample.shape)} on {sample.device}, got {got}."
        )

    def _draw(self, model_output: Tensor, sample: Tensor, generator: Generators) -> Tensor:
        """A draw like diffusers', on the output's device."""
        checks.generators(type(self).__name__, generator, sample)
        return randn_tensor(
            tuple(sample.shape),
            generator=generator,
            device=model_output.device,
            dtype=self._drawn_dtype(model_output, sample),
        )

    def _drawn_dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        """The dtype in which diffusers' class draws: that of the output.

        sample: in the dtype of the step.
        """
        return model_output.dtype

    @staticmethod
    def _seed(state: State) -> int:
        """The seed of fastdiff's noise in a run, drawn from torch's global generator once."""
        if state.seed is None:
            state.seed = int(torch.randint(2**63 - 1, ()))
        return state.seed

    @staticmethod
    def _history_start(state: State, index: int) -> int:
        """The index at which the history of this step begins.

        A step that does not follow the last one starts a new history.
        """
        last = state.last_index
        if state.history_start is None or last is None or index not in (last, last + 1):
            state.history_start = index
            state.last_index = None
        return state.history_start
