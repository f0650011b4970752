"""The bound by log-ratios: one expectation per t over the triple (x_{t-1}, x_t, x_{t+1}).

    -ELBO = E [-ln p(x0|x_0)] + E [ln q(x_{T-1}|x_{T-2}) - ln p(x_{T-1})]
            + Σ_t E_q(x_{t-1}, x_t, x_{t+1}|x0) [ln q(x_t|x_{t-1}) - ln p(x_t|x_{t+1})]

with t = 0 … T-2 and x_{-1} = x0 (Luo 2022, eq. 44). The middle variable is drawn together with its
neighbours: given x_{t-1}, x_t and x_{t+1} are dependent. The expectation is therefore not that of
KL(q(x_t|x_{t-1}) || p(x_t|x_{t+1})) over (x_{t-1}, x_{t+1}), which eq. 45 makes of it.

In expectation this is the bound of `likelihood.elbo`. An estimate from one t has more variance. An
estimate from a whole trajectory is ln q(x_{0:T-1}|x0) - ln p(x0, x_{0:T-1}), which is constant if p
is the true reverse process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ... import ops, rng
from ...grad_mode import restored
from ...prediction import normalize
from ...sampling.model_call import ModelCall
from ...schedule import Schedule
from ...table import VLB_COLUMNS
from ..dequantization import LIKELIHOODS
from .bound import TimestepTerm, as_times
from .table import steps, vlb_table

_WHERE = "fastdiff.theory.likelihood.elbo_two_variable"


@restored
def elbo_two_variable(
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
) -> Tensor:
    """An unbiased estimate of -ELBO [B] in nats by log-ratios (Luo 2022, eq. 44).

    `ELBO.total` of `elbo` estimates the same number. The result has no gradients.

    Args:
        times: the middle timesteps t of the triples in [0, T-1), [K] for all samples or an int64
            tensor [B, K]. Every triple is drawn independently and the sum is scaled by (T-1)/K, so
            times drawn uniformly give an unbiased estimate. None for all timesteps along one
            trajectory x_0 … x_{T-1}.
        model, x0, schedule, prediction_type, variance, seed, sample_ids, likelihood, clip_range,
            cond: see `elbo`.

    Raises:
        ValueError, TypeError: see `elbo`; times are in [0, T-1).
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"{_WHERE}: expected likelihood in {list(LIKELIHOODS)}, got {likelihood!r}."
        )
    kind = normalize(prediction_type)
    call = ModelCall(model, schedule, kind, cond=cond, where=_WHERE, learned=True)
    chain = _Chain(call, x0, variance, clip_range, seed, sample_ids)
    reconstruction = TimestepTerm(call, x0, variance, likelihood, clip_range)
    last = schedule.num_train_timesteps - 1
    with torch.no_grad():
        if times is None:
            x = chain.step(x0, chain.all(0), step=0)
            total = reconstruction.of(x.after, chain.all(0))
            for t in range(last):
                after = chain.step(x.after, chain.all(t + 1), step=t + 1)
                total = total + chain.ratio(x, chain.all(t), after.after)
                x = after
            return total + chain.prior(x)
        chosen = as_times("elbo_two_variable", times, last, x0)
        first = chain.step(x0, chain.all(0), step=0)
        before = chain.marginal(chain.all(last - 1), step=last + 1) if last else x0
        total = reconstruction.of(first.after, chain.all(0)) + chain.prior(
            chain.step(before, chain.all(last), step=last)
        )
        for j in range(chosen.shape[-1]):
            middle = chosen[:, j].contiguous() if chosen.ndim == 2 else chain.all(int(chosen[j]))
            at = last + 2 + 3 * j  # each triple has three draws
            x = chain.step(chain.marginal(middle - 1, step=at), middle, step=at + 1)
            after = chain.step(x.after, middle + 1, step=at + 2)
            total = total + (last / chosen.shape[-1]) * chain.ratio(x, middle, after.after)
        return total


