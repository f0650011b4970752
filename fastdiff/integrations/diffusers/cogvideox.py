"""Drop-ins of CogVideoX's DDIM and DPM-Solver++ (Yang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, expm1, sqrt
from typing import Any

import torch
from torch import Tensor

from ...backend.eager.common import compute_dtype
from ...schedule import Time
from ...solvers import Linear, Trace
from . import tables
from .base import Generators
from .ddim import Strided
from .pairwise import Pairwise
from .registered import register_to_config
from .state import State


class CogVideoX(Strided):
    """A scheduler over training tables whose signal-to-noise ratio is divided.

    alpha_bar is that of the betas with its SNR alpha_bar/(1 - alpha_bar) divided by
    snr_shift_scale (Esser et al. 2024, section 5.3.2).
    """

    def _prepare(self) -> None:
        name, c = type(self).__name__, self.config
        curve = "trained" if c.trained_betas is not None else c.beta_schedule
        if curve not in ("trained", "linear", "scaled_linear", "squaredcos_cap_v2"):
            raise NotImplementedError(
                f"fastdiff.{name}: expected beta_schedule in ['linear', 'scaled_linear',"
                f" 'squaredcos_cap_v2'], got {curve!r}."
            )
        if curve == "scaled_linear":
            ends = c.beta_start**0.5, c.beta_end**0.5
            self.betas = torch.linspace(*ends, c.num_train_timesteps, dtype=torch.float64) ** 2
        else:
            self.betas = tables.betas({**c, "rescale_betas_zero_snr": False}, name)
        self.alphas = 1.0 - self.betas
        alpha_bar, scale = torch.cumprod(self.alphas, dim=0), c.snr_shift_scale
        alpha_bar = alpha_bar / (scale + (1 - scale) * alpha_bar)
        self.alphas_cumprod = (
            tables.zero_terminal(alpha_bar) if c.rescale_betas_zero_snr else alpha_bar
        )
        self._set_final()

    @classmethod
    def _limits_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return {}


class CogVideoXDDIMScheduler(CogVideoX):
    """The drop-in of diffusers' `CogVideoXDDIMScheduler` (Song et al. 2021, eq. 12 with eta = 0).

    Quirks:
    - The step from t goes to t - T // n whatever the next timestep is.
    - clip_sample, clip_sample_range, sample_max_value, eta, use_clipped_model_output, generator and
      variance_noise have no effect.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.0120,
        beta_schedule: str = "scaled_linear",
        trained_betas: Any = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 3.0,
    ):
        self._setup()

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        for t in state.values[start:]:
            trace.start = self._alone(trace, _euler, trace, *self._pair(state, t))
        return trace.start

    def _off_grid(
        self, trace: Trace, state: State, timestep: float, **options: Any
    ) -> Linear | None:
        return _euler(trace, *self._pair(state, timestep))

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
        """The state at t - T // n from the network's output at t; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict=return_dict)


class CogVideoXDPMScheduler(CogVideoX, Pairwise):
    """The drop-in of diffusers' `CogVideoXDPMScheduler` (Lu et al. 2022, SDE-DPM-Solver++ 2M).

    The caller holds the solver's memory: it passes the x0 of the step before and its timestep.

    Quirks:
    - The step from t goes to t - T // n whatever the next timestep is; without an x0 of the step
      before, and where t - T // n is negative, it is of first order.
    - Those of `CogVideoXDDIMScheduler`, except for the generator: a step of second order takes two
      draws from it and uses the second one.
    - A step of first order returns a tuple whatever return_dict says, which is False by default.
    """

    _compatibles = CogVideoX._compatibles

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.0120,
        beta_schedule: str = "scaled_linear",
        trained_betas: Any = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 3.0,
    ):
        self._setup()

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        """The plan of a pipeline's loop: each step but the first and last is of second order."""
        before: tuple[Time, Linear] | None = None
        for t in state.values[start:]:
            last = before if t >= self._width(state) else None
            here, there = self._pair(state, t)
            x0 = trace.predict(trace.start, here).x0
            trace.start = self._alone(trace, _multistep, trace, here, there, x0, last)
            before = here, trace.keep(x0)
        return trace.start

    def _off_grid(
        self, trace: Trace, state: State, timestep: float, **options: Any
    ) -> Linear | None:
        """One step; where it continues from a timestep `back`, the second row of its plan."""
        back, before = options.get("back"), None
        if back is not None:
            point = self._point(back)
            before = point, trace.keep(trace.predict(trace.start, point).x0)
            trace.start = trace.x()
        here, there = self._pair(state, timestep)
        x0 = trace.predict(trace.start, here).x0
        return _multistep(trace, here, there, x0, before)

    def _drawn_dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        return sample.dtype

    def step(
        self,
        model_output: Tensor,
        old_pred_original_sample: Tensor | None,
        timestep: Any,
        timestep_back: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = False,
    ) -> Any:
        """The state at t - T // n, and the x0 that the next step takes as its old one.

        Args:
            old_pred_original_sample: the x0 of the step before, at timestep_back; None at the first
                step.
        """
        state = self._state
        if not sample.is_floating_point():
            raise ValueError(
                "fastdiff.CogVideoXDPMScheduler.step: expected a floating sample, got"
                f" {sample.dtype}."
            )
        t, old = self._whole(state, timestep), old_pred_original_sample
        second = old is not None and t >= self._width(state)
        if second and (timestep_back is None or old.shape != sample.shape):  # type: ignore[union-attr]
            got = None if timestep_back is None else list(old.shape)  # type: ignore[union-attr]
            raise ValueError(
                "fastdiff.CogVideoXDPMScheduler.step: expected timestep_back and"
                f" old_pred_original_sample of shape {list(sample.shape)}, got {got}. Pass the x0"
                " and the timestep of the step before."
            )
        back = self._whole(state, timestep_back) if second else None
        traced = self._traced_off_grid(state, float(t), {"back": back})
        call = len(traced.calls) - 1
        noise = seed = slots = slots_out = None
        if generator is None:
            seed = self._seed(state)
        else:
            for _ in range(2 if second else 1):
                noise = self._draw(sample, sample, generator)
        sample = self._widened(sample, model_output)
        if second:
            assert old is not None
            sample = self._widened(sample, old)
            slots = old.to(device=sample.device, dtype=compute_dtype(sample))[None]
            slots_out = torch.empty_like(slots)
        x, x0, _ = traced.execute(
            call,
            sample,
            model_output,
            noise=noise,
            seed=seed,
            slots=slots,
            slots_out=slots_out,
            with_x0=True,
        )
        if return_dict and second:
            return self._output(x, x0)
        return x, x0


def _euler(p: Trace, t: Time, s: Time) -> Linear:
    """x_s = (sigma_s/sigma_t) x + (alpha_s - alpha_t sigma_s/sigma_t) x0."""
    x0 = p.predict(p.start, t).x0
    ratio = s.sigma / t.sigma
    return ratio * p.x() + (s.alpha - t.alpha * ratio) * x0


def _multistep(
    p: Trace, t: Time, s: Time, x0: Linear, before: tuple[Time, Linear] | None
) -> Linear:
    """x_s = (sigma_s/sigma_t) e^-h x + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z.

    h is the step in lambda = log(alpha/sigma). D is x0, or with a step before, of width h_0, the
    line x0 + (h/h_0)(x0 - x0_before)/2.
    """
    h = 0.5 * (s.log_snr - t.log_snr)
    if before is not None:
        half = h / (t.log_snr - before[0].log_snr)
        x0 = (1.0 + half) * x0 - half * before[1]
    fresh = -expm1(-2.0 * h)
    x = (s.sigma / t.sigma * exp(-h)) * p.x() + (s.alpha * fresh) * x0
    return x + (s.sigma * sqrt(fresh)) * p.noise() if s.sigma > 0 else x
