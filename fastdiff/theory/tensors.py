"""Numbers of each sample as tensors that broadcast against a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def per_sample(values: Any, like: Tensor) -> Tensor:
    """Values [B], a tensor or an array, as [B, 1, …] that broadcasts against `like` [B, …].

    The result has the dtype and device of `like`.
    """
    numbers = torch.as_tensor(values).to(like.dtype).to(like.device)
    return numbers.view(-1, *(1,) * (like.ndim - 1))
