"""Latent-variable models and their bounds: p(x) = ∫ p(x|z) p(z) dz, ELBO <= IWAE_K <= log p(x).

The names of this package load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import lazy

# public name -> the module of this package that defines it
_WHERE = {
    "CosineGamma": "gamma",
    "DenoisingLoss": "denoising",
    "DiffusionHVAE": "diffusion_hvae",
    "HVAE": "hvae",
    "LearnedGamma": "gamma",
    "LinearGamma": "gamma",
    "LossAware": "times",
    "MarkovianHVAE": "markovian",
    "ProbabilisticPCA": "ppca",
    "VAE": "vae",
    "VDM": "vdm",
    "diffusion_terms": "diffusion",
    "effective_sample_size": "bounds",
    "elbo": "bounds",
    "gradient_moments": "objectives",
    "iwae": "bounds",
    "iwae_stderr": "bounds",
    "log_weights": "bounds",
    "objective": "objectives",
    "weight": "weights",
}

__all__ = [
    "CosineGamma",
    "DenoisingLoss",
    "DiffusionHVAE",
    "HVAE",
    "LearnedGamma",
    "LinearGamma",
    "LossAware",
    "MarkovianHVAE",
    "ProbabilisticPCA",
    "VAE",
    "VDM",
    "diffusion_terms",
    "effective_sample_size",
    "elbo",
    "gradient_moments",
    "iwae",
    "iwae_stderr",
    "log_weights",
    "objective",
    "weight",
]

if TYPE_CHECKING:
    from .bounds import effective_sample_size, elbo, iwae, iwae_stderr, log_weights
    from .denoising import DenoisingLoss
    from .diffusion import diffusion_terms
    from .diffusion_hvae import DiffusionHVAE
    from .gamma import CosineGamma, LearnedGamma, LinearGamma
    from .hvae import HVAE
    from .markovian import MarkovianHVAE
    from .objectives import gradient_moments, objective
    from .ppca import ProbabilisticPCA
    from .times import LossAware
    from .vae import VAE
    from .vdm import VDM
    from .weights import weight
else:
    __getattr__, __dir__ = lazy.on_first_use(__name__, _WHERE)
