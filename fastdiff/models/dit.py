"""A diffusion transformer with adaLN-Zero blocks (Peebles & Xie 2023, section 3.2).

    h = patches(x) + positions
    (s1, c1, g1, s2, c2, g2) = W silu(e)
    block: h = h + g1 attention((1 + c1) norm(h) + s1);  h = h + g2 mlp((1 + c2) norm(h) + s2)
    output = unpatch(W ((1 + c) norm(h) + s)),  (s, c) = W silu(e)

with e = MLP(sinusoids(t)) + embedding(y), and norms without parameters. All modulations and the
output are 0 at first: every block begins as the identity. A patch of p × p pixels is one token; the
positions are fixed sines and cosines of row and column.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_unet import check_input, labels_of
from .unet import sinusoids

_WHERE = "fastdiff.models.DiT"
FREQUENCIES = 256  # the width of the sinusoids of t


class Embedding(nn.Module):
    """e = MLP(sinusoids(t)) + embedding(y), [B, hidden]."""

    def __init__(self, hidden: int, labels: int) -> None:
        super().__init__()
        self.time = nn.Sequential(
            nn.Linear(FREQUENCIES, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        self.label = nn.Embedding(labels, hidden) if labels else None

    def forward(self, code: Tensor, y: Tensor | None) -> Tensor:
        e = self.time(code)
        return e if self.label is None else e + self.label(y)


class DiTBlock(nn.Module):
    """A transformer block with norms that the condition scales and shifts, and gated branches."""

    def __init__(self, hidden: int, heads: int, mlp: int, eps: float, mlp_eps: float, tanh: bool):
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(hidden, 6 * hidden)
        self.norm1 = nn.LayerNorm(hidden, eps, elementwise_affine=False)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, mlp_eps, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, mlp),
            nn.GELU("tanh" if tanh else "none"),
            nn.Linear(mlp, hidden),
        )

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """h: [B, N, hidden] tokens; e: [B, hidden], silu of the condition."""
        s1, c1, g1, s2, c2, g2 = self.modulation(e)[:, None].chunk(6, dim=2)
        b, n, width = h.shape
        q, k, v = (
            self.qkv(torch.addcmul(s1, self.norm1(h), 1 + c1))
            .reshape(b, n, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        h = torch.addcmul(h, g1, self.out(mixed))
        return torch.addcmul(h, g2, self.mlp(torch.addcmul(s2, self.norm2(h), 1 + c2)))


class DiT(nn.Module):
    """The network (x_t, t, y) -> output [B, out, size, size].

    Args:
        channels: of the images or latents.
        size: height and width; divisible by `patch`.
        num_classes: labels are 0 … num_classes - 1; 0 for a network without classes, which ignores
            y.
        patch: height and width of a token's patch.
        hidden: the width of a token; a multiple of 4 and of `heads`.
        depth: the number of blocks.
        heads: of every attention.
        mlp_ratio: the width of a block's MLP over `hidden`.
        null_class: whether the label num_classes means no class, `null_label`. Without it
            `null_label` is None, and a network with classes needs y.
        learn_sigma: whether the output has a second half of channels, for a learned variance.
        out_channels: of the output without that half, `channels` by default.
        time_scale: factor of t before its embedding; 1000 for times in [0, 1].
        shift: of the sinusoids of t, see `sinusoids`.
        eps, mlp_eps: of the norms before attention and output, and of those before the MLPs.
        tanh: whether GELU is computed by its tanh approximation, as in the paper's code.
        shared: whether all blocks have one embedding of t and y; else each has its own.

    Raises:
        ValueError: for sizes that do not fit each other.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        num_classes: int = 0,
        patch: int = 4,
        hidden: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        null_class: bool = True,
        learn_sigma: bool = False,
        out_channels: int | None = None,
        time_scale: float = 1.0,
        shift: float = 0.0,
        eps: float = 1e-6,
        mlp_eps: float = 1e-6,
        tanh: bool = True,
        shared: bool = True,
    ) -> None:
        super().__init__()
        if min(channels, size, patch, hidden, depth, heads) < 1 or num_classes < 0:
            raise ValueError(
                f"{_WHERE}: expected channels, size, patch, hidden, depth, heads >= 1 and"
                f" num_classes >= 0, got {channels}, {size}, {patch}, {hidden}, {depth}, {heads}"
                f" and {num_classes}."
            )
        if size % patch:
            raise ValueError(
                f"{_WHERE}: expected a size divisible by patch={patch}, got {size}. Pad the"
                " images or use another patch."
            )
        if hidden % 4 or hidden % heads or not mlp_ratio * hidden >= 1:
            raise ValueError(
                f"{_WHERE}: expected hidden as a multiple of 4 and of heads={heads}, and"
                f" mlp_ratio > 0, got {hidden} and {mlp_ratio}."
            )
        self.config: dict[str, Any] = {
            "channels": channels,
            "size": size,
            "num_classes": num_classes,
            "patch": patch,
            "hidden": hidden,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "null_class": null_class,
            "learn_sigma": learn_sigma,
            "out_channels": out_channels,
            "time_scale": time_scale,
            "shift": shift,
            "eps": eps,
            "mlp_eps": mlp_eps,
            "tanh": tanh,
            "shared": shared,
        }
        self.patch, self.out = patch, (out_channels or channels) * (2 if learn_sigma else 1)
        self.null_label: int | None = num_classes if null_class or not num_classes else None
        rows = num_classes + null_class if num_classes else 0
        self.patches = nn.Conv2d(channels, hidden, patch, stride=patch)
        self.embeddings = nn.ModuleList(
            Embedding(hidden, rows) for _ in range(1 if shared else depth)
        )
        self.blocks = nn.ModuleList(
            DiTBlock(hidden, heads, int(mlp_ratio * hidden), eps, mlp_eps, tanh)
            for _ in range(depth)
        )
        self.modulation = nn.Linear(hidden, 2 * hidden)
        self.norm_out = nn.LayerNorm(hidden, eps, elementwise_affine=False)
        self.linear_out = nn.Linear(hidden, patch * patch * self.out)
        # it follows from the config, so it is not stored with the weights
        self.register_buffer("positions", positions(size // patch, hidden), persistent=False)
        self._initialise()

    positions: Tensor

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patches.weight.view(len(self.patches.weight), -1))
        nn.init.zeros_(self.patches.bias)  # type: ignore[arg-type]  # bias=True
        embeddings: Any = self.embeddings
        for embedding in embeddings:
            nn.init.normal_(embedding.time[0].weight, std=0.02)
            nn.init.normal_(embedding.time[2].weight, std=0.02)
            if embedding.label is not None:
                nn.init.normal_(embedding.label.weight, std=0.02)
        for last in (*(b.modulation for b in self.blocks), self.modulation, self.linear_out):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type, union-attr]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type, union-attr]

    def condition(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns silu(e) [B, hidden] for each embedding, side by side: the condition for `decode`.

        Args:
            t: [B] timesteps (int64) or times (float32).
            y: int64 [B] labels; None for the null label for all samples.

        Raises ValueError for y=None if the network has classes and no null label.
        """
        config = self.config
        code = sinusoids(t, FREQUENCIES, scale=config["time_scale"], shift=config["shift"])
        code = code.to(self.linear_out.weight.dtype)
        labels = labels_of(self, t, y) if config["num_classes"] else None
        return F.silu(torch.cat([e(code, labels) for e in self.embeddings], dim=1))

    def decode(self, x: Tensor, emb: Tensor) -> Tensor:
        """Returns the output for x [B, C, H, W] and a result of `condition`.

        Raises ValueError for an x that is not of the configured shape.
        """
        check_input(self, x)
        h = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        conditions = emb.split(self.config["hidden"], dim=1)
        for i, block in enumerate(self.blocks):
            h = block(h, conditions[i % len(conditions)])
        s, c = self.modulation(conditions[0])[:, None].chunk(2, dim=2)
        h = self.linear_out(torch.addcmul(s, self.norm_out(h), 1 + c))
        p, side = self.patch, self.config["size"] // self.patch
        h = h.view(len(x), side, side, p, p, self.out).permute(0, 5, 1, 3, 2, 4)
        return h.reshape(len(x), self.out, side * p, side * p)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns decode(x, condition(t, y)).

        Args:
            x: [B, channels, size, size] in the parameters' dtype.
            t, y: as in `condition`.

        Raises:
            ValueError: for an x that is not of the configured shape.
        """
        return self.decode(x, self.condition(t, y))


def positions(side: int, hidden: int) -> Tensor:
    """Returns the codes of the patches of a grid, row by row, [1, side², hidden] float32.

        [sin(j w_i), cos(j w_i), sin(k w_i), cos(k w_i)],   w_i = 10000^(-i / (hidden/4))

    for column j and row k (Peebles & Xie 2023, with the codes of Vaswani et al. 2017).
    """
    rate = torch.arange(hidden // 4, dtype=torch.float64) * (-math.log(10_000.0) / (hidden // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * rate.exp()
    code = torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, hidden/2]
    column, row = code.expand(side, -1, -1), code[:, None].expand(-1, side, -1)
    return torch.cat([column, row], dim=2).reshape(1, side * side, hidden).to(torch.float32)
