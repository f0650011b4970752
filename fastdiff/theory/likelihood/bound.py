"""The variational bound term by term, in nats: -log p(x0) <= L_0 + Σ_t L_t + L_prior.

    L_0      E_q(x_0|x0) -log p(x0|x_0)                             reconstruction, t = 0
    L_t      E_q(x_t|x0) KL(q(x_{t-1}|x_t, x0) || p(x_{t-1}|x_t))   denoising matching, t = 1 … T-1
    L_prior  KL(q(x_{T-1}|x0) || p(x_{T-1}))                        prior matching

(Luo 2022, eq. 58). x0 is the data. Timesteps are those of `Schedule`: x_0 is the state at t = 0,
the least noisy one, which is Luo's x_1 and not the data.
With the posterior's variance L_t = ½ (SNR_{t-1} - SNR_t)·||x0 - x̂0||² (Luo 2022, eq. 110).

The prior p(x_{T-1}) is the density that sampling starts from, N(0, s² I) with s =
`schedule.prior_std()`: otherwise the sum would bound the likelihood of another model than the one
that is sampled.
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
from ...grad_mode import restored
from ...prediction import normalize
from ...sampling.model_call import ModelCall
from ...schedule import Schedule
from ...table import VLB_COLUMNS
from ..dequantization import LIKELIHOODS, bits_per_dim
from .table import vlb_table

_FAR = 64.0  # e^-64 is below the rounding of the numbers that it is added to
_COLUMN = {name: i for i, name in enumerate(VLB_COLUMNS)}


class ELBO(NamedTuple):
    """The terms of -ELBO in nats: reconstruction [B], prior [B], denoising [B, K].

    denoising[:, j] is the term of the j-th of the `times` passed to `elbo`, and of timestep j if
    none were passed. The term of timestep 0 is `reconstruction`, so its column here is 0.
    """

    reconstruction: Tensor
    prior: Tensor
    denoising: Tensor

    def total(self, scale: float = 1.0) -> Tensor:
        """Returns reconstruction + prior + scale·Σ_j denoising_j [B].

        In expectation it is at least -log p(x0). scale is 1 if all timesteps were computed. For K
        times drawn uniformly, the estimate of the full sum is unbiased with scale = (T - 1)/K if
        they were drawn from 1 … T-1, and T/K if from 0 … T-1.
        """
        return self.reconstruction + self.prior + scale * self.denoising.sum(1)

    def bits_per_dim(self, dims: int, scale: float = 1.0) -> Tensor:
        """Returns total/(dims ln 2) [B]; add 7 for a density of data scaled to [-1, 1]."""
        return bits_per_dim(self.total(scale), dims)


@restored
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
    """Returns the terms of -ELBO (Luo 2022, eq. 58), without gradients.

    They are terms of an upper bound of -log p(x0); `theory.variational.elbo` is the lower bound of
    +log p(x).

    Each timestep takes one `q_sample`, one network call and one `vlb_terms`.

    Args:
        model: (x_t, t, **cond) -> output, called as `Sampler` calls it. Its output has twice the
            channels for a learned variance.
        x0: [B, …] floating, in the range of the training data; float64 gives float64 terms.
        schedule: its T timesteps are the steps of the bound. The prior is N(0, s² I) with s =
            schedule.prior_std().
        prediction_type: what the network predicts.
        variance: of p(x_{t-1}|x_t), see `vlb_table`.
        times: the timesteps of the denoising terms: [K] for all samples, or an int64 tensor [B, K]
            with other times for each sample; None for all T. `ELBO.total` has the scale that makes
            K times an unbiased estimate of all.
        seed, sample_ids: of the noise (stream 2). The noise of a timestep t of all samples is drawn
            at step t, so its term does not depend on the other times, and a time that is listed
            twice gives the same term twice; the noise of times [B, K] is drawn at step T + column.
        likelihood: p(x0|x_0), of the data given the least noisy state. `discretized` is for 8-bit
            levels in [-1, 1] (Ho et al. 2020, eq. 13); `gaussian` is a density.
        clip_range: the bound of x̂0; None for no clip.
        cond: keyword arguments of the network.

    Raises:
        ValueError: unknown names, times outside [0, T) or of another shape, network outputs of
            another shape.
        TypeError: an x0 or network output that is not floating.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"fastdiff.theory.likelihood.elbo: expected likelihood in {list(LIKELIHOODS)}, got"
            f" {likelihood!r}."
        )
    call = ModelCall(
        model,
        schedule,
        normalize(prediction_type),
        cond=cond,
        where="fastdiff.theory.likelihood.elbo",
        learned=True,
    )
    term = TimestepTerm(call, x0, variance, likelihood, clip_range)
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


