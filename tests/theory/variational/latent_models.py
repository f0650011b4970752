"""Latent models for the tests of this folder: models with known evidence, and small VAEs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.theory.information import Gaussian
from fastdiff.theory.variational import VAE, ProbabilisticPCA

FLAT: dict[str, Any] = {
    "shape": (4,),
    "latent": 2,
    "network": "mlp",
    "widths": (16,),
    "likelihood": "gaussian",
}


def build(seed: int = 0, **config: Any) -> VAE:
    torch.manual_seed(seed)
    return VAE(**config)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator("cpu").manual_seed(seed)
    )


def ppca(
    size: int = 5, latent: int = 3, std: float = 0.7, orthogonal: bool = True, seed: int = 0
) -> ProbabilisticPCA:
    """Returns a model with random weights; with orthogonal columns its posterior is diagonal."""
    weight = normal((size, latent), seed)
    if orthogonal:
        u, s, _ = torch.linalg.svd(weight, full_matrices=False)
        weight = u * s
    return ProbabilisticPCA(weight, normal((size,), seed + 1), std)


def worse(q: Gaussian, seed: int = 9) -> Gaussian:
    """Returns a worse encoder than q: shifted means and other variances."""
    return Gaussian(
        q.mean + 0.3 * normal(q.mean.shape, seed), q.logvar + 0.4 * normal(q.mean.shape, seed + 1)
    )


def linear_vae(model: ProbabilisticPCA, **options: object) -> VAE:
    """Returns the float64 linear VAE with the model's decoder and exact posterior."""
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
