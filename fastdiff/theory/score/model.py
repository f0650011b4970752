"""A score model that is trained by likelihood: a network on the path of an SDE.

With the weight lambda(t) = g(t)², denoising score matching bounds the likelihood (Song, Durkan et
al. 2021, theorem 3):

    -ln p(x0) <= E ½ ∫ g²/sigma² ‖eps - eps_hat‖² dt + reconstruction + KL(q(x_1|x0) || prior).

Because g²/sigma² = -d log_snr/dt, drawing t with a density proportional to it (importance sampling,
ibid., section 4.4) is the same as drawing the log-SNR uniformly. The integrand then has a constant
weight: this is the bound of a variational diffusion model with a linear log-SNR (Kingma et al.
2021, eq. 17). The weight sigma² (`simple`) is DDPM's loss, which gives better-looking samples.

Parametrisation. The input is x_t/sqrt(alpha² + sigma²), which has unit size on every path. The
output is v by default, which is finite at both ends; its error in eps is alpha (v - v_hat), so the
loss vanishes where there is only noise. The network's time is its log-SNR mapped to [0, 1]: half of
an SDE's log-SNR range is in the first hundredth of its time. For images the likelihood is decided
at noise as fine as the distance between levels; `fastdiff.models.features` adds inputs that resolve
it.
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
from ...grad_mode import restored
from ...models import build, features
from ...models.build import description_of
from ...prediction import Parametrization, normalize
from ...sampling.model_call import ModelCall
from ...schedule import Schedule, Time
from ..conditions import Condition, Conditioning, is_module
from ..dequantization import DEQUANTIZATIONS, FIRST_STEP, LIKELIHOODS, dequantize
from ..system import TimedBound
from .matching import eps_error
from .sde import SDES

WEIGHTINGS = ("likelihood", "simple")
TIMES = ("independent", "stratified")
_WHERE = "fastdiff.theory.score.ScoreModel"


class ScoreModel(nn.Module):
    """A network (x_t, u, **cond) that learns the scores of an SDE, with u in [0, 1] its time.

    u is linear in the log-SNR, from 0 at log_snr_max to 1 at the SDE's end. `Sampler` can draw from
    the model with the schedule `self.schedule`; `network_time` gives it u.

    Args:
        network: a network of fastdiff.models with time_scale = 1000, any other module of times in
            [0, 1], or its description; see `network_for`.
        sde: `vp`, `sub_vp` or `ve`. sde_options: its arguments.
        prediction_type: of the network's output.
        weighting: `likelihood` (g²) or `simple` (sigma²).
        importance: whether t is drawn with a density proportional to g²/sigma²; otherwise it is
            uniform. Used by `likelihood` only.
        times: how training times are drawn (`time_sampling` of `VDM`): `independent` for every
            sample, or `stratified` over the batch's positions, which has less variance.
        log_snr_max: the log-SNR at the data's end, at most that of the SDE at t = 0. At 13.3 the
            noise is a sixth of the distance between 8-bit levels.
        likelihood: of the data at that end, `discretized` (8-bit levels in [-1, 1]) or `gaussian`
            (continuous data).
        fourier: exponents of `fastdiff.models.features`.
        label_dropout: the fraction of examples trained without their conditions; 0 for a network
            with labels and without `null_label` (see `Denoiser`).
        dequantization: of the training data, for `likelihood.nll` with the same one; None trains on
            the levels themselves, which suits its `gaussian`.

    Raises:
        ValueError: names and numbers outside these.
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
                raise ValueError(f"{_WHERE}: expected {name} in {list(known)}, got {value!r}.")
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"{_WHERE}: expected label_dropout in [0, 1], got {label_dropout!r}.")
        self.network: Any = is_module(
            build(network) if isinstance(network, dict) else network, _WHERE
        )
        self.conditioning = Conditioning(self.network, label_dropout, _WHERE)
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
        self.loss_unit = "nats/dim" if weighting == "likelihood" else "MSE"
        self.fourier, self.label_dropout = tuple(int(n) for n in fourier), label_dropout
        self.log_snr_max = min(float(log_snr_max), float(self.sde.log_snr(0.0)))
        self.log_snr_min = float(self.sde.log_snr(1.0))
        if not self.log_snr_min < self.log_snr_max < math.inf:
            raise ValueError(
                f"{_WHERE}: expected log_snr_max above"
                f" {self.log_snr_min:.4g}, where the SDE ends, got {log_snr_max!r}."
            )
        self.config: dict[str, Any] = {
            "network": description_of(self.network),
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

    conditioned = property(lambda self: self.network, doc="What takes the conditions.")

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of a sample; None for a network that does not say its sizes."""
        config = getattr(self.network, "config", None)
        config = config if isinstance(config, dict) else {}
        if "dim" in config:
            return (config.get("out") or config["dim"],)
        if "channels" in config and "size" in config:
            channels = config.get("out_channels") or config["channels"]
            return (channels, config["size"], config["size"])
        return None

    @property
    def schedule(self) -> Schedule:
        """The SDE's path."""
        return self.sde.schedule()

    @property
    def sigma_min(self) -> float:
        """The noise level sigma/alpha at the data's end, where `likelihood.nll` starts.

        It is at least the `sigma_min` of a `VESDE`, which is its level at t = 0.
        """
        return math.exp(-0.5 * self.log_snr_max)

    def network_time(self, point: Time) -> float:
        """u = (log_snr_max - log_snr)/(log_snr_max - log_snr_min)."""
        return (self.log_snr_max - point.log_snr) / (self.log_snr_max - self.log_snr_min)

    def network_times(self, log_snr: NDArray[np.float64]) -> NDArray[np.float64]:
        """`network_time` at log-SNRs [n]."""
        return (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The output for x [B, …] of unit size, u = t [B] and conditions such as labels y [B]."""
        return self.network(features(x, self.fourier), t, **cond)

    def _at(self, log_snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (u float32, alpha, sigma) at log-SNRs [B] float64."""
        alpha, sigma = self.sde.at_log_snr(log_snr)
        return (
            ((self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)).float(),
            alpha,
            sigma,
        )

    def _uniform(
        self,
        seed: int,
        sample_ids: Tensor,
        step: int,
        part: tuple[int, int] | None = None,  # (start, total) of a share of a batch
    ) -> Tensor:
        """Returns u float64 [B], uniform in [0, 1), by the method `self.times`."""
        if self.times == "independent":
            return rng.uniform(seed=seed, sample_ids=sample_ids, step=step).double()
        # one draw for the batch, shifted by 1/B per position (Kingma et al. 2021, appendix I.1)
        first = rng.uniform(
            seed=seed, sample_ids=torch.zeros_like(sample_ids[:1]), step=step, word=2
        ).double()
        start, total = part or (0, len(sample_ids))
        position = torch.arange(
            start, start + len(sample_ids), device=sample_ids.device, dtype=torch.float64
        )
        return (first + position / max(total, 1)).remainder(1.0)

    def loss(
        self,
        x0: Tensor,
        labels: Condition = None,
        *,
        seed: int,
        sample_ids: Tensor,
        step: int,
        part: tuple[int, int] | None = None,
    ) -> Tensor:
        """weight(t)·mean_e (eps - eps_hat)² [B].

        With the weighting `likelihood` its mean is the bound's diffusion term in nats per
        dimension. Noise is stream 2 of the noise contract; times and dropped labels are stream 4.

        part: (start, total), the positions of this share of a larger batch; None for a whole one.
        """
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
        if self.dequantization is not None:
            x0, _ = dequantize(
                x0,
                self.dequantization,
                rho=self.sigma_min,
                seed=seed,
                sample_ids=sample_ids,
                step=step + FIRST_STEP,
            )
        u, weight = self._uniform(**counter, part=part), None
        if self.weighting == "likelihood" and self.importance:
            log_snr = self.log_snr_max + u * (self.log_snr_min - self.log_snr_max)
            weight = torch.full_like(u, 0.5 * (self.log_snr_max - self.log_snr_min))
        else:
            first = self.sde.time(self.log_snr_max).to(u.device)
            t = first + u * (1.0 - first)
            log_snr = self.sde.log_snr(t)
            if self.weighting == "likelihood":
                weight = 0.5 * (1.0 - first) * self.sde.rate(t)
        network_time, alpha, sigma = self._at(log_snr)
        kept = self.conditioning.drop(self.network, labels, self.label_dropout, **counter)
        call = self._call(self.conditioning.arguments(self.network, kept, x0))
        return eps_error(call, x0, network_time, alpha, sigma, weight=weight, **counter)

    def _call(self, cond: dict[str, Tensor]) -> ModelCall:
        return ModelCall(self, None, self.parametrization, cond=cond, where=_WHERE)

    def bound(
        self,
        x0: Tensor,
        labels: Condition = None,
        *,
        seed: int,
        sample_ids: Tensor,
        times: int = 64,
    ) -> dict[str, Tensor]:
        """Terms [B] in nats with a sum that bounds -ln p(x0) in expectation.

        Song, Durkan et al. 2021, theorem 3.

        Args:
            times: the number of evaluations of the integral over the log-SNR for each sample, one
                in each of as many equal strata. The estimate is unbiased.
        """
        return self.terms(x0, labels, seed=seed, sample_ids=sample_ids, times=times).bound

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
    ) -> TimedBound:
        """`bound`, with the contribution of each time. Raises ValueError for times < 1."""
        if times < 1:
            raise ValueError(f"{_WHERE}: expected times >= 1, got {times!r}.")
        dims, span = x0[0].numel() if len(x0) else 0, self.log_snr_max - self.log_snr_min
        call = self._call(self.conditioning.arguments(self.network, labels, x0))
        contributions, log_snrs = [], []
        for j in range(times):
            u = rng.uniform(seed=seed, sample_ids=sample_ids, step=j).double()
            log_snrs.append(self.log_snr_max - span * (j + u) / times)
            network_time, alpha, sigma = self._at(log_snrs[-1])
            error = eps_error(
                call,
                x0,
                network_time,
                alpha,
                sigma,
                seed=seed,
                sample_ids=sample_ids,
                step=j + 1,
            )
            contributions.append(0.5 * span * dims / times * error.double())
        denoising, log_snr = torch.stack(contributions, 1), torch.stack(log_snrs, 1)
        reconstruction, prior = self._reconstruction(x0, seed, sample_ids), self._prior(x0)
        bound = {"reconstruction": reconstruction, "denoising": denoising.sum(1), "prior": prior}
        return TimedBound(bound, denoising, log_snr)

    def _reconstruction(self, x0: Tensor, seed: int, sample_ids: Tensor) -> Tensor:
        """-ln p(x0 | x_0) [B] with the noise of step 0."""
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
        """KL(q(x_1|x0) || N(0, prior_std² I)) [B]."""
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

    def for_likelihood(self, labels: Condition = None) -> dict[str, Any]:
        """Arguments of `likelihood.nll` other than x and the probes.

        likelihood.nll(x=x0, **model.for_likelihood(), seed=0)
        """
        levels = (self.dequantization or "gaussian") if self.likelihood == "discretized" else None
        return {
            "model": self,
            "schedule": self.schedule,
            "prediction_type": self.parametrization,
            "sigma_min": self.sigma_min,
            "dequantization": levels,
            "cond": self.conditioning.arguments(self.network, labels),
        }


def network_for(
    shape: tuple[int, ...], *, fourier: tuple[int, ...] = (), classes: int = 0, **config: Any
) -> dict[str, Any]:
    """The description of a network for `ScoreModel`, by the shape of an example.

    Args:
        shape: [dim] for an MLP or [C, H, H] for a U-Net.
        fourier: as for `ScoreModel`. classes: the number of classes.
        config: further arguments of the network.

    Raises:
        ValueError: another shape.
    """
    config = {"num_classes": classes, "time_scale": 1000.0, **config}
    inputs = 1 + 2 * len(fourier)  # input features per channel
    if len(shape) == 1:
        return {"class": "MLP", "config": {"dim": inputs * shape[0], "out": shape[0], **config}}
    if len(shape) == 3 and shape[1] == shape[2]:
        return {
            "class": "UNet",
            "config": {
                "channels": inputs * shape[0],
                "out_channels": shape[0],
                "size": shape[1],
                **config,
            },
        }
    raise ValueError(
        "fastdiff.theory.score.network_for: expected a shape [dim] or [C, H, H], got"
        f" {list(shape)}."
    )
