"""Drop-ins with EDM's preconditioning: Euler, DPM-Solver++, Stable Audio's (Karras et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...prediction import Coefficients, Parametrization
from ...schedule import Time
from ...solvers import Linear, Trace
from ...solvers.grids import karras_levels
from . import checks, tables
from .base import Generators
from .history import MULTISTEP, recall_multistep
from .indexed import Indexed
from .quirks.dpm import SOLVER_TYPES, multistep, step_orders
from .quirks.karras import late_churn
from .registered import register_to_config
from .state import State


class Preconditioned(Indexed):
    """A scheduler of x0 + sigma eps on levels between sigma_max and sigma_min.

    The network gets x/sqrt(sigma² + sigma_data²) and returns F in x0 = c_skip x + c_out F (Karras
    et al. 2022, table 1), or -F with prediction_type="v_prediction".
    """

    _space = "ve"
    _compatibles: list[str] = []

    @property
    def init_noise_sigma(self) -> float:
        return float((self.config.sigma_max**2 + 1) ** 0.5)

    def _parametrization(self) -> Parametrization:
        kinds = {"epsilon": "edm", "v_prediction": "v"}
        if self.config.prediction_type not in kinds:
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected prediction_type in {list(kinds)}, got "
                f"{self.config.prediction_type!r}."
            )
        return Parametrization(
            kinds[self.config.prediction_type], True, float(self.config.sigma_data)
        )

    def _at(self, sigma: float) -> Coefficients:
        return self._parametrization().at(1.0, sigma)

    def precondition_inputs(self, sample: Tensor, sigma: Any) -> Tensor:
        """c_in x with c_in = 1/sqrt(sigma² + sigma_data²).

        sigma: a number, or a tensor that broadcasts to x.
        """
        return sample / (sigma**2 + self.config.sigma_data**2) ** 0.5

    def precondition_noise(self, sigma: Any) -> Tensor:
        """The network's time at a level, ln(sigma)/4."""
        return 0.25 * torch.log(sigma if isinstance(sigma, Tensor) else torch.tensor([sigma]))

    def precondition_outputs(self, sample: Tensor, model_output: Tensor, sigma: Any) -> Tensor:
        """x0 = c_skip x + c_out F at one level."""
        c = self._at(float(sigma))
        return c.x0_x * sample + c.x0_out * model_output

    def _levels(self, ramp: Tensor) -> Tensor:
        """Levels [n] from sigma_max to sigma_min.

        They are those of Karras et al. at the fractions `ramp` in [0, 1], or as many, evenly spaced
        in ln sigma.
        """
        c = self.config
        if c.sigma_schedule == "exponential":
            logs = math.log(c.sigma_min), math.log(c.sigma_max)
            return torch.linspace(*logs, len(ramp), dtype=tables.FLOAT).exp().flip(0)
        if c.sigma_schedule != "karras":
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected sigma_schedule in ['karras',"
                f" 'exponential'], got {c.sigma_schedule!r}."
            )
        return karras_levels(ramp, c.sigma_max, c.sigma_min, c.rho).to(tables.FLOAT)

    def _last_level(self) -> float:
        kind = self.config.final_sigmas_type
        if kind not in ("zero", "sigma_min"):
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected final_sigmas_type in ['zero',"
                f" 'sigma_min'], got {kind!r}."
            )
        return 0.0 if kind == "zero" else float(self.config.sigma_min)

    def _state_of(
        self, levels: Tensor, last: float, steps: int | None, device: Any = None
    ) -> State:
        """A state on these levels; `last` is the level that the last step goes to."""
        sigmas = torch.cat([levels, torch.tensor([last], dtype=tables.FLOAT)])
        timesteps = self.precondition_noise(levels.to(device))
        return State(timesteps, steps=steps, tables={"sigmas": sigmas})

    def _points(self, state: State) -> tuple[list[Time], list[float] | None]:
        levels = self._sigmas_of(state)
        times = [tables.exploding(float(i), v) for i, v in enumerate(levels)]
        return times, [math.hypot(v, self.config.sigma_data) for v in levels]


