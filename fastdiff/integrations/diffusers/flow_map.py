"""The drop-in of Euler steps with flow maps (Boffi et al. 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...prediction import Parametrization
from ...schedule import Time
from ...solvers import Linear, Trace
from . import tables
from .indexed import Indexed
from .quirks import flow as formulas
from .registered import register_to_config
from .state import State

_NEAR = 1e-3  # how far a timestep may be from one of the grid


class FlowMapEulerDiscreteScheduler(Indexed):
    """The drop-in of diffusers' `FlowMapEulerDiscreteScheduler`, from any timestep to any other.

    Quirks:
    - Levels and timesteps are float64. Given ones are shifted, and the last step goes to 0.
    - The timestep decides which step is taken: the grid's nearest, if it is within 1e-3 of one; the
      counter counts the calls. Another timestep's level is itself / T.
    - The next state has the dtype of the network's output.
    """

    _compatibles: list[str] = []
    _space = "flow"
    _returns_x0 = False
    _typed_as_output = True

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0):
        self._setup()

    def _parametrization(self) -> Parametrization:
        return Parametrization("flow")

    def _initial(self) -> State:
        return self._grid(self.config.num_train_timesteps, None)

    def _grid(self, steps: int, device: Any, sigmas: Any = None, timesteps: Any = None) -> State:
        """The state of a number of steps, or of given levels or timesteps that are shifted."""
        wide, total = torch.float64, self.config.num_train_timesteps
        if sigmas is not None:
            levels = torch.tensor(sigmas, dtype=wide)
        elif timesteps is not None:
            levels = torch.tensor(timesteps, dtype=wide) / total
        else:
            levels = torch.linspace(1.0, 0.0, steps + 1, dtype=wide)[:-1]
        levels = self.apply_shift(levels)
        stored = wide if torch.device(device or "cpu").type not in ("mps", "npu") else torch.float32
        levels = torch.cat([levels, levels.new_zeros(1)]).to(device=device, dtype=stored)
        return State(levels[:-1] * total, steps=steps, tables={"sigmas": levels})

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        return [tables.flowing(v) for v in self._sigmas_of(state)], None

    def apply_shift(self, sigmas: Tensor) -> Tensor:
        """shift sigma / (1 + (shift - 1) sigma) (Esser et al. 2024, eq. 23)."""
        shift = self.config.shift
        return sigmas if shift == 1.0 else shift * sigmas / (1 + (shift - 1) * sigmas)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        timesteps: Any = None,
    ) -> None:
        """Sets a number of steps, or levels in (0, 1] or timesteps, to be shifted."""
        lengths = {len(v) for v in (sigmas, timesteps) if v is not None}
        if num_inference_steps is not None:
            lengths.add(num_inference_steps)
        if len(lengths) != 1:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.set_timesteps: expected num_inference_steps,"
                f" sigmas or timesteps of one length, got {sorted(lengths)}."
            )
        self._begin(self._grid(lengths.pop(), device, sigmas, timesteps))

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor | None = None) -> Tensor:
        """(1 - sigma) x0 + sigma noise with sigma = timestep/T; timestep [] or [B]."""
        if noise is None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.scale_noise: expected noise, got None. Pass"
                " noise=."
            )
        sigma = timestep.to(sample) / self.config.num_train_timesteps
        sigma = sigma.view(*sigma.shape, *(1,) * (noise.ndim - sigma.ndim))
        return sigma * noise + (1.0 - sigma) * sample

    def index_for_timestep(  # type: ignore[override]
        self, timestep: Any, schedule_timesteps: Tensor | None = None
    ) -> int | None:
        """The index of the nearest timestep; None where it is further than 1e-3."""
        host = self._state.values if schedule_timesteps is None else schedule_timesteps.tolist()
        value = timestep.flatten()[0].item() if isinstance(timestep, Tensor) else timestep
        away = np.abs(np.asarray(host, dtype=np.float32) - np.float32(value))
        nearest = int(away.argmin())
        return None if away[nearest] > _NEAR else nearest

    def _index(self, state: State, timestep: Any) -> int | None:
        index = state.view_index(timestep) if isinstance(timestep, Tensor) else None
        return self.index_for_timestep(timestep) if index is None else index

    def _level(self, state: State, timestep: Any) -> float:
        """The level of a timestep, on the grid or off it."""
        index = self._index(state, timestep)
        if index is None:
            return float(timestep) / self.config.num_train_timesteps
        return state.times[index].sigma

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        return formulas.euler(trace, state.times[start:])

    def _off_grid(
        self, trace: Trace, state: State, timestep: float, **options: Any
    ) -> Linear | None:
        if options.get("to") is None:
            return None
        pair = options["level"], options["to"]
        return formulas.euler(trace, [tables.flowing(v) for v in pair])

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        r_timestep: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """The state at r_timestep, or at the next timestep of the grid; see diffusers."""
        state = self._state
        index, count = self._index(state, timestep), state.step_index
        if count is None:
            count = state.begin_index if state.begin_index is not None else index or 0
        if r_timestep is None:
            result = self._advance(model_output, timestep, sample, return_dict=return_dict)
            state.step_index = count + 1
            return result
        levels = {"level": self._level(state, timestep), "to": self._level(state, r_timestep)}
        traced = self._traced_off_grid(state, float(timestep), levels)
        x, _, _ = traced.execute(
            0,
            self._widened(sample, model_output),
            model_output,
            noise=None,
            seed=None,
            slots=None,
            slots_out=None,
            with_x0=False,
        )
        state.step_index = count + 1
        x = x.to(model_output.dtype)
        return self._output(x) if return_dict else (x,)
