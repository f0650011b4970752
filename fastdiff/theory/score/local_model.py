"""The model without its data-parallel wrapper, for solvers whose step counts differ by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def local_model(model: Callable[..., Any], where: str) -> Callable[..., Any]:
    """Returns the model inside DistributedDataParallel, and any other model as it is.

    Samples take different numbers of steps, so the ranks make different numbers of calls, and a
    collective operation inside a call would wait forever. `where` is the name that error messages
    begin with.

    Raises ValueError for a model with weights that are sharded over ranks.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return model.module
    if type(model).__name__ in ("FullyShardedDataParallel", "FSDPModule") or any(
        base.__name__ == "FSDPModule" for base in type(model).__mro__
    ):
        raise ValueError(
            f"{where}: expected a model with all its weights on this rank, got a sharded one."
            " Samples take different numbers of steps, and each call would wait for the other"
            " ranks. Gather the weights first."
        )
    return model
