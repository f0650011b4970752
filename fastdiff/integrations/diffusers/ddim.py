"""Drop-ins of DDIM, its parallel form and its inversion (Song, Meng & Ermon 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...schedule import CLEAN, Time
from ...solvers import Linear, Trace, ddim
from . import grids, tables
from .base import Generators
from .quirks.ddpm import inversion
from .registered import register_to_config
from .state import State, Table
from .vp import VariancePreserving


class Strided(VariancePreserving):
    """A scheduler whose step from t goes to t - T // n, whatever the next timestep is."""

    final_alpha_cumprod: Any = Table()
    _reads = ("alphas_cumprod", "final_alpha_cumprod")

    def _prepare(self) -> None:
        super()._prepare()
        self._set_final()

    def _set_final(self) -> None:
        self.final_alpha_cumprod = (
            torch.tensor(1.0) if self.config.set_alpha_to_one else self.alphas_cumprod[0]
        )

    def _final(self) -> Time:
        return tables.preserving(0, float(self.final_alpha_cumprod))

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Sets num_inference_steps timesteps, at most T, spaced as configured.

        Raises ValueError for a number outside [1, T].
        """
        name, c = type(self).__name__, self.config
        grids.at_most(name, num_inference_steps, c.num_train_timesteps)
        grid = grids.whole(
            name, c.num_train_timesteps, num_inference_steps, c.timestep_spacing, self._offset()
        )
        self._begin(self._state_of(grid, device, steps=num_inference_steps))

    def _offset(self) -> int:
        return self.config.steps_offset if self.config.timestep_spacing == "leading" else 0

    def _width(self, state: State) -> int:
        """T // n, which a step goes down."""
        return self.config.num_train_timesteps // self._require_steps(state)

    def _pair(self, state: State, t: float) -> tuple[Time, Time]:
        """The points where a step from timestep t begins and ends."""
        before = int(t) - self._width(state)
        return self._point(t), self._point(before) if before >= 0 else self._final()


class DDIMScheduler(Strided):
    """The drop-in of diffusers' `DDIMScheduler` (Song et al. 2021, eq. 12 and 16).

    Quirks:
    - The step from t goes to t - T // n whatever the next timestep is, so `linspace` and `trailing`
      grids are not followed (diffusers #9261).
    - The last step goes to alpha_bar 1, or to that of timestep 0 with set_alpha_to_one=False.
    - With eta > 0 a draw is taken from the generator on the last step too.

    A step from a timestep off the grid follows the same rule.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ):
        self._setup()

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        for t in state.values[start:]:
            pair = self._pair(state, t)
            trace.start = self._alone(trace, self._step_formula, trace, *pair, **options)
        return trace.start

    def _off_grid(
        self, trace: Trace, state: State, timestep: float, **options: Any
    ) -> Linear | None:
        return self._step_formula(trace, *self._pair(state, timestep), **options)

    def _step_formula(self, trace: Trace, t: Time, s: Time, **options: Any) -> Linear:
        return ddim.ddim(trace, [t, s], **options)

    def _always_draws(self, index: int, options: Any) -> bool:
        return options["eta"] > 0

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The state at t - T // n from the network's output at t; see diffusers.

        variance_noise replaces a draw from the generator.
        """
        if eta > 0 and variance_noise is not None and generator is not None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.step: expected one of generator and"
                " variance_noise, got both."
            )
        options = {"eta": eta, "use_clipped_model_output": bool(use_clipped_model_output)}
        return self._advance(
            model_output,
            timestep,
            sample,
            options=options,
            generator=generator,
            noise=variance_noise,
            return_dict=return_dict,
        )


class DDIMParallelScheduler(DDIMScheduler):
    """The drop-in of diffusers' `DDIMParallelScheduler`, DDIM for ParaDiGMS (Shih et al. 2023).

    Quirks: those of `DDIMScheduler`; batch_step_no_noise ends at alpha_bar 1 whatever
    set_alpha_to_one says.
    """

    _is_ode_scheduler = True

    def batch_step_no_noise(
        self,
        model_output: Tensor,
        timesteps: Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
    ) -> Tensor:
        """One deterministic step of every sample from its timestep [B], int64 in [0, T)."""
        if eta != 0:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.batch_step_no_noise: expected eta 0, got {eta}."
            )
        state = self._state
        options: dict[str, Any] = {"use_clipped_model_output": bool(use_clipped_model_output)}

        def pair(t: int) -> tuple[Time, Time]:
            first, second = self._pair(state, t)
            return first, (
                second
                if t >= self.config.num_train_timesteps // (state.num_inference_steps or 1)
                else CLEAN
            )

        def formula(trace: Trace, t: int) -> Linear:
            return self._step_formula(trace, *pair(t), **options)

        return self._step_each(formula, model_output, timesteps, sample, options)


class DDIMInverseScheduler(VariancePreserving):
    """The drop-in of diffusers' `DDIMInverseScheduler`, DDIM towards noise.

    Quirks:
    - The output at t is read as if it were predicted at t - T // n, the less noisy point where the
      step begins.
    - The first step begins at alpha_bar 1, or at that of timestep 0 with set_alpha_to_one=False.
    """

    ignore_for_config = ["kwargs"]
    _deprecated_kwargs = ["set_alpha_to_zero"]
    initial_alpha_cumprod: Any = Table()
    _reads = ("alphas_cumprod", "initial_alpha_cumprod")

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        **kwargs: Any,
    ):
        # set_alpha_to_zero is the argument's old name
        self._from_one = kwargs.get("set_alpha_to_zero", set_alpha_to_one)
        self._setup()

    def _prepare(self) -> None:
        super()._prepare()
        self.initial_alpha_cumprod = torch.tensor(1.0) if self._from_one else self.alphas_cumprod[0]

    def _initial(self) -> State:
        return self._state_of(range(self.config.num_train_timesteps), None, steps=None)

    def _final(self) -> Time:
        return self._point(self.config.num_train_timesteps - 1)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Sets num_inference_steps ascending timesteps with the spacing leading or trailing."""
        name, c = type(self).__name__, self.config
        grids.at_most(name, num_inference_steps, c.num_train_timesteps)
        if c.timestep_spacing == "linspace":
            raise ValueError(
                f"fastdiff.{name}: expected timestep_spacing in ['leading', 'trailing'], got"
                f" {c.timestep_spacing!r}."
            )
        offset = c.steps_offset if c.timestep_spacing == "leading" else 0
        grid = grids.whole(
            name, c.num_train_timesteps, num_inference_steps, c.timestep_spacing, offset
        )[::-1]
        self._begin(self._state_of(grid, device, steps=num_inference_steps))

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        for t in state.values[start:]:
            trace.start = self._alone(trace, self._step_formula, trace, state, t)
        return trace.start

    def _off_grid(
        self, trace: Trace, state: State, timestep: float, **options: Any
    ) -> Linear | None:
        return self._step_formula(trace, state, timestep)

    def _step_formula(self, trace: Trace, state: State, timestep: float) -> Linear:
        total = self.config.num_train_timesteps
        before = min(int(timestep) - total // self._require_steps(state), total - 1)
        origin = (
            self._point(before)
            if before >= 0
            else tables.preserving(0, float(self.initial_alpha_cumprod))
        )
        return inversion(trace, origin, self._point(timestep))

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """The noisier state at t from the one at t - T // n; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict=return_dict)
