"""A diffusers pipeline's network and scheduler in fastdiff's loop: the scheduler's plan, run on
latents.

The plan of a drop-in is its formula traced over the timesteps it shows to pipelines, so the loop
takes the pipeline's steps, with quirks and all; noise is fastdiff's.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...sampler import Sampler
from ...solvers import Plan
from ...table import INDEX
from ..networks import Adapter, FlowAdapter, from_diffusers
from .conversion import from_scheduler

_OF_A_CALL = {
    "model_output",
    "timestep",
    "sample",
    "generator",
    "return_dict",
    "variance_noise",
    "per_token_timesteps",
    "prev_timestep",
    "original_image",
    "mask",
}


class PipelineSampler(Sampler):
    """A Sampler of a ready plan that ends in a VAE's decoder where it is given one.

    Args:
        model, plan, settings: as for `Sampler`.
        decode: an autoencoder of diffusers, whose scaling, shift or statistics of the latents are
            undone before it; None for latents.
    """

    def __init__(self, model: Any, plan: Plan, *, decode: Any = None, **settings: Any):
        super().__init__(model, plan=plan, **settings)
        self._vae = decode

    def sample(self, shape: Any = None, **arguments: Any) -> Tensor:
        """`Sampler.sample` of latents, then decoded."""
        return self.decode(super().sample(shape, **arguments))

    def stream(self, n: int, shape: Any, **arguments: Any) -> Iterator[Tensor]:
        """`Sampler.stream` of latents, each batch decoded."""
        return map(self.decode, super().stream(n, shape, **arguments))

    def serve(self, requests: Any, shape: Any, **arguments: Any) -> Iterator[Any]:
        """`Sampler.serve` of latents, each decoded alone."""
        for request, latents in super().serve(requests, shape, **arguments):
            yield request, self.decode(latents[None])[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The pictures of latents [B, C, …], or the latents themselves without a decoder."""
        return latents if self._vae is None else pictures(self._vae, latents)


def pictures(vae: Any, latents: Tensor) -> Tensor:
    """What an autoencoder of diffusers decodes from latents [B, C, …], their scaling, shift or
    statistics undone.

    Raises ValueError for packed latents.
    """
    config = vae.config
    if latents.ndim < 4:
        raise ValueError(
            f"fastdiff.Sampler: expected latents [B, C, H, W] to decode, got {list(latents.shape)}."
            " Leave decode= out and unpack them as the pipeline does."
        )
    scale, shift = (
        getattr(config, "scaling_factor", None) or 1.0,
        getattr(config, "shift_factor", None) or 0.0,
    )
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    latents = latents / scale
    if mean is not None and std is not None:
        across = (1, -1, *(1,) * (latents.ndim - 2))
        latents = latents * latents.new_tensor(std).view(across) + latents.new_tensor(mean).view(
            across
        )
    return vae.decode((latents + shift).to(vae.dtype)).sample


def from_pipeline(
    pipe: Any, *, steps: int | None = None, decode: Any = None, **settings: Any
) -> PipelineSampler:
    """See `Sampler.from_diffusers`."""
    where = "fastdiff.Sampler.from_diffusers"
    network = getattr(pipe, "unet", None)
    network = getattr(pipe, "transformer", None) if network is None else network
    if network is None or getattr(pipe, "scheduler", None) is None:
        raise TypeError(
            f"{where}: expected a pipeline with a scheduler and a unet or transformer, got"
            f" {type(pipe).__name__}."
        )
    scheduler = copy.deepcopy(from_scheduler(pipe.scheduler))
    if getattr(scheduler, "_scale_factors", None):
        raise ValueError(
            f"{where}: expected no scale_factors: pictures that grow from step to step make no"
            " plan."
        )
    if scheduler.config.get("variance_type") == "learned":
        raise ValueError(
            f"{where}: expected variance_type other than 'learned'. Networks in use learn a range."
        )
    setting = {
        k: settings.pop(k)
        for k in list(settings)
        if k in inspect.signature(scheduler.set_timesteps).parameters
    }
    wanted = set(inspect.signature(scheduler.step).parameters) - _OF_A_CALL
    options = {k: settings.pop(k) for k in list(settings) if k in wanted}
    if steps is None and not {"timesteps", "sigmas"} & set(setting):
        steps = 25
    if steps is not None:
        setting["num_inference_steps"] = steps
    scheduler.set_timesteps(**setting)
    reads = type(scheduler).__name__.startswith(
        ("DDPM", "UnCLIP")
    )  # others leave a learned variance alone
    learned = reads and scheduler.config.variance_type == "learned_range"
    model = from_diffusers(network, **({"channels": None} if learned else {}))
    return PipelineSampler(
        model, _told(scheduler.plan(**options), model), decode=decode, **settings
    )


def _told(plan: Plan, model: Adapter) -> Plan:
    """The plan with the times that the network is told: some flow transformers' pipelines divide
    the scheduler's by 1000.
    """
    scale = model.time_scale / 1000.0 if isinstance(model, FlowAdapter) else 1.0
    if scale == 1.0:
        return plan
    table = plan.table.copy()
    table[:, INDEX["t"]] *= scale
    return dataclasses.replace(plan, table=table)
