"""The shared base of the drop-ins: configuration -> (grid, formula, parametrization) -> plan; a
step is a row of it.

A class says which timesteps it visits, which points they are and which formula runs over them.
Everything else is here: the plan of a run, the index of a step, the memory, the noise, and
diffusers' conventions for what goes in and out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

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
from .execute import execute
from .state import Run, State, States
from .tables import Points

# arguments of diffusers' steps that change the plan
_OPTIONS = ("eta", "use_clipped_model_output", "s_churn", "s_tmin", "s_tmax", "s_noise", "order")
Generators = torch.Generator | list[torch.Generator] | None

DROP_INS: dict[str, type[Scheduler]] = {}
"""The drop-in classes by name, which is that of diffusers' class; they enter it when defined."""


@dataclass
class StepOutput(BaseOutput):
    """What `step` returns.

    Attributes:
        prev_sample: the next state, in the sample's dtype.
        pred_original_sample: the prediction of x0 from this call (after clipping), where diffusers'
            class gives it.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class Scheduler(SchedulerMixin, ConfigMixin):
    """What every drop-in shares. A class defines:

    - `__init__` under `register_to_config` with diffusers' arguments and defaults, ending in
    `self._setup()`;
    - `_prepare()`: training tables from the configuration;
    - `_initial()`: the State before `set_timesteps`;
    - `set_timesteps(...)`: computes a State and hands it to `_begin`;
    - `_formula(trace, state, start, **options)`: the traced result from the displayed timestep
    `start` to the end;
    - `step(...)` with diffusers' signature, ending in `self._advance(...)`.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]
    config_name: Any = "scheduler_config.json"
    order = 1
    init_noise_sigma: Any = 1.0
    _space = "vp"
    _output: Any = StepOutput
    _returns_x0 = True  # whether diffusers' step gives pred_original_sample
    _returns_slot = (
        False  # whether it gives another term, which `_show` writes down as what slot 1 becomes
    )
    _remembers = False  # whether the formula depends on where the run began

    _states: States
    config: Any
    _internal_dict: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.endswith("Scheduler"):
            return
        if cls.__module__.split(".")[0] == "fastdiff":
            DROP_INS[cls.__name__] = cls
        # A pipeline saves this module's name with the class's name, and loads the class from it.
        cls.__module__ = "fastdiff"

    # -- what classes define or change

    def _prepare(self) -> None:
        """Sets training tables from the configuration."""

    def _initial(self) -> State:
        raise NotImplementedError

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        raise NotImplementedError

    def _foreign(
        self, trace: Trace, state: State, timestep: float, **options: Any
    ) -> Linear | None:
        """One step from a timestep that is not on the grid, where diffusers' class knows such a
        step.
        """
        return None

    def _parametrization(self) -> Parametrization:
        return Parametrization(self.config.prediction_type)

    def _limits(self) -> dict[str, Any]:
        """The clip on x0, for Trace."""
        c = self.config
        if c.get("thresholding"):
            return {
                "clip_range": c.sample_max_value,
                "dynamic_threshold": c.dynamic_thresholding_ratio,
            }
        return {"clip_range": c.get("clip_sample_range", 1.0)} if c.get("clip_sample") else {}

    def _point(self, t: float) -> Time:
        """The point of a training timestep."""
        raise NotImplementedError

    def _show(self, table: NDArray[np.float64], state: State, options: Mapping[str, Any]) -> None:
        """Writes down what slot 1 becomes, for classes whose steps return it."""

    def _always_draws(self, index: int, options: Mapping[str, Any]) -> bool:
        """Whether diffusers draws at this index even where the result is multiplied by zero."""
        return False

    # -- shared

    def _setup(self) -> None:
        if "trained_betas" in self.config and self.config["trained_betas"] is not None:
            # a configuration is written as JSON, which knows lists
            self.register_to_config(trained_betas=np.asarray(self.config["trained_betas"]).tolist())
        self._prepare()
        self._states = States(self._initial())

    def _begin(self, state: State) -> None:
        """The calling context's run starts anew."""
        self._states.set(state)

    @property
    def _state(self) -> State:
        return self._states.get()

    @property
    def timesteps(self) -> Tensor:
        """[n] timesteps in the order of the network's calls, on the device given to
        set_timesteps.
        """
        return self._state.timesteps

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        state = self._state
        state.timesteps, state.host = value, value.tolist()
        state.locate()

    @property
    def num_inference_steps(self) -> int | None:
        return self._state.num_inference_steps

    @property
    def _step_index(self) -> int | None:
        return self._state.step_index

    @_step_index.setter
    def _step_index(self, value: int | None) -> None:
        self._state.step_index = value

    def _require_steps(self, state: State) -> int:
        """The number of steps of a run. Raises ValueError before set_timesteps."""
        if state.num_inference_steps is None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.step: expected set_timesteps before step. Call it"
                " first."
            )
        return state.num_inference_steps

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input: the sample itself in variance-preserving space."""
        return sample

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def plan(self, **options: Any) -> Plan:
        """The plan of the current timesteps; options are those of `step` (eta, s_churn, order, …).

        Its `t` column holds the scheduler's timesteps and `initial_std` its init_noise_sigma.
        """
        parameters = inspect.signature(self.step).parameters
        defaults = {name: parameters[name].default for name in _OPTIONS if name in parameters}
        return self._run(self._state, 0, {**defaults, **options}).plan

    def _run(self, state: State, start: int, options: Mapping[str, Any]) -> Run:
        """The traced plan from an index on, made once for each set of options."""
        if state.config is not self._internal_dict:  # pipelines replace configurations in place
            state.plans, state.config = (
                self._states.plans(state, self._internal_dict),
                self._internal_dict,
            )
        key = (start, *options.values())
        run = state.plans.get(key)
        if run is None:
            trace = self._trace()
            run = self._finish(
                trace,
                state,
                self._formula(trace, state, start, **options),
                state.host[start:],
                options,
            )
            state.plans[key] = run
        return run

    def _single(self, state: State, timestep: float, options: Mapping[str, Any]) -> Run:
        """The plan of one step from a timestep off the grid."""
        key = ("single", timestep, *options.values())
        if key not in state.plans:
            trace = self._trace()
            end = self._foreign(trace, state, timestep, **options)
            if end is None:
                raise ValueError(
                    f"fastdiff.{type(self).__name__}.step: expected one of scheduler.timesteps, got"
                    f" {timestep}. Call set_timesteps first and pass its timesteps."
                )
            run = self._finish(trace, state, end, [timestep], options)
            # such rows share a seed and all are first rows: their draws are told apart by the
            # timestep
            table = run.plan.table.copy()
            table[table[:, INDEX["x.z"]] != 0, INDEX["noise_index"]] = (
                self.config.num_train_timesteps + int(timestep)
            )
            state.plans[key] = Run(replace(run.plan, table=table))
        return state.plans[key]

    def _trace(self) -> Trace:
        return Trace(self._parametrization(), Points(self._space, self._point), **self._limits())

    def _finish(
        self,
        trace: Trace,
        state: State,
        end: Linear,
        timesteps: list[float],
        options: Mapping[str, Any],
    ) -> Run:
        table = trace.table(end)
        calls = np.flatnonzero(table[:, INDEX["network"]])
        table[calls, INDEX["t"]] = timesteps[: len(calls)]
        self._show(table, state, options)
        info = {"scheduler": type(self).__name__, "timesteps": len(timesteps), **options}
        std = float(self.init_noise_sigma)
        return Run(Plan(table, info, initial_std=std, levels=trace.levels(state.times[-1])))

    def _index(self, state: State, timestep: Any) -> int | None:
        """Which of the timesteps this is: by where a view lies, else by the counter, else by value;
        None if none is.
        """
        counter = state.step_index if state.step_index is not None else state.begin_index
        if isinstance(timestep, Tensor):
            index = state.view_index(timestep)
            if index is not None:
                return index
            if counter is not None and timestep.device.type != "cpu":
                return counter
            timestep = timestep.item()
        if counter is not None and (
            state.step_index is None or self._holds(state, counter, timestep)
        ):
            return counter
        found = [i for i, t in enumerate(state.host) if t == timestep]
        if not found:
            return None
        # a run that starts inside the grid starts at the second of two equal timesteps, as
        # diffusers' do
        return found[1] if counter is None and len(found) > 1 else found[0]

    @staticmethod
    def _holds(state: State, index: int, timestep: float) -> bool:
        return index < len(state.host) and state.host[index] == timestep

    def _advance(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *,
        options: Mapping[str, Any] | None = None,
        generator: Generators = None,
        noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step: the rows of this network call."""
        options = options or {}
        state = self._state
        index = self._index(state, timestep)
        slots = slots_out = None
        if index is None:
            single = float(timestep)
            run, rows = self._single(state, single, options), [0]
        else:
            start = self._history(state, index) if self._remembers else 0
            run = self._run(state, start, options)
            rows = run.calls[index - start]
            if run.slots:
                slots, slots_out = state.buffers(run.slots, sample, compute_dtype(sample))
                if state.done == index:  # the step is taken again: from what it read the first time
                    slots, slots_out = slots_out, slots
                state.slots = [slots_out, slots]
            state.done, state.step_index = index, index + 1
        if self._returns_slot:
            slots_out = torch.empty(
                (1, *sample.shape), dtype=compute_dtype(sample), device=sample.device
            )
        x, second = sample, None
        drawn = noise
        for row in rows:
            seed = z = None
            if run.draws[row]:
                if drawn is None:
                    if generator is None:
                        seed = self._seed(state)
                    else:
                        drawn = self._draw(model_output, sample, generator)
                z = drawn
            output = model_output if run.network[row] else None
            x, second = execute(run, row, x, output, z, seed, slots, slots_out, self._returns_x0)
            slots = (
                slots_out if slots is not None else None
            )  # a call's second row goes on from its first
        if generator is not None and drawn is None and self._always_draws(index or 0, options):
            self._draw(model_output, sample, generator)
        if second is None and slots_out is not None and self._returns_slot:
            second = slots_out[0].to(sample.dtype)
        result = (x,) if second is None else (x, second)
        return self._output(*result) if return_dict else result

    @staticmethod
    def _draw(model_output: Tensor, sample: Tensor, generator: Generators) -> Tensor:
        """diffusers' draw: of the output's dtype on the output's device."""
        return randn_tensor(
            tuple(sample.shape),
            generator=generator,
            device=model_output.device,
            dtype=model_output.dtype,
        )

    @staticmethod
    def _seed(state: State) -> int:
        if state.seed is None:
            state.seed = int(torch.randint(2**63 - 1, ()))
        return state.seed

    @staticmethod
    def _history(state: State, index: int) -> int:
        """Where the history of this step begins: one that does not follow the last step begins a
        new one.
        """
        if state.start is None or state.done is None or index not in (state.done, state.done + 1):
            state.start = index
            state.done = None
        return state.start
