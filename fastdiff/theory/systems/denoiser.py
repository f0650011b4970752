"""A denoiser: minimises E ‖target - network(x_t, t, y)‖² over t, x0 and eps.

(Ho et al. 2020, eq. 14, for any target.) x_t = alpha_t x0 + sigma_t eps; the target is that of the
prediction type (fastdiff.prediction), t is uniform. A share of the labels is dropped, so that one
network learns both p(x|y) and p(x) (Ho & Salimans 2022, algorithm 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import ops, rng
from ...grad_mode import restored
from ...prediction import normalize, target
from ...schedule import Schedule
from ..likelihood.bound import elbo
from ..system import TimedBound, drop_labels
from .noising import Noised


class Denoiser(Noised):
    """A network (x_t, t, y) of fastdiff.models with its schedule.

    Args:
        network: a network, or its description (`models.describe`).
        schedule: a `Schedule`, or its config.
        prediction_type: what the network predicts.
        label_dropout: the share of the examples that are trained without their label.
        clip_range: the range of the data, for the sampler and the bound; None for data without a
            range.
        likelihood: the likelihood of the data at the least noisy point, `discretized` (8-bit levels
            in [-1, 1]) or `gaussian` (a density).

    Raises:
        ValueError: for numbers or names outside these.
    """

    def __init__(
        self,
        network: nn.Module | dict[str, Any],
        schedule: Schedule | dict[str, Any],
        prediction_type: str = "v",
        label_dropout: float = 0.1,
        clip_range: float | None = 1.0,
        likelihood: str = "discretized",
    ):
        if not 0 <= label_dropout <= 1:
            raise ValueError(
                f"fastdiff.theory.systems: expected label_dropout in [0, 1], got {label_dropout}."
            )
        super().__init__(
            network,
            schedule,
            prediction_type=normalize(prediction_type),
            label_dropout=label_dropout,
            clip_range=clip_range,
            likelihood=likelihood,
        )
        self.prediction_type, self.label_dropout = normalize(prediction_type), label_dropout
        self.clip_range, self.likelihood = clip_range, likelihood
        self.null_label = self.network.null_label

    def condition(self, x0: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Returns the network's arguments other than (x_t, t).

        labels: int64 [B], or None for the null label.
        """
        return {} if labels is None else {"y": labels}

    def drop(self, labels: Tensor, seed: int, sample_ids: Tensor, step: int) -> Tensor:
        """Returns the labels, a share of them replaced by the null label."""
        return drop_labels(
            labels,
            self.null_label,
            self.label_dropout,
            seed=seed,
            sample_ids=sample_ids,
            step=step,
        )

    def loss(
        self,
        x0: Tensor,
        labels: Tensor,
        *,
        seed: int,
        sample_ids: Tensor,
        step: int,
        part: tuple[int, int] | None = None,
    ) -> Tensor:
        """Returns the mean over elements of (target - network(x_t, t, y))², [B].

        x0: [B, …]; labels: int64 [B]. The noise is stream 2; for epsilon it is never stored.
        part: not used, since times follow from the sample ids.
        """
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
        t = self.draw_times(**counter)
        cond = self.condition(x0, self.drop(labels, **counter))
        if self.prediction_type == "epsilon":
            x_t = ops.q_sample(x0, t, self.alpha, self.sigma, **counter)
            return ops.noise_mse(self.network(x_t, self.times[t], **cond), **counter)
        eps = ops.randn(
            x0.shape, stream=rng.STREAM_FORWARD, dtype=x0.dtype, device=x0.device, **counter
        )
        x_t = ops.q_sample(x0, t, self.alpha, self.sigma, noise=eps)
        each = (-1,) + (1,) * (x0.ndim - 1)
        alpha, sigma = (table[t].to(x0.dtype).view(each) for table in (self.alpha, self.sigma))
        expected = target(self.prediction_type, x0, eps, alpha, sigma)
        return (self.network(x_t, self.times[t], **cond) - expected).square().flatten(1).mean(1)

    def bound(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor,
        times: int = 64,
        variance: str = "fixed_small",
    ) -> dict[str, Tensor]:
        """Returns the terms of the variational bound of the chain of all T steps, [B] each in nats.

        (Ho et al. 2020, eq. 5.)

        Args:
            x0: [B, …].
            labels: [B], or None for the bound on -ln p(x0) without labels.
            times: how many of the T - 1 denoising terms are computed for each sample. They are
                different for each sample and spread evenly; their sum is scaled up without bias.
            variance: of p(x_{t-1}|x_t), see `likelihood.vlb_table`.
        """
        return self.terms(
            x0, labels, seed=seed, sample_ids=sample_ids, times=times, variance=variance
        ).bound

    @restored
    @torch.no_grad()
    def terms(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor,
        times: int = 64,
        variance: str = "fixed_small",
    ) -> TimedBound:
        """Returns the terms of `bound` and the contribution of each time."""
        t, scale = self.spread_times(times, seed, sample_ids)
        value = elbo(
            self.network,
            x0,
            self.schedule,
            prediction_type=self.prediction_type,
            variance=variance,
            times=t,
            seed=seed,
            sample_ids=sample_ids,
            likelihood=self.likelihood,
            clip_range=self.clip_range,
            cond=self.condition(x0, labels),
        )
        denoising = scale * value.denoising
        bound = {
            "reconstruction": value.reconstruction,
            "denoising": denoising.sum(1),
            "prior": value.prior,
        }
        return TimedBound(bound, denoising, self.log_snr_at(t))

    def for_sampler(self) -> tuple[nn.Module, Schedule, dict[str, Any]]:
        """Returns (network, schedule, settings) for `fastdiff.Sampler`."""
        return (
            self.network,
            self.schedule,
            {"prediction_type": self.prediction_type, "clip_range": self.clip_range},
        )

    def for_likelihood(self, labels: Tensor | None = None) -> dict[str, Any]:
        """Returns the arguments of `likelihood.nll` other than x0 and the probes."""
        return {
            "model": self.network,
            "schedule": self.schedule,
            "prediction_type": self.prediction_type,
            "dequantization": "gaussian" if self.likelihood == "discretized" else None,
            "cond": {} if labels is None else {"y": labels},
            "fractional_times": not self.schedule.continuous,
        }
