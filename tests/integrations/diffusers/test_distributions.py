"""Drop-ins with diffusers' noise in distribution only: each side follows its own Brownian path.

With a linear network a loop of linear steps is Gaussian, so mean and variance over many elements
determine it; the correlation of a step's two draws enters the variance.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import moments

import fastdiff

diffusers = pytest.importorskip(
    "diffusers", reason="diffusers is not installed here (make test installs it)"
)
pytest.importorskip("torchsde", reason="diffusers' Brownian trees need torchsde")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have:UserWarning"),
]
SHAPE = (1, 1, 400, 500)
N = 400 * 500
RUNS: list[tuple[str, dict[str, Any], int]] = [
    ("DPMSolverSDEScheduler", {"noise_sampler_seed": 3}, 2),
    ("DPMSolverSDEScheduler", {"noise_sampler_seed": 4, "use_karras_sigmas": True}, 4),
    ("CosineDPMSolverMultistepScheduler", {"sigma_min": 5.0}, 4),
    ("CosineDPMSolverMultistepScheduler", {"solver_order": 1, "sigma_min": 5.0}, 3),
]


def loop(scheduler: Any, x: torch.Tensor, steps: int, **arguments: Any) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        out = 0.6 * scheduler.scale_model_input(x, t)
        x = scheduler.step(out, t, x, return_dict=False, **arguments)[0]
    return x


@pytest.mark.parametrize("stop", [None, -1], ids=["whole", "before clean data"])
@pytest.mark.parametrize("name, config, steps", RUNS)
def test_mean_and_variance_are_those_of_diffusers(
    name: str, config: dict[str, Any], steps: int, stop: Any
) -> None:
    """From a constant state all variance comes from the noise: its weights and its correlations."""
    results = []
    for module in (diffusers, fastdiff):
        scheduler = getattr(module, name)(**config)
        scheduler.set_timesteps(steps)
        generator = {"generator": torch.Generator().manual_seed(5)} if "Cosine" in name else {}
        x = torch.full(SHAPE, 3.0)
        for t in scheduler.timesteps[:stop]:
            out = 0.6 * scheduler.scale_model_input(x, t)
            x = scheduler.step(out, t, x, return_dict=False, **generator)[0]
        results.append(x.double())
    theirs, ours = results
    spread, allowed = float(theirs.std()), moments(N)
    assert abs(float(ours.mean() - theirs.mean())) <= 2 * allowed["mean"] * spread + 1e-6
    assert abs(float(ours.var() / theirs.var()) - 1) <= 2 * allowed["variance"]
    assert not torch.equal(ours, theirs)


def test_a_seed_names_the_noise() -> None:
    def run(seed: Any, x: torch.Tensor) -> torch.Tensor:
        return loop(fastdiff.DPMSolverSDEScheduler(noise_sampler_seed=seed), x, 3)

    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(7, x), run(7, x))
    assert not torch.equal(run(7, x), run(8, x))
    together = run([7, 8, 7], x[:1].expand(3, -1, -1, -1))
    assert torch.equal(together[0], together[2]) and not torch.equal(together[0], together[1])
    assert torch.equal(run([8], x[:1])[0], together[1])
    torch.manual_seed(1)
    unnamed = run(None, x)
    torch.manual_seed(1)
    assert torch.equal(run(None, x), unnamed) and not torch.equal(run(None, x), unnamed)
    with pytest.raises(ValueError, match="a seed for each of 3 samples"):
        run([1, 2], x)


def test_a_generator_names_the_noise_of_a_cosine_run_and_is_not_drawn_from() -> None:
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = fastdiff.CosineDPMSolverMultistepScheduler()
    generator = torch.Generator().manual_seed(11)
    state = generator.get_state()
    first = loop(scheduler, x, 4, generator=generator)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(loop(scheduler, x, 4, generator=generator), first)
    pair = [torch.Generator().manual_seed(s) for s in (5, 6)]
    listed = loop(scheduler, x, 4, generator=pair)
    alone = loop(scheduler, x[1:].repeat(2, 1, 1, 1), 4, generator=pair[::-1])
    assert torch.equal(listed[1], alone[0]) and not torch.equal(listed, first)
