"""Windows: parts of larger samples draw the noise that the whole has there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import Schedule, reference
from fastdiff.solvers import make_plan

WHOLE = (3, 5008)
CUTS = [(0, 4), (4, 1), (8, 40), (1020, 8), (1024, 1024), (2000, 3008), (0, 5008)]
SEED, IDS = 2**63 + 5, [7, 2**40 + 1, 3]


def part(x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    offset, size = window
    return x[:, offset : offset + size].contiguous()


@pytest.mark.parametrize("window", CUTS, ids=str)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_randn(window: tuple[int, int], mode: str, backend: str) -> None:
    draw = {"seed": SEED, "sample_ids": torch.tensor(IDS), "step": 9, "stream": 1, "mode": mode}
    whole = fastdiff.randn(WHOLE, **draw)
    got = fastdiff.randn((3, window[1]), window=window, **draw)
    if mode == "exact":
        assert torch.equal(got, part(whole, window))
    else:
        torch.testing.assert_close(got, part(whole, window), rtol=0, atol=1e-5)
    oracle = reference.randn(
        (3, window[1]), seed=SEED, sample_ids=IDS, step=9, stream=1, offset=window[0]
    )
    np.testing.assert_allclose(got.numpy(), oracle, rtol=0, atol=0 if mode == "exact" else 1e-5)


def test_short_samples(backend: str) -> None:
    """A batch of samples of a few elements, which the CPU draws across samples."""
    whole = fastdiff.randn((70, 24), seed=3)
    for offset, size in [(0, 4), (4, 3), (8, 16), (20, 4)]:
        got = fastdiff.randn((70, size), seed=3, window=(offset, size))
        assert torch.equal(got, part(whole, (offset, size)))


def test_an_offset_beyond_32_bits(backend: str) -> None:
    offset = 2**34 - 8
    got = fastdiff.randn((2, 8), seed=1, window=(offset, 8))
    want = reference.randn((2, 8), seed=1, offset=offset)
    assert np.array_equal(got.numpy(), want)


@pytest.mark.parametrize("window", CUTS, ids=str)
def test_q_sample(window: tuple[int, int], backend: str) -> None:
    schedule = Schedule.linear(1000)
    alpha, sigma = (torch.tensor(v) for v in (schedule.alpha, schedule.sigma))
    x0, t = fastdiff.randn(WHOLE, seed=0), torch.tensor([3, 500, 999])
    draw = {"seed": SEED, "sample_ids": torch.tensor(IDS)}
    whole = fastdiff.q_sample(x0, t, alpha, sigma, **draw)
    got = fastdiff.q_sample(part(x0, window), t, alpha, sigma, window=window, **draw)
    assert torch.equal(got, part(whole, window))


@pytest.mark.parametrize("window", CUTS, ids=str)
@pytest.mark.parametrize("solver", ["ddpm", "dpm++2m_sde"])
def test_reverse_step(solver: str, window: tuple[int, int], backend: str) -> None:
    plan = make_plan(Schedule.linear(1000), solver=solver, steps=5, clip_range=1.0)
    table, row = torch.tensor(plan.table), torch.tensor([0, 1, 2])
    x, out = fastdiff.randn(WHOLE, seed=0), fastdiff.randn(WHOLE, seed=1)
    slots = torch.stack([fastdiff.randn(WHOLE, seed=2 + i) for i in range(plan.slots)] or [x])
    draw = {"seed": SEED, "sample_ids": torch.tensor(IDS), "used": plan.used}
    whole, _ = fastdiff.reverse_step(x, out, table, row, slots=slots, **draw)
    cut = torch.stack([part(s, window) for s in slots])
    got, _ = fastdiff.reverse_step(
        part(x, window), part(out, window), table, row, slots=cut, window=window, **draw
    )
    assert torch.equal(got, part(whole, window))


@pytest.mark.cpu_only
def test_gradients_regenerate_the_windows_noise() -> None:
    schedule = Schedule.linear(1000)
    sigma = torch.tensor(schedule.sigma, requires_grad=True)
    x0, t = torch.zeros(3, 8, dtype=torch.float64), torch.tensor([3, 500, 999])
    alpha = torch.tensor(schedule.alpha)
    fastdiff.q_sample(x0, t, alpha, sigma, seed=1, window=(16, 8)).sum().backward()
    noise = fastdiff.randn((3, 24), seed=1, stream=2)[:, 16:].double().sum(1)
    torch.testing.assert_close(sigma.grad[t], noise, rtol=1e-6, atol=1e-6)


@pytest.mark.cpu_only
def test_the_log_probabilities_of_windows_add_up() -> None:
    plan = make_plan(Schedule.linear(1000), solver="ddpm", steps=5)
    table, row = torch.tensor(plan.table), torch.zeros(3, dtype=torch.int64)
    x, out = (fastdiff.randn(WHOLE, seed=i, dtype=torch.float64) for i in range(2))

    def log_prob(window: tuple[int, int] | None) -> torch.Tensor:
        a, b = (x, out) if window is None else (part(x, window), part(out, window))
        result = torch.empty(3, dtype=torch.float64)
        fastdiff.reverse_step(
            a, b, table, row, seed=1, window=window, out=torch.empty_like(a), log_prob_out=result
        )
        return result

    parts = [log_prob((0, 2000)), log_prob((2000, 8)), log_prob((2008, 3000))]
    torch.testing.assert_close(sum(parts), log_prob(None), rtol=1e-12, atol=0)


REFUSED = [
    ((2, 8), "offset is a multiple of 4, got 2"),
    ((4, 7), "of the 8 elements of a sample here, got 7"),
    ((-4, 8), r"expected window as \(offset, size\) or None, got \(-4, 8\)"),
    ((4,), r"expected window as \(offset, size\) or None"),
    (4, r"expected window as \(offset, size\) or None, got 4"),
    ((2**34, 8), r"at most 2\*\*34 elements in a sample"),
]


@pytest.mark.cpu_only
@pytest.mark.parametrize(("window", "sentence"), REFUSED, ids=str)
def test_windows_that_are_refused(window: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fastdiff.randn((2, 8), seed=0, window=window)  # type: ignore[arg-type]
    plan = make_plan(Schedule.linear(1000), solver="ddpm", steps=5)
    x, row = torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=sentence):
        fastdiff.reverse_step(x, x, torch.tensor(plan.table), row, seed=0, window=window)  # type: ignore[arg-type]


@pytest.mark.cpu_only
def test_rows_of_whole_samples_are_refused() -> None:
    plan = make_plan(Schedule.linear(1000), solver="ddpm", steps=5, dynamic_threshold=0.9)
    x, row = torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="got rows that need whole samples"):
        fastdiff.reverse_step(x, x, torch.tensor(plan.table), row, seed=0, window=(8, 8))
    with pytest.raises(ValueError, match=r"expected stream in \[0, 256\), got 300"):
        fastdiff.reverse_step(x, x, torch.tensor(plan.table), row, seed=0, stream=300)
