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
    """diffusers' flow transformers (SD3, Flux, Wan, Lumina, …), which return a velocity.

    They get a state and a time, time_offset + time_scale·sigma, and sign times their output is the
    velocity eps - x0. What each network takes stands in its pipeline's code alone: SD3's gets the
    scheduler's timesteps 1000·sigma, Flux' gets sigma, and Lumina's gets 1 - sigma and returns
    x0 - eps.

    Args:
        network: a module or another callable.
        time_scale, time_offset, sign: as above.
        names: of its first two arguments.
        channels: see `Adapter`.
    """

    parametrization = Parametrization("flow")

    def __init__(
        self,
        network: Callable[..., Any],
        *,
        time_scale: float = 1000.0,
        time_offset: float = 0.0,
        sign: float = 1.0,
        names: tuple[str, str] = ("hidden_states", "timestep"),
        channels: int | None = None,
    ):
        super().__init__(network, names=names, channels=channels)
        self.time_scale, self.time_offset, self.sign = time_scale, time_offset, sign

    def network_time(self, point: Time) -> float:
        """The network's time at the noise level of a straight path."""
        return self.time_offset + self.time_scale * point.sigma / (point.alpha + point.sigma)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        out = super().forward(x, t, **cond)
        return out if self.sign == 1.0 else self.sign * out


_SIGMA = {"time_scale": 1.0}
_TO_DATA = {"time_scale": -1.0, "time_offset": 1.0, "sign": -1.0}  # 1 - sigma, x0 - eps
FLOWS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "BriaFiboTransformer2DModel",
            "BriaTransformer2DModel",
            "ChronoEditTransformer3DModel",
            "CogView4Transformer2DModel",
            "ErnieImageTransformer2DModel",
            "HunyuanImageTransformer2DModel",
            "HunyuanVideo15Transformer3DModel",
            "HunyuanVideoFramepackTransformer3DModel",
            "HunyuanVideoTransformer3DModel",
            "JoyImageEditPlusTransformer3DModel",
            "JoyImageEditTransformer3DModel",
            "Kandinsky5Transformer3DModel",
            "Kandinsky6Transformer3DModel",
            "LTXVideoTransformer3DModel",
            "MochiTransformer3DModel",
            "MotifVideoTransformer3DModel",
            "OmniGenTransformer2DModel",
            "SD3Transformer2DModel",
            "SkyReelsV2Transformer3DModel",
            "WanAnimateTransformer3DModel",
            "WanTransformer3DModel",
            "WanVACETransformer3DModel",
        ),
        {},
    ),
    **dict.fromkeys(
        (
            "AuraFlowTransformer2DModel",
            "BriaFibo2Transformer2DModel",
            "ChromaTransformer2DModel",
            "Flux2Transformer2DModel",
            "FluxTransformer2DModel",
            "Krea2Transformer2DModel",
            "LongCatAudioDiTTransformer",
            "LongCatImageTransformer2DModel",
            "OvisImageTransformer2DModel",
            "PRXTransformer2DModel",
            "QwenImage21Transformer2DModel",
            "QwenImageTransformer2DModel",
        ),
        _SIGMA,
    ),
    "GlmImageTransformer2DModel": {"time_offset": -1.0},
    "HiDreamImageTransformer2DModel": {"sign": -1.0, "names": ("hidden_states", "timesteps")},
    "Ideogram4Transformer2DModel": _TO_DATA,
    "Lumina2Transformer2DModel": _TO_DATA,
    "LuminaNextDiT2DModel": _TO_DATA,
    "NucleusMoEImageTransformer2DModel": {**_SIGMA, "sign": -1.0},
}
"""How the pipelines of diffusers' flow transformers call them: arguments of `FlowAdapter`."""
# transformers that get the scheduler's timesteps, whatever the scheduler is
_TIMESTEPS = {
    "AllegroTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "CogView3PlusTransformer2DModel",
    "ConsisIDTransformer3DModel",
    "DiTTransformer2DModel",
    "EasyAnimateTransformer3DModel",
    "HunyuanDiT2DModel",
    "LatteTransformer3DModel",
    "PixArtTransformer2DModel",
    "PriorTransformer",
    "StableAudioDiTModel",
}
# and that are flows, with times by their config
_SCALED = {"SanaTransformer2DModel", "SanaVideoTransformer3DModel"}


def from_diffusers(network: Any, **options: Any) -> Adapter:
    """Returns the adapter of a diffusers network: its U-Nets, and the transformers whose pipelines
    call them with one state and one time.

    The output of a network that returns twice its input's channels (learned variance) is cut to the
    prediction, unless channels= is given.

    Raises:
        TypeError: for an object without diffusers' config, and for diffusers' transformers that
            take more than a state and a time, or whose times are not known: wrap these in an
            `Adapter` or a `FlowAdapter`.
    """
    where = "fastdiff.integrations.networks.from_diffusers"
    config = getattr(network, "config", None)
    if isinstance(network, Adapter):
        return network
    if config is None or not hasattr(network, "forward"):
        raise TypeError(
            f"{where}: expected a diffusers network with a config, got {type(network).__name__}."
            " Pass callables model(x, t, **cond) to Sampler as they are."
        )
    kind = type(network).__name__
    takes, gives = getattr(config, "in_channels", None), getattr(config, "out_channels", None)
    if takes is not None and gives == 2 * takes:
        options = {"channels": takes, **options}
    if kind in FLOWS:
        return FlowAdapter(network, **{**FLOWS[kind], **options})
    if kind in _SCALED:
        scale = getattr(config, "timestep_scale", None) or 1.0
        return FlowAdapter(network, **{"time_scale": 1000.0 * scale, **options})
    parameters = inspect.signature(type(network).forward).parameters
    first = "hidden_states" if "hidden_states" in parameters else "sample"
    own = type(network).__module__.startswith("diffusers.models.transformers")
    if own and kind not in _TIMESTEPS:
        raise TypeError(
            f"{where}: expected a transformer that gets one state and one time, got {kind}, whose"
            " pipeline calls it in another way. Wrap it in fastdiff.integrations.networks.Adapter"
            " or FlowAdapter, which say what it takes, and set it as the pipeline's transformer."
        )
    if getattr(config, "addition_embed_type", None) == "text_time":  # SDXL
        options = {"groups": {"added_cond_kwargs": ("text_embeds", "time_ids")}, **options}
    return Adapter(network, names=(first, "timestep"), **options)
