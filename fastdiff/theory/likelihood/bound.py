"""The variational bound term by term: -log p(x0) <= L_0 + Σ_t L_t + L_prior, in nats (Luo 2022, eq.
58).

    L_0      E_q(x_0|x0) -log p(x0|x_0)                             reconstruction, t = 0
    L_t      E_q(x_t|x0) KL(q(x_{t-1}|x_t, x0) || p(x_{t-1}|x_t))   denoising matching, t = 1 … T-1
    L_prior  KL(q(x_{T-1}|x0) || p(x_{T-1}))                        prior matching

Timesteps are those of `Schedule`: t = 0 is the least noisy point, Luo's x_1. With the posterior's
own variance L_t = ½ (SNR_{t-1} - SNR_t)·||x0 - x̂0||² (Luo 2022, eq. 110).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ... import ops, rng
from ...schedule import Schedule
from ...table import VLB_COLUMNS
from .table import vlb_table

LIKELIHOODS = ("discretized", "gaussian")
_FAR = 64.0  # a log-variance so low that its exponential is no number beside others
_COLUMN = {name: i for i, name in enumerate(VLB_COLUMNS)}


class ELBO(NamedTuple):
    """The terms of -ELBO in nats: reconstruction [B], prior [B], denoising [B, K].

    denoising[:, j] belongs to the j-th of the asked times; without `times`, to the timestep j. The
    timestep 0 has its term in `reconstruction`, so its column here is 0.
    """

    reconstruction: Tensor
    prior: Tensor
    denoising: Tensor

    def total(self, scale: float = 1.0) -> Tensor:
        """reconstruction + prior + scale·Σ_j denoising_j [B], not below -log p(x0) in expectation.

        With all timesteps scale is 1. With K times drawn uniformly from 1 … T-1 it is (T - 1)/K,
        from 0 … T-1 it is T/K; the sum is then an unbiased estimate of the whole one.
        """
        return self.reconstruction + self.prior + scale * self.denoising.sum(1)

    def bits_per_dim(self, dims: int, scale: float = 1.0) -> Tensor:
        """total / (dims ln 2) [B]. For a density of data scaled to [-1, 1], add 7 to compare with
        8-bit levels.
        """
        return self.total(scale) / (dims * math.log(2))


def elbo(
    model: Callable[..., Any],
    x0: Tensor,
    schedule: Schedule,
    *,
    prediction_type: str,
    variance: str | ArrayLike,
    times: Sequence[int] | Tensor | None = None,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    likelihood: str = "discretized",
    clip_range: float | None = None,
    cond: Mapping[str, Any] | None = None,
) -> ELBO:
    """The terms of the bound, each timestep's by one `q_sample`, one network call and one
    `vlb_terms` (Luo 2022, eq. 58).

    Args:
        model: (x_t, t, **cond) -> output, as `Sampler` calls it; its output has twice the channels
            for a learned variance.
        x0: [B, …] floating, in the range of the training data; float64 gives float64 terms.
        schedule: its T timesteps are the steps of the bound; the prior is N(0, I), in the space
            `ve` N(0, sigma_{T-1}² I).
        prediction_type: what the network predicts.
        variance: of p(x_{t-1}|x_t), see `vlb_table`.
        times: the denoising terms to compute: timesteps [K] for all samples, or an int64 tensor [B,
            K] of each sample's own; None for all T. See `ELBO.total` for the scale that makes few
            of them an unbiased estimate of all.
        seed, sample_ids: of the noise (stream 2). The noise of a shared timestep t is drawn at step
            t: its term does not depend on which others are asked for; times of one's own are drawn
            at step T + column.
        likelihood: p(x0|x_0): `discretized` for 8-bit levels in [-1, 1] (Ho et al. 2020, eq. 13),
            or `gaussian`, a density.
        clip_range: x̂0 is held in [-clip_range, clip_range]; None for no clip.
        cond: keyword arguments of the network.

    Returns:
        ELBO, without gradients.

    Raises:
        ValueError: unknown names, times outside [0, T) or of another shape. TypeError: an x0 that
            is not floating.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"fastdiff.theory.likelihood.elbo: expected likelihood in {list(LIKELIHOODS)}, got"
            f" {likelihood!r}."
        )
    term = Terms(model, x0, schedule, prediction_type, variance, likelihood, clip_range, cond)
    batch, last = x0.shape[0], schedule.num_train_timesteps
    with torch.no_grad():
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids}
        chosen = as_times("elbo", times, last, x0)
        first = torch.zeros(batch, dtype=torch.int64, device=x0.device)
        reconstruction = term(first, step=0, **counter)
        columns = []
        for j in range(chosen.shape[-1]):
            shared = chosen.ndim == 1
            t = chosen[j].expand(batch).contiguous() if shared else chosen[:, j].contiguous()
            if shared and int(chosen[j]) == 0:
                columns.append(torch.zeros_like(reconstruction))
                continue
            value = term(t, step=int(chosen[j]) if shared else last + j, **counter)
            columns.append(value if shared else torch.where(t == 0, torch.zeros_like(value), value))
        denoising = torch.stack(columns, 1) if columns else reconstruction.new_zeros(batch, 0)
        return ELBO(reconstruction, prior_term(x0, schedule), denoising)


