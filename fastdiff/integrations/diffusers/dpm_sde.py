"""The drop-in of DPM-Solver++ on the reverse SDE in two stages (Lu et al. 2022b)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ...solvers import Linear, Trace, dpm_sde
from ...whole import whole
from . import grids, tables
from .edm import named_noise
from .karras import SecondOrder
from .registered import register_to_config
from .state import State


class DPMSolverSDEScheduler(SecondOrder):
    """The drop-in of diffusers' `DPMSolverSDEScheduler`.

    Each step has two stages, both with noise of one Brownian path over sigma. The noise is
    fastdiff's, with the distribution of diffusers' Brownian tree: in a step from sigma over its
    middle to sigma_s the draws of both stages have the correlation sqrt((sigma - middle)/(sigma -
    sigma_s)), and steps are independent. So samples have diffusers' distribution, and with
    s_noise=0 its numbers.

    Quirks:
    - The path's time is sigma, although the SDE's noise has another correlation.
    - There is no generator: noise_sampler_seed, an int or a list of one per sample, determines the
      noise, which is the same after every set_timesteps.
    - Timesteps are float64, 2n - 1 for n steps.
    - beta_start and beta_end have other defaults than in most classes.
    - init_noise_sigma is sqrt(sigma_max² + 1) with timestep_spacing="leading".

    prediction_type="sample", which diffusers refuses, works.
    """

    _history = {name: lambda _: None for name in ("sample", "noise_sampler", "mid_point_sigma")}

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
        noise_sampler_seed: int | list[int] | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):
        self._setup()

    def _grid(
        self, steps: int, device: Any, total: int | None = None, timesteps: Any = None
    ) -> State:
        c = self.config
        offset = c.steps_offset if c.timestep_spacing == "leading" else 0
        visited = grids.spaced(
            type(self).__name__, total or c.num_train_timesteps, steps, c.timestep_spacing, offset
        )
        trained = tables.sigmas(self.alphas_cumprod)
        levels = np.interp(visited, np.arange(len(trained)), trained)
        visited, levels = self._respaced(
            visited, levels, np.log(trained), steps, whole_karras=False
        )
        logs = -np.log(levels)
        middle = np.exp(-(logs[:-1] + np.diff(logs) * 0.5))
        between = np.stack(
            [grids.timestep_of(middle, np.log(trained)), visited[1:]], axis=1
        ).flatten()
        ended = grids.ended(levels, 0.0)
        shown = np.concatenate([ended[:1], ended[1:-1].repeat(2), ended[-1:]])
        state = self._state_of(np.concatenate([visited[:1], between]), shown, device, steps=steps)
        seed = whole(c.noise_sampler_seed)
        if seed is not None:
            state.seed = seed % 2**64
        return state

    def set_timesteps(
        self, num_inference_steps: int, device: Any = None, num_train_timesteps: int | None = None
    ) -> None:
        """Sets num_inference_steps steps, spaced as configured over num_train_timesteps."""
        self._begin(self._grid(num_inference_steps, device, num_train_timesteps))

    def _stage_scale(self, state: State, index: int) -> float | None:
        rounded = tables.numpy_float()  # diffusers scales in the precision of its table
        level = rounded(state.times[index].sigma)
        if not self._begins(state, index):
            level = np.sqrt(rounded(state.times[index - 1].sigma) * level)
        return float(np.hypot(level, rounded(1.0)))

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        for step in self._steps(state, start):
            trace.start = dpm_sde.dpmpp_sde(trace, step, clock="rho", **options)
        return trace.start

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        return_dict: bool = True,
        s_noise: float = 1.0,
    ) -> Any:
        """The next state or stage from the network's output at a timestep; see diffusers."""
        seeds, noise = self.config.noise_sampler_seed, None
        if isinstance(seeds, (list, tuple)):
            index = self._index(self._state, timestep)
            noise = named_noise(sample, list(seeds), 0 if index is None else index)
        return self._advance(
            model_output,
            timestep,
            sample,
            options={"s_noise": s_noise},
            noise=noise,
            return_dict=return_dict,
        )
