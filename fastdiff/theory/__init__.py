"""The theory of diffusion models as working systems.

It follows Luo, "Understanding Diffusion Models: A Unified Perspective" (arXiv 2208.11970).

information/   entropies and divergences, estimated with their standard errors
autoregressive/ products of conditionals: a likelihood without a bound
variational/   ELBO, VAE, hierarchical VAE, variational diffusion and its learned schedule
score/         score matching, SDEs, Langevin sampling, the probability-flow ODE
likelihood/    bounds on -ln p(x), term by term, and exact likelihoods along the probability flow
systems/       trainable denoisers, classifiers and super-resolution
evaluation/    the measurements of `fastdiff eval`
conditions.py  labels and other conditions of examples, and their dropout
system.py      what a trainable system must provide
registry.py    the table of trainable systems by name

tensors.py and dequantization.py serve several of these. The modules load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import lazy

_MODULES = (
    "autoregressive",
    "conditions",
    "dequantization",
    "evaluation",
    "information",
    "likelihood",
    "registry",
    "score",
    "system",
    "systems",
    "tensors",
    "variational",
)

if TYPE_CHECKING:
    from . import autoregressive as autoregressive
    from . import conditions as conditions
    from . import dequantization as dequantization
    from . import evaluation as evaluation
    from . import information as information
    from . import likelihood as likelihood
    from . import registry as registry
    from . import score as score
    from . import system as system
    from . import systems as systems
    from . import tensors as tensors
    from . import variational as variational
else:
    __getattr__, __dir__ = lazy.on_first_use(__name__, {}, _MODULES)
