"""DDPM (Ho et al. 2020) under diffusers' names."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ...ops import randn
from ...schedule import CLEAN, Time
from ...solvers import Linear, Trace
from . import grids
from .base import Generators
from .quirks.ddpm import ddpm
from .state import State
from .vp import VariancePreserving

VARIANCES = (
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
)


class DDPMScheduler(VariancePreserving):
    """DDPM (Ho et al. 2020, eq. 6, 7 and 15; learned_range: Nichol & Dhariwal 2021, eq. 15);
    diffusers' `DDPMScheduler`.

    Quirks kept: noise is added wherever t > 0, so also on a last step from a timestep above 0, with
        a variance held above
    1e-20; learned takes the network's second half for the variance itself. One not kept:
    fixed_large_log is fixed_large (diffusers takes the root of a logarithm, which is NaN: #14569).
    """

    variance_type: str

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ):
        self._setup()

    def _prepare(self) -> None:
        super()._prepare()
        self.variance_type = self.config.variance_type
        if self.variance_type not in VARIANCES:
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected variance_type in {list(VARIANCES)}, got"
                f" {self.variance_type!r}."
            )

    @property
    def custom_timesteps(self) -> bool:
        return bool(self._state.extra.get("custom"))

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None
    ) -> None:
        """num_inference_steps timesteps in [1, T], spaced as configured, or the given ones,
        descending below T.

        Raises ValueError for both, and for numbers outside these.
        """
        name, c = type(self).__name__, self.config
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(
                f"fastdiff.{name}.set_timesteps: expected one of num_inference_steps and timesteps."
            )
        if timesteps is not None:
            grid = grids.given(name, c.num_train_timesteps, timesteps)
            self._begin(self._visiting(grid, device, steps=self.num_inference_steps, custom=True))
            return
        assert num_inference_steps is not None
        grids.at_most(name, num_inference_steps, c.num_train_timesteps)
        offset = c.steps_offset if c.timestep_spacing == "leading" else 0
        grid = grids.whole(
            name, c.num_train_timesteps, num_inference_steps, c.timestep_spacing, offset
        )
        self._begin(self._visiting(grid, device, steps=num_inference_steps))

    def previous_timestep(self, timestep: Any) -> int:
        """The timestep after this one on the grid, -1 after the last."""
        state = self._state
        index = self._index(state, timestep)
        if index is None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.previous_timestep: expected one of"
                f" scheduler.timesteps, got {timestep}."
            )
        return state.host[index + 1] if index + 1 < len(state.host) else -1

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        for i in range(start, len(state.host)):
            trace.start = self._one(trace, state.times[i], state.times[i + 1])
        return trace.start

    def _one(self, trace: Trace, t: Time, s: Time) -> Linear:
        return ddpm(trace, t, s, variance_type=self.variance_type, draws=t.t > 0)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state from the network's output at a timestep; see diffusers.

        model_output has twice the channels with learned variances.
        """
        noise = None
        if self.variance_type == "learned":
            model_output, variance = torch.split(model_output, sample.shape[1], dim=1)
            noise = self._spread(model_output, timestep, sample, variance, generator)
        return self._advance(
            model_output,
            timestep,
            sample,
            generator=generator,
            noise=noise,
            return_dict=return_dict,
        )

    def _spread(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        variance: Tensor,
        generator: Generators,
    ) -> Tensor | None:
        """Noise of the variance that the network says."""
        state = self._state
        index = self._index(state, timestep)
        if index is None or state.host[index] <= 0:
            return None
        if generator is not None:
            z = self._draw(model_output, sample, generator)
        else:
            z = randn(
                tuple(sample.shape),
                seed=self._seed(state),
                step=index,
                stream=1,
                device=sample.device,
            )
        return variance**0.5 * z.to(variance.dtype)


class DDPMParallelScheduler(DDPMScheduler):
    """DDPM for ParaDiGMS (Shih et al. 2023), which steps many timesteps at once; diffusers'
    `DDPMParallelScheduler`.

    Quirks kept: those of `DDPMScheduler`; batch_step_no_noise goes from t to t - T // n whatever
        the grid is.
    """

    _is_ode_scheduler = False

    def batch_step_no_noise(
        self, model_output: Tensor, timesteps: Tensor, sample: Tensor
    ) -> Tensor:
        """The posterior mean of each sample from its own timestep: timesteps [B] int64, each in [0,
        T).
        """
        total = self.config.num_train_timesteps
        ratio = total // (self.num_inference_steps or total)
        if model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]

        def formula(trace: Trace, t: int) -> Linear:
            goal = self._point(t - ratio) if t >= ratio else CLEAN
            return ddpm(trace, self._point(t), goal, variance_type=self.variance_type, draws=False)

        return self._everywhere(formula, model_output, timesteps, sample, {})
