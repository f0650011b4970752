"""The sampler: batch invariance, guidance, streams, seeds and state.

This file is over 400 lines because it tests the public methods of one class together.
"""

from __future__ import annotations

import math
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import Request, Sampler, Schedule, reference
from fastdiff.models import UNet

SCHEDULE = Schedule.linear(1000)


def elementwise(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    out = torch.tanh(x) * 0.3 + 0.0001 * t.view(-1, *(1,) * (x.ndim - 1)).to(x.dtype)
    return out if y is None else out + 0.1 * y.view(-1, *(1,) * (x.ndim - 1)).to(x.dtype)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_a_sample_is_the_same_bits_in_any_batch(solver: str, backend: str) -> None:
    sampler = Sampler(elementwise, SCHEDULE, solver=solver, steps=6, clip_range=1.0)
    full = sampler.sample((64, 3, 5, 7), seed=2**63 + 11)
    for i in (0, 17, 63):
        assert torch.equal(
            sampler.sample((1, 3, 5, 7), seed=2**63 + 11, sample_ids=[i])[0], full[i]
        )
    for batch in (2, 7):
        for first in range(0, 64 - batch, 13):
            ids = torch.arange(first, first + batch)
            assert torch.equal(
                sampler.sample((batch, 3, 5, 7), seed=2**63 + 11, sample_ids=ids),
                full[first : first + batch],
            )
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        sampler.sample((64, 3, 5, 7), seed=2**63 + 11, sample_ids=shuffled), full[shuffled]
    )


def test_backends_give_the_same_samples(backend: str) -> None:
    import fastdiff

    def draw() -> torch.Tensor:
        return Sampler(elementwise, SCHEDULE, solver="ddpm", steps=8).sample((5, 3, 9), seed=4)

    with fastdiff.use("torch"):
        expected = draw()
    assert torch.equal(draw(), expected)


@pytest.mark.parametrize("kind", [torch.tensor, list, np.array, tuple], ids=lambda k: k.__name__)
def test_a_sample_of_its_own_seed_is_the_first_of_its_run(kind: Any) -> None:
    sampler = Sampler(elementwise, SCHEDULE, solver="ddpm", steps=4)
    seeds = [1, 5, 1, 9]
    drawn = sampler.sample((4, 10), seed=kind(seeds))
    for seed, x in zip(seeds, drawn, strict=True):
        assert torch.equal(x, sampler.sample((1, 10), seed=seed)[0])
    assert torch.equal(torch.cat(list(sampler.stream(4, (10,), seed=kind(seeds)))), drawn)
    assert torch.equal(sampler.rollout((4, 10), seed=kind(seeds)).samples, drawn)
    assert torch.equal(
        sampler.start((4, 10), seed=kind(seeds)).x[1], sampler.start((1, 10), seed=5).x[0]
    )
    # ids that are passed count as with one seed; a tensor of one number is one seed
    other = sampler.sample((4, 10), seed=kind(seeds), sample_ids=[0, 1, 2, 3])
    for i, seed in enumerate(seeds):
        assert torch.equal(other[i], sampler.sample((1, 10), seed=seed, sample_ids=[i])[0])
    one = sampler.sample((2, 10), seed=torch.tensor(5))
    assert torch.equal(one, sampler.sample((2, 10), seed=5))


def test_seeds_per_sample_are_checked() -> None:
    sampler = Sampler(elementwise, SCHEDULE, solver="ddpm", steps=2)
    largest = sampler.sample((1, 10), seed=2**64 - 1)
    assert torch.equal(sampler.sample((2, 10), seed=[3, 2**64 - 1])[1], largest[0])
    for seed, kind, message in [
        ([1, 2, 3], ValueError, "expected seed as one value or 2, got 3"),
        ([1, -1], ValueError, r"expected seed in \[0, 2\*\*64\), got -1"),
        ([1, 0.5], TypeError, "expected seed as an int or an int64 tensor, got float"),
        ("ab", TypeError, "expected seed as an int or an int64 tensor, got str"),
        (torch.tensor([1, 2, 3]), ValueError, r"an int64 tensor \[2\]"),
    ]:
        with pytest.raises(kind, match=message):
            sampler.sample((2, 10), seed=seed)
    with pytest.raises(ValueError, match="expected first_id=0 with a seed per sample, got 7"):
        sampler.stream(2, (10,), seed=[1, 2], first_id=7)


