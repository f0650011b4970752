"""Variance-preserving drop-ins: x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps.

Their timesteps are whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops import reverse_step
from ...schedule import Time
from ...solvers import Linear, Trace
from . import tables
from .base import DropIn
from .state import State, Table


class TrainingTables(DropIn):
    """A scheduler with diffusers' betas, alphas and alphas_cumprod, each [T] on the CPU."""

    betas: Any = Table()
    alphas: Any = Table()
    alphas_cumprod: Any = Table()

    def _prepare(self) -> None:
        self.betas = tables.betas(self.config, type(self).__name__)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)

    def _point_of(self, t: float) -> Time:
        if not 0 <= int(t) < len(self.alphas_cumprod):
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected timesteps in"
                f" [0, {len(self.alphas_cumprod)}), got {int(t)}. Take fewer steps, or"
                " steps_offset=0."
            )
        alpha_bar = float(self.alphas_cumprod[int(t)])
        if not 0 <= alpha_bar <= 1:
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected alphas_cumprod in [0, 1], got"
                f" {alpha_bar} at timestep {int(t)}."
            )
        return tables.preserving(t, alpha_bar)

    def _mixing(self, sample: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Both coefficients, broadcast to the sample.

        alpha_bar is rounded to the sample's dtype first, as diffusers does.
        """
        table = self.alphas_cumprod.to(device=sample.device, dtype=sample.dtype)
        try:
            chosen = table[timesteps.to(sample.device)].flatten()
        except IndexError:
            chosen = None
        if chosen is None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected integer timesteps in [0, {len(table)}),"
                f" got {timesteps}. Pass elements of scheduler.timesteps."
            )
        chosen = chosen.reshape(-1, *(1,) * (sample.ndim - 1))
        return chosen**0.5, (1 - chosen) ** 0.5


class VariancePreserving(TrainingTables):
    """A scheduler whose timesteps are indices of the training tables."""

    _reads: tuple[str, ...] = ("alphas_cumprod",)

    def _initial(self) -> State:
        return self._state_of(np.arange(0, self.config.num_train_timesteps)[::-1], None, steps=None)

    def _state_of(self, timesteps: Any, device: Any, *, steps: int | None, **extra: Any) -> State:
        """A state at these timesteps [n]. extra: see `State`."""
        values = torch.tensor(np.array(timesteps, dtype=np.int64), device=device)
        return State(values, steps=steps, **extra)

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        return [*(self._point(int(t)) for t in state.values), self._final()], None

    def _final(self) -> Time:
        """The point that the last step goes to."""
        return tables.CLEAN

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) noise (Ho et al. 2020, eq. 4).

        timesteps: [B] or [1], int64.
        """
        alpha, sigma = self._mixing(original_samples, timesteps)
        return alpha * original_samples + sigma * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) x0 (Salimans & Ho 2022)."""
        alpha, sigma = self._mixing(sample, timesteps)
        return alpha * noise - sigma * sample

    @staticmethod
    def _alone(trace: Trace, step: Callable[..., Any], *arguments: Any, **keywords: Any) -> Linear:
        """A step's formula; NaN, so that this step alone is refused, where it divides by zero."""
        try:
            result = step(*arguments, **keywords)
        except (ArithmeticError, ValueError) as error:
            if str(error).startswith("fastdiff"):
                raise
            return math.nan * trace.x()
        assert result is not None
        return result

    def _step_each(
        self,
        formula: Callable[[Trace, int], Linear],
        model_output: Tensor,
        timesteps: Tensor,
        sample: Tensor,
        options: Mapping[str, Any],
    ) -> Tensor:
        """One step of every sample from its own timestep.

        The plan has one row for every training timestep.
        """
        state = self._state
        key = ("each", *options.values())
        traced = state.plans.get(key)
        if traced is None:
            trace = self._trace()
            for t in range(self.config.num_train_timesteps):
                trace.start = formula(trace, t)
            timesteps_of_rows = [float(t) for t in range(self.config.num_train_timesteps)]
            traced = self._traced_plan(trace, state, trace.start, timesteps_of_rows, options)
            state.plans.put(key, traced)
        row = timesteps.to(device=sample.device, dtype=torch.int64)
        result = reverse_step(
            sample, model_output, traced.table(sample.device), row, used=traced.plan.used
        )
        assert isinstance(result, Tensor)
        return result
