"""The network's times in the loop: rows write those of the next rows, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff.sampling.engine
from fastdiff import Request, Sampler, Schedule
from fastdiff.sampling.buffers import Lanes
from fastdiff.sampling.device_plan import DevicePlan
from fastdiff.sampling.graph import CHUNK, Graphs
from fastdiff.sampling.stepper import Stepper

SCHEDULE = Schedule.linear(1000)
Y: dict[str, Any] = {"cond": {"y": torch.ones(6)}, "uncond": {"y": torch.zeros(6)}}


def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    assert len(t) == len(x)
    out = torch.tanh(x) * (0.5 + t.to(x.dtype).view(-1, 1) / 4000)
    return out if y is None else out + 0.1 * y.view(-1, 1)


class Retimed:
    """A network with a time of its own."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return network(x, t, y)

    def network_time(self, point: Any) -> float:
        return 0.25 * float(point.sigma)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Checks before every row that both halves' times are those of the lanes' rows.

    Returns the list to which the number of lanes of every row is added.
    """
    counts: list[int] = []
    step = Lanes._step

    def checked(self: Lanes, calls: str) -> None:
        expected = self.plan.times[self.stepper.row].repeat(self.halves)
        assert torch.equal(self.inputs.next_times, expected), len(counts)
        assert not self.inputs.t[len(expected) :].any(), "the rows that fill up a call stay 0"
        counts.append(self.batch)
        step(self, calls)

    monkeypatch.setattr(Lanes, "_step", checked)
    return counts


STEPS = {"steps": [3, 9, 4, 5, 2, 7]}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "no cond": ({}, {"cond": None, "uncond": None}),
    "own steps": ({}, STEPS),
    "guided": ({"guidance_scale": 2.0}, STEPS),
    "by a list": ({}, {"guidance_scale": [0.0, 1.0, 2.0, 1.0, 0.0, 3.0]}),
    "by a tensor": ({}, {"guidance_scale": torch.linspace(0, 2, 6), **STEPS}),
    "network_batch": ({"guidance_scale": 2.0, "network_batch": 5}, STEPS),
    "rows without a call": ({"solver": "repaint", "jump_length": 2, "jump_n_sample": 2}, {}),
    "edm": ({"solver": "edm"}, STEPS),
    "its own time": ({"model": Retimed(), "guidance_scale": 2.0}, STEPS),
    "inpainting": (
        {},
        {"mask": torch.tensor([1.0, 0, 1, 0, 1]), "known": torch.zeros(5), **STEPS},
    ),
    "classifier": ({}, {"classifier": lambda x, t: -(t.view(-1, 1) * x**2).sum(1) / 1e3}),
    "guidance of x0": ({}, {"guidance": lambda x0, x, t: x0 * (1 - t.view(-1, 1) / 1e4)}),
    "through the network": (
        {"guidance_scale": 2.0},
        {"guidance": lambda x0, x, t: x0 * (1 - t.view(-1, 1) / 1e4), "through_network": True},
    ),
}


def made(settings: dict[str, Any]) -> Sampler:
    settings = {"steps": 6, **settings}
    return Sampler(settings.pop("model", network), SCHEDULE, **settings)


@pytest.mark.parametrize("case", CASES)
def test_every_row_begins_with_its_times(case: str, rows: list[int]) -> None:
    """In one run, in lanes that are filled again and made fewer, and in a second run."""
    settings, call = CASES[case]
    sampler, arguments = made(settings), {**Y, "seed": 3, **call}
    whole = sampler.sample((6, 5), **arguments)
    if case == "own steps":
        assert len(set(rows)) > 1, "a run that ends narrows its lanes"
    assert torch.equal(sampler.sample((6, 5), **arguments), whole)
    rows.clear()
    parts = list(sampler.stream(6, (5,), batch_size=4, **arguments))
    assert torch.equal(torch.cat(parts), whole) and rows


def test_lanes_that_get_a_second_half(rows: list[int]) -> None:
    """The first guided sample doubles the network's inputs while another is on its way."""
    sampler, counts = made({}), (3, 9, 4, 5)
    requests = [
        Request(
            i,
            0,
            steps=n,
            guidance_scale=2.0 if i > 1 else 1.0,
            **{k: {"y": v["y"][0]} for k, v in Y.items()},
        )
        for i, n in enumerate(counts)
    ]
    alone = {k: {"y": v["y"][:1]} for k, v in Y.items()}
    served = list(sampler.serve(requests, (5,), batch_size=2))
    assert rows and len(served) == len(counts)
    for request, x in served:
        scale, i, n = request.guidance_scale, request.sample_id, request.steps
        again = sampler.sample(
            (1, 5), seed=0, sample_ids=[i], guidance_scale=scale, steps=n, **alone
        )
        assert torch.equal(again[0], x), i


class Replayed:
    """A device for graphs whose replays run the captured step again, as a graph does."""

    def warm(self, step: Callable[[], None]) -> None:
        step()

    def watch(self, step: Callable[[], None]) -> list[str]:
        step()
        return []

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        return step


@pytest.mark.parametrize("case", ["plain", "guided", "network_batch", "inpainting"])
def test_graphs_that_a_second_run_replays(
    case: str, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later run's graphs begin with the times of its first rows, whatever the last run left."""
    settings, call = CASES[case]
    arguments = {**Y, "seed": 3, **call, "steps": 3 + 2 * CHUNK}
    expected = made(settings).sample((6, 5), **arguments)
    monkeypatch.setattr(
        fastdiff.sampling.engine, "graphs", lambda *_: Graphs(Replayed(), required=True)
    )
    sampler = made(settings)
    for _ in range(2):
        assert torch.equal(sampler.sample((6, 5), **arguments), expected)


class Ops(TorchDispatchMode):
    """Notes the ops between the calls of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.steps:
            self.steps[-1].append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("whole_times", [True, False])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "unipc"])
def test_a_step_is_the_network_and_one_launch(solver: str, guided: bool, whole_times: bool) -> None:
    """No other torch op: a captured step is the network's nodes and the step kernel's."""
    result = torch.zeros(8 if guided else 4, 5)
    watch = Ops()

    class Still(Retimed):
        def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            watch.steps.append([])
            assert (t.dtype == torch.int64) == whole_times
            return result

    sampler = Sampler(
        Still().__call__ if whole_times else Still(),
        SCHEDULE,
        solver=solver,
        steps=6,
        guidance_scale=2.0 if guided else 1.0,
    )
    y = {k: {"y": v["y"][:4]} for k, v in Y.items()}
    with watch:
        sampler.sample((4, 5), seed=0, **y)
    assert len(watch.steps) >= 6
    for ops in watch.steps[:-1]:  # the last step is followed by the end of the run
        assert ops == ["reverse_step_out"]


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_stepper_writes_times(dtype: torch.dtype, copies: int) -> None:
    """With every way to bind a step, also one whose results get new memory."""
    plan = made({"solver": "ddpm"}).plan
    x, times = torch.randn(3, 5), torch.full((3 * copies,), -7, dtype=dtype)
    device_plan = DevicePlan.of(plan, x.device)
    stepper = Stepper(device_plan, x.clone(), seed=0, times=times)
    for row in range(len(plan)):
        stepper.step(torch.tanh(stepper.x), keep=row == 2)
        expected = plan.column("t")[row + 1]
        expected = round(expected) if dtype == torch.int64 else torch.tensor(expected).float()
        assert times.eq(expected).all(), row
