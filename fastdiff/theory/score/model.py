"""A score model that trains by likelihood: a network on the path of an SDE.

With the weight lambda(t) = g(t)² denoising score matching bounds the likelihood (Song, Durkan et
al. 2021, theorem 3):

    -ln p(x0) <= E ½ ∫ g²/sigma² ‖eps - eps_hat‖² dt + reconstruction + KL(q(x_1|x0) || prior).

g²/sigma² = -d log_snr/dt, so drawing t with a density in proportion to it (ibid., section 4.4:
importance sampling) is drawing the log-SNR uniformly, and the integrand is left with a constant
weight: the bound of a variational diffusion model with a linear log-SNR (Kingma et al. 2021, eq.
17). The weight sigma² (`simple`) is DDPM's loss, better to look at.

Parametrisation. The input is x_t over sqrt(alpha² + sigma²), of unit size on every path. The output
is v by default, finite at both ends; its error in eps is alpha (v - v_hat), so the weight fades out
where there is only noise. The network is told the log-SNR, on [0, 1]: half of an SDE's log-SNR lies
in the first hundredth of its time. Where data are images, the likelihood is decided at noise as
fine as their levels, which a network sees through `fastdiff.models.features` beside its input.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ... import ops, rng
from ...backend.eager.sums import sum_samples
from ...models import build, describe, features
from ...prediction import Parametrization, normalize
from ...schedule import Schedule, Time
from ..system import Timed
from .dequantize import DEQUANTIZATIONS, dequantize
from .matching import eps_error
from .sde import SDES

WEIGHTINGS = ("likelihood", "simple")
TIMES = ("independent", "stratified")
LIKELIHOODS = ("discretized", "gaussian")
_DEQUANTIZE = 2**31  # steps of stream 2 that no training step's noise has


class ScoreModel(nn.Module):
    """A network (x_t, u, y) with u in [0, 1] falling log-SNR, and the SDE whose scores it learns.

    Called like a network of `Sampler` (its `network_time` tells u), with the schedule
    `self.schedule`.

    Args:
        network: of fastdiff.models with time_scale = 1000, or its description; see `network_for`.
        sde: `vp`, `sub_vp` or `ve`. sde_options: its arguments.
        prediction_type: of the output. weighting: `likelihood` (g²) or `simple` (sigma²).
        importance: t with the density of the weight g²/sigma²; otherwise uniform in t. For
            `likelihood` alone.
        times: `independent` for every sample, or `stratified` over the batch's positions, with less
            variance.
        log_snr_max: the data's end, held to the SDE's own at t = 0; at 13.3 the noise is a sixth of
            the distance between 8-bit levels.
        likelihood: of the data at that end, `discretized` (8-bit levels in [-1, 1]) or `gaussian`
            (continuous data).
        fourier: exponents of `fastdiff.models.features`. label_dropout: share of the examples
            trained without their label.
        dequantization: of the training data, for `likelihood.nll` with the same; None trains on the
            levels themselves, for `gaussian`.

    Raises:
        ValueError: for names and numbers outside these.
    """

    def __init__(
        self,
        network: nn.Module | dict[str, Any],
        sde: str = "vp",
        sde_options: dict[str, float] | None = None,
        prediction_type: str = "v",
        weighting: str = "likelihood",
        importance: bool = True,
        times: str = "independent",
        log_snr_max: float = 13.3,
        likelihood: str = "discretized",
        fourier: tuple[int, ...] | list[int] = (),
        label_dropout: float = 0.1,
        dequantization: str | None = None,
    ):
        super().__init__()
        for name, value, known in (
            ("sde", sde, tuple(SDES)),
            ("weighting", weighting, WEIGHTINGS),
            ("times", times, TIMES),
            ("likelihood", likelihood, LIKELIHOODS),
            ("dequantization", dequantization, (None, *DEQUANTIZATIONS[:2])),
        ):
            if value not in known:
                raise ValueError(
                    f"fastdiff.theory.score.ScoreModel: expected {name} in {list(known)}, got"
                    f" {value!r}."
                )
        if not 0 <= label_dropout <= 1:
            raise ValueError(
                "fastdiff.theory.score.ScoreModel: expected label_dropout in [0, 1], got"
                f" {label_dropout!r}."
            )
        self.network: Any = build(network) if isinstance(network, dict) else network
        self.sde = SDES[sde](**(sde_options or {}))
        self.prediction_type, self.weighting, self.times = (
            normalize(prediction_type),
            weighting,
            times,
        )
        self.parametrization = Parametrization(
            self.prediction_type, unit_input=self.sde.name != "vp"
        )
        self.importance, self.likelihood, self.dequantization = (
            importance,
            likelihood,
            dequantization,
        )
        self.fourier, self.label_dropout = tuple(int(n) for n in fourier), label_dropout
        self.log_snr_max = min(float(log_snr_max), float(self.sde.log_snr(0.0)))
        self.log_snr_min = float(self.sde.log_snr(1.0))
        if not self.log_snr_min < self.log_snr_max < math.inf:
            raise ValueError(
                "fastdiff.theory.score.ScoreModel: expected log_snr_max above"
                f" {self.log_snr_min:.4g}, where the SDE ends, got {log_snr_max!r}."
            )
        self.config: dict[str, Any] = {
            "network": describe(self.network),
            "sde": sde,
            "sde_options": dict(sde_options or {}),
            "prediction_type": self.prediction_type,
            "weighting": weighting,
            "importance": importance,
            "times": times,
            "log_snr_max": self.log_snr_max,
            "likelihood": likelihood,
            "fourier": list(self.fourier),
            "label_dropout": label_dropout,
            "dequantization": dequantization,
        }

    @property
    def schedule(self) -> Schedule:
        """The SDE's path."""
        return self.sde.schedule()

    @property
    def sigma_min(self) -> float:
        """The noise level sigma/alpha of the data's end, where `likelihood.nll` begins."""
        return math.exp(-0.5 * self.log_snr_max)

    def network_time(self, point: Time) -> float:
        """u = (log_snr_max - log_snr)/(log_snr_max - log_snr_min)."""
        return (self.log_snr_max - point.log_snr) / (self.log_snr_max - self.log_snr_min)

    def network_times(self, log_snr: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same for many log-SNRs."""
        return (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's output for x [B, …] of unit size, u = t [B] and labels y [B]; None: without
        labels.
        """
        x = features(x, self.fourier)
        return self.network(x, t) if y is None else self.network(x, t, y)

    def _at(self, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(u float32, alpha, sigma) at log-SNRs [B] float64."""
        alpha, sigma = self.sde.marginal(self.sde.time(log_snr))
        return (
            ((self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)).float(),
            alpha,
            sigma,
        )

    def _uniform(self, seed: int, sample_ids: Tensor, step: int) -> Tensor:
        """[B] float64 in [0, 1)."""
        if self.times == "independent":
            return rng.uniform(seed=seed, sample_ids=sample_ids, step=step).double()
        # one draw for the batch, moved on by 1/B from position to position (Kingma et al. 2021,
        # appendix I.1)
        first = rng.uniform(
            seed=seed, sample_ids=torch.zeros_like(sample_ids[:1]), step=step, word=2
        ).double()
        place = torch.arange(len(sample_ids), device=sample_ids.device, dtype=torch.float64)
        return (first + place / max(len(sample_ids), 1)).remainder(1.0)

    def loss(
        self, x0: Tensor, labels: Tensor | None = None, *, seed: int, sample_ids: Tensor, step: int
    ) -> Tensor:
        """w(t) mean_e (eps - eps_hat)² [B]: with `likelihood` the bound's diffusion term in nats
        per dimension.

        Noise is stream 2 of the noise contract, times and dropped labels stream 4.
        """
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
        if self.dequantization is not None:
            x0, _ = dequantize(
                x0,
                self.dequantization,
                rho=self.sigma_min,
                seed=seed,
                sample_ids=sample_ids,
                step=step + _DEQUANTIZE,
            )
        u, weight = self._uniform(**counter), None
        if self.weighting == "likelihood" and self.importance:
            log_snr = self.log_snr_max + u * (self.log_snr_min - self.log_snr_max)
            weight = torch.full_like(u, 0.5 * (self.log_snr_max - self.log_snr_min))
        else:
            first = self.sde.time(self.log_snr_max).to(u.device)
            t = first + u * (1.0 - first)
            log_snr = self.sde.log_snr(t)
            if self.weighting == "likelihood":
                weight = 0.5 * (1.0 - first) * self.sde.rate(t)
        told, alpha, sigma = self._at(log_snr)
        cond = self._cond(labels)
        if cond:
            dropped = rng.uniform(**counter, word=1) < self.label_dropout
            cond["y"] = torch.where(
                dropped, torch.full_like(cond["y"], self.network.null_label), cond["y"]
            )
        return eps_error(
            self,
            x0,
            told,
            alpha,
            sigma,
            prediction_type=self.parametrization,
            weight=weight,
            **counter,
            cond=cond,
        )

    def _cond(self, labels: Tensor | None) -> dict[str, Tensor]:
        """Labels for networks that have classes."""
        has_classes = bool(getattr(self.network, "null_label", 0))
        return {"y": labels} if labels is not None and has_classes else {}

    def bound(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor,
        times: int = 64,
    ) -> dict[str, Tensor]:
        """Terms [B] in nats whose sum bounds -ln p(x0) in expectation (Song, Durkan et al. 2021,
        theorem 3).

        times: evaluations of the integral over the log-SNR for each sample, one in each of as many
            equal strata; unbiased.
        """
        return self.terms(x0, labels, seed=seed, sample_ids=sample_ids, times=times).bound

    @torch.no_grad()
    def terms(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor,
        times: int = 64,
    ) -> Timed:
        """The same with what each time adds. Raises ValueError for times < 1."""
        if times < 1:
            raise ValueError(
                f"fastdiff.theory.score.ScoreModel: expected times >= 1, got {times!r}."
            )
        dims, span, cond = (
            x0[0].numel() if len(x0) else 0,
            self.log_snr_max - self.log_snr_min,
            self._cond(labels),
        )
        added, places = [], []
        for j in range(times):
            u = rng.uniform(seed=seed, sample_ids=sample_ids, step=j).double()
            places.append(self.log_snr_max - span * (j + u) / times)
            told, alpha, sigma = self._at(places[-1])
            error = eps_error(
                self,
                x0,
                told,
                alpha,
                sigma,
                prediction_type=self.parametrization,
                seed=seed,
                sample_ids=sample_ids,
                step=j + 1,
                cond=cond,
            )
            added.append(0.5 * span * dims / times * error.double())
        denoising, log_snr = torch.stack(added, 1), torch.stack(places, 1)
        reconstruction, prior = self._reconstruction(x0, seed, sample_ids), self._prior(x0)
        bound = {"reconstruction": reconstruction, "denoising": denoising.sum(1), "prior": prior}
        return Timed(bound, denoising, log_snr)

    def _reconstruction(self, x0: Tensor, seed: int, sample_ids: Tensor) -> Tensor:
        """-ln p(x0 | x_0) of the noise drawn at step 0."""
        rho, dims = self.sigma_min, x0[0].numel() if len(x0) else 0
        eps = ops.randn(
            tuple(x0.shape),
            seed=seed,
            sample_ids=sample_ids,
            stream=rng.STREAM_FORWARD,
            dtype=x0.dtype,
            device=x0.device,
        )
        if self.likelihood == "discretized":
            return ops.discretized_gaussian_nll(
                x0, x0 + rho * eps, torch.full_like(x0, math.log(rho))
            ).double()
        return 0.5 * sum_samples(eps.double().square()) + 0.5 * dims * math.log(
            2 * math.pi * rho**2
        )

    def _prior(self, x0: Tensor) -> Tensor:
        """KL(q(x_1|x0) || N(0, prior_std²))."""
        alpha, sigma = (float(v) for v in self.sde.marginal(1.0))
        kind = ops.common.compute_dtype(x0)
        numbers = (2 * math.log(sigma), 0.0, 2 * math.log(self.sde.prior_std))
        logvar, zero, other = torch.tensor(numbers, dtype=kind, device=x0.device)
        return ops.gaussian_kl(x0 * alpha, logvar, zero, other).double()

    def for_sampler(self) -> tuple[nn.Module, Schedule, dict[str, Any]]:
        """(network, schedule, settings) for `fastdiff.Sampler`."""
        bounded = self.likelihood == "discretized"
        return (
            self,
            self.schedule,
            {"prediction_type": self.parametrization, "clip_range": 1.0 if bounded else None},
        )

    def for_likelihood(self, labels: Tensor | None = None) -> dict[str, Any]:
        """Arguments of `likelihood.nll` beside x and the probes: likelihood.nll(x=x0,
        **model.for_likelihood(), seed=0).
        """
        levels = (self.dequantization or "gaussian") if self.likelihood == "discretized" else None
        return {
            "model": self,
            "schedule": self.schedule,
            "prediction_type": self.parametrization,
            "sigma_min": self.sigma_min,
            "dequantization": levels,
            "cond": self._cond(labels),
        }


def network_for(
    shape: tuple[int, ...], *, fourier: tuple[int, ...] = (), classes: int = 0, **config: Any
) -> dict[str, Any]:
    """The description of a network for `ScoreModel` on examples of this shape: [dim] for an MLP,
    [C, H, W] for a U-Net.

    config: further arguments of it. Raises ValueError for other shapes.
    """
    config = {"num_classes": classes, "time_scale": 1000.0, **config}
    wide = 1 + 2 * len(fourier)
    if len(shape) == 1:
        return {"class": "MLP", "config": {"dim": wide * shape[0], "out": shape[0], **config}}
    if len(shape) == 3 and shape[1] == shape[2]:
        return {
            "class": "UNet",
            "config": {
                "channels": wide * shape[0],
                "out_channels": shape[0],
                "size": shape[1],
                **config,
            },
        }
    raise ValueError(
        "fastdiff.theory.score.network_for: expected a shape [dim] or [C, H, H], got"
        f" {list(shape)}."
    )
