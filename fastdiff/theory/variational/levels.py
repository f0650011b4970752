"""The parts of a hierarchical autoencoder's networks: residual blocks, changes of size, and a level
of the hierarchy.

A level has a state that comes from above; the prior of its latent is read from the state, the
posterior from the state and from what the encoder sees of x at that size, told as a change of the
prior (Vahdat & Kautz 2020, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..information import Gaussian

_SPREAD = 8.0  # log-variances are held in (-8, 8), smoothly


class Block(nn.Module):
    """y = x + conv(silu(conv(silu(x)))), the second convolution starting from 0; 1×1 where there is
    one position.
    """

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.first, self.second = conv(channels, channels, size), conv(channels, channels, size)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]  # bias=True

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Level(nn.Module):
    """One latent z_l [channels, size, size]: its prior from the state above, its posterior from
    that and x's features.
    """

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
            nn.init.zeros_(last.weight)  # at first q = p = N(0, I)
            nn.init.zeros_(last.bias)

    def p(self, state: Tensor) -> Gaussian:
        """p(z_l|z_>l); at the top N(0, I)."""
        if self.prior is None:
            zero = state.new_zeros(len(state), self.channels, *state.shape[2:])
            return Gaussian(zero, zero)
        mean, raw = self.prior(state).chunk(2, dim=1)
        return Gaussian(mean, _SPREAD * torch.tanh(raw / _SPREAD))

    def q(self, state: Tensor, features: Tensor, p: Gaussian) -> Gaussian:
        """q(z_l|z_>l, x), told as what x adds to the prior."""
        mean, raw = self.posterior(self.join(torch.cat([state, features], 1))).chunk(2, dim=1)
        return Gaussian(p.mean + mean, p.logvar + _SPREAD * torch.tanh(raw / _SPREAD))

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """The state below z."""
        return self.body(state + self.enter(z))


def conv(a: int, b: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1) if size > 1 else nn.Conv2d(a, b, 1)


def shrink(a: int, b: int, size: int, to: int) -> nn.Module:
    """From size² positions to fewer: patches of the ratio, overlapping where it is 2."""
    ratio = size // to
    if ratio == 1:
        return conv(a, b, size)
    return (
        nn.Conv2d(a, b, 4, stride=2, padding=1)
        if ratio == 2
        else nn.Conv2d(a, b, ratio, stride=ratio)
    )


def grow(a: int, b: int, size: int, to: int) -> nn.Module:
    """Back again: ratio² numbers a position, shuffled into place."""
    ratio = to // size
    return (
        conv(a, b, size)
        if ratio == 1
        else nn.Sequential(conv(a, b * ratio**2, size), nn.PixelShuffle(ratio))
    )
