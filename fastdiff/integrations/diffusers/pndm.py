"""Drop-ins of PNDM and iPNDM (Liu et al. 2022; Zhang & Chen 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...prediction import Coefficients, Parametrization
from ...schedule import CLEAN, Time
from ...solvers import Linear, Trace
from . import grids, tables
from .history import handed_over, kept, recall_list
from .indexed import Counted
from .quirks.pndm import ipndm, plms, prk
from .registered import register_to_config
from .state import RunTable, State, Table
from .vp import VariancePreserving


class PNDMScheduler(VariancePreserving):
    """The drop-in of diffusers' `PNDMScheduler` (Liu et al. 2022).

    It is linear multistep on eps, with a Runge-Kutta start or without.

    Quirks:
    - With skip_prk_steps the first step is taken twice: n steps make n + 1 calls, and the second
      timestep is listed twice.
    - The later calls of a Runge-Kutta step, and the doubled call, continue from the state that the
      first call was given, whatever state is given to them.
    - Steps go from t to t - T // n whatever the grid is.
    - The multistep combines the network's outputs, v-predictions included, and converts the
      combination at the point where the step begins.
    - A run that begins inside the grid counts its calls from 0, so the doubled call is another one.
    - The last step goes to the alpha_bar of timestep 0 unless set_alpha_to_one.
    """

    _returns_x0 = False
    _has_history = True
    final_alpha_cumprod: Any = Table()
    _reads = ("alphas_cumprod", "final_alpha_cumprod")
    pndm_order = 4
    _ignores = True
    _history = {
        "ets": lambda _: [],
        "counter": lambda _: 0,
        "cur_model_output": lambda _: 0,
        "cur_sample": lambda _: None,
    }

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ):
        self._setup()

    def _prepare(self) -> None:
        super()._prepare()
        self.final_alpha_cumprod = (
            torch.tensor(1.0) if self.config.set_alpha_to_one else self.alphas_cumprod[0]
        )

    def _final(self) -> Time:
        return tables.preserving(0, float(self.final_alpha_cumprod))

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Sets num_inference_steps timesteps, at most T, and those of the Runge-Kutta stages.

        The Runge-Kutta start needs at least 4 steps.
        """
        name, c = type(self).__name__, self.config
        grids.at_most(name, num_inference_steps, c.num_train_timesteps)
        offset = c.steps_offset if c.timestep_spacing == "leading" else 0
        grid = grids.whole(
            name, c.num_train_timesteps, num_inference_steps, c.timestep_spacing, offset
        )
        if c.skip_prk_steps:
            stages, rest = grid[:0], np.concatenate([grid[:1], grid[1:2], grid[1:]])
        elif num_inference_steps < 4:
            raise ValueError(
                f"fastdiff.{name}: expected at least 4 steps with the Runge-Kutta start, got"
                f" {num_inference_steps}. Set skip_prk_steps=True."
            )
        else:
            half = c.num_train_timesteps // num_inference_steps // 2
            # descending: each of the first four timesteps with its point half a step before, all
            # but the ends twice
            pairs = np.stack([grid[:4] + half, grid[:4]], axis=1).flatten()[1:]
            stages, rest = pairs.repeat(2)[1:-1], grid[3:]
        state = self._state_of(
            np.concatenate([stages, rest]), device, steps=num_inference_steps, prk=stages, plms=rest
        )
        self._begin(state)

    @property
    def prk_timesteps(self) -> Any:
        """The timesteps of the Runge-Kutta stages."""
        return self._state.extra.get("prk")

    @prk_timesteps.setter
    def prk_timesteps(self, value: Any) -> None:
        self._state.set_extra("prk", value)

    @property
    def plms_timesteps(self) -> Any:
        """The timesteps of the multistep."""
        return self._state.extra.get("plms")

    @plms_timesteps.setter
    def plms_timesteps(self, value: Any) -> None:
        self._state.set_extra("plms", value)

    @property
    def counter(self) -> int:
        """The number of network calls of this run so far."""
        state = self._state
        if state.driven is not None:
            return state.driven["counter"]
        first, last = state.history_start, state.last_index
        return 0 if first is None or last is None else last + 1 - first

    @counter.setter
    def counter(self, value: int) -> None:
        handed_over(self)["counter"] = value

    def _recall(self, state: State, driven: dict[str, Any]) -> bool:
        count, stages = self.counter, len(state.extra.get("prk", ()))
        if count < stages and count % 4 or not stages and count == 1:
            return False
        # of a Runge-Kutta step the first output is remembered
        found = {k: v for k, v in kept(state, True)[0].items() if k >= stages or k % 4 == 0}
        if count - 1 not in found and (count > stages or (count - 1) % 4 == 0):
            return False
        driven["ets"] = [found[number].clone() for number in sorted(found)]
        driven["counter"] = count
        return True

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        ratio = self.config.num_train_timesteps // self._require_steps(state)
        visits, stages = state.values[start:], state.extra["prk"]
        outs: list[Linear] = []
        if len(stages):
            first = visits[: len(stages)]
            base = [self._at(int(stages[i // 4 * 4])) for i in range(len(first))]
            goals = [self._at(t if i % 2 else t - ratio // 2) for i, t in enumerate(first)]
            outs = prk(trace, [self._at(t) for t in first], base, goals)
        rest = visits[len(stages) :]
        steps = [(t, t - ratio) for t in rest]
        if not outs and len(rest) > 1:
            steps[1] = (rest[1] + ratio, rest[1])
        return plms(
            trace, [self._at(t) for t in rest], [(self._at(t), self._at(s)) for t, s in steps], outs
        )

    def _sums(self, state: State) -> bool:
        return self.counter < len(state.extra.get("prk", ())) and self.counter % 4 != 0

    def _ignores_sample(self, state: State, call: int) -> bool:
        """The three later stages of a Runge-Kutta step begin where its first one did.

        The doubled call does, too, but its formula remembers that state.
        """
        return call < len(state.extra.get("prk", ())) and call % 4 != 0

    def _at(self, t: int) -> Time:
        return self._point(t) if t >= 0 else self._final()

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """The next state from the network's output at one of the timesteps; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict=return_dict)


class Unnormalized(Parametrization):
    """v read as eps = sigma x + alpha v, also where alpha² + sigma² is not 1."""

    def at(self, alpha: float, sigma: float) -> Coefficients:
        if abs(alpha**2 + sigma**2 - 1.0) < 1e-6:
            return super().at(alpha, sigma)  # what the table's rounding leaves is not an edit
        return Coefficients(1.0, alpha, -sigma, sigma, alpha)


class IPNDMScheduler(Counted):
    """The drop-in of diffusers' `IPNDMScheduler` (Zhang & Chen 2023, section 4).

    Its points are x_t = alpha x0 + sin²(pi t/2) eps, for networks that predict v.

    Quirks:
    - sigma is sin² and alpha follows from it.
    - The Adams-Bashforth weights are those of an even grid.
    - `alphas` and `betas` are alpha and sigma themselves; init_noise_sigma is 1.
    """

    _returns_x0 = False
    _has_history = True
    pndm_order = 4
    _history = {"ets": lambda _: []}

    def _recall(self, state: State, driven: dict[str, Any]) -> bool:
        return recall_list(state, driven, "ets", 4)

    def _held(self, options: Mapping[str, Any]) -> int:
        return 3

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, trained_betas: Any = None):
        self._setup()

    def _initial(self) -> State:
        return self._grid(self.config.num_train_timesteps, None)

    def _grid(self, steps: int, device: Any) -> State:
        if self.config.trained_betas is None:
            ramp = torch.linspace(1, 0, steps + 1, dtype=tables.FLOAT)
            sigma = torch.sin(ramp * math.pi / 2) ** 2
        else:
            sigma = torch.tensor(self.config.trained_betas, dtype=tables.FLOAT)
        alpha = (1.0 - sigma**2) ** 0.5
        timesteps = (torch.atan2(sigma, alpha) / math.pi * 2)[:-1]
        return State(timesteps.to(device), steps=steps, tables={"alphas": alpha, "betas": sigma})

    alphas: Any = RunTable()
    betas: Any = RunTable()

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        alphas, betas = (state.tables[name].tolist() for name in ("alphas", "betas"))
        return [_point_of(*pair) for pair in zip(alphas, betas, strict=False)], None

    def _parametrization(self) -> Parametrization:
        return Unnormalized("v")

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Sets num_inference_steps times in (0, 1]."""
        self._begin(self._grid(num_inference_steps, device))

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        return ipndm(trace, state.times[start:])

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """The next state from the network's v at one of the timesteps; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict=return_dict)


def _point_of(alpha: float, sigma: float) -> Time:
    if sigma == 0:
        return CLEAN._replace(alpha=alpha)
    return Time(
        0.0, alpha, sigma, 2.0 * (math.log(alpha) - math.log(sigma)) if alpha > 0 else -math.inf
    )
