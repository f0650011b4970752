"""The bound as a log-ratio over neighbouring timesteps.

It is exact per sample for the true reverse process, unbiased otherwise, and has more variance with
one random t.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gaussian import Gaussian
from optimal import Optimal, mmse
from tolerances import BOUND

from fastdiff import Schedule, ops
from fastdiff.theory.likelihood import elbo, elbo_two_variable, optimal_variance, steps

EXACT = [
    (Schedule.linear(30), 0.0, 1.0),
    (Schedule.cosine(7), 0.0, 1.0),
    (Schedule.flow(12), 0.3, 0.5),
]


@pytest.mark.parametrize(("schedule", "mean", "std"), EXACT, ids=repr)
def test_with_the_true_reverse_process_every_sample_has_its_own_likelihood(
    schedule: Schedule, mean: float, std: float, backend: str
) -> None:
    """ln q(x_{0:T-1}|x0) - ln p(x0, x_{0:T-1}) = -ln p(x0) on every trajectory.

    p(x_{T-1}) is the marginal of q here.
    """
    x0 = mean + std * ops.randn((6, 3), seed=1, dtype=torch.float64)
    model, variance = (
        Optimal(schedule, "v", mean, std),
        optimal_variance(schedule, mmse(schedule, std)),
    )
    arguments = {"prediction_type": "v", "variance": variance, "likelihood": "gaussian"}
    expected = (0.5 * ((x0 - mean) / std).square() + 0.5 * math.log(2 * math.pi * std**2)).sum(1)
    for seed in (0, 1):
        value = elbo_two_variable(model, x0, schedule, seed=seed, **arguments)
        torch.testing.assert_close(value, expected, rtol=BOUND, atol=BOUND)
    spread = elbo(model, x0, schedule, seed=0, **arguments).total() - expected
    assert spread.abs().min() > 1e-3, "the form with one variable is not constant per sample"


CASES = {
    "vlb": ("fixed_small", 0.6),
    "large": ("fixed_large", 1.5),
    "learned": ("learned_range", 0.6),
    "sub_vp": ("fixed_small", 0.6),
}


@pytest.mark.parametrize("case", CASES)
def test_both_forms_agree_in_expectation(case: str, backend: str) -> None:
    """Both forms agree within 5 standard errors for a model that is not optimal.

    The form with two variables is evaluated on whole trajectories and on triples at uniform times.
    """
    variance, std = CASES[case]
    n, schedule = 40_000, Schedule.linear(8, beta_end=0.5)
    if case == "sub_vp":
        schedule = Schedule.sub_vp(8, beta_max=1.0)

    class Model(Optimal):
        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            out = super().__call__(x, t)
            half = [0.4 * torch.ones_like(x)] if variance == "learned_range" else []
            return torch.cat([out, *half], 1)

    model = Model(schedule, "epsilon", 0.2, 0.8)

    x0 = std * ops.randn((n, 2), seed=3, dtype=torch.float64)
    arguments = {"prediction_type": "epsilon", "variance": variance, "likelihood": "gaussian"}
    one = elbo(model, x0, schedule, seed=0, **arguments).total()
    whole = elbo_two_variable(model, x0, schedule, seed=1, **arguments)
    own = torch.randint(0, 7, (n, 2), generator=torch.Generator().manual_seed(0))
    drawn = elbo_two_variable(model, x0, schedule, seed=2, times=own, **arguments)
    for other in (whole, drawn):
        difference = one - other
        assert difference.mean().abs() < 5 * difference.std() / math.sqrt(n)
        assert difference.std() > 0.1
    every = elbo_two_variable(model, x0, schedule, seed=5, times=range(7), **arguments) - one
    assert every.mean().abs() < 5 * every.std() / math.sqrt(n)


def test_drawing_one_time_the_form_with_two_variables_varies_more(backend: str) -> None:
    schedule, n = Schedule.linear(100), 5_000
    model, x0 = (
        Gaussian(schedule, "epsilon", 0.0, 0.5),
        0.5 * ops.randn((n, 4), seed=3, dtype=torch.float64),
    )
    arguments = {"prediction_type": "epsilon", "variance": "fixed_small", "likelihood": "gaussian"}
    t = torch.randint(0, 99, (n, 1), generator=torch.Generator().manual_seed(0))
    one = elbo(model, x0, schedule, seed=0, times=t + 1, **arguments).total(scale=99)
    two = elbo_two_variable(model, x0, schedule, seed=0, times=t, **arguments)
    assert two.std() > 3 * one.std()


def gaussian_chain(schedule: Schedule, std: float) -> dict[str, np.ndarray]:
    """The true reverse process of N(0, s²) data, p(x_t|x_{t+1}) = N(gain x_{t+1}, spread).

    The arrays are indexed by t = 0 … T-2.
    """
    step, total = steps(schedule), schedule.alpha**2 * std**2 + schedule.sigma**2
    gain = total[:-1] * step.alpha[1:] / total[1:]
    spread = total[:-1] * step.variance[1:] / total[1:]
    return {
        "gain": gain,
        "spread": spread,
        "alpha": step.alpha,
        "variance": step.variance,
        "total": total,
    }


@pytest.mark.parametrize(("steps_", "excess"), [(10, 6.158), (1000, 983.767)])
def test_as_an_expected_kl_it_is_not_the_bound(steps_: int, excess: float) -> None:
    """E_q(x_{t-1}, x_{t+1}|x0) KL(q(x_t|x_{t-1}) || p(x_t|x_{t+1})) is not a term of the bound.

    It treats x_t and x_{t+1} as independent given x_{t-1} and so omits 2 Cov(x_t, gain x_{t+1} |
    x_{t-1}) = 2 gain alpha_{t+1} variance_t. Each term is too large by gain alpha_{t+1}
    variance_t/spread, about one nat per step and dimension for data N(0, 1) and the linear
    schedule.
    """
    schedule = Schedule.linear(steps_)
    c = gaussian_chain(schedule, 1.0)
    cov = c["gain"] * c["alpha"][1:] * c["variance"][:-1]  # of x_t and gain x_{t+1}, given x_{t-1}
    before = np.concatenate([[1.0], c["total"][:-2]])
    # E (x_t - gain x_{t+1})² over the triple, and with x_t replaced by a fresh draw from
    # q(x_t|x_{t-1})
    triple = (1 - c["gain"] * c["alpha"][1:]) ** 2 * c["total"][:-1] + c["gain"] ** 2 * c[
        "variance"
    ][1:]
    fresh = triple + 2 * cov
    # the second again from its parts: mean difference of KL, and the variance of q
    mean = (c["alpha"][:-1] * (1 - c["gain"] * c["alpha"][1:])) ** 2 * before + c["gain"] ** 2 * (
        c["alpha"][1:] ** 2 * c["variance"][:-1] + c["variance"][1:]
    )
    np.testing.assert_allclose(mean + c["variance"][:-1], fresh, rtol=1e-12)
    logs = np.log(c["spread"] / c["variance"][:-1]) - 1
    right, wrong = (
        0.5 * (triple / c["spread"] + logs).sum(),
        0.5 * (fresh / c["spread"] + logs).sum(),
    )
    assert wrong - right == pytest.approx((cov / c["spread"]).sum(), rel=1e-12)
    assert wrong - right == pytest.approx(excess, abs=5e-4)
    # only the right one completes the bound: with reconstruction and prior it is the entropy
    reconstruction = 0.5 * math.log(2 * math.pi * math.e * schedule.sigma[0] ** 2)
    prior = -0.5 * math.log(c["variance"][-1])
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert right + reconstruction + prior == pytest.approx(entropy, rel=BOUND)


def test_neighbours_on_both_sides_say_more_than_one() -> None:
    """q(x_{t-1}, x_t, x_{t+1}|x0) is not q(x_{t-1}, x_{t+1}|x0) q(x_t|x_{t-1}).

    They differ by I(x_t; x_{t+1}|x_{t-1}) = ½ ln(1 + alpha_{t+1}² variance_t/variance_{t+1}) nats
    per dimension: 0.3436 at the middle of the linear schedule.
    """
    step = steps(Schedule.linear(1000))
    a, v, w = step.alpha[500], step.variance[499], step.variance[500]
    information = 0.5 * math.log1p(a**2 * v / w)
    # the same as the KL between both triples' conditionals q(x_t|x_{t-1}, x_{t+1}) and
    # q(x_t|x_{t-1}), averaged
    posterior = 1 / (1 / v + a**2 / w)
    spread_of_its_mean = v - posterior
    kl = 0.5 * (math.log(v / posterior) + (posterior + spread_of_its_mean) / v - 1)
    assert information == pytest.approx(kl, rel=1e-12) and information == pytest.approx(
        0.3436, abs=5e-5
    )


def test_the_variance_of_x_t_is_not_one_minus_the_root() -> None:
    """Composed steps have the variance 1 - alphas_cumprod_t, not 1 - √alphas_cumprod_t.

    The latter is too small by up to 0.25, and by half at the first timesteps.
    """
    schedule = Schedule.linear(1000)
    scale, variance = schedule.transition(np.arange(1000), np.arange(-1, 999))
    composed = 0.0
    for t in range(1000):
        composed = scale[t] ** 2 * composed + variance[t]
        assert composed == pytest.approx(schedule.one_minus_alphas_cumprod[t], rel=1e-11)
    wrong = 1 - np.sqrt(schedule.alphas_cumprod)
    error = schedule.one_minus_alphas_cumprod - wrong
    assert error.max() == pytest.approx(0.25, abs=1e-4)
    assert wrong[0] / schedule.one_minus_alphas_cumprod[0] == pytest.approx(0.5, abs=1e-4)
    total = schedule.alphas_cumprod + wrong  # the variance that unit data would have: not preserved
    assert total.min() == pytest.approx(0.75, abs=1e-4)


def test_wrong_arguments_are_named() -> None:
    x0, schedule = torch.zeros(2, 3), Schedule.linear(10)
    good = {"prediction_type": "x0", "variance": "fixed_small", "seed": 0}
    for change, message in (
        (
            {"times": [9]},
            r"fastdiff.theory.likelihood.elbo_two_variable: expected times in \[0, 9\), got 9",
        ),
        (
            {"likelihood": "laplace"},
            (
                "fastdiff.theory.likelihood.elbo_two_variable: expected likelihood in .*, got"
                " 'laplace'"
            ),
        ),
    ):
        with pytest.raises(ValueError, match=message):
            elbo_two_variable(lambda x, t: x, x0, schedule, **good | change)