def test_an_image_needs_a_strength() -> None:
    """Row 0 is noise: next to nothing of the image would be left."""
    sampler = Sampler(elementwise, SCHEDULE, solver="ddpm", steps=4)
    image = torch.ones(2, 10)
    for arguments in ({}, {"start": 0}, {"start": [0, 0]}):
        with pytest.raises(ValueError, match="expected strength or start > 0 with image, got nei"):
            sampler.sample(image=image, seed=1, **arguments)
    with pytest.raises(ValueError, match="expected strength or start > 0 with image"):
        list(sampler.serve([Request(0, seed=1, image=image[0])], (10,)))
    whole = sampler.sample(image=image, seed=1, strength=1.0)
    assert not torch.equal(whole, sampler.sample(image=image, seed=1, start=1))
    assert sampler.sample(image=image, seed=1, start=[0, 2]).shape == (2, 10)


class Random(torch.nn.Module):
    """A network of one module, whose output may depend on its mode."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.inner(x, x, x) if hasattr(self.inner, "num_heads") else self.inner(x)
        return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize(
    "inner",
    [
        torch.nn.Dropout(0.5),
        torch.nn.AlphaDropout(0.5),
        torch.nn.RReLU(),
        torch.nn.BatchNorm1d(4),
        torch.nn.MultiheadAttention(4, 2, dropout=0.5),
        torch.nn.GRU(4, 4, num_layers=2, dropout=0.5),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_network_in_training_mode_is_named_once(inner: torch.nn.Module) -> None:
    network = Random(inner).train()
    sampler = Sampler(network, SCHEDULE, solver="ddim", steps=2)
    message = f"expected a network in eval mode, got {type(inner).__name__} in training mode"
    with pytest.warns(UserWarning, match=message) as caught:
        first = sampler.sample((4, 4), seed=0)
        second = sampler.sample((4, 4), seed=0)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert network.training and inner.training, "the mode is the user's"
    if not isinstance(inner, torch.nn.BatchNorm1d):
        assert not torch.equal(first, second)
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Sampler(network, SCHEDULE, solver="ddim", steps=2)
        assert torch.equal(again.sample((4, 4), seed=0), again.sample((4, 4), seed=0))


def test_a_network_whose_mode_changes_nothing_is_not_named() -> None:
    inner = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.0), torch.nn.LayerNorm(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sampler(Random(inner).train(), SCHEDULE, solver="ddim", steps=2).sample((2, 4), seed=0)


def test_stream_equals_one_call() -> None:
    sampler = Sampler(elementwise, SCHEDULE, solver="ddpm", steps=4, guidance_scale=2.0)
    cond, uncond = {"y": torch.arange(23)}, {"y": torch.zeros(23, dtype=torch.int64)}
    whole = sampler.sample(
        (23, 4), seed=3, sample_ids=torch.arange(100, 123), cond=cond, uncond=uncond
    )
    batches = list(
        sampler.stream(23, (4,), batch_size=5, first_id=100, seed=3, cond=cond, uncond=uncond)
    )
    assert [len(b) for b in batches] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat(batches), whole)


def test_no_seed_draws_one_and_tells() -> None:
    sampler = Sampler(elementwise, SCHEDULE, solver="ddpm", steps=2)
    torch.manual_seed(0)
    a = sampler.sample((2, 3))
    first = sampler.last_seed
    b = sampler.sample((2, 3))
    assert sampler.last_seed != first and not torch.equal(a, b)
    torch.manual_seed(0)
    assert torch.equal(sampler.sample((2, 3)), a)
    assert first is not None
    assert torch.equal(sampler.sample((2, 3), seed=first), a)


class Counting:
    """Records the rows each network call was made with."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.batches.append(len(x))
        return elementwise(x, t, y)


def _guided(gamma: float | Tensor) -> tuple[Tensor, list[int]]:
    model = Counting()
    sampler = Sampler(model, SCHEDULE, solver="ddim", steps=3)
    cond, uncond = {"y": torch.tensor([1, 2])}, {"y": torch.tensor([0, 0])}
    return (
        sampler.sample((2, 5), seed=1, cond=cond, uncond=uncond, guidance_scale=gamma),
        model.batches,
    )


