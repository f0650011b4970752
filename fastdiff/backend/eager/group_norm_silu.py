"""`group_norm_silu` on torch, and its gradient.

    silu(((u - mean)·rstd·weight + bias)(1 + scale) + shift),   u = x + add

The forward pass sums in the order of the C++ kernels (kernels/README.md section 12), so float32
results agree bit for bit. The gradient is a formula of differentiable operations: it can be
compiled, and differentiated again.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .common import store
from .elementary import EXP_HIGH, exp

POSITIONS = 64  # positions of a channel that share one pair of moments
PARTIALS = 16


def chunks(positions: int) -> int:
    """Returns how many chunks of positions a channel has."""
    return -(-positions // POSITIONS)


def group_norm_silu(
    out: Tensor,
    workspace: Tensor | None,
    statistics: Tensor | None,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    eps: float,
    silu: bool,
) -> None:
    """Launches the op; `out` and `x` are [B, C, n] views. The buffers are for other backends."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    u = x.to(compute)
    u = u if add is None else u + add.to(compute)[:, :, None]
    mean, rstd = (
        v.to(compute).repeat_interleave(x.shape[1] // groups, 1) for v in moments(u, groups, eps)
    )
    gain = rstd if weight is None else rstd * weight.to(compute)
    wide = None if scale is None else 1 + scale.to(compute)
    gain = gain if wide is None else gain * wide
    z = (u - mean[:, :, None]) * gain[:, :, None]
    offset = torch.zeros_like(mean) if bias is None else bias.to(compute).expand_as(mean)
    offset = offset if wide is None else offset * wide
    offset = offset if shift is None else offset + shift.to(compute)
    z = z + offset[:, :, None]
    store(out, silu_of(z) if silu else z)


def silu_of(z: Tensor) -> Tensor:
    """Returns z/(1 + e^-z); 0 in float32 where e^-z is infinite."""
    y = z / (1 + exp(-z))
    return y if z.dtype == torch.float64 else torch.where(z < -EXP_HIGH, 0.0, y)


def moments(u: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Returns mean and 1/sqrt(variance + eps) of x [B, C, n], float64 [B, groups] each.

    They are summed in the order of the kernels.
    """
    batch, channels, positions = u.shape
    count, width = chunks(positions), channels // groups
    cut = pad(u, (0, count * POSITIONS - positions)).view(batch, channels, count, POSITIONS)
    sizes = torch.full((count,), POSITIONS, dtype=u.dtype, device=u.device)
    sizes[-1] = positions - (count - 1) * POSITIONS
    mean = sum16(cut) / sizes
    inside = torch.arange(count * POSITIONS, device=u.device).view(count, POSITIONS) < positions
    apart = torch.where(inside, cut - mean[..., None], 0)
    squares = sum16(apart * apart).double()
    mean, sizes = mean.double(), sizes.double()

    # from chunks to channels, then from channels to groups; means are relative to the first of each
    apart = mean - mean[..., :1]
    weighted = sizes * apart
    total = sum16(weighted)
    off = total / positions
    by_channel = (mean[..., 0] + off).view(batch, groups, width)
    squares = (sum16(squares + weighted * apart) - off * total).view(batch, groups, width)
    apart = by_channel - by_channel[..., :1]
    weighted = positions * apart
    total = sum16(weighted)
    off = total / (width * positions)
    variance = (sum16(squares + weighted * apart) - off * total) / (width * positions)
    return by_channel[..., 0] + off, 1 / (variance + eps).sqrt()


def sum16(terms: Tensor) -> Tensor:
    """Sums over the last dimension: term i is added to partial sum i mod 16, in order.

    The 16 partial sums are then added by halves.
    """
    rows = -(-terms.shape[-1] // PARTIALS)
    parts = pad(terms, (0, rows * PARTIALS - terms.shape[-1])).view(
        *terms.shape[:-1], rows, PARTIALS
    )
    total = parts[..., 0, :]
    for row in range(1, rows):
        total = total + parts[..., row, :]
    half = PARTIALS // 2
    while half:
        total = total[..., :half] + total[..., half:]
        half //= 2
    return total[..., 0]


def group_norm_silu_backward(
    grad: Tensor,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients by x, weight, bias, scale, shift and add, in the compute type.

    With h the normalised u, n = h·weight + bias, z = n(1 + scale) + shift and G = dL/dz:
    dL/du = rstd(e - mean(e) - h·mean(e·h)) with e = G(1 + scale)weight and means over the group.
    """
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, channels = x.shape[:2]
    spatial = tuple(range(2, x.ndim))

    def wide(values: Tensor | None, absent: float) -> Tensor:
        values = torch.full((channels,), absent, device=x.device) if values is None else values
        return values.to(compute).view(-1, channels, *(1,) * len(spatial))

    def by_group(values: Tensor) -> Tensor:
        """Returns, from a mean over positions [B, C], each channel's mean over its group.

        Its shape is [B, C, 1, …].
        """
        groupwise = values.view(batch, groups, -1).mean(2)
        return groupwise.repeat_interleave(channels // groups, 1).view(
            batch, channels, *(1,) * len(spatial)
        )

    def over(values: Tensor) -> Tensor:
        return values.mean(spatial) if spatial else values

    u = x.to(compute)
    u = u if add is None else u + wide(add, 0)
    centred = u - by_group(over(u))
    rstd = (by_group(over(centred * centred)) + eps).rsqrt()
    h = centred * rstd
    w, gain = wide(weight, 1), 1 + wide(scale, 0)
    g = grad.to(compute)
    if silu:
        z = (h * w + wide(bias, 0)) * gain + wide(shift, 0)
        s = torch.sigmoid(z)
        g = g * (s * (1 + z * (1 - s)))
    positions = x.numel() // (batch * channels) if batch and channels else 0
    total, along = over(g) * positions, over(g * h) * positions  # [B, C]
    flat_gain, flat_w = gain.view(-1, channels), w.view(-1, channels)
    e = g * (gain * w)
    by_u = rstd * (e - by_group(over(e)) - h * by_group(over(e * h)))
    flat_bias = wide(bias, 0).view(-1, channels)
    return (
        by_u,
        (along * flat_gain).sum(0),
        (total * flat_gain).sum(0),
        along * flat_w + total * flat_bias,
        total,
        over(by_u) * positions,
    )
