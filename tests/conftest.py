"""The fixture `backend`, which runs a test on every backend that this process can have.

Without a GPU these are torch, cpu and cuda, whose kernels are compiled for the host: a library that
runs them in loops on host memory. Triton's interpreter needs processes of its own
(tests/backend/test_triton.py). tests/device.py runs the same tests on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # there are as many processes as cores: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is no folder is not looked up outside

import device  # noqa: E402
import pytest  # noqa: E402
import quick  # noqa: E402
from emulation import emulated_library  # noqa: E402
from quick import (  # noqa: E402, F401  # hooks
    pytest_addoption,
    pytest_runtest_protocol,
    pytest_terminal_summary,
)

import fastdiff  # noqa: E402
from fastdiff.backend import choice, library  # noqa: E402

if device.DEVICE != "cpu":
    device.install()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu_only: skipped when the op tests run on a GPU")
    config.addinivalue_line("markers", "needs_gpu: skipped when tests/backend/gpu has none")
    config.addinivalue_line(
        "markers", "tier(name, gpu_only): the size of a benchmark; some tests import benchmarks"
    )
    config.addinivalue_line(
        "markers", "xdist_group(name): tests that run in the same process under pytest-xdist"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    quick.choose(config, items)
    named = next((item.nodeid for item in items if " at 0x" in item.nodeid), None)
    if named:  # processes that share the tests must agree on their names
        raise pytest.UsageError(f"expected names of tests without addresses, got {named}.")
    if device.DEVICE != "cpu":
        for item in items:
            if item.get_closest_marker("cpu_only"):
                item.add_marker(pytest.mark.skip(reason="tests CPU tensors only"))


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Compiles the CUDA kernels for the host and loads them as the library of backend `cuda`.

    Returns the library's path, None without a compiler.
    """
    path = emulated_library(tmp_path_factory)
    if path is not None:
        before = os.environ.get("FASTDIFF_CUDA_LIB")
        os.environ["FASTDIFF_CUDA_LIB"] = str(path)
        library.load.cache_clear()
        choice._state.cache_clear()
        assert library.emulated(), library.reason("cuda")
        # processes that tests start use the machine's library
        os.environ.pop("FASTDIFF_CUDA_LIB")
        if before:
            os.environ["FASTDIFF_CUDA_LIB"] = before
    return path


@pytest.fixture(params=device.BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Selects each backend in turn for the test, and returns its name."""
    if (
        request.param == "cuda"
        and device.DEVICE == "cpu"
        and request.getfixturevalue("emulated") is None
    ):
        pytest.skip("no C++ compiler for the CUDA kernels' emulation")
    state = fastdiff.backends()[request.param]
    if not state.available:
        pytest.skip(f"backend {request.param} is off: {state.reason}")
    with fastdiff.use(request.param):
        yield request.param
