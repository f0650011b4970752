"""Trainable systems by name: one place for training, evaluation and model folders.

A system is a `torch.nn.Module` that says what to minimise and what it bounds; everything random in
it is a pure function of (seed, step, sample id), so a run that was killed and resumed is the run
that was not. Modules load on first use.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple, Protocol

from torch import Tensor

SYSTEMS = {
    "classifier": "fastdiff.theory.systems.classifier:NoisyClassifier",
    "hvae": "fastdiff.theory.variational.hvae:HVAE",
    "markovian": "fastdiff.theory.variational.markovian:MarkovianHVAE",
    "score": "fastdiff.theory.score.model:ScoreModel",
    "superres": "fastdiff.theory.systems.superres:SuperResolution",
    "unet": "fastdiff.theory.systems.denoiser:Denoiser",
    "vae": "fastdiff.theory.variational.vae:VAE",
    "vdm": "fastdiff.theory.variational.vdm:VDM",
}


class Timed(NamedTuple):
    """A bound whose denoising term is a sum over times.

    bound: as `System.bound` gives it. denoising: [B, K], what each of the sample's K times adds;
        its sum over K is
    bound["denoising"]. log_snr: [B, K], ln(alpha²/sigma²) there, falling along K.
    """

    bound: dict[str, Tensor]
    denoising: Tensor
    log_snr: Tensor


class System(Protocol):
    """What the trainer, `fastdiff eval` and model folders ask of a system, which is an `nn.Module`
    besides.

    config: keyword arguments, as JSON can hold them, that rebuild it: type(self)(**config).

    It may also have
        sample(n, *, seed, sample_ids) -> [n, …], draws;
        for_sampler() -> (network, schedule, settings), for systems that `fastdiff.Sampler` draws
        from; for_likelihood(labels) -> arguments of `likelihood.nll` beside x and the probes;
        terms(x0, labels, *, seed, sample_ids, times) -> Timed, for `fastdiff eval --plot`.
    """

    config: dict[str, Any]

    def loss(
        self, x0: Tensor, labels: Tensor, *, seed: int, sample_ids: Tensor, step: int
    ) -> Tensor:
        """[B], minimised in mean."""
        ...

    def bound(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Terms [B] in nats; their sum is, in expectation, at least -ln p(x0). A system of labels
        has none.
        """
        ...


def find(name: str) -> type:
    """The class of a system. Raises ValueError for other names."""
    if name not in SYSTEMS:
        raise ValueError(
            f"fastdiff.theory.registry: expected a system in {sorted(SYSTEMS)}, got {name!r}."
        )
    module, _, attribute = SYSTEMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def name_of(system: Any) -> str:
    """The inverse of `find`, for an instance. Raises TypeError for classes that are not in the
    registry.
    """
    kind = f"{type(system).__module__}:{type(system).__qualname__}"
    for name, where in SYSTEMS.items():
        if where == kind:
            return name
    raise TypeError(
        f"fastdiff.theory.registry: expected a system among {', '.join(sorted(SYSTEMS))}, got a"
        f" {type(system).__name__}. Save your own with your own code."
    )
