"""Drop-ins of multistep DPM-Solver(++) and of its inversion (Lu et al. 2022a, 2022b)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...schedule import Time
from ...solvers import Linear, Trace
from . import grids, tables
from .base import Generators
from .integrators import Integrator
from .quirks.dpm import ALGORITHMS, SOLVER_TYPES, Unrounded, multistep, step_orders
from .registered import register_to_config
from .state import State


class DPMSolver(Integrator):
    """What the DPM-Solver drop-ins share: the algorithms, and which of them draw noise."""

    _algorithms: tuple[str, ...] = ALGORITHMS

    def _setup(self) -> None:
        self._adopt("algorithm_type", self._algorithms, ("deis",), "dpmsolver++")
        self._adopt("solver_type", SOLVER_TYPES, ("logrho", "bh1", "bh2"), "midpoint")
        c = self.config
        if not c.algorithm_type.endswith("++") and c.get("final_sigmas_type") == "zero":
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected final_sigmas_type='sigma_min' with"
                f" algorithm_type={c.algorithm_type!r}, got 'zero'."
            )
        super()._setup()

    @property
    def _stochastic(self) -> bool:
        return self.config.algorithm_type.startswith("sde")

    def _always_draws(self, index: int, options: Mapping[str, Any]) -> bool:
        return self._stochastic

    def _check_prediction(self) -> None:
        c = self.config
        if c.prediction_type == "flow_prediction" and not c.algorithm_type.endswith("++"):
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected a prediction_type other than"
                f" 'flow_prediction' with algorithm_type={c.algorithm_type!r}. Choose dpmsolver++."
            )

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        self._check_prediction()
        return super()._formula(trace, state, start, **options)

    def _integrate(self, trace: Trace, times: list[Time], start: int) -> Linear:
        c, orders = self.config, step_orders(self.config, len(times) - 1)
        if c.algorithm_type == "sde-dpmsolver" and max(orders[start:]) > 2:
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected solver_order 1 or 2 with"
                f" algorithm_type='sde-dpmsolver', got {c.solver_order}."
            )
        return multistep(
            trace,
            times[start:],
            orders[start:],
            algorithm=c.algorithm_type,
            solver_type=c.solver_type,
        )


class DPMSolverMultistepScheduler(DPMSolver):
    """The drop-in of diffusers' `DPMSolverMultistepScheduler` (Lu et al. 2022b, algorithm 2).

    Quirks:
    - Order 3 takes the second divided difference for the second derivative, and with
      sde-dpmsolver++ its weight has -1/2 where the formula has +1/2.
    - Noise is drawn in float32 whatever the sample's dtype is, on the last step too.
    - lower_order_final counts only below 15 steps.
    - A v-prediction with use_flow_sigmas and a flow prediction without are read as if in the other
      space.
    - Before set_timesteps `sigmas` has the opposite order of `timesteps`, so add_noise uses
      mirrored levels.

    A step between equal timesteps, whose differences are infinite in diffusers, changes nothing. mu
    applies to the grid of its set_timesteps alone.
    """

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
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ):
        self._setup()

    def _rounds(self, kind: str) -> bool:
        return kind in ("karras", "lu") and self.config.beta_schedule != "squaredcos_cap_v2"

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Sets a number of steps, or timesteps to visit.

        mu: the logarithm of a flow's shift, for this grid.
        """
        visited = own_timesteps(self, num_inference_steps, timesteps, "use_lu_lambdas")
        self._check_mu(mu)
        if visited is None:
            assert num_inference_steps is not None
            visited = self._spaced(
                num_inference_steps, self.config.num_train_timesteps - self._clipped()
            )
        steps = len(visited) if num_inference_steps is None else num_inference_steps
        self._begin_on(*self._levels(visited, steps, mu), device)

    def _drawn_dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        return tables.FLOAT

    @property
    def _typed_as_output(self) -> bool:
        """diffusers casts to the dtype of what it integrates, x0 or the output as eps."""
        c = self.config
        return not c.algorithm_type.endswith("++") and c.prediction_type == "epsilon"

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state from the network's output; see diffusers.

        variance_noise replaces a draw from the generator.
        """
        noise = variance_noise if self._stochastic else None
        return self._advance(
            self._without_variance(model_output),
            timestep,
            sample,
            generator=generator,
            noise=noise,
            return_dict=return_dict,
        )


class DPMSolverMultistepInverseScheduler(DPMSolver):
    """The drop-in of diffusers' `DPMSolverMultistepInverseScheduler`, from data towards noise.

    Quirks, beyond those of the multistep class:
    - Repeated timesteps are dropped from `timesteps` but not from `sigmas`, so the steps after them
      use the levels of their neighbours.
    - Respaced levels have their last one twice, so the last step changes nothing.
    - With use_flow_sigmas the grid goes towards data all the same.
    - Noise has the dtype of the network's output.

    The SDE algorithms, whose steps towards noise are NaN in diffusers, are refused when a step is
    taken.
    """

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
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
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
        self._setup()

    _repeats_last = True
    _rises = True
    _traces = Unrounded

    def _initial(self) -> State:
        state = super()._initial()
        state.tables["timesteps"] = state.tables["timesteps"].flip(0)
        return state

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None) -> None:
        """Sets num_inference_steps rising timesteps, fewer where two would be equal."""
        if num_inference_steps is None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.set_timesteps: expected num_inference_steps, got"
                " None."
            )
        last = self.config.num_train_timesteps - self._clipped()
        self.noisiest_timestep = last - 1
        visited, levels = self._levels(self._rising(num_inference_steps, last), num_inference_steps)
        if self._kind() == "karras":
            visited = visited.astype(np.int64)
        levels = np.append(levels, levels[-1] if self._kind() else self._trained()[last - 1])
        _, first = np.unique(visited, return_index=True)
        levels = levels.astype(tables.numpy_float())
        self._begin(self._state_of(visited[np.sort(first)], levels, device))

    def _integrate(self, trace: Trace, times: list[Time], start: int) -> Linear:
        if self._stochastic:
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected an algorithm_type without noise for"
                f" steps towards noise, got {self.config.algorithm_type!r}. Choose dpmsolver++."
            )
        return super()._integrate(trace, times, start)

    def _rising(self, steps: int, last: int) -> Any:
        """The timesteps of the multistep class in rising order, without the noisiest one.

        With the spacing trailing the noisiest one is included.
        """
        c = self.config
        if c.timestep_spacing == "linspace":
            return np.linspace(0, last - 1, steps + 1).round()[:-1].astype(np.int64)
        if c.timestep_spacing == "leading":
            return np.arange(0, steps) * (last // (steps + 1)) + c.steps_offset
        return self._spaced(steps, last)[::-1].copy()

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The next, noisier state from the network's output; see diffusers."""
        return self._advance(
            self._without_variance(model_output),
            timestep,
            sample,
            generator=generator,
            noise=variance_noise,
            return_dict=return_dict,
        )


def own_timesteps(scheduler: Integrator, steps: int | None, timesteps: Any, *further: str) -> Any:
    """The user's timesteps as int64, or None.

    Raises ValueError unless exactly one of both arguments is given, and for timesteps where the
    levels are respaced; `further` names more configuration flags that respace.
    """
    name = type(scheduler).__name__
    grids.exactly_one(name, steps, timesteps)
    if timesteps is None:
        return None
    for flag in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", *further):
        if scheduler.config.get(flag):
            raise ValueError(f"fastdiff.{name}.set_timesteps: expected no timesteps with {flag}.")
    return np.array(timesteps).astype(np.int64)
