"""The drop-in of SA-Solver (Xue et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...schedule import Time
from ...solvers import Linear, Trace
from ...solvers import sa as native
from .base import Generators
from .history import MULTISTEP, outputs
from .integrators import Integrator
from .quirks import sa as quirks
from .registered import register_to_config
from .state import State, Table


def _default_tau(t: float) -> float:
    """diffusers' default tau: 1, the reverse SDE, between timesteps 200 and 800, else 0."""
    return 1.0 if 200 <= t <= 800 else 0.0


class SASolverScheduler(Integrator):
    """The drop-in of diffusers' `SASolverScheduler` (Xue et al. 2023, eq. 14 to 18).

    It has a stochastic Adams predictor and corrector.

    Quirks:
    - Formulas of order 2 have a further term of O(h³).
    - A draw is taken from the generator in every step, also where tau is 0.
    - The grid ends in the first training level. A respaced grid has its last level twice.
    - tau_func=None is 1 between timesteps 200 and 800 and 0 elsewhere.

    A step between equal timesteps changes nothing. thresholding works with
    algorithm_type="noise_prediction" too, where diffusers fails.
    """

    _repeats_last = True
    _reads_timestep = True  # tau's
    _widens = False  # diffusers returns the sample's dtype
    tau_func: Any = Table()  # tau of a timestep

    def _prepare(self) -> None:
        super()._prepare()
        self.tau_func = self.config.tau_func or _default_tau
        self.predict_x0 = self.config.algorithm_type == "data_prediction"

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        predictor_order: int = 2,
        corrector_order: int = 2,
        prediction_type: str = "epsilon",
        tau_func: Callable[[Any], Any] | None = None,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "data_prediction",
        lower_order_final: bool = True,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):
        self._adopt("algorithm_type", ("data_prediction", "noise_prediction"), (), "")
        self._setup()

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None) -> None:
        """Sets num_inference_steps timesteps, spaced as configured."""
        if num_inference_steps is None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.set_timesteps: expected num_inference_steps, got"
                " None."
            )
        visited = self._spaced(
            num_inference_steps, self.config.num_train_timesteps - self._clipped()
        )
        self._begin_on(*self._levels(visited, num_inference_steps), device)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) noise at training timesteps [B], int64."""
        alpha, sigma = self._mixing(original_samples, timesteps)
        return alpha * original_samples + sigma * noise

    _history = {
        **MULTISTEP,
        "timestep_list": outputs,
        "last_sample": lambda _: None,
        "last_noise": lambda _: None,
        "this_predictor_order": lambda _: 1,
        "this_corrector_order": lambda _: 1,
    }

    def _recall(self, state: State, driven: dict[str, Any]) -> bool:
        return False  # the slots have sums of what diffusers remembers

    def _sums(self, state: State) -> bool:
        return True

    def _always_draws(self, index: int, options: Mapping[str, Any]) -> bool:
        return True

    def _tau(self, t: Time) -> float:
        return float(self.tau_func(int(t.t)))

    def _integrate(self, trace: Trace, times: list[Time], start: int) -> Linear:
        c = self.config
        orders = {"predictor_order": c.predictor_order, "corrector_order": c.corrector_order}
        if c.algorithm_type == "data_prediction":
            return native.sa(
                trace,
                times[start:],
                **orders,
                tau=self._tau,
                lower_order_final=c.lower_order_final,
                as_published=True,
            )
        if c.prediction_type == "flow_prediction":
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected algorithm_type='data_prediction' with "
                "prediction_type='flow_prediction', got 'noise_prediction'."
            )
        return quirks.noise_prediction(
            trace, times[start:], **orders, tau=self._tau, lower_order_final=c.lower_order_final
        )

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state from the network's output; see diffusers."""
        return self._advance(
            self._without_variance(model_output),
            timestep,
            sample,
            generator=generator,
            return_dict=return_dict,
        )
