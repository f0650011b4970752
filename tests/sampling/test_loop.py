"""The loop on its buffers: nothing allocated, nothing read, call sizes, memory, and the shipped
network.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from recording import CASES, SCHEDULE, InPlace, Watch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdiff import Sampler
from fastdiff.models import UNet


@pytest.mark.parametrize("solver", ["ddpm", "unipc", "dpm++2m"])
@pytest.mark.parametrize("case", CASES)
def test_steps_allocate_nothing_and_read_nothing(case: str, solver: str) -> None:
    sampler = Sampler(InPlace(), SCHEDULE, solver=solver, steps=8, clip_range=1.0)
    y = {"cond": {"y": torch.ones(4)}, "uncond": {"y": torch.zeros(4)}}
    counts = []
    with Watch() as watch:

        def callback(*_: Any) -> None:
            counts.append(len(watch.new))

        sampler.sample((4, 5), seed=0, callback=callback, **y, **CASES[case])  # type: ignore[arg-type]
    assert len(counts) >= 8 and counts[0] > 0, "the watch sees allocations"
    # a step of a new kind (guided, plain) is its own warm-up
    warm = {"by a list": 6}.get(case, 1)
    assert counts[-2] == counts[warm], watch.new[counts[warm] :]


def test_an_allocating_step_would_be_seen() -> None:
    counts: list[int] = []
    with Watch() as watch:
        Sampler(lambda x, t: x * 2, SCHEDULE, steps=4).sample(
            (2, 3), seed=0, callback=lambda *_: counts.append(len(watch.new))
        )
    assert counts == sorted(set(counts))
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Watch():
        Sampler(lambda x, t: x * float(x.sum()), SCHEDULE, steps=4).sample((2, 3), seed=0)


@pytest.mark.parametrize("case", [c for c in CASES if c != "by a tensor"])
def test_runs_and_streams_under_fake_tensors_read_nothing(case: str) -> None:
    y = {"y": torch.ones(4)}
    arguments = {k: v for k, v in CASES[case].items() if not isinstance(v, Tensor)}
    with FakeTensorMode(allow_non_fake_inputs=True):
        if case == "inpainting":
            arguments = {"mask": torch.empty(5), "known": torch.empty(5)}
        sampler = Sampler(lambda x, t, y: x, SCHEDULE, solver="dpm++2m", steps=8)
        parts = list(sampler.stream(4, (5,), batch_size=3, seed=0, cond=y, uncond=y, **arguments))
    assert [tuple(p.shape) for p in parts] == [(3, 5), (1, 5)]


class Small:
    """A network whose memory holds `most` rows."""

    def __init__(self, most: int):
        self.most, self.rows = most, []  # type: ignore[var-annotated]

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        if len(x) > self.most:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] not enough memory: you tried to allocate 9"
                " bytes."
            )
        return torch.tanh(x) if y is None else torch.tanh(x + y.view(-1, 1))


def test_out_of_memory_names_the_batch_that_fits_or_splits() -> None:
    y = {"cond": {"y": torch.arange(20.0)}, "uncond": {"y": torch.zeros(20)}}
    for guidance_scale, fits in ((1.0, 5), (2.0, 2)):
        sampler = Sampler(Small(7), SCHEDULE, steps=4, guidance_scale=guidance_scale)
        with pytest.raises(
            torch.OutOfMemoryError,
            match=f"got 20: the largest found to fit is {fits}. Pass that, or on_oom",
        ):
            sampler.sample((20, 3), seed=0, **y)  # type: ignore[arg-type]
        sampler.sample((fits, 3), seed=0, **{k: {"y": v["y"][:fits]} for k, v in y.items()})  # type: ignore[arg-type]
        expected = Sampler(Small(99), SCHEDULE, steps=4, guidance_scale=guidance_scale).sample(
            (20, 3), seed=0, **y
        )  # type: ignore[arg-type]
        small = Small(7)
        split = Sampler(small, SCHEDULE, steps=4, guidance_scale=guidance_scale, on_oom="split")
        with pytest.warns(UserWarning, match="network calls are split into 5 rows each") as caught:
            assert torch.equal(split.sample((20, 3), seed=0, **y), expected)  # type: ignore[arg-type]
        assert len(caught) == 1 and max(small.rows[4:]) == 5
    with pytest.raises(
        torch.OutOfMemoryError, match="expected memory for a network call on one sample"
    ):
        Sampler(Small(0), SCHEDULE, on_oom="split").sample((4, 3), seed=0)
    with pytest.raises(
        torch.OutOfMemoryError, match="expected a network_batch that fits into memory, got 8"
    ):
        Sampler(Small(7), SCHEDULE, on_oom="split", network_batch=8).sample((4, 3), seed=0)
    with pytest.raises(RuntimeError, match="of another kind"):
        Sampler(
            lambda x, t: (_ for _ in ()).throw(RuntimeError("of another kind")), SCHEDULE
        ).sample((4, 3))


def test_network_batch_gives_every_call_its_rows() -> None:
    network = InPlace()
    sampler = Sampler(network, SCHEDULE, steps=2, network_batch=8, guidance_scale=2.0)
    y = {"cond": {"y": torch.arange(11.0)}, "uncond": {"y": torch.zeros(11)}}
    sampler.sample((11, 3), seed=0, **y)  # type: ignore[arg-type]
    assert network.rows == [8] * 6, "22 rows of both halves are three calls"
    for wrong, message in [
        ({"network_batch": 0}, "expected network_batch >= 1"),
        ({"on_oom": "wait"}, "expected on_oom"),
        ({"graph": "maybe"}, "expected graph in"),
    ]:
        with pytest.raises(ValueError, match=message):
            Sampler(network, SCHEDULE, **wrong)  # type: ignore[arg-type]


def _labels(ids: Tensor) -> dict[str, Any]:
    return {"cond": {"y": ids % 10}, "uncond": {"y": torch.full_like(ids, 10)}}


def test_the_shipped_network_gives_the_same_bits_alone_and_in_any_batch() -> None:
    """A real U-Net, its calls filled up to 16 rows: alone, in batches of 2, 7 and 64, streamed and
    refilled.
    """
    sampler = Sampler.from_pretrained("fashion-mnist", steps=2, network_batch=16)
    shape, ids = (1, 28, 28), torch.arange(64)
    whole = sampler.sample((64, *shape), seed=5, **_labels(ids))
    for batch, first in ((1, 0), (1, 41), (2, 12), (7, 30)):
        part = ids[first : first + batch]
        x = sampler.sample((batch, *shape), seed=5, sample_ids=part, **_labels(part))
        assert torch.equal(x, whole[part]), batch
    streamed = torch.cat(list(sampler.stream(23, shape, batch_size=5, seed=5, **_labels(ids[:23]))))
    assert torch.equal(streamed, whole[:23])
    steps = [2, 1, 3, 2, 2, 1]
    refilled = torch.cat(
        list(sampler.stream(6, shape, batch_size=2, seed=5, steps=steps, **_labels(ids[:6])))
    )
    same = [i for i, n in enumerate(steps) if n == 2]
    assert torch.equal(refilled[same], whole[same])
    alone = sampler.sample((1, *shape), seed=5, sample_ids=[2], steps=3, **_labels(ids[2:3]))
    assert torch.equal(alone[0], refilled[2])


def awake(**config: Any) -> UNet:
    torch.manual_seed(0)
    network = UNet(**{"size": 8, "widths": (8, 16), "emb": 16, "groups": 8, **config}).eval()
    for p in network.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return network


@pytest.mark.parametrize("network_batch", [None, 4])
def test_conditions_are_computed_before_the_loop_to_the_same_bits(
    network_batch: int | None,
) -> None:
    network = awake()
    calls = {"condition": 0, "decode": 0}
    order: list[str] = []

    class Noting(UNet):
        def condition(self, *arguments: Any, **named: Any) -> Tensor:
            calls["condition"] += 1
            order.append("condition")
            return super().condition(*arguments, **named)

        def decode(self, *arguments: Any) -> Tensor:
            order.append("decode")
            return super().decode(*arguments)

    network.__class__ = Noting
    settings: dict[str, Any] = {"steps": 5, "guidance_scale": 2.0, "network_batch": network_batch}
    x = Sampler(network, SCHEDULE, **settings).sample(
        (3, 1, 8, 8), seed=0, **_labels(torch.arange(3))
    )
    assert order.index("decode") == calls["condition"] > 0, (
        "all conditions come before the first step"
    )
    plain = Sampler(lambda x, t, y: network(x, t, y), SCHEDULE, **settings)
    assert torch.equal(plain.sample((3, 1, 8, 8), seed=0, **_labels(torch.arange(3))), x)
    # someone who watches forward sees it called
    handle = network.register_forward_hook(lambda *_: order.append("hook"))
    assert torch.equal(
        Sampler(network, SCHEDULE, **settings).sample(
            (3, 1, 8, 8), seed=0, **_labels(torch.arange(3))
        ),
        x,
    )
    handle.remove()
    assert order.count("hook") == 5 * (1 if network_batch is None else 2)
    with pytest.raises(ValueError, match=r"expected x of shape \[B, 1, 8, 8\]"):
        Sampler(network, SCHEDULE).sample((3, 1, 4, 4), seed=0)


def test_the_network_s_own_dtype_format_and_compilation() -> None:
    network = awake()
    y = _labels(torch.arange(3))
    full = Sampler(network, SCHEDULE, steps=3, clip_range=1.0).sample((3, 1, 8, 8), seed=0, **y)
    half = Sampler(network, SCHEDULE, steps=3, clip_range=1.0, network_dtype=torch.bfloat16).sample(
        (3, 1, 8, 8), seed=0, **y
    )
    assert (
        half.dtype == torch.float32
        and not torch.equal(half, full)
        and (half - full).abs().mean() < 0.1
    )
    assert next(network.parameters()).dtype == torch.float32, "the caller's model stays as it is"

    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.formats: list[bool] = []

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                self.formats.append(
                    x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
                )
            return self.conv(x)

    module = Convolution()
    expected = Sampler(module, SCHEDULE, steps=3).sample((2, 3, 5, 5), seed=0)
    last = Sampler(module, SCHEDULE, steps=3, channels_last=True)
    x = last.sample((2, 3, 5, 5), seed=0)
    assert last._engine.network.model.formats == [False] * 3 + [True] * 3  # type: ignore[attr-defined]
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    assert x.is_contiguous() and module.conv.weight.is_contiguous()

    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = Sampler(module, SCHEDULE, steps=3, compile={"backend": backend})
        torch.testing.assert_close(
            sampler.sample((2, 3, 5, 5), seed=0), expected, rtol=1e-5, atol=1e-5
        )
        assert len(compiled) == 1
        sampler = Sampler(network, SCHEDULE, steps=3, clip_range=1.0, compile={"backend": backend})
        torch.testing.assert_close(
            sampler.sample((3, 1, 8, 8), seed=0, **y), full, rtol=1e-5, atol=1e-5
        )
    assert len(compiled) == 2
