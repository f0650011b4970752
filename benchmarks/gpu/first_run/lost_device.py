"""A pytest plugin: a process whose GPU is lost ends, and pytest-xdist starts another.

After a CUDA error such as an illegal address every later call in the process fails. Without this
plugin one wrong kernel fails all tests that follow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

LOST = 70  # exit status
_lost = False


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[Any]:
    global _lost
    _lost = _lost or (call.excinfo is not None and "CUDA error" in str(call.excinfo.value))
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    yield  # the test's reports have been sent
    if _lost:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(LOST)
        item.session.shouldstop = "the GPU is lost in this process"
