"""The networks that are measured, and a pipeline's loop around them.

They have random weights of a fixed seed, except the shipped one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import peers
from fastdiff import Schedule
from fastdiff.backend.hardware import has_amx
from fastdiff.pretrained import load

# google/ddpm-cifar10-32's, 35.7 M parameters
CIFAR: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256),
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
DIT: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 64,
}
DITS = {
    "dit-b/4": {**DIT, "num_layers": 12, "num_attention_heads": 12, "patch_size": 4},
    "dit-xl/2": {
        **DIT,
        "num_layers": 28,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "patch_size": 2,
    },
}
NAMES = ("fashion-mnist", "unet-cifar", *DITS)


class Network(NamedTuple):
    """A network in eval mode.

    Attributes:
        module: the network.
        shape: of one sample.
        schedule, prediction_type: of its training.
        condition: returns the keyword arguments of a call with this batch.
    """

    module: Any
    shape: tuple[int, ...]
    schedule: Schedule
    prediction_type: str
    condition: Callable[[int], dict[str, Tensor]]


def make(name: str, device: str, dtype: torch.dtype = torch.float32) -> Network:
    """Returns the network of this name. Raises ModuleNotFoundError if it needs diffusers."""
    linear = Schedule.linear(1000)

    def labels(key: str, classes: int) -> Callable[[int], dict[str, Tensor]]:
        return lambda batch: {key: torch.arange(batch, device=device) % classes}

    if name == "fashion-mnist":
        module, schedule, settings = load(name)
        found = Network(module, (1, 28, 28), schedule, settings["prediction_type"], labels("y", 10))
    else:
        library = peers.diffusers()
        if isinstance(library, peers.Missing):
            raise ModuleNotFoundError(
                f"benchmarks.model_zoo: {name} needs diffusers: {library.reason}."
            )
        torch.manual_seed(0)
        if name == "unet-cifar":
            found = Network(
                library.UNet2DModel(**CIFAR), (3, 32, 32), linear, "epsilon", lambda batch: {}
            )
        else:
            module = library.DiTTransformer2DModel(**DITS[name])
            found = Network(module, (4, 32, 32), linear, "epsilon", labels("class_labels", 1000))
    module = found.module.to(device)
    if dtype != torch.float32:  # diffusers warns about every cast
        module = module.to(dtype)
    return found._replace(module=module.eval().requires_grad_(False))


def settings(network: Any) -> dict[str, Any]:
    """Returns the network in each memory format and, on a CPU with AMX, also in bf16."""
    found = {"contiguous": network}
    if any(v.ndim == 4 for v in network.parameters()):
        found["channels_last"] = copy.deepcopy(network).to(memory_format=torch.channels_last)
    first = next(network.parameters())
    if first.device.type == "cpu" and first.dtype == torch.float32 and has_amx():
        found |= {
            f"{name}, bf16": copy.deepcopy(v).to(torch.bfloat16) for name, v in list(found.items())
        }
    return found


def call(network: Any, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
    """Returns the network's output in x's dtype."""
    out = network(x.to(next(network.parameters()).dtype), t, **condition)
    out = out if isinstance(out, Tensor) else out.sample
    return out.to(x.dtype)


SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
}
KINDS = {"epsilon": "epsilon", "v": "v_prediction"}


def pipeline(
    network: Network, solver: str, steps: int, run: Callable[[Tensor, Tensor], Tensor], batch: int
) -> Callable[[], Tensor] | peers.Missing:
    """Returns a pipeline's loop (draw, then network and scheduler in turns), without its checks and
    progress bar; or `Missing`.
    """
    library = peers.diffusers()
    if isinstance(library, peers.Missing):
        return library
    name, config = SCHEDULERS[solver]
    betas = torch.tensor(network.schedule.betas, dtype=torch.float32).numpy()
    scheduler = getattr(library, name)(
        trained_betas=betas,
        timestep_spacing="trailing",
        prediction_type=KINDS[network.prediction_type],
        **config,
    )
    first = next(network.module.parameters())

    def loop() -> Tensor:
        scheduler.set_timesteps(steps, device=first.device)
        x = torch.randn(batch, *network.shape, device=first.device, dtype=first.dtype)
        for t in scheduler.timesteps:
            # contiguous, as the compiled network expects it
            out = run(scheduler.scale_model_input(x, t), t.repeat(batch))
            x = scheduler.step(out, t, x, return_dict=False)[0]
        return x

    return loop
