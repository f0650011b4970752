"""The fixture `gpu`, and which tests of this folder are skipped without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from on_gpu import BACKENDS, GPU, TRIED

import fastdiff


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if GPU or item.path.parent != Path(__file__).parent:
            continue
        if not TRIED:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))
        elif item.get_closest_marker("needs_gpu"):
            item.add_marker(pytest.mark.skip(reason="needs streams, graphs or a GPU's memory"))


@pytest.fixture(params=BACKENDS)
def gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """Selects each GPU backend in turn; one that is off fails the test."""
    state = fastdiff.backends()[request.param]
    if not state.available:
        pytest.fail(f"backend {request.param} is off on a machine with a GPU: {state.reason}")
    with fastdiff.use(request.param):
        yield request.param
