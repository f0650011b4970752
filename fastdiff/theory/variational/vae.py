"""The variational autoencoder.

(Kingma & Welling 2014; Luo 2022, section "Variational Autoencoders".)

    p(x, z) = p(x|z) p(z),   q(z|x) = N(μ(x), diag σ²(x))              (Luo, eq. 20 and 21)
    log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x)‖p(z))               (Luo, eq. 19)
    z = μ(x) + σ(x) eps,  eps ~ N(0, I)                                (reparameterisation)

E_q is the mean over L draws. The noise is a function of (seed, step, sample id); the backward pass
regenerates it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import ops
from ...grad_mode import restored
from ...models.build import build, description_of
from ...rng import STREAM_INITIAL, STREAM_SOLVER
from ..conditions import Condition, is_module
from ..information import Gaussian
from . import encoder_decoder, objectives
from .bounds import check_shape, draw, iwae, log_likelihoods, log_proposal
from .observation import Correlated, Normal, Observation
from .priors import PRIORS


class VAE(nn.Module):
    """A latent-variable model of x [B, *shape] with its encoder.

    Args:
        shape: of a sample, [C, H, W] for `conv`.
        latent: the dimension of z.
        network: `conv` (images), `mlp` or `linear` (see `encoder_decoder`).
        encoder: instead, a module x [N, *shape] -> [N, 2 latent], the means and then the log
            variances of q(z|x), or its description.
        decoder: instead, a module z [N, latent] -> [N, per_element·dims] or that many elements in
            any shape, or its description. per_element is 1 for an isotropic covariance and 2 for a
            diagonal one: means, then numbers that grow with log std (0 for initial_std), each of
            `shape`.
        widths: the hidden sizes of the network; None for the defaults.
        likelihood: `gaussian` (a density) or `discretized` (8-bit images in [-1, 1], with bounds
            that are comparable in bits/dim).
        covariance: of p(x|z), `isotropic` (std fixed, or learned with std=None), `diagonal` or
            `full`.
        std: the standard deviation of the isotropic covariance.
        initial_std: the approximate initial value of a learned standard deviation.
        min_log_std: the floor of its logarithm.
        prior: `normal` for N(0, I), `mixture` for a learned mixture of Gaussians.
        components: the number of Gaussians of the mixture.
        objective: what `loss` computes: `elbo`, `importance` (-IWAE_L) or `prior` (-log mean
            p(x|z_l), z_l ~ p(z)).
        samples: L, the draws of z that a training step averages over.
        kl_weight: of the KL in the `elbo` objective (Higgins et al. 2017, eq. 4). 0 gives the
            autoencoder: its optimal encoder has no noise, so `loss` uses z = μ(x).

    Attributes:
        config: the arguments, as JSON can hold them.

    Raises:
        ValueError: for names, sizes or combinations outside these.
    """

    loss_unit = "nats"

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        latent: int = 32,
        *,
        network: str = "conv",
        encoder: nn.Module | dict[str, Any] | None = None,
        decoder: nn.Module | dict[str, Any] | None = None,
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
        own = encoder is not None and decoder is not None
        hidden = () if own else encoder_decoder.check(network, shape, widths, covariance)
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
        outputs = (self.observation.per_element, self.observation.extra)
        if encoder is None:
            self.encoder: nn.Module = encoder_decoder.Encoder(network, shape, hidden, 2 * latent)
        else:
            self.encoder = self._own("encoder", encoder)
        if decoder is None:
            self.decoder: nn.Module = encoder_decoder.Decoder(
                network, shape, hidden, latent, *outputs
            )
        else:
            self.decoder = self._own("decoder", decoder)
        self.prior = PRIORS[prior](latent, components)
        if network == "conv":
            encoder_decoder.channels_last(self)

    def _own(self, part: str, module: nn.Module | dict[str, Any]) -> nn.Module:
        """Returns a module of the user's as a part, and notes its description in the config."""
        where = "fastdiff.theory.variational.VAE"
        made = build(module) if isinstance(module, dict) else module
        self.config[part] = description_of(is_module(made, where))
        return made

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
                f"{where}: expected kl_weight 1 with objective {objective!r}, got {kl_weight}. This"
                " objective has no KL."
            )

    # the latent model, see bounds.LatentModel

    def posterior(self, x0: Tensor) -> Gaussian:
        """Returns q(z|x) = N(μ(x), diag σ²(x)), [B, latent] (Luo 2022, eq. 20)."""
        check_shape("VAE", x0, self.shape)
        code = self.encoder(x0)
        if code.shape != (len(x0), 2 * self.latent):
            raise ValueError(
                "fastdiff.theory.variational.VAE: expected [B, 2 latent] ="
                f" {[len(x0), 2 * self.latent]} from the encoder, got {list(code.shape)}."
            )
        return Gaussian(*code.chunk(2, dim=1))

    def decode(self, z: Tensor) -> Normal | Correlated:
        """Returns p(x|z) for z [N, latent].

        It has a mean [N, *shape], and log standard deviations or a Cholesky factor.
        """
        if isinstance(self.decoder, encoder_decoder.Decoder):
            return self.observation(*self.decoder(z))
        per_element, extra = self.observation.per_element, self.observation.extra
        return self.observation(
            *encoder_decoder.parts(self.decoder(z), self.shape, per_element, extra)
        )

    def log_likelihood(self, x0: Tensor, z: Tensor) -> Tensor:
        """Returns log p(x|z) [N] in nats, x0 [N, *shape], z [N, latent]."""
        return self.observation.log_prob(x0, self.decode(z))

    def log_prior(self, z: Tensor) -> Tensor:
        """Returns log p(z), z [..., latent] -> [...] in nats."""
        return self.prior.log_prob(z)

    def draw_prior(self, batch: int, samples: int, **counter: Any) -> tuple[Tensor, Tensor]:
        """Draws z ~ p(z), see `bounds.LatentModel`."""
        return self.prior.draw(batch, samples, **counter)

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
        """Returns the loss [B] in nats; training minimises its mean.

        With the objective `elbo` and kl_weight 1 it is -ELBO (Luo, eq. 19).

        Args:
            x0: [B, *shape].
            labels, part: not used.
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
        labels: Condition = None,
        *,
        seed: int,
        sample_ids: Tensor | None = None,
        step: int = 0,
        samples: int | None = None,
        importance: bool | None = None,
    ) -> dict[str, Tensor]:
        """Returns the terms of a bound, [B] each in nats.

        In expectation their sum is at least -log p(x).

        Args:
            x0: [B, *shape].
            labels: not used.
            seed, sample_ids, step: of the noise contract.
            samples: the number of draws of z: L of the reconstruction, K of the importance-weighted
                bound; None for the number in training.
            importance: whether to add the third term; None to add it for the objective
                `importance`.

        Returns:
            reconstruction: -E_q log p(x|z).
            kl: KL(q(z|x)‖p(z)). With the reconstruction it sums to -ELBO (Luo 2022, eq. 19).
            importance: ELBO - IWAE_K of the same draws; the three terms sum to -IWAE_K (Burda et
                al. 2016, eq. 8).
            marginal: -log mean p(x|z_k), for a model with the objective `prior`. It is the only
                term then, since such a model does not use its encoder.

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

    @restored
    @torch.no_grad()
    def sample(
        self, n: int, *, seed: int, sample_ids: Tensor | None = None, mean: bool = False
    ) -> Tensor:
        """Returns n samples [n, *shape]: z ~ p(z), then x ~ p(x|z).

        With mean=True, x is the mean of p(x|z). A sample is a function of the seed and its id: the
        same in every batch, up to the network's arithmetic. The latent is from stream 0 of the
        noise contract, the observation's noise from stream 1.
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

    @restored
    @torch.no_grad()
    def reconstruct(self, x0: Tensor) -> Tensor:
        """Returns the mean of p(x|z) at z = μ(x), [B, *shape]."""
        return self.decode(self.posterior(x0).mean).mean
