"""A diffusion as a Markovian hierarchy, against the bounds of fastdiff.theory.likelihood."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from gaussian import Gaussian as OptimalNetwork
from tolerances import BOUND
from torch import Tensor

from fastdiff import Schedule, ops
from fastdiff.models import MLP
from fastdiff.theory.likelihood import elbo, elbo_two_variable, optimal_variance
from fastdiff.theory.variational import DiffusionHVAE


def mmse(schedule: Schedule, std: float) -> np.ndarray:
    return std**2 * schedule.sigma**2 / (schedule.alpha**2 * std**2 + schedule.sigma**2)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("likelihood", ["gaussian", "discretized"])
def test_with_a_schedule_s_encoder_it_is_the_vdm_draw_by_draw(
    variance: str, likelihood: str, backend: str
) -> None:
    """The recursion's sum is `elbo_two_variable` of the same noise (Luo 2022, eq. 29, 44, 58)."""
    schedule = Schedule.linear(6, beta_end=0.4)
    inner = OptimalNetwork(schedule, "v", 0.1, 0.8)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return (
            torch.cat([inner(x, t), 0.3 * torch.ones_like(x)], 1)
            if variance == "learned_range"
            else inner(x, t)
        )

    x0 = (
        torch.randint(0, 256, (5, 4), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    ).double()
    options = {
        "prediction_type": "v",
        "variance": variance,
        "likelihood": likelihood,
        "clip_range": 1.0,
    }
    chain = DiffusionHVAE(network, schedule, **options)
    terms = chain.terms(x0, seed=3)
    assert list(terms) == ["reconstruction", *(f"consistency_{t}" for t in range(1, 6)), "prior"]
    expected = elbo_two_variable(network, x0, schedule, seed=3, **options)
    torch.testing.assert_close(sum(terms.values()), expected, rtol=BOUND, atol=BOUND)
    torch.testing.assert_close(chain.loss(x0, seed=3), expected, rtol=BOUND, atol=BOUND)
    torch.testing.assert_close(
        sum(chain.bound(x0, seed=3).values()), expected, rtol=BOUND, atol=BOUND
    )


def test_in_expectation_both_bounds_are_one() -> None:
    schedule, n = Schedule.linear(6, beta_end=0.4), 20_000
    network = OptimalNetwork(schedule, "v", 0.1, 0.8)
    x0 = 0.5 * ops.randn((n, 2), seed=1, dtype=torch.float64)
    options = {"prediction_type": "v", "variance": "fixed_small", "likelihood": "gaussian"}
    chain = DiffusionHVAE(network, schedule, **options)
    difference = chain.loss(x0, seed=3) - elbo(network, x0, schedule, seed=4, **options).total()
    assert difference.mean().abs() < 5 * difference.std() / math.sqrt(n) and difference.std() > 0.1


def test_with_the_optimal_decoder_every_draw_gives_the_likelihood(backend: str) -> None:
    """For N(0, 1) data the recursion gives -ln p(x0) for all z_1 … z_L."""
    schedule = Schedule.cosine(9)
    options = {
        "prediction_type": "x0",
        "variance": optimal_variance(schedule, mmse(schedule, 1.0)),
        "likelihood": "gaussian",
    }
    chain = DiffusionHVAE(OptimalNetwork(schedule, "x0"), schedule, **options)
    x0 = ops.randn((4, 3), seed=0, dtype=torch.float64)
    expected = 0.5 * (x0.square() + math.log(2 * math.pi)).sum(1)
    for seed in (1, 2):
        torch.testing.assert_close(chain.loss(x0, seed=seed), expected, rtol=BOUND, atol=BOUND)


def test_a_diffusion_hierarchy_rebuilds_itself() -> None:
    torch.manual_seed(0)
    network = MLP(dim=2, width=8, depth=1, emb=8)
    chain = DiffusionHVAE(
        network, Schedule.linear(5), prediction_type="v", variance=[0.1] * 5, likelihood="gaussian"
    )
    again = DiffusionHVAE(**json.loads(json.dumps(chain.config)))
    again.load_state_dict(chain.state_dict())
    x0 = ops.randn((3, 2), seed=0)
    assert torch.equal(again.loss(x0, seed=1), chain.loss(x0, seed=1))
    with pytest.raises(TypeError, match="expected a network of fastdiff.models"):
        _ = DiffusionHVAE(lambda x, t: x, Schedule.linear(5)).config
