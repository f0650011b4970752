"""The shares of a batch have the losses of the whole batch, for every system of the registry."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiff.data import load_toy
from fastdiff.data.fashion_mnist import load_fashion_mnist
from fastdiff.theory.registry import SYSTEMS
from fastdiff.theory.systems.presets import make

SMALL = {"width": 8, "depth": 1}
IMAGES = {"widths": (8,), "emb": 8}
# name, whether on images, options: every system, and every way to draw times by position
CASES: list[tuple[str, bool, dict[str, Any]]] = [
    ("autoregressive", False, {"widths": (8,)}),
    ("classifier", True, IMAGES),
    ("hvae", False, {"widths": (8, 8)}),
    ("markovian", False, {"widths": (8,)}),
    ("score", False, SMALL),
    ("score", False, {**SMALL, "times": "stratified"}),
    ("superres", True, IMAGES),
    ("unet", False, SMALL),
    ("vae", False, {"widths": (8,)}),
    ("vdm", False, {"widths": (8,)}),
    ("vdm", False, {"widths": (8,), "time_sampling": "antithetic"}),
    ("vdm", False, {"widths": (8,), "time_sampling": "uniform"}),
]


def test_every_system_is_here() -> None:
    assert {name for name, _, _ in CASES} == set(SYSTEMS)


@pytest.mark.parametrize("name, images, options", CASES)
def test_shares_have_the_losses_of_the_whole_batch(
    name: str, images: bool, options: dict[str, Any]
) -> None:
    data = load_fashion_mnist() if images else load_toy("moons", n=64)
    torch.manual_seed(0)
    system = make(name, data, **options)
    index = torch.tensor([5, 1, 8, 2, 9, 3, 0])
    x0, labels = data.batch(index)
    with torch.no_grad():
        for parameter in system.parameters():  # networks begin with zeros in their last layer
            parameter.add_(0.02 * torch.randn(parameter.shape))
        whole = system.loss(x0, labels, seed=4, sample_ids=index, step=3)
        shares = torch.cat(
            [
                system.loss(
                    x0[a:b], labels[a:b], seed=4, sample_ids=index[a:b], step=3, part=(a, 7)
                )
                for a, b in ((0, 3), (3, 4), (4, 7))
            ]
        )
    torch.testing.assert_close(shares, whole, rtol=1e-5, atol=1e-6)
