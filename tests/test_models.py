"""The U-Net: its config rebuilds it, its condition reaches the output, and a sample does not see its neighbours."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fastdiff.models import UNet
from fastdiff.models.unet import sinusoids

SMALL = {"channels": 3, "size": 8, "num_classes": 4, "widths": [8, 16], "emb": 16}


def awake(seed: int = 0) -> UNet:
    """A small network whose zero-initialised layers are not zero, so that every path shows in the output."""
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
    network, (x, t, y) = awake(), inputs()
    twin = UNet(**json.loads(json.dumps(network.config)))
    twin.load_state_dict(network.state_dict())
    assert twin.config == network.config
    with torch.no_grad():
        assert torch.equal(twin.eval()(x, t, y), network(x, t, y))


@torch.no_grad()
def test_time_and_label_reach_the_output_through_condition() -> None:
    network, (x, t, y) = awake(), inputs()
    out = network(x, t, y)
    assert torch.equal(network.decode(x, network.condition(t, y)), out)
    for other in (network(x, t + 100, y), network(x, t, (y + 1) % 4), network(x, t)):
        assert ((other - out).abs().amax((1, 2, 3)) > 1e-4).all()
    assert torch.equal(network(x, t), network(x, t, torch.full_like(y, network.null_label)))


def test_samples_of_a_batch_are_independent() -> None:
    network, (x, t, y) = awake(), inputs()
    x.requires_grad_()
    network(x, t, y)[2].square().sum().backward()
    assert x.grad is not None
    assert x.grad[2].any() and not x.grad[[0, 1, 3, 4]].any()


def test_every_parameter_is_trained() -> None:
    network, (x, t, y) = awake(), inputs()
    network(x, t, y).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


@torch.no_grad()
def test_the_input_may_have_any_strides() -> None:
    network, (x, t, y) = awake(), inputs()
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
        ({"size": 9}, "expected a size divisible by 2 for 2 levels, got 9; pad the images or use fewer widths."),
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
        awake()(x[:, :, :4], t, y)
