"""The variational autoencoder (Kingma & Welling 2014; Luo 2022, section "Variational
Autoencoders").

    p(x, z) = p(x|z) p(z),   q(z|x) = N(μ(x), diag σ²(x))                                   (Luo, eq. 20 and 21)
    log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x)‖p(z))                                     (Luo, eq. 19)
    z = μ(x) + σ(x) eps,  eps ~ N(0, I)                                                      (reparameterisation)

E_q is the mean over L draws; the noise is a function of (seed, step, sample id) and is regenerated
in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import ops
from ...rng import STREAM_INITIAL, STREAM_SOLVER
from ..information import Gaussian
from . import encoder_decoder, objectives
from .bounds import draw, iwae, log_likelihoods, log_proposal
from .observation import Correlated, Normal, Observation
from .priors import PRIORS


class VAE(nn.Module):
    """A latent-variable model of x [B, *shape] with its encoder.

    Args:
        shape: of a sample, [C, H, W] for `conv`.
        latent: dimension of z.
        network: `conv` (images), `mlp` or `linear` (see `encoder_decoder`); widths: its hidden sizes, None
            for the defaults.
        likelihood: `gaussian` (a density) or `discretized` (8-bit images in [-1, 1], bounds
            comparable in bits/dim).
        covariance: of p(x|z), `isotropic` (std fixed, or learned with std=None), `diagonal` or
            `full`.
        std: of the isotropic covariance. initial_std: about what a learned one starts from;
            min_log_std: its floor.
        prior: `normal` is N(0, I); `mixture` a learned one of `components` Gaussians.
        objective: what `loss` minimises: `elbo`, `importance` (-IWAE_L) or `prior` (-log mean
            p(x|z_l), z_l ~ p(z)).
        samples: L, draws of z a training step averages over.
        kl_weight: of the KL in the `elbo` objective (Higgins et al. 2017, eq. 4). 0 is the
            autoencoder: nothing then holds the encoder's noise up, so `loss` takes its limit, z =
            μ(x).

    Attributes:
        config: the arguments, as JSON can hold them.

    Raises:
        ValueError: names, sizes or combinations outside these.
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        latent: int = 32,
        *,
        network: str = "conv",
        widths: Sequence[int] | None = None,
        likelihood: str = "discretized",
        covariance: str = "diagonal",
        std: float | None = None,
        initial_std: float = 1.0,
        min_log_std: float = -7.0,
        prior: str = "normal",
        components: int = 16,
        objective: str = "elbo",
        samples: int = 1,
        kl_weight: float = 1.0,
    ):
        super().__init__()
        shape = tuple(int(n) for n in shape)
        self._check(latent, prior, components, objective, samples, kl_weight)
        hidden = encoder_decoder.check(network, shape, widths, covariance)
        self.config: dict[str, Any] = {
            "shape": list(shape),
            "latent": latent,
            "network": network,
            "widths": list(hidden),
            "likelihood": likelihood,
            "covariance": covariance,
            "std": std,
            "initial_std": initial_std,
            "min_log_std": min_log_std,
            "prior": prior,
            "components": components,
            "objective": objective,
            "samples": samples,
            "kl_weight": kl_weight,
        }
        self.shape, self.latent, self.objective = shape, latent, objective
        self.samples, self.kl_weight = samples, kl_weight
        self.observation = Observation(shape, likelihood, covariance, std, initial_std, min_log_std)
        self.encoder = encoder_decoder.Encoder(network, shape, hidden, 2 * latent)
        self.decoder = encoder_decoder.Decoder(
            network, shape, hidden, latent, self.observation.per_element, self.observation.extra
        )
        self.prior = PRIORS[prior](latent, components)
        if network == "conv":
            encoder_decoder.channels_last(self)

    @staticmethod
    def _check(
        latent: int, prior: str, components: int, objective: str, samples: int, kl_weight: float
    ) -> None:
        where = "fastdiff.theory.variational.VAE"
        for name, value, allowed in (
            ("prior", prior, list(PRIORS)),
            ("objective", objective, list(objectives.OBJECTIVES)),
        ):
            if value not in allowed:
                raise ValueError(f"{where}: expected {name} in {allowed}, got {value!r}.")
        for name, number in (("latent", latent), ("components", components), ("samples", samples)):
            if number < 1:
                raise ValueError(f"{where}: expected {name} >= 1, got {number}.")
        if not (math.isfinite(kl_weight) and kl_weight >= 0):
            raise ValueError(f"{where}: expected kl_weight >= 0, got {kl_weight}.")
        if kl_weight != 1 and objective != "elbo":
            raise ValueError(
                f"{where}: expected kl_weight 1 with objective {objective!r}, got {kl_weight}. It"
                " has no KL."
            )

    # the latent model, see bounds.LatentModel

    def posterior(self, x0: Tensor) -> Gaussian:
        """q(z|x) = N(μ(x), diag σ²(x)), [B, latent] (Luo 2022, eq. 20)."""
        if tuple(x0.shape[1:]) != self.shape:
            raise ValueError(
                "fastdiff.theory.variational.VAE: expected x0 of shape [B,"
                f" {', '.join(map(str, self.shape))}], got {list(x0.shape)}."
            )
        return Gaussian(*self.encoder(x0).chunk(2, dim=1))

    def decode(self, z: Tensor) -> Normal | Correlated:
        """p(x|z) of z [N, latent]: mean [N, *shape] with its log standard deviations, or its
        Cholesky factor.
        """
        return self.observation(*self.decoder(z))

    def log_likelihood(self, x0: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) [N] in nats, x0 [N, *shape], z [N, latent]."""
        return self.observation.log_prob(x0, self.decode(z))

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), z [..., latent] -> [...] in nats."""
        return self.prior.log_prob(z)

    def draw_prior(self, batch: int, samples: int, **counter: Any) -> tuple[Tensor, Tensor]:
        """z ~ p(z), see `bounds.LatentModel`."""
        return self.prior.draw(batch, samples, **counter)

    # training and evaluation

    def loss(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        """What training minimises in mean, [B] in nats; with objective `elbo` and kl_weight 1 it is
        -ELBO (Luo, eq. 19).

        Args:
            x0: [B, *shape]. labels: not read.
            seed, sample_ids, step: of the noise contract.
        """
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
        if self.objective != "elbo":
            return objectives.objective(self, x0, self.objective, samples=self.samples, **counter)
        q = self.posterior(x0)
        if self.kl_weight == 0:
            return -self.log_likelihood(x0, q.mean)
        z = draw(q, self.samples, **counter)
        return self.kl_weight * self.prior.kl(q, z) - log_likelihoods(self, x0, z).mean(1)

    def bound(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor | None = None,
        step: int = 0,
        samples: int | None = None,
        importance: bool | None = None,
    ) -> dict[str, Tensor]:
        """The terms of a bound, [B] each in nats; their sum is in expectation at least -log p(x).

        Args:
            x0: [B, *shape]. labels: not read.
            seed, sample_ids, step: of the noise contract.
            samples: draws of z, L for the reconstruction, K for the importance-weighted bound; None
                for as many as in training.
            importance: add the third term; None where the objective is `importance`.

        Returns:
            reconstruction: -E_q log p(x|z). kl: KL(q(z|x)‖p(z)). Their sum is -ELBO (Luo 2022, eq.
                19).
            importance: what K weights of the same draws take off it; the three sum to -IWAE_K
                (Burda et al. 2016, eq. 8).
            A model trained by the objective `prior` has no use of its encoder, and one term,
            marginal: -log mean p(x|z_k).

        Raises ValueError for fewer than one sample and images of another shape.
        """
        samples = self.samples if samples is None else samples
        if samples < 1:
            raise ValueError(
                f"fastdiff.theory.variational.VAE.bound: expected samples >= 1, got {samples}."
            )
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
        if self.objective == "prior":
            return {"marginal": objectives.objective(self, x0, "prior", samples=samples, **counter)}
        q = self.posterior(x0)
        z = draw(q, samples, **counter)
        log_likelihood = log_likelihoods(self, x0, z)
        terms = {"reconstruction": -log_likelihood.mean(1), "kl": self.prior.kl(q, z)}
        if self.objective == "importance" if importance is None else importance:
            log_w = log_likelihood + self.log_prior(z) - log_proposal(q, z)
            terms["importance"] = -iwae(log_w) - terms["reconstruction"] - terms["kl"]
        return terms

    # drawing

    @torch.no_grad()
    def sample(
        self, n: int, *, seed: int, sample_ids: Tensor | None = None, mean: bool = False
    ) -> Tensor:
        """n samples [n, *shape]: z ~ p(z), x ~ p(x|z), or the mean of p(x|z) alone.

        Sample i of a seed is a function of its id: the same alone and in any batch, up to the
            network's arithmetic.
        The latent is stream 0 of the noise contract, the observation's noise stream 1.
        """
        like = next(self.decoder.parameters())
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": 0}
        z, _ = self.prior.draw(n, 1, like=like, stream=STREAM_INITIAL, **counter)
        p = self.decode(z[:, 0])
        if mean:
            return p.mean
        eps = ops.randn(
            p.mean.shape, dtype=like.dtype, device=like.device, stream=STREAM_SOLVER, **counter
        )
        return self.observation.sample(p, eps)

    @torch.no_grad()
    def reconstruct(self, x0: Tensor) -> Tensor:
        """The mean of p(x|z) at z = μ(x), [B, *shape]."""
        return self.decode(self.posterior(x0).mean).mean
