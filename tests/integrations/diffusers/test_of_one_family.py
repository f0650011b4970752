"""What only schedulers of one family of models have: memories of the caller, pairs of levels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import SHAPE, network
from test_few import both, compare, state
from tolerances import DROP_IN_LOOP, DROP_IN_STEP

import fastdiff
from fastdiff import reverse_step

SHIFTED: list[dict[str, Any]] = [
    {},
    {"prediction_type": "v_prediction", "timestep_spacing": "linspace"},
    {"prediction_type": "sample", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    {"set_alpha_to_one": False, "steps_offset": 1, "snr_shift_scale": 1.5},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
]


# classes that take steps from timesteps off their grids, and what else these take
OFF_GRID: dict[str, dict[str, Any]] = {
    name: {} for name in ("DDIM", "DDIMParallel", "DDIMInverse", "DDPM", "DDPMParallel", "UnCLIP")
} | {
    "CogVideoXDDIM": {},
    "CogVideoXDPM": {"old_pred_original_sample": None, "timestep_back": None},
    "RePaint": {"original_image": torch.zeros(SHAPE), "mask": torch.zeros(SHAPE)},
}


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def cogvideox(scheduler: Any, steps: int) -> torch.Tensor:
    """The loop of CogVideoX's pipelines, which hold the x0 of the step before."""
    scheduler.set_timesteps(steps)
    kind = scheduler.config.prediction_type
    generator, x, grid = torch.Generator().manual_seed(3), state(1), scheduler.timesteps
    old: Any = None
    for i, t in enumerate(grid):
        back = grid[i - 1] if i else None
        x, old = scheduler.step(network(x, kind), old, t, back, x, generator=generator)
    assert torch.isfinite(old).all()
    return torch.cat([x, old])


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("config", SHIFTED)
def test_cogvideox_dpm_with_the_pipelines_memory(
    config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(
        "CogVideoXDPMScheduler",
        lambda scheduler: cogvideox(scheduler, steps),
        monkeypatch,
        low=DROP_IN_LOOP["high"],
        **config,
    )


def test_cogvideox_dpms_draws_are_the_peers() -> None:
    """As many of the generator, of which steps of second order use the second one."""
    states = []
    for scheduler in both("CogVideoXDPMScheduler"):
        scheduler.set_timesteps(4)
        generator, x, (t, s) = torch.Generator().manual_seed(3), state(1), scheduler.timesteps[:2]
        scheduler.step(x, None, t, None, x, generator=generator)
        states.append(generator.get_state())
        result = scheduler.step(x, 0.1 * x, s, t, x, generator=generator, return_dict=True)
        states += [generator.get_state(), result.prev_sample, result.pred_original_sample]
    torch.testing.assert_close(states[4:6], states[:2], rtol=0, atol=0)
    torch.testing.assert_close(states[6:], states[2:4], rtol=1e-5, atol=1e-5)


def test_cogvideox_dpms_plan_is_what_its_steps_do() -> None:
    scheduler = fastdiff.CogVideoXDPMScheduler()
    scheduler.set_timesteps(5)
    table, x = torch.tensor(scheduler.plan().table), state(1)
    follow, old = x, None
    slots = torch.zeros(1, *x.shape)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    for i, t in enumerate(scheduler.timesteps):
        back = scheduler.timesteps[i - 1] if i else None
        x, old = scheduler.step(network(x), old, t, back, x, generator=generators[0])
        for _ in range(1 + (0 < i < 4)):
            z = torch.randn(x.shape, generator=generators[1])
        row = torch.full((len(x),), i)
        follow, slots = reverse_step(follow, network(follow), table, row, slots=slots, noise=z)
    assert (x - follow).abs().max() <= DROP_IN_STEP[False] * x.abs().max()


def test_cogvideox_dpm_without_a_timestep_for_its_memory_is_refused() -> None:
    scheduler = fastdiff.CogVideoXDPMScheduler()
    scheduler.set_timesteps(4)
    x, t = state(1), scheduler.timesteps[1]
    for old, back in ((x, None), (x[:1], scheduler.timesteps[0])):
        with pytest.raises(ValueError, match=r"expected timestep_back and old_pred_original_samp"):
            scheduler.step(x, old, t, back, x)


def test_gradients_through_a_memory_of_the_caller() -> None:
    gradients = []
    for scheduler in both("CogVideoXDPMScheduler"):
        scheduler.set_timesteps(4)
        x, out, old = (state(s).requires_grad_() for s in (1, 2, 3))
        t = scheduler.timesteps
        generator = torch.Generator().manual_seed(3)
        first, second = scheduler.step(out, old, t[2], t[1], x, generator=generator)
        ((first * state(4)).sum() + (second * state(5)).sum()).backward()
        gradients.append((first.detach(), second.detach(), x.grad, out.grad, old.grad))
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_sampler_of_a_shifted_schedule_has_the_drop_ins_tables() -> None:
    from fastdiff.integrations.diffusers.sampler_settings import sampler_settings

    for name in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"):
        for scheduler in both(name, snr_shift_scale=2.0, prediction_type="v_prediction"):
            network_of: Any = None  # not read
            schedule, settings = sampler_settings(scheduler, network_of, solver="ddim")
            found = torch.tensor([schedule.at(t).alpha for t in (0, 400, 999)])
            expected = scheduler.alphas_cumprod[[0, 400, 999]].sqrt().to(found)
            torch.testing.assert_close(found, expected)
            assert settings == {"prediction_type": "v"}


FLOWS: list[dict[str, Any]] = [
    {"shift": 3.0, "shift_terminal": 0.1},
    {"use_dynamic_shifting": True},
    {"use_karras_sigmas": True, "shift": 2.0},
]


@pytest.mark.parametrize("config", FLOWS)
def test_ltx_has_the_grid_of_the_flow_it_was_made_from(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pipelines exchange their flow's scheduler for it, with that configuration."""
    donor = both("FlowMatchEulerDiscreteScheduler", **config)[0]

    def run(plain: Any) -> torch.Tensor:
        scheduler = type(plain).from_config({**donor.config, "eta": 0.6})
        scheduler.set_timesteps(6, mu=0.7)
        generator, x = torch.Generator().manual_seed(3), state(1)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x), t, x, generator=generator, return_dict=False)[0]
        return torch.cat([x.flatten(), scheduler.timesteps, scheduler.sigmas])

    compare("LTXEulerAncestralRFScheduler", run, monkeypatch)


