"""The networks of a hierarchical autoencoder: residual blocks, changes of size, and a level.

A level receives a state from the level above. The prior of its latent is computed from the state,
the posterior from the state and the encoder's features of x at that size. The posterior is
parameterised as a change of the prior (Vahdat & Kautz 2020, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..information import Gaussian

_MAX_LOGVAR = 8.0


class Block(nn.Module):
    """y = x + conv(silu(conv(silu(x)))), with the second convolution initialised to 0.

    The convolutions are 1×1 for a size of one position.
    """

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.first, self.second = conv(channels, channels, size), conv(channels, channels, size)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]  # bias=True

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Level(nn.Module):
    """One latent z_l [channels, size, size] of the hierarchy, with its prior and posterior."""

    def __init__(self, channels: int, size: int, width: int, top: bool):
        super().__init__()
        self.channels, self.top = channels, top
        self.prior = (
            None
            if top
            else nn.Sequential(Block(width, size), nn.SiLU(), conv(width, 2 * channels, size))
        )
        self.join = nn.Conv2d(2 * width, width, 1)
        self.posterior = nn.Sequential(
            Block(width, size), nn.SiLU(), conv(width, 2 * channels, size)
        )
        self.enter = nn.Conv2d(channels, width, 1)
        self.body = Block(width, size)
        for last in (self.posterior[-1], *(() if self.prior is None else (self.prior[-1],))):
            nn.init.zeros_(last.weight)  # initially q = p = N(0, I)
            nn.init.zeros_(last.bias)

    def p(self, state: Tensor) -> Gaussian:
        """Returns p(z_l|z_>l), at the top N(0, I)."""
        if self.prior is None:
            zero = state.new_zeros(len(state), self.channels, *state.shape[2:])
            return Gaussian(zero, zero)
        mean, raw = self.prior(state).chunk(2, dim=1)
        return Gaussian(mean, bounded_logvar(raw))

    def q(self, state: Tensor, features: Tensor, p: Gaussian) -> Gaussian:
        """Returns q(z_l|z_>l, x): the prior p plus a change of its mean and log-variance."""
        mean, raw = self.posterior(self.join(torch.cat([state, features], 1))).chunk(2, dim=1)
        return Gaussian(p.mean + mean, p.logvar + bounded_logvar(raw))

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """Returns the state below z."""
        return self.body(state + self.enter(z))


def bounded_logvar(raw: Tensor) -> Tensor:
    """Returns log-variances in (-8, 8), a smooth function of a network's output."""
    return _MAX_LOGVAR * torch.tanh(raw / _MAX_LOGVAR)


def conv(a: int, b: int, size: int) -> nn.Conv2d:
    """Returns a 3×3 convolution of a to b channels; 1×1 for a size of one position."""
    return nn.Conv2d(a, b, 3, padding=1) if size > 1 else nn.Conv2d(a, b, 1)


def shrink(a: int, b: int, size: int, to: int) -> nn.Module:
    """Returns a convolution from size² to to² positions.

    Its stride is the ratio of the sizes; at a ratio of 2 its patches overlap.
    """
    ratio = size // to
    if ratio == 1:
        return conv(a, b, size)
    return (
        nn.Conv2d(a, b, 4, stride=2, padding=1)
        if ratio == 2
        else nn.Conv2d(a, b, ratio, stride=ratio)
    )


def grow(a: int, b: int, size: int, to: int) -> nn.Module:
    """Returns a convolution from size² to to² positions (pixel shuffle of ratio² numbers each)."""
    ratio = to // size
    return (
        conv(a, b, size)
        if ratio == 1
        else nn.Sequential(conv(a, b * ratio**2, size), nn.PixelShuffle(ratio))
    )
