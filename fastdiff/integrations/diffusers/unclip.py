"""The drop-in of unCLIP's DDPM (Ramesh et al. 2022)."""

from __future__ import annotations

from math import log, sqrt
from typing import Any

import numpy as np
from torch import Tensor

from ...schedule import Time
from ...solvers import Linear, Trace
from .base import Generators
from .pairwise import Pairwise
from .registered import register_to_config
from .state import State, Table


class UnCLIPScheduler(Pairwise):
    """The drop-in of diffusers' `UnCLIPScheduler` (Ho et al. 2020, eq. 6, 7 and 15).

    Its learned_range is that of Nichol & Dhariwal 2021, eq. 15.

    Quirks:
    - Without prev_timestep the step goes from t to t - 1, whatever the grid is.
    - Noise is added wherever t > 0, and its variance is at least 1e-20.

    A grid of one step is refused; diffusers divides by zero.
    """

    _reads = ("alphas_cumprod", "betas", "alphas")
    variance_type: Any = Table()

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        variance_type: str = "fixed_small_log",
        clip_sample: bool = True,
        clip_sample_range: float | None = 1.0,
        prediction_type: str = "epsilon",
        beta_schedule: str = "squaredcos_cap_v2",
    ):
        self._setup()

    def _prepare(self) -> None:
        c = self.config
        self.variance_type = c.variance_type
        for name, known in _KNOWN.items():
            if c[name] not in known:
                raise ValueError(
                    f"fastdiff.UnCLIPScheduler: expected {name} in {list(known)}, got {c[name]!r}."
                )
        super()._prepare()

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Sets num_inference_steps >= 2 timesteps from T - 1 to 0."""
        total = self.config.num_train_timesteps
        if not 2 <= num_inference_steps <= total:
            raise ValueError(
                "fastdiff.UnCLIPScheduler.set_timesteps: expected num_inference_steps in [2,"
                f" {total}], got {num_inference_steps}."
            )
        grid = (
            np.arange(0, num_inference_steps) * ((total - 1) / (num_inference_steps - 1))
        ).round()[::-1]
        self._begin(self._state_of(grid, device, steps=num_inference_steps))

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        host = state.values[start:]
        for t, before in zip(host, [*host[1:], host[-1] - 1], strict=True):
            step = self._step_formula
            trace.start = self._alone(trace, step, trace, int(t), int(before))
        return trace.start

    def _off_grid(
        self, trace: Trace, state: State, timestep: float, **options: Any
    ) -> Linear | None:
        return self._step_formula(trace, int(timestep), options["before"])

    def _step_formula(self, trace: Trace, t: int, before: int) -> Linear:
        here = self._point(t)
        there = self._point(before) if before >= 0 else self._final()
        if before == t - 1 and t < len(self.betas):
            beta, alpha = float(self.betas[t]), float(self.alphas[t])
            if abs(alpha + beta - 1.0) < 1e-6:  # no edit, but the table's rounding
                alpha = 1.0 - beta
        else:
            beta = here.transition(there)[1]
            alpha = 1.0 - beta
        learned = self.variance_type == "learned_range"
        return posterior(trace, here, there, beta, alpha, learned=learned)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        prev_timestep: Any = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The state at prev_timestep, or at t - 1, from the network's output at t; see diffusers.

        model_output has twice the channels with learned_range.
        """
        state = self._state
        t = self._whole(state, timestep)
        before = t - 1 if prev_timestep is None else self._whole(state, prev_timestep)
        return self._advance(
            model_output,
            t,
            sample,
            options={"before": before},
            generator=generator,
            return_dict=return_dict,
        )


def posterior(p: Trace, t: Time, s: Time, beta: float, alpha: float, *, learned: bool) -> Linear:
    """q(x_s | x_t, x0) with a given beta and alpha = 1 - beta.

    Those between t and s are passed because the rounding of diffusers' tables differs from that of
    the points.
    """
    x0, _, _ = p.predict(p.start, t)
    x = (s.alpha * beta / t.sigma**2) * x0 + (sqrt(alpha) * s.sigma**2 / t.sigma**2) * p.x()
    if t.t <= 0:
        return x
    variance = max((s.sigma / t.sigma) ** 2 * beta, 1e-20)
    return x + (
        p.noise(log_variance=(log(variance), log(beta))) if learned else sqrt(variance) * p.noise()
    )


_KNOWN = {
    "variance_type": ("fixed_small_log", "learned_range"),
    "prediction_type": ("epsilon", "sample"),
    "beta_schedule": ("squaredcos_cap_v2",),
}
