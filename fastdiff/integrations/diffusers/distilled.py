"""Drop-ins for distilled networks: LCM (Luo et al. 2023) and TCD (Zheng et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor

from ...schedule import CLEAN, Time
from ...solvers import Linear, Trace, consistency
from ...table import INDEX
from . import grids
from .base import DropIn, Generators
from .ddpm import previous
from .indexed import Indexed
from .registered import register_to_config
from .state import State, Table
from .vp import VariancePreserving


@dataclass
class LCMOutput(BaseOutput):
    """What LCM's step returns.

    Attributes:
        prev_sample: the next state, in the sample's dtype.
        denoised: c_skip x + c_out x0, the consistency function of this call.
    """

    prev_sample: Tensor
    denoised: Tensor | None = None


@dataclass
class TCDOutput(BaseOutput):
    """What TCD's step returns.

    Attributes:
        prev_sample: the next state, in the sample's dtype.
        pred_noised_sample: the state at the timestep that DDIM steps down to, before noise is
            added.
    """

    prev_sample: Tensor
    pred_noised_sample: Tensor | None = None


class Distilled(VariancePreserving, Indexed):
    """A scheduler that visits some of the timesteps at which the network was distilled."""

    _compatibles: list[str] = []
    _returns_x0 = False
    _returns_slot_1 = True
    _reads_timestep = True
    scale_model_input = DropIn.scale_model_input
    final_alpha_cumprod: Any = Table()
    _reads = ("alphas_cumprod", "final_alpha_cumprod")

    def _prepare(self) -> None:
        super()._prepare()
        self.final_alpha_cumprod = (
            torch.tensor(1.0) if self.config.set_alpha_to_one else self.alphas_cumprod[0]
        )

    @property
    def custom_timesteps(self) -> bool:
        return bool(self._state.extra.get("custom"))

    @custom_timesteps.setter
    def custom_timesteps(self, value: bool) -> None:
        self._state.set_extra("custom", value)

    def _distilled(self, original_steps: int | None, strength: float) -> NDArray[np.int64]:
        """The timesteps of the distillation, ascending, up to a fraction `strength` of them."""
        raise NotImplementedError

    def _drawn_dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        return sample.dtype

    def _end(self, last: int) -> Time:
        """The point that the step from the last timestep, `last`, goes to, with noise."""
        raise NotImplementedError

    def _steps(self, state: State, start: int) -> list[tuple[Time, Time, bool]]:
        """(begin, end, whether noise follows) of the steps from index `start` on."""
        values, last = state.values, (state.num_inference_steps or 0) - 1
        ends = [*state.times[1 : len(values)], self._end(int(values[-1]))]
        return [(state.times[i], ends[i], i != last) for i in range(start, len(values))]

    def _evenly(self, original: int | None, strength: float) -> NDArray[np.int64]:
        """Every (T // original)-th timestep, ascending, up to the fraction `strength` of them."""
        name, total = type(self).__name__, self.config.num_train_timesteps
        count = self.config.original_inference_steps if original is None else original
        if count > total:
            raise ValueError(
                f"fastdiff.{name}.set_timesteps: expected original_inference_steps <= {total}, got"
                f" {count}."
            )
        return np.arange(1, int(count * strength) + 1) * (total // count) - 1

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        original_inference_steps: int | None = None,
        timesteps: Any = None,
        strength: float = 1.0,
    ) -> None:
        """Sets num_inference_steps of the distillation's timesteps, or the given ones, descending.

        The distillation has original_inference_steps timesteps.

        Args:
            strength: the fraction of the distillation's or of the given timesteps that is used
                (image to image).

        Raises ValueError for both or neither, and for more steps than there are timesteps.
        """
        name, c = type(self).__name__, self.config
        grids.exactly_one(name, num_inference_steps, timesteps)
        available = self._distilled(original_inference_steps, strength)
        if timesteps is not None:
            grid = grids.descending(name, c.num_train_timesteps, timesteps)
            steps = len(grid)
            grid = grid[steps - min(int(steps * strength), steps) :]
        else:
            assert num_inference_steps is not None
            steps = num_inference_steps
            count = (
                c.original_inference_steps
                if original_inference_steps is None
                else original_inference_steps
            )
            most = min(len(available), count, c.num_train_timesteps)
            if not 1 <= steps <= most:
                raise ValueError(
                    f"fastdiff.{name}.set_timesteps: expected num_inference_steps in [1, {most}],"
                    f" for original_inference_steps={count} and strength={strength}, got {steps}."
                )
            chosen = np.floor(np.linspace(0, len(available), num=steps, endpoint=False)).astype(
                np.int64
            )
            grid = available[::-1][chosen]
        self._begin(self._state_of(grid, device, steps=steps, custom=timesteps is not None))

    def previous_timestep(self, timestep: Any) -> Any:
        """The timestep after this one on the grid as a tensor [], -1 after the last one."""
        return previous(self, timestep)

    def _scales(self, state: State, options: Mapping[str, Any]) -> list[float]:
        """For every step, the factor of the second returned value in the next state."""
        raise NotImplementedError

    def _write_slot_1(
        self, table: NDArray[np.float64], state: State, options: Mapping[str, Any]
    ) -> None:
        # the second returned value is the next state without its noise, divided by its factor
        for row, scale in enumerate(self._scales(state, options)):
            for operand in ("x", "x0", "out"):
                table[row, INDEX[f"s1.{operand}"]] = table[row, INDEX[f"x.{operand}"]] / scale


class LCMScheduler(Distilled):
    """The drop-in of diffusers' `LCMScheduler` (Luo et al. 2023, eq. 9).

    It is multistep consistency sampling (Song et al. 2023, algorithm 1).

    Quirks:
    - With timesteps and strength < 1 the last step adds noise of its own level.
    - steps_offset, timestep_spacing and set_alpha_to_one have no effect.
    """

    _output = LCMOutput

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: Any = None,
        original_inference_steps: int = 50,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        timestep_scaling: float = 10.0,
        rescale_betas_zero_snr: bool = False,
    ):
        self._setup()

    def _distilled(self, original_steps: int | None, strength: float) -> NDArray[np.int64]:
        return self._evenly(original_steps, strength)

    def _end(self, last: int) -> Time:
        return self._point(last)

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        scaling = self.config.timestep_scaling
        for t, s, noisy in self._steps(state, start):
            step = [t, s if noisy else CLEAN]
            trace.start = self._alone(trace, consistency.lcm, trace, step, timestep_scaling=scaling)
        return trace.start

    def _scales(self, state: State, options: Mapping[str, Any]) -> list[float]:
        return [s.alpha if noisy and s.alpha else 1.0 for _, s, noisy in self._steps(state, 0)]

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """Returns (next state, consistency function) from the network's output at a timestep."""
        self._require_steps(self._states.get())
        return self._advance(
            model_output, timestep, sample, generator=generator, return_dict=return_dict
        )


