"""Threads that share a sampler on a GPU. In a process of their own: a race may end the process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from on_gpu import DEVICE, GPU, SCHEDULE

import fastdiff
from fastdiff import Sampler


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.3 * x + 0.001 * t.to(x.dtype).view(-1, 1, 1, 1)


@pytest.mark.parametrize("own_streams", [False, True], ids=["one stream", "streams"])
def test_two_threads_share_a_sampler(gpu: str, own_streams: bool) -> None:
    """They capture and replay at the same time; each has the samples of its own seed."""
    calls = 12 if GPU else 2
    start = torch.randn(6, 3, 16, 17, device=DEVICE)
    alone = Sampler(network, SCHEDULE, solver="ddpm", steps=24, graph=False)
    expected = [alone.sample(x_T=start, seed=i).cpu() for i in range(2 * calls)]
    shared = Sampler(network, SCHEDULE, solver="ddpm", steps=24)
    if GPU:
        torch.cuda.synchronize()

    def work(thread: int) -> list[torch.Tensor]:
        with fastdiff.use(gpu):  # threads do not inherit the choice
            found = []
            for i in range(thread, 2 * calls, 2):
                found.append(shared.sample(x_T=start, seed=i).cpu())
            return found

    def on_a_stream(thread: int) -> list[torch.Tensor]:
        if not (GPU and own_streams):
            return work(thread)
        with torch.cuda.stream(torch.cuda.Stream()):
            return work(thread)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(on_a_stream, (0, 1)))
    for thread in (0, 1):
        for i, got in zip(range(thread, 2 * calls, 2), found[thread], strict=True):
            assert torch.equal(got, expected[i]), (thread, i)
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
