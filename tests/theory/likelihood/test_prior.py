"""The prior of the bound: the density that sampling starts from, in every space."""

from __future__ import annotations

import math

import pytest
from optimal import NATURAL, SCHEDULES, SUB_VP, expected_terms, mmse
from tolerances import BOUND

from fastdiff import Schedule
from fastdiff.solvers import make_plan
from fastdiff.theory.likelihood import optimal_variance, steps


def sampled_nll(schedule: Schedule, mean: float, std: float, start: float) -> float:
    """E -ln p(x0) of N(m, s²) data under the sampled model.

    The model starts from N(0, start²) and steps by the Gaussians of the bound with the optimal
    denoiser and variance: p(x0) is a Gaussian with the moments of an affine map.
    """
    step, variance = steps(schedule), optimal_variance(schedule, mmse(schedule, std))
    centre, spread = 0.0, start**2
    for t in reversed(range(schedule.num_train_timesteps)):
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]
        on_x = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        gain = step.mean_x0[t] * on_x + step.mean_x[t]
        centre = gain * centre + step.mean_x0[t] * mean * (1 - alpha * on_x)
        spread = gain**2 * spread + variance[t]
    return 0.5 * (math.log(2 * math.pi * spread) + (std**2 + (mean - centre) ** 2) / spread)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_bound_holds_for_the_sampled_model(schedule: Schedule) -> None:
    """The sum of the terms is at least -ln p(x0) of the model that is sampled.

    They are equal where q(x_{T-1}) is the density that sampling starts from.
    """
    kind, last = NATURAL[schedule.space], schedule.num_train_timesteps
    plan = make_plan(schedule, solver="ddim", steps=last, prediction_type=kind)
    assert schedule.prior_std() == plan.initial_std
    for mean, std in ((0.0, 1e-4), (0.0, 1.0), (0.4, 0.5), (-1.0, 2.0)):
        variance = optimal_variance(schedule, mmse(schedule, std))
        terms, prior = expected_terms(schedule, kind, variance, mean, std)
        truth = sampled_nll(schedule, mean, std, plan.initial_std)
        bound = terms.sum() + prior
        assert bound >= truth - BOUND * max(1.0, abs(truth))
        alpha, start = schedule.alpha[-1], plan.initial_std
        ends_there = alpha**2 * (std**2 + mean**2) + schedule.sigma[-1] ** 2 - start**2
        if abs(ends_there) < 1e-7:
            assert bound == pytest.approx(truth, rel=1e-6)


def test_with_a_unit_prior_the_terms_of_sub_vp_are_no_bound() -> None:
    """With the prior N(0, I) the sum for sub-VP would be below -ln p(x0) of the sampled model.

    The data are chosen so that q(x_{T-1}) has variance 1 and that prior term is 0. Sampling starts
    from N(0, sigma² I).
    """
    std = math.sqrt((1 - SUB_VP.sigma[-1] ** 2) / SUB_VP.alpha[-1] ** 2)
    variance = optimal_variance(SUB_VP, mmse(SUB_VP, std))
    terms, prior = expected_terms(SUB_VP, "epsilon", variance, 0.0, std)
    truth = sampled_nll(SUB_VP, 0.0, std, SUB_VP.sigma[-1])
    assert terms.sum() < truth - 1e-3  # a prior term of 0
    assert truth < terms.sum() + prior < truth + 0.05
