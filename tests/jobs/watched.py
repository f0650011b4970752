"""The shipped network as `watched:factory`, for runs with two CPU threads.

It refuses to compute with any other number.
"""

from __future__ import annotations

from typing import Any

import torch

from fastdiff.jobs import Model, open_model

THREADS = 2


def check(*_: Any) -> None:
    if torch.get_num_threads() != THREADS:
        raise RuntimeError(f"{torch.get_num_threads()} threads, not {THREADS}")


def factory() -> Model:
    model = open_model("fashion-mnist")
    model.network.register_forward_pre_hook(check)
    return model