class EDMEulerScheduler(Preconditioned):
    """The drop-in of diffusers' `EDMEulerScheduler` (Karras et al. 2022, algorithm 2).

    Quirks:
    - With s_churn the noise is added after the network was called on the state without it, and its
      output is read at the raised level.
    - `sigmas` of set_timesteps are fractions in [0, 1] of Karras' grid, not levels.
    - Before set_timesteps the grid has num_train_timesteps + 1 levels.
    - init_noise_sigma is sqrt(sigma_max² + 1).
    """

    _typed_as_output = True

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        final_sigmas_type: str = "zero",
    ) -> None:
        self._setup()

    def _initial(self) -> State:
        total = self.config.num_train_timesteps
        return self._ended(self._levels(torch.arange(total + 1, dtype=torch.float64) / total), None)

    def _ended(self, levels: Tensor, steps: int | None, device: Any = None) -> State:
        return self._state_of(
            levels, float(levels[-1]) if self._last_level() else 0.0, steps, device
        )

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None
    ) -> None:
        """Sets a number of steps, or levels by their fractions in [0, 1] of Karras' grid."""
        if num_inference_steps is None and sigmas is None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.set_timesteps: expected num_inference_steps or"
                " sigmas, got neither."
            )
        if sigmas is None:
            assert num_inference_steps is not None
            ramp = torch.linspace(0, 1, num_inference_steps, dtype=torch.float64)
        else:
            ramp = torch.as_tensor(sigmas, dtype=torch.float64).flatten()
        self._begin(self._ended(self._levels(ramp), num_inference_steps, device))

    def _formula(
        self, trace: Trace, state: State, start: int, *, given_x0: bool = False, **options: Any
    ) -> Linear:
        if given_x0:
            trace.parametrization = Parametrization("x0")  # the output is the prediction itself
        times, steps = state.times[start:], len(state.times) - 1
        return late_churn(trace, times, steps, hat=True, **options)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
        pred_original_sample: Tensor | None = None,
    ) -> Any:
        """The next state from the network's output at a timestep; see diffusers.

        pred_original_sample: a prediction of x0 to use instead of the output.
        """
        self._refuse_integer("step", timestep)
        options = {
            "given_x0": pred_original_sample is not None,
            "s_churn": s_churn,
            "s_tmin": s_tmin,
            "s_tmax": s_tmax,
            "s_noise": s_noise,
        }
        return self._advance(
            model_output if pred_original_sample is None else pred_original_sample,
            timestep,
            sample,
            options=options,
            generator=generator,
            return_dict=return_dict,
        )


class _Multistep(Preconditioned):
    """DPM-Solver++ on EDM's levels."""

    _returns_x0 = False
    _has_history = True
    _history = MULTISTEP

    def _held(self, options: Mapping[str, Any]) -> int:
        return self.config.solver_order - 1

    def _recall(self, state: State, driven: dict[str, Any]) -> bool:
        return recall_multistep(state, driven)

    _last_for_unknown = True

    def _setup(self) -> None:
        self._adopt("solver_type", SOLVER_TYPES, ("logrho", "bh1", "bh2"), "midpoint")
        super()._setup()

    def _initial(self) -> State:
        ramp = torch.linspace(0, 1, self.config.num_train_timesteps, dtype=tables.FLOAT)
        return self._state_of(self._levels(ramp), 0.0, None)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None) -> None:
        """Sets num_inference_steps levels from sigma_max to sigma_min."""
        if num_inference_steps is None:
            raise ValueError(
                f"fastdiff.{type(self).__name__}.set_timesteps: expected num_inference_steps, got"
                " None."
            )
        ramp = torch.linspace(0, 1, num_inference_steps, dtype=tables.FLOAT)
        self._begin(
            self._state_of(self._levels(ramp), self._last_level(), num_inference_steps, device)
        )

    def _drawn_dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        return sample.dtype

    @property
    def _algorithm(self) -> str:
        return self.config.get("algorithm_type", "sde-dpmsolver++")

    def _always_draws(self, index: int, options: Mapping[str, Any]) -> bool:
        return self._algorithm.startswith("sde")

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        self._require_steps(state)
        times: list[Time] = state.times[: len(state.values) + 1]
        orders = step_orders(self.config, len(times) - 1)[start:]
        if self._algorithm.startswith("sde") and max(orders) > 2:
            raise ValueError(
                f"fastdiff.{type(self).__name__}: expected solver_order 1 or 2 with noise, got"
                f" {self.config.solver_order}."
            )
        return multistep(
            trace,
            times[start:],
            orders,
            algorithm=self._algorithm,
            solver_type=self.config.solver_type,
        )


