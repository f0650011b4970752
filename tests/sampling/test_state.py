"""`Sampler.start`, `advance` and `fork`: runs that the caller moves on, and branches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdiff import Sampler, Schedule

SOLVERS = ("ddpm", "dpm++2m", "dpm++2m_sde", "heun", "dpm++2s_ancestral")


def network(x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
    level = (t.float() / 1000).view(-1, *(1,) * (x.ndim - 1))
    shifted = 0.0 if shift is None else shift.view(-1, *(1,) * (x.ndim - 1))
    return x * (0.3 + level) + shifted


def sampler(solver: str = "ddpm", steps: int = 8, **settings: object) -> Sampler:
    return Sampler(network, Schedule.linear(1000), solver=solver, steps=steps, **settings)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("stops", [(100,), (1, 1, 100), (3, 2, 100), (0, 4, 4, 100)])
def test_a_state_that_is_moved_on_ends_with_the_bits_of_sample(
    solver: str, stops: tuple[int, ...]
) -> None:
    s = sampler(solver)
    state = s.start((5, 3, 4, 4), seed=3)
    for steps in stops:
        s.advance(state, steps)
    assert state.done
    torch.testing.assert_close(state.x, s.sample((5, 3, 4, 4), seed=3), rtol=0, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_branches_with_the_parents_ids_are_their_parents(solver: str) -> None:
    s = sampler(solver)
    state = s.start((4, 6), seed=3)
    s.advance(state, 3)
    branches = s.fork(state, [2, 0, 2], [2, 0, 2])
    s.advance(state, 100)
    s.advance(branches, 100)
    torch.testing.assert_close(branches.x, state.x[[2, 0, 2]], rtol=0, atol=0)


def test_branches_with_new_ids_draw_other_noise_and_each_its_own() -> None:
    s = sampler()
    state = s.start((4, 6), seed=3)
    s.advance(state, 3)
    before = state.x.clone()
    branches = s.fork(state, torch.tensor([1, 1, 1]), torch.tensor([1, 70, 71]))
    torch.testing.assert_close(branches.x, before[[1, 1, 1]], rtol=0, atol=0)
    s.advance(branches, 100)
    s.advance(state, 100)
    torch.testing.assert_close(branches.x[0], state.x[1], rtol=0, atol=0)
    distances = torch.cdist(branches.x, branches.x)
    assert (distances + torch.eye(3) > 1e-3).all()
    # a branch is a function of its id and its past, not of the other branches
    alone = s.start((4, 6), seed=3)
    s.advance(alone, 3)
    alone = s.fork(alone, [1], [71])
    s.advance(alone, 100)
    torch.testing.assert_close(alone.x[0], branches.x[2], rtol=0, atol=0)


def test_what_is_written_into_the_state_is_what_the_next_step_reads() -> None:
    s = sampler("ddim")
    first, second = s.start((2, 6), seed=0), s.start((2, 6), seed=0)
    s.advance(first, 2)
    s.advance(second, 2)
    second.x.mul_(2.0)
    s.advance(first, 1)
    s.advance(second, 1)
    ddim = torch.linalg.vector_norm(second.x) / torch.linalg.vector_norm(first.x)
    torch.testing.assert_close(ddim, torch.tensor(2.0), rtol=1e-5, atol=0)


def test_conditions_guidance_and_x0_go_with_the_branches() -> None:
    s = sampler("ddpm", guidance_scale=3.0)
    shifts = torch.tensor([0.1, 0.5, -0.4])
    arguments = {"cond": {"shift": shifts}, "uncond": {"shift": torch.zeros(3)}}
    whole = s.sample((3, 6), seed=1, **arguments)
    state = s.start((3, 6), seed=1, **arguments)
    s.advance(state, 4)
    branches = s.fork(state, [2, 2, 1, 0], [2, 9, 1, 0])
    torch.testing.assert_close(branches.x0, state.x0[[2, 2, 1, 0]], rtol=0, atol=0)
    s.advance(branches, 100)
    torch.testing.assert_close(branches.x[[3, 2, 0]], whole, rtol=0, atol=0)


def test_samples_of_different_lengths_end_when_their_plans_do() -> None:
    s = sampler()
    state = s.start((3, 6), seed=1, steps=[4, 8, 6])
    s.advance(state, 100)
    want = s.sample((3, 6), seed=1, steps=[4, 8, 6])
    torch.testing.assert_close(state.x, want, rtol=0, atol=0)


def test_resampling_by_weights_estimates_a_tilted_distribution() -> None:
    """Steering by a reward r: the samples' density grows by e^r, here of Gaussian data.

    Data N(0, 1) and r = a x have the tilted density N(a, 1) (Singhal et al. 2025, eq. 2 and 6,
    with the potentials of differences, which telescope).
    """

    def exact(x: Tensor, t: Tensor) -> Tensor:
        point = [schedule.at(float(v)) for v in t]
        sigma = torch.tensor([p.sigma for p in point], dtype=x.dtype)
        return sigma.view(-1, 1) * x  # eps of N(0, 1) data on a VP schedule

    schedule, a, n = Schedule.linear(1000), 0.7, 4096
    s = Sampler(exact, schedule, solver="ddpm", steps=40)
    state = s.start((n, 1), seed=5)
    draw = torch.Generator().manual_seed(0)
    kept = torch.zeros(n)
    generation = 1
    while not state.done:
        s.advance(state, 4)
        reward = a * (state.x if state.done else state.x0)[:, 0]
        weights = (reward - kept).softmax(0)
        parents = torch.multinomial(weights, n, replacement=True, generator=draw)
        state = s.fork(state, parents, torch.arange(n) + generation * n)
        kept = reward[parents]
        generation += 1
    mean = float(state.x.mean())
    assert abs(mean - a) < 0.12, mean  # 4,096 particles that share ancestors


@pytest.mark.parametrize(
    ("parents", "ids", "sentence"),
    [
        ([0, 4], [0, 1], r"expected parents in \[0, 4\), got \[0, 4\]"),
        ([-1], [0], r"expected parents in \[0, 4\), got \[-1\]"),
        ([], [], "expected parents as numbers of samples"),
        ([0.5], [0], "expected parents as numbers of samples"),
        ([0, 1], [0], "expected new_ids with 2 whole numbers, one per parent"),
        ([0], [-1], r"expected new_ids in \[0, 2\*\*56\)"),
        ([0], [2**56], r"expected new_ids in \[0, 2\*\*56\)"),
    ],
)
def test_forks_that_are_refused(parents: list[int], ids: list[int], sentence: str) -> None:
    s = sampler()
    state = s.start((4, 6), seed=3)
    with pytest.raises(ValueError, match=sentence):
        s.fork(state, parents, ids)


def test_starts_and_advances_that_are_refused() -> None:
    s = sampler()
    with pytest.raises(TypeError, match="expected arguments among .*, got 'callback'"):
        s.start((4, 6), callback=print)
    state = s.start((4, 6), seed=3)
    with pytest.raises(ValueError, match="expected steps >= 0, got -1"):
        s.advance(state, -1)
    assert "State([4, 6], row 0)" == repr(state)


def test_samples_of_one_start_id_begin_alike_and_draw_their_own_noise() -> None:
    s = sampler()
    starts, ids = [7, 7, 8, 8], [0, 1, 0, 1]
    state = s.start((4, 6), seed=3, sample_ids=ids, start_ids=starts)
    assert torch.equal(state.x[0], state.x[1]) and torch.equal(state.x[2], state.x[3])
    assert not torch.equal(state.x[0], state.x[2])
    s.advance(state, 1)
    steps = state.x - s.start((4, 6), seed=3, sample_ids=ids, start_ids=starts).x
    assert not torch.equal(steps[0], steps[1])
    s.advance(state, 100)
    again = s.sample((4, 6), seed=3, sample_ids=ids, start_ids=starts)
    torch.testing.assert_close(state.x, again, rtol=0, atol=0)
    plain = s.sample((2, 6), seed=3, sample_ids=[7, 1])
    torch.testing.assert_close(
        s.sample((2, 6), seed=3, sample_ids=[7, 1], start_ids=[7, 1]), plain, rtol=0, atol=0
    )
    with pytest.raises(ValueError, match=r"expected start_ids in \[0, 2\*\*56\)"):
        s.sample((1, 6), seed=0, start_ids=[-1])
