"""Networks by name: the classes of this package, and sizes that were published.

`network("dit-s/4", size=32)` is a DiT of the published depth and width for images of 32 pixels.
Arguments override those of the name.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .attention_unet import AttentionUNet
from .dit import DiT
from .mlp import MLP
from .unet import UNet

# Ho et al. 2020, appendix B: 35.7 M parameters for CIFAR-10
_CIFAR = {
    "widths": [128, 256, 256, 256],
    "blocks": 2,
    "attention": [16],
    "groups": 32,
    "corner": True,
    "sine_first": True,
    "shift": 1.0,
}
# Peebles & Xie 2023, table 1: (hidden, depth, heads)
_DIT = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}

NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "attention-unet": (AttentionUNet, {}),
    "dit": (DiT, {}),
    "mlp": (MLP, {}),
    "unet": (UNet, {}),
    "unet-cifar": (AttentionUNet, _CIFAR),
} | {
    f"dit-{size}/{patch}": (
        DiT,
        {"patch": patch, "hidden": hidden, "depth": depth, "heads": heads},
    )
    for size, (hidden, depth, heads) in _DIT.items()
    for patch in (2, 4, 8)
}


def find(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
    """Returns (class, the arguments that the name stands for).

    Raises ValueError for an unknown name.
    """
    if not isinstance(name, str) or name.lower() not in NETWORKS:
        raise ValueError(
            f"fastdiff.models: expected a network in {sorted(NETWORKS)} or package.module:factory,"
            f" got {name!r}."
        )
    kind, arguments = NETWORKS[name.lower()]
    return kind, dict(arguments)


def network(name: str, **arguments: Any) -> nn.Module:
    """Returns a new network by name; arguments override those of the name.

    Raises ValueError for an unknown name or arguments that do not fit.
    """
    kind, fixed = find(name)
    try:
        return kind(**fixed | arguments)
    except TypeError as error:
        raise ValueError(f"fastdiff.models: expected arguments of {name}: {error}.") from None
