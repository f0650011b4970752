"""The drop-in of LTX-Video's ancestral Euler steps on a flow."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from ...prediction import Parametrization
from ...schedule import Time
from ...solvers import Linear, Trace
from . import tables
from .base import Generators
from .flow_match import FlowMatchEulerDiscreteScheduler
from .indexed import Indexed
from .registered import register_to_config
from .state import State

_CLEAN = 1e-8  # a level below it counts as clean data
_TINY = 1e-12


class LTXEulerAncestralRFScheduler(Indexed):
    """The drop-in of diffusers' `LTXEulerAncestralRFScheduler`, Euler with fresh noise on a flow.

    A step of dx/dsigma goes to sigma_down = sigma_s (1 + (sigma_s/sigma_t - 1) eta), below sigma_s,
    and noise takes the state back to sigma_s.

    Quirks:
    - Without sigmas the grid is that of `FlowMatchEulerDiscreteScheduler` with the same
      configuration.
    - Given sigmas, also those that are passed as timesteps, are all visited, the last one included;
      the step at the last one changes nothing and draws nothing.
    - Everything is computed in float32 or more and returned in the sample's dtype.
    - The signal is divided by 1 - sigma_down + 1e-12.
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler"]
    _space = "flow"
    _returns_x0 = False
    _widens = False

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, eta: float = 1.0, s_noise: float = 1.0):
        self._setup()

    def _parametrization(self) -> Parametrization:
        return Parametrization("flow")

    def _initial(self) -> State:
        total = self.config.num_train_timesteps
        levels = torch.arange(total, 0, -1, dtype=tables.FLOAT) / total
        sigmas = torch.cat([levels, levels.new_zeros(1)])
        return State(levels * total, steps=None, tables={"sigmas": sigmas})

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        return [tables.flowing(v) for v in self._sigmas_of(state)], None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        timesteps: Any = None,
        mu: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Sets a number of steps, or levels in [0, 1] that end at 0, as sigmas or as timesteps.

        mu: the logarithm of the shift with use_dynamic_shifting.
        """
        given = timesteps if sigmas is None else sigmas
        if given is None:
            config = {k: v for k, v in self.config.items() if k not in ("eta", "s_noise")}
            flow = FlowMatchEulerDiscreteScheduler.from_config(config)
            flow.set_timesteps(num_inference_steps, device, mu=mu)
            levels, visited, steps = flow.sigmas, flow.timesteps, flow.num_inference_steps
        else:
            if not isinstance(given, (list, Tensor)):
                raise TypeError(
                    "fastdiff.LTXEulerAncestralRFScheduler.set_timesteps: expected sigmas as a list"
                    f" or a tensor, got {type(given).__name__}."
                )
            levels = torch.as_tensor(given).to(device=device, dtype=tables.FLOAT)
            if levels.ndim != 1 or len(levels) < 1:
                raise ValueError(
                    "fastdiff.LTXEulerAncestralRFScheduler.set_timesteps: expected sigmas of shape"
                    f" [n], got {list(levels.shape)}."
                )
            visited = levels * float(self.config.num_train_timesteps)
            steps = len(levels) - 1
        self._begin(State(visited, steps=steps, tables={"sigmas": levels}))

    def _draws(self, s: Time) -> bool:
        return self.config.eta > 0 and self.config.s_noise > 0 and abs(s.sigma) >= _CLEAN

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        times, x = state.times, trace.start
        for i in range(start, len(state.values)):
            u = trace.predict(x, times[min(i, len(times) - 1)]).out
            x = trace.x()
            if i + 1 < len(times):
                x = self._step_formula(trace, x, u, times[i], times[i + 1])
        return x

    def _step_formula(self, trace: Trace, x: Linear, u: Linear, t: Time, s: Time) -> Linear:
        if abs(s.sigma) < _CLEAN:
            return x - t.sigma * u
        eta, strength = float(self.config.eta), float(self.config.s_noise)
        down = s.sigma * (1.0 + (s.sigma / t.sigma - 1.0) * eta)
        x = x - (t.sigma - down) * u
        if not self._draws(s):
            return x
        left = 1.0 - down
        variance = s.sigma**2 - (down * s.alpha) ** 2 / (left**2 + _TINY)
        x = (s.alpha / (left + _TINY)) * x
        return x + sqrt(max(variance, 0.0)) * strength * trace.noise()

    def _always_draws(self, index: int, options: Any) -> bool:
        times = self._state.times
        return index + 1 < len(times) and self._draws(times[index + 1])

    def _drawn_dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        return tables.FLOAT

    def _counted(self, state: State, index: int) -> int:
        return min(index + 1, len(state.times) - 1)  # it stays at the last level

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state from the network's output at one of the timesteps; see diffusers."""
        self._refuse_integer("step", timestep)
        state = self._state
        self._require_steps(state)
        return self._advance(
            model_output, timestep, sample, generator=generator, return_dict=return_dict
        )
