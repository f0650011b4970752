"""DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b) under diffusers' names: multistep, its
inversion, and singlestep.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ...schedule import Time
from ...solvers import Linear, Trace
from . import quirks_dpm, tables
from .base import Generators
from .integrators import Integrator
from .state import State

_LOG = logging.getLogger("fastdiff")


class _DPM(Integrator):
    """What the three share: the algorithms, and which of them draw noise."""

    _algorithms: tuple[str, ...] = quirks_dpm.ALGORITHMS

    def _setup(self) -> None:
        self._adopt("algorithm_type", self._algorithms, ("deis",), "dpmsolver++")
        self._adopt("solver_type", quirks_dpm.SOLVER_TYPES, ("logrho", "bh1", "bh2"), "midpoint")
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
        c, orders = self.config, quirks_dpm.orders(self.config, len(times) - 1)
        if c.algorithm_type == "sde-dpmsolver" and max(orders[start:]) > 2:
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected solver_order 1 or 2 with"
                f" algorithm_type='sde-dpmsolver', got {c.solver_order}."
            )
        return quirks_dpm.multistep(
            trace,
            times[start:],
            orders[start:],
            algorithm=c.algorithm_type,
            solver_type=c.solver_type,
        )


class DPMSolverMultistepScheduler(_DPM):
    """DPM-Solver(++) with remembered predictions (Lu et al. 2022b, algorithm 2); diffusers'
    `DPMSolverMultistepScheduler`.

    Quirks kept: order 3 takes the second divided difference for the second derivative, and with
        sde-dpmsolver++ its
    weight has -1/2 where the formula has +1/2; noise is drawn in float32 whatever the sample's
    dtype, on the last step too; lower_order_final counts only below 15 steps; a v-prediction with
    use_flow_sigmas and a flow prediction without are read as if in the other space; before
    set_timesteps `sigmas` runs against `timesteps`, so add_noise takes levels mirrored. Two equal
    timesteps, whose differences are infinite in diffusers, make a step of nothing. mu holds for one
    grid.
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
        """One of: a number of steps, or timesteps to visit. mu: the logarithm of a flow's shift,
        for this grid.
        """
        visited = _visited(self, num_inference_steps, timesteps, "use_lu_lambdas")
        self._shift(mu)
        if visited is None:
            assert num_inference_steps is not None
            visited = self._spaced(
                num_inference_steps, self.config.num_train_timesteps - self._clipped()
            )
        steps = len(visited) if num_inference_steps is None else num_inference_steps
        self._arrange(*self._levels(visited, steps, mu), device)

    @staticmethod
    def _draw(model_output: Tensor, sample: Tensor, generator: Generators) -> Tensor:
        return randn_tensor(
            tuple(sample.shape), generator=generator, device=model_output.device, dtype=tables.FLOAT
        )

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state from the network's output; see diffusers. variance_noise is used in a
        draw's place.
        """
        noise = variance_noise if self._stochastic else None
        return self._advance(
            self._mean(model_output),
            timestep,
            sample,
            generator=generator,
            noise=noise,
            return_dict=return_dict,
        )


class DPMSolverMultistepInverseScheduler(_DPM):
    """The same from data towards noise; diffusers' `DPMSolverMultistepInverseScheduler`.

    Quirks kept: those of the multistep class; repeated timesteps are dropped from `timesteps` but
        not from `sigmas`, so the
    steps after them take the levels of their neighbours; respaced levels end in their last one
    twice, so the last step is nothing; with use_flow_sigmas the grid runs towards data all the
    same; noise has the network output's dtype. The SDE algorithms, whose steps towards noise are
    NaN in diffusers, are refused when a step is taken.
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

    def _initial(self) -> State:
        state = super()._initial()
        state.timesteps = state.timesteps.flip(0)
        state.host = state.host[::-1]
        state.locate()
        return state

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None) -> None:
        """num_inference_steps rising timesteps, spaced as configured, fewer where two would be
        equal.
        """
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
        self._start(visited[np.sort(first)], levels.astype(tables.numpy_float()), device)

    def _integrate(self, trace: Trace, times: list[Time], start: int) -> Linear:
        if self._stochastic:
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected an algorithm_type without noise for"
                f" steps towards noise, got {self.config.algorithm_type!r}. Choose dpmsolver++."
            )
        return super()._integrate(trace, times, start)

    def _rising(self, steps: int, last: int) -> Any:
        """The timesteps of the multistep class upwards: the ones below the noisiest, except for
        trailing.
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
            self._mean(model_output),
            timestep,
            sample,
            generator=generator,
            noise=variance_noise,
            return_dict=return_dict,
        )


class DPMSolverSinglestepScheduler(_DPM):
    """DPM-Solver(++) in groups of 1 … solver_order calls over the grid itself (Lu et al. 2022b,
    algorithm 1); diffusers' `DPMSolverSinglestepScheduler`.

    Quirks kept: every call is a displayed step, and the later ones of a group start over from the
        group's state; the stages
    lie on the grid and not at fractions of a step; order 3 with `midpoint` leaves out the second
    difference, and with sde-dpmsolver++ and `heun` its weight has -1/2 for +1/2; each call of a
    group draws noise of its own; lower_order_final becomes True in the configuration where the
    steps do not divide by the order or the last level is 0.
    """

    _algorithms = ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")

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
        lower_order_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        self._setup()

    def get_order_list(self, num_inference_steps: int) -> list[int]:
        """The order of each step: 1, 2, … again and again, falling at the end. Raises ValueError
        above order 3.
        """
        c, steps = self.config, num_inference_steps
        if c.solver_order not in (1, 2, 3):
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected solver_order 1, 2 or 3, got"
                f" {c.solver_order}."
            )
        group = list(range(1, c.solver_order + 1))
        rest = steps % c.solver_order
        if not c.lower_order_final:
            orders = group * (steps // c.solver_order)
        elif c.solver_order == 1 or rest:
            orders = group * (steps // c.solver_order) + group[:rest]
        else:  # the last group whole would end in a high order
            orders = group * (steps // c.solver_order - 1) + group[:-1] + [1]
        if c.final_sigmas_type == "zero":
            orders[-1] = 1
        return orders

    @property
    def order_list(self) -> list[int]:
        """The orders of the current timesteps' steps."""
        return self.get_order_list(len(self._state.host))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """One of: a number of steps, or timesteps to visit. mu: the logarithm of a flow's shift,
        for this grid.
        """
        visited = _visited(self, num_inference_steps, timesteps)
        self._shift(mu)
        if visited is None:
            assert num_inference_steps is not None
            visited = self._spaced(
                num_inference_steps, self.config.num_train_timesteps - self._clipped()
            )
        visited, levels = self._levels(visited, num_inference_steps or len(visited), mu)
        c = self.config
        if not c.lower_order_final and (
            len(visited) % c.solver_order or c.final_sigmas_type == "zero"
        ):
            _LOG.warning(
                "fastdiff.%s: lower_order_final is now True, which %d steps of order %d that end at"
                " %r need.",
                type(self).__name__,
                len(visited),
                c.solver_order,
                c.final_sigmas_type,
            )
            self.register_to_config(lower_order_final=True)
        self._arrange(visited, levels, device)

    def _integrate(self, trace: Trace, times: list[Time], start: int) -> Linear:
        c, orders = self.config, self.get_order_list(len(times) - 1)
        return quirks_dpm.singlestep(
            trace,
            times[start:],
            orders[start:],
            algorithm=c.algorithm_type,
            solver_type=c.solver_type,
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
            self._mean(model_output), timestep, sample, generator=generator, return_dict=return_dict
        )


def _visited(scheduler: Integrator, steps: int | None, timesteps: Any, *further: str) -> Any:
    """The user's own timesteps as int64, or None. Raises ValueError unless exactly one of both
    arguments is given, and for timesteps where the levels are respaced.
    """
    where = f"fastdiff.{type(scheduler).__name__}.set_timesteps"
    if (steps is None) == (timesteps is None):
        raise ValueError(f"{where}: expected one of num_inference_steps and timesteps.")
    if timesteps is None:
        return None
    for flag in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", *further):
        if scheduler.config.get(flag):
            raise ValueError(f"{where}: expected no timesteps with {flag}.")
    return np.array(timesteps).astype(np.int64)
