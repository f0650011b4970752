"""Requests with different step counts: lanes that are refilled at once, compared with padding.

The network is the shipped U-Net, the cost of which grows with the batch. diffusers has one step
count for a batch: all its samples take as many steps as the slowest one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import harness, model_zoo, peers
from benchmarks.tiers import row
from fastdiff import Request, Sampler


@pytest.mark.parametrize(
    "requests, lanes, longest",
    [
        row("quick", 6, 2, 6, id="6-2"),
        row("default", 16, 4, 10, id="16-4"),
        row("full", 256, 16, 50, id="256-16"),
    ],
)
def test_batching(
    measured: Callable[..., Any], setting: harness.Setting, requests: int, lanes: int, longest: int
) -> None:
    network = model_zoo.make("fashion-mnist", setting.device)
    steps = [2 + i * 7919 % (longest - 1) for i in range(requests)]
    sampler = Sampler(
        network.module,
        network.schedule,
        solver="ddim",
        prediction_type=network.prediction_type,
        network_batch=lanes,
    )
    labels = network.condition(requests)["y"]

    def ours() -> dict[int, Tensor]:
        wanted = (
            Request(i, seed=3, steps=steps[i], cond={"y": labels[i]}) for i in range(requests)
        )
        return {r.sample_id: x for r, x in sampler.serve(wanted, network.shape, batch_size=lanes)}

    alone: dict[int, Tensor] = {}

    def check(served: dict[int, Tensor]) -> None:
        assert sorted(served) == list(range(requests)), "every request is served"
        for i in (0, requests - 1):
            if i not in alone:
                alone[i] = sampler.sample(
                    (1, *network.shape),
                    seed=3,
                    sample_ids=[i],
                    steps=steps[i],
                    cond={"y": labels[i : i + 1]},
                )[0]
            if not torch.equal(served[i], alone[i]):
                raise AssertionError(f"request {i} is not what `sample` gives for it alone")

    def padded() -> None:
        for first in range(0, requests, lanes):
            which = slice(first, first + lanes)
            loops[max(steps[which]), len(steps[which])](labels[which])

    loops: dict[tuple[int, int], Callable[[Tensor], Tensor]] = {}
    theirs: Any = peers.diffusers()
    if not isinstance(theirs, peers.Missing):
        theirs = {"padded to the slowest": padded}
        for first in range(0, requests, lanes):
            group = steps[first : first + lanes]
            loops[max(group), len(group)] = _loop(network, max(group), len(group))
    work = harness.Workload(ours, check, "bits of each sample alone")
    measured(
        work,
        kind="batching",
        what="continuous batching",
        peers={"diffusers": theirs},
        per="sample",
        divide=requests,
        case={
            "network": "fashion-mnist",
            "requests": requests,
            "batch": lanes,
            "steps": [min(steps), max(steps)],
        },
    )


def _loop(network: model_zoo.Network, steps: int, batch: int) -> Callable[[Tensor], Tensor]:
    condition: dict[str, Tensor] = {}

    def run(x: Tensor, t: Tensor) -> Tensor:
        return model_zoo.call(network.module, x, t, condition)

    loop = model_zoo.pipeline(network, "ddim", steps, run, batch)
    assert not isinstance(loop, peers.Missing)

    def labelled(y: Tensor) -> Tensor:
        condition["y"] = y
        return loop()

    return labelled
