"""Sums over a sample on torch (kernels/README.md section 7).

A chunk of 1,024 elements has 64 partial sums; chunks are added in float64.

torch's own sum adds in an order that may change with the batch; this one depends on the sample's
size alone, and is the order of the C++ kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 1024  # elements of a chunk
PARTIALS = 64


def chunks(per_sample: int) -> int:
    """Returns how many chunks a sample has."""
    return -(-per_sample // CHUNK)


def sum_samples(terms: Tensor) -> Tensor:
    """Returns the sums, float64 [B], of terms [B, …]."""
    batch = len(terms)
    flat = terms.reshape(batch, -1) if terms.numel() else terms.new_zeros(batch, 0)
    n = flat.shape[1]
    if n == 0:
        return torch.zeros(batch, dtype=torch.float64, device=terms.device)
    parts = []
    for i in range(chunks(n)):
        part = flat[:, i * CHUNK : (i + 1) * CHUNK]
        total = part[:, :PARTIALS].clone()
        for first in range(PARTIALS, part.shape[1], PARTIALS):
            row = part[:, first : first + PARTIALS]
            total = (
                total + pad(row, (0, PARTIALS - row.shape[1]))
                if row.shape[1] < PARTIALS
                else total + row
            )
        half = PARTIALS // 2
        while half:
            if half < total.shape[1]:
                high = total[:, half:]
                total = torch.cat(
                    [total[:, : high.shape[1]] + high, total[:, high.shape[1] : half]], dim=1
                )
            half //= 2
        parts.append(total[:, 0])
    result = parts[0].to(torch.float64)
    for part in parts[1:]:
        result = result + part
    return result


def halved(values: Tensor) -> Tensor:
    """Returns the sums [B, 1] of values [B, n], added by halves.

    torch's own sum of a sample has another order, and other last bits, in other batches.
    """
    n, size = values.shape[1], 1
    while size < n:
        size *= 2
    values = pad(values, (0, size - n))
    while size > 1:
        size //= 2
        values = values[:, :size] + values[:, size:]
    return values
