"""One thread unless FASTDIFF_BENCH_THREADS says otherwise: ratios on shared machines are steadier so."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("FASTDIFF_BENCH_THREADS", "1")))
    yield
    torch.set_num_threads(before)
