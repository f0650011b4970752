"""Lower limits of speed: they catch slower backends and lost vectorisation, but no busy machine.

The limits next to peers are a third of what was reached; those of a CPU level next to the baseline
are 0.6 to 0.7 of it. They are ratios of interleaved arms on one thread (benchmarks/harness.py), the
best of each arm. On a busy machine even the best call may have been disturbed: another process may
have taken the core for the whole of a short arm, or a part of the memory bandwidth, which changes a
ratio for as long as it runs. So a ratio below its limit is measured again, several times, and the
best times of all turns count. A slower kernel stays slower in every turn. The measured numbers are
in benchmarks/NOTES.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

import fastdiff
from fastdiff import Schedule, ops
from fastdiff.backend import library

sys.path.append(str(Path(__file__).resolve().parents[2]))
from benchmarks import harness, test_loops, test_ops  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not library.available(), reason="the C++ library is off"),
    pytest.mark.xdist_group("speed"),
]
BATCH = (256, 3, 32, 32)
TURNS = 6  # measurements, at most, before a ratio counts as too small
REST = 2.0  # seconds between two of them, in which a disturbance may end
SCHEDULE = Schedule.linear(1000)
# A third of these ratios: on AVX2 those measured (AMD Zen 3, November 2026), on AVX-512 the
# project's goals, except for randn in bfloat16, where torch is four times as fast as assumed
# (measured: 4.9).
FLOORS = {
    "avx512": {
        "randn": 0.8,
        "randn bfloat16": 1.6,
        "q_sample": 1.2,
        "gaussian_kl": 2.7,
        "ddpm diffusers": 1.7,
        "ddpm torch.compile": 7,
        "ddim diffusers": 1.3,
        "ddim torch.compile": 0.3,
    },
    "avx2": {
        "randn": 0.8,
        "randn bfloat16": 1.0,
        "q_sample": 1.0,
        "gaussian_kl": 1.7,
        "ddpm diffusers": 1.3,
        "ddpm torch.compile": 3.3,
        "ddim diffusers": 1.3,
        "ddim torch.compile": 0.27,
    },
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def floors() -> dict[str, float]:
    level = library.levels()[-1]
    if level not in FLOORS:
        pytest.skip(f"no figures for the level {level}")
    return FLOORS[level]


def reach(
    limits: Mapping[str, float],
    arms: Mapping[str, Callable[[], object]],
    *,
    ours: str = "fastdiff",
    **measure: float,
) -> None:
    """Asserts that each arm's time over that of `ours` is at least its limit.

    Args:
        limits: by arm.
        arms: at least `ours` and those of `limits`.
        measure: arguments of `harness.interleave`.
    """
    best: dict[str, float] = {}
    for turn in range(TURNS):
        if turn:
            time.sleep(REST)
        chosen = {name: arms[name] for name in (ours, *limits)}
        for name, times in harness.interleave(chosen, **measure).items():  # type: ignore[arg-type]
            best[name] = min(min(times), best.get(name, float("inf")))
        short = {n: r for n in limits if (r := best[n] / best[ours]) < limits[n]}
        if not short:
            return
    raise AssertionError(
        ", ".join(f"{got:.2f}x {name}, at least {limits[name]}x" for name, got in short.items())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_randn(dtype: torch.dtype) -> None:
    out, peer = torch.empty(BATCH, dtype=dtype), torch.empty(BATCH, dtype=dtype)
    limit = floors()["randn" if dtype == torch.float32 else "randn bfloat16"]
    arms = {
        "fastdiff": lambda: ops.randn(BATCH, seed=1, out=out),
        "torch": lambda: peer.normal_(),
    }
    with fastdiff.use("cpu"):
        reach({"torch": limit}, arms, seconds=1.5)


@pytest.mark.parametrize("op", ["randn", "q_sample", "gaussian_kl", "discretized_gaussian_nll"])
def test_the_levels_of_the_cpu(op: str) -> None:
    """In cache, where arithmetic is the limit; measured: AVX2 1.7 to 2.1, AVX-512 2.1 to 3."""
    shape = (16, 3, 32, 32)
    a, b, c, d = (torch.randn(shape) for _ in range(4))
    out, sums, workspace = torch.empty(shape), torch.empty(16), torch.empty(3 * 16)
    t, alpha, sigma = torch.arange(16), torch.tensor(SCHEDULE.alpha), torch.tensor(SCHEDULE.sigma)
    calls: dict[str, Callable[[], object]] = {
        "randn": lambda: ops.randn(shape, seed=1, out=out),
        "q_sample": lambda: ops.q_sample(a, t, alpha, sigma, seed=1, out=out),
        "gaussian_kl": lambda: ops.gaussian_kl(a, b, c, d, out=sums, workspace=workspace),
        "discretized_gaussian_nll": lambda: ops.discretized_gaussian_nll(a.clamp(-1, 1), b, c),
    }

    def at(level: str) -> Callable[[], object]:
        def call() -> object:
            library.set_level(level)
            return calls[op]()

        return call

    best = library.levels()[-1]
    if best == "baseline":
        pytest.skip("this processor has the baseline only")
    before = library.forced_level()
    try:
        with fastdiff.use("cpu"):
            limit = {"avx2": 1.2, "avx512": 1.4}[best]
            reach(
                {"baseline": limit}, {n: at(n) for n in ("baseline", best)}, ours=best, seconds=0.5
            )
    finally:
        library.set_level(None if before < 0 else library.LEVELS[before])


def test_q_sample() -> None:
    x0, t, out = torch.randn(BATCH), torch.arange(256) * 3, torch.empty(BATCH)
    alpha, sigma = torch.tensor(SCHEDULE.alpha), torch.tensor(SCHEDULE.sigma)
    a, s = (v.float()[t].view(-1, 1, 1, 1) for v in (alpha, sigma))
    arms = {
        "fastdiff": lambda: ops.q_sample(x0, t, alpha, sigma, seed=1, out=out),
        "torch": lambda: a * x0 + s * torch.randn_like(x0),
    }
    with fastdiff.use("cpu"):
        reach({"torch": floors()["q_sample"]}, arms, seconds=1.5)


def test_gaussian_kl() -> None:
    m1, v1, m2, v2 = (torch.randn(BATCH) for _ in range(4))
    out, workspace = torch.empty(256), torch.empty(3 * 256)
    arms = {
        "fastdiff": lambda: ops.gaussian_kl(m1, v1, m2, v2, out=out, workspace=workspace),
        "torch": lambda: (
            (0.5 * (-1 + v2 - v1 + torch.exp(v1 - v2) + (m1 - m2) ** 2 * torch.exp(-v2)))
            .flatten(1)
            .sum(1)
        ),
    }
    with fastdiff.use("cpu"):
        reach({"torch": floors()["gaussian_kl"]}, arms, seconds=1.5)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_reverse_step(solver: str) -> None:
    arms, check = test_ops.step_arms(solver, BATCH)
    check()
    limits = {peer: floors()[f"{solver} {peer}"] for peer in arms if peer != "fastdiff"}
    with fastdiff.use("cpu"):
        reach(limits, arms, seconds=1.5)


def test_a_step_of_one_sample_costs_microseconds() -> None:
    """A call with Python, next to diffusers' step (goals: 7.5, 10 times; measured: 4.6, 8)."""
    for solver, floor in (("ddim", 1.5), ("ddpm", 2.7)):
        arms, _ = test_ops.step_arms(solver, (1, 3, 32, 32))
        if "diffusers" not in arms:
            pytest.skip("diffusers is not installed")
        reach({"diffusers": floor}, arms, seconds=1.0)


@pytest.mark.parametrize("solver", test_loops.COMMON)
def test_a_loop_next_to_diffusers(solver: str) -> None:
    """Goals: 4 times for a batch of 256, 5 times for one sample; the limit is a third of that."""
    for shape, floor in (("256x3x32x32", 1.3), ("1x3x32x32", 1.7)):
        arms, check = test_loops.loop_arms(solver, test_loops.SHAPES[shape])
        check()
        if "diffusers" not in arms:
            pytest.skip("diffusers is not installed")
        reach({"diffusers": floor}, arms, rounds=3)


def test_the_engine_costs_little_compared_with_a_network() -> None:
    """Goal: 2 % of a run of the shipped U-Net; the limit is twice that, for the best of five."""
    for turn in range(TURNS):
        if turn:
            time.sleep(REST)
        if (least := min(test_loops.overhead(8))) <= 0.04:
            return
    raise AssertionError(f"{least:.1%} of a run")
