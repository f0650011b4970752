"""The drop-in of DEIS (Zhang & Chen 2023)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...schedule import Time
from ...solvers import Linear, Trace, adams
from .integrators import Integrator, Rederived
from .registered import register_to_config


class DEISMultistepScheduler(Integrator):
    """The drop-in of diffusers' `DEISMultistepScheduler` (Zhang & Chen 2023, eq. 15, in ln rho).

    Quirks:
    - The grid ends in the first training level, not in clean data. A respaced grid has its last
      level twice, so its last step changes nothing.
    - lower_order_final counts only below 15 steps.
    - v- and flow predictions are read as if in the other space where use_flow_sigmas says
      otherwise.

    A step between equal timesteps, NaN in diffusers, changes nothing.
    """

    _repeats_last = True
    _misread = Rederived

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "deis",
        solver_type: str = "logrho",
        lower_order_final: bool = True,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        self._adopt("algorithm_type", ("deis",), ("dpmsolver", "dpmsolver++"), "deis")
        self._adopt("solver_type", ("logrho",), ("midpoint", "heun", "bh1", "bh2"), "logrho")
        self._setup()

    def set_timesteps(
        self, num_inference_steps: int, device: Any = None, mu: float | None = None
    ) -> None:
        """Sets num_inference_steps timesteps, spaced as configured.

        mu: the logarithm of a flow's shift, for this grid.
        """
        self._check_mu(mu)
        visited = self._spaced(num_inference_steps, self.config.num_train_timesteps)
        self._begin_on(*self._levels(visited, num_inference_steps, mu), device)

    def _integrate(self, trace: Trace, times: list[Time], start: int) -> Linear:
        c = self.config
        falls = c.lower_order_final and len(times) - 1 < 15
        return adams.deis(trace, times[start:], order=c.solver_order, lower_order_final=falls)

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """The next state from the network's output; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict=return_dict)
