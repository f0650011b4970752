"""The op tests on a GPU: FASTDIFF_TEST_DEVICE=cuda makes the tensors they create live there.

The tests are written for CPU tensors and NumPy. With another default device, torch's factories do
the rest; here are the
crossings that torch refuses: a device tensor as an array, an array as a device tensor, and draws of
    a CPU generator.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

DEVICE = os.environ.get("FASTDIFF_TEST_DEVICE", "cpu")
BACKENDS = ["triton", "cuda"] if DEVICE != "cpu" else ["torch", "cpu", "cuda"]


def install() -> None:
    """Routes the crossings through DEVICE for the rest of the process."""
    torch.set_default_device(DEVICE)
    to_array, to_tensor = torch.Tensor.numpy, torch.from_numpy

    def numpy(self: torch.Tensor, *, force: bool = False) -> np.ndarray:
        return to_array(self.cpu(), force=force)

    def from_numpy(array: np.ndarray) -> torch.Tensor:
        return to_tensor(array).to(DEVICE)

    def on_host(make: Any) -> Any:
        def draw(
            *arguments: Any, generator: torch.Generator | None = None, **options: Any
        ) -> torch.Tensor:
            if generator is None:
                return make(*arguments, **options)
            return make(*arguments, generator=generator, **options | {"device": "cpu"}).to(DEVICE)

        return draw

    torch.Tensor.numpy = numpy  # type: ignore[method-assign, assignment]
    torch.from_numpy = from_numpy
    torch.randn, torch.randint = on_host(torch.randn), on_host(torch.randint)