class TimestepTerm:
    """The term of one timestep for every sample: `q_sample`, one network call and `vlb_terms`.

    Args:
        call: the network's calls with its schedule, prediction type and `learned=True`.
        x0, variance, likelihood, clip_range: see `elbo`.
    """

    def __init__(
        self,
        call: ModelCall,
        x0: Tensor,
        variance: str | ArrayLike,
        likelihood: str,
        clip_range: float | None,
    ):
        schedule: Schedule = call.schedule
        self._x0, self._call = x0, call
        self._alpha, self._sigma = (
            torch.tensor(v, device=x0.device) for v in (schedule.alpha, schedule.sigma)
        )
        table = vlb_table(
            schedule,
            prediction_type=call.parametrization.prediction_type,
            variance=variance,
            clip_range=clip_range,
        )
        self._offset = (
            density_row(table) * math.prod(x0.shape[1:]) if likelihood == "gaussian" else 0.0
        )
        self._table = torch.tensor(table, device=x0.device)

    def __call__(
        self, t: Tensor, *, step: int, seed: int | Tensor, sample_ids: Tensor | None
    ) -> Tensor:
        """The term [B] in nats of the timesteps t [B] at an x_t drawn from q(x_t|x0)."""
        counter: dict[str, Any] = {
            "seed": seed,
            "sample_ids": sample_ids,
            "step": step,
            "stream": rng.STREAM_FORWARD,
        }
        return self.of(ops.q_sample(self._x0, t, self._alpha, self._sigma, **counter), t)

    def of(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The term [B] in nats of the timesteps t [B] at this x_t."""
        value = ops.vlb_terms(self._x0, x_t, self._call(x_t, t), self._table, t)
        return torch.where(t == 0, value + self._offset, value) if self._offset else value


def density_row(table: np.ndarray) -> float:
    """Changes row 0 of the table to a density's, in place, and returns what is still missing.

    `vlb_terms` computes for this row, instead of a probability of levels, the KL divergence from a
    Gaussian at x0. With variance e^-64 this KL is ½ (64 - 1 + logvar + distance²/variance) to
    rounding; with the model's own variance it is ½ distance²/variance. Either plus the returned
    constant, per element, is -ln of the density, ½ (ln 2π + logvar + distance²/variance).
    """
    row = table[0]
    low, high = row[_COLUMN["logvar_lo"]], row[_COLUMN["logvar_hi"]]
    row[_COLUMN["first"]] = 0.0
    if low == high:
        row[_COLUMN["logvar_q"]] = low
        return 0.5 * (math.log(2 * math.pi) + float(low))
    row[_COLUMN["logvar_q"]] = -_FAR
    return 0.5 * (math.log(2 * math.pi) - (_FAR - 1.0))


def prior_term(x0: Tensor, schedule: Schedule) -> Tensor:
    """KL(q(x_{T-1}|x0) || p(x_{T-1})) [B] in nats (Luo 2022, eq. 58).

    It is small if the schedule ends in noise.
    """
    last, dtype = schedule.at(schedule.num_train_timesteps - 1), ops.common.compute_dtype(x0)
    numbers = (2 * math.log(last.sigma), 2 * math.log(schedule.prior_std()), 0.0)
    logvar, other, zero = torch.tensor(numbers, dtype=dtype, device=x0.device)
    return ops.gaussian_kl(x0 * last.alpha, logvar, zero, other)


def as_times(where: str, times: Sequence[int] | Tensor | None, last: int, x0: Tensor) -> Tensor:
    """Timesteps in [0, last) as int64: [K] on the host or [B, K] on x0's device; None for all."""
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
