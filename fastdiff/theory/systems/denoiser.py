"""A denoiser: minimises E w_t ‖target - network(x_t, t, y)‖² over t, x0 and eps.

(Ho et al. 2020, eq. 14, for any target.) x_t = alpha_t x0 + sigma_t eps; the target is that of the
prediction type (fastdiff.prediction). The weights w_t, the times t and a learned variance are
options; without them w_t = 1 and t is uniform. A share of the conditions (labels, or any tensors
that a network of your own takes) is dropped, so that one network learns both p(x|y) and p(x) (Ho &
Salimans 2022, algorithm 1).

A network that gives epsilon must reproduce x_t where noise is all that there is, and one that gives
x0 where there is almost none: an error of the size of sigma_t is then an error of the size of eps.
With `precondition` the prediction is computed from an output F of unit size (Karras et al. 2022,
eq. 7, for x_t of unit size):

    x0 = alpha_t x_t + sigma_t F,  eps = sigma_t x_t - alpha_t F      if alpha_t² + sigma_t² = 1
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import ops, rng
from ...grad_mode import restored
from ...prediction import normalize, target
from ...sampling.network import prediction_of
from ...schedule import Schedule
from ..conditions import Condition, Conditioning
from ..likelihood.bound import elbo
from ..likelihood.table import VARIANCES
from ..system import TimedBound
from ..variational.denoising import DenoisingLoss
from ..variational.times import SAMPLINGS, LossAware, draw, uniform
from ..variational.weights import TIMESTEP_WEIGHTINGS, output_weight, timestep_weights
from .noising import Noised

LOSSES = ("mse", "vlb", "hybrid")
UNITS = {"mse": "MSE", "vlb": "bits/dim", "hybrid": "MSE + bits/dim"}
TIMES = (*SAMPLINGS, "loss_aware")
LEARNED = ("learned", "learned_range")


class Denoiser(Noised):
    """A network (x_t, t, **cond) with its schedule.

    Args:
        network: a module, or its description (`models.describe`). A network of your own gets labels
            if it has an argument `y`, and other conditions under their names; `null_label` and
            `null_cond` say what stands for none (`fastdiff.sampling.takes`).
        schedule: a `Schedule`, or its config.
        prediction_type: what the network predicts.
        label_dropout: the share of the examples that are trained without their conditions; 0 for a
            network with labels and without `null_label`.
        clip_range: the range of the data, for the sampler and the bound; None for data without a
            range.
        likelihood: the likelihood of the data at the least noisy point, `discretized` (8-bit levels
            in [-1, 1]) or `gaussian` (a density).
        loss: `mse`, the weighted squared error; `vlb`, the terms of the bound in bits per
            dimension; `hybrid`, the squared error, and vlb_share times the bound for the variance
            alone (Nichol & Dhariwal 2021, eq. 16).
        weighting: of the squared error, see fastdiff.theory.variational.weights. `output` is 1 on
            the error of the prediction type.
        precondition: whether the network gives F, the type `edm`, from which the prediction is
            computed.
        times: how the times of a training step are drawn (fastdiff.theory.variational.times):
            `uniform`, `antithetic`, `stratified`, or `loss_aware` by the losses so far.
        variance: of p(x_{t-1}|x_t) in the bound, see `likelihood.vlb_table`; None for
            `learned_range` with the loss `hybrid`, else `fixed_small`. With a learned one the
            network gives twice the channels.
        vlb_share: see `loss`.

    Attributes:
        loss_unit: of the mean of the loss; a weighted squared error counts as MSE.
        output_type: the prediction type of the network's output.
        learned: whether the network gives a variance too.

    Raises:
        TypeError: for a network that is no module.
        ValueError: for numbers or names outside these.
    """

    # names of the network's arguments that the system itself passes
    own_conditions: tuple[str, ...] = ()

    def __init__(
        self,
        network: nn.Module | dict[str, Any],
        schedule: Schedule | dict[str, Any],
        prediction_type: str = "v",
        label_dropout: float = 0.1,
        clip_range: float | None = 1.0,
        likelihood: str = "discretized",
        loss: str = "mse",
        weighting: str = "output",
        precondition: bool = False,
        times: str = "uniform",
        variance: str | None = None,
        vlb_share: float = 1e-3,
    ):
        if not 0 <= label_dropout <= 1:
            raise ValueError(
                f"fastdiff.theory.systems: expected label_dropout in [0, 1], got {label_dropout}."
            )
        for name, value, known in (
            ("loss", loss, LOSSES),
            ("weighting", weighting, TIMESTEP_WEIGHTINGS),
            ("times", times, TIMES),
            ("variance", variance, (None, *VARIANCES)),
        ):
            if value not in known:
                raise ValueError(
                    f"fastdiff.theory.systems: expected {name} in {list(known)}, got {value!r}."
                )
        # a key that is left out has the value of versions that did not know it
        further = {
            key: value
            for key, value, former in (
                ("loss", loss, "mse"),
                ("weighting", weighting, "output"),
                ("precondition", precondition, False),
                ("times", times, "uniform"),
                ("variance", variance, None),
                ("vlb_share", vlb_share, 1e-3),
            )
            if value != former
        }
        super().__init__(
            network,
            schedule,
            prediction_type=normalize(prediction_type),
            label_dropout=label_dropout,
            clip_range=clip_range,
            likelihood=likelihood,
            **further,
        )
        self.prediction_type, self.label_dropout = normalize(prediction_type), label_dropout
        self.output_type = "edm" if precondition else self.prediction_type
        self.clip_range, self.likelihood = clip_range, likelihood
        self.kind, self.times_drawn = loss, times
        self.loss_unit = UNITS[loss]
        self.variance = variance or ("learned_range" if loss == "hybrid" else "fixed_small")
        self.learned = self.variance in LEARNED
        if loss == "hybrid" and not self.learned:
            raise ValueError(
                "fastdiff.theory.systems: expected variance in"
                f" {list(LEARNED)} for the loss hybrid, got {variance!r}."
            )
        self.conditioning = Conditioning(
            self.network, label_dropout, "fastdiff.theory.systems", self.own_conditions
        )
        self._weights, self._further = self._objective(weighting, vlb_share)
        self.aware = LossAware(self.schedule.num_train_timesteps) if times == "loss_aware" else None
        self._pending: Tensor | None = None

    def _objective(
        self, weighting: str, vlb_share: float
    ) -> tuple[Tensor | None, DenoisingLoss | None]:
        """Returns (factors of the output's squared error [T], the loss with the bound).

        None for factors 1, and without the bound.
        """
        weights = None
        if weighting != "output" or self.output_type != self.prediction_type:
            weights = timestep_weights(
                weighting, self.schedule, self.output_type, of=self.prediction_type
            )
        if self.kind == "mse":
            return weights, None
        on_eps = output_weight(self.output_type, self.alpha, self.sigma).reciprocal()
        if self.kind == "hybrid" and not bool(on_eps.isfinite().all()):
            raise ValueError(
                "fastdiff.theory.systems: expected a schedule without pure noise for the loss"
                f" hybrid, got {self.schedule!r}."
            )
        further = DenoisingLoss(
            self.schedule,
            prediction_type=self.output_type,
            objective=self.kind,
            variance=self.variance,
            vlb_share=vlb_share,
            weights=on_eps if weights is None else on_eps * weights,
        )
        return weights, further

    def condition(self, x0: Tensor, labels: Condition) -> dict[str, Tensor]:
        """Returns the network's arguments other than (x_t, t).

        labels: int64 [B], a dict of conditions, or None for none.
        """
        return self.conditioning.arguments(self.network, labels, x0)

    def drop(self, labels: Condition, seed: int, sample_ids: Tensor, step: int) -> Condition:
        """Returns the conditions, a share of the examples' replaced by none."""
        return self.conditioning.drop(
            self.network,
            labels,
            self.label_dropout,
            seed=seed,
            sample_ids=sample_ids,
            step=step,
        )

    def loss(
        self,
        x0: Tensor,
        labels: Condition,
        *,
        seed: int,
        sample_ids: Tensor,
        step: int,
        part: tuple[int, int] | None = None,
    ) -> Tensor:
        """Returns w_t times the mean over elements of (target - network(x_t, t, y))², [B].

        x0: [B, …]; labels: int64 [B] or a dict of conditions. The noise is stream 2; for epsilon it
            is never stored.
        part: the positions of this share of a larger batch, for times drawn by position. The losses
            `vlb` and `hybrid` are those of `DenoisingLoss`; loss-aware times have the factors that
            keep the mean.
        """
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
        t, importance = self._draw(part, counter)
        cond = self.condition(x0, self.drop(labels, **counter))
        if self._further is not None:
            losses = self._further(self.network, x0, t, cond=cond, **counter)
        else:
            losses = self._squared_error(x0, t, cond, counter)
        if importance is None:
            return losses
        self._pending = torch.stack([t.double(), losses.detach().double()], 1)
        return losses * importance.to(losses.dtype)

    def _draw(
        self, part: tuple[int, int] | None, counter: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (t int64 [B], the factors of the losses [B] or None)."""
        if self.times_drawn == "uniform":
            return self.draw_times(**counter), None
        ids, others = counter["sample_ids"], {k: counter[k] for k in ("seed", "step")}
        if self.aware is not None:
            t, importance = self.aware(uniform(ids, **others))
            return t, importance
        size = self.schedule.num_train_timesteps
        u = draw(self.times_drawn, ids, part=part, **others)
        return (u * size).floor().to(torch.int64).clamp(max=size - 1), None

    def _squared_error(
        self, x0: Tensor, t: Tensor, cond: dict[str, Tensor], counter: dict[str, Any]
    ) -> Tensor:
        """Returns w_t·mean (target - output)² [B]; a learned variance is not read."""
        weights = None
        if self._weights is not None:
            self._weights = self._weights.to(t.device)
            weights = self._weights[t]
        if self.output_type == "epsilon":
            x_t = ops.q_sample(x0, t, self.alpha, self.sigma, **counter)
            out = self._mean(self.network(x_t, self.times[t], **cond), x0)
            return ops.noise_mse(out, weight=weights, **counter)
        eps = ops.randn(
            x0.shape, stream=rng.STREAM_FORWARD, dtype=x0.dtype, device=x0.device, **counter
        )
        x_t = ops.q_sample(x0, t, self.alpha, self.sigma, noise=eps)
        each = (-1,) + (1,) * (x0.ndim - 1)
        alpha, sigma = (table[t].to(x0.dtype).view(each) for table in (self.alpha, self.sigma))
        expected = target(self.output_type, x0, eps, alpha, sigma)
        out = self._mean(self.network(x_t, self.times[t], **cond), x0)
        errors = (out - expected).square().flatten(1).mean(1)
        return errors if weights is None else errors * weights.to(errors.dtype)

    def _mean(self, out: Any, x0: Tensor) -> Tensor:
        """Returns the prediction in a network's output, of x0's shape."""
        where = "fastdiff.theory.systems"
        whole = prediction_of(out, x0, where=where, learned=True)
        if whole.shape != x0.shape and not self.learned:
            raise ValueError(
                f"{where}: expected an output of shape {list(x0.shape)}, got"
                f" {list(whole.shape)}. A variance is read by the loss hybrid and with a learned"
                " variance only."
            )
        return whole if whole.shape == x0.shape else whole.chunk(2, dim=1)[0]

    def pending(self) -> Tensor:
        """Returns what the last call of `loss` left to record, float64 [B, 2], and forgets it.

        The rows are (t, loss without the factor of loss-aware times), in the order of the batch;
        none for other times.
        """
        rows, self._pending = self._pending, None
        return self.alpha.new_zeros(0, 2) if rows is None else rows

    def record(self, rows: Tensor) -> None:
        """Takes the rows of `pending` of a whole training step, in the order of its batch.

        Loss-aware times depend on them from the next step on.
        """
        if self.aware is not None and len(rows):
            self.aware.update(rows[:, 0].to(torch.int64), rows[:, 1])

    def bound(
        self,
        x0: Tensor,
        labels: Condition = None,
        *,
        seed: int,
        sample_ids: Tensor,
        times: int = 64,
        variance: str | None = None,
    ) -> dict[str, Tensor]:
        """Returns the terms of the variational bound of the chain of all T steps, [B] each in nats.

        (Ho et al. 2020, eq. 5.)

        Args:
            x0: [B, …].
            labels: [B], or None for the bound on -ln p(x0) without labels.
            times: how many of the T - 1 denoising terms are computed for each sample. They are
                different for each sample and spread evenly; their sum is scaled up without bias.
            variance: of p(x_{t-1}|x_t), see `likelihood.vlb_table`; None for that of the system.
        """
        return self.terms(
            x0, labels, seed=seed, sample_ids=sample_ids, times=times, variance=variance
        ).bound

    @restored
    @torch.no_grad()
    def terms(
        self,
        x0: Tensor,
        labels: Condition = None,
        *,
        seed: int,
        sample_ids: Tensor,
        times: int = 64,
        variance: str | None = None,
    ) -> TimedBound:
        """Returns the terms of `bound` and the contribution of each time."""
        t, scale = self.spread_times(times, seed, sample_ids)
        value = elbo(
            self.network,
            x0,
            self.schedule,
            prediction_type=self.output_type,
            variance=variance or self.variance,
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
            {"prediction_type": self.output_type, "clip_range": self.clip_range},
        )

    def for_likelihood(self, labels: Condition = None) -> dict[str, Any]:
        """Returns the arguments of `likelihood.nll` other than x0 and the probes."""
        return {
            "model": self.network,
            "schedule": self.schedule,
            "prediction_type": self.output_type,
            "dequantization": "gaussian" if self.likelihood == "discretized" else None,
            "cond": self.conditioning.arguments(self.network, labels),
            "fractional_times": not self.schedule.continuous,
        }
