"""Lanes never change a sample's bits: any mixture of requests against one call per sample
(elementwise network).
"""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import Plan, Sampler, Schedule
from fastdiff.sampling.requests import Request

SCHEDULE = Schedule.linear(1000)
SHAPE = (2, 3)
SOLVERS = ["ddim", "ddpm", "dpm++2m", "unipc", "heun", "dpm++2m_sde"]


def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    column = (-1, *(1,) * (x.ndim - 1))
    return torch.tanh(x) * 0.3 + 0.0001 * t.view(column).to(x.dtype) + 0.1 * y.view(column)


def sampler_of(solver: str, **settings: Any) -> Sampler:
    return Sampler(network, SCHEDULE, solver=solver, steps=6, clip_range=1.5, **settings)


def random_request(r: random.Random, number: int, solver: str) -> Request:
    steps = r.choice([None, 1, 2, 3, 5, 9])
    rows = len(sampler_of(solver).plan) if steps is None else None
    request = Request(
        sample_id=r.randrange(2**56),
        seed=r.randrange(2**64),
        steps=steps,
        cond={"y": torch.tensor(r.randrange(5))},
        uncond={"y": torch.tensor(7)},
        guidance_scale=r.choice([None, 1.0, 0.0, 3.5, -1.0]),
    )
    state = torch.randn(SHAPE, generator=torch.Generator().manual_seed(number))
    kind = r.randrange(4)
    if kind == 1:
        request.x_T = state
    elif kind == 2:
        request.image, request.strength = state, r.choice([0.0, 0.3, 0.6, 1.0])
    elif kind == 3 and rows is not None and solver != "heun":
        request.x_T, request.start = state, r.randrange(rows + 1)
    if steps is None and r.random() < 0.3 and request.start == 0 and request.strength is None:
        assert rows is not None
        request.guidance_scale = [r.choice([0.0, 1.0, 2.5, -0.5]) for _ in range(rows)]
    return request


def alone(sampler: Sampler, q: Request) -> Tensor:
    lone = {
        name: None if v is None else v[None] for name, v in (("x_T", q.x_T), ("image", q.image))
    }
    halves = {
        name: {k: v[None] for k, v in getattr(q, name).items()} for name in ("cond", "uncond")
    }
    return sampler.sample(
        (1, *SHAPE),
        seed=q.seed,
        sample_ids=[q.sample_id],
        steps=q.steps,
        start=q.start,
        strength=q.strength,
        guidance_scale=q.guidance_scale,
        **lone,
        **halves,
    )[0]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(3))
def test_random_mixtures_of_requests(solver: str, seed: int) -> None:
    r = random.Random(f"{solver} {seed}")
    settings: dict[str, Any] = {
        "network_batch": r.choice([None, None, 3, 8]),
        "guidance_scale": r.choice([1.0, 2.0]),
    }
    settings["guidance_rescale"] = r.choice([0.0, 0.6])
    sampler = sampler_of(solver, **settings)
    requests = [random_request(r, i, solver) for i in range(r.randrange(5, 25))]
    pulled: list[int] = []

    def arriving() -> Any:
        for i, request in enumerate(requests):
            pulled.append(i)
            yield request

    lanes = r.choice([1, 2, 5, 16])
    got = {}
    for request, x in sampler.serve(arriving(), SHAPE, batch_size=lanes):
        assert len(pulled) <= len(got) + lanes + 1, (
            "requests are pulled when a lane is free, not before"
        )
        got[id(request)] = x
    assert len(got) == len(requests)
    for request in requests:
        assert torch.equal(got[id(request)], alone(sampler, request)), request


