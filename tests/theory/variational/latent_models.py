"""Latent models whose evidence is known, for the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.theory.information import Gaussian
from fastdiff.theory.variational import VAE, ProbabilisticPCA


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator("cpu").manual_seed(seed)
    )


def ppca(
    size: int = 5, latent: int = 3, std: float = 0.7, orthogonal: bool = True, seed: int = 0
) -> ProbabilisticPCA:
    """A model with a random loading; with orthogonal columns its posterior is a diagonal
    Gaussian.
    """
    weight = normal((size, latent), seed)
    if orthogonal:
        u, s, _ = torch.linalg.svd(weight, full_matrices=False)
        weight = u * s
    return ProbabilisticPCA(weight, normal((size,), seed + 1), std)


def worse(q: Gaussian, seed: int = 9) -> Gaussian:
    """Another encoder: shifted means, other variances."""
    return Gaussian(
        q.mean + 0.3 * normal(q.mean.shape, seed), q.logvar + 0.4 * normal(q.mean.shape, seed + 1)
    )


def linear_vae(model: ProbabilisticPCA, **options: object) -> VAE:
    """The linear VAE with this model's decoder and its exact posterior as encoder, in float64."""
    size = len(model.mean)
    vae = VAE(
        (size,),
        model.latent,
        network="linear",
        likelihood="gaussian",
        covariance="isotropic",
        std=model.std,
        **options,
    ).double()  # type: ignore[arg-type]
    encoder, decoder = vae.encoder.body[1][0], vae.decoder.body[0]  # type: ignore[index]
    zero = torch.zeros(1, size, dtype=torch.float64)
    with torch.no_grad():
        decoder.weight.copy_(model.weight), decoder.bias.copy_(model.mean)
        offset = model.posterior(zero)
        slope = model.posterior(torch.eye(size, dtype=torch.float64)).mean - offset.mean
        encoder.weight.copy_(torch.cat([slope.T, torch.zeros(model.latent, size)]))
        encoder.bias.copy_(torch.cat([offset.mean[0], offset.logvar[0]]))
    return vae
