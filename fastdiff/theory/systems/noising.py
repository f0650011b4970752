"""The base of systems made of a network and a schedule.

It holds the schedule's tables on the device and draws times from the noise contract.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import rng
from ...models.build import build, description_of
from ...schedule import Schedule
from ..conditions import is_module


class Noised(nn.Module):
    """A network and the schedule of its noise.

    Args:
        network: a module (x_t, t, **cond), or the description of one (`models.describe`).
        schedule: a `Schedule`, or its config.

    Attributes:
        config: the arguments, as JSON can hold them; its network is None for one of your own
            without a factory (`models.made_by`), which no model folder can describe.
        alpha, sigma: float64 [T].
        times: [T], the network time of each timestep.
    """

    alpha: Tensor
    sigma: Tensor
    times: Tensor

    def __init__(
        self,
        network: nn.Module | dict[str, Any],
        schedule: Schedule | dict[str, Any],
        **config: Any,
    ):
        super().__init__()
        self.network: Any = is_module(
            build(network) if isinstance(network, dict) else network, "fastdiff.theory.systems"
        )
        self.schedule = Schedule.from_config(schedule) if isinstance(schedule, dict) else schedule
        self.config = {
            "network": description_of(self.network),
            "schedule": self.schedule.to_config(),
            **config,
        }
        s = self.schedule
        times = [s.network_time(s.at(t)) for t in range(s.num_train_timesteps)]
        # the schedule is in the config, so its tables are not stored with the weights
        self.register_buffer("alpha", torch.tensor(s.alpha), persistent=False)
        self.register_buffer("sigma", torch.tensor(s.sigma), persistent=False)
        dtype = torch.float32 if s.continuous else torch.int64
        self.register_buffer("times", torch.tensor(times, dtype=dtype), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # `.float()` and `.half()` apply to the network only: the tables stay float64
        tables = {name: self._buffers[name] for name in ("alpha", "sigma", "times")}
        result = super()._apply(fn, recurse)
        for name, table in tables.items():
            moved = self._buffers[name]
            assert table is not None and moved is not None
            self._buffers[name] = table.to(moved.device)
        return result

    def draw_times(self, seed: int, sample_ids: Tensor, step: int) -> Tensor:
        """Returns t uniform over 0 … T - 1, int64 [B], from word 0 of stream 4."""
        return rng.randint(
            self.schedule.num_train_timesteps, seed=seed, sample_ids=sample_ids, step=step
        )

    def spread_times(self, times: int, seed: int, sample_ids: Tensor) -> tuple[Tensor, float]:
        """Returns (t int64 [B, K], scale): timesteps in 1 … T - 1 for each sample, and (T - 1)/K.

        A sample has one timestep in each of K equal strata: t_j = 1 + floor((j + u_j)(T - 1)/K),
        with u_j of stream 4 at step j. scale·Σ_j f(t_j) has the mean Σ_t f(t) and less variance
        than K independent times. K = min(times, T - 1); with K = T - 1 every timestep is taken
        once.

        Raises ValueError for times < 1.
        """
        if times < 1:
            raise ValueError(f"fastdiff.theory.systems: expected times >= 1, got {times}.")
        terms = self.schedule.num_train_timesteps - 1
        k = min(times, terms)
        u = [rng.uniform(seed=seed, sample_ids=sample_ids, step=j).double() for j in range(k)]
        t = [
            1 + ((j + v) * (terms / k)).floor().clamp(max=terms - 1).to(torch.int64)
            for j, v in enumerate(u)
        ]
        return (torch.stack(t, 1) if t else sample_ids.new_zeros(len(sample_ids), 0)), terms / max(
            k, 1
        )

    def log_snr_at(self, t: Tensor) -> Tensor:
        """Returns ln(alpha²/sigma²), float64, at timesteps t of any shape."""
        return torch.from_numpy(self.schedule.log_snr.copy())[t.cpu()].to(t.device)
