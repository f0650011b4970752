"""Variational diffusion models.

(Kingma et al. 2021; Luo 2022, section "Variational Diffusion Models".)

    -log p(x) <= E -ln p(x|z_0) + KL(q(z_1|x) || N(0, I)) + L_T(x)
    q(z_t|x) = N(alpha_t x, sigma_t² I)
    alpha_t² = sigmoid(-gamma(t)),  sigma_t² = sigmoid(gamma(t))

(Kingma et al. 2021, eq. 11) with L_T of the module `diffusion`, for T steps or T → ∞. p(x|z_0) is a
Gaussian around z_0/alpha_0 with standard deviation sigma_0/alpha_0, as mass on 8-bit levels or as a
density. gamma is fixed or learned. A learned gamma is trained with the network: its end points
minimise the bound. Its path minimises the variance of the bound's estimate in continuous time, and
with finite T, where the bound depends on the path, the bound itself.

The network's time is gamma on a fixed scale. For 8-bit levels its input contains Fourier features
of z_t in addition to z_t: at low noise they locate z_t between two levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import ops, rng
from ...grad_mode import restored
from ...models import LEVELS, MLP, MODELS, UNet, build, features
from ...models.build import description_of
from ...prediction import normalize
from ...schedule import Schedule, Time
from ..conditions import Condition, Conditioning, is_module
from ..dequantization import LIKELIHOODS
from ..system import TimedBound
from . import gamma as gammas
from .diffusion import diffusion_terms
from .times import SAMPLINGS, draw, spread

_WHERE = "fastdiff.theory.variational.VDM"


class VDM(nn.Module):
    """A variational diffusion model of x0 [B, *shape].

    Args:
        shape: of a sample, [C, H, W] or [D].
        network: a module (z_t, t, **cond) or its description; None for a `UNet` of `widths` for
            images and an `MLP` of 4 widths[0] features for vectors.
        widths: of the default network.
        schedule: gamma: `learned`, `linear` or `cosine` (see fastdiff.theory.variational.gamma), or
            a `Schedule` or its config.
        gamma_min, gamma_max: the end points of gamma, -ln SNR at the least and the most noise; the
            initial ones if gamma is learned.
        num_steps: T; None for continuous time.
        prediction_type: what the network predicts: epsilon, v, x0, score or edm.
        likelihood: p(x|z_0), `discretized` (8-bit levels in [-1, 1]) or `gaussian` (a density).
        fourier: exponents of the network's `fastdiff.models.features`, which multiply the channels
            of its input by 1 + 2 len(fourier). None for 2 … 8 with the discretised likelihood and
            for no features with a density or with a network of your own.
        time_sampling: how training times are drawn: `stratified`, `antithetic` or `uniform`
            (fastdiff.theory.variational.times).
        num_classes: the number of labels that the default network is conditioned on, or 0.
        label_dropout: the share of the examples that are trained without their conditions; 0 for a
            network with labels and without `null_label` (see `Denoiser`).

    Attributes:
        config: the arguments, as JSON can hold them.
        gamma: the schedule.

    Raises:
        ValueError: for names or numbers outside these.
    """

    loss_unit = "bits/dim"

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        network: nn.Module | dict[str, Any] | None = None,
        *,
        widths: Sequence[int] = (32, 64, 96),
        schedule: str | dict[str, Any] | Schedule = "learned",
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
        num_steps: int | None = None,
        prediction_type: str = "v",
        likelihood: str = "discretized",
        fourier: Sequence[int] | None = None,
        time_sampling: str = "stratified",
        num_classes: int = 0,
        label_dropout: float = 0.1,
    ):
        super().__init__()
        self.shape = tuple(int(n) for n in shape)
        self.prediction_type, self.likelihood = normalize(prediction_type), likelihood
        self._check(likelihood, num_steps, time_sampling, label_dropout)
        if isinstance(network, dict):
            network = build(network)
        if fourier is None:
            own = network is None or MODELS.get(type(network).__name__) is type(network)
            fourier = LEVELS if likelihood == "discretized" and own else ()
        self.fourier = tuple(int(n) for n in fourier)
        self.num_steps, self.time_sampling, self.label_dropout = (
            num_steps,
            time_sampling,
            label_dropout,
        )
        if network is None:
            network = self._default(widths, num_classes)
        self.network: Any = is_module(network, _WHERE)
        self.conditioning = Conditioning(network, label_dropout, _WHERE)
        self.gamma = gammas.make(schedule, gamma_min, gamma_max)
        low, high = (float(v.detach()) for v in self.gamma.ends())
        # the network's time is (gamma - low)·scale, 0 … 1000 between the initial end points
        self._time_scale = (low, 1000.0 / (high - low))
        self.config: dict[str, Any] = {
            "shape": list(self.shape),
            "network": description_of(self.network),
            "schedule": schedule.to_config() if isinstance(schedule, Schedule) else schedule,
            "gamma_min": gamma_min,
            "gamma_max": gamma_max,
            "num_steps": num_steps,
            "prediction_type": self.prediction_type,
            "likelihood": likelihood,
            "fourier": list(self.fourier),
            "time_sampling": time_sampling,
            "label_dropout": label_dropout,
        }

    @staticmethod
    def _check(
        likelihood: str, num_steps: int | None, time_sampling: str, label_dropout: float
    ) -> None:
        where = _WHERE
        for name, value, allowed in (
            ("likelihood", likelihood, LIKELIHOODS),
            ("time_sampling", time_sampling, SAMPLINGS),
        ):
            if value not in allowed:
                raise ValueError(f"{where}: expected {name} in {list(allowed)}, got {value!r}.")
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"{where}: expected num_steps >= 1 or None, got {num_steps}.")
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"{where}: expected label_dropout in [0, 1], got {label_dropout}.")

    def _default(self, widths: Sequence[int], num_classes: int) -> nn.Module:
        """Returns the default network for the shape."""
        channels, multiple = self.shape[0], 1 + 2 * len(self.fourier)
        if len(self.shape) == 1:
            return MLP(channels * multiple, channels, num_classes, width=int(widths[0]) * 4)
        if len(self.shape) != 3 or self.shape[1] != self.shape[2]:
            raise ValueError(
                "fastdiff.theory.variational.VDM: expected shape [C, S, S] or [D], got"
                f" {list(self.shape)}. Pad the images or pass a network."
            )
        return UNet(
            channels * multiple,
            self.shape[1],
            num_classes,
            widths=list(widths),
            out_channels=channels,
        )

    # the network

    def predict(self, z_t: Tensor, gamma_t: Tensor, **cond: Tensor) -> Tensor:
        """Returns the network's output, in its own dtype, for z_t [B, *shape] and gamma_t [B]."""
        like = next(self.network.parameters())
        low, scale = self._time_scale
        time = ((gamma_t - low) * scale).to(torch.float32)
        output: Tensor = self.network(features(z_t.to(like.dtype), self.fourier), time, **cond)
        return output

    # training and evaluation

    def loss(
        self,
        x0: Tensor,
        labels: Condition = None,
        *,
        seed: int,
        sample_ids: Tensor | None = None,
        step: int = 0,
        part: tuple[int, int] | None = None,
    ) -> Tensor:
        """Returns the bound at one time per sample, [B] in bits per dimension.

        The network and the end points of a learned gamma get the gradient of its mean. In
        continuous time the path of gamma gets the gradient of E[L²], where L is the diffusion loss;
        it is that of the variance of L (Kingma et al. 2021, eq. 60–62).

        Args:
            x0: [B, *shape].
            labels: int64 [B], for networks with classes, or a dict of conditions.
            seed, sample_ids, step: of the noise contract.
            part: (start, total), the positions of this share of a larger batch; None for a whole.
        """
        ids = torch.arange(len(x0), device=x0.device) if sample_ids is None else sample_ids
        counter: dict[str, Any] = {"seed": seed, "sample_ids": ids, "step": step}
        kept = self.conditioning.drop(self.network, labels, self.label_dropout, **counter)
        cond = self.conditioning.arguments(self.network, kept, x0)
        u = draw(self.time_sampling, ids, seed=seed, step=step, part=part)
        unit = math.log(2) * math.prod(self.shape)
        diffusion = diffusion_terms(
            lambda z, g: self.predict(z, g, **cond),
            x0,
            self.gamma,
            u,
            prediction_type=self.prediction_type,
            num_steps=self.num_steps,
            variance_path=unit,
            **counter,
        )
        return (self.reconstruction(x0, **counter) + self.prior(x0) + diffusion) / unit

    def reconstruction(
        self, x0: Tensor, *, seed: int | Tensor, sample_ids: Tensor | None, step: int = 0
    ) -> Tensor:
        """Returns -ln p(x0|z_0) [B] in nats, with z_0 drawn from stream 3.

        For a density it is the mean over z_0, in closed form.
        """
        low, _ = self.gamma.ends()
        if self.likelihood == "gaussian":
            size = math.prod(self.shape)
            return (0.5 * size * (1 + math.log(2 * math.pi) + low)).expand(len(x0))
        one = torch.ones(len(x0), dtype=torch.float64, device=x0.device)
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
        # z_0/alpha_0 = x0 + sigma_0/alpha_0 eps, and sigma_0/alpha_0 = e^(gamma_0/2)
        mean = ops.q_sample(
            x0, None, one, torch.exp(0.5 * low) * one, stream=rng.STREAM_REPARAMETERIZE, **counter
        )
        return ops.discretized_gaussian_nll(x0, mean, (0.5 * low).to(mean.dtype))

    def prior(self, x0: Tensor) -> Tensor:
        """Returns KL(q(z_1|x0) || N(0, I)) [B] in nats."""
        _, high = self.gamma.ends()
        alpha, sigma = gammas.point(high)
        return ops.gaussian_kl(alpha.to(x0.dtype) * x0, (2 * sigma.log()).to(x0.dtype))

    def bound(
        self,
        x0: Tensor,
        labels: Condition = None,
        *,
        seed: int,
        sample_ids: Tensor | None = None,
        times: int = 64,
    ) -> dict[str, Tensor]:
        """Returns the terms of the bound, [B] each in nats, without gradients.

        Args:
            x0: [B, *shape].
            labels: int64 [B], or None for the bound on -ln p(x0) without labels.
            seed, sample_ids: of the noise contract.
            times: how many times of the diffusion loss are computed for each sample, spread evenly.
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
        sample_ids: Tensor | None = None,
        times: int = 64,
    ) -> TimedBound:
        """Returns the terms of `bound` and the contribution of each time.

        With num_steps <= times every step is taken once.
        """
        ids = torch.arange(len(x0), device=x0.device) if sample_ids is None else sample_ids
        cond = self.conditioning.arguments(self.network, labels, x0)
        count = times if self.num_steps is None else min(times, self.num_steps)
        u = spread(count, ids, seed=seed)
        contributions = [
            diffusion_terms(
                lambda z, g: self.predict(z, g, **cond),
                x0,
                self.gamma,
                u[:, j],
                prediction_type=self.prediction_type,
                num_steps=self.num_steps,
                seed=seed,
                sample_ids=ids,
                step=j,
            )
            for j in range(count)
        ]
        denoising = torch.stack(contributions, 1) / count
        bound = {
            "reconstruction": self.reconstruction(x0, seed=seed, sample_ids=ids).double(),
            "denoising": denoising.sum(1),
            "prior": self.prior(x0).double(),
        }
        t = u if self.num_steps is None else ((u * self.num_steps).floor() + 1) / self.num_steps
        return TimedBound(bound, denoising, -self.gamma(t.reshape(-1))[0].view(t.shape))

    # sampling

    def denoiser(self) -> Denoiser:
        """Returns the network (z_t, t, y) -> output with its network time.

        `Sampler` and `likelihood.elbo` can use it with any schedule within its noise levels.
        """
        return Denoiser(self)

    def for_sampler(
        self, num_train_timesteps: int = 1000
    ) -> tuple[nn.Module, Schedule, dict[str, Any]]:
        """Returns (network, schedule, settings) for `fastdiff.Sampler`.

        The schedule has the points gamma(t/(T - 1)).
        """
        size = num_train_timesteps if self.num_steps is None else self.num_steps + 1
        clip = 1.0 if self.likelihood == "discretized" else None
        settings = {"prediction_type": self.prediction_type, "clip_range": clip}
        return self.denoiser(), self.gamma.schedule(size), settings

    def for_likelihood(self, labels: Condition = None) -> dict[str, Any]:
        """Returns the arguments of `likelihood.nll` other than x and the probes."""
        return {
            "model": self.denoiser(),
            "schedule": self.gamma.schedule(1000),
            "prediction_type": self.prediction_type,
            "dequantization": "gaussian" if self.likelihood == "discretized" else None,
            "cond": self.conditioning.arguments(self.network, labels),
            "fractional_times": True,
        }


class Denoiser(nn.Module):
    """The network of a VDM as samplers and bounds call it: its network time is gamma.

    `conditioned` is the network that takes the conditions.
    """

    def __init__(self, vdm: VDM):
        super().__init__()
        self.vdm = vdm

    @property
    def conditioned(self) -> nn.Module:
        return self.vdm.network

    def network_time(self, point: Time) -> float:
        return -point.log_snr

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return self.vdm.predict(x, t, **cond)