@pytest.mark.parametrize("solver", SOLVERS)
def test_streams_refill_lanes_and_keep_order(solver: str, backend: str) -> None:
    sampler = sampler_of(solver, guidance_scale=2.0)
    n = 23
    steps = [(i * 7) % 8 + 1 for i in range(n)]
    arguments: dict[str, Any] = {
        "cond": {"y": torch.arange(n) % 5},
        "uncond": {"y": torch.full((n,), 7)},
        "steps": steps,
        "guidance_scale": torch.linspace(-1, 3, n),
        "seed": 3,
    }
    whole = sampler.sample((n, *SHAPE), sample_ids=torch.arange(100, 100 + n), **arguments)
    batches = list(sampler.stream(n, SHAPE, batch_size=4, first_id=100, **arguments))
    assert [len(b) for b in batches] == [4, 4, 4, 4, 4, 3]
    assert torch.equal(torch.cat(batches), whole)
    for i in (0, 5, 22):
        one = {k: {"y": arguments[k]["y"][i : i + 1]} for k in ("cond", "uncond")}
        gamma = arguments["guidance_scale"][i : i + 1]
        x = sampler.sample(
            (1, *SHAPE), seed=3, sample_ids=[100 + i], steps=steps[i], guidance_scale=gamma, **one
        )
        assert torch.equal(x[0], whole[i])


