"""Drop-ins of Euler, Heun and consistency sampling on a flow (Lipman et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backend.eager.common import compute_dtype
from ...solvers import Linear, Trace
from . import tables
from .base import Generators
from .flow import Flow, Shifting
from .quirks import flow as formulas
from .registered import register_to_config
from .state import State


class FlowMatchEulerDiscreteScheduler(Shifting):
    """The drop-in of diffusers' `FlowMatchEulerDiscreteScheduler` (Lipman et al. 2023, eq. 20).

    Quirks:
    - set_timesteps shifts levels between ends that are already shifted, so the lowest one is
      shifted twice; it shifts sigmas and timesteps that are passed to it, too.
    - With invert_sigmas (Mochi) the grid goes from 0 to 1, and the network's output counts as minus
      the velocity.
    - With per_token_timesteps the output has the opposite sign (callers negate it), every token
      goes to the next lower level of the grid, and float32 is returned.
    - With stochastic_sampling a draw is taken from the generator on the last step too, in the
      state's precision.
    - s_churn, s_tmin, s_tmax and s_noise have no effect.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
    ):
        self._setup()

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        times = state.times[start:]
        return (
            formulas.renoised(trace, times)
            if self.config.stochastic_sampling
            else formulas.euler(trace, times)
        )

    def _always_draws(self, index: int, options: Any) -> bool:
        return self.config.stochastic_sampling

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
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state from the network's output at a timestep; see diffusers.

        per_token_timesteps: [B, L] for a sample [B, L, C] with one timestep per token.
        """
        self._refuse_integer("step", timestep)
        if per_token_timesteps is not None:
            result = (
                self._per_token(model_output, timestep, sample, per_token_timesteps, generator),
            )
            return self._output(*result) if return_dict else result
        return self._advance(
            model_output, timestep, sample, generator=generator, return_dict=return_dict
        )

    def _per_token(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        timesteps: Tensor,
        generator: Generators,
    ) -> Tensor:
        """One step of every token from its own level.

        There are as many different steps as tokens, which is no plan, so this uses torch's
        operations.
        """
        state, grid = self._state, self.sigmas.to(sample.device)
        index = self._index(state, timestep)
        here = timesteps.to(grid) / self.config.num_train_timesteps
        below = grid[:, None, None] < here - 1e-6
        there = (below * grid[:, None, None]).amax(dim=0)[..., None]
        here, sample = here[..., None], sample.to(compute_dtype(sample))
        if not self.config.stochastic_sampling:
            x = sample + (here - there) * model_output
        else:
            if generator is None:
                z = self._drawn(sample, index or 0)
            else:
                z = self._draw(model_output, sample, generator)
            x = (1.0 - there) * (sample - here * model_output) + there * z
        if index is not None:
            state.last_index, state.step_index = index, index + 1
        return x


class FlowMatchHeunDiscreteScheduler(Flow):
    """The drop-in of diffusers' `FlowMatchHeunDiscreteScheduler`, Heun's method with churn.

    Quirks:
    - The lowest level is shifted twice.
    - s_churn adds noise after the network was called on the state without it, is divided by 2n - 1
      instead of n, and multiplies the first slope by sigma over the churned sigma.
    - A draw is taken from the generator at second halves too, where nothing is added.
    - scale_noise takes one timestep and moves the step index there.

    Both calls of a step have the same options.
    """

    order = 2
    _has_history = True
    _settled = ("s_churn", "s_tmin", "s_tmax", "s_noise")
    _calls = 2
    _history = {name: lambda _: None for name in ("prev_derivative", "dt", "sample")}

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0):
        self._setup()

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Sets num_inference_steps levels; all but the first are visited twice."""
        levels = self._shifted(self._even(num_inference_steps))
        grid = torch.from_numpy(levels).to(tables.FLOAT)
        timesteps = grid * self.config.num_train_timesteps
        timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        grid = torch.cat([grid[:1], grid[1:].repeat_interleave(2), grid.new_zeros(1)])
        self._begin(self._state_of(timesteps.to(device), grid.to(device), num_inference_steps))

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first half of a step."""
        if self._state.driven is not None:
            return self._peer.state_in_first_order.fget(self)
        first, last = self._state.history_start, self._state.last_index
        return first is None or last is None or (last - first) % 2 == 1

    def _recall(self, state: State, driven: dict[str, Any]) -> bool:
        return self.state_in_first_order  # between whole steps nothing is remembered

    def _sums(self, state: State) -> bool:
        return not self.state_in_first_order

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """(1 - sigma) x0 + sigma noise at the level of the next step.

        Before the first step that is the timestep's level.
        """
        state = self._state
        if state.step_index is None:
            first = state.begin_index
            state.step_index = self.index_for_timestep(timestep) if first is None else first
        sigma = self.sigmas[state.step_index].to(sample.device)
        return sigma * noise + (1.0 - sigma) * sample

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        return formulas.heun(trace, state.times[start:], len(state.times) - 1, **options)

    def _always_draws(self, index: int, options: Any) -> bool:
        level = self._state.times[index if self._begins(index) else index - 1].sigma
        return options["s_churn"] > 0 and options["s_tmin"] <= level <= options["s_tmax"]

    def _begins(self, index: int) -> bool:
        """Whether this index is the first half of a step."""
        return (index - (self._state.history_start or 0)) % 2 == 0

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
    ) -> Any:
        """The next state from the network's output at one of the timesteps; see diffusers."""
        self._refuse_integer("step", timestep)
        options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        return self._advance(
            model_output,
            timestep,
            sample,
            options=options,
            generator=generator,
            return_dict=return_dict,
        )

    def _drawn_dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        return model_output.dtype


