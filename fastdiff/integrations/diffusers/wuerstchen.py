"""The drop-in of Wuerstchen's DDPM on continuous timesteps (Pernias et al. 2023)."""

from __future__ import annotations

from math import nan, pi, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...prediction import Parametrization
from ...schedule import Time
from ...solvers import Linear, Trace
from . import tables
from .base import DropIn, Generators
from .registered import register_to_config
from .state import State


class DDPMWuerstchenScheduler(DropIn):
    """The drop-in of diffusers' `DDPMWuerstchenScheduler` (Ho et al. 2020, eq. 11).

    alpha_bar(t) is a squared cosine of t in [0, 1] (Nichol & Dhariwal 2021, eq. 17).

    Quirks:
    - alpha_bar is clamped to [0.0001, 0.9999], so the data are never clean and the noise never
      pure.
    - The timesteps include the last step's goal, which is no step's begin.
    - A step goes from its timestep to the one after the grid's nearest timestep.
    - Noise is added wherever the goal is not 0, and a draw is taken from the generator anyway.
    - The next state has the dtype of the network's output.

    As in diffusers, a timestep is a tensor [B] or [1]; here its elements must be equal.
    """

    _compatibles: list[str] = []
    _returns_x0 = False
    _typed_as_output = True
    _of_batch = True

    @register_to_config
    def __init__(self, scaler: float = 1.0, s: float = 0.008):
        self._setup()

    def _prepare(self) -> None:
        self.scaler = self.config.scaler
        self.s = torch.tensor([self.config.s], dtype=tables.FLOAT)
        self._init_alpha_cumprod = torch.cos(self.s / (1 + self.s) * pi * 0.5) ** 2

    def _parametrization(self) -> Parametrization:
        return Parametrization("epsilon")

    def _initial(self) -> State:
        return State(torch.linspace(1.0, 0.0, 1001, dtype=tables.FLOAT), steps=None)

    def _point_of(self, t: float) -> Time:
        """The point of a timestep in [0, 1], rounded as diffusers rounds alpha_bar."""
        time = torch.tensor([t], dtype=tables.FLOAT)
        if self.scaler > 1:
            time = 1 - (1 - time) ** self.scaler
        elif self.scaler < 1:
            time = time**self.scaler
        curve = torch.cos((time + self.s) / (1 + self.s) * pi * 0.5) ** 2
        alpha_bar = (curve / self._init_alpha_cumprod).clamp(0.0001, 0.9999)
        return tables.preserving(t, float(alpha_bar))

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        return [self._point(t) for t in state.values], None

    def set_timesteps(
        self, num_inference_steps: int | None = None, timesteps: Any = None, device: Any = None
    ) -> None:
        """Sets num_inference_steps even timesteps from 1 on, and 0; or the given n + 1 ones."""
        if timesteps is None:
            if num_inference_steps is None:
                raise ValueError(
                    "fastdiff.DDPMWuerstchenScheduler.set_timesteps: expected one of"
                    " num_inference_steps and timesteps."
                )
            timesteps = torch.linspace(
                1.0, 0.0, num_inference_steps + 1, device=device, dtype=tables.FLOAT
            )
        elif not isinstance(timesteps, Tensor):
            timesteps = torch.tensor(timesteps, dtype=tables.FLOAT).to(device)
        self._begin(State(timesteps, steps=len(timesteps) - 1))

    def _nearest(self, state: State, timestep: Any) -> int:
        """The index of the grid's timestep that a step's timestep is nearest to."""
        index = state.view_index(timestep) if isinstance(timestep, Tensor) else None
        if index is None:
            index = int(np.abs(np.asarray(state.values) - float(timestep)).argmin())
        if index + 1 >= len(state.values):
            raise ValueError(
                "fastdiff.DDPMWuerstchenScheduler.step: expected a timestep before the last one, to"
                f" which the last step goes, got {float(timestep)}. Iterate over"
                " scheduler.timesteps[:-1]."
            )
        return index

    def _index(self, state: State, timestep: Any) -> int | None:
        index = self._nearest(state, timestep)
        viewed = isinstance(timestep, Tensor) and state.view_index(timestep) is not None
        return index if viewed or state.values[index] == float(timestep) else None

    def previous_timestep(self, timestep: Tensor) -> Tensor:
        """The goals [B] of the steps from timesteps [B], which is that of the first one."""
        state = self._state
        goal = state.tables["timesteps"][self._nearest(state, timestep[0]) + 1]
        return goal[None].expand(timestep.shape[0])

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        for t, s in zip(state.times[start:], state.times[start + 1 :], strict=False):
            trace.start = _posterior(trace, t, s)
        return trace.start

    def _off_grid(
        self, trace: Trace, state: State, timestep: float, **options: Any
    ) -> Linear | None:
        goal = state.times[self._nearest(state, timestep) + 1]
        return _posterior(trace, self._point(timestep), goal)

    def _number(self, timestep: float) -> int:
        return len(self) + int(2.0**24 * timestep)

    def _always_draws(self, index: int, options: Any) -> bool:
        return True

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The state at the next timestep from the network's output; timestep [B] or [1]."""
        self._require_steps(self._state)
        sizes = {(1,), tuple(sample.shape[:1])} - {(0,)}
        if not isinstance(timestep, Tensor) or tuple(timestep.shape) not in sizes:
            got = list(timestep.shape) if isinstance(timestep, Tensor) else timestep
            raise ValueError(
                "fastdiff.DDPMWuerstchenScheduler.step: expected a tensor of"
                f" {len(sample) if sample.ndim else 1} timesteps, got {got}. Pass"
                " t.expand(len(sample))."
            )
        spread = len(timestep) > 1 and timestep.stride(0) != 0
        if spread and len(set(timestep.tolist())) > 1:
            raise ValueError(
                "fastdiff.DDPMWuerstchenScheduler.step: expected one timestep for the whole batch,"
                f" got {timestep.tolist()}. Take the steps of other timesteps apart."
            )
        return self._advance(
            model_output, timestep[0], sample, generator=generator, return_dict=return_dict
        )


def _posterior(p: Trace, t: Time, s: Time) -> Linear:
    """x_s = (x - (1 - a) eps/sigma_t)/sqrt(a) + sqrt(1 - a) (sigma_s/sigma_t) z.

    a = (alpha_t/alpha_s)².
    """
    eps = p.predict(p.start, t).out
    kept = (t.alpha / s.alpha) ** 2
    x = (p.x() - ((1.0 - kept) / t.sigma) * eps) / sqrt(kept)
    if s.t == 0:
        return x
    fresh = sqrt(1.0 - kept) if kept <= 1 else nan  # of a step towards noise
    return x + fresh * (s.sigma / t.sigma) * p.noise()
