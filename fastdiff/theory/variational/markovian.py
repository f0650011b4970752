"""The Markovian hierarchical variational autoencoder: every latent depends on its neighbour only.

    p(x, z_1:L) = p(z_L) Π_l p(z_{l-1}|z_l),   q(z_1:L|x) = Π_l q(z_l|z_{l-1}),   z_0 = x
    -ln p(x) <= J_0(x)
    J_l(z_l) = E_q(z_{l+1}|z_l) [-ln p(z_l|z_{l+1}) + ln q(z_{l+1}|z_l) + J_{l+1}(z_{l+1})]
    J_L(z_L) = -ln p(z_L)

(Luo 2022, eq. 23–29.) Every expectation is estimated from one draw of the chain, so the sum of the
terms is ln q(z_1:L|x) - ln p(x, z_1:L).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import ops
from ...grad_mode import restored
from ...rng import STREAM_INITIAL, STREAM_REPARAMETERIZE, STREAM_SOLVER
from ..information import Gaussian
from ..information.distributions import LOG_2PI
from .bounds import check_shape, iwae, warmup
from .encoder_decoder import Encoder
from .levels import bounded_logvar
from .observation import Observation


class Chain(nn.Module):
    """The base of Markovian hierarchies: draws z_1 … z_L and computes the terms of the recursion.

    A subclass defines q(z_{l+1}|z_l) and p(z_l|z_{l+1}), l = 0 … L-1; `depth` is L.
    """

    loss_unit = "nats"

    depth: int
    stream = STREAM_REPARAMETERIZE

    def encode(self, level: int, z: Tensor) -> Gaussian:
        """Returns q(z_{l+1}|z_l) at l = level."""
        raise NotImplementedError

    def decode(self, level: int, z: Tensor) -> Gaussian:
        """Returns p(z_l|z_{l+1}) at l = level >= 1, z = z_{l+1}."""
        raise NotImplementedError

    def log_likelihood(self, x0: Tensor, z: Tensor) -> Tensor:
        """Returns ln p(x|z_1) [B]."""
        raise NotImplementedError

    def log_prior(self, z: Tensor) -> Tensor:
        """Returns ln p(z_L) [B], of N(0, I)."""
        return -0.5 * (z.square() + LOG_2PI).flatten(1).sum(1)

    def terms(
        self, x0: Tensor, *, seed: int | Tensor, sample_ids: Tensor | None = None, step: int = 0
    ) -> dict[str, Tensor]:
        """Returns the terms of the recursion [B] along one draw of z_1 … z_L, in nats.

        Their sum is ln q(z_1:L|x) - ln p(x, z_1:L).
        """
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "stream": self.stream}
        terms: dict[str, Tensor] = {}
        z, log_q = x0, x0.new_zeros(len(x0))  # z_l and ln q(z_l|z_{l-1})
        for level in range(self.depth):
            q = self.encode(level, z)
            above = ops.reparameterize(*q, step=step * self.depth + level, **counter)
            if level:
                terms[f"consistency_{level}"] = log_q - self.decode(level, above).log_prob(z)
            else:
                terms["reconstruction"] = -self.log_likelihood(x0, above)
            z, log_q = above, q.log_prob(above)
        terms["prior"] = log_q - self.log_prior(z)
        return terms


class MarkovianHVAE(Chain):
    """A Markovian hierarchy of vectors with learned Gaussian conditionals.

    Args:
        shape: of a sample x.
        latents: the dimensions of z_1 … z_L.
        widths: the hidden sizes of the perceptrons that compute mean and log-variance of every
            conditional.
        likelihood: p(x|z_1), `discretized` (8-bit levels in [-1, 1]) or `gaussian` (a density).
        initial_std: the approximate initial standard deviation of p(x|z_1).
        min_log_std: the floor of its logarithm.
        kl_warmup: the training steps over which the weight of all terms except the reconstruction
            rises from 0 to 1.

    Attributes:
        config: the arguments, as JSON can hold them.

    Raises:
        ValueError: for names or numbers outside these.
    """

    def __init__(
        self,
        shape: Sequence[int] = (2,),
        latents: Sequence[int] = (2, 2),
        *,
        widths: Sequence[int] = (64, 64),
        likelihood: str = "gaussian",
        initial_std: float = 1.0,
        min_log_std: float = -7.0,
        kl_warmup: int = 500,
    ):
        super().__init__()
        self.shape, sizes = tuple(int(n) for n in shape), [int(n) for n in latents]
        if (
            not sizes
            or min(sizes) < 1
            or not self.shape
            or min(self.shape) < 1
            or any(w < 1 for w in widths)
        ):
            raise ValueError(
                "fastdiff.theory.variational.MarkovianHVAE: expected sizes >= 1 in shape, latents"
                f" and widths, got {list(self.shape)}, {sizes} and {list(widths)}."
            )
        self.config: dict[str, Any] = {
            "shape": list(self.shape),
            "latents": sizes,
            "widths": [int(w) for w in widths],
            "likelihood": likelihood,
            "initial_std": initial_std,
            "min_log_std": min_log_std,
            "kl_warmup": kl_warmup,
        }
        if kl_warmup < 0:
            raise ValueError(
                "fastdiff.theory.variational.MarkovianHVAE: expected kl_warmup >= 0, got"
                f" {kl_warmup}."
            )
        self.depth, self.kl_warmup = len(sizes), kl_warmup
        self.observation = Observation(
            self.shape,
            likelihood,
            "diagonal",
            None,
            initial_std,
            min_log_std,
            where="fastdiff.theory.variational.MarkovianHVAE",
        )
        chain, hidden = [math.prod(self.shape), *sizes], [int(w) for w in widths]
        self.encoders = nn.ModuleList(
            Encoder("mlp", (a,), hidden, 2 * b) for a, b in zip(chain, sizes, strict=False)
        )
        self.decoders = nn.ModuleList(
            Encoder("mlp", (b,), hidden, 2 * a) for a, b in zip(chain, sizes, strict=False)
        )

    def encode(self, level: int, z: Tensor) -> Gaussian:
        return _split(self.encoders[level](z.flatten(1)))

    def decode(self, level: int, z: Tensor) -> Gaussian:
        return _split(self.decoders[level](z))

    def log_likelihood(self, x0: Tensor, z: Tensor) -> Tensor:
        values = self.decoders[0](z).reshape(-1, self.observation.per_element, *self.shape)
        return self.observation.log_prob(x0, self.observation(values, None))

    def loss(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor | None = None,
        step: int = 0,
        part: tuple[int, int] | None = None,
    ) -> Tensor:
        """Returns -ELBO [B] in nats by one draw of the chain.

        All terms except the reconstruction are weighted by min(1, (step + 1)/kl_warmup).

        Args:
            x0: [B, *shape].
            labels, part: not used.
            seed, sample_ids, step: of the noise contract.
        """
        check_shape("MarkovianHVAE", x0, self.shape)
        weight = warmup(step, self.kl_warmup)
        terms = self.terms(x0, seed=seed, sample_ids=sample_ids, step=step)
        reconstruction = terms.pop("reconstruction")
        return reconstruction + weight * torch.stack(list(terms.values())).sum(0)

    def bound(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor | None = None,
        step: int = 0,
        samples: int = 1,
        importance: bool = False,
    ) -> dict[str, Tensor]:
        """Returns the terms of the bound, [B] each in nats.

        In expectation their sum is at least -ln p(x).

        Args:
            x0: [B, *shape].
            labels: not used.
            seed, sample_ids, step: of the noise contract.
            samples: K, the chains over which the terms are averaged.
            importance: whether to add the term of that name.

        Returns:
            reconstruction, consistency_1 … L-1, prior: their sum is -ELBO (Luo 2022, eq. 44).
            importance: ELBO - IWAE_K of the same K chains; with it all terms sum to -IWAE_K (Burda
                et al. 2016, eq. 8).

        Raises ValueError for fewer than one sample and data of another shape.
        """
        check_shape("MarkovianHVAE", x0, self.shape)
        if samples < 1:
            raise ValueError(
                "fastdiff.theory.variational.MarkovianHVAE.bound: expected samples >= 1, got"
                f" {samples}."
            )
        draws = [
            self.terms(x0, seed=seed, sample_ids=sample_ids, step=step * samples + k)
            for k in range(samples)
        ]
        means = {name: torch.stack([d[name] for d in draws]).mean(0) for name in draws[0]}
        if importance:
            log_w = torch.stack([-torch.stack(list(d.values())).sum(0) for d in draws], 1)
            means["importance"] = -iwae(log_w) - torch.stack(list(means.values())).sum(0)
        return means

    @restored
    @torch.no_grad()
    def sample(
        self, n: int, *, seed: int, sample_ids: Tensor | None = None, mean: bool = False
    ) -> Tensor:
        """Returns n samples [n, *shape].

        z_L ~ N(0, I) and the latents below it are drawn from stream 0, x ~ p(x|z_1) from stream 1.
        With mean=True, x is the mean of p(x|z_1).
        """
        like = next(self.parameters())
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids}
        zero = like.new_zeros(n, self.config["latents"][-1])
        p = Gaussian(zero, zero)
        for level in reversed(range(self.depth)):
            z = ops.reparameterize(*p, step=level, stream=STREAM_INITIAL, **counter)
            if level:
                p = self.decode(level, z)
        values = self.decoders[0](z).reshape(n, self.observation.per_element, *self.shape)
        x = self.observation(values, None)
        if mean:
            return x.mean
        eps = ops.randn(
            x.mean.shape, dtype=like.dtype, device=like.device, stream=STREAM_SOLVER, **counter
        )
        return self.observation.sample(x, eps)


def _split(values: Tensor) -> Gaussian:
    """Returns the Gaussian of a network's output [B, 2 D], with bounded log-variances."""
    mean, raw = values.chunk(2, dim=1)
    return Gaussian(mean, bounded_logvar(raw))