class FlowMatchLCMScheduler(Shifting):
    """The drop-in of diffusers' `FlowMatchLCMScheduler` (Song et al. 2023, algorithm 1).

    It is multistep consistency sampling on the flow, in which the state may grow from step to step.

    Quirks: those of `FlowMatchEulerDiscreteScheduler.set_timesteps`; a draw is taken from the
    generator on the last step too, where nothing is added.

    scale_factors: one for each step but the last, relative to the size of the run's first state.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        time_shift_type: str = "exponential",
        scale_factors: list[float] | None = None,
        upscale_mode: str = "bicubic",
    ):
        self._setup()

    def _prepare(self) -> None:
        super()._prepare()
        self.set_scale_factors(self.config.scale_factors, self.config.upscale_mode)

    def set_scale_factors(
        self, scale_factors: list[float] | None, upscale_mode: str | None
    ) -> None:
        """Sets how much larger than the first state x0 is made after each step but the last.

        upscale_mode: that of `torch.nn.functional.interpolate`.
        """
        self._scale_factors, self._upscale_mode = scale_factors, upscale_mode

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        times = state.times[start:]
        return (
            formulas.denoised(trace, times)
            if options.get("grows")
            else formulas.renoised(trace, times)
        )

    def _always_draws(self, index: int, options: Any) -> bool:
        return not options.get("grows")

    def _drawn_dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        return torch.promote_types(tables.FLOAT, model_output.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state from the network's output; larger where scale_factors say so."""
        self._refuse_integer("step", timestep)
        factors = self._scale_factors if self._upscale_mode else None
        state = self._state
        if factors:
            if len(state.values) != len(factors) + 1:
                raise ValueError(
                    f"fastdiff.{type(self).__name__}.step: expected scale_factors to be one fewer"
                    f" than the {len(state.values)} timesteps, got {len(factors)}."
                )
            index = self._index(state, timestep)
            if state.step_index is None or "size" not in state.extra:
                state.extra["size"] = model_output.shape[2:]
            if index is not None and index < len(factors):
                larger = [round(factors[index] * size) for size in state.extra["size"]]
                result = (self._grown(model_output, timestep, sample, index, larger, generator),)
                return self._typed(result, model_output, return_dict)
        return self._advance(
            model_output, timestep, sample, generator=generator, return_dict=return_dict
        )

    def _grown(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        index: int,
        size: list[int],
        generator: Generators,
    ) -> Tensor:
        """x0 enlarged, with noise of the next level added.

        A step that changes the shape cannot be the row of a plan.
        """
        state = self._state
        compute = compute_dtype(sample)
        (x0,) = self._advance(
            model_output.to(compute),
            timestep,
            sample.to(compute),
            options={"grows": True},
            return_dict=False,
        )
        assert self._upscale_mode is not None
        x0 = torch.nn.functional.interpolate(x0, size=size, mode=self._upscale_mode)
        if generator is None:
            z = self._drawn(x0, index)
        else:
            z = self._draw(x0, x0, generator)
        s = state.times[index + 1]
        return s.alpha * x0 + s.sigma * z