def test_ltx_refuses_levels_of_other_kinds() -> None:
    scheduler = fastdiff.LTXEulerAncestralRFScheduler()
    with pytest.raises(TypeError, match="expected sigmas as a list or a tensor, got ndarray"):
        scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 4).numpy())
    with pytest.raises(ValueError, match=r"expected sigmas of shape \[n\], got \[1, 2\]"):
        scheduler.set_timesteps(sigmas=[[1.0, 0.0]])


ANGLES: list[dict[str, Any]] = [
    {"num_inference_steps": 2},
    {"num_inference_steps": 1, "intermediate_timesteps": None},
    {"num_inference_steps": 7, "intermediate_timesteps": None, "max_timesteps": 1.5},
    {
        "num_inference_steps": 3,
        "intermediate_timesteps": None,
        "max_timesteps": None,
        "timesteps": [1.4, 1.1, 0.6, 0.1],
    },
]


@pytest.mark.parametrize("config", [{}, {"sigma_data": 1.0}])
@pytest.mark.parametrize("given", ANGLES, ids=[f"{a['num_inference_steps']}" for a in ANGLES])
def test_scm(given: Any, config: dict[str, Any]) -> None:
    """In float32, as the peer's angles always are."""

    def run(scheduler: Any) -> torch.Tensor:
        scheduler.set_timesteps(**given)
        generator, x = torch.Generator().manual_seed(3), state(1)
        for t in scheduler.timesteps[:-1]:
            x, x0 = scheduler.step(network(x), t, x, generator=generator, return_dict=False)
        follow = torch.randn(3, generator=generator)  # as many draws
        return torch.cat([x.flatten(), x0.flatten(), scheduler.timesteps, follow])

    expected, got = (run(scheduler) for scheduler in both("SCMScheduler", **config))
    assert (got - expected).abs().max() <= DROP_IN_STEP[True] * expected.abs().max()