def test_refilling_saves_network_calls() -> None:
    calls = []

    def counting(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    steps = [20, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    list(Sampler(counting, SCHEDULE).stream(11, (3,), batch_size=2, steps=steps, seed=0))
    assert sum(calls) == sum(steps), "one lane takes the long run, the other all short ones"


def test_stacked_plans_step_as_apart() -> None:
    plans = [
        Sampler(network, SCHEDULE, solver=s, steps=n).plan
        for s, n in (("ddim", 3), ("unipc", 5), ("heun", 2))
    ]
    stacked, firsts = Plan.stack(plans)
    assert firsts == [0, 4, 10] and stacked.used == plans[0].used | plans[1].used | plans[2].used
    for plan, first in zip(plans, firsts, strict=True):
        part = stacked.table[first : first + len(plan.table)].copy()
        part[:, stacked.columns.index("next")] -= first
        np.testing.assert_array_equal(part, plan.table)
    assert stacked.levels is not None and len(stacked.levels) == len(stacked.table)


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc", "dpm++3m", "lms"])
def test_a_multistep_run_from_a_later_row_has_a_plan_of_its_own(solver: str) -> None:
    """No history at hand: the rest of the grid begins at first order, as a run over that grid alone
    would.
    """
    sampler = Sampler(network, SCHEDULE, solver=solver, steps=8)
    x, y = torch.randn(3, 5), {"y": torch.tensor([1, 2, 3])}
    assert not sampler.plan.enterable(4) and sampler.plan.enterable(0) and sampler.plan.enterable(8)
    times = [int(t) for t in sampler.plan.column("t")[4:-1]]
    rest = Sampler(network, SCHEDULE, solver=solver, timesteps=times)
    assert torch.equal(
        sampler.sample(x_T=x, start=4, cond=y, seed=0), rest.sample(x_T=x, cond=y, seed=0)
    )
    sde = Sampler(network, SCHEDULE, solver="dpm++2m_sde", steps=8)
    rest, row = sde._engine.plans.get(None, 4, None)
    assert row == 0 and rest.column("noise_index")[:3].tolist() == [
        4,
        5,
        6,
    ], "noise that earlier rows did not use"
    heun = Sampler(network, SCHEDULE, solver="heun", steps=8)
    assert torch.equal(heun.sample(x_T=x, start=16 - 1, cond=y, seed=0), x), (
        "15 rows: the closing one"
    )
    with pytest.raises(
        ValueError, match=r"expected start at a row that remembers nothing, one of 0, 2, 4"
    ):
        heun.sample(x_T=x, start=3, cond=y, seed=0)


@pytest.mark.parametrize(
    "visited", [{"timesteps": [900, 600, 300, 90]}, {"sigmas": [10, 3, 1, 0.3]}]
)
def test_a_run_over_given_points_begins_at_one_of_them(visited: dict[str, list[float]]) -> None:
    """Also where `steps` happens to be their number; other steps are refused."""
    (name, points) = next(iter(visited.items()))
    sampler = Sampler(network, SCHEDULE, solver="dpm++2m", steps=4, **visited)
    rest = Sampler(network, SCHEDULE, solver="dpm++2m", **{name: points[2:]})
    x, y = torch.randn(3, 5), {"y": torch.tensor([1, 2, 3])}
    assert torch.equal(
        sampler.sample(x_T=x, start=2, cond=y, seed=0), rest.sample(x_T=x, cond=y, seed=0)
    )
    with pytest.raises(ValueError, match="expected no steps for a sampler of given timesteps or"):
        sampler.sample((3, 5), steps=10, cond=y, seed=0)


def test_a_seed_may_be_a_numpy_integer() -> None:
    y, seed = {"y": torch.tensor([1])}, 2**63 + 5
    sampler = Sampler(network, SCHEDULE, steps=2)
    assert torch.equal(
        sampler.sample((1, 5), seed=np.uint64(seed), cond=y),  # type: ignore[arg-type]
        sampler.sample((1, 5), seed=seed, cond=y),
    )


def test_image_to_image_begins_at_the_level_of_its_row() -> None:
    sampler = Sampler(network, SCHEDULE, solver="ddim", steps=10)
    image, y = torch.rand(2, 4), {"y": torch.tensor([1, 2])}
    seen: list[Any] = []
    x = sampler.sample(
        image=image, strength=0.4, seed=5, cond=y, callback=lambda i, t, x, x0: seen.append(i)
    )
    assert seen == [6, 7, 8, 9]
    assert sampler.plan.levels is not None
    alpha, sigma = sampler.plan.levels[6]
    from fastdiff import randn

    noised = (alpha * image.double() + sigma * randn((2, 4), seed=5).double()).float()
    by_hand = sampler.sample(x_T=noised, start=6, seed=5, cond=y)
    torch.testing.assert_close(x, by_hand, rtol=1e-6, atol=1e-6)
    assert torch.equal(sampler.sample(image=image, start=10, seed=5, cond=y), image), (
        "nothing is left to do"
    )
    both = sampler.sample(image=image, start=[6, 2], seed=5, cond=y)
    assert torch.equal(both[0], x[0]) and not torch.equal(both[1], x[1])
    for wrong, message in [
        ({"start": 3}, "expected x_T or image with start > 0"),
        ({"x_T": image, "image": image}, "got both"),
        ({"image": image, "strength": 1.5}, r"expected strength in \[0, 1\], got 1.5"),
        ({"x_T": image, "strength": 0.5}, "expected strength with image"),
        ({"image": image, "start": [1, 2, 3]}, "expected start as one value or 2, got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler.sample((2, 4), seed=0, cond=y, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["ddpm", "unipc"])
def test_threads_and_tasks_with_different_steps_share_a_sampler(solver: str) -> None:
    sampler = Sampler(network, SCHEDULE, solver=solver, steps=7)
    y = {"y": torch.tensor([1, 2, 3])}
    arguments = {
        f"{s} {n}": {"steps": n, "seed": s, "cond": y} for s in range(3) for n in (3, 20, 11)
    }
    expected = {k: sampler.sample((3, 40), **w) for k, w in arguments.items()}  # type: ignore[arg-type]
    got: dict[str, Tensor] = {}
    threads = [
        threading.Thread(target=lambda k=k, w=w: got.__setitem__(k, sampler.sample((3, 40), **w)))
        for k, w in arguments.items()
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(got[k], expected[k]) for k in arguments)

    async def task(key: str) -> list[Tensor]:
        parts = []
        w: dict[str, Any] = {**arguments[key], "cond": {"y": torch.tensor([1, 2, 3])}}
        for part in sampler.stream(3, (40,), batch_size=1, **w):
            parts.append(part)
            await asyncio.sleep(0)  # another task steps in between
        return parts

    async def both() -> list[list[Tensor]]:
        return list(await asyncio.gather(task("0 3"), task("1 20"), task("2 11")))

    for key, parts in zip(("0 3", "1 20", "2 11"), asyncio.run(both()), strict=True):
        assert torch.equal(torch.cat(parts), expected[key])


def test_ready_plans() -> None:
    y = {"y": torch.tensor([1, 2])}
    made = Sampler(network, SCHEDULE, solver="unipc", steps=5)
    ready = Sampler(network, plan=made.plan)
    assert torch.equal(ready.sample((2, 4), seed=1, cond=y), made.sample((2, 4), seed=1, cond=y))
    times: list[Any] = []

    def spying(x: Tensor, t: Tensor) -> Tensor:
        times.append(t.clone())
        return x * 0

    table = made.plan.table.copy()
    table[:-1, 1] += 0.25
    real = Sampler(spying, plan=Plan(table, initial_std=14.6))
    start: list[Tensor] = []
    real.sample((2, 4), seed=1, callback=lambda i, t, x, x0: start.append(x.clone()))
    assert times[0].dtype == torch.float32 and times[0].tolist() == [999.25] * 2
    from fastdiff import randn

    c = made.plan.table[0, 16] + made.plan.table[0, 17] * made.plan.table[0, 6]
    torch.testing.assert_close(start[0], c * 14.6 * randn((2, 4), seed=1), rtol=1e-4, atol=1e-4)
    for settings, message in [
        ({"eta": 0.5}, "expected no settings of a plan"),
        ({}, "expected no steps for a sampler"),
    ]:
        with pytest.raises(ValueError, match=message):
            Sampler(spying, plan=made.plan, **settings).sample((1, 2), seed=0, steps=3)
    with pytest.raises(ValueError, match="got a ready plan"):
        ready.save_pretrained("/nowhere")


def test_networks_may_name_their_time() -> None:
    class BySigma:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def network_time(self, point: Any) -> float:
            return point.sigma / point.alpha

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            self.seen.append(t.clone())
            return x

    model = BySigma()
    Sampler(model, SCHEDULE, steps=3).sample((2, 4), seed=0)
    rho = torch.tensor(SCHEDULE.sigma / SCHEDULE.alpha, dtype=torch.float32)
    assert [t.dtype for t in model.seen] == [torch.float32] * 3
    torch.testing.assert_close(torch.stack(model.seen)[:, 0], rho[[999, 666, 332]])


def test_requests_that_come_later_join_those_in_flight() -> None:
    sampler = sampler_of("unipc")
    requests = [
        Request(i, 0, steps=n, cond={"y": torch.tensor(i)}) for i, n in enumerate((9, 3, 5))
    ]
    log: list[Any] = []

    def arriving() -> Any:
        yield None
        for i, request in enumerate(requests):
            log.append(("comes", i))
            yield request
            yield None  # a step goes by
            yield None
        log.append("closed")

    got = {}
    for request, x in sampler.serve(arriving(), SHAPE, batch_size=2):
        log.append(("done", request.sample_id))
        got[request.sample_id] = x
    assert log.index(("comes", 1)) < log.index(("done", 0)), log
    assert log.index(("done", 1)) < log.index(("comes", 2)) < log.index(("done", 0)), log
    for request in requests:
        assert request.cond is not None
        y = {"y": request.cond["y"][None]}
        alone = sampler.sample(
            (1, *SHAPE), seed=0, sample_ids=[request.sample_id], steps=request.steps, cond=y
        )
        assert torch.equal(got[request.sample_id], alone[0])


def test_requests_that_do_not_fit_are_named() -> None:
    sampler = sampler_of("ddim")
    good = Request(0, 0, cond={"y": torch.tensor(1)})
    for bad, message in [
        (Request(1, 0, cond={"y": torch.tensor([1, 2])}), "expected 'y' as torch.int64 of shape"),
        (
            Request(1, 0, cond={"z": torch.tensor(1)}),
            "expected the same arguments in every request's cond",
        ),
        (Request(1, 0, cond={"y": torch.tensor(1)}, steps=0), "expected steps in"),
        (Request(1, -1, cond={"y": torch.tensor(1)}), "expected seed in"),
        (Request(1, 0, cond={"y": torch.tensor(1)}, guidance_scale=2.0), "expected uncond"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(sampler.serve([good, bad], SHAPE))
