"""The drop-in of SANA-Sprint's consistency sampling (Lu & Song 2025, Chen et al. 2025)."""

from __future__ import annotations

from math import cos, inf, log, sin
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...prediction import Parametrization
from ...schedule import CLEAN, Time
from ...solvers import Linear, Trace
from . import checks, grids
from .base import Generators
from .indexed import Counted
from .registered import register_to_config
from .state import State


class SCMScheduler(Counted):
    """The drop-in of diffusers' `SCMScheduler`, multistep consistency sampling on the circle.

    x_t = cos(t) x0 + sin(t) z with z of deviation sigma_data, and the network returns dx/dt
    (Lu & Song 2025, section 3).

    Quirks:
    - The timesteps include the last step's goal, which is no step's begin.
    - A draw in float32 is taken from the generator at every step, the last one included, so the
      next state is float32 at least.
    - A timestep for each sample is allowed where the run's index is known (SANA-Sprint's pipelines
      call set_begin_index); it is then not read.
    - intermediate_timesteps has to be None for other numbers of steps than 2.
    """

    _compatibles: list[str] = []
    _of_batch = True

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        prediction_type: str = "trigflow",
        sigma_data: float = 0.5,
    ):
        self._setup()

    def _parametrization(self) -> Parametrization:
        if self.config.prediction_type != "trigflow":
            raise ValueError(
                "fastdiff.SCMScheduler.step: expected prediction_type 'trigflow', got"
                f" {self.config.prediction_type!r}."
            )
        return Parametrization("v")

    def _initial(self) -> State:
        timesteps = np.arange(0, self.config.num_train_timesteps)[::-1].copy()
        return State(torch.from_numpy(timesteps), steps=None)

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        return [_on_circle(float(t)) for t in state.values], None

    def set_timesteps(
        self,
        num_inference_steps: int,
        timesteps: Any = None,
        device: Any = None,
        max_timesteps: float | None = 1.57080,
        intermediate_timesteps: float | None = 1.3,
    ) -> None:
        """Sets num_inference_steps angles from max_timesteps on, and 0; or the given n + 1 ones."""
        name = f"{type(self).__name__}.set_timesteps"
        grids.at_most(type(self).__name__, num_inference_steps, self.config.num_train_timesteps)
        if (timesteps is None) == (max_timesteps is None):
            raise ValueError(f"fastdiff.{name}: expected one of timesteps and max_timesteps.")
        if intermediate_timesteps is not None and num_inference_steps != 2:
            raise ValueError(
                f"fastdiff.{name}: expected intermediate_timesteps=None for other numbers of steps"
                f" than 2, got {intermediate_timesteps} for {num_inference_steps}."
            )
        if timesteps is not None:
            if not isinstance(timesteps, (list, Tensor)) or (
                len(timesteps) != num_inference_steps + 1
            ):
                raise ValueError(
                    f"fastdiff.{name}: expected a list or tensor of {num_inference_steps + 1}"
                    " timesteps, one more than steps."
                )
            angles = torch.as_tensor(timesteps)
        elif intermediate_timesteps is not None:
            angles = torch.tensor([max_timesteps, intermediate_timesteps, 0.0])
        else:
            angles = torch.linspace(float(max_timesteps or 0), 0, num_inference_steps + 1)
        angles = angles.to(device=device, dtype=torch.float32)
        self._begin(State(angles, steps=num_inference_steps))

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        x, times = trace.start, state.times
        for t, s in zip(times[start:], times[start + 1 :], strict=False):
            x = s.alpha * trace.predict(x, t).x0
            if s.sigma:
                x = x + s.sigma * self.config.sigma_data * trace.noise()
        return x

    def _always_draws(self, index: int, options: Any) -> bool:
        return True

    def _drawn_dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        return torch.get_default_dtype()

    def _refuse_levels(self, method: str, state: State, index: int) -> None:
        steps = len(state.values) - 1
        raise ValueError(
            f"fastdiff.{type(self).__name__}.{method}: expected a timestep before the last one, to"
            f" which the last of {steps} steps goes, got that of index {index}. Iterate over"
            " scheduler.timesteps[:-1]."
        )

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The state at the next timestep from the network's output; see diffusers."""
        state = self._state
        self._require_steps(state)
        known = state.step_index is not None or state.begin_index is not None
        if known and isinstance(timestep, Tensor) and timestep.ndim and timestep.numel():
            timestep = timestep.flatten()[0]
        checks.one_timestep(f"{type(self).__name__}.step", timestep)
        seen = torch.promote_types(sample.dtype, model_output.dtype)
        wide = torch.promote_types(seen, torch.get_default_dtype())
        sample = sample.to(wide)
        if seen is wide:
            return self._advance(
                model_output, timestep, sample, generator=generator, return_dict=return_dict
            )
        x, x0 = self._advance(
            model_output, timestep, sample, generator=generator, return_dict=False
        )
        x0 = x0.to(seen)
        return self._output(x, x0) if return_dict else (x, x0)


def _on_circle(t: float) -> Time:
    """The point of an angle."""
    if t == 0:
        return CLEAN
    alpha, sigma = cos(t), sin(t)
    ratio = abs(alpha / sigma) if sigma else inf
    return Time(t, alpha, sigma, 2.0 * log(ratio) if 0 < ratio < inf else ratio or -inf)
