"""The networks: configs, conditions that reach the output, independence of a batch's samples."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from fastdiff.models import (
    LEVELS,
    MLP,
    MODELS,
    Classifier,
    ImageUNet,
    UNet,
    build,
    describe,
    features,
)
from fastdiff.models.unet import sinusoids

SMALL = {"channels": 3, "size": 8, "num_classes": 4, "widths": [8, 16], "emb": 16}


def nonzero(seed: int = 0) -> UNet:
    """Returns a small network without zero-initialised layers: every path affects the output."""
    torch.manual_seed(seed)
    network = UNet(**SMALL).eval()  # type: ignore[arg-type]
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def inputs(batch: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 3, 8, 8), torch.arange(batch) * 200, torch.arange(batch) % 4


def test_a_fresh_network_predicts_zero() -> None:
    x, t, y = inputs()
    out = UNet(**SMALL)(x, t, y)  # type: ignore[arg-type]
    assert out.shape == x.shape and not out.any()


def test_the_config_is_json_and_rebuilds_the_network() -> None:
    network, (x, t, y) = nonzero(), inputs()
    twin = UNet(**json.loads(json.dumps(network.config)))
    twin.load_state_dict(network.state_dict())
    assert twin.config == network.config
    with torch.no_grad():
        assert torch.equal(twin.eval()(x, t, y), network(x, t, y))


@torch.no_grad()
def test_time_and_label_reach_the_output_through_condition() -> None:
    network, (x, t, y) = nonzero(), inputs()
    out = network(x, t, y)
    assert torch.equal(network.decode(x, network.condition(t, y)), out)
    for other in (network(x, t + 100, y), network(x, t, (y + 1) % 4), network(x, t)):
        assert ((other - out).abs().amax((1, 2, 3)) > 1e-4).all()
    assert torch.equal(network(x, t), network(x, t, torch.full_like(y, network.null_label)))


def test_samples_of_a_batch_are_independent() -> None:
    network, (x, t, y) = nonzero(), inputs()
    x.requires_grad_()
    network(x, t, y)[2].square().sum().backward()
    assert x.grad is not None
    assert x.grad[2].any() and not x.grad[[0, 1, 3, 4]].any()


def test_every_parameter_is_trained() -> None:
    network, (x, t, y) = nonzero(), inputs()
    network(x, t, y).square().sum().backward()
    assert not [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
    ]


@torch.no_grad()
def test_the_input_may_have_any_strides() -> None:
    network, (x, t, y) = nonzero(), inputs()
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    assert torch.equal(network(strided, t, y), network(x, t, y))


def test_sinusoids() -> None:
    code = sinusoids(torch.tensor([0, 3]), 4, max_period=100.0)
    wanted = [[1.0, 1.0, 0.0, 0.0], [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]]
    torch.testing.assert_close(code, torch.tensor(wanted))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"size": 9},
            (
                "expected a size divisible by 2 for 2 levels, got 9; pad the images or use fewer"
                " widths."
            ),
        ),
        ({"widths": [8, 12]}, "multiples of groups=8, the last one of heads=4 too, got [8, 12]."),
        ({"widths": []}, "got []."),
    ],
)
def test_bad_configurations_are_named(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        UNet(**{**SMALL, **change})  # type: ignore[arg-type]
    assert str(error.value).startswith("fastdiff.models.UNet: ") and sentence in str(error.value)


def test_images_of_another_size_are_refused() -> None:
    x, t, y = inputs()
    with pytest.raises(ValueError, match=r"expected x of shape \[B, 3, 8, 8\], got \[5, 3, 4, 8\]"):
        nonzero()(x[:, :, :4], t, y)


OTHERS = {
    "AttentionUNet": {
        "channels": 3,
        "size": 8,
        "num_classes": 4,
        "widths": [8, 16],
        "attention": [4],
        "time_scale": 0.5,
        "learn_sigma": True,
    },
    "Classifier": {"channels": 3, "size": 8, "num_classes": 4, "widths": [8, 16], "emb": 16},
    "DiT": {
        "channels": 3,
        "size": 8,
        "num_classes": 4,
        "hidden": 16,
        "depth": 2,
        "heads": 2,
        "time_scale": 0.5,
        "learn_sigma": True,
    },
    "ImageUNet": SMALL | {"time_scale": 1000.0},
    "MLP": {"dim": 3, "num_classes": 4, "width": 16, "depth": 2, "emb": 8},
    "UNet": SMALL | {"out_channels": 6, "time_scale": 0.5},
}


def stirred(name: str) -> torch.nn.Module:
    """Returns the network with every parameter away from zero."""
    torch.manual_seed(0)
    network = build({"class": name, "config": OTHERS[name]}).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def call(
    network: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    if isinstance(network, Classifier):
        return network(x, t)
    if isinstance(network, MLP):
        return network(x[:, :, 0, 0], t, y)
    return network(x, t, y, image=x.flip(0)) if isinstance(network, ImageUNet) else network(x, t, y)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_description_rebuilds_the_network(name: str) -> None:
    network, (x, t, y) = stirred(name), inputs()
    twin = build(json.loads(json.dumps(describe(network))))
    twin.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(call(twin.eval(), x, t, y), call(network, x, t, y))
        other = call(network, x, t + 100, y)
    assert ((other - call(network, x, t, y)).abs().flatten(1).amax(1) > 1e-5).all(), (
        "the time reaches every output"
    )
    call(network, x, t, y).square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]


@torch.no_grad()
def test_time_scale_and_out_channels() -> None:
    x, t, y = inputs()
    whole, part = stirred("UNet"), UNet(**SMALL | {"out_channels": 6})  # type: ignore[arg-type]
    part.load_state_dict(whole.state_dict())
    assert torch.equal(whole(x, 2 * t, y), part(x, t, y)) and part(x, t, y).shape == (5, 6, 8, 8)
    assert "out_channels" not in UNet(**SMALL).config, "old folders stay readable"  # type: ignore[arg-type]


@torch.no_grad()
def test_the_image_reaches_its_own_sample() -> None:
    network, (x, t, y) = stirred("ImageUNet"), inputs()
    image = torch.zeros_like(x)
    image[2] = 1.0
    changed = (
        (network(x, t, y, image=image) - network(x, t, y, image=torch.zeros_like(x)))
        .abs()
        .amax((1, 2, 3))
    )
    assert changed[2] > 1e-3 and not changed[[0, 1, 3, 4]].any()
    with pytest.raises(
        ValueError,
        match=r"expected an image of x's shape \[5, 3, 8, 8\], got \[5, 3, 4, 4\]. Enlarge",
    ):
        network(x, t, y, image=image[:, :, ::2, ::2])


@pytest.mark.parametrize(
    "name, config, message",
    [
        (
            "MLP",
            {"width": 0},
            "expected dim, out, width, depth >= 1 and an even emb, got 2, None, 0",
        ),
        (
            "Classifier",
            {"widths": [12]},
            "expected num_classes >= 1, an even emb and widths that are multiples of groups=8",
        ),
        ("MLP", {"hidden": 3}, "expected arguments of MLP in its config"),
        ("Perceptron", {}, "expected a model class in"),
    ],
)
def test_bad_descriptions(name: str, config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build({"class": name, "config": config})


def test_features_of_levels() -> None:
    """n = 8: the sine is 0 on every level, and near it proportional to the distance from it.

    n = 7: the sine alternates between levels.
    """
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(1, 1, 16, 16)
    seven, eight = (features(levels, (n,)) for n in (7, 8))
    torch.testing.assert_close(eight[:, 1], torch.zeros(1, 16, 16).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        eight[:, 2], torch.full((1, 16, 16), -1.0).double(), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(
        seven[0, 1].flatten(), 1 - 2.0 * (torch.arange(256) % 2).double(), rtol=0, atol=1e-9
    )
    offset = 1e-6 * torch.randn(1, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(
        features(levels + offset, LEVELS)[:, -2:-1], -255 * math.pi * offset, rtol=1e-5, atol=1e-9
    )
    assert features(levels, ()) is levels


def test_waves_of_points() -> None:
    """An MLP with waves equals one without, applied to the points with their sines and cosines."""
    torch.manual_seed(0)
    waved, x, t = MLP(2, width=16, emb=8, waves=(-1, 0, 1)), torch.randn(5, 2), torch.arange(5)
    torch.nn.init.normal_(waved.linear_out.weight)
    again = build(describe(waved))
    again.load_state_dict(waved.state_dict())
    plain = MLP(14, 2, width=16, emb=8)
    plain.load_state_dict(waved.state_dict())
    angle = torch.pi * (255 / 256) * x
    waves = [wave(2.0**n * angle) for n in (-1, 0, 1) for wave in (torch.sin, torch.cos)]
    expected = plain(torch.cat([x, *waves], dim=1), t)
    torch.testing.assert_close(waved(x, t), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(again(x, t), waved(x, t))


@pytest.mark.parametrize("kind", [UNet, Classifier])
def test_an_embedding_of_sines_and_cosines_is_even(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"fastdiff.models.{kind.__name__}: expected .*even emb"):
        kind(emb=7)
