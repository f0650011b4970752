"""Importance weights of a latent-variable model, and the bounds computed from them.

    w_k = p(x|z_k) p(z_k)/q(z_k|x),  z_k ~ q(z|x),   E w = p(x)
    ELBO   = E log w                    <= log p(x)     (Luo 2022, eq. 4 and 8)
    IWAE_K = E log (1/K) Σ_k w_k        <= log p(x)     (Burda et al. 2016, eq. 8)

IWAE_1 is the ELBO, IWAE_K rises with K towards log p(x), and the gap of the ELBO is
KL(q(z|x)‖p(z|x)) (Luo, eq. 15), which is 0 if q is the posterior: then every weight is p(x). The
prior as proposal gives naive Monte Carlo, w_k = p(x|z_k). All functions take and return weights as
logarithms [..., K].
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ... import ops
from ..information import Gaussian
from ..information.distributions import LOG_2PI

ROWS = 8_192  # (sample, draw) pairs decoded in one call


class LatentModel(Protocol):
    """What the bounds require of a model p(x, z) = p(x|z) p(z) with an encoder q(z|x)."""

    def posterior(self, x0: Tensor) -> Gaussian:
        """Returns q(z|x) [B, latent]."""
        ...

    def log_prior(self, z: Tensor) -> Tensor:
        """Returns log p(z), z [..., latent] -> [...]."""
        ...

    def log_likelihood(self, x0: Tensor, z: Tensor) -> Tensor:
        """Returns log p(x|z), x0 [N, ...] and z [N, latent] -> [N]."""
        ...

    def draw_prior(
        self,
        batch: int,
        samples: int,
        *,
        seed: int | Tensor,
        sample_ids: Tensor | None,
        step: int,
        like: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Returns z ~ p(z) [batch, samples, latent] and zeros [batch, samples].

        The zeros are added to the log-weights. For a prior whose draws are not differentiable in
        all its parameters they have the gradient that the draws lack, see `priors.Mixture.draw`.
        """
        ...


def draw(
    q: Gaussian,
    samples: int,
    *,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    step: int = 0,
) -> Tensor:
    """Returns z_k = mean + exp(logvar/2) eps_k [B, samples, latent].

    (Kingma & Welling 2014, section 2.4.) The noise of draw k starts at element k·latent of the
    sample's noise, so the first draws are the same for any number of draws. The backward pass
    regenerates the noise.
    """
    mean, logvar = (
        v[:, None].expand(v.shape[0], samples, v.shape[1]) for v in torch.broadcast_tensors(*q)
    )
    return ops.reparameterize(mean, logvar, seed=seed, sample_ids=sample_ids, step=step)


