"""Accelerated networks give what the originals give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import CASES, noise, run, times, unet2d
from tolerances import ACCELERATED

import fastdiff
from fastdiff import Sampler, Schedule
from fastdiff.acceleration import winograd


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("name", CASES)
def test_the_same_results(name: str) -> None:
    make, channels, arguments = CASES[name]
    network = make()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    x, t = noise(channels), times()
    expected = run(network, x, t, **arguments())
    faster = fastdiff.accelerate(network)
    assert distance(run(faster, x, t, **arguments()), expected) < ACCELERATED
    # the original computes and holds what it did
    assert torch.equal(run(network, x, t, **arguments()), expected)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert list(faster.state_dict()) == list(before)
    assert not any(
        "acceleration" in type(m).__module__ or hasattr(m, "_winograd") for m in network.modules()
    )


@pytest.mark.parametrize(
    "name", ["unet2d like cifar's", "unet2d labels", "unet2d label times", "dit", "own"]
)
def test_forward_is_decode_of_condition(name: str) -> None:
    make, channels, arguments = CASES[name]
    faster = fastdiff.accelerate(make())
    x, t = noise(channels), times()
    with torch.no_grad():
        ours = faster.decode(x, faster.condition(t, **arguments()))
    assert torch.equal(ours, run(faster, x, t, **arguments()))


@pytest.mark.parametrize("name", ["unet2d", "unet2d resnets between", "own", "dit"])
def test_float64(name: str) -> None:
    """Far inside of float32's tolerance: the formulas are the same, not only close."""
    make, channels, arguments = CASES[name]
    network = make().double()
    if name == "unet2d resnets between":
        network.eval()
    x, t = noise(channels).double(), times()
    assert (
        distance(
            run(fastdiff.accelerate(network), x, t, **arguments()),
            run(network, x, t, **arguments()),
        )
        < 1e-12
    )


def test_winograd_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    if not winograd.available():
        pytest.skip("no native library with vectors")
    calls: list[torch.Size] = []
    launch = winograd._launch
    monkeypatch.setattr(winograd, "_launch", lambda *a: calls.append(a[0].shape) or launch(*a))
    network = unet2d()
    run(fastdiff.accelerate(network), noise(3), times())
    inner = [
        m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    strided = [m for m in inner if m.stride != (1, 1)]
    assert len(calls) == len(inner) - len(strided) - 2, "all but the first and the last convolution"
    calls.clear()
    run(fastdiff.accelerate(network, extra_bytes=0), noise(3), times())
    assert not calls


@pytest.mark.parametrize("name", ["unet2d labels", "dit", "own"])
def test_the_sampler_computes_conditions_before_its_loop(name: str) -> None:
    make, channels, arguments = CASES[name]
    network = make()
    seen: list[int] = []
    faster = fastdiff.accelerate(network)
    inner = type(faster).condition
    type(faster).condition = lambda self, t, **cond: seen.append(len(t)) or inner(self, t, **cond)  # type: ignore[method-assign]
    try:
        settings: dict[str, Any] = {"solver": "ddim", "steps": 4, "clip_range": 1.0}
        shape = (3, channels, 16, 16)
        ours = Sampler(faster, Schedule.linear(1000), **settings).sample(
            shape, seed=1, cond=arguments()
        )
        # the last steps amplify differences of the network's output
        theirs = Sampler(network, Schedule.linear(1000), **settings).sample(
            shape, seed=1, cond=arguments()
        )
    finally:
        type(faster).condition = inner  # type: ignore[method-assign]
    assert seen and distance(ours, theirs) < 10 * ACCELERATED


def test_samples_do_not_depend_on_their_batch_where_calls_are_filled_up() -> None:
    sampler = Sampler(
        fastdiff.accelerate(unet2d()),
        Schedule.linear(1000),
        solver="ddim",
        steps=3,
        network_batch=4,
    )
    many = sampler.sample((6, 3, 16, 16), seed=2)
    alone = sampler.sample((1, 3, 16, 16), seed=2, sample_ids=[4])
    assert torch.equal(alone[0], many[4])


def test_a_pipeline_draws_the_same_image() -> None:
    import diffusers

    network = unet2d()
    pipe = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(num_train_timesteps=20))
    pipe.set_progress_bar_config(disable=True)
    draw = lambda: pipe(  # noqa: E731
        batch_size=2,
        generator=torch.Generator().manual_seed(1),
        num_inference_steps=5,
        output_type="np",
    )
    expected = draw().images
    pipe.unet = fastdiff.accelerate(network)
    assert abs(draw().images - expected).max() < 10 * ACCELERATED
