"""Encoder and decoder networks: `conv` for images, `mlp` for vectors, and `linear` as a control.

    encoder: x [N, *shape] -> [N, outputs]
    decoder: z [N, latent] -> (values [N, per_element, *shape], extra [N, extra] or None)

The convolutional encoder halves the image twice, the decoder doubles it twice (pixel shuffle: the
last convolution works at half the resolution and computes four pixels per position). Weights have
torch's default initialisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NETWORKS = ("conv", "mlp", "linear")
DEFAULT_WIDTHS: dict[str, tuple[int, ...]] = {
    "conv": (32, 64, 256),
    "mlp": (128, 128),
    "linear": (),
}


class Residual(nn.Module):
    """y = x + conv(silu(conv(silu(x)))).

    The weight, but not the bias, of the second convolution is initialised to 0.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Returns linear layers of these sizes with silu between them."""
    layers: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class Encoder(nn.Module):
    """The network x [N, *shape] -> [N, outputs].

    widths: the hidden sizes; for `conv` (fine channels, coarse channels, hidden features).
    """

    def __init__(self, network: str, shape: tuple[int, ...], widths: Sequence[int], outputs: int):
        super().__init__()
        self.body: nn.Module
        if network == "conv":
            fine, coarse, hidden = widths
            self.body = nn.Sequential(
                nn.Conv2d(shape[0], fine, 4, stride=2, padding=1),
                nn.SiLU(),
                nn.Conv2d(fine, coarse, 4, stride=2, padding=1),
                Residual(coarse),
                nn.SiLU(),
                nn.Flatten(),
                nn.Linear(coarse * (shape[1] // 4) * (shape[2] // 4), hidden),
                nn.SiLU(),
                nn.Linear(hidden, outputs),
            )
        else:
            self.body = nn.Sequential(nn.Flatten(), _mlp([math.prod(shape), *widths, outputs]))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Decoder(nn.Module):
    """The network z [N, latent] -> (values [N, per_element, *shape], extra [N, extra]).

    The second output is None if extra is 0.
    """

    def __init__(
        self,
        network: str,
        shape: tuple[int, ...],
        widths: Sequence[int],
        latent: int,
        per_element: int,
        extra: int,
    ):
        super().__init__()
        self.shape, self.per_element, self.extra = shape, per_element, extra
        self.body: nn.Module
        if network == "conv":
            fine, coarse, hidden = widths
            height, width = shape[1] // 4, shape[2] // 4
            self.body = nn.Sequential(
                nn.Linear(latent, hidden),
                nn.SiLU(),
                nn.Linear(hidden, coarse * height * width),
                nn.Unflatten(1, (coarse, height, width)),
                Residual(coarse),
                nn.SiLU(),
                nn.Conv2d(coarse, 4 * fine, 1),
                nn.PixelShuffle(2),
                Residual(fine),
                nn.SiLU(),
                nn.Conv2d(fine, 4 * per_element * shape[0], 3, padding=1),
                nn.PixelShuffle(2),
            )
        else:
            self.body = _mlp([latent, *reversed(widths), per_element * math.prod(shape) + extra])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        return parts(self.body(z), self.shape, self.per_element, self.extra)


def parts(
    output: Tensor, shape: tuple[int, ...], per_element: int, extra: int
) -> tuple[Tensor, Tensor | None]:
    """Returns (values [N, per_element, *shape], extra [N, extra]) of a decoder's output [N, …].

    Raises ValueError for an output of another size.
    """
    h, size = output.flatten(1), per_element * math.prod(shape)
    if h.shape[1] != size + extra:
        raise ValueError(
            f"fastdiff.theory.variational.VAE: expected {size + extra} numbers a sample from the"
            f" decoder ({per_element} for each of {list(shape)}), got {h.shape[1]}."
        )
    return h[:, :size].reshape(-1, per_element, *shape), h[:, size:] if extra else None


def check(
    network: str, shape: tuple[int, ...], widths: Sequence[int] | None, covariance: str
) -> tuple[int, ...]:
    """Returns the hidden widths, or the defaults for None.

    Raises ValueError for arguments that the network can't be built from.
    """
    where = "fastdiff.theory.variational.VAE"
    if network not in NETWORKS:
        raise ValueError(f"{where}: expected network in {list(NETWORKS)}, got {network!r}.")
    if not shape or any(n < 1 for n in shape):
        raise ValueError(f"{where}: expected shape of sizes >= 1, got {list(shape)}.")
    chosen = DEFAULT_WIDTHS[network] if widths is None else tuple(int(w) for w in widths)
    if network == "conv":
        if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
            raise ValueError(
                f"{where}: expected shape [C, H, W] with H and W divisible by 4 for 'conv', got"
                f" {list(shape)}. Pad the images or use 'mlp'."
            )
        if covariance == "full":
            raise ValueError(
                f"{where}: expected network 'mlp' or 'linear' for a full covariance, got 'conv'."
            )
    counts = {
        "conv": "3 widths (fine channels, coarse channels, hidden)",
        "linear": "no widths",
        "mlp": "widths >= 1",
    }
    if any(w < 1 for w in chosen) or len(chosen) != {"conv": 3, "linear": 0}.get(
        network, len(chosen)
    ):
        raise ValueError(
            f"{where}: expected {counts[network]} for {network!r}, got {list(chosen)}."
        )
    return chosen


def channels_last(module: nn.Module) -> nn.Module:
    """Converts convolution weights to channels-last, the fastest layout in oneDNN and cuDNN."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