class _Step:
    """A draw of x_t from q(x_t|x_{t-1}).

    after: x_t [B, …]. eps: its noise. logvar: the log-variance of the transition, [B, 1, …].
    """

    def __init__(self, after: Tensor, eps: Tensor, logvar: Tensor):
        self.after, self.eps, self.logvar = after, eps, logvar


class _Chain:
    """Draws of the forward chain, and log-densities of the forward and reverse chains."""

    def __init__(
        self,
        call: ModelCall,
        x0: Tensor,
        variance: str | ArrayLike,
        clip_range: float | None,
        seed: int | Tensor,
        sample_ids: Tensor | None,
    ):
        schedule: Schedule = call.schedule
        self._x0, self._call = x0, call
        self._counter: dict[str, Any] = {
            "seed": seed,
            "sample_ids": sample_ids,
            "stream": rng.STREAM_FORWARD,
        }
        step = steps(schedule)
        tensors = (
            torch.tensor(v, device=x0.device)
            for v in (schedule.alpha, schedule.sigma, step.alpha, step.variance)
        )
        self._alpha, self._sigma, self._step_alpha, self._step_variance = tensors
        table = vlb_table(
            schedule,
            prediction_type=call.parametrization.prediction_type,
            variance=variance,
            clip_range=clip_range,
        )
        self._table = dict(zip(VLB_COLUMNS, torch.tensor(table.T, device=x0.device), strict=True))
        self._prior = schedule.prior_std() ** 2

    def all(self, t: int) -> Tensor:
        """The timestep t for all samples, int64 [B]."""
        return torch.full((len(self._x0),), t, dtype=torch.int64, device=self._x0.device)

    def _wide(self, values: Tensor) -> Tensor:
        """Values [B] as [B, 1, …] in the dtype of the computation."""
        return values.to(ops.common.compute_dtype(self._x0)).view(-1, *(1,) * (self._x0.ndim - 1))

    def marginal(self, t: Tensor, *, step: int) -> Tensor:
        """A draw of x_t from q(x_t|x0); x0 where t = -1."""
        noised = ops.q_sample(
            self._x0, t.clamp_min(0), self._alpha, self._sigma, step=step, **self._counter
        )
        return torch.where(self._wide(t) < 0, self._x0, noised)

    def step(self, x_s: Tensor, t: Tensor, *, step: int) -> _Step:
        """A draw of x_t from q(x_t|x_{t-1}) at x_{t-1} = x_s."""
        eps = ops.randn(x_s.shape, step=step, dtype=x_s.dtype, device=x_s.device, **self._counter)
        after = ops.q_sample(x_s, t, self._step_alpha, self._step_variance.sqrt(), noise=eps)
        return _Step(after, eps, self._wide(self._step_variance[t].log()))

    def ratio(self, x: _Step, t: Tensor, after: Tensor) -> Tensor:
        """ln q(x_t|x_{t-1}) - ln p(x_t|x_{t+1}) [B], with x at t and x_{t+1} = `after`."""
        row = {name: self._wide(column[t + 1]) for name, column in self._table.items()}
        out = self._call(after, t + 1)
        half = None
        if out.shape != after.shape:
            out, half = out.chunk(2, dim=1)
        bound = row["clip_bound"]
        x0 = torch.minimum(torch.maximum(row["x0_x"] * after + row["x0_out"] * out, -bound), bound)
        logvar = row["logvar_lo"]
        if half is not None:
            logvar = logvar + (row["logvar_hi"] - logvar) * ((half + 1) / 2)
        distance = x.after - (row["mean_x0"] * x0 + row["mean_x"] * after)
        terms = distance.square() * torch.exp(-logvar) - x.eps.square() + (logvar - x.logvar)
        return 0.5 * terms.flatten(1).sum(1)

    def prior(self, x: _Step) -> Tensor:
        """ln q(x_{T-1}|x_{T-2}) - ln p(x_{T-1}) [B]."""
        terms = x.after.square() / self._prior - x.eps.square() + (math.log(self._prior) - x.logvar)
        return 0.5 * terms.flatten(1).sum(1)
