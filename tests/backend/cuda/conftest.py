"""The CUDA library under test: its emulation or, on a GPU, itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cuda_library import Library
from emulation import emulated_library


@pytest.fixture(scope="session")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Returns the emulation or, under scripts/gpu_first_run.sh, the library on a GPU.

    The kernels of both must pass the same tests.
    """
    if path := os.environ.get("FASTDIFF_TEST_CUDA"):
        return Library(Path(path), "cuda")
    emulated = emulated_library(tmp_path_factory)
    if emulated is None:
        pytest.skip("no C++ compiler for the emulation")
    return Library(emulated)
