"""The drop-in of singlestep DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...schedule import Time
from ...solvers import Linear, Trace
from .base import Generators
from .dpm import DPMSolver, own_timesteps
from .history import outputs, recall_multistep
from .quirks.dpm import singlestep
from .registered import register_to_config
from .state import State

_LOG = logging.getLogger("fastdiff")


class DPMSolverSinglestepScheduler(DPMSolver):
    """The drop-in of diffusers' `DPMSolverSinglestepScheduler` (Lu et al. 2022b, algorithm 1).

    Steps form groups of 1 … solver_order calls on the grid itself.

    Quirks:
    - Every call is a displayed step, and the later calls of a group start again from the state
      where the group began.
    - The stages are points of the grid, not fractions of a step.
    - Order 3 with `midpoint` leaves out the second difference; with sde-dpmsolver++ and `heun` its
      weight has -1/2 for +1/2.
    - Every call of a group draws noise.
    - lower_order_final becomes True in the configuration where the steps are no multiple of the
      order or the last level is 0.
    """

    def _held(self, options: Mapping[str, Any]) -> int:
        return 0  # the state of a group would need a further slot

    def _recall(self, state: State, driven: dict[str, Any]) -> bool:
        following = self.order_list[(state.last_index or 0) + 1 :]
        return bool(following) and recall_multistep(state, driven, following[0] - 1)

    _history = {"model_outputs": outputs, "sample": lambda _: None}
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
        """The order of each step: 1, 2, … repeatedly, lower at the end.

        Raises ValueError above order 3.
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
        else:  # a complete last group would end in a high order
            orders = group * (steps // c.solver_order - 1) + group[:-1] + [1]
        if c.final_sigmas_type == "zero":
            orders[-1] = 1
        return orders

    @property
    def order_list(self) -> list[int]:
        """The orders of the steps that set_timesteps found."""
        orders = self._state.extra.get("orders")
        return self.get_order_list(self.config.num_train_timesteps) if orders is None else [*orders]

    @order_list.setter
    def order_list(self, value: list[int]) -> None:
        self._state.set_extra("orders", tuple(value))

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
        visited = own_timesteps(self, num_inference_steps, timesteps)
        self._check_mu(mu)
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
                "fastdiff.%s: lower_order_final is now True, as %d steps of order %d that end at"
                " %r need.",
                type(self).__name__,
                len(visited),
                c.solver_order,
                c.final_sigmas_type,
            )
            self.register_to_config(lower_order_final=True)
        self._begin_on(visited, levels, device, orders=tuple(self.get_order_list(len(visited))))

    def _drawn_dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        return sample.dtype

    def _integrate(self, trace: Trace, times: list[Time], start: int) -> Linear:
        c, orders = self.config, self.order_list[: len(times) - 1]
        return singlestep(
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
            self._without_variance(model_output),
            timestep,
            sample,
            generator=generator,
            return_dict=return_dict,
        )
