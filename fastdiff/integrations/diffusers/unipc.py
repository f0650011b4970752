"""The drop-in of UniPC (Zhao et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...schedule import Time
from ...solvers import Linear, Trace, unipc
from . import grids
from .history import MULTISTEP, outputs
from .integrators import Integrator
from .registered import register_to_config
from .state import State

_SHORT_OF_NOISE = 1e-6  # a flow grid begins this far below pure noise


class UniPCMultistepScheduler(Integrator):
    """The drop-in of diffusers' `UniPCMultistepScheduler` (Zhao et al. 2023, algorithms 5 to 8).

    Predictor and corrector share one network call.

    Quirks:
    - Respaced and flow levels with final_sigmas_type="sigma_min" have their last level twice.
    - A flow grid that begins at 1 begins 1e-6 below.
    - thresholding has no effect with predict_x0=False.
    - v- and flow predictions are read as if in the other space where use_flow_sigmas says
      otherwise.

    Steps into clean data are of first order and steps between equal timesteps change nothing; in
    diffusers both are NaN with solver_type="bh1", without lower_order_final and with
    predict_x0=False. solver_p, another scheduler as the predictor, is refused.
    """

    _widens = False  # diffusers returns the sample's dtype

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
        predict_x0: bool = True,
        solver_type: str = "bh2",
        lower_order_final: bool = True,
        disable_corrector: list[int] = [],  # noqa: B006  # diffusers' default, never changed
        solver_p: Any = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        final_sigmas_type: str = "zero",
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        shift_terminal: float | None = None,
    ) -> None:
        self._setup()

    def _setup(self) -> None:
        self._adopt("solver_type", ("bh1", "bh2"), ("midpoint", "heun", "logrho"), "bh2")
        c, where = self.config, f"fastdiff.{type(self).__name__}"
        if c.solver_p is not None:
            raise ValueError(
                f"{where}: expected solver_p=None, got {type(c.solver_p).__name__}. Use that"
                " scheduler alone."
            )
        if c.shift_terminal is not None and not c.use_flow_sigmas:
            raise ValueError(
                f"{where}: expected no shift_terminal without use_flow_sigmas, got"
                f" {c.shift_terminal!r}."
            )
        super()._setup()

    _history = {
        **MULTISTEP,
        "timestep_list": outputs,
        "last_sample": lambda _: None,
        "this_order": lambda _: 1,
    }

    def _held(self, options: Mapping[str, Any]) -> int:
        return 0  # the last state would need a further slot

    def _recall(self, state: State, driven: dict[str, Any]) -> bool:
        c, last = self.config, state.last_index or 0
        rest = len(state.values) - last if c.lower_order_final else c.solver_order
        known = super()._recall(state, driven)
        driven["this_order"] = min(c.solver_order, rest, driven["lower_order_nums"])
        return known

    @classmethod
    def _limits_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return super()._limits_of(config) if config.get("predict_x0", True) else {}

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Sets a number of steps, or with use_flow_sigmas the levels before their shift.

        mu: the shift's parameter, required with use_dynamic_shifting.
        """
        c, where = self.config, f"fastdiff.{type(self).__name__}.set_timesteps"
        if c.use_dynamic_shifting and mu is None:
            raise ValueError(f"{where}: expected mu with use_dynamic_shifting, got None.")
        if sigmas is not None and not c.use_flow_sigmas:
            raise ValueError(f"{where}: expected no sigmas without use_flow_sigmas.")
        passed = None if sigmas is None else np.array(sigmas, dtype=np.float64)
        steps = num_inference_steps if passed is None else len(passed)
        if steps is None:
            raise ValueError(f"{where}: expected num_inference_steps or sigmas, got neither.")
        self._begin_on(
            *self._shifted(self._spaced(steps, c.num_train_timesteps), steps, passed, mu), device
        )

    def _shifted(
        self, visited: NDArray[Any], steps: int, passed: NDArray[Any] | None, mu: float | None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """(timesteps, levels); a flow's timesteps are its levels times num_train_timesteps."""
        c = self.config
        if not c.use_flow_sigmas:
            return self._levels(visited, steps)
        if self._kind() == "karras":
            levels = grids.respaced(
                "karras", c, (self._trained() if passed is None else passed)[::-1], steps
            )
            levels = levels / (levels + 1.0)
        elif self._kind() == "flow":
            levels = self._flow_levels(steps, passed, mu)
        else:
            return self._levels(visited, steps)
        return levels * c.num_train_timesteps, levels

    def _flow_levels(
        self, steps: int, passed: NDArray[Any] | None, mu: float | None
    ) -> NDArray[Any]:
        c = self.config
        u = np.linspace(1, 1 / c.num_train_timesteps, steps + 1)[:-1] if passed is None else passed
        if not c.use_dynamic_shifting:
            levels = c.flow_shift * u / (1 + (c.flow_shift - 1) * u)
        else:
            assert mu is not None
            rate = math.exp(mu) if c.time_shift_type == "exponential" else mu
            levels = rate / (rate + (1 / u - 1))
        if c.shift_terminal:  # stretched so that the last level is shift_terminal
            levels = 1 - (1 - levels) / ((1 - levels[-1]) / (1 - c.shift_terminal))
        if abs(levels[0] - 1) < _SHORT_OF_NOISE:
            levels[0] -= _SHORT_OF_NOISE
        return levels

    def _last_level(self, levels: NDArray[Any]) -> float:
        last = super()._last_level(levels)
        return float(levels[-1]) if last > 0 and self._kind() else last

    def _integrate(self, trace: Trace, times: list[Time], start: int) -> Linear:
        c = self.config
        if not c.predict_x0 and c.prediction_type == "flow_prediction":
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected predict_x0=True with"
                " prediction_type='flow_prediction', got False."
            )
        return unipc.unipc(
            trace,
            times[start:],
            order=c.solver_order,
            solver_type=c.solver_type,
            lower_order_final=c.lower_order_final,
            predict_x0=c.predict_x0,
            disable_corrector=[i - start for i in c.disable_corrector],
        )

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """The next state from the network's output; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict=return_dict)
