"""The loop on its buffers: nothing allocated, nothing read, graphs, call sizes, memory, and the
shipped network.
"""

from __future__ import annotations

import concurrent.futures
import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff.sampling.engine
from fastdiff import Request, Sampler, Schedule
from fastdiff.models import UNet
from fastdiff.sampling import kept
from fastdiff.sampling.graph import CHUNK, WARM_UP, Graphs

SCHEDULE = Schedule.linear(1000)


class InPlace:
    """An elementwise network that writes into static memory, like a captured one."""

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        if len(x) not in self.buffers:
            self.buffers[len(x)] = torch.empty_like(x)
        buffer = self.buffers[len(x)]
        torch.mul(x, 0.3, out=buffer)
        return buffer if y is None else buffer.add_(y.view(-1, 1))


class Watch(TorchDispatchMode):
    """Notes the memory of every tensor that ops give, and refuses to let the host read one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}  # the tensors are held, so that memory is not used twice
        self.new: list[str] = []
        self.log: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(
            word in name for word in ("_local_scalar_dense", "nonzero", "is_nonzero", "unique")
        ), name
        result = func(*args, **(kwargs or {}))
        inputs = [v for v in (*args, *(kwargs or {}).values()) if isinstance(v, Tensor)]
        self.log.append((name, [v.data_ptr() for v in inputs]))
        for value in inputs:
            self.seen.setdefault(value.untyped_storage().data_ptr(), value)
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor) and value.numel():
                key = value.untyped_storage().data_ptr()
                if key not in self.seen:
                    self.new.append(name)
                    self.seen[key] = value
        return result


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "float64": {"dtype": torch.float64},
    "guided": {"guidance_scale": 2.0},
    "by a tensor": {"guidance_scale": torch.linspace(0, 2, 4)},
    "by a list": {"guidance_scale": [0.0, 1.0, 2.0, 1.0, 0.0, 3.0, 2.0, 2.0]},
    "own steps": {"steps": [8, 8, 8, 9]},
    "inpainting": {"mask": torch.tensor([1.0, 0, 1, 0, 1]), "known": torch.zeros(5)},
}


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


class Recorder:
    """A device for graphs: captured steps run again, and must touch the same memory every time."""

    def __init__(self, fails: bool = False, same: bool = True):
        self.fails, self.same = fails, same
        self.captured = self.replayed = self.warmed = 0

    def warm(self, step: Callable[[], None]) -> None:
        self.warmed += 1
        step()

    def watch(self, step: Callable[[], None]) -> list[str]:
        self.warm(step)
        return []

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured += 1
        first: list[Any] = []

        def replay() -> None:
            self.replayed += 1
            with Watch() as watch:
                step()
            unchanged = watch.log == (first or watch.log) or not self.same
            assert watch.log and unchanged, "a replay on other memory"
            first[:] = watch.log

        return replay

    def install(self, monkeypatch: pytest.MonkeyPatch, required: bool = False) -> None:
        def graphs(option: Any, device: Any) -> Graphs:
            return Graphs(self, required=required)

        monkeypatch.setattr(fastdiff.sampling.engine, "graphs", graphs)


@pytest.mark.parametrize("solver", ["ddpm", "unipc", "heun"])
@pytest.mark.parametrize("case", [c for c in CASES if c not in ("by a list", "own steps")])
def test_captured_steps_are_replayed_on_the_same_memory(
    case: str, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(InPlace(), SCHEDULE, solver=solver, steps=8)
    arguments = {
        "cond": {"y": torch.ones(4)},
        "uncond": {"y": torch.zeros(4)},
        "seed": 3,
        **CASES[case],
    }
    expected = sampler.sample((4, 5), **arguments)
    recorder = Recorder()
    recorder.install(monkeypatch)
    assert torch.equal(sampler.sample((4, 5), **arguments), expected)
    steps = len(sampler.plan) - WARM_UP
    # graphs of one step, from either tensor of rows to the other, and one graph of several
    assert recorder.warmed == WARM_UP
    assert recorder.captured == min(2, steps % CHUNK) + (steps >= CHUNK)
    assert recorder.replayed == steps % CHUNK + steps // CHUNK


def test_each_kind_of_step_has_its_own_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    rho = [float(SCHEDULE.sigma[t] / SCHEDULE.alpha[t]) for t in (99, 799)]
    sampler = Sampler(
        InPlace(), SCHEDULE, steps=20, guidance_scale=2.0, guidance_interval=(rho[0], rho[1])
    )
    arguments: dict[str, Any] = {
        "cond": {"y": torch.ones(4)},
        "uncond": {"y": torch.zeros(4)},
        "seed": 3,
    }
    expected = sampler.sample((4, 5), **arguments)
    recorder = Recorder()
    recorder.install(monkeypatch)
    assert torch.equal(sampler.sample((4, 5), **arguments), expected)
    assert recorder.warmed == 2 * WARM_UP
    assert 2 * 2 <= recorder.captured <= 2 * 3, "one step, from either tensor of rows; several"
    # refilled lanes keep their memory: a stream captures once
    stream: dict[str, Any] = {**arguments, "steps": [3, 9, 4, 20], "guidance_scale": 2.0}
    plain = Sampler(InPlace(), SCHEDULE, guidance_scale=2.0)
    whole = plain.sample((4, 5), **stream)
    recorder = Recorder()
    recorder.install(monkeypatch)
    assert torch.equal(torch.cat(list(plain.stream(4, (5,), batch_size=2, **stream))), whole)
    assert recorder.captured <= 3 and recorder.warmed == WARM_UP


def test_a_capture_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(InPlace(), SCHEDULE, steps=9)
    expected = sampler.sample((4, 5), seed=1)
    Recorder(fails=True).install(monkeypatch)
    with pytest.warns(
        UserWarning,
        match="no CUDA graph, because a step can't be captured: operation not permitted",
    ) as caught:
        assert torch.equal(sampler.sample((4, 5), seed=1), expected)
    assert len(caught) == 1
    Recorder(fails=True).install(monkeypatch, required=True)
    with pytest.raises(RuntimeError, match="expected a step that CUDA can capture"):
        sampler.sample((4, 5), seed=1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="expected a CUDA device for graph=True, got cpu"):
        Sampler(InPlace(), SCHEDULE, graph=True).sample((4, 5), seed=1)


class Quiet(nn.Module):
    """An elementwise network with a weight, a number and static memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.number = nn.Parameter(torch.tensor(0.3)), 1.0
        self.out = {n: torch.empty(n, 5) for n in (2, 4, 8)}

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        out = torch.mul(x, self.weight.detach(), out=self.out[len(x)]).mul_(self.number)
        return out if y is None else out.add_(y.view(-1, 1))


