"""Configurations at the edge of what diffusers computes: thresholds, pure noise, short tables."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from cases import CLASSES, arguments, both, network, set_timesteps, start
from loops import plain, scaled

import fastdiff

THRESHOLDING = [n for n in CLASSES if "thresholding" in getattr(diffusers, n)().config]


def _states(scheduler: Any, name: str, first: int = 0) -> list[torch.Tensor]:
    case = plain(name)
    generator = torch.Generator().manual_seed(4)
    set_timesteps(case, scheduler, 10)
    x = start(scheduler, torch.float64)
    states = []
    for t in scheduler.timesteps[first:]:
        out = network(scaled(scheduler, x, t), case.kinds[0], case.learned)
        x = scheduler.step(out, t, x, **arguments(case, generator))[0]
        states.append(x)
    return states


def _compare(name: str, config: dict[str, Any], first: int = 0) -> None:
    theirs, ours = both(plain(name), plain(name).kinds[0], **config)
    wanted, got = _states(theirs, name, first), _states(ours, name, first)
    for a, b in zip(got, wanted, strict=True):
        assert b.isfinite().all()
        assert (a - b).abs().max() <= 2e-5 * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("ratio", [0.0, 0.87, 1.0])
@pytest.mark.parametrize("most", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("name", THRESHOLDING)
def test_thresholds_of_every_size_are_diffusers(name: str, most: float, ratio: float) -> None:
    limits = {"sample_max_value": most, "dynamic_thresholding_ratio": ratio}
    _compare(name, {"thresholding": True, **limits})


def test_a_largest_threshold_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected sample_max_value > 0, got 0"):
        _states(fastdiff.DDIMScheduler(thresholding=True, sample_max_value=0), "DDIMScheduler")


ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler"]
)
def test_epsilon_at_pure_noise_is_the_sign_that_a_clip_leaves(name: str) -> None:
    """With thresholding too, where diffusers' quantile between two infinities is NaN."""
    _compare(name, {**ZERO, "clip_sample": True, "prediction_type": "epsilon"})
    ours = both(plain(name), "epsilon", **ZERO, clip_sample=False, thresholding=True)[1]
    assert all(x.isfinite().all() for x in _states(ours, name))


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler"])
def test_epsilon_at_pure_noise_without_a_clip_is_refused_there_alone(name: str) -> None:
    config = {"rescale_betas_zero_snr": True, "clip_sample": False}
    if name != "LCMScheduler":
        config |= {"timestep_spacing": "trailing"}
    _compare(name, config, first=1)
    scheduler = getattr(fastdiff, name)(**config)
    with pytest.raises(ValueError, match=r"'epsilon' at timestep 999, where it is undefined"):
        _states(scheduler, name)


def test_an_inversion_that_predicts_x0_is_refused_at_clean_data_alone() -> None:
    _compare("DDIMInverseScheduler", {"prediction_type": "sample"}, first=1)
    scheduler = fastdiff.DDIMInverseScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match=r"'sample' at timestep 0, where it is undefined"):
        _states(scheduler, "DDIMInverseScheduler")


@pytest.mark.parametrize(
    "name", ["DDIM", "DDIMParallel", "DDIMInverse", "DDPM", "DDPMParallel", "LCM", "TCD"]
)
def test_tables_shorter_than_the_grid_refuse_their_missing_timesteps_alone(name: str) -> None:
    results = []
    for library in (diffusers, fastdiff):
        betas = torch.linspace(0.001, 0.02, 250).tolist()
        scheduler = getattr(library, f"{name}Scheduler")(trained_betas=betas)
        scheduler.set_timesteps(10)
        inside = [t for t in scheduler.timesteps if 100 <= t < 250]
        assert inside
        x = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
        for t in inside:
            draws = {"generator": torch.Generator().manual_seed(1)}
            more = {} if name == "DDIMInverse" else draws
            x = scheduler.step(0.3 * x.tanh(), t, x, **more)[0]
        results.append(x)
    assert (results[0] - results[1]).abs().max() <= 1e-5
    beyond = next(t for t in scheduler.timesteps if t >= 250)
    with pytest.raises(ValueError, match=r"expected timesteps in \[0, 250\), got"):
        scheduler.set_timesteps(10)
        scheduler.step(0.3 * x.tanh(), beyond, x)


@pytest.mark.parametrize("betas", [(0.0001, 0.002), (0.1, 2.0), (0.02, 1.0)])
@pytest.mark.parametrize(
    "name", ["DDIM", "DDPM", "LCM", "TCD", "PNDM", "DDIMInverse", "DDPMParallel"]
)
def test_steps_where_the_signal_is_not_lost_are_diffusers(
    name: str, betas: tuple[float, float]
) -> None:
    """Large betas leave no signal at high timesteps; low ones have numbers all the same."""
    more = {"skip_prk_steps": True} if name == "PNDM" else {}
    results = []
    for library in (diffusers, fastdiff):
        scheduler = getattr(library, f"{name}Scheduler")(
            beta_start=betas[0], beta_end=betas[1], **more
        )
        scheduler.set_timesteps(50)
        t = sorted(int(t) for t in scheduler.timesteps)[1]
        x = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
        draws = {"generator": torch.Generator().manual_seed(1)}
        more_step = {} if name in ("DDIMInverse", "PNDM") else draws
        results.append(scheduler.step(0.3 * x.tanh(), t, x, **more_step)[0])
    assert results[0].isfinite().all()
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [None, "other", "fixed_small_log"])
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDPMParallelScheduler"])
def test_other_variance_types_are_diffusers(name: str, kind: str | None) -> None:
    _compare(name, {"variance_type": kind})
