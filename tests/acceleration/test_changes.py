"""What is put on the layers of an accelerated network acts as on the original's.

Hooks, a forward of its own, an adapter around the layer, and a parametrization, on one layer of
each kind at a time, after the accelerated network has been called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from nets import CASES, noise, run, times
from tolerances import ACCELERATED
from torch import nn
from torch.nn.utils import parametrize

import fastdiff


class Adapter(nn.Module):
    """A layer with something added to its output, as LoRA adapters are: the weight is visible."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base_layer = base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def forward(self, *arguments: Any, **options: Any) -> torch.Tensor:
        return _louder(self.base_layer(*arguments, **options))


class Scaled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 1.3 * weight


def _louder(out: torch.Tensor) -> torch.Tensor:
    return 1.2 * out + 0.05 if out.is_floating_point() else out  # labels stay labels


def _hook(parent: nn.Module, name: str) -> None:
    parent._modules[name].register_forward_hook(lambda m, a, out: _louder(out))  # type: ignore[union-attr]


def _pre_hook(parent: nn.Module, name: str) -> None:
    parent._modules[name].register_forward_pre_hook(lambda m, a: (_louder(a[0]), *a[1:]))  # type: ignore[union-attr]


def _forward(parent: nn.Module, name: str) -> None:
    module: Any = parent._modules[name]
    before = module.forward
    module.forward = lambda *arguments, **options: _louder(before(*arguments, **options))


def _adapter(parent: nn.Module, name: str) -> None:
    parent._modules[name] = Adapter(parent._modules[name])  # type: ignore[arg-type]


def _parametrization(parent: nn.Module, name: str) -> None:
    module: Any = parent._modules[name]
    if getattr(module, "weight", None) is not None:
        parametrize.register_parametrization(module, "weight", Scaled())


CHANGES: dict[str, Callable[[nn.Module, str], None]] = {
    "hook": _hook,
    "pre-hook": _pre_hook,
    "forward": _forward,
    "adapter": _adapter,
    "parametrization": _parametrization,
}


