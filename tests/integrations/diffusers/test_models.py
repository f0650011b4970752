"""What only schedulers of one family of models have: memories of the caller, pairs of levels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import network
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


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def cogvideox(scheduler: Any, steps: int) -> torch.Tensor:
    """The loop of CogVideoX's pipelines, which hold the x0 of the step before."""
    scheduler.set_timesteps(steps)
    kind = scheduler.config.prediction_type
    generator, x, old = torch.Generator().manual_seed(3), state(1), None
    grid = scheduler.timesteps
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
            schedule, settings = sampler_settings(scheduler, None, solver="ddim")
            found = torch.tensor([schedule.at(t).alpha for t in (0, 400, 999)])
            expected = scheduler.alphas_cumprod[[0, 400, 999]].sqrt().to(found)
            torch.testing.assert_close(found, expected)
            assert settings == {"prediction_type": "v_prediction"}


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