def log_likelihoods(model: LatentModel, x0: Tensor, z: Tensor, rows: int = ROWS) -> Tensor:
    """Returns log p(x|z_k) [B, K] for z [B, K, latent].

    At most `rows` (sample, draw) pairs, but at least one draw of each sample, are decoded in one
    call.
    """
    batch, samples = z.shape[:2]
    size = max(1, rows // max(batch, 1))
    parts = []
    for part in z.split(size, dim=1):
        wide = x0[:, None].expand(batch, part.shape[1], *x0.shape[1:]).flatten(0, 1)
        parts.append(model.log_likelihood(wide, part.flatten(0, 1)).view(part.shape[:2]))
    return torch.cat(parts, dim=1)


def log_weights(
    model: LatentModel,
    x0: Tensor,
    *,
    samples: int,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    step: int = 0,
    proposal: Any = None,
    rows: int = ROWS,
) -> Tensor:
    """Returns log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x) [B, K], z_k ~ q(z|x).

    (Burda et al. 2016, eq. 7.)

    Args:
        model: a `VAE`, a `ProbabilisticPCA`, or another object with the methods of `LatentModel`.
        x0: [B, ...] in the model's range.
        samples: K >= 1.
        seed, sample_ids, step: of the noise contract, stream 3. The first K draws do not depend on
            the number of draws.
        proposal: q; None for the model's encoder, "prior" for p(z) (naive Monte Carlo), or a
            Gaussian [B, latent].
        rows: the number of (sample, draw) pairs that are decoded in one call. It changes the memory
            that is needed, not the result.

    Returns:
        [B, K] in nats, with gradients to the model and the proposal.

    Raises:
        ValueError: for fewer than one sample, or a proposal of another kind.
    """
    if samples < 1:
        raise ValueError(
            f"fastdiff.theory.variational.log_weights: expected samples >= 1, got {samples}."
        )
    counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
    if isinstance(proposal, str) and proposal == "prior":
        z, log_ratio = model.draw_prior(x0.shape[0], samples, **counter, like=x0)
        return log_likelihoods(model, x0, z, rows) + log_ratio
    if not (proposal is None or (isinstance(proposal, tuple) and len(proposal) == 2)):
        raise ValueError(
            "fastdiff.theory.variational.log_weights: expected proposal None, 'prior' or a"
            f" Gaussian, got {proposal!r}."
        )
    q = model.posterior(x0) if proposal is None else Gaussian(*proposal)
    z = draw(q, samples, **counter)
    return log_likelihoods(model, x0, z, rows) + model.log_prior(z) - log_proposal(q, z)


def log_proposal(q: Gaussian, z: Tensor) -> Tensor:
    """Returns log q(z_k|x) [B, K] for z [B, K, latent] and q [B, latent]."""
    mean, logvar = q.mean[:, None], q.logvar[:, None]
    return -0.5 * (logvar + LOG_2PI + (z - mean).square() * torch.exp(-logvar)).sum(-1)


def elbo(log_w: Tensor) -> Tensor:
    """Returns (1/K) Σ_k log w_k over the last dimension: the ELBO estimated from K draws.

    It estimates the expectation in Luo 2022, eq. 19; a sum over draws would not.
    """
    return _weights("elbo", log_w).mean(-1)


def iwae(log_w: Tensor, k: int | None = None) -> Tensor:
    """Returns log (1/K) Σ_k w_k over the last dimension (Burda et al. 2016, eq. 8).

    Args:
        log_w: [..., M] from `log_weights`.
        k: size of the groups of draws; the bound IWAE_k is averaged over the M // k groups. None
            for one group of all M draws.

    Returns:
        [...] in nats: the log of an unbiased estimate of p(x), and therefore in expectation at most
        log p(x).

    Raises ValueError for no draws, or k outside [1, M].
    """
    draws = _weights("iwae", log_w).shape[-1]
    k = draws if k is None else k
    if not 1 <= k <= draws:
        raise ValueError(f"fastdiff.theory.variational.iwae: expected k in [1, {draws}], got {k}.")
    groups = log_w[..., : draws // k * k].unflatten(-1, (draws // k, k))
    return (torch.logsumexp(groups, -1) - math.log(k)).mean(-1)


def iwae_stderr(log_w: Tensor) -> Tensor:
    """Returns the standard error of `iwae(log_w)` as an estimate of log p(x).

    std(w)/(mean(w) √K), by the delta method. A small value is meaningful only if the effective
    sample size is large: large weights that were not drawn do not show in it.

    Raises ValueError for fewer than two draws.
    """
    if _weights("iwae_stderr", log_w).shape[-1] < 2:
        raise ValueError(
            "fastdiff.theory.variational.iwae_stderr: expected log-weights [..., K >= 2], got K"
            " = 1."
        )
    w = torch.exp(log_w - log_w.amax(-1, keepdim=True))
    return w.std(-1) / w.mean(-1) / math.sqrt(log_w.shape[-1])


def effective_sample_size(log_w: Tensor) -> Tensor:
    """Returns (Σ w)²/Σ w² in [1, K] over the last dimension (Kong 1992).

    It is K for equal weights and 1 if all weights but one are 0.
    """
    _weights("effective_sample_size", log_w)
    return torch.exp(2 * torch.logsumexp(log_w, -1) - torch.logsumexp(2 * log_w, -1))


def warmup(step: int, steps: int) -> float:
    """Returns min(1, (step + 1)/steps), the weight of the KLs at a training step; 1 for steps = 0.

    (Sønderby et al. 2016.)
    """
    return min(1.0, (step + 1) / steps) if steps else 1.0


def check_shape(where: str, x0: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError for an x0 that is not [B, *shape]. where: the name in the message."""
    if tuple(x0.shape[1:]) != shape:
        raise ValueError(
            f"fastdiff.theory.variational.{where}: expected x0 of shape [B,"
            f" {', '.join(map(str, shape))}], got {list(x0.shape)}."
        )


def _weights(where: str, log_w: Tensor) -> Tensor:
    if not isinstance(log_w, Tensor) or log_w.ndim < 1 or log_w.shape[-1] < 1:
        got = list(log_w.shape) if isinstance(log_w, Tensor) else type(log_w).__name__
        raise ValueError(
            f"fastdiff.theory.variational.{where}: expected log-weights [..., K], K >= 1, got"
            f" {got}."
        )
    return log_w
