"""A residual multilayer perceptron for vectors: points of the plane, latent codes.

    h_0 = W features(x) + b;  h_{l+1} = h_l + W2 silu((1 + a) norm(W1 silu(norm(h_l))) + c)
    output = W silu(norm(h_L))

with (a, c) a linear map of e = silu(MLP(sinusoids(t)) + embedding(y)), as in the U-Net. The
features are x and optionally sines and cosines of x: a network of few layers is slow to learn
functions that vary fast in their input (Tancik et al. 2020).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fourier import features
from .unet import sinusoids


class Layer(nn.Module):
    """y = h + W2 silu((1 + a) norm(W1 silu(norm(h))) + c); (a, c) is linear in the embedding."""

    def __init__(self, width: int, emb: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, width), nn.Linear(width, width)
        self.emb = nn.Linear(emb, 2 * width)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        a, c = self.emb(emb).chunk(2, dim=1)
        inner = torch.addcmul(c, self.norm2(self.linear1(F.silu(self.norm1(h)))), 1 + a)
        return h + self.linear2(F.silu(inner))


class MLP(nn.Module):
    """The network (x [B, dim], t, y) -> output [B, out].

    Args:
        dim: dimension of the vectors.
        out: dimension of the output, `dim` by default.
        num_classes: labels are 0 … num_classes - 1; `null_label` = num_classes means no class. 0
            for a network without classes.
        width, depth: the number of features and of residual layers.
        emb: width of the embedding of time and label, even.
        time_scale: factor of t before its embedding; 1000 for times in [0, 1].
        waves: exponents n of the additional features sin(2^n pi x) and cos(2^n pi x).

    Raises:
        ValueError: for numbers below 1, or an odd emb.
    """

    def __init__(
        self,
        dim: int = 2,
        out: int | None = None,
        num_classes: int = 0,
        width: int = 128,
        depth: int = 3,
        emb: int = 64,
        time_scale: float = 1.0,
        waves: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if min(dim, width, depth, emb) < 1 or emb % 2 or (out is not None and out < 1):
            raise ValueError(
                "fastdiff.models.MLP: expected dim, out, width, depth >= 1 and an even emb, got "
                f"{dim}, {out}, {width}, {depth} and {emb}."
            )
        self.config: dict[str, Any] = {
            "dim": dim,
            "out": out,
            "num_classes": num_classes,
            "width": width,
            "depth": depth,
            "emb": emb,
            "time_scale": time_scale,
        }
        self.waves = tuple(int(n) for n in waves)
        # without waves the key is left out, as in folders of versions that did not have it
        self.config |= {"waves": list(self.waves)} if waves else {}
        self.null_label, self.emb, self.time_scale = num_classes, emb, time_scale
        self.label = nn.Embedding(num_classes + 1, emb)
        self.time = nn.Sequential(nn.Linear(emb, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.linear_in = nn.Linear(dim * (1 + 2 * len(self.waves)), width)
        self.layers = nn.ModuleList(Layer(width, emb) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = nn.Linear(width, out or dim)
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)
        nn.init.normal_(self.label.weight, std=0.5)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns silu(MLP(sinusoids(t)) + embedding(y)) [B, emb], the condition for `decode`."""
        code = sinusoids(t, self.emb, scale=self.time_scale).to(self.label.weight.dtype)
        if y is None:
            y = torch.full(t.shape, self.null_label, dtype=torch.int64, device=t.device)
        return F.silu(self.time(code) + self.label(y))

    def decode(self, x: Tensor, emb: Tensor) -> Tensor:
        """Returns the output [B, out] for x [B, dim] and a result [B, emb] of `condition`.

        Raises ValueError for an x of another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.config["dim"]:
            raise ValueError(
                f"fastdiff.models.MLP: expected x of shape [B, {self.config['dim']}], got"
                f" {list(x.shape)}. Pass vectors of the dim in the model's config."
            )
        h = self.linear_in(features(x, self.waves))
        for layer in self.layers:
            h = layer(h, emb)
        return self.linear_out(F.silu(self.norm_out(h)))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns decode(x, condition(t, y)).

        Args:
            x: [B, dim] in the parameters' dtype.
            t: [B] timesteps (int64) or times (float32).
            y: int64 [B] labels in [0, num_classes], where num_classes is the null label; None for
                the null label for all samples.
        """
        return self.decode(x, self.condition(t, y))