class TCDScheduler(Distilled):
    """The drop-in of diffusers' `TCDScheduler` (Zheng et al. 2024, algorithm 4, eq. 20).

    Quirks:
    - The last step goes to timestep 0, not to clean data.
    - (1 - eta) s is rounded down in float32.
    - x0 is never clipped or thresholded.
    - An original_inference_steps passed to set_timesteps makes every training timestep available
      but still limits num_inference_steps.
    - With timesteps and strength < 1 a draw is taken from the generator on the last step too.
    """

    _output = TCDOutput

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: Any = None,
        original_inference_steps: int = 50,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        timestep_scaling: float = 10.0,
        rescale_betas_zero_snr: bool = False,
    ):
        self._setup()

    @classmethod
    def _limits_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def _distilled(self, original_steps: int | None, strength: float) -> NDArray[np.int64]:
        if original_steps is None:
            return self._evenly(None, strength)
        return np.arange(0, int(self.config.num_train_timesteps * strength))

    def _end(self, last: int) -> Time:
        return self._point(0)

    def _down(self, s: Time, eta: float) -> Time:
        """The point that DDIM steps down to before noise is added to reach s."""
        return self._point(int(torch.floor((1 - eta) * torch.tensor(int(s.t)))))

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        eta = options.get("eta", 0.3)
        for step in self._steps(state, start):
            trace.start = self._alone(trace, self._step_formula, trace, *step, eta)
        return trace.start

    def _step_formula(self, trace: Trace, t: Time, s: Time, noisy: bool, eta: float) -> Linear:
        x0, eps, _ = trace.predict(trace.start, t)
        down = self._down(s, eta)
        scale, variance = s.transition(down) if noisy and eta > 0 else (1.0, 0.0)
        x = scale * (down.alpha * x0 + down.sigma * eps)
        return x + sqrt(variance) * trace.noise() if variance > 0 else x

    def _scales(self, state: State, options: Mapping[str, Any]) -> list[float]:
        eta = options.get("eta", 0.3)
        return [
            s.alpha / self._down(s, eta).alpha if noisy and eta > 0 and s.alpha else 1.0
            for _, s, noisy in self._steps(state, 0)
        ]

    def _always_draws(self, index: int, options: Any) -> bool:
        return options["eta"] > 0 and index + 1 != self.num_inference_steps

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.3,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """Returns (next state, state before its noise) from the network's output at a timestep.

        eta: in [0, 1].
        """
        self._require_steps(self._states.get())
        if not 0 <= eta <= 1:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.step: expected eta in [0, 1], got {eta!r}."
            )
        return self._advance(
            model_output,
            timestep,
            sample,
            options={"eta": eta},
            generator=generator,
            return_dict=return_dict,
        )