def _layers(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields (path of the parent, name) of one layer of each kind: parent, name and class."""
    seen = set()
    for path, parent in network.named_modules():
        for name, child in parent._modules.items():
            if child is None or len(child._modules) or isinstance(child, nn.Dropout):
                continue
            key = (type(parent).__name__, name, type(child).__name__)
            if key not in seen:
                seen.add(key)
                yield path, name


FEW = ("adapter", "parametrization")


@pytest.mark.parametrize(
    ("case", "change"),
    [
        *((case, change) for case in ("unet2d", "dit", "own") for change in CHANGES),
        *((case, change) for case in ("unet2d scale shift", "text") for change in FEW),
    ],
)
def test_a_changed_layer_acts_as_on_the_original(case: str, change: str) -> None:
    make, channels, arguments = CASES[case]
    x, t, more = noise(channels), times(), arguments()
    original, changed = make(), 0
    before = run(original, x, t, **more)
    for path, name in _layers(original):
        plain, fast = make(), fastdiff.accelerate(make())
        run(fast, x, t, **more)  # what is made from weights is made now
        for network in (plain, fast):
            CHANGES[change](network.get_submodule(path), name)
        want, got = run(plain, x, t, **more), run(fast, x, t, **more)
        size = float(want.abs().max())
        assert float((got - want).abs().max()) < ACCELERATED * size, f"{path}.{name}"
        changed += float((want - before).abs().max()) > 100 * ACCELERATED * size
    assert changed > 8, "most changes show in the output"


@pytest.mark.parametrize("case", ["unet2d", "own"])
def test_a_sampler_sees_a_changed_projection(case: str) -> None:
    """Samplers compute the conditioning of all blocks ahead, by `condition` and `decode`."""
    make, channels, _ = CASES[case]
    path, name = {
        "unet2d": ("mid_block.resnets.0", "time_emb_proj"),
        "own": ("mid.0", "emb"),
    }[case]
    plain, fast = make(), fastdiff.accelerate(make())
    samples = []
    for network in (plain, fast):
        sampler = fastdiff.Sampler(network, fastdiff.Schedule.linear(1000), steps=3)
        first = sampler.sample((2, channels, 16, 16), seed=1)
        _adapter(network.get_submodule(path), name)
        samples.append(sampler.sample((2, channels, 16, 16), seed=1))
        assert not torch.allclose(first, samples[-1], rtol=1e-2)
    assert float((samples[0] - samples[1]).abs().max() / samples[0].abs().max()) < 10 * ACCELERATED


def _optimizer(network: nn.Module) -> None:
    parameters = list(network.parameters())
    for p in parameters:
        p.grad = torch.ones_like(p)
    torch.optim.SGD(parameters, lr=0.02).step()
    for p in parameters:
        p.grad = None


def _each(change: Callable[[nn.Parameter], Any]) -> Callable[[nn.Module], None]:
    def write(network: nn.Module) -> None:
        with torch.no_grad():
            for p in network.parameters():
                change(p)

    return write


def _one_element(network: nn.Module) -> None:
    for p in network.parameters():
        p.data[(0,) * p.ndim] += 0.5


def _swap(network: nn.Module) -> None:
    """Output channels change places: the same numbers in another order."""
    for p in network.parameters():
        p.data.copy_(p.data.flip(0))


def _other_signs(network: nn.Module) -> None:
    """Of every second element in memory, from the second on."""
    for p in network.parameters():
        p.data.as_strided((p.numel(),), (1,))[1::2].mul_(-1)


def _rolled(network: nn.Module) -> None:
    """Input channels change places, an even number of them at a time."""
    for p in network.parameters():
        p.data.copy_(p.data.roll(2 if p.ndim > 1 else 1, min(1, p.ndim - 1)))


def _transposed(network: nn.Module) -> None:
    """Square weights are read the other way; their memory stays as it is."""
    for p in network.parameters():
        if p.ndim > 1 and p.shape[0] == p.shape[1]:
            p.data = p.data.transpose(0, 1)


WRITES: dict[str, Callable[[nn.Module], None]] = {
    "in place": _each(lambda p: p.mul_(1.1)),
    "data in place": _each(lambda p: p.data.mul_(1.1)),
    "data": _each(lambda p: setattr(p, "data", p.data * 1.1)),
    "one element of data": _one_element,
    "channels of data": _swap,
    "signs of data": _other_signs,
    "places in rows of data": _rolled,
    "strides of data": _transposed,
    "average": _each(lambda p: p.data.copy_(0.9 * p.data + 0.01)),
    "quantised": _each(lambda p: p.data.copy_(p.data.to(torch.float16).float() * 1.01)),
    "numpy": _each(lambda p: p.detach().numpy().__imul__(1.1)),
    "state dict": lambda n: n.load_state_dict({k: 1.1 * v for k, v in n.state_dict().items()}),
    "state dict assigned": lambda n: n.load_state_dict(
        {k: 1.1 * v for k, v in n.state_dict().items()}, assign=True
    ),
    "optimizer": _optimizer,
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("case", ["unet2d", "own"])
def test_outputs_follow_the_weights_however_they_are_written(case: str, write: str) -> None:
    """Convolutions of 64 channels use a transformed weight, attention and times a stacked one."""
    make, channels, arguments = CASES[case]
    x, t, more = noise(channels), times(), arguments()
    plain, original = make(), make()
    fast = fastdiff.accelerate(original)
    before = run(fast, x, t, **more)
    WRITES[write](plain)
    WRITES[write](fast)
    want, got = run(plain, x, t, **more), run(fast, x, t, **more)
    size = float(want.abs().max())
    assert float((got - want).abs().max()) < ACCELERATED * size
    assert float((want - before).abs().max()) > 10 * ACCELERATED * size
