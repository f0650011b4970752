"""What only some drop-ins have: masks, pairs of timesteps, tokens, growing images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import SHAPE, diffusers, lift, network, ours
from tolerances import DROP_IN_FLOAT64, DROP_IN_LOOP, DROP_IN_STEP

from fastdiff import randn, reverse_step


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def both(name: str, **config: Any) -> tuple[Any, Any]:
    return getattr(diffusers, name)(**config), getattr(ours, name)(**config)


def state(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return randn(shape, seed=seed, dtype=torch.get_default_dtype())


def compare(
    name: str,
    run: Callable[[Any], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    low: float = DROP_IN_LOOP["low"],
    **config: Any,
) -> None:
    """The result of `run` on both schedulers, untouched (to `low`) and lifted to float64."""
    for tolerance in (low, DROP_IN_FLOAT64):
        expected, got = (run(scheduler) for scheduler in both(name, **config))
        assert got.dtype == expected.dtype
        assert (got - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)
        lift(monkeypatch, name)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "config", [{}, {"clip_sample": False}, {"beta_schedule": "squaredcos_cap_v2"}]
)
def test_repaint(eta: float, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's loop with its steps back, by the same draws."""

    def run(scheduler: Any) -> torch.Tensor:
        scheduler.set_timesteps(20, jump_length=4, jump_n_sample=3)
        scheduler.eta = eta
        generator = torch.Generator().manual_seed(3)
        image, mask = state(7), (state(8)[:, :1] > 0).to(state(8))
        x, last = state(1), int(scheduler.timesteps[0]) + 1
        for t in scheduler.timesteps:
            if t < last:
                out = network(x)
                x, x0 = scheduler.step(out, t, x, image, mask, generator, return_dict=False)
                assert torch.isfinite(x0).all()
            else:
                x = scheduler.undo_step(x, last, generator)
            last = t
        return x

    compare("RePaintScheduler", run, monkeypatch, **config)


@pytest.mark.parametrize(
    "steps, length, times",
    [(20, 4, 3), (20, 10, 10), (7, 3, 2), (250, 10, 10), (1, 1, 1), (2000, 10, 2)],
)
def test_repaint_visits_the_same_timesteps(steps: int, length: int, times: int) -> None:
    theirs, mine = both("RePaintScheduler")
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(steps, length, times)
    assert torch.equal(mine.timesteps, theirs.timesteps)
    assert mine.num_inference_steps == theirs.num_inference_steps


def test_repaint_keeps_the_known_part_and_draws_anew_at_repeated_timesteps() -> None:
    scheduler = ours.RePaintScheduler(eta=1.0)
    scheduler.set_timesteps(10, 2, 2)
    image, mask = state(7), (state(8) > 0).float()
    x = state(1)
    first, again = (
        scheduler.step(network(x), 500, x, image, mask, return_dict=False)[0] for _ in range(2)
    )
    assert (first != again).float().mean() > 0.9
    end = scheduler.step(network(x), 0, x, image, mask).prev_sample
    assert torch.equal(end[mask == 1], image[mask == 1])
    with pytest.raises(NotImplementedError):
        scheduler.add_noise(x, x, torch.tensor([3]))


def test_repaint_undoes_a_step_in_one_draw_of_the_same_variance() -> None:
    """Without a generator one draw replaces T // n draws.

    The variance of n betas' noise is that of their product.
    """
    scheduler = ours.RePaintScheduler()
    scheduler.set_timesteps(10, 2, 2)
    many = scheduler.undo_step(torch.zeros(1, 200_000), 400)
    left = float(scheduler.alphas[400:500].double().prod())
    assert math.isclose(float(many.var()), 1 - left, rel_tol=0.01)
    assert torch.allclose(
        scheduler.undo_step(torch.ones(1, 200_000), 400).mean(),
        torch.tensor(left).sqrt(),
        atol=0.01,
    )


def test_repaints_plan_is_the_way_of_an_empty_mask() -> None:
    """Rows without a network call are the jumps back; the others have the pipeline's timesteps."""
    scheduler = ours.RePaintScheduler(eta=1.0)
    scheduler.set_timesteps(6, 2, 2)
    plan = scheduler.plan()
    host = scheduler.timesteps.tolist()
    called = [t for i, t in enumerate(host) if i == 0 or t < host[i - 1]]
    assert plan.column("t")[plan.column("network") == 1].tolist() == called
    assert len(plan) == len(host)