def _calls(sampler: Sampler, seeds: range, **arguments: Any) -> list[Tensor]:
    return [sampler.sample((4, 5), seed=seed, **arguments) for seed in seeds]


@pytest.mark.parametrize("solver", ["ddpm", "unipc"])
def test_later_calls_replay_from_their_first_step(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(Quiet(), SCHEDULE, solver=solver, steps=8)
    changing = [{"cond": {"y": torch.full((4,), float(i))}} for i in range(40)]
    expected = [sampler.sample((4, 5), seed=i, **c) for i, c in enumerate(changing)]
    recorder = Recorder()
    recorder.install(monkeypatch)
    for i, condition in enumerate(changing):
        got = sampler.sample((4, 5), seed=i, **condition)
        assert torch.equal(got, expected[i]), i
        if i == 1:
            captured, warmed = recorder.captured, recorder.warmed
    assert (recorder.captured, recorder.warmed) == (captured, warmed), "nothing after two calls"
    assert warmed == WARM_UP and captured <= 3
    assert len({x.data_ptr() for x in expected}) == 40, "every call's result is its own"


def test_calls_of_other_plans_use_the_same_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(Quiet(), SCHEDULE, solver="dpm++2m", steps=6)
    counts = [6, 9, 6, 4, 9, 4, 6, 12, 9, 12]
    expected = [sampler.sample((4, 5), seed=1, steps=n) for n in counts]
    recorder = Recorder()
    recorder.install(monkeypatch)
    got = [sampler.sample((4, 5), seed=1, steps=n) for n in counts]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    captured = recorder.captured
    _calls(sampler, range(5), steps=9)
    assert recorder.captured == captured <= 3 * 3, "the table moved twice at most"


def _other_forward(network: nn.Module) -> None:
    out = network.out
    network.forward = lambda x, t: torch.mul(x, 0.9, out=out[len(x)])  # type: ignore[operator, assignment, index]


@pytest.mark.parametrize(
    "change",
    {
        "number": lambda network: setattr(network, "number", 2.0),
        "weight": lambda network: setattr(network.weight, "data", torch.tensor(0.7)),
        "parameter": lambda network: setattr(network, "weight", nn.Parameter(torch.tensor(0.7))),
        "hook": lambda network: network.register_forward_hook(lambda m, a, out: out.mul_(2)),
        "forward": _other_forward,
    }.items(),
    ids=lambda item: item[0],
)
def test_a_changed_network_is_captured_again(
    change: tuple[str, Callable[[nn.Module], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Quiet()
    sampler = Sampler(network, SCHEDULE, steps=8)
    recorder = Recorder()
    recorder.install(monkeypatch)
    before = _calls(sampler, range(2))[1]
    captured = recorder.captured
    change[1](network)
    after = _calls(sampler, range(2))[1]
    assert recorder.captured > captured
    assert not torch.equal(before, after)


def test_weights_written_in_place_take_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Quiet()
    sampler = Sampler(network, SCHEDULE, steps=8)
    recorder = Recorder()
    recorder.install(monkeypatch)
    _calls(sampler, range(2))
    captured = recorder.captured
    with torch.no_grad():
        network.weight.mul_(2)
    got = _calls(sampler, range(2))[0]
    assert recorder.captured > captured, "a network may keep what it made from a weight"
    monkeypatch.undo()
    assert torch.equal(got, sampler.sample((4, 5), seed=0))


def test_a_thousand_served_requests_capture_a_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of different steps, seeds, strengths and conditions, so that plans are added on the way."""
    sampler = Sampler(Quiet(), SCHEDULE, solver="dpm++2m", guidance_scale=2.0)
    requests = [
        Request(
            i,
            seed=i % 7,
            steps=3 + i % 11,
            guidance_scale=1.5 + i % 3,
            cond={"y": torch.tensor(float(i % 5))},
            uncond={"y": torch.tensor(0.0)},
        )
        for i in range(1000)
    ]
    expected = {}
    for request, sample in sampler.serve(requests, (5,), batch_size=4):
        expected[request.sample_id] = sample
    recorder = Recorder()
    recorder.install(monkeypatch)
    for request, sample in sampler.serve(requests, (5,), batch_size=4):
        assert torch.equal(sample, expected[request.sample_id])
    plans = 11
    assert recorder.captured <= 3 * (plans.bit_length() + 1), recorder.captured
    captured = recorder.captured
    for _ in sampler.serve(requests[:50], (5,), batch_size=4):
        pass
    assert recorder.captured == captured, "a second server goes on with the same graphs"


def test_threads_share_a_sampler_and_not_its_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Static(nn.Module):
        """Static memory of its own for each thread, as each capture has its own outputs."""

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * 0.3

    sampler = Sampler(Static(), SCHEDULE, solver="ddpm", steps=8)
    expected = _calls(sampler, range(24))
    recorder = Recorder(same=False)
    recorder.install(monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda seed: _calls(sampler, range(seed, seed + 1))[0], range(24)))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_kept_buffers_are_few_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(lambda x, t: x * 0.3, SCHEDULE, steps=8)
    Recorder(same=False).install(monkeypatch)
    for n in range(1, 9):
        sampler.sample((n, 5), seed=0)
        sampler.sample((2, n), seed=0)
    assert len(sampler._engine._kept._runs) == kept.MOST
    assert not copy.deepcopy(sampler._engine._kept)._runs


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