class EDMDPMSolverMultistepScheduler(_Multistep):
    """The drop-in of diffusers' `EDMDPMSolverMultistepScheduler` (Lu et al. 2022b, algorithm 2).

    Quirks:
    - Order 3 takes the second divided difference for the second derivative.
    - lower_order_final counts only below 15 steps.
    - With sde-dpmsolver++ a draw is taken from the generator on the last step too.
    - init_noise_sigma is sqrt(sigma_max² + 1).

    Order 3 with sde-dpmsolver++, which diffusers lacks, is refused.
    """

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        solver_order: int = 2,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        final_sigmas_type: str = "zero",
    ):
        self._adopt("algorithm_type", ("dpmsolver++", "sde-dpmsolver++"), ("deis",), "dpmsolver++")
        self._setup()

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
            model_output, timestep, sample, generator=generator, return_dict=return_dict
        )


class CosineDPMSolverMultistepScheduler(_Multistep):
    """The drop-in of diffusers' `CosineDPMSolverMultistepScheduler`, as Stable Audio uses it.

    It is SDE-DPM-Solver++ with the network time (2/pi) atan(sigma).

    Quirks:
    - No draw is taken from a generator: its initial seed determines the noise of the whole run, so
      the same generator gives the same noise again.
    - lower_order_final counts only below 15 steps.

    The noise is fastdiff's, with the distribution of diffusers' Brownian tree, whose increments
    over disjoint steps are independent. Order 3, which diffusers lacks, is refused.
    """

    _history = {**MULTISTEP, "noise_sampler": lambda _: None}

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.3,
        sigma_max: float = 500,
        sigma_data: float = 1.0,
        sigma_schedule: str = "exponential",
        num_train_timesteps: int = 1000,
        solver_order: int = 2,
        prediction_type: str = "v_prediction",
        rho: float = 7.0,
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None:
        self._setup()

    def precondition_noise(self, sigma: Any) -> Tensor:
        """The network's time at a level, (2/pi) atan(sigma)."""
        return (sigma if isinstance(sigma, Tensor) else torch.tensor([sigma])).atan() / math.pi * 2

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state from the network's output; see diffusers."""
        state, noise = self._state, None
        if generator is not None:
            checks.generators(type(self).__name__, generator, sample)
        if isinstance(generator, list) and len(generator) > 1:
            index = self._index(state, timestep)
            noise = named_noise(
                sample, [g.initial_seed() for g in generator], 0 if index is None else index
            )
        elif generator is not None:
            first = generator[0] if isinstance(generator, list) else generator
            state.seed = first.initial_seed() % 2**64
        return self._advance(model_output, timestep, sample, noise=noise, return_dict=return_dict)


def named_noise(sample: Tensor, seeds: list[int], step: int) -> Tensor:
    """fastdiff's noise of a step, like the sample, from one seed per sample.

    A sample's noise depends on its seed alone, not on its position in the batch.
    """
    if len(seeds) != len(sample):
        raise ValueError(
            f"fastdiff: expected a seed for each of {len(sample)} samples, got {len(seeds)}."
        )
    signed = torch.tensor([(s + 2**63) % 2**64 - 2**63 for s in seeds], device=sample.device)
    dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
    return ops.randn(
        sample.shape,
        seed=signed,
        sample_ids=torch.zeros_like(signed),
        step=step,
        stream=1,
        dtype=dtype,
        device=sample.device,
    )