@pytest.mark.parametrize("variance_type", ["fixed_small_log", "learned_range"])
@pytest.mark.parametrize("steps", [2, 3, 10, 50])
def test_unclip_with_the_pipelines_pairs(
    variance_type: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(scheduler: Any) -> torch.Tensor:
        scheduler.set_timesteps(steps)
        generator, x, grid = torch.Generator().manual_seed(3), state(1), scheduler.timesteps
        for i, t in enumerate(grid):
            before = grid[i + 1] if i + 1 < len(grid) else None
            out = network(x, learned=variance_type == "learned_range")
            x = scheduler.step(
                out, t, x, prev_timestep=before, generator=generator, return_dict=False
            )[0]
        return x

    # the first x0 is a difference divided by alpha_T = 5e-5, on both sides, which raises its
    # float32 roundings
    compare("UnCLIPScheduler", run, monkeypatch, low=2.0**-24 / 4.9e-5, variance_type=variance_type)


def test_unclips_plan_is_what_its_steps_do() -> None:
    scheduler = ours.UnCLIPScheduler()
    scheduler.set_timesteps(5)
    grid, x = scheduler.timesteps, state(1)
    table, generator = scheduler.plan().table, torch.Generator().manual_seed(3)
    follow, generators = x, torch.Generator().manual_seed(3)
    for i, t in enumerate(grid):
        before = grid[i + 1] if i + 1 < len(grid) else None
        x = scheduler.step(network(x), t, x, prev_timestep=before, generator=generator).prev_sample
        z = torch.randn(SHAPE, generator=generators)
        row = torch.full((SHAPE[0],), i)
        follow = reverse_step(follow, network(follow), torch.tensor(table), row, noise=z)
    assert (x - follow).abs().max() <= DROP_IN_STEP[False] * x.abs().max()
    with pytest.raises(ValueError, match="num_inference_steps"):
        scheduler.set_timesteps(1)


def test_steps_off_a_counted_grid_draw_noise_of_their_own() -> None:
    """Every such step is the first row of a plan, yet no two timesteps share a draw."""
    scheduler = ours.UnCLIPScheduler(clip_sample=False)
    scheduler.set_timesteps(5)
    zero = torch.zeros(SHAPE)
    draws = [
        scheduler.step(zero, t, zero, prev_timestep=t - 100).prev_sample.flatten()
        for t in (900, 700)
    ]
    assert abs(float(torch.corrcoef(torch.stack(draws))[0, 1])) < 0.3


@pytest.mark.parametrize("stochastic", [False, True])
def test_tokens_at_levels_of_their_own(stochastic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (2, 6, 5)

    def run(scheduler: Any) -> torch.Tensor:
        scheduler.set_timesteps(8)
        generator, x = torch.Generator().manual_seed(3), state(1, shape)
        share = torch.linspace(0, 1, 12, dtype=torch.get_default_dtype()).reshape(2, 6)
        for t in scheduler.timesteps:
            levels = torch.minimum(t.to(share), 1000 * share)
            given = {"generator": generator, "per_token_timesteps": levels, "return_dict": False}
            x = scheduler.step(-network(x), t, x, **given)[0]
        return x

    compare(
        "FlowMatchEulerDiscreteScheduler",
        run,
        monkeypatch,
        shift=2.0,
        stochastic_sampling=stochastic,
    )


@pytest.mark.parametrize("mode", ["bicubic", "nearest"])
def test_pictures_grow_from_step_to_step(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(scheduler: Any) -> torch.Tensor:
        scheduler.set_timesteps(4)
        generator, x = torch.Generator().manual_seed(3), state(1)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x), t, x, generator=generator).prev_sample
        assert x.shape == (2, 4, 12, 10)
        return x

    compare(
        "FlowMatchLCMScheduler", run, monkeypatch, scale_factors=[1.25, 1.5, 2.0], upscale_mode=mode
    )


def test_growing_pictures_need_a_factor_for_each_step() -> None:
    scheduler = ours.FlowMatchLCMScheduler(scale_factors=[2.0])
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="scale_factors"):
        scheduler.step(state(1), scheduler.timesteps[0], state(1))


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"])
def test_forward_noising_of_flows(name: str) -> None:
    theirs, mine = both(name, shift=3.0)
    x, z = state(1), state(2)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(7)
    for t in (theirs.timesteps[2:4], theirs.timesteps[:1].repeat(2)):
        torch.testing.assert_close(mine.scale_noise(x, t, z), theirs.scale_noise(x, t, z))
    for scheduler in (theirs, mine):
        scheduler.set_begin_index(3)
    t = theirs.timesteps[3:4].repeat(2)
    torch.testing.assert_close(mine.scale_noise(x, t, z), theirs.scale_noise(x, t, z))
    for scheduler in (theirs, mine):  # in a run it is the next step's level
        scheduler.step(x, scheduler.timesteps[3], x)
    torch.testing.assert_close(mine.scale_noise(x, t, z), theirs.scale_noise(x, t, z))


def test_forward_noising_of_the_heun_flow_moves_its_index() -> None:
    theirs, mine = both("FlowMatchHeunDiscreteScheduler", shift=3.0)
    x, z = state(1), state(2)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(7)
    t = theirs.timesteps[4]
    torch.testing.assert_close(mine.scale_noise(x, t, z), theirs.scale_noise(x, t, z))
    assert mine.step_index == theirs.step_index
    for i in range(4, 8):  # a run from there on
        assert mine.state_in_first_order == theirs.state_in_first_order
        expected = theirs.step(network(x), theirs.timesteps[i], x).prev_sample
        got = mine.step(network(x), mine.timesteps[i], x).prev_sample
        torch.testing.assert_close(
            got, expected, rtol=DROP_IN_STEP[False], atol=DROP_IN_STEP[False]
        )
        x = expected


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_gradients_of_both_results(name: str) -> None:
    """A step under autograd gives what it gives without, and the peer's gradients."""
    theirs, mine = both(name)
    gradients = []
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(4)
        x, out = state(1).requires_grad_(), state(2).requires_grad_()
        generator = torch.Generator().manual_seed(3)
        first, second = scheduler.step(
            out, scheduler.timesteps[1], x, generator=generator, return_dict=False
        )
        ((first * state(4)).sum() + (second * state(5)).sum()).backward()
        gradients.append((first.detach(), second.detach(), x.grad, out.grad))
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_both_results_in_the_samples_dtype(name: str, dtype: torch.dtype) -> None:
    scheduler = getattr(ours, name)()
    scheduler.set_timesteps(4)
    x = state(1).to(dtype)
    result = scheduler.step(x, scheduler.timesteps[0], x)
    assert [v.dtype for v in result.values()] == [dtype, dtype]


def test_flows_answer_in_the_networks_dtype() -> None:
    """A float32 state and a bfloat16 network: diffusers' step ends in the network's."""
    for name in (
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
    ):
        for scheduler in both(name):
            scheduler.set_timesteps(4)
            x = state(1)
            got = scheduler.step(x.bfloat16(), scheduler.timesteps[0], x).prev_sample
            assert got.dtype == torch.bfloat16
