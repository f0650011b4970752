"""Fills a network with the tensors of another program's.

A mapping names, for every tensor of the fastdiff network, the tensors of the other one that it is
made of: one, or three that become the rows of a packed projection. Every tensor must be used and
every tensor filled; nothing is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..outside import shown
from .checks import built_within

# our tensor -> theirs, of which several are stacked by rows
Names = dict[str, tuple[str, ...]]
_WHERE = "fastdiff.pretrained"


def filled(
    kind: type[nn.Module],
    arguments: Mapping[str, Any],
    mapping: Names,
    tensors: Mapping[str, Tensor],
    file: str,
) -> nn.Module:
    """Returns a network with another one's tensors, in eval mode.

    Biases that the other network lacks are 0.

    Raises ValueError for tensors that are missing, left over or of another shape.
    """
    header = {k: (tuple(v.shape), "F32") for k, v in tensors.items()}
    with built_within(header, kind.__name__, file):
        network = kind(**arguments)
    state, used = {}, set()
    for ours, value in network.state_dict().items():
        theirs = mapping.get(ours, ())
        parts = [tensors[name] for name in theirs if name in tensors]
        if not parts and ours.endswith(".bias"):
            state[ours] = torch.zeros_like(value)
            continue
        if len(parts) != len(theirs) or not parts:
            missing = next((n for n in theirs if n not in tensors), ours)
            raise ValueError(
                f"{_WHERE}: expected the tensor {shown(missing)!r} of the {kind.__name__} in"
                f" {file}, got none."
            )
        used |= set(theirs)
        # a 1x1 convolution is a matrix
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        if joined.numel() != value.numel() or joined.shape[0] != value.shape[0]:
            raise ValueError(
                f"{_WHERE}: expected {list(value.shape)} for {shown(theirs[0])!r} in {file}, got"
                f" {list(joined.shape)}. The config is that of another model."
            )
        state[ours] = joined.reshape(value.shape).to(value.dtype)
    rest = sorted(set(tensors) - used)
    if rest:
        raise ValueError(
            f"{_WHERE}: expected only tensors of the {kind.__name__} in {file}, got"
            f" {shown(rest[0])!r} too. The config is that of another model."
        )
    network.load_state_dict(state)
    return network.eval()


def both(modules: Names) -> Names:
    """Returns the mapping of the weights and biases of modules."""
    return {
        f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs)
        for ours, theirs in modules.items()
        for part in ("weight", "bias")
    }