def test_guidance_of_zero_and_one_select_bitwise_with_one_call() -> None:
    plain = Sampler(elementwise, SCHEDULE, solver="ddim", steps=3)
    conditional = plain.sample((2, 5), seed=1, cond={"y": torch.tensor([1, 2])})
    unconditional = plain.sample((2, 5), seed=1, cond={"y": torch.tensor([0, 0])})
    one, calls = _guided(1.0)
    assert torch.equal(one, conditional) and calls == [2, 2, 2]
    zero, calls = _guided(0.0)
    assert torch.equal(zero, unconditional) and calls == [2, 2, 2]
    mixed, calls = _guided(torch.tensor([1.0, 0.0]))
    assert calls == [4, 4, 4]
    assert torch.equal(mixed[0], conditional[0]) and torch.equal(mixed[1], unconditional[1])


@pytest.mark.parametrize("gamma", [-1.5, 0.5, 7.5])
def test_guided_steps_equal_the_oracle(gamma: float) -> None:
    got, calls = _guided(gamma)
    assert calls == [4, 4, 4]
    plan = Sampler(elementwise, SCHEDULE, solver="ddim", steps=3).plan
    x = reference.randn((2, 5), seed=1)
    for k in range(3):
        t = torch.full((4,), int(plan.column("t")[k]))
        out = elementwise(torch.from_numpy(x).repeat(2, 1), t, torch.tensor([1, 2, 0, 0])).numpy()
        x = reference.reverse_step(x, out, plan.table, k, guidance=[gamma, gamma]).x_s
    assert torch.equal(got, torch.from_numpy(x))


def test_callback_sees_every_step() -> None:
    seen = []
    sampler = Sampler(elementwise, SCHEDULE, solver="ddim", steps=4, timestep_spacing="leading")
    x = sampler.sample(
        (2, 3), seed=0, callback=lambda i, t, x, x0: seen.append((i, t, x.clone(), x0.clone()))
    )
    assert [(i, t) for i, t, _, _ in seen] == [(0, 750.0), (1, 500.0), (2, 250.0), (3, 0.0)]
    assert torch.equal(seen[-1][2], x) and torch.equal(seen[-1][3], x), (
        "the last DDIM step lands on x0"
    )


def test_a_run_can_be_resumed_at_a_row() -> None:
    sampler = Sampler(elementwise, SCHEDULE, solver="ddpm", steps=6)
    states = []
    whole = sampler.sample((2, 3), seed=5, callback=lambda i, t, x, x0: states.append(x.clone()))
    assert torch.equal(sampler.sample(x_T=states[2], start=3, seed=5), whole)


def test_the_given_state_is_left_alone() -> None:
    x = torch.ones(2, 3)
    Sampler(elementwise, SCHEDULE, steps=2).sample(x_T=x, seed=0)
    assert torch.equal(x, torch.ones(2, 3))


def test_objects_with_sample_and_empty_batches() -> None:
    class Output:
        def __init__(self, sample: Tensor):
            self.sample = sample

    wrapped = Sampler(lambda x, t: Output(elementwise(x, t)), SCHEDULE, steps=3)
    plain = Sampler(elementwise, SCHEDULE, steps=3)
    assert torch.equal(wrapped.sample((2, 3), seed=0), plain.sample((2, 3), seed=0))
    assert plain.sample((0, 3), seed=0).shape == (0, 3)


def test_bf16_networks_see_bf16_and_keep_a_float32_state() -> None:
    network = UNet(size=8, widths=(8, 16), emb=16, groups=8).to(torch.bfloat16).eval()
    x = Sampler(network, SCHEDULE, steps=2).sample((2, 1, 8, 8), seed=0)
    assert x.dtype == torch.float32 and bool(torch.isfinite(x).all())


def test_threads_share_a_sampler() -> None:
    sampler = Sampler(elementwise, SCHEDULE, solver="ddpm", steps=20)
    expected = [sampler.sample((3, 50), seed=s) for s in range(8)]
    got: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda s=s: got.__setitem__(s, sampler.sample((3, 50), seed=s)))
        for s in range(8)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(got[s], expected[s]) for s in range(8))


