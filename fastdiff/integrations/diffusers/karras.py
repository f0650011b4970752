"""Drop-ins of LMS, Heun and the midpoint rule in ln sigma (Karras et al. 2022)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from torch import Tensor

from ...solvers import Linear, Trace, karras
from . import grids, tables
from .base import Generators
from .quirks.karras import lms, midpoints
from .sigma import Exploding
from .state import State


class LMSDiscreteScheduler(Exploding):
    """The drop-in of diffusers' `LMSDiscreteScheduler`, linear multistep of order 1 to 4.

    Quirks:
    - A run that begins inside the grid uses weights of the full order for the derivatives it has.
    - init_noise_sigma is sqrt(sigma_max² + 1) with timestep_spacing="leading".

    The integrals are exact; diffusers computes them by quadrature.
    """

    _has_history = True

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

    def _entered(self, state: State, start: int) -> list[Any]:
        """The points from index `start` of `timesteps` on.

        Both indices of a step, those of its two network calls, begin at the same point.
        """
        return state.times[(start + 1) // 2 :]


class HeunDiscreteScheduler(SecondOrder):
    """The drop-in of diffusers' `HeunDiscreteScheduler` (Karras et al. 2022, algorithm 1).

    Quirks:
    - beta_start and beta_end have other defaults than in most classes.
    - n steps have 2n - 1 timesteps.
    - clip_sample clips the prediction of both stages.
    - init_noise_sigma is sqrt(sigma_max² + 1) with timestep_spacing="leading".
    """

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
        shown = torch.from_numpy(np.concatenate([levels[:1], levels[1:-1].repeat(2), levels[-1:]]))
        twice = np.concatenate([visited[:1], visited[1:].repeat(2)]).astype(tables.numpy_float())
        scales = [math.hypot(v, 1.0) for v in shown.tolist()[:-1]]
        return self._state_of(twice, levels, device, steps=steps, shown=shown, scales=scales)

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
        return karras.heun(trace, self._entered(state, start))

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """The next state or stage from the network's output at a timestep; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict=return_dict)


class _Midpoint(SecondOrder):
    """What both KDPM2 classes share: levels, and timesteps of the points between them."""

    def _between(self, levels: Tensor) -> dict[str, Tensor]:
        """Levels [n - 1] of each step except the last.

        `middle` is the level of the second call; the others are what the formula needs.
        """
        raise NotImplementedError

    def _grid(
        self, steps: int, device: Any, total: int | None = None, timesteps: Any = None
    ) -> State:
        visited, levels = self._levels(steps, None, total, whole_karras=True)
        levels = grids.ended(levels, 0.0)
        step_levels = self._between(torch.from_numpy(levels))
        middle = step_levels["middle"].numpy()
        log_sigmas: NDArray[Any] = np.log(tables.sigmas(self.alphas_cumprod))
        between = grids.timestep_of(middle, log_sigmas, narrow=True).astype(visited.dtype)
        interleaved = np.stack([between, visited[1:]], axis=1).flatten()
        sigmas = np.concatenate([levels[:1], levels[1:].repeat(2), levels[-1:]])
        called = np.concatenate([levels[:1], np.stack([middle, levels[1:-1]], axis=1).flatten()])
        return self._state_of(
            np.concatenate([visited[:1], interleaved]),
            levels,
            device,
            steps=steps,
            shown=torch.from_numpy(sigmas),
            scales=[math.hypot(v, 1.0) for v in called.tolist()],
            **{name: value.tolist() for name, value in step_levels.items()},
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

    def _between(self, levels: Tensor) -> dict[str, Tensor]:
        return {"middle": levels.log().lerp(levels.roll(1).log(), 0.5).exp()[1:-1]}

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        return karras.kdpm2(trace, self._entered(state, start))

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

    def _between(self, levels: Tensor) -> dict[str, Tensor]:
        above, below = levels[:-2], levels[1:-1]
        up = (below**2 * (above**2 - below**2) / above**2) ** 0.5
        down = (below**2 - up**2) ** 0.5
        return {"middle": above.log().lerp(down.log(), 0.5).exp(), "down": down, "up": up}

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        first = (start + 1) // 2
        levels = [state.extra[name][first:] for name in ("middle", "down", "up")]
        return midpoints(trace, state.times[first:], *levels)

    def _always_draws(self, index: int, options: Any) -> bool:
        return index % 2 == 1

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
