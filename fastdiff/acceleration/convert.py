"""Which module of a network becomes which faster one.

Classes of diffusers are recognised by name and parts, so diffusers is not imported.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from ..models.unet import Attention as UNetAttention
from ..models.unet import Block as UNetBlock
from ..models.unet import UNet
from . import attention, families, layers, norms, residual
from .tree import plain, share

Network = TypeVar("Network", bound=nn.Module)
DEFAULT_EXTRA = 2 * 2**30


def accelerate(network: Network, *, extra_bytes: int = DEFAULT_EXTRA) -> Network:
    """Returns a faster network of the same weights and function; the original is not changed.

    It is a new module tree over the same memory. The whole network is made faster if it is
    diffusers' UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel, or a U-Net of
    fastdiff.models. In any other network it is diffusers' residual blocks and attention, Conv2d and
    GroupNorm. The result is called like the original, has its `config`, `state_dict` and class
    name, follows `to`, and may be pickled and put into a pipeline. Weights that are changed in
    place later take effect however they are written (except, on a GPU, convolutions' weights
    through `.data`). So does what is put on its layers later: hooks, adapters, parametrizations,
    other modules and forwards. Where autograd records, it computes as the original does; its
    parameters are other objects over the same memory, so train the original. torch.compile traces
    it whole, with torch's convolutions instead of Winograd's.

    Results agree with the original's to about 1e-5 of their size in float32. On the CPU a sample's
    output may differ by as much with the batch it is computed in, like the original's.

    An accelerated network is returned as it is.

    Args:
        network: on the device and in the dtype it will be used in; both may change later.
        extra_bytes: the memory that transformed weights of 3x3 convolutions may take in addition to
            the weights. A transformed weight is four times as large and is made at the first call;
            convolutions get one in the order of the modules as long as memory is left, and the
            others stay torch's. Only float32 on the CPU uses them.

    Raises:
        TypeError: for an object that is no module, is compiled, or has nothing to make faster.
        ValueError: for modules with a replaced forward (offloading hooks), and for a negative
            extra_bytes.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"fastdiff.accelerate: expected a torch.nn.Module, got {type(network).__name__}."
        )
    if type(network).__name__ == "OptimizedModule":
        raise TypeError(
            "fastdiff.accelerate: expected a network that is not compiled. Accelerate first, then"
            " compile."
        )
    if extra_bytes < 0:
        raise ValueError(
            f"fastdiff.accelerate: expected extra_bytes of at least 0, got {extra_bytes}."
        )
    if any(isinstance(module, layers.Convolution | norms.Norm) for module in network.modules()):
        return network
    for name, module in network.named_modules():
        if "forward" in module.__dict__:
            raise ValueError(
                "fastdiff.accelerate: expected modules with their own forward, got a replaced one"
                f" at {name or 'the top'!r}. Accelerate before adding offloading or other hooks."
            )
    change = _Change(extra_bytes)
    result: Any = share(network, change)
    for module in result.modules():  # last, since blocks are recognised by their norms' class
        if plain(module, nn.GroupNorm):
            norms.faster_norm(module)
            change.count += 1
    if not change.count:
        raise TypeError(
            "fastdiff.accelerate: expected a network with convolutions, group norms or attention"
            f" of a known kind, got {type(network).__name__} without. Use it as it is."
        )
    return result


class _Change:
    """Converts the modules of a shared tree one after the other, children first."""

    def __init__(self, extra_bytes: int) -> None:
        self.count, self._free_bytes = 0, extra_bytes

    def __call__(self, module: nn.Module) -> None:
        before, name = type(module), type(module).__name__
        if plain(module, nn.Conv2d):
            assert isinstance(module, nn.Conv2d)
            self._free_bytes -= layers.faster_convolution(module, self._free_bytes)
        elif name == "ResnetBlock2D":
            residual.faster_residual(module)
        elif name == "Attention" and hasattr(module, "to_q"):
            attention.faster_attention(module)
        elif before is UNetBlock:
            residual.faster_own_block(module)
        elif before is UNetAttention:
            attention.faster_own_attention(module)
        if name in ("UNet2DModel", "UNet2DConditionModel"):
            families.fuse_output(module)
        if name == "UNet2DModel":
            families.faster_diffusers_unet(module)
        elif name == "DiTTransformer2DModel":
            families.faster_dit(module)
        elif before is UNet:
            families.faster_own_unet(module)
        self.count += type(module) is not before
