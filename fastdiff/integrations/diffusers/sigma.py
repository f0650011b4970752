"""Drop-ins with states x0 + sigma eps, whose networks get x / sqrt(sigma² + 1).

These are k-diffusion's conventions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...prediction import Parametrization
from ...schedule import Time
from . import grids, tables
from .indexed import Indexed
from .state import State
from .vp import TrainingTables


class Exploding(Indexed, TrainingTables):
    """A scheduler on the training levels sqrt(1/alpha_bar_t - 1), interpolated in between."""

    _space = "ve"

    def _prepare(self) -> None:
        grids.one_kind(type(self).__name__, self.config)
        super()._prepare()
        if self.config.get("rescale_betas_zero_snr"):
            self.alphas_cumprod[-1] = 2**-24  # the first level would be infinite

    def _parametrization(self) -> Parametrization:
        kind = self.config.prediction_type
        return Parametrization("sample" if kind == "original_sample" else kind, unit_input=True)

    def _point_of(self, t: float) -> Time:
        return tables.exploding(t, float(tables.sigmas(self.alphas_cumprod)[int(t)]))

    # -- grids

    def _levels(
        self,
        steps: int,
        timesteps: Any = None,
        total: int | None = None,
        *,
        whole_karras: bool = False,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """(timesteps, levels) [steps], without the level that the last step goes to.

        The first part of `set_timesteps`; `_state_of` is the second. Without `timesteps` they are
        spaced as configured over `total` training timesteps, all by default.

        whole_karras: whether the timesteps of Karras' spacing are rounded.
        """
        c, name = self.config, type(self).__name__
        if timesteps is not None:
            if grids.kinds(c):
                raise ValueError(
                    f"fastdiff.{name}.set_timesteps: expected no timesteps with"
                    f" use_{grids.kinds(c)[0]}_sigmas."
                )
            visited = np.array(timesteps).astype(tables.numpy_float())
        else:
            offset = c.steps_offset if c.timestep_spacing == "leading" else 0
            spaced = grids.spaced(
                name, total or c.num_train_timesteps, steps, c.timestep_spacing, offset
            )
            visited = spaced.astype(tables.numpy_float())
        trained = tables.sigmas(self.alphas_cumprod)
        levels = np.interp(visited, np.arange(len(trained)), trained)
        return self._respaced(visited, levels, np.log(trained), steps, whole_karras)

    def _respaced(
        self,
        visited: NDArray[Any],
        levels: NDArray[Any],
        log_sigmas: NDArray[Any],
        steps: int,
        whole_karras: bool,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """(timesteps, levels) where the configuration spaces sigma; otherwise those passed."""
        for kind in grids.kinds(self.config):
            levels = grids.respaced(kind, self.config, levels, steps)
            visited = grids.timestep_of(levels, log_sigmas)
            if kind == "karras" and whole_karras:
                visited = visited.round()
        return visited, levels

    def _state_of(
        self,
        timesteps: NDArray[Any] | Tensor,
        levels: NDArray[Any],
        device: Any,
        *,
        steps: int | None,
        **shown: Tensor,
    ) -> State:
        """A state at these timesteps [n] and levels [n + 1], the last level included.

        shown: further tables that diffusers shows.
        """
        values = timesteps if isinstance(timesteps, Tensor) else torch.from_numpy(timesteps)
        sigmas = torch.from_numpy(levels)
        return State(values.to(device), steps=steps, tables={"sigmas": sigmas, **shown})

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        levels = self._sigmas_of(state)
        times = [tables.exploding(float(i), v) for i, v in enumerate(levels)]
        return times, [math.hypot(v, 1.0) for v in levels]

    # -- diffusers' surface

    @property
    def init_noise_sigma(self) -> Tensor:
        """The standard deviation of the first state.

        With timestep_spacing="leading" it is sqrt(sigma² + 1) of the first level.
        """
        largest = self.sigmas.max()
        return (
            largest
            if self.config.timestep_spacing in ("linspace", "trailing")
            else (largest**2 + 1) ** 0.5
        )