def test_folder_round_trip(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network = UNet(size=8, widths=(8, 16), emb=16, groups=8).eval()
    sampler = Sampler(
        network,
        Schedule.cosine(100),
        steps=5,
        prediction_type="v",
        clip_range=1.0,
        guidance_scale=2.0,
    )
    sampler.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    again = Sampler.from_pretrained(tmp_path / "model")
    cond, uncond = {"y": torch.tensor([1, 2])}, {"y": torch.full((2,), network.null_label)}
    arguments = {"seed": 0, "cond": cond, "uncond": uncond}
    assert torch.equal(
        again.sample((2, 1, 8, 8), **arguments), sampler.sample((2, 1, 8, 8), **arguments)
    )
    assert again.plan.hash == sampler.plan.hash
    assert len(Sampler.from_pretrained(tmp_path / "model", steps=7).plan) == 7


class Conditional:
    """A conditional elementwise network that counts the rows of its calls."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        return torch.tanh(x + 0.1 * y.view(-1, *(1,) * (x.ndim - 1)))


CONDITIONS = {"cond": {"y": torch.arange(3)}, "uncond": {"y": torch.full((3,), 9)}}


def test_guidance_in_an_interval_skips_the_unconditional_call() -> None:
    whole = Sampler(Conditional(), SCHEDULE, steps=10, guidance_scale=3.0)
    rho = [math.exp(-0.5 * SCHEDULE.log_snr[int(t)]) for t in whole.plan.column("t")[:-1]]
    low, high = rho[7] * 0.999, rho[3] * 1.001
    network = Conditional()
    sampler = Sampler(
        network, SCHEDULE, steps=10, guidance_scale=3.0, guidance_interval=(low, high)
    )
    x = sampler.sample((3, 4), seed=1, **CONDITIONS)
    assert network.rows == [3, 3, 3, 6, 6, 6, 6, 6, 3, 3]
    # a tensor's strength is not the host's to read: both halves are computed, and the result is the
    # same
    network.rows.clear()
    gamma = torch.full((3,), 3.0)
    assert torch.equal(sampler.sample((3, 4), seed=1, guidance_scale=gamma, **CONDITIONS), x)
    assert network.rows == [6] * 10
    assert not torch.equal(whole.sample((3, 4), seed=1, **CONDITIONS), x)
    outside = Sampler(
        Conditional(), SCHEDULE, steps=10, guidance_scale=3.0, guidance_interval=(1e6, 1e7)
    )
    plain = Sampler(Conditional(), SCHEDULE, steps=10)
    assert torch.equal(
        outside.sample((3, 4), seed=1, **CONDITIONS),
        plain.sample((3, 4), seed=1, cond=CONDITIONS["cond"]),
    )


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm++2m", "unipc"])
def test_rescale_and_dynamic_threshold_in_a_run(solver: str, backend: str) -> None:
    """The loop on every backend against the NumPy interpreter of the same rows."""
    sampler = Sampler(
        Conditional(),
        SCHEDULE,
        solver=solver,
        steps=6,
        guidance_scale=4.0,
        guidance_rescale=0.7,
        dynamic_threshold=0.9,
        clip_range=2.0,
    )
    # The interpreter reads the same table, so the values in the table are compared first.
    asked = {"guidance_rescale": 0.7, "clip_mode": 2, "clip_ratio": 0.9, "clip_bound": 2}
    assert all((sampler.plan.column(name)[:-1] == value).all() for name, value in asked.items())
    start = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = sampler.sample(x_T=start, seed=7, **CONDITIONS)
    x, slots = start.numpy(), np.zeros((4, 3, 4, 5))
    labels = torch.cat([CONDITIONS["cond"]["y"], CONDITIONS["uncond"]["y"]])
    for k in range(len(sampler.plan)):
        both = torch.from_numpy(np.concatenate([x, x]))
        out = Conditional()(both, torch.zeros(6), labels).numpy()
        step = reference.reverse_step(
            x, out, sampler.plan.table, k, slots=slots, seed=7, guidance=4.0
        )
        x, slots = step.x_s, step.slots
    np.testing.assert_allclose(got.numpy(), x, rtol=1e-10, atol=1e-10)
    assert got.abs().max() <= 1 + 1e-9, "thresholded x0 is in [-1, 1]"


def test_the_user_s_own_timesteps() -> None:
    sampler = Sampler(elementwise, SCHEDULE, solver="dpm++2m", timesteps=[990, 500, 499, 3])
    assert sampler.plan.column("t")[:-1].tolist() == [990, 500, 499, 3]
    assert sampler.sample((2, 3), seed=0).isfinite().all()
    for wrong in ([], [1, 2], [5, 5], [1000, 3], [4, -1]):
        with pytest.raises(ValueError, match="expected descending timesteps in"):
            Sampler(elementwise, SCHEDULE, timesteps=wrong)
    for options, message in [
        ({"dynamic_threshold": 1.5}, "expected dynamic_threshold in"),
        ({"dynamic_threshold": 0.9, "clip_range": 0.5}, "expected dynamic_threshold in"),
        ({"guidance_rescale": 2.0}, "expected guidance_rescale in"),
        ({"guidance_interval": (3.0, 1.0)}, "expected guidance_interval"),
    ]:
        with pytest.raises(ValueError, match=message):
            Sampler(elementwise, SCHEDULE, **options)


def test_folders_keep_parametrizations_and_strengths_per_row(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from fastdiff.prediction import Parametrization

    torch.manual_seed(0)
    network = UNet(size=8, widths=(8, 16), emb=16, groups=8).eval()
    kind = Parametrization("v", unit_input=True, sigma_data=0.5)
    sampler = Sampler(
        network, Schedule.cosine(100), steps=3, prediction_type=kind, guidance_scale=[1.0, 2.0, 1.0]
    )
    sampler.save_pretrained(tmp_path / "model")
    again = Sampler.from_pretrained(tmp_path / "model")
    assert again.plan.hash == sampler.plan.hash and again.guidance_scale == [1.0, 2.0, 1.0]
    plain = Sampler(network, Schedule.cosine(100), steps=3, prediction_type="v")
    assert again.plan.hash != plain.plan.hash


def test_samples_are_decoded() -> None:
    """sample, stream and serve decode by the function that was passed."""

    def decode(latents: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return doubled(latents)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x

    plain = Sampler(network, SCHEDULE, steps=4)
    decoded = Sampler(network, SCHEDULE, steps=4, decode=decode)
    latents = plain.sample((3, 2), seed=1)
    assert plain.decoder is None and decoded.decoder is decode
    assert plain.decode(latents) is latents
    assert torch.equal(decoded.sample((3, 2), seed=1), doubled(latents))
    batches = list(decoded.stream(3, (2,), batch_size=2, seed=1))
    assert [b.shape for b in batches] == [(2, 4), (1, 4)]
    assert torch.equal(torch.cat(batches), doubled(latents))
    requests = [Request(sample_id=i, seed=1) for i in range(3)]
    for request, x in decoded.serve(requests, (2,), batch_size=2):
        assert torch.equal(x, doubled(latents)[request.sample_id])
    with pytest.raises(TypeError, match="expected decode as a function of latents or an autoenc"):
        Sampler(network, SCHEDULE, decode=3)


def doubled(latents: Tensor) -> Tensor:
    return torch.cat([latents, 2 * latents], 1)


@pytest.mark.parametrize("network_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("solver", ["dpm++2m", "euler", "heun"])
def test_a_run_goes_on_with_what_a_callback_writes_into_x(
    solver: str, halves: int, network_dtype: torch.dtype | None
) -> None:
    """It equals a run that begins at that row with the written x (for a solver with a memory, after
    a cleared state every later one is 0 where the network is).
    """
    seen: list[float] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(x.abs().max()))
        return torch.zeros_like(x)

    network.dtype = network_dtype  # type: ignore[attr-defined]
    sampler = Sampler(network, SCHEDULE, solver=solver, steps=4, guidance_scale=float(halves))
    x = sampler.sample((3, 2, 4), seed=1, uncond={}, callback=lambda row, t, x, x0: x.zero_())
    assert seen[0] > 0 and not any(seen[1:]) and not x.any()


def test_a_callback_that_changes_the_shape_of_x_is_refused() -> None:
    def shrink(row: int, t: float, x: Tensor, x0: Tensor) -> None:
        x.data = x.data[:, :2]

    for differentiable in (False, True):
        with pytest.raises(ValueError, match="expected the callback to leave x of shape"):
            Sampler(elementwise, SCHEDULE, steps=3).sample(
                (2, 4), seed=0, callback=shrink, differentiable=differentiable
            )


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 4), (4, 3, 4), (2, 3, 5), (2, 3, 2), (1,), ()])
def test_an_output_whose_shape_changes_during_a_run_is_refused(
    shape: tuple[int, ...], differentiable: bool
) -> None:
    calls: list[int] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return torch.ones(shape) if len(calls) == 3 else torch.tanh(x)

    sampler = Sampler(network, SCHEDULE, solver="dpm++2m", steps=5)
    with pytest.raises(ValueError, match="expected a model output of shape"):
        sampler.sample((2, 3, 4), seed=0, differentiable=differentiable)
