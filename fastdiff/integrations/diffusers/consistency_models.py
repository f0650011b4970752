"""The drop-in of multistep consistency sampling (Song et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from math import hypot, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...prediction import Coefficients, Parametrization
from ...schedule import Time
from ...solvers import Linear, Trace
from ...solvers.grids import karras_levels
from . import grids, tables
from .base import Generators
from .indexed import Indexed
from .registered import register_to_config
from .state import State


class Boundary(Parametrization):
    """x0 = c_skip x + c_out output, with x0 = x at the lowest level (Song et al. 2023, eq. 5).

    c_skip = sd²/((sigma - sigma_min)² + sd²), c_out = sd (sigma - sigma_min)/sqrt(sigma² + sd²).
    """

    lowest: float

    def at(self, alpha: float, sigma: float) -> Coefficients:
        above, data = sigma - self.lowest, self.sigma_data
        skip = data**2 / (above**2 + data**2)
        out = data * above / hypot(sigma, data)
        return Coefficients(1.0 / hypot(sigma, data), skip, out, (1.0 - skip) / sigma, -out / sigma)


class CMStochasticIterativeScheduler(Indexed):
    """The drop-in of diffusers' `CMStochasticIterativeScheduler` (Song et al. 2023, algorithm 1).

    Quirks:
    - The grid is chosen by index from all num_train_timesteps levels of Karras et al.
    - A draw is taken from the generator on the last of several steps too, where nothing is added.
    - Timesteps are 250 ln sigma.
    """

    _compatibles: list[str] = []
    _space = "ve"
    _returns_x0 = False

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 40,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        s_noise: float = 1.0,
        rho: float = 7.0,
        clip_denoised: bool = True,
    ):
        self._setup()

    def _prepare(self) -> None:
        self.init_noise_sigma = self.config.sigma_max

    @property
    def custom_timesteps(self) -> bool:
        return bool(self._state.extra.get("custom"))

    @custom_timesteps.setter
    def custom_timesteps(self, value: bool) -> None:
        self._state.set_extra("custom", value)

    def _levels(self, fractions: NDArray[np.float64]) -> NDArray[np.float64]:
        """The levels of Karras et al. 2022, eq. 5, at fractions from sigma_max to sigma_min."""
        c = self.config
        return karras_levels(fractions, c.sigma_max, c.sigma_min, c.rho)

    def _initial(self) -> State:
        levels = self._levels(np.linspace(0, 1, self.config.num_train_timesteps))
        return self._state_of(levels, torch.from_numpy(levels), None, steps=None)

    @staticmethod
    def _state_of(
        levels: NDArray[np.float64],
        sigmas: Tensor,
        device: Any,
        *,
        steps: int | None,
        custom: bool = False,
    ) -> State:
        """A state on these levels.

        Args:
            levels: [n] float64, from which the timesteps are computed.
            sigmas: what diffusers shows, after set_timesteps with the last level.
            steps, custom: the number of steps that was passed, and whether timesteps were passed.
        """
        timesteps = torch.from_numpy(1000 * 0.25 * np.log(levels + 1e-44))
        return State(timesteps.to(device), steps=steps, tables={"sigmas": sigmas}, custom=custom)

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        levels = self._sigmas_of(state)
        scales = [hypot(v, self.config.sigma_data) for v in levels]
        if len(levels) == self.config.num_train_timesteps:  # the last level is its own successor
            levels = [*levels, levels[-1]]
        return [tables.exploding(float(i), v) for i, v in enumerate(levels)], scales

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None
    ) -> None:
        """Sets num_inference_steps of the num_train_timesteps levels, or those of given indices.

        Given indices descend. Raises ValueError for both or neither, and for other numbers.
        """
        name, total = type(self).__name__, self.config.num_train_timesteps
        grids.exactly_one(name, num_inference_steps, timesteps)
        steps = self.num_inference_steps
        if timesteps is not None:
            indices = grids.descending(name, total, timesteps)
        else:
            assert num_inference_steps is not None
            grids.at_most(name, num_inference_steps, total)
            steps = num_inference_steps
            indices = grids.whole(name, total, steps, "leading")
        levels = self._levels(indices[::-1] / (total - 1))
        ended = grids.ended(levels, self.config.sigma_min)
        sigmas = torch.from_numpy(ended)
        self._begin(
            self._state_of(levels, sigmas, device, steps=steps, custom=timesteps is not None)
        )

    def _parametrization(self) -> Parametrization:
        boundary = Boundary("sample", True, self.config.sigma_data)
        boundary.lowest = self.config.sigma_min
        return boundary

    @classmethod
    def _limits_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"clip_range": 1.0} if config.get("clip_denoised", True) else {}

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        c, x = self.config, trace.start
        for t, s in zip(state.times[start:], state.times[start + 1 :], strict=False):
            x = trace.predict(x, t).x0
            level = min(max(s.sigma, c.sigma_min), c.sigma_max)
            # the last level is sigma_min itself, rounded to float32
            if level > c.sigma_min * (1.0 + 1e-6):
                x = x + c.s_noise * sqrt(level**2 - c.sigma_min**2) * trace.noise()
        return x

    def _always_draws(self, index: int, options: Any) -> bool:
        return len(self._state.values) > 1

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
        return self._advance(
            model_output, timestep, sample, generator=generator, return_dict=return_dict
        )
