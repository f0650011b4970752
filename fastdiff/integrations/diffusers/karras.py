"""Drop-ins of LMS, Heun and the midpoint rule in ln sigma (Karras et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...schedule import Time
from ...solvers import Linear, Trace
from . import grids, history, tables
from .base import Generators
from .quirks.karras import heun, lms, midpoint
from .registered import register_to_config
from .sigma import Exploding
from .state import RunTable, State


class LMSDiscreteScheduler(Exploding):
    """The drop-in of diffusers' `LMSDiscreteScheduler`, linear multistep of order 1 to 4.

    Quirks:
    - A run that begins inside the grid uses weights of the full order for the derivatives it has.
    - init_noise_sigma is sqrt(sigma_max² + 1) with timestep_spacing="leading".

    The integrals are exact; diffusers computes them by quadrature. A run has one order.
    """

    _has_history = True
    _settled = ("order",)
    _history: history.Defaults = {"derivatives": lambda _: []}

    def _recall(self, state: State, driven: dict[str, Any]) -> bool:
        return history.recall_list(state, driven, "derivatives", 4)

    def _held(self, options: Mapping[str, Any]) -> int:
        return options.get("order", 4) - 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):
        self._setup()

    def _initial(self) -> State:
        return self._grid(self.config.num_train_timesteps, None)

    def _grid(self, steps: int, device: Any) -> State:
        visited, levels = self._levels(steps)
        timesteps = visited.astype(tables.numpy_float())
        return self._state_of(timesteps, grids.ended(levels, 0.0), device, steps=steps)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Sets num_inference_steps timesteps, spaced as configured."""
        self._begin(self._grid(num_inference_steps, device))

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        return lms(trace, state.times, start, order=options.get("order", 4))

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> Any:
        """The next state from the network's output at a timestep; see diffusers.

        order: in 1 … 4.
        """
        if order not in (1, 2, 3, 4):
            raise ValueError(
                f"fastdiff.{type(self).__name__}.step: expected order in [1, 2, 3, 4], got"
                f" {order!r}."
            )
        return self._advance(
            model_output, timestep, sample, options={"order": order}, return_dict=return_dict
        )


class SecondOrder(Exploding):
    """A scheduler of two network calls per step, except for the last step.

    Interior timesteps are listed twice, or each together with the midpoint before it.
    """

    order = 2
    _has_history = True

    def _initial(self) -> State:
        return self._grid(self.config.num_train_timesteps, None)

    def _grid(
        self, steps: int, device: Any, total: int | None = None, timesteps: Any = None
    ) -> State:
        """A state of a number of steps, spaced over `total` timesteps, or at given timesteps."""
        raise NotImplementedError

    @staticmethod
    def _begins(state: State, index: int) -> bool:
        """Whether the call at an index is the first one of a step of this run."""
        first, last = state.history_start, state.last_index
        if first is None or last is None or index not in (last, last + 1):
            return True
        return (index - first) % 2 == 0

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first one of a step."""
        state = self._state
        if state.driven is not None:
            return self._peer.state_in_first_order.fget(self)
        return state.last_index is None or self._begins(state, state.last_index + 1)

    def _recall(self, state: State, driven: dict[str, Any]) -> bool:
        return self.state_in_first_order  # between whole steps nothing is remembered

    def _sums(self, state: State) -> bool:
        return not self.state_in_first_order

    def _steps(self, state: State, start: int) -> list[tuple[Time, Time]]:
        """(begin, end) of the steps from index `start` of `timesteps` on, each of two indices."""
        begins = state.times[start : len(state.values) : 2]
        return list(zip(begins, state.times[start + 1 :: 2], strict=False))


class HeunDiscreteScheduler(SecondOrder):
    """The drop-in of diffusers' `HeunDiscreteScheduler` (Karras et al. 2022, algorithm 1).

    Quirks:
    - beta_start and beta_end have other defaults than in most classes.
    - n steps have 2n - 1 timesteps.
    - The second call of a step continues from the state that the first one was given, whatever
      state is given to it.
    - clip_sample clips the prediction of both stages.
    - init_noise_sigma is sqrt(sigma_max² + 1) with timestep_spacing="leading".
    """

    _history = {name: lambda _: None for name in ("prev_derivative", "dt", "sample")}

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):
        self._setup()

    def _grid(
        self, steps: int, device: Any, total: int | None = None, timesteps: Any = None
    ) -> State:
        visited, levels = self._levels(steps, timesteps, total)
        levels = grids.ended(levels, 0.0)
        shown = np.concatenate([levels[:1], levels[1:-1].repeat(2), levels[-1:]])
        twice = np.concatenate([visited[:1], visited[1:].repeat(2)]).astype(tables.numpy_float())
        return self._state_of(twice, shown, device, steps=steps)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        num_train_timesteps: int | None = None,
        timesteps: Any = None,
    ) -> None:
        """Sets a number of steps, spaced over num_train_timesteps, or timesteps to visit."""
        grids.exactly_one(type(self).__name__, num_inference_steps, timesteps)
        steps = len(timesteps) if num_inference_steps is None else num_inference_steps
        self._begin(self._grid(steps, device, num_train_timesteps, timesteps))

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        for step in self._steps(state, start):
            trace.start = heun(trace, step)
        return trace.start

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """The next state or stage from the network's output at a timestep; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict=return_dict)


