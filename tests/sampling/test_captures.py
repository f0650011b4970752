"""Captured steps, and what a sampler keeps from call to call.

The graphs of these tests run their steps again and compare the memory that they touch.
"""

from __future__ import annotations

import concurrent.futures
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recording import CASES, SCHEDULE, InPlace, Recorder
from torch import Tensor, nn

from fastdiff import Request, Sampler
from fastdiff.sampling import kept
from fastdiff.sampling.graph import CHUNK, WARM_UP


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
