"""Convolutions of a training step by Winograd's algorithm: values and gradients against float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tolerances import WINOGRAD
from torch import Tensor, nn

from fastdiff.acceleration import winograd
from fastdiff.acceleration.training import faster_steps, pack, unpack
from fastdiff.backend import library as native
from fastdiff.models import UNet

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.skipif(not winograd.available(), reason="no native library with vectors"),
]
# batch, channels, outputs, height, width: whole and cut squares, whole and cut panels
SHAPES = [(2, 16, 16, 8, 8), (3, 24, 20, 12, 15), (1, 40, 33, 28, 28), (70, 32, 48, 16, 16)]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(conv: nn.Conv2d, x: Tensor, by: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = conv(x)
    found = torch.autograd.grad(y, [x, conv.weight, conv.bias], by)  # type: ignore[list-item]
    return [y.detach(), *found]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().std())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_values_and_gradients(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    batch, channels, outputs, height, width = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, outputs, 3, padding=1).to(memory_format=layout)
    exact = copy.deepcopy(conv).double()
    x = drawn(batch, channels, height, width, seed=1).contiguous(memory_format=layout)
    by = drawn(batch, outputs, height, width, seed=2)
    expected = gradients(exact, x.double(), by.double())
    faster_steps(conv)
    calls: list[int] = []
    kept = winograd.weight_gradient
    winograd.weight_gradient = lambda *a: calls.append(1) or kept(*a)  # type: ignore[assignment, func-returns-value]
    try:
        found = gradients(conv, x, by)
    finally:
        winograd.weight_gradient = kept
    assert calls, "another algorithm was tested"
    for name, ours, theirs in zip(("y", "x", "weight", "bias"), found, expected, strict=True):
        assert relative(ours, theirs) < WINOGRAD, name
    assert found[2].stride() == conv.weight.stride()


@pytest.mark.parametrize("level", range(len(native.levels()) if winograd.available() else 0))
def test_weight_gradients_of_every_level_and_thread_count(level: int) -> None:
    x, g = drawn(9, 17, 10, 13, seed=1), drawn(9, 35, 10, 13, seed=2)
    weight = torch.zeros(35, 17, 3, 3)
    expected = torch.nn.grad.conv2d_weight(x.double(), weight.shape, g.double(), padding=1)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(winograd.weight_gradient(x, g, level))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    assert relative(unpack(found[0], weight), expected) < WINOGRAD


@pytest.mark.parametrize("shape", [(32, 16), (20, 37)], ids=str)
def test_packed_weights_are_winograd_s(shape: tuple[int, int]) -> None:
    weight = drawn(*shape, 3, 3, seed=3)
    turned = weight.flip(2, 3).transpose(0, 1)
    torch.testing.assert_close(pack(weight), winograd.pack(weight), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(
        pack(weight, transposed=True), winograd.pack(turned), rtol=1e-5, atol=2e-6
    )


def test_a_network_has_the_same_weights_and_nearly_the_same_gradients() -> None:
    torch.manual_seed(0)
    net = UNet(widths=(16, 32), emb=16, mid_blocks=1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    fast = copy.deepcopy(net)
    switch = faster_steps(fast)
    x, t, y = drawn(4, 1, 28, 28, seed=4), torch.tensor([3, 500, 20, 900]), torch.arange(4)

    def step(network: nn.Module) -> list[Tensor]:
        return list(torch.autograd.grad(network(x, t, y).square().mean(), network.parameters()))

    plain, ours = step(net), step(fast)
    assert fast.state_dict().keys() == net.state_dict().keys()
    for a, b in zip(ours, plain, strict=True):
        assert float((a - b).norm()) < 1e-4 * float(b.norm()) + 1e-9
    assert not all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    # copies and pickles compute the same; with the switch off all is torch's
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert all(torch.equal(a, b) for a, b in zip(step(other), ours, strict=True))
    switch.on = False
    assert all(torch.equal(a, b) for a, b in zip(step(fast), plain, strict=True))


def test_what_is_not_plain_stays_as_it_is() -> None:
    class Own(nn.Conv2d):
        pass

    kinds = [
        Own(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(3, 16, 3, padding=1),
    ]
    for conv in kinds:
        faster_steps(conv)
        assert "forward" not in conv.__dict__, conv


def test_other_types_and_autocast_are_torch_s() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    x = drawn(2, 16, 8, 8, seed=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = conv(x)
    faster_steps(conv)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv(x), expected) and expected.dtype == torch.bfloat16
    assert conv.double()(x.double()).dtype == torch.float64


def test_second_derivatives_are_torch_s() -> None:
    """That of a penalty on the gradient, by the weight and by the input."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1)
    fast = copy.deepcopy(conv)
    faster_steps(fast)
    found = []
    for module in (conv, fast):
        x = drawn(1, 16, 8, 8, seed=6).requires_grad_()
        (first,) = torch.autograd.grad(module(x).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, module.weight]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
