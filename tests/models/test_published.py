"""Networks of published sizes: their parameters counted, their parts where the papers have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdiff.models import NETWORKS, AttentionUNet, DiT, ImageUNet, network
from fastdiff.models.unet import Attention

# Peebles & Xie 2023, table 1 and table 4: (hidden, depth, heads, millions of parameters)
DITS = {
    "s": (384, 12, 6, 33),
    "b": (768, 12, 12, 130),
    "l": (1024, 24, 16, 458),
    "xl": (1152, 28, 16, 675),
}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def stirred(model: nn.Module) -> Any:
    """Moves every parameter away from zero, so that all of them have an effect."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", sorted(DITS))
def test_parameters_of_the_dits(size: str, patch: int) -> None:
    """On latents of 4 × 32 × 32, with 1000 classes and learned variance, as in the paper."""
    with torch.device("meta"):
        made = network(
            f"DiT-{size.upper()}/{patch}", channels=4, size=32, num_classes=1000, learn_sigma=True
        )
    h, depth, heads, millions = DITS[size]
    assert [b.heads for b in made.blocks] == [heads] * depth
    linear = {
        "patches": 4 * patch**2 * h + h,
        "time": 256 * h + h + h * h + h,
        "labels": 1001 * h,
        "blocks": depth * (18 * h * h + 15 * h),
        "output": 2 * h * h + 2 * h + (h + 1) * 8 * patch**2,
    }
    assert count(made) == sum(linear.values())
    if patch == 2:
        assert round(count(made) / 1e6) == millions


def test_parameters_of_the_cifar_unet() -> None:
    with torch.device("meta"):
        made = network("unet-cifar")
    assert count(made) == 35_746_307  # 35.7 M, Ho et al. 2020, appendix B
    assert {name for name in NETWORKS if name.startswith("dit-")} == {
        f"dit-{size}/{patch}" for size in DITS for patch in (2, 4, 8)
    }


def test_attention_is_at_the_chosen_resolutions() -> None:
    made = AttentionUNet(size=16, widths=[8, 8, 8], attention=[16, 4], blocks=2)
    seen: list[int] = []
    for module in made.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda _m, i, _o: seen.append(i[0].shape[-1]))
    made(torch.randn(1, 3, 16, 16), torch.tensor([3]))
    assert seen == [16] * 2 + [4] * 2 + [4] + [4] * 3 + [16] * 3, "also once at the bottom"


@pytest.mark.parametrize("kind", [AttentionUNet, DiT])
@torch.no_grad()
def test_labels(kind: Any) -> None:
    """No label is the null label; without that a network needs labels."""
    torch.manual_seed(1)
    x, t, y = torch.randn(3, 3, 32, 32), torch.tensor([0, 5, 900]), torch.tensor([0, 1, 2])
    with_null = stirred(kind(num_classes=3))
    assert with_null.null_label == 3
    none = with_null(x, t)
    assert torch.equal(none, with_null(x, t, torch.full_like(y, 3)))
    assert ((none - with_null(x, t, y)).flatten(1).abs().amax(1) > 1e-4).all()
    without = stirred(kind(num_classes=3, null_class=False))
    assert without.null_label is None and count(with_null) > count(without)
    with pytest.raises(ValueError, match="expected labels y for a network with classes"):
        without(x, t)
    classless = stirred(kind())
    assert classless.null_label == 0 and torch.equal(classless(x, t), classless(x, t, y))


@pytest.mark.parametrize("name", ["dit", "attention-unet"])
@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    made = stirred(network(name, size=16)).double()
    x, t = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.tensor([1, 20, 300])
    whole = made(x, t)
    torch.testing.assert_close(made(x[1:2], t[1:2])[0], whole[1], rtol=1e-9, atol=1e-12)
    assert whole.shape == x.shape


@pytest.mark.parametrize("inner", ["DiT", "AttentionUNet"])
def test_any_network_is_conditioned_on_an_image(inner: str) -> None:
    made = stirred(ImageUNet(channels=1, inner=inner, size=16))
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([1, 2])
    a, b = made(x, t, image=x), made(x, t, image=-x)
    assert a.shape == x.shape and not torch.allclose(a, b)
    assert made.config["channels"] == 1 and made.config["inner"] == inner


def test_a_dit_begins_as_zero_and_its_patches_stay_in_place() -> None:
    """The output is 0 at first; with identity blocks a patch depends on itself alone."""
    made = DiT(channels=1, size=8, patch=2, hidden=16, depth=2, heads=2)
    x, t = torch.randn(1, 1, 8, 8, requires_grad=True), torch.tensor([7])
    assert not made(x, t).any()
    nn.init.normal_(made.linear_out.weight)
    out: Tensor = made(x, t)
    (gradient,) = torch.autograd.grad(out[0, 0, 2:4, 4:6].sum(), x)
    reached = gradient[0, 0] != 0
    assert reached[2:4, 4:6].all() and int(reached.sum()) == 4


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: DiT(size=9), "expected a size divisible by patch=4, got 9"),
        (lambda: DiT(hidden=10, heads=2), "hidden as a multiple of 4 and of heads=2"),
        (lambda: DiT(depth=0), "depth, heads >= 1"),
        (lambda: AttentionUNet(attention=[5]), r"some of the resolutions \[32, 16, 8\], got \[5\]"),
        (lambda: AttentionUNet(size=10, widths=[8, 8, 8]), "a size divisible by"),
        (lambda: AttentionUNet(widths=[12], groups=8), "multiples of groups=8"),
        (lambda: AttentionUNet(head_width=3), "head_width=3"),
        (lambda: network("dit-m/2"), "expected a network in .*got 'dit-m/2'"),
        (lambda: network("dit-s/2", rank=3), "expected arguments of dit-s/2"),
        (lambda: ImageUNet(inner="MLP"), "expected inner in"),
        (lambda: DiT()(torch.zeros(1, 3, 8, 8), torch.tensor([0])), "got \\[1, 3, 8, 8\\]"),
    ],
)
def test_what_does_not_fit_is_named(made: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        made()
    assert str(error.value).startswith("fastdiff.models")
