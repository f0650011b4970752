"""A server's plans: bounded memory and linear time whatever its requests ask for, and the bits of
each sample alone.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import Sampler, Schedule
from fastdiff.sampling import device_plan, plans
from fastdiff.sampling.device_plan import DevicePlan
from fastdiff.sampling.requests import Request
from fastdiff.sampling.row_space import RowSpace
from fastdiff.solvers import make_plan

SCHEDULE = Schedule.linear(1000)
SHAPE, LANES, MOST_ROWS = (3,), 4, 128


def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    shift = 0.0 if y is None else y[:, None]
    return torch.sin(x * 1.5 + t[:, None] * 0.01) + shift


class Conditioned(torch.nn.Module):
    """Computes its conditioning separately, so that it is computed ahead for all rows."""

    def condition(self, t: Tensor, **arguments: Any) -> Tensor:
        return t[:, None] * 0.01

    def decode(self, x: Tensor, condition: Tensor) -> Tensor:
        return torch.sin(x * 1.5 + condition)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.decode(x, self.condition(t))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[DevicePlan]]:
    """The device's plans that a test makes, each of few rows."""
    found: list[DevicePlan] = []
    init = DevicePlan.__init__

    def noting(self: DevicePlan, *arguments: Any, **keywords: Any) -> None:
        init(self, *arguments, **keywords)
        found.append(self)

    monkeypatch.setattr(DevicePlan, "__init__", noting)
    monkeypatch.setattr(device_plan, "_MOST_ROWS", MOST_ROWS)
    yield found


def of_steps(i: int) -> dict[str, Any]:
    return {"steps": 1 + i % 23}


def of_strengths(i: int) -> dict[str, Any]:
    y = torch.tensor(0.25)
    return {"guidance_scale": [1.0 + i, 2.0, 1.0], "cond": {"y": y}, "uncond": {"y": -y}}


def of_starts(i: int) -> dict[str, Any]:
    return {"steps": 9 + i % 14, "start": 1 + i % 8, "x_T": torch.full(SHAPE, 0.1 * i)}


