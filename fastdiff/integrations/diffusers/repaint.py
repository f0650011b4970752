"""The drop-in of RePaint (Lugmayr et al. 2022)."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops import randn
from ...prediction import Parametrization
from ...schedule import Time
from ...solvers import Linear, Trace, ddim
from ...solvers.repaint import resampling
from . import tables
from .base import Generators
from .pairwise import Pairwise
from .registered import register_to_config
from .state import State, Table
from .traced import TracedPlan


class RePaintScheduler(Pairwise):
    """The drop-in of diffusers' `RePaintScheduler`: inpainting by jumps back in time.

    (Lugmayr et al. 2022, algorithm 1.) The plan is that of an empty mask. `eta` may be assigned
    between steps.

    Quirks:
    - Steps go to t - T // n, like DDIM's.
    - The known and the unknown part get the same noise, which is drawn with eta = 0 too.
    - undo_step(t) applies the betas from t on, with T // n draws from a generator, or one without.

    Attributes:
        eta: 0 for DDIM, 1 for DDPM's variance.
    """

    eta: float
    final_alpha_cumprod: Any = Table()
    _reads = ("alphas_cumprod", "alphas", "final_alpha_cumprod")

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        eta: float = 0.0,
        trained_betas: Any = None,
        clip_sample: bool = True,
    ):
        self._setup()

    def _prepare(self) -> None:
        super()._prepare()
        self.eta = self.config.eta
        self.final_alpha_cumprod = torch.tensor(1.0)

    def _parametrization(self) -> Parametrization:
        return Parametrization("epsilon")

    def set_timesteps(
        self,
        num_inference_steps: int,
        jump_length: int = 10,
        jump_n_sample: int = 10,
        device: Any = None,
    ) -> None:
        """Sets num_inference_steps timesteps, T at most, with the jumps of the algorithm.

        jump_length: the steps of a jump back; every section of that length is passed jump_n_sample
        times.
        """
        total = self.config.num_train_timesteps
        steps = min(total, num_inference_steps)
        path = resampling(steps, jump_length, jump_n_sample)
        left: list[int] = []
        for here, there in zip(path, path[1:], strict=False):
            # a jump lists every timestep that it passes
            stride = 1 if there > here else -1
            left += [steps - i for i in range(here + stride, there + stride, stride)]
        self._begin(self._state_of(np.array(left) * (total // steps), device, steps=steps))

    def _final(self) -> Time:
        return tables.preserving(0, float(self.final_alpha_cumprod))

    def _width(self, state: State) -> int:
        """T // n, the number of training timesteps between two timesteps of the grid."""
        return self.config.num_train_timesteps // self._require_steps(state)

    def _goal(self, state: State, t: int) -> Time:
        """The point that the step from timestep t goes to."""
        before = t - self._width(state)
        return self._point(before) if before >= 0 else self._final()

    def _formula(self, trace: Trace, state: State, start: int, **options: Any) -> Linear:
        last = state.values[start] + 1
        for t in state.values[start:]:
            if t < last:
                trace.start = self._off_grid(trace, state, t, **options)
            else:
                scale = self._undone(state, int(last))
                x = trace.pause(trace.start, self._goal(state, int(last)))
                trace.start = scale * x + sqrt(1.0 - scale**2) * trace.noise()
            last = t
        return trace.start

    def _off_grid(self, trace: Trace, state: State, timestep: float, **options: Any) -> Linear:
        return ddim.ddim(
            trace, [self._point(timestep), self._goal(state, int(timestep))], eta=self.eta
        )

    def _traced_plan(
        self, trace: Trace, state: State, end: Linear, timesteps: list[float], options: Any
    ) -> TracedPlan:
        called = [t for i, t in enumerate(timesteps) if i == 0 or t < timesteps[i - 1]]
        return super()._traced_plan(trace, state, end, called, options)

    def _undone(self, state: State, t: int) -> float:
        """The factor that T // n betas from t on apply to the signal."""
        return float(self.alphas[t : t + self._width(state)].to(torch.float64).prod().sqrt())

    def _noise(self, like: Tensor, generator: Generators) -> Tensor:
        """A draw from the generator, or without one the next draw of the run.

        Draws are numbered in the order of the calls, since timesteps repeat.
        """
        if generator is not None:
            return self._draw(like, like, generator)
        state = self._state
        count = state.extra["draws"] = state.extra.get("draws", -1) + 1
        return randn(
            tuple(like.shape),
            seed=self._seed(state),
            step=count,
            stream=1,
            dtype=like.dtype,
            device=like.device,
        )

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        original_image: Tensor,
        mask: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state.

        It is original_image noised to the state's level where mask is 1, and a step of DDIM or DDPM
        where mask is 0.
        """
        state = self._state
        t = self._whole(state, timestep)
        if model_output.shape != sample.shape:
            raise ValueError(
                f"fastdiff.RePaintScheduler.step: expected model_output of shape"
                f" {list(sample.shape)}, got {list(model_output.shape)}."
            )
        z = self._noise(model_output, generator)
        unknown, x0 = self._advance(
            model_output, t, sample, options={"eta": self.eta}, noise=z, return_dict=False
        )
        s = self._goal(state, t)
        known = s.alpha * original_image + s.sigma * z
        x = mask * known + (1.0 - mask) * unknown
        return self._output(x, x0) if return_dict else (x, x0)

    def undo_step(self, sample: Tensor, timestep: Any, generator: Generators = None) -> Tensor:
        """The state with the noise of one step added, x sqrt(1 - beta) + sqrt(beta) z.

        The betas are those from the timestep on.
        """
        state = self._state
        t = self._whole(state, timestep)
        if generator is None:
            scale = self._undone(state, t)
            return scale * sample + sqrt(1.0 - scale**2) * self._noise(sample, None)
        for beta in self.betas[t : t + self._width(state)].tolist():
            sample = sqrt(1.0 - beta) * sample + sqrt(beta) * self._noise(sample, generator)
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        raise NotImplementedError(
            "fastdiff.RePaintScheduler.add_noise: expected another scheduler for training. Use"
            " DDPMScheduler.add_noise."
        )
