"""What the drop-ins of exponential integrators share: their grids and their two spaces.

Grids are of noise levels at whole timesteps, in variance-preserving or flow space. diffusers keeps
one table of `sigmas` for both: rho = sigma/alpha with alpha = 1/sqrt(1 + rho²), or with
use_flow_sigmas sigma itself with alpha = 1 - sigma. The network gets the state unscaled, and
timesteps truncated to integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...prediction import Coefficients, Parametrization, normalize
from ...schedule import Time
from ...solvers import Linear, Trace
from . import grids, history, tables
from .indexed import Indexed
from .state import State
from .vp import TrainingTables

_PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")


class Misread(Parametrization):
    """An output read in another space than the one it was trained in.

    Quirk: v in flow space is not divided by alpha² + sigma² (x0 = alpha x - sigma v), and a flow in
    variance-preserving space is x0 = x - rho u.
    """

    def at(self, alpha: float, sigma: float) -> Coefficients:
        if normalize(self.prediction_type) == "v":
            return Coefficients(1.0, alpha, -sigma, sigma, alpha)
        return Coefficients(1.0, 1.0, -sigma / alpha, (1.0 - alpha) / sigma, 1.0)


class Rederived(Misread):
    """`Misread` for a class that converts every output to eps = (x - alpha x0)/sigma.

    Quirk: where it reads a flow it takes rho for sigma.
    """

    def at(self, alpha: float, sigma: float) -> Coefficients:
        c = super().at(alpha, sigma)
        level = sigma if normalize(self.prediction_type) == "v" else sigma / alpha
        eps_x, eps_out = (1.0 - alpha * c.x0_x) / level, -alpha * c.x0_out / level
        return Coefficients(
            1.0, (1.0 - sigma * eps_x) / alpha, -sigma * eps_out / alpha, eps_x, eps_out
        )


class Integrator(Indexed, TrainingTables):
    """A scheduler of an exponential integrator.

    Attributes:
        alpha_t, sigma_t, lambda_t: [T] of the training timesteps, on the CPU.
    """

    _returns_x0 = False
    _has_history = True
    _history = history.MULTISTEP
    _last_for_unknown = True
    _misread: type[Misread] = Misread
    _rises = False  # whether respaced levels go towards noise
    # whether a respaced grid has its last level twice; otherwise final_sigmas_type chooses the last
    _repeats_last = False

    alpha_t: Tensor
    sigma_t: Tensor
    lambda_t: Tensor

    def _prepare(self) -> None:
        grids.one_kind(type(self).__name__, self.config)
        super()._prepare()
        if self.config.get("rescale_betas_zero_snr"):
            self.alphas_cumprod[-1] = 2**-24  # the first level would be infinite
        self.alpha_t, self.sigma_t = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()
        self.lambda_t = torch.log(self.alpha_t) - torch.log(self.sigma_t)

    def _initial(self) -> State:
        """Every training timestep.

        Quirk: `sigmas` then is the training table in its own order, opposite to that of
        `timesteps`.
        """
        shown = np.arange(self.config.num_train_timesteps, dtype=tables.numpy_float())[::-1].copy()
        trained = torch.from_numpy(self._trained())
        return State(torch.from_numpy(shown), steps=None, tables={"sigmas": trained})

    # -- points

    @property
    def _space(self) -> str:  # type: ignore[override]
        return "flow" if self.config.use_flow_sigmas else "vp"

    def _parametrization(self) -> Parametrization:
        kind = self.config.prediction_type
        if kind not in _PREDICTIONS:
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected prediction_type in {list(_PREDICTIONS)},"
                f" got {kind!r}."
            )
        strange = {"flow": "v_prediction", "vp": "flow_prediction"}[self._space]
        return self._misread(kind) if kind == strange else Parametrization(kind)

    def _time(self, t: float, level: float) -> Time:
        """The point of a level of the table."""
        if level == 0:
            return tables.CLEAN
        if self._space == "flow":
            if not 0 < level < 1:
                raise ValueError(
                    f"fastdiff.{type(self).__name__}: expected sigmas in [0, 1) with"
                    f" use_flow_sigmas, got {level}. Choose one spacing of sigmas."
                )
            return Time(t, 1.0 - level, level, 2.0 * (math.log1p(-level) - math.log(level)))
        alpha = 1.0 / math.hypot(1.0, level)
        return Time(t, alpha, level * alpha, -2.0 * math.log(level))

    def _point_of(self, t: float) -> Time:
        return self._time(t, float(self._trained()[int(t)]))

    def _mixture(self, sigma: Tensor) -> tuple[Any, Tensor]:
        if self._space == "flow":
            return 1 - sigma, sigma
        alpha = 1 / (sigma**2 + 1) ** 0.5
        return alpha, sigma * alpha

    # -- grids

    def _trained(self) -> NDArray[Any]:
        return tables.sigmas(self.alphas_cumprod)

    def _clipped(self) -> int:
        """The number of the noisiest timesteps whose lambda is below lambda_min_clipped."""
        return int(
            torch.searchsorted(torch.flip(self.lambda_t, [0]), self.config.lambda_min_clipped)
        )

    def _spaced(self, steps: int, last: int) -> NDArray[np.int64]:
        """`steps` timesteps below `last`, without the one that the last step goes to."""
        c = self.config
        return grids.without_last(
            type(self).__name__,
            c.num_train_timesteps,
            last,
            steps,
            c.get("timestep_spacing", "linspace"),
            c.get("steps_offset", 0),
        )

    def _levels(
        self, visited: NDArray[Any], steps: int, mu: float | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """(timesteps, levels) [steps] for these timesteps or for the configured spacing of sigmas.

        The level that the last step goes to is not included.
        """
        c, trained = self.config, self._trained()
        kind = self._kind()
        if kind == "flow":
            levels = self._flow(steps, c.flow_shift if mu is None else math.exp(mu))
            return levels * c.num_train_timesteps, levels
        if kind is None:
            return visited, np.interp(visited, np.arange(len(trained)), trained)
        if kind == "lu":  # even in lambda (Lu et al. 2022a, section 3.4)
            low, high = (float(v) for v in np.log(trained[[0, -1]]))
            levels = np.exp(high + np.linspace(0, 1, steps) * (low - high))
        else:
            levels = grids.respaced(kind, c, trained if self._rises else trained[::-1], steps)
        visited = grids.timestep_of(levels, np.log(trained))
        return (visited.round() if self._rounds(kind) else visited), levels

    def _kind(self) -> str | None:
        """The configured spacing of sigmas, the first in diffusers' precedence.

        None where levels are those of spaced timesteps.
        """
        flags = (
            "use_karras_sigmas",
            "use_lu_lambdas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_flow_sigmas",
        )
        return next((flag.split("_")[1] for flag in flags if self.config.get(flag)), None)

    def _flow(self, steps: int, shift: float) -> NDArray[Any]:
        """sigma = shift u/(1 + (shift - 1) u) for `steps` evenly spaced u, from just below 1."""
        even = 1.0 - np.linspace(1, 1 / self.config.num_train_timesteps, steps + 1)
        return np.flip(shift * even / (1 + (shift - 1) * even))[:-1].copy()

    def _rounds(self, kind: str) -> bool:
        """Whether the timesteps of a spacing are rounded before they are truncated."""
        return kind == "karras"

    def _check_mu(self, mu: float | None) -> None:
        """Raises ValueError for a mu that the configuration does not allow."""
        c = self.config
        if mu is not None and not (c.use_dynamic_shifting and c.time_shift_type == "exponential"):
            raise ValueError(
                f"fastdiff.{type(self).__name__}.set_timesteps: expected no mu without"
                f" use_dynamic_shifting and time_shift_type='exponential', got {mu!r}."
            )

    def _last_level(self, levels: NDArray[Any]) -> float:
        """The level that the last step goes to."""
        c = self.config
        if self._repeats_last:
            return float(levels[-1]) if self._kind() else self._lowest()
        if c.final_sigmas_type not in ("zero", "sigma_min"):
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected final_sigmas_type in ['zero',"
                f" 'sigma_min'], got {c.final_sigmas_type!r}."
            )
        return 0.0 if c.final_sigmas_type == "zero" else self._lowest()

    def _lowest(self) -> float:
        return float(self._trained()[0])

    def _begin_on(
        self, visited: NDArray[Any], levels: NDArray[Any], device: Any, **extra: Any
    ) -> None:
        """Starts a run on these timesteps [n] and levels [n], which end in `_last_level`."""
        ended = grids.ended(levels, self._last_level(levels))
        self._begin(self._state_of(visited, ended, device, **extra))

    def _state_of(
        self, visited: NDArray[Any], levels: NDArray[Any], device: Any, **extra: Any
    ) -> State:
        """A state at these timesteps [n] and levels [n + 1], the last level included."""
        values = torch.from_numpy(np.ascontiguousarray(visited)).to(
            device=device, dtype=torch.int64
        )
        shown = {"sigmas": torch.from_numpy(levels)}
        return State(values, steps=len(visited), tables=shown, **extra)

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        if state.num_inference_steps is None:
            return [], None  # no step is taken
        visited = [*(float(int(t)) for t in state.values), -1.0]
        levels = enumerate(self._sigmas_of(state))
        return [self._time(visited[min(i, len(visited) - 1)], v) for i, v in levels], None

    # -- steps

    def _held(self, options: Mapping[str, Any]) -> int:
        return self.config.get("solver_order", 1) - 1

    def _recall(self, state: State, driven: dict[str, Any]) -> bool:
        return history.recall_multistep(state, driven)

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        self._require_steps(state)
        return self._integrate(trace, state.times[: len(state.values) + 1], start)

    def _integrate(self, trace: Trace, times: list[Time], start: int) -> Linear:
        """The formula from times[start] on; the orders of its steps count from times[0]."""
        raise NotImplementedError

    def _without_variance(self, model_output: Tensor) -> Tensor:
        """The network's output without a learned variance.

        diffusers takes the first three channels of an output that has one.
        """
        c = self.config
        if (
            c.get("variance_type") in ("learned", "learned_range")
            and c.prediction_type == "epsilon"
        ):
            return model_output[:, :3]
        return model_output
