"""An accelerated network as a module: what it shares with the original, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from threading import Thread

import pytest
import torch
from nets import CASES, dit, noise, own, run, times, unet2d
from tolerances import ACCELERATED
from torch import nn

import fastdiff
from fastdiff.models import MLP


def near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = ACCELERATED) -> bool:
    return bool((ours - theirs).abs().max() < tolerance * theirs.abs().max())


def test_memory_is_shared_and_changes_in_place_are_seen() -> None:
    network = unet2d()
    faster = fastdiff.accelerate(network)
    pairs = list(zip(network.parameters(), faster.parameters(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() and a is not b for a, b in pairs)
    run(faster, noise(3), times())  # what is made from weights is made now
    network.load_state_dict({k: v * 0.9 for k, v in network.state_dict().items()})
    assert near(run(faster, noise(3), times()), run(network, noise(3), times()))
    with torch.no_grad():
        network.mid_block.resnets[0].conv1.weight.mul_(-2)
        network.down_blocks[0].resnets[0].time_emb_proj.weight.mul_(3)
        network.mid_block.attentions[0].to_v.weight.mul_(2)
    assert near(run(faster, noise(3), times()), run(network, noise(3), times()))


@pytest.mark.parametrize("make", [unet2d, dit, own], ids=lambda m: m.__name__)
def test_it_looks_like_the_original(make) -> None:
    network = make()
    faster = fastdiff.accelerate(network)
    assert type(faster).__name__ == type(network).__name__ and isinstance(faster, type(network))
    assert faster.config == network.config and not faster.training
    assert faster.load_state_dict(network.state_dict())
    assert [n for n, _ in faster.named_modules()] == [n for n, _ in network.named_modules()]


@pytest.mark.parametrize(
    "name", ["unet2d labels", "text", "dit", "own image", "own attention", "own dit"]
)
def test_copies_and_pickles(name: str) -> None:
    make, channels, arguments = CASES[name]
    faster = fastdiff.accelerate(make())
    expected = run(faster, noise(channels), times(), **arguments())
    buffer = io.BytesIO()
    torch.save(faster, buffer)
    small = len(pickle.dumps(fastdiff.accelerate(make())))
    assert len(buffer.getvalue()) < 1.2 * small, "transformed weights are not saved"
    buffer.seek(0)
    for other in (copy.deepcopy(faster), torch.load(buffer, weights_only=False)):
        assert type(other) is type(faster)
        assert torch.equal(run(other, noise(channels), times(), **arguments()), expected)
        assert all(
            a.data_ptr() != b.data_ptr()
            for a, b in zip(other.parameters(), faster.parameters(), strict=True)
        )


def test_saved_by_diffusers(tmp_path) -> None:
    import diffusers

    network = unet2d()
    fastdiff.accelerate(network).save_pretrained(tmp_path)
    again = diffusers.UNet2DModel.from_pretrained(tmp_path)
    assert torch.equal(run(again, noise(3), times()), run(network, noise(3), times()))


def test_other_dtypes_leave_the_original_alone() -> None:
    network = unet2d()
    half = fastdiff.accelerate(network).to(torch.bfloat16)
    assert network.dtype == torch.float32 and half.dtype == torch.bfloat16
    ours = run(half, noise(3).bfloat16(), times()).float()
    assert near(ours, run(network, noise(3), times()), 0.1)


def test_gradients_are_those_of_the_original() -> None:
    network = unet2d(dropout=0.0).train()
    faster = fastdiff.accelerate(network)
    x = noise(3).requires_grad_()
    gradients = []
    for model in (network, faster):
        loss = model(x, times()).sample.square().mean()
        gradients.append(torch.autograd.grad(loss, [x, *model.parameters()]))
    for name, ours, theirs in zip(
        ["x", *dict(network.named_parameters())], *reversed(gradients), strict=True
    ):
        scale = theirs.abs().max() + 1e-7
        assert (ours - theirs).abs().max() < 2e-4 * scale + 1e-6, name
    assert all(p.grad is None for p in network.parameters())


def test_dropout_is_kept_in_training() -> None:
    faster = fastdiff.accelerate(unet2d(dropout=0.5)).train()
    with torch.no_grad():
        assert not torch.equal(faster(noise(3), times()).sample, faster(noise(3), times()).sample)


def test_hooks_are_called() -> None:
    network, seen = unet2d(), []
    network.down_blocks[0].resnets[0].norm1.register_forward_hook(lambda *_: seen.append("norm"))
    network.conv_in.register_forward_hook(lambda *_: seen.append("conv"))
    network.register_forward_hook(lambda *_: seen.append("network"))
    expected = run(network, noise(3), times())
    assert seen == ["conv", "norm", "network"]
    assert near(run(fastdiff.accelerate(network), noise(3), times()), expected)
    assert seen == ["conv", "norm", "network"] * 2


def test_any_network_of_known_layers() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.SiLU(), nn.Conv2d(24, 40, 1),
        nn.Conv2d(40, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1, groups=4),
        nn.Conv2d(20, 32, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(32, 16, 3, dilation=2, bias=False), nn.GroupNorm(2, 16, affine=False),
    )  # fmt: skip
    network[4].weight = nn.Parameter(network[4].weight.detach(), requires_grad=False)
    x = noise(3)
    with torch.no_grad():
        assert near(fastdiff.accelerate(network)(x), network(x))
        assert near(fastdiff.accelerate(network)(x[:, :, :7, :5]), network(x[:, :, :7, :5]))


@pytest.mark.parametrize("norm", ["default", "scale_shift"])
def test_one_embedding_for_the_whole_batch(norm: str) -> None:
    from diffusers.models.resnet import ResnetBlock2D

    block = ResnetBlock2D(
        in_channels=16, out_channels=32, temb_channels=8, groups=4, time_embedding_norm=norm
    ).eval()
    x, temb = torch.randn(3, 16, 8, 8), torch.randn(1, 8)
    with torch.no_grad():
        assert near(fastdiff.accelerate(block)(x, temb), block(x, temb))


def test_channels_that_do_not_fit_are_torchs_error() -> None:
    faster = fastdiff.accelerate(nn.Conv2d(16, 16, 3, padding=1))
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="to have 16 channels, but got 15 channels"),
    ):
        faster(torch.randn(1, 15, 8, 8))


def test_autocast() -> None:
    network = unet2d()
    expected = run(network, noise(3), times())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (
            run(fastdiff.accelerate(network), noise(3), times()),
            run(network, noise(3), times()),
        )
    assert ours.dtype == theirs.dtype and near(ours.float(), expected, 0.1)


def test_tied_weights_stay_tied() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    network = nn.Sequential(conv, nn.SiLU(), conv)
    faster = fastdiff.accelerate(network)
    assert faster[0] is faster[2] and len(list(faster.parameters())) == 2
    other = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1))
    other[1].weight = other[0].weight
    again = fastdiff.accelerate(other)
    assert again[1].weight is again[0].weight


def test_twice_is_once() -> None:
    faster = fastdiff.accelerate(unet2d())
    assert fastdiff.accelerate(faster) is faster


def test_compiled() -> None:
    from diffusers.models.resnet import ResnetBlock2D

    block = ResnetBlock2D(in_channels=16, out_channels=32, temb_channels=8, groups=4).eval()
    compiled = torch.compile(fastdiff.accelerate(block), backend="aot_eager", fullgraph=True)
    x, temb = torch.randn(2, 16, 8, 8), torch.randn(2, 8)
    with torch.no_grad():
        assert near(compiled(x, temb), block(x, temb))


def test_threads_share_it() -> None:
    network = unet2d()
    faster = fastdiff.accelerate(network)
    expected, results = run(network, noise(3), times()), []
    threads = [
        Thread(target=lambda: results.append(run(faster, noise(3), times()))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(near(r, expected) for r in results)


def replaced() -> nn.Module:
    network = unet2d()
    network.mid_block.forward = lambda *_: None
    return network


REFUSED = {
    "a function": (
        lambda: len,
        {},
        TypeError,
        "expected a torch.nn.Module, got builtin_function_or_method",
    ),
    "nothing to do": (
        lambda: MLP(2),
        {},
        TypeError,
        "expected a network with convolutions, group norms or attention",
    ),
    "compiled": (
        lambda: torch.compile(unet2d()),
        {},
        TypeError,
        "expected a network that is not compiled",
    ),
    "replaced": (
        replaced,
        {},
        ValueError,
        "expected modules with their own forward, got a replaced one at 'mid_block'",
    ),
    "negative": (
        unet2d,
        {"extra_bytes": -1},
        ValueError,
        "expected extra_bytes of at least 0, got -1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    make, arguments, error, text = REFUSED[case]
    with pytest.raises(error) as caught:
        fastdiff.accelerate(make(), **arguments)
    message = str(caught.value)
    assert (
        message.startswith("fastdiff.accelerate: expected ")
        and text in message
        and "\n" not in message
    )


@pytest.mark.parametrize(
    ("make", "labels", "text"),
    [
        (
            lambda: unet2d(num_class_embeds=10),
            None,
            "expected class_labels for a network with classes, got none",
        ),
        (
            unet2d,
            torch.tensor([1, 2, 3]),
            "expected no class_labels for a network without classes, got some",
        ),
    ],
)
def test_labels_that_do_not_fit(make, labels, text: str) -> None:
    with pytest.raises(ValueError, match=f"^fastdiff.accelerate: {text}"):
        run(fastdiff.accelerate(make()), noise(3), times(), class_labels=labels)