class _Midpoint(SecondOrder):
    """What both KDPM2 classes share: levels, and timesteps of the points between them.

    Attributes:
        sigmas_interpol: the levels of the second calls, in diffusers' order.
    """

    sigmas_interpol: Any = RunTable()
    _middle = 0  # the index of a step's level in sigmas_interpol, from that of its first call

    def _between(self, levels: Tensor) -> dict[str, Tensor]:
        """Tables [n + 1] of the levels [n + 1], of which `sigmas_interpol` is one."""
        raise NotImplementedError

    def _stage_scale(self, state: State, index: int) -> float | None:
        if self._begins(state, index):
            return None
        return math.hypot(float(state.tables["sigmas_interpol"][index - 1 + self._middle]), 1.0)

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        shown = {name: table.tolist() for name, table in state.tables.items()}
        for i, (t, s) in enumerate(self._steps(state, start)):
            middle = shown["sigmas_interpol"][start + 2 * i + self._middle]
            down, up = s.sigma, 0.0
            if "sigmas_up" in shown:
                down, up = (shown[name][start + 2 * i] for name in ("sigmas_down", "sigmas_up"))
            trace.start = midpoint(trace, t, middle, down, up)
        return trace.start

    def _grid(
        self, steps: int, device: Any, total: int | None = None, timesteps: Any = None
    ) -> State:
        visited, levels = self._levels(steps, None, total, whole_karras=True)
        levels = grids.ended(levels, 0.0)
        levels_between = self._between(torch.from_numpy(levels))
        middle = levels_between["sigmas_interpol"][self._middle : steps - 1 + self._middle].numpy()
        log_sigmas: NDArray[Any] = np.log(tables.sigmas(self.alphas_cumprod))
        between = grids.timestep_of(middle, log_sigmas, narrow=True).astype(visited.dtype)
        interleaved = np.stack([between, visited[1:]], axis=1).flatten()
        return self._state_of(
            np.concatenate([visited[:1], interleaved]),
            np.concatenate([levels[:1], levels[1:].repeat(2), levels[-1:]]),
            device,
            steps=steps,
            **{
                name: torch.cat([v[:1], v[1:].repeat_interleave(2), v[-1:]])
                for name, v in levels_between.items()
            },
        )

    def set_timesteps(
        self, num_inference_steps: int, device: Any = None, num_train_timesteps: int | None = None
    ) -> None:
        """Sets num_inference_steps steps, spaced as configured over num_train_timesteps."""
        self._begin(self._grid(num_inference_steps, device, num_train_timesteps))


class KDPM2DiscreteScheduler(_Midpoint):
    """The drop-in of diffusers' `KDPM2DiscreteScheduler`, DPM-2 of Karras et al. 2022.

    It is the midpoint rule in ln sigma.

    Quirks:
    - beta_start and beta_end have other defaults than in most classes.
    - With Karras' levels the timesteps are rounded, except for those of the midpoints.
    - Timesteps are float64 where sigmas are respaced.

    prediction_type="sample", which diffusers refuses, works.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):
        self._setup()

    _middle = 1
    _history = {"sample": lambda _: None}

    def _between(self, levels: Tensor) -> dict[str, Tensor]:
        return {"sigmas_interpol": levels.log().lerp(levels.roll(1).log(), 0.5).exp()}

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """The next state or stage from the network's output at a timestep; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict=return_dict)


class KDPM2AncestralDiscreteScheduler(_Midpoint):
    """The drop-in of diffusers' `KDPM2AncestralDiscreteScheduler`: KDPM2 with ancestral noise.

    (Song, Meng & Ermon 2021, eq. 16.)

    Quirks: those of `KDPM2DiscreteScheduler`; the lower level sqrt(sigma_s² - up²) is computed in
    float32, which leaves few digits after a long step, sometimes none (NaN).
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):
        self._setup()

    _history = {"sample": lambda _: None, "dt": lambda _: None}
    sigmas_up: Any = RunTable()
    sigmas_down: Any = RunTable()

    def _between(self, levels: Tensor) -> dict[str, Tensor]:
        below = torch.cat([levels[1:], levels.new_zeros(1)])
        up = (below**2 * (levels**2 - below**2) / levels**2) ** 0.5
        down = (below**2 - up**2) ** 0.5
        down[-1] = 0.0
        middle = levels.log().lerp(down.log(), 0.5).exp()
        middle[-2:] = 0.0
        return {"sigmas_interpol": middle, "sigmas_down": down, "sigmas_up": up}

    def _always_draws(self, index: int, options: Any) -> bool:
        return not self._begins(self._state, index)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state or stage from the network's output at a timestep; see diffusers."""
        return self._advance(
            model_output, timestep, sample, generator=generator, return_dict=return_dict
        )