class Terms:
    """One timestep's term for every sample: x_t by `q_sample`, the network, `vlb_terms`."""

    def __init__(
        self,
        model: Callable[..., Any],
        x0: Tensor,
        schedule: Schedule,
        prediction_type: str,
        variance: str | ArrayLike,
        likelihood: str,
        clip_range: float | None,
        cond: Mapping[str, Any] | None,
    ):
        self._x0, self._network = x0, network_call(model, schedule, x0.device, cond or {})
        self._alpha, self._sigma = (
            torch.tensor(v, device=x0.device) for v in (schedule.alpha, schedule.sigma)
        )
        table = vlb_table(
            schedule, prediction_type=prediction_type, variance=variance, clip_range=clip_range
        )
        self._offset = (
            density_row(table) * math.prod(x0.shape[1:]) if likelihood == "gaussian" else 0.0
        )
        self._table = torch.tensor(table, device=x0.device)

    def __call__(
        self, t: Tensor, *, step: int, seed: int | Tensor, sample_ids: Tensor | None
    ) -> Tensor:
        """The term of the timesteps t [B], x_t drawn from q(x_t|x0), [B] in nats."""
        counter: dict[str, Any] = {
            "seed": seed,
            "sample_ids": sample_ids,
            "step": step,
            "stream": rng.STREAM_FORWARD,
        }
        return self.of(ops.q_sample(self._x0, t, self._alpha, self._sigma, **counter), t)

    def of(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The term of the timesteps t [B] at a given x_t."""
        value = ops.vlb_terms(self._x0, x_t, self._network(x_t, t), self._table, t)
        return torch.where(t == 0, value + self._offset, value) if self._offset else value


def density_row(table: np.ndarray) -> float:
    """Makes the row of t = 0 half a squared distance, and returns what is missing to -log of the
    density, per element.

    With KL's first variance e^-64 the row's KL is ½ (64 - 1 + logvar + distance²/variance) exactly,
    with the model's own variance ½ distance²/variance.
    """
    row = table[0]
    low, high = row[_COLUMN["logvar_lo"]], row[_COLUMN["logvar_hi"]]
    row[_COLUMN["first"]] = 0.0
    if low == high:
        row[_COLUMN["logvar_q"]] = low
        return 0.5 * (math.log(2 * math.pi) + float(low))
    row[_COLUMN["logvar_q"]] = -_FAR
    return 0.5 * (math.log(2 * math.pi) - (_FAR - 1.0))


def prior_variance(schedule: Schedule) -> float:
    """Of p(x_{T-1}): 1, in the space `ve` sigma_{T-1}²."""
    return float(schedule.sigma[-1]) ** 2 if schedule.space == "ve" else 1.0


def prior_term(x0: Tensor, schedule: Schedule) -> Tensor:
    """KL(q(x_{T-1}|x0) || p(x_{T-1})) [B] in nats (Luo 2022, eq. 58): small where the schedule ends
    in noise.
    """
    last, dtype = schedule.at(schedule.num_train_timesteps - 1), ops.common.compute_dtype(x0)
    numbers = (2 * math.log(last.sigma), math.log(prior_variance(schedule)), 0.0)
    logvar, other, zero = torch.tensor(numbers, dtype=dtype, device=x0.device)
    return ops.gaussian_kl(x0 * last.alpha, logvar, zero, other)


def network_call(
    model: Callable[..., Any], schedule: Schedule, device: torch.device, cond: Mapping[str, Any]
) -> Callable[[Tensor, Tensor], Tensor]:
    """(x_t, t int64 [B]) -> output: the network told its own time, its input in its own dtype,
    unpacked from `.sample`.
    """
    own = getattr(model, "network_time", None)
    given: Tensor | None = None
    if own is not None or not schedule.whole_times:
        tell = own or schedule.network_time
        times = [tell(schedule.at(t)) for t in range(schedule.num_train_timesteps)]
        given = torch.tensor(times, dtype=torch.float32, device=device)
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    dtype = next((p.dtype for p in parameters if p.is_floating_point()), None)

    def call(x_t: Tensor, t: Tensor) -> Tensor:
        out = model(
            x_t if dtype is None else x_t.to(dtype), t if given is None else given[t], **cond
        )
        output: Tensor = getattr(out, "sample", out)
        return output

    return call


def as_times(where: str, times: Sequence[int] | Tensor | None, last: int, x0: Tensor) -> Tensor:
    """The asked times in [0, last) as int64 [K] on the host or [B, K] on x0's device; None for
    all.
    """
    if times is None:
        return torch.arange(last)
    chosen = torch.as_tensor(times)
    if chosen.numel() == 0:
        chosen = chosen.to(torch.int64)
    if (
        chosen.dtype.is_floating_point
        or chosen.ndim not in (1, 2)
        or (chosen.ndim == 2 and len(chosen) != len(x0))
    ):
        raise ValueError(
            f"fastdiff.theory.likelihood.{where}: expected times as integers [K] or [{len(x0)}, K],"
            f" got {list(chosen.shape)} of {str(chosen.dtype).removeprefix('torch.')}."
        )
    outside = (chosen < 0) | (chosen >= last)
    if bool(outside.any()):
        raise ValueError(
            f"fastdiff.theory.likelihood.{where}: expected times in [0, {last}), got"
            f" {int(chosen[outside][0])}. They count from 0."
        )
    return chosen.to("cpu", torch.int64) if chosen.ndim == 1 else chosen.to(x0.device, torch.int64)
