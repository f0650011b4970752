"""How `fastdiff.Scheduler` adds noise to data: at levels of a run, and as in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .indexed import Counted
from .runs import Run
from .sampler_settings import Trained


class Noising(Counted):
    """The part of `Scheduler` that mixes data and noise."""

    @property
    def _known(self) -> Trained:
        """The network, whatever its shift."""
        raise NotImplementedError

    def _mixture(self, sample: Tensor, timesteps: Any) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) [B or 1, 1, …] at timesteps, or in a run at its next call.

        A run that begins inside the grid (`set_begin_index`) has the level of its first call, and
        then of its next one.
        """
        state = self._state
        run: Run | None = state.extra["run"]
        if run is not None and state.begin_index is not None:
            index = state.begin_index if state.step_index is None else state.step_index
            levels = [run.level(index)]
        else:
            given = torch.as_tensor(timesteps).reshape(-1).tolist()
            levels = [self._level_of(run, float(t)) for t in given]
        pairs = torch.tensor(levels, dtype=torch.float64)
        shape = (-1, *(1,) * (sample.ndim - 1))
        alpha, sigma = (v.to(sample.device, sample.dtype).reshape(shape) for v in pairs.unbind(1))
        return alpha, sigma

    def _level_of(self, run: Run | None, t: float) -> tuple[float, float]:
        """(alpha, sigma) at a time of the pipeline's: of a call, or as in training."""
        if run is not None:
            near = [i for i, v in enumerate(run.values) if abs(v - t) <= 1e-6 * max(1.0, abs(t))]
            if near:
                return run.level(near[0])
        known = self._known if run is None else run.known
        total = known.schedule.num_train_timesteps
        if known.kind == "vp" and 0 <= t < total:
            return float(known.schedule.alpha[int(t)]), float(known.schedule.sigma[int(t)])
        if known.kind == "flow" and 0 <= t <= total:
            weight = t / total
            return (weight, 1.0 - weight) if known.inverted else (1.0 - weight, weight)
        raise ValueError(
            f"fastdiff.Scheduler.add_noise: expected timesteps of the run or of training, got {t}."
        )

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise; timesteps [B] or [1]. In a run at the level of its next call."""
        alpha, sigma = self._mixture(original_samples, timesteps)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor | None = None) -> Tensor:
        """`add_noise` as pipelines of flows call it."""
        if noise is None:
            raise ValueError(
                "fastdiff.Scheduler.scale_noise: expected noise, got None. Pass noise=."
            )
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha noise - sigma x0 (Salimans & Ho 2022); noise - x0 of a flow."""
        if self._known.kind == "flow":
            return noise - sample
        alpha, sigma = self._mixture(sample, timesteps)
        return alpha * noise - sigma * sample

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_t² [T], where the network was trained on betas."""
        if self._known.kind != "vp":
            raise AttributeError("alphas_cumprod")
        return torch.tensor(self._known.schedule.alphas_cumprod, dtype=torch.float32)
