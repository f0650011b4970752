"""Fixtures: every backend that runs on this machine's CPU in this process (Triton's interpreter has its own)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import fastdiff


@pytest.fixture(params=["torch", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    state = fastdiff.backends()[request.param]
    if not state.available:
        pytest.skip(f"backend {request.param} is off: {state.reason}")
    with fastdiff.use(request.param):
        yield request.param
