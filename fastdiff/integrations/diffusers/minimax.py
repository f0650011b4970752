"""The drop-in of MiniMax-H3's Euler steps on a flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...prediction import Parametrization
from ...schedule import Time
from ...solvers import Linear, Trace
from . import tables
from .indexed import Indexed
from .registered import register_to_config
from .state import State


class MiniMaxH3Scheduler(Indexed):
    """The drop-in of diffusers' `MiniMaxH3Scheduler` (Lipman et al. 2023, eq. 20).

    Quirks:
    - The network returns x0 - eps, and its time is t = 1 - sigma in [0, 1].
    - num_inference_steps counts levels, the last one (0) included, so there is one step fewer;
      levels that are equal after the shift are one.
    - The output is multiplied by 1 - t, the step by sigma, whose roundings differ.
    """

    _compatibles: list[str] = []
    _space = "flow"
    _returns_x0 = False
    _widens = False
    _reads_timestep = True

    @register_to_config
    def __init__(self, shift: float = 12.0):
        self._setup()

    def _prepare(self) -> None:
        self.set_shift(self.config.shift)

    def _parametrization(self) -> Parametrization:
        return Parametrization("flow")

    def _initial(self) -> State:
        return self._grid(self._shifted(1000), None, None)

    @property
    def shift(self) -> float:
        return self._shift

    def set_shift(self, shift: float) -> None:
        """Sets the shift that the next set_timesteps uses."""
        if not shift > 0:
            raise ValueError(f"fastdiff.MiniMaxH3Scheduler: expected shift > 0, got {shift}.")
        self._shift = float(shift)

    def _shifted(self, count: int) -> Tensor:
        levels = torch.linspace(1.0, 0.0, count, dtype=tables.FLOAT)
        shift = self._shift
        return torch.unique_consecutive(shift * levels / (1 + (shift - 1) * levels))

    @staticmethod
    def _grid(levels: Tensor, device: Any, steps: int | None) -> State:
        timesteps = (1.0 - levels[:-1]).to(device)
        return State(timesteps, steps=steps, tables={"sigmas": levels.to(device)})

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        return [tables.flowing(v) for v in self._sigmas_of(state)], None

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None
    ) -> None:
        """Sets a number of levels from 2 on, or strictly decreasing levels that end at 0."""
        where = "fastdiff.MiniMaxH3Scheduler.set_timesteps"
        if sigmas is not None:
            levels = torch.as_tensor(sigmas, dtype=tables.FLOAT).flatten().cpu()
            falls = len(levels) > 1 and bool((levels[1:] < levels[:-1]).all())
            if not falls or levels[-1].item() != 0.0:
                raise ValueError(
                    f"{where}: expected two or more strictly decreasing sigmas that end at 0, got"
                    f" {levels.tolist()}."
                )
        elif num_inference_steps is None or num_inference_steps < 2:
            raise ValueError(
                f"{where}: expected sigmas, or num_inference_steps from 2 on, got"
                f" {num_inference_steps}."
            )
        else:
            levels = self._shifted(int(num_inference_steps))
        self._begin(self._grid(levels, device, len(levels) - 1))

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """t x0 + (1 - t) noise; timestep a number, [] or [B] in [0, 1], on the grid or not."""
        t = torch.as_tensor(timestep).to(sample)
        t = t.reshape(*t.shape, *(1,) * (sample.ndim - t.ndim))
        return t * sample + (1.0 - t) * noise

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        x, times = trace.start, state.times
        grid = list(zip(state.values, times, times[1:], strict=False))
        for t, here, there in grid[start:]:
            out = trace.predict(x, here).out
            x = trace.x() + (1.0 - there.sigma / here.sigma) * (1.0 - t) * out
        return x

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """The next state from the network's output at one of the timesteps; see diffusers."""
        self._refuse_integer("step", timestep)
        self._require_steps(self._state)
        return self._advance(model_output, timestep, sample, return_dict=return_dict)
