"""Adapters: networks of other libraries as `model(x, t, **cond)`, which every door accepts.

An adapter renames arguments, drops the part of the output that is not the prediction, and defines
the network's time, `network_time(point)`, which is passed as float32. Its `parametrization` says
what the network gets and returns; pass it on as `prediction_type=`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..prediction import Parametrization
from ..sampling.model_call import tensor_of
from ..schedule import SPACES, Time, geometry


class Adapter(torch.nn.Module):
    """A network under fastdiff's calling convention, with the network's parameters as its own.

    Args:
        network: a module or another callable.
        names: of its first two arguments, None where they are positional.
        channels: the number of channels of the output that are the prediction; None for all.
            Networks with learned variance return twice the channels; solvers that use it need them
            all (None).
        groups: conditions that the network takes together, in a dict of this name; each may be
            passed alone.

    Floating conditions are cast to x's dtype.
    """

    parametrization = Parametrization()

    def __init__(
        self,
        network: Callable[..., Any],
        *,
        names: tuple[str, str] | None = None,
        channels: int | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
    ):
        super().__init__()
        self.network, self.names, self.channels, self.groups = (
            network,
            names,
            channels,
            dict(groups or {}),
        )

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        for key, value in cond.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                cond[key] = value.to(x.dtype)
        for name, members in self.groups.items():
            if together := {key: cond.pop(key) for key in members if key in cond}:
                cond[name] = together
        named = dict(zip(self.names, (x, t), strict=True)) if self.names else {}
        out = self.network(*(() if self.names else (x, t)), **named, **cond)
        out = tensor_of(out, where=f"fastdiff.{type(self).__name__}")
        return out if self.channels is None else out[:, : self.channels]


class DenoiserAdapter(Adapter):
    """A denoiser D(x, sigma) -> x0 of x0 + sigma eps.

    That is k-diffusion's denoiser, or EDM's with its preconditioning (Karras et al. 2022). Where
    the schedule's alpha is not 1 the network gets x_t/alpha.

    Args:
        network: (x, sigma [B], **cond) -> x0.
        space: of the schedule that it is sampled with: `ve`, `vp`, `flow` or `sub_vp`.

    Raises:
        ValueError: for another space.
    """

    parametrization = Parametrization("x0")

    def __init__(self, network: Callable[..., Any], *, space: str = "ve"):
        super().__init__(network)
        if space not in SPACES:
            raise ValueError(
                f"fastdiff.integrations.networks.DenoiserAdapter: expected space in {list(SPACES)},"
                f" got {space!r}."
            )
        self.space = space

    def network_time(self, point: Time) -> float:
        """sigma/alpha."""
        return point.rho

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if self.space != "ve":
            over_alpha = geometry(self.space).inverse_alpha(t)
            x = (over_alpha.view(-1, *(1,) * (x.ndim - 1)) * x).to(x.dtype)
        return super().forward(x, t, **cond)


class EDMAdapter(Adapter):
    """The raw network F of Karras et al. 2022, table 1; it gets c_in x and c_noise = ln(sigma)/4.

    Args:
        network: (c_in x, c_noise [B], **cond) -> F, with D = c_skip x + c_out F.
        sigma_data: the standard deviation of the data that it was trained with.
    """

    def __init__(self, network: Callable[..., Any], *, sigma_data: float = 0.5):
        super().__init__(network)
        self.parametrization = Parametrization("edm", unit_input=True, sigma_data=sigma_data)

    def network_time(self, point: Time) -> float:
        """c_noise = ln(sigma/alpha)/4."""
        return 0.25 * math.log(point.rho)


class FlowAdapter(Adapter):
    """diffusers' flow transformers (SD3, Flux, …), which return a velocity.

    They get hidden_states and timestep = time_scale·sigma. time_scale is 1000 for networks whose
    pipelines pass the scheduler's timesteps (SD3), and 1 where the pipeline divides them by 1000
    (Flux).
    """

    parametrization = Parametrization("flow")

    def __init__(self, network: Callable[..., Any], *, time_scale: float = 1000.0):
        super().__init__(network, names=("hidden_states", "timestep"))
        self.time_scale = time_scale

    def network_time(self, point: Time) -> float:
        """time_scale·sigma of the straight path with this noise level."""
        return self.time_scale * point.sigma / (point.alpha + point.sigma)


FLOW_TIME_SCALES = {"SD3Transformer2DModel": 1000.0, "FluxTransformer2DModel": 1.0}
"""The time_scale of diffusers' flow transformers (Flux multiplies by 1000 itself)."""


def from_diffusers(network: Any, **options: Any) -> Adapter:
    """Returns the adapter of a diffusers network: U-Nets, DiT, SD3 and Flux transformers.

    The output of a network that returns twice its input's channels (learned variance) is cut to the
    prediction, unless channels= is given. For another flow transformer use `FlowAdapter` with its
    time_scale.

    Raises:
        TypeError: for an object without diffusers' config.
    """
    config = getattr(network, "config", None)
    if config is None or not hasattr(network, "forward"):
        raise TypeError(
            "fastdiff.integrations.networks.from_diffusers: expected a diffusers network with a"
            " config, got"
            f" {type(network).__name__}. Pass callables model(x, t, **cond) to Sampler as they are."
        )
    kind = type(network).__name__
    if kind in FLOW_TIME_SCALES:
        return FlowAdapter(network, **{"time_scale": FLOW_TIME_SCALES[kind], **options})
    parameters = inspect.signature(type(network).forward).parameters
    first = "hidden_states" if "hidden_states" in parameters else "sample"
    takes, gives = getattr(config, "in_channels", None), getattr(config, "out_channels", None)
    if takes is not None and gives == 2 * takes:
        options = {"channels": takes, **options}
    if getattr(config, "addition_embed_type", None) == "text_time":  # SDXL
        options = {"groups": {"added_cond_kwargs": ("text_embeds", "time_ids")}, **options}
    return Adapter(network, names=(first, "timestep"), **options)
