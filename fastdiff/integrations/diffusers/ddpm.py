"""Drop-ins of DDPM and its parallel form (Ho et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops import randn
from ...schedule import CLEAN, Time
from ...solvers import Linear, Trace
from . import grids
from .base import DropIn, Generators
from .quirks.ddpm import ddpm
from .registered import register_to_config
from .state import State, Table
from .vp import VariancePreserving

_LEARNED_OR_LARGE = ("fixed_large", "fixed_large_log", "learned", "learned_range")


class DDPMScheduler(VariancePreserving):
    """The drop-in of diffusers' `DDPMScheduler` (Ho et al. 2020, eq. 6, 7 and 15).

    Its learned_range is that of Nichol & Dhariwal 2021, eq. 15.

    Quirks:
    - Noise is added wherever t > 0, so also in a last step from a timestep above 0, and its
      variance is at least 1e-20.
    - Any other variance_type, None included, is fixed_small.
    - With variance_type="learned" the second half of the network's output is the variance itself.

    A defect of diffusers is not reproduced: fixed_large_log is fixed_large here; diffusers takes
    the root of a logarithm, which is NaN (#14569).
    """

    variance_type: Any = Table()

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

    @property
    def custom_timesteps(self) -> bool:
        return bool(self._state.extra.get("custom"))

    @custom_timesteps.setter
    def custom_timesteps(self, value: bool) -> None:
        self._state.set_extra("custom", value)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None
    ) -> None:
        """Sets num_inference_steps timesteps spaced as configured, or the given ones.

        Given timesteps descend below T. Raises ValueError for both or neither, and for other
        numbers.
        """
        name, c = type(self).__name__, self.config
        grids.exactly_one(name, num_inference_steps, timesteps)
        if timesteps is not None:
            grid = grids.descending(name, c.num_train_timesteps, timesteps)
            self._begin(self._state_of(grid, device, steps=self.num_inference_steps, custom=True))
            return
        assert num_inference_steps is not None
        grids.at_most(name, num_inference_steps, c.num_train_timesteps)
        offset = c.steps_offset if c.timestep_spacing == "leading" else 0
        grid = grids.whole(
            name, c.num_train_timesteps, num_inference_steps, c.timestep_spacing, offset
        )
        self._begin(self._state_of(grid, device, steps=num_inference_steps))

    def previous_timestep(self, timestep: Any) -> Any:
        """The timestep after this one on the grid as a tensor [], -1 after the last one.

        Without a grid of one's own it is t - 1.
        """
        return previous(self, timestep)

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        # where a timestep is there twice, diffusers takes the one after its first place
        after = dict(zip(state.values[::-1], [-1, *state.values[:0:-1]], strict=True))
        for t in state.values[start:]:
            trace.start = self._alone(trace, self._off_grid, trace, state, t, after=after)
        return trace.start

    def _off_grid(
        self, trace: Trace, state: State, timestep: float, **options: Any
    ) -> Linear | None:
        after = options.get("after")
        if not has_grid(state):
            before = timestep - 1
        elif after is None:
            return None
        else:
            before = after[timestep]
        s = self._point(before) if before >= 0 else self._final()
        return self._step_formula(trace, self._point(timestep), s)

    def _step_formula(self, trace: Trace, t: Time, s: Time) -> Linear:
        kind = self.variance_type if self.variance_type in _LEARNED_OR_LARGE else "fixed_small"
        return ddpm(trace, t, s, variance_type=kind, draws=t.t > 0)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state from the network's output at a timestep; see diffusers.

        model_output has twice the channels with a learned variance.
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
        """Noise with the variance that the network predicts, or None at timestep 0."""
        state = self._state
        index = self._index(state, timestep)
        if index is None or state.values[index] <= 0:
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


def has_grid(state: State) -> bool:
    """Whether steps go to the next timestep of the grid; otherwise they go from t to t - 1."""
    return bool(state.extra.get("custom") or state.num_inference_steps)


def previous(scheduler: DropIn, timestep: Any) -> Any:
    """The timestep after this one as diffusers gives it, a tensor [] where there is a grid."""
    state = scheduler._state
    if not has_grid(state):
        return timestep - 1
    if float(timestep) not in state.values:
        raise ValueError(
            f"fastdiff.{type(scheduler).__name__}.previous_timestep: expected one of"
            f" scheduler.timesteps, got {timestep}."
        )
    index = state.values.index(float(timestep)) + 1
    timesteps = state.tables["timesteps"]
    return timesteps[index] if index < len(timesteps) else torch.tensor(-1)


class DDPMParallelScheduler(DDPMScheduler):
    """The drop-in of diffusers' `DDPMParallelScheduler`, DDPM for ParaDiGMS (Shih et al. 2023).

    Quirks: those of `DDPMScheduler`; batch_step_no_noise goes from t to t - T // n whatever the
    grid is.
    """

    _is_ode_scheduler = False

    def batch_step_no_noise(
        self, model_output: Tensor, timesteps: Tensor, sample: Tensor
    ) -> Tensor:
        """The posterior mean of every sample from its timestep [B], int64 in [0, T)."""
        total = self.config.num_train_timesteps
        ratio = total // (self.num_inference_steps or total)
        if model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]

        def formula(trace: Trace, t: int) -> Linear:
            goal = self._point(t - ratio) if t >= ratio else CLEAN
            return ddpm(trace, self._point(t), goal, variance_type="fixed_small", draws=False)

        return self._step_each(formula, model_output, timesteps, sample, {})
