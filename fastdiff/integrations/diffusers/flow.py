"""What the drop-ins for flow matching share: x = (1 - sigma) x0 + sigma eps.

The network returns dx/dsigma = eps - x0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...ops import randn
from ...prediction import Parametrization
from ...schedule import Time
from . import grids, tables
from .indexed import Indexed
from .state import State


class Flow(Indexed):
    """A flow-matching scheduler with levels in [0, 1] and a shift (Esser et al. 2024, eq. 23).

    Attributes:
        sigmas: the grid's levels, after set_timesteps with the one that the last step goes to.
        sigma_min, sigma_max: the ends of the shifted training levels.
        shift: of the levels, sigma -> shift sigma / (1 + (shift - 1) sigma).
    """

    _compatibles: list[str] = []
    _space = "flow"
    _returns_x0 = False
    _typed_as_output = True
    sigma_min: float
    sigma_max: float

    def _prepare(self) -> None:
        self._shift = self.config.shift
        total = self.config.num_train_timesteps
        levels = (
            torch.from_numpy(np.linspace(1, total, total, dtype=tables.numpy_float())[::-1].copy())
            / total
        )
        if not self.config.get("use_dynamic_shifting"):
            levels = self._shift * levels / (1 + (self._shift - 1) * levels)
        self._trained = levels
        self.sigma_min, self.sigma_max = levels[-1].item(), levels[0].item()

    def _parametrization(self) -> Parametrization:
        return Parametrization("flow")

    def _initial(self) -> State:
        trained = self._trained
        return self._state_of(
            trained * self.config.num_train_timesteps,
            trained,
        )

    @staticmethod
    def _state_of(timesteps: Tensor, sigmas: Tensor, steps: int | None = None) -> State:
        """A state at these timesteps [n] and levels, after set_timesteps with the last one."""
        return State(timesteps, steps=steps, tables={"sigmas": sigmas})

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        times = [tables.flowing(v) for v in self._sigmas_of(state)]
        if state.num_inference_steps is None:  # the levels of training have no last one
            times.append(tables.CLEAN)
        return times, None

    @property
    def shift(self) -> float:
        return self._shift

    def set_shift(self, shift: float) -> None:
        """Sets the shift that the next set_timesteps uses."""
        self._shift = shift

    def _even(self, steps: int) -> NDArray[Any]:
        """`steps` levels between the (shifted) ends of training, not shifted themselves."""
        total = self.config.num_train_timesteps
        return np.linspace(self.sigma_max * total, self.sigma_min * total, steps) / total

    def _shifted(self, levels: NDArray[Any]) -> NDArray[Any]:
        return self.shift * levels / (1 + (self.shift - 1) * levels)

    def _mixture(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 - sigma, sigma

    def _drawn_dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        return tables.FLOAT  # diffusers computes the step in float32, whatever the sample is

    def _drawn(self, like: Tensor, index: int) -> Tensor:
        """fastdiff's noise of a step."""
        return randn(
            tuple(like.shape),
            seed=self._seed(self._state),
            step=index,
            stream=1,
            dtype=like.dtype,
            device=like.device,
        )

    def _typed(self, result: Any, model_output: Tensor, return_dict: bool) -> Any:
        """The step's result in the dtype of the network's output, which may not be the state's."""
        values = tuple(v.to(model_output.dtype) for v in result)
        return self._output(*values) if return_dict else values


class Shifting(Flow):
    """A flow-matching scheduler with levels shifted by resolution, stretched or respaced."""

    def _prepare(self) -> None:
        grids.one_kind(type(self).__name__, self.config)
        if self.config.time_shift_type not in ("exponential", "linear"):
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected time_shift_type in ['exponential',"
                f" 'linear'], got {self.config.time_shift_type!r}."
            )
        super()._prepare()

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor | None = None) -> Tensor:
        """(1 - sigma) x0 + sigma noise; timestep [B].

        In a run sigma is the level of its first step, and later of its next step.
        """
        if noise is None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.scale_noise: expected noise, got None. Pass"
                " noise=."
            )
        return self.add_noise(sample, noise, timestep)

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """w / (w + (1/t - 1)^sigma), with w = e^mu or mu as time_shift_type says.

        (Esser et al. 2024, eq. 23, where w is the shift.)
        """
        weight = math.exp(mu) if self.config.time_shift_type == "exponential" else mu
        return weight / (weight + (1 / t - 1) ** sigma)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """Levels scaled about 1 so that the last one is the configuration's shift_terminal."""
        rest = 1 - t
        return 1 - rest / (rest[-1] / (1 - self.config.shift_terminal))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Sets a number of steps, or levels in (0, 1] to shift, or timesteps, or both of these.

        mu: the logarithm of the shift (the shift itself with time_shift_type='linear'), required
        with use_dynamic_shifting.
        """
        name, c = type(self).__name__, self.config
        if c.use_dynamic_shifting and mu is None:
            raise ValueError(
                f"fastdiff.{name}.set_timesteps: expected mu with use_dynamic_shifting=True, got"
                " None."
            )
        lengths = {len(v) for v in (sigmas, timesteps) if v is not None}
        if num_inference_steps is not None:
            lengths.add(num_inference_steps)
        if len(lengths) != 1:
            raise ValueError(
                f"fastdiff.{name}.set_timesteps: expected num_inference_steps, sigmas or timesteps"
                f" of one length, got {sorted(lengths)}."
            )
        steps, dtype = lengths.pop(), tables.numpy_float()
        passed = None if timesteps is None else np.array(timesteps).astype(dtype)
        if sigmas is not None:
            levels = np.array(sigmas).astype(dtype)
        else:
            levels = self._even(steps) if passed is None else passed / c.num_train_timesteps
        levels = (
            self._shifted(levels)
            if mu is None or not c.use_dynamic_shifting
            else self.time_shift(mu, 1.0, levels)
        )
        if c.shift_terminal:
            levels = self.stretch_shift_to_terminal(levels)
        for kind in grids.kinds(c):
            levels = grids.respaced(kind, {}, levels, steps)
        grid = torch.from_numpy(levels).to(tables.FLOAT)
        if c.invert_sigmas:
            grid = 1.0 - grid
        visited = (
            torch.from_numpy(passed)
            if passed is not None and not c.invert_sigmas
            else grid * c.num_train_timesteps
        )
        grid = torch.cat([grid, grid.new_full((1,), 1.0 if c.invert_sigmas else 0.0)])
        self._begin(self._state_of(visited.to(device), grid.to(device), steps))
