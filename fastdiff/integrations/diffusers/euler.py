"""Drop-ins of Euler's method in sigma, with churn or ancestral noise (Karras et al. 2022)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...solvers import Linear, Trace, karras
from . import grids, tables
from .base import Generators
from .quirks.karras import late_churn
from .registered import register_to_config
from .sigma import Exploding
from .state import State


class EulerDiscreteScheduler(Exploding):
    """The drop-in of diffusers' `EulerDiscreteScheduler` (Karras et al. 2022, algorithm 2).

    Quirks:
    - With s_churn the noise is added after the network was called on the state without it, and a
      v-prediction is read at the level before the noise. (EDM calls the network afterwards.)
    - init_noise_sigma is sqrt(sigma_max² + 1) with timestep_spacing="leading".
    - A terminal SNR of zero ends at sigma = 4096.
    - interpolation_type="log_linear" makes one level too many.
    """

    _typed_as_output = True

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        interpolation_type: str = "linear",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
    ):
        self._setup()

    def _initial(self) -> State:
        levels = grids.ended(tables.sigmas(self.alphas_cumprod)[::-1], 0.0)
        timesteps = np.arange(len(levels) - 1, dtype=tables.numpy_float())[::-1].copy()
        return self._state_of(self._continuous(timesteps, levels), levels, None, steps=None)

    def _continuous(self, timesteps: Any, levels: Any) -> Tensor:
        """The timesteps, or ln(sigma)/4 for networks of that time (Karras et al. 2022, table 1)."""
        if (
            self.config.timestep_type == "continuous"
            and self.config.prediction_type == "v_prediction"
        ):
            return 0.25 * torch.from_numpy(levels[:-1]).log()
        return torch.from_numpy(timesteps.astype(tables.numpy_float()))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
    ) -> None:
        """Sets a number of steps, or timesteps to visit, or levels.

        sigmas: [n + 1], with the level that the last step goes to.
        """
        name, c = type(self).__name__, self.config
        if sum(v is not None for v in (num_inference_steps, timesteps, sigmas)) != 1:
            raise ValueError(
                f"fastdiff.{name}.set_timesteps: expected one of num_inference_steps, timesteps and"
                " sigmas."
            )
        if (
            timesteps is not None
            and c.timestep_type == "continuous"
            and c.prediction_type == "v_prediction"
        ):
            raise ValueError(
                f"fastdiff.{name}.set_timesteps: expected no timesteps with"
                " timestep_type='continuous'."
            )
        if c.final_sigmas_type not in ("zero", "sigma_min"):
            raise ValueError(
                f"fastdiff.{name}: expected final_sigmas_type in ['zero', 'sigma_min'], got"
                f" {c.final_sigmas_type!r}."
            )
        trained = tables.sigmas(self.alphas_cumprod)
        if sigmas is not None:
            levels = np.array(sigmas).astype(tables.numpy_float())
            visited, steps = grids.timestep_of(levels[:-1], np.log(trained)), len(levels) - 1
        else:
            steps = len(timesteps) if num_inference_steps is None else num_inference_steps
            visited, levels = self._levels(steps, timesteps)
            levels = grids.ended(
                levels, float(trained[0]) if c.final_sigmas_type == "sigma_min" else 0.0
            )
        self._begin(self._state_of(self._continuous(visited, levels), levels, device, steps=steps))

    def _respaced(
        self, visited: Any, levels: Any, log_sigmas: Any, steps: int, whole_karras: bool
    ) -> Any:
        if self.config.interpolation_type == "log_linear":
            levels = (
                torch.linspace(float(log_sigmas[-1]), float(log_sigmas[0]), steps + 1).exp().numpy()
            )
        elif self.config.interpolation_type != "linear":
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected interpolation_type in ['linear',"
                f" 'log_linear'], got {self.config.interpolation_type!r}."
            )
        return super()._respaced(visited, levels, log_sigmas, steps, whole_karras)

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        times, steps = state.times[start:], len(state.times) - 1
        return late_churn(
            trace, times, steps, hat=self.config.prediction_type == "epsilon", **options
        )

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state from the network's output at one of the timesteps; see diffusers."""
        self._refuse_integer("step", timestep)
        options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        return self._advance(
            model_output,
            timestep,
            sample,
            options=options,
            generator=generator,
            return_dict=return_dict,
        )

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0.

        Quirk: alpha_bar is read at the timestep's index on the grid.
        """
        self._refuse_integer("get_velocity", timesteps)
        indices = [self.index_for_timestep(t) for t in timesteps]
        chosen = self.alphas_cumprod.to(sample)[indices].reshape(-1, *(1,) * (sample.ndim - 1))
        return chosen**0.5 * noise - (1 - chosen) ** 0.5 * sample


class EulerAncestralDiscreteScheduler(Exploding):
    """The drop-in of diffusers' `EulerAncestralDiscreteScheduler` (Song, Meng & Ermon 2021).

    Quirks:
    - A draw is taken from the generator on the last step too, where nothing is added.
    - init_noise_sigma is sqrt(sigma_max² + 1) with timestep_spacing="leading".

    prediction_type="sample", which diffusers refuses, works.
    """

    _typed_as_output = True

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ):
        self._setup()

    def _initial(self) -> State:
        levels = grids.ended(tables.sigmas(self.alphas_cumprod)[::-1], 0.0)
        return self._state_of(
            np.arange(len(levels) - 1, dtype=np.float64)[::-1].copy(), levels, None, steps=None
        )

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Sets num_inference_steps timesteps, spaced as configured."""
        visited, levels = self._levels(num_inference_steps)
        self._begin(
            self._state_of(visited, grids.ended(levels, 0.0), device, steps=num_inference_steps)
        )

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        return karras.euler_ancestral(trace, state.times[start:])

    def _always_draws(self, index: int, options: Any) -> bool:
        return True

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
