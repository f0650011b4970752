"""The autoregressive model, a trainable system.

    ln p(x) = Σ_i ln p(x_i|x_1 … x_{i-1})

No latent is integrated out, so the likelihood needs no bound, and a sample needs a network call
for each pixel. The law of an element is a mixture (mixture.py) whose numbers a causal network
computes (causal.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import ops
from ...backend.eager.sums import sum_samples
from ...grad_mode import restored
from ...rng import STREAM_INITIAL, STREAM_SOLVER
from ..conditions import Condition
from ..dequantization import LIKELIHOODS
from .causal import CausalConv, CausalMLP
from .mixture import Mixture, split

_WHERE = "fastdiff.theory.autoregressive.Autoregressive"


class Autoregressive(nn.Module):
    """p(x) as a product over the elements of x [B, *shape].

    Args:
        shape: of a sample, [C, H, W] for images in the order of reading, [D] for vectors.
        widths: the hidden sizes; for images one number for each block of the network, all equal.
        components: K, the components of an element's mixture.
        likelihood: `discretized` (logistic mass on 256 levels of [-1, 1]) or `gaussian` (a density,
            a mixture of normals).
        initial_std: the approximate initial scale of a component.
        min_log_std: the floor of its logarithm, approached smoothly.

    To the mean of a channel of a pixel, a linear function of the channels before it is added, whose
    factors the network computes.

    Attributes:
        config: the arguments, as JSON can hold them.

    Raises:
        ValueError: for names or numbers outside these.
    """

    loss_unit = "nats"

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        *,
        widths: Sequence[int] = (32, 32, 32, 32),
        components: int = 5,
        likelihood: str = "discretized",
        initial_std: float = 0.3,
        min_log_std: float = -7.0,
    ):
        super().__init__()
        self.shape, hidden = tuple(int(n) for n in shape), [int(n) for n in widths]
        self._check(hidden, components, likelihood, initial_std, min_log_std)
        self.config: dict[str, Any] = {
            "shape": list(self.shape),
            "widths": hidden,
            "components": components,
            "likelihood": likelihood,
            "initial_std": initial_std,
            "min_log_std": min_log_std,
        }
        self.components, self.levels = components, likelihood == "discretized"
        self.scales = (min_log_std, initial_std)
        self.channels = self.shape[0] if len(self.shape) == 3 else 1
        self.pairs = self.channels * (self.channels - 1) // 2
        if len(self.shape) == 3:
            outputs = components * (3 * self.channels + self.pairs)
            self.network: nn.Module = CausalConv(self.channels, outputs, hidden[0], len(hidden))
        else:
            self.network = CausalMLP(self.shape[0], 3 * components, hidden)

    def _check(
        self,
        widths: list[int],
        components: int,
        likelihood: str,
        initial_std: float,
        min_log_std: float,
    ) -> None:
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise ValueError(f"{_WHERE}: expected shape [D] or [C, H, W], got {list(self.shape)}.")
        if not widths or min(widths) < 1:
            raise ValueError(f"{_WHERE}: expected widths >= 1, got {widths}.")
        if len(self.shape) == 3 and len(set(widths)) > 1:
            raise ValueError(
                f"{_WHERE}: expected equal widths for images, one for each block, got {widths}."
            )
        if components < 1:
            raise ValueError(f"{_WHERE}: expected components >= 1, got {components}.")
        if likelihood not in LIKELIHOODS:
            raise ValueError(
                f"{_WHERE}: expected likelihood in {list(LIKELIHOODS)}, got {likelihood!r}."
            )
        if not initial_std > math.exp(min_log_std):
            raise ValueError(
                f"{_WHERE}: expected initial_std above its floor e^{min_log_std:g}, got"
                f" {initial_std}."
            )

    def conditionals(self, x0: Tensor) -> Mixture:
        """The laws of all elements given those before them, [B, K, *shape].

        x0: [B, *shape], or images of which the last rows are cut off.

        Raises ValueError for data of another shape.
        """
        size = x0.shape[1:]
        cut = len(self.shape) == 3 and len(size) == 3 and 1 <= size[1] <= self.shape[1]
        if tuple(size) != self.shape and not (cut and (size[0], size[2]) == self.shape[::2]):
            raise ValueError(
                f"{_WHERE}: expected x0 of shape [B, {', '.join(map(str, self.shape))}], got"
                f" {list(x0.shape)}."
            )
        values = self.network(x0)
        if len(self.shape) == 1:
            return split(values.unflatten(1, (3, self.components)), *self.scales)
        values, factors = values.split(
            [3 * self.components * self.channels, self.components * self.pairs], dim=1
        )
        values = values.unflatten(1, (3, self.components, self.channels))
        p = split(values, *self.scales)
        return p._replace(mean=self._linked(p.mean, factors, x0)) if self.pairs else p

    def _linked(self, mean: Tensor, factors: Tensor, x0: Tensor) -> Tensor:
        """The means [B, K, C, H, W] with the share of the earlier channels of the pixel."""
        factors = factors.unflatten(1, (self.components, self.pairs))
        means, pair = [mean[:, :, 0]], 0
        for c in range(1, self.channels):
            earlier = factors[:, :, pair : pair + c] * x0[:, None, :c]
            means.append(mean[:, :, c] + earlier.sum(2))
            pair += c
        return torch.stack(means, dim=2)

    def log_prob(self, x0: Tensor) -> Tensor:
        """ln p(x0) [B] in nats: of the levels, or of the density."""
        p = self.conditionals(x0)
        return sum_samples(p.log_mass(x0) if self.levels else p.log_density(x0))

    def loss(
        self,
        x0: Tensor,
        labels: Condition = None,
        *,
        seed: int = 0,
        sample_ids: Tensor | None = None,
        step: int = 0,
        part: tuple[int, int] | None = None,
    ) -> Tensor:
        """Returns -ln p(x0) [B] in nats.

        labels, seed, sample_ids, step, part: not used; nothing here is random.
        """
        return -self.log_prob(x0)

    def bound(
        self,
        x0: Tensor,
        labels: Condition = None,
        *,
        seed: int = 0,
        sample_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Returns {"elements": -ln p(x0) [B]} in nats: the likelihood itself, not a bound of it.

        labels, seed, sample_ids: not used.
        """
        return {"elements": -self.log_prob(x0)}

    @restored
    @torch.no_grad()
    def sample(self, n: int, *, seed: int, sample_ids: Tensor | None = None) -> Tensor:
        """Returns n samples [n, *shape], element by element.

        It takes a network call for each pixel of an image, on the rows down to it, or for each
        element of a vector. Components are chosen by stream 0 of the noise contract, and values
        drawn in them by stream 1. A sample is a function of the seed and its id: the same in every
        batch, up to the network's arithmetic.
        """
        like = next(self.parameters())
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": 0}
        counter |= {"dtype": like.dtype, "device": like.device}
        choice, noise = (
            ops.randn((n, *self.shape), stream=stream, **counter)
            for stream in (STREAM_INITIAL, STREAM_SOLVER)
        )
        x = torch.zeros_like(choice)
        for at in self._order():
            p = self.conditionals(x[:, :, : at[1] + 1] if len(at) == 3 else x)
            here = Mixture(*(_at(v, at) for v in p))
            drawn = here.sample(_at(choice, at), _at(noise, at), levels=self.levels)
            _at(x, at).copy_(drawn)
        return x

    def _order(self) -> list[tuple[int, ...]]:
        """The indices of the elements in the order in which they are drawn."""
        if len(self.shape) == 1:
            return [(i,) for i in range(self.shape[0])]
        channels, height, width = self.shape
        return [(c, i, j) for i in range(height) for j in range(width) for c in range(channels)]


def _at(values: Tensor, element: tuple[int, ...]) -> Tensor:
    """A view of the values [..., *shape] at one element, [...]."""
    for axis, index in enumerate(element):
        values = values.select(values.ndim - len(element) + axis, index)
    return values
