"""Priors over the latent: N(0, I), or a learned mixture of diagonal Gaussians.

    p(z) = Σ_c π_c N(z; μ_c, diag σ_c²)

For a Gaussian q, KL(q‖p) has a closed form for N(0, I) (Kingma & Welling 2014, appendix B). For a
mixture it has none and is estimated by the mean of log q - log p over draws. A draw uses latent + 1
normals of the noise contract; the last one selects the component by its probability Φ(eps), and
N(0, I) does not use it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import ops
from ...rng import STREAM_REPARAMETERIZE
from ..information import Gaussian
from ..information.distributions import LOG_2PI
from .bounds import log_proposal


class StandardNormal(nn.Module):
    """N(0, I) of the given dimension."""

    def __init__(self, latent: int):
        super().__init__()
        self.latent = latent

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log p(z), [..., latent] -> [...] in nats."""
        return -0.5 * (z.square() + LOG_2PI).sum(-1)

    def kl(self, q: Gaussian, z: Tensor) -> Tensor:
        """Returns KL(q‖p) [B] in closed form (`ops.gaussian_kl`); z is not used."""
        return ops.gaussian_kl(*q)

    def draw(
        self,
        batch: int,
        samples: int,
        *,
        like: Tensor,
        stream: int = STREAM_REPARAMETERIZE,
        **counter: Any,
    ) -> tuple[Tensor, Tensor]:
        """Returns z [batch, samples, latent] and zeros, see `LatentModel.draw_prior`."""
        z = _noise(batch, samples, self.latent, like, stream, counter)[..., : self.latent]
        return z, z.new_zeros(batch, samples)


class Mixture(nn.Module):
    """Σ_c π_c N(μ_c, diag σ_c²) with learned weights, means and variances.

    Args:
        latent: the dimension of z.
        components: the number of Gaussians.

    The initial means are drawn from N(0, 1) with torch's generator; the initial weights and
    variances are equal.
    """

    def __init__(self, latent: int, components: int):
        super().__init__()
        self.latent = latent
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.randn(components, latent))
        self.logvar = nn.Parameter(torch.zeros(components, latent))

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log p(z), [..., latent] -> [...] in nats."""
        distance = (z[..., None, :] - self.mean).square() * torch.exp(-self.logvar)
        members = -0.5 * (distance + self.logvar + LOG_2PI).sum(-1)
        return torch.logsumexp(torch.log_softmax(self.logits, 0) + members, -1)

    def kl(self, q: Gaussian, z: Tensor) -> Tensor:
        """Returns KL(q‖p) [B], estimated as the mean of log q - log p over z [B, K, latent] ~ q."""
        return (log_proposal(q, z) - self.log_prob(z)).mean(1)

    def draw(
        self,
        batch: int,
        samples: int,
        *,
        like: Tensor,
        stream: int = STREAM_REPARAMETERIZE,
        **counter: Any,
    ) -> tuple[Tensor, Tensor]:
        """Returns z [batch, samples, latent], and log π_c - log π_c of the drawn components c.

        Both have gradients. The second value is 0 and has the gradient of log π_c. Drawing a
        component has no derivative, so the weights get their gradient as the numerator of an
        importance ratio.
        """
        eps = _noise(batch, samples, self.latent, like, stream, counter)
        log_weight = torch.log_softmax(self.logits, 0)
        edges = torch.exp(log_weight.detach()).cumsum(0)[:-1]
        component = torch.searchsorted(
            edges, torch.special.ndtr(eps[..., self.latent]).contiguous(), right=True
        )
        z = self.mean[component] + torch.exp(0.5 * self.logvar[component]) * eps[..., : self.latent]
        return z, (log_weight - log_weight.detach())[component]


def _noise(
    batch: int, samples: int, latent: int, like: Tensor, stream: int, counter: dict[str, Any]
) -> Tensor:
    """Returns normals [batch, samples, latent + 1] in the dtype and on the device of `like`.

    They are the same for every prior, and the first ones are the same for any number of samples.
    """
    return ops.randn(
        (batch, samples, latent + 1), dtype=like.dtype, device=like.device, stream=stream, **counter
    )


PRIORS: dict[str, Any] = {
    "normal": lambda latent, components: StandardNormal(latent),
    "mixture": Mixture,
}
