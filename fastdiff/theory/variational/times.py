"""Draws the times of a training step, as pure functions of (seed, step, position) by stream 4.

    uniform       u_b independent, by the sample id
    antithetic    pairs u, 1 - u
    stratified    u_b = (u_0 + b/B) mod 1, one in each stratum of width 1/B
    loss-aware    t with probability p_t ∝ √E[L_t²], weight 1/(T p_t)

(stratified: Kingma et al. 2021, appendix I.1; loss-aware: Nichol & Dhariwal 2021, eq. 18.) The
times are uniformly distributed or have weights that compensate for another distribution, so a mean
over the batch is unbiased.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import rng
from ...grad_mode import restored

SAMPLINGS = ("stratified", "antithetic", "uniform")
_PAIRS, _SHARED = 2, 3  # words of stream 4; 0 is a sample's own time, 1 drops its label


def uniform(sample_ids: Tensor, *, seed: int | Tensor, step: int) -> Tensor:
    """Returns independent u in (0, 1), float64 [B], by the sample ids."""
    return rng.uniform(seed=seed, sample_ids=sample_ids, step=step).double()


def antithetic(sample_ids: Tensor, *, seed: int | Tensor, step: int, start: int = 0) -> Tensor:
    """Returns u in (0, 1), float64 [B]: positions 2k and 2k + 1 of the batch have u_k and 1 - u_k.

    start: the position of the first sample.
    """
    position = torch.arange(start, start + len(sample_ids), device=sample_ids.device)
    u = rng.uniform(seed=_one(seed), sample_ids=position // 2, step=step, word=_PAIRS).double()
    return torch.where(position % 2 == 0, u, 1 - u)


def stratified(
    sample_ids: Tensor, *, seed: int | Tensor, step: int, start: int = 0, total: int | None = None
) -> Tensor:
    """Returns u in [0, 1), float64 [B]: (u_0 + position/total) mod 1.

    start, total: the first position of a part of a larger batch, and the size of that batch. The
    parts share u_0 and form one even grid.
    """
    size = len(sample_ids) if total is None else total
    if start < 0 or start + len(sample_ids) > size:
        raise ValueError(
            f"fastdiff.theory.variational.times: expected start + {len(sample_ids)} <= total, got"
            f" {start} and {size}."
        )
    position = torch.arange(start, start + len(sample_ids), device=sample_ids.device)
    shared = rng.uniform(
        seed=_one(seed), sample_ids=torch.zeros_like(position[:1]), step=step, word=_SHARED
    ).double()
    return torch.remainder(shared + position.double() / max(size, 1), 1.0)


def draw(
    name: str,
    sample_ids: Tensor,
    *,
    seed: int | Tensor,
    step: int,
    part: tuple[int, int] | None = None,
) -> Tensor:
    """Returns u [B] by the method `name`, one of SAMPLINGS.

    part: (start, total), for positions start … of a batch of `total`; None for a whole batch.

    Raises ValueError for another name.
    """
    if name not in SAMPLINGS:
        raise ValueError(
            f"fastdiff.theory.variational.times: expected sampling in {list(SAMPLINGS)}, got"
            f" {name!r}."
        )
    start, total = part or (0, len(sample_ids))
    if name == "stratified":
        return stratified(sample_ids, seed=seed, step=step, start=start, total=total)
    if name == "antithetic":
        return antithetic(sample_ids, seed=seed, step=step, start=start)
    return uniform(sample_ids, seed=seed, step=step)


def spread(count: int, sample_ids: Tensor, *, seed: int | Tensor) -> Tensor:
    """Returns u float64 [B, count] for the terms of a bound, one in each of `count` equal strata.

    The times of a sample depend on its id only.
    """
    if count < 1:
        raise ValueError(f"fastdiff.theory.variational.times: expected times >= 1, got {count}.")
    return torch.stack(
        [(j + uniform(sample_ids, seed=seed, step=j)) / count for j in range(count)], 1
    )


def edm_log_snr(u: Tensor, *, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Returns ln SNR = -2 ln rho with ln rho ~ N(mean, std²), by the normal quantile at u.

    (Karras et al. 2022, table 1.)
    """
    return -2 * (mean + std * torch.special.ndtri(u.double()))


class LossAware(nn.Module):
    """Draws timesteps with a large loss more often, by the last `history` losses at every t.

    The draw is uniform until every t has `history` losses, and afterwards with probability `floor`.
    The state is in buffers, so a resumed run continues as if it had not been interrupted.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, num_train_timesteps: int, history: int = 10, floor: float = 1e-3):
        super().__init__()
        if num_train_timesteps < 1 or history < 1 or not 0 < floor <= 1:
            raise ValueError(
                "fastdiff.theory.variational.LossAware: expected num_train_timesteps, history >= 1"
                f" and floor in (0, 1], got {num_train_timesteps}, {history} and {floor}."
            )
        self.floor = floor
        self.register_buffer(
            "losses", torch.zeros(num_train_timesteps, history, dtype=torch.float64)
        )
        self.register_buffer("counts", torch.zeros(num_train_timesteps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """Returns p_t, float64 [T]."""
        size, history = self.losses.shape
        uniform_p = torch.full((size,), 1.0 / size, dtype=torch.float64, device=self.losses.device)
        root = self.losses.double().square().mean(1).sqrt()
        ready = (self.counts >= history).all() & (root.sum() > 0)
        loss_aware_p = (1 - self.floor) * root / root.sum().clamp_min(
            torch.finfo(torch.float64).tiny
        ) + self.floor / size
        return torch.where(ready, loss_aware_p, uniform_p)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (t int64 [B], weight float64 [B]), weight = 1/(T p_t).

        u: [B], uniform in [0, 1), stratified or not.
        """
        p = self.probabilities()
        edges = p.cumsum(0)
        t = torch.searchsorted(edges, u.double() * edges[-1], right=True).clamp(max=len(p) - 1)
        return t, 1.0 / (len(p) * p[t])

    @restored
    @torch.no_grad()
    def update(self, t: Tensor, loss: Tensor) -> None:
        """Records the unweighted losses [B] at the timesteps t [B], in the order of the batch."""
        history = self.losses.shape[1]
        for i, value in zip(t.tolist(), loss.detach().double(), strict=True):
            self.losses[i, self.counts[i] % history] = value
            self.counts[i] += 1


def _one(seed: int | Tensor) -> int | Tensor:
    """Returns the seed of the batch: that of the first sample if every sample has a seed."""
    return seed.reshape(-1)[:1] if isinstance(seed, Tensor) else seed