@pytest.mark.parametrize("begun", [False, True])
def test_scm_takes_a_timestep_for_each_sample_in_a_run(begun: bool) -> None:
    """SANA-Sprint's pipelines pass them; before a run that has no index they are refused."""
    results = []
    for scheduler in both("SCMScheduler"):
        scheduler.set_timesteps(2)
        if begun:
            scheduler.set_begin_index(0)
        generator, x, t = torch.Generator().manual_seed(3), state(1), scheduler.timesteps
        if not begun:
            with pytest.raises((ValueError, RuntimeError, IndexError)):
                scheduler.step(x, t[0].expand(4), torch.cat([x, x]), generator=generator)
            scheduler.step(x, t[0], x, generator=generator)
        for when in t[begun ^ 1 : 2]:
            x = scheduler.step(network(x), when.repeat(2), x, generator=generator)[0]
        results.append(x)
    assert (results[1] - results[0]).abs().max() <= DROP_IN_STEP[True]


def test_scm_refuses_what_it_has_no_step_for() -> None:
    scheduler, x = fastdiff.SCMScheduler(), state(1)
    for wrong, words in (
        ({"num_inference_steps": 3}, "expected intermediate_timesteps=None"),
        ({"num_inference_steps": 2, "timesteps": [1.0, 0.5, 0.0]}, "expected one of timesteps"),
        (
            {"num_inference_steps": 2, "timesteps": [1.0], "max_timesteps": None},
            "expected a list or tensor of 3 timesteps",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            scheduler.set_timesteps(**wrong)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"Iterate over scheduler.timesteps\[:-1\]"):
        scheduler.step(x, scheduler.timesteps[2], x)


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_flow_maps_go_from_any_timestep_to_any_other(
    shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(scheduler: Any) -> torch.Tensor:
        scheduler.set_timesteps(4)
        grid, x, seen = scheduler.timesteps, state(1), []
        pairs = [(grid[0], 700.0), (700.0, grid[2]), (grid[2], grid[1]), (grid[1], 0.0)]
        for t, r in [*pairs, (torch.tensor(450.5), torch.tensor(10.0))]:
            x = scheduler.step(network(x), t, x, r_timestep=r).prev_sample
            seen += [x, torch.full_like(x, scheduler.step_index)]
        levels = torch.tensor([10.0, 500.0])
        return torch.cat([*seen, scheduler.scale_noise(state(2), levels, state(3))])

    compare("FlowMapEulerDiscreteScheduler", run, monkeypatch, shift=shift)
    with pytest.raises(ValueError, match="expected one of scheduler.timesteps, got 123.5"):
        fastdiff.FlowMapEulerDiscreteScheduler().step(state(1), 123.5, state(1))


@pytest.mark.parametrize("name", OFF_GRID)
def test_a_timestep_beyond_the_tables_is_refused(name: str) -> None:
    scheduler, x = getattr(fastdiff, f"{name}Scheduler")(), state(1)
    if not name.startswith("DDPM"):  # whose grid then leaves no other timestep
        scheduler.set_timesteps(5)
    for _ in range(2):  # also when its plan is known
        with pytest.raises(ValueError, match=r"expected timesteps in \[0, 1000\), got 5000"):
            scheduler.step(model_output=x, timestep=5000, sample=x, **OFF_GRID[name])


COSINES: list[dict[str, Any]] = [{}, {"scaler": 2.0}, {"scaler": 0.7, "s": 0.02}]
GIVEN = [1.0, 0.8, 0.33, 0.05]


@pytest.mark.parametrize("given", [{"num_inference_steps": 1}, {"num_inference_steps": 12}, None])
@pytest.mark.parametrize("config", COSINES)
def test_wuerstchen(given: Any, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's loop; its timesteps are given ones, too, or between those of the grid."""

    def run(scheduler: Any) -> torch.Tensor:
        scheduler.set_timesteps(**(given or {"timesteps": torch.tensor(GIVEN)}))
        generator, x = torch.Generator().manual_seed(3), state(1)
        for t in scheduler.timesteps[:-1]:
            for times in (t.expand(2), (t * 0.999)[None]):
                x = scheduler.step(network(x), times, x, generator=generator).prev_sample
        follow = torch.randn(3, generator=generator)  # as many draws
        noised = scheduler.add_noise(state(2), state(4), scheduler.timesteps[[0, 1]])
        return torch.cat([x.flatten(), noised.flatten(), scheduler.timesteps, follow])

    compare("DDPMWuerstchenScheduler", run, monkeypatch, **config)


def test_wuerstchens_noise_differs_from_step_to_step_off_the_grid() -> None:
    scheduler, zero = fastdiff.DDPMWuerstchenScheduler(), torch.zeros(SHAPE)
    scheduler.set_timesteps(5)
    draws = [
        scheduler.step(zero, torch.tensor([t]), zero).prev_sample.flatten() for t in (0.61, 0.41)
    ]
    assert abs(float(torch.corrcoef(torch.stack(draws))[0, 1])) < 0.3
    with pytest.raises(ValueError, match="expected one timestep for the whole batch"):
        scheduler.step(zero, torch.tensor([0.6, 0.4]), zero)
    with pytest.raises(ValueError, match="expected a tensor of 2 timesteps, got"):
        scheduler.step(zero, 0.6, zero)


@pytest.mark.parametrize("shift", [12.0, 3.0, 1.0])
@pytest.mark.parametrize("given", [2, 3, 20, [1.0, 0.7, 0.2, 0.0]])
def test_minimax(given: Any, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(scheduler: Any) -> torch.Tensor:
        if isinstance(given, int):
            scheduler.set_timesteps(given)
        else:
            scheduler.set_timesteps(sigmas=given)
        x = state(1)
        for t in scheduler.timesteps:
            x = scheduler.step(-network(x), t, x).prev_sample
        noised = [scheduler.scale_noise(x, t, state(2)) for t in (0.3, torch.tensor([0.1, 0.9]))]
        return torch.cat([x, *noised]).flatten()

    compare("MiniMaxH3Scheduler", run, monkeypatch, shift=shift)


def test_minimax_has_the_peers_grid_and_refuses_others() -> None:
    theirs, mine = both("MiniMaxH3Scheduler", shift=500.0)
    for scheduler in (theirs, mine):
        scheduler.set_shift(900.0)
        scheduler.set_timesteps(900)
    assert torch.equal(mine.timesteps, theirs.timesteps) and mine.shift == theirs.shift
    assert torch.equal(mine.sigmas, theirs.sigmas)
    assert mine.num_inference_steps == theirs.num_inference_steps
    for wrong in ({"num_inference_steps": 1}, {"sigmas": [1.0, 0.5]}, {"sigmas": [0.5, 0.5, 0.0]}):
        with pytest.raises(ValueError, match=r"fastdiff.MiniMaxH3Scheduler.set_timesteps: expect"):
            mine.set_timesteps(**wrong)
    with pytest.raises(ValueError, match="expected shift > 0"):
        mine.set_shift(0.0)


@pytest.mark.parametrize(
    "name", ["CogVideoXDPM", "SCM", "DDPMWuerstchen", "MiniMaxH3", "CogVideoXDDIM"]
)
def test_configurations_travel_both_ways(name: str) -> None:
    theirs, mine = both(f"{name}Scheduler")
    shown = [{k: v for k, v in s.config.items() if k[0] != "_"} for s in (theirs, mine)]
    assert shown[0] == shown[1]
    assert type(fastdiff.from_scheduler(theirs)) is type(mine)
    assert isinstance(mine, type(theirs))
    assert type(theirs).from_config(mine.config).config == theirs.config


def test_ltx_counts_to_its_last_level() -> None:
    """Of which the step, which given levels have, changes nothing."""
    counts = []
    for scheduler in both("LTXEulerAncestralRFScheduler"):
        scheduler.set_timesteps(sigmas=[1.0, 0.4, 0.0])
        for t in scheduler.timesteps:
            x = scheduler.step(state(2), t, state(1), return_dict=False)[0]
            counts.append(scheduler.step_index)
        assert torch.equal(x, state(1))
    assert counts[3:] == counts[:3] == [1, 2, 2]
