"""The bound as a log-ratio over neighbours: one expectation per t over the triple (x_{t-1}, x_t,
x_{t+1}).

    -ELBO = E [-ln p(x0|x_0)] + E [ln q(x_{T-1}|x_{T-2}) - ln p(x_{T-1})]
            + Σ_t E_q(x_{t-1}, x_t, x_{t+1}|x0) [ln q(x_t|x_{t-1}) - ln p(x_t|x_{t+1})],   t = 0 … T-2, x_{-1} = x0

(Luo 2022, eq. 44). The middle variable is drawn with its neighbours: given x_{t-1}, x_t and x_{t+1}
are dependent, so the expectation is not that of KL(q(x_t|x_{t-1}) || p(x_t|x_{t+1})) over (x_{t-1},
x_{t+1}), which eq. 45 makes of it. In expectation it is the bound of `likelihood.elbo`; drawing one
t it varies more, drawing a whole trajectory it is ln q(x_{0:T-1}|x0) - ln p(x0, x_{0:T-1}),
constant where p is the true reverse process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ... import ops, rng
from ...schedule import Schedule
from ...table import VLB_COLUMNS
from .bound import LIKELIHOODS, Terms, as_times, network_call, prior_variance
from .table import steps, vlb_table


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
    """An unbiased estimate of -ELBO [B] in nats by log-ratios (Luo 2022, eq. 44); compare
    `ELBO.total` of `elbo`.

    Args:
        times: the middle timesteps t of the triples, [K] shared or int64 [B, K] of each sample's
            own, in [0, T-1): their sum counts (T-1)/K times, so that times drawn uniformly give an
            unbiased estimate, and every triple is drawn for itself. None: all of them along one
            trajectory x_0 … x_{T-1}.
        model, x0, schedule, prediction_type, variance, seed, sample_ids, likelihood, clip_range,
            cond: see `elbo`.

    Returns:
        [B] without gradients.

    Raises:
        ValueError: unknown names, times outside [0, T-1) or of another shape.
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            "fastdiff.theory.likelihood.elbo_two_variable: expected likelihood in"
            f" {list(LIKELIHOODS)}, got {likelihood!r}."
        )
    chain = _Chain(
        model, x0, schedule, prediction_type, variance, clip_range, cond or {}, seed, sample_ids
    )
    reconstruction = Terms(
        model, x0, schedule, prediction_type, variance, likelihood, clip_range, cond
    )
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
            at = last + 2 + 3 * j  # three draws of their own for each triple
            x = chain.step(chain.marginal(middle - 1, step=at), middle, step=at + 1)
            after = chain.step(x.after, middle + 1, step=at + 2)
            total = total + (last / chosen.shape[-1]) * chain.ratio(x, middle, after.after)
        return total


class _Step:
    """x_t drawn from q(x_t|x_{t-1}): `after`, the noise `eps` and the log-variance of the
    transition, [B, 1, …].
    """

    def __init__(self, after: Tensor, eps: Tensor, logvar: Tensor):
        self.after, self.eps, self.logvar = after, eps, logvar


class _Chain:
    """The forward chain's draws and both log-densities."""

    def __init__(
        self,
        model: Callable[..., Any],
        x0: Tensor,
        schedule: Schedule,
        prediction_type: str,
        variance: str | ArrayLike,
        clip_range: float | None,
        cond: Mapping[str, Any],
        seed: int | Tensor,
        sample_ids: Tensor | None,
    ):
        self._x0, self._network = x0, network_call(model, schedule, x0.device, cond)
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
            schedule, prediction_type=prediction_type, variance=variance, clip_range=clip_range
        )
        self._table = dict(zip(VLB_COLUMNS, torch.tensor(table.T, device=x0.device), strict=True))
        self._prior = prior_variance(schedule)

    def all(self, t: int) -> Tensor:
        return torch.full((len(self._x0),), t, dtype=torch.int64, device=self._x0.device)

    def _wide(self, values: Tensor) -> Tensor:
        return values.to(ops.common.compute_dtype(self._x0)).view(-1, *(1,) * (self._x0.ndim - 1))

    def marginal(self, t: Tensor, *, step: int) -> Tensor:
        """x_t from q(x_t|x0); x0 itself where t = -1."""
        noised = ops.q_sample(
            self._x0, t.clamp_min(0), self._alpha, self._sigma, step=step, **self._counter
        )
        return torch.where(self._wide(t) < 0, self._x0, noised)

    def step(self, x_s: Tensor, t: Tensor, *, step: int) -> _Step:
        """x_t from q(x_t|x_{t-1})."""
        eps = ops.randn(x_s.shape, step=step, dtype=x_s.dtype, device=x_s.device, **self._counter)
        after = ops.q_sample(x_s, t, self._step_alpha, self._step_variance.sqrt(), noise=eps)
        return _Step(after, eps, self._wide(self._step_variance[t].log()))

    def ratio(self, x: _Step, t: Tensor, after: Tensor) -> Tensor:
        """ln q(x_t|x_{t-1}) - ln p(x_t|x_{t+1}) [B], x of the timesteps t and `after` of t + 1."""
        row = {name: self._wide(column[t + 1]) for name, column in self._table.items()}
        out = self._network(after, t + 1)
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
