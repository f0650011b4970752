"""Runs the op tests on a GPU: with FASTDIFF_TEST_DEVICE=cuda they create their tensors there.

The tests are written for CPU tensors and NumPy. torch's factories follow the default device. This
file adds the conversions that torch refuses: from a device tensor to an array, from an array to a
device tensor, and draws of a CPU generator.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

DEVICE = os.environ.get("FASTDIFF_TEST_DEVICE", "cpu")
_NAMED = os.environ.get("FASTDIFF_TEST_BACKENDS")
"""Backends to test instead of all, separated by commas."""
BACKENDS = (
    _NAMED.split(",")
    if _NAMED
    else ["triton", "cuda"]
    if DEVICE != "cpu"
    else ["torch", "cpu", "cuda"]
)


def install() -> None:
    """Replaces torch's conversions and draws by ones that use DEVICE, until the process ends.

    Without a GPU nothing is replaced: then the tests can be collected and counted, and are skipped.
    """
    if not torch.cuda.is_available():
        return
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
