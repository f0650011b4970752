"""DDIM and its inversion (Song, Meng & Ermon 2021) under diffusers' names."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ...schedule import Time
from ...solvers import Linear, Trace, ddim
from . import grids, quirks, tables
from .base import Generators
from .state import State
from .vp import VariancePreserving


class DDIMScheduler(VariancePreserving):
    """DDIM (Song et al. 2021, eq. 12 and 16); diffusers' `DDIMScheduler`.

    Quirks kept: the step from t goes to t - T // n whatever the next timestep is, so `linspace` and `trailing` grids are
    not followed (diffusers #9261); the last step goes to alpha_bar 1, or to that of timestep 0 (set_alpha_to_one=False);
    with eta > 0 a generator is drawn from on the last step too. A timestep off the grid is stepped from alike.
    """

    final_alpha_cumprod: Tensor

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, clip_sample: bool = True,
        set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
        thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0, timestep_spacing: str = "leading", rescale_betas_zero_snr: bool = False,
    ):  # fmt: skip
        self._setup()

    def _prepare(self) -> None:
        super()._prepare()
        self.final_alpha_cumprod = torch.tensor(1.0) if self.config.set_alpha_to_one else self.alphas_cumprod[0]

    def _final(self) -> Time:
        return tables.preserving(0, float(self.final_alpha_cumprod))

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """num_inference_steps timesteps in [1, T], spaced as configured. Raises ValueError outside that range."""
        name, c = type(self).__name__, self.config
        grids.at_most(name, num_inference_steps, c.num_train_timesteps)
        grid = grids.whole(name, c.num_train_timesteps, num_inference_steps, c.timestep_spacing, self._offset())
        self._begin(self._visiting(grid, device, steps=num_inference_steps))

    def _offset(self) -> int:
        return self.config.steps_offset if self.config.timestep_spacing == "leading" else 0

    def _pair(self, state: State, t: float) -> tuple[Time, Time]:
        """The points a step from timestep t goes between."""
        if state.num_inference_steps is None:
            raise ValueError(f"fastdiff.{type(self).__name__}: expected set_timesteps before step. Call it first.")
        before = int(t) - self.config.num_train_timesteps // state.num_inference_steps
        return self._point(t), self._point(before) if before >= 0 else self._final()

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        for t in state.host[start:]:
            trace.start = self._one(trace, *self._pair(state, t), **options)
        return trace.start

    def _foreign(self, trace: Trace, state: State, timestep: float, **options: Any) -> Linear | None:
        return self._one(trace, *self._pair(state, timestep), **options)

    def _one(self, trace: Trace, t: Time, s: Time, *, eta: float = 0.0, clipped: bool = False) -> Linear:
        return ddim.ddim(trace, [t, s], eta=eta, use_clipped_model_output=clipped)

    def _always_draws(self, index: int, options: Any) -> bool:
        return options["eta"] > 0

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, eta: float = 0.0,
        use_clipped_model_output: bool = False, generator: Generators = None, variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """x_{t - T//n} from the network's output at t; see diffusers. variance_noise is used in a draw's place."""
        if eta > 0 and variance_noise is not None and generator is not None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.step: expected one of generator and variance_noise, got both."
            )
        options = {"eta": eta, "clipped": use_clipped_model_output}
        return self._advance(
            model_output, timestep, sample, options=options, generator=generator, noise=variance_noise,
            return_dict=return_dict,
        )  # fmt: skip
