"""A noise sampler on a Brownian path, under k-diffusion's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...sampling.adaptive import BrownianTree


class BrownianTreeNoiseSampler:
    """noise_sampler(sigma, sigma_next) = (W(t') - W(t)) / sqrt(|t' - t|), t = transform(sigma).

    Args:
        x: the state, for the noise's shape, dtype and device.
        sigma_min, sigma_max: ends of the interval.
        seed: one number for all samples, each of which has its own path; a sequence of one number
            per sample, each of which has the path of sample 0 of its seed; or None for a number
            from torch's global CPU generator.
        transform: maps sigma to the path's time.
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: Any,
        sigma_max: Any,
        seed: int | Sequence[int] | None = None,
        transform: Callable[[Tensor], Tensor] = lambda x: x,
    ):
        self.transform = transform
        ends = sorted((self._time(sigma_min), self._time(sigma_max)))
        ids = None
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
        if isinstance(seed, Sequence):
            ids = torch.zeros(len(seed), dtype=torch.int64, device=x.device)
        seeds: Any = torch.tensor(seed, device=x.device) if isinstance(seed, Sequence) else seed
        self.tree = BrownianTree(
            x.shape,
            seed=seeds,
            sample_ids=ids,
            low=ends[0],
            high=ends[1],
            depth=24,
            dtype=x.dtype,
            device=x.device,
        )

    def _time(self, sigma: Any) -> float:
        return float(self.transform(torch.as_tensor(sigma, dtype=torch.float64)))

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        return self.tree.normal(self._time(sigma), self._time(sigma_next))