KINDS: dict[str, tuple[Callable[[int], dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "steps": (of_steps, {"solver": "dpm++3m"}, {}),
    "noise": (of_steps, {"solver": "euler_ancestral"}, {}),
    "strengths": (of_strengths, {"steps": 3}, {}),
    "starts": (of_starts, {"solver": "dpm++2m"}, {}),
    "classifier": (of_steps, {"solver": "ddim"}, {"classifier": lambda x, t: -x.square().sum(1)}),
    "guidance": (of_steps, {"solver": "dpm++2m"}, {"guidance": lambda x0, x, t: x0.clamp(-1, 1)}),
    "conditions": (of_steps, {"model": Conditioned(), "solver": "heun"}, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_server_of_many_wishes(
    name: str, made: list[DevicePlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More wishes than the table has rows, each twice, and samples like those of one alone."""
    wish, settings, hooks = KINDS[name]
    sampler = Sampler(**{"model": network, "schedule": SCHEDULE, **settings})
    requests = [Request(i, seed=i % 3, **wish(i)) for i in range(90)] * 2
    written = 0
    upload = device_plan.upload

    def counting(values: Any, device: torch.device) -> Tensor:
        nonlocal written
        written += len(values) * (values.ndim == 2)
        return upload(values, device)

    monkeypatch.setattr(device_plan, "upload", counting)
    served = list(sampler.serve(requests, SHAPE, batch_size=LANES, **hooks))
    monkeypatch.undo()
    assert len(served) == len(requests)
    [table] = made
    lengths = [1 + len(sampler._engine.plans.get(r.steps, r.start, over(r))[0]) for r in requests]
    tables = 3 if name == "guidance" else 1
    assert written <= tables * sum(lengths), "every request writes the rows of its own plan at most"
    assert len(table.table) <= 2 * MOST_ROWS < sum(lengths)
    assert len(table._stretches) <= MOST_ROWS
    for request, x in served:
        alone = sampler.sample(
            (1, *SHAPE),
            seed=request.seed,
            sample_ids=[request.sample_id],
            steps=request.steps,
            start=request.start,
            x_T=None if request.x_T is None else request.x_T[None],
            guidance_scale=request.guidance_scale,
            cond=batched(request.cond),
            uncond=batched(request.uncond),
            **hooks,
        )
        assert torch.equal(x, alone[0])


def over(request: Request) -> tuple[float, ...] | None:
    scale = request.guidance_scale
    return None if scale is None else tuple(scale)


def batched(arguments: Any) -> Any:
    return None if arguments is None else {k: v[None] for k, v in arguments.items()}


def test_rows_in_flight_stay(made: list[DevicePlan]) -> None:
    """Plans that samples follow are never forgotten, however many rows they need together."""
    table = DevicePlan(torch.device("cpu"))
    longest = [make_plan(SCHEDULE, solver="ddim", steps=70 + i) for i in range(4)]
    firsts = [table.add(plan) for plan in longest]
    assert table.add(longest[0]) == firsts[0]
    expected = [torch.from_numpy(plan.table.copy()) for plan in longest]

    def rows(i: int) -> Tensor:
        found = table.table[firsts[i] : firsts[i] + len(longest[i].table)].clone()
        found[:, list(longest[i].columns).index("next")] -= firsts[i]
        return found

    for i in range(4):
        assert torch.equal(rows(i), expected[i])
    table.release(table.last_row[[firsts[0], firsts[1]]])  # one of two samples still follows 0
    other = make_plan(SCHEDULE, solver="ddim", steps=60)
    assert table.add(other) == firsts[1], "the rows of the plan that no sample follows"
    for i in (0, 2, 3):
        assert torch.equal(rows(i), expected[i])
    assert table.long


def test_the_plan_released_longest_ago_is_forgotten(made: list[DevicePlan]) -> None:
    table = DevicePlan(torch.device("cpu"))
    some = [make_plan(SCHEDULE, solver="ddim", steps=31, eta=eta) for eta in (0, 0.1, 0.2, 0.3)]
    firsts = [table.add(plan) for plan in some]
    table.release(table.last_row[firsts])
    table.add(some[0])
    table.release(table.last_row[firsts[:1]])
    version = table.version
    assert table.add(make_plan(SCHEDULE, solver="ddim", steps=31, eta=0.4)) == firsts[1]
    assert table.add(some[0]) == firsts[0]
    assert table.version == version, "nothing moved: captured steps stay"


def test_a_sampler_forgets_the_plan_used_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_MOST_PLANS", 3)
    held = Sampler(network, SCHEDULE, solver="ddim")._engine.plans
    first = held.of(3)
    for steps in (4, 5, 3, 6, 7):
        held.of(steps)
    assert held.of(3) is first and len(held._made) == 3
    assert pickle.loads(pickle.dumps(held)).of(3).hash == first.hash


def test_free_rows_against_a_list_of_rows() -> None:
    chance, space = random.Random(0), RowSpace()
    used: list[int] = []  # of every row, the number of its stretch; 0 for a free one
    stretches: dict[int, tuple[int, int]] = {}
    for number in range(1, 3000):
        if stretches and chance.random() < 0.5:
            first, count = stretches.pop(chance.choice(list(stretches)))
            space.give(first, count)
            used[first : first + count] = [0] * count
        else:
            count = chance.randrange(1, 9)
            end = max((i + 1 for i, n in enumerate(used) if n), default=0)
            free = [i for i in range(end - count) if not any(used[i : i + count])]
            found = space.fit(count)
            assert found == (free[0] if free else None)
            first = space.append(count) if found is None else found
            used += [0] * (first + count - len(used))
            assert not any(used[first : first + count])
            used[first : first + count] = [number] * count
            stretches[number] = first, count
        assert space.end == max((i + 1 for i, n in enumerate(used) if n), default=0)
