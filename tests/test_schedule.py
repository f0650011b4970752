"""Schedules against their definitions, and the tables' digits near both ends."""

from __future__ import annotations

import numpy as np
import pytest
from mpmath import mp, mpf

from fastdiff import Schedule

NAMED = [Schedule.linear(1000), Schedule.scaled_linear(1000), Schedule.cosine(1000), Schedule.linear(7)]


@pytest.mark.parametrize("schedule", NAMED, ids=repr)
def test_alpha_and_sigma_have_all_their_digits(schedule: Schedule) -> None:
    """Against 50 decimal digits of the same betas: the products and their complements to 1e-13 relative."""
    mp.dps = 50
    product = mpf(1)
    config = schedule.to_config()
    for t, beta in enumerate(_betas(config)):
        product *= 1 - mpf(beta)
        assert abs(schedule.alphas_cumprod[t] / product - 1) < 1e-13
        assert abs(schedule.one_minus_alphas_cumprod[t] / (1 - product) - 1) < 1e-13
        assert abs(schedule.log_snr[t] - mp.log(product / (1 - product))) < 1e-12 * max(1, abs(schedule.log_snr[t]))


def _betas(config: dict) -> np.ndarray:
    size, name = config["num_train_timesteps"], config["name"]
    if name == "linear":
        return np.linspace(config["beta_start"], config["beta_end"], size)
    if name == "scaled_linear":
        return np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, size) ** 2
    f = np.cos((np.arange(size + 1) / size + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


@pytest.mark.parametrize("schedule", NAMED, ids=repr)
def test_the_two_coefficients_lie_on_the_unit_circle(schedule: Schedule) -> None:
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1.0, rtol=0, atol=4e-16)
    assert (np.diff(schedule.log_snr) < 0).all()


@pytest.mark.parametrize("schedule", NAMED, ids=repr)
def test_betas_invert_the_product(schedule: Schedule) -> None:
    again = Schedule.from_betas(schedule.betas)
    np.testing.assert_allclose(again.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-12)


@pytest.mark.parametrize(
    "schedule", [*NAMED, Schedule.from_alphas_cumprod([0.9, 0.5, 0.1]), Schedule.from_betas([0.1])]
)
def test_config_round_trip_is_exact(schedule: Schedule) -> None:
    again = Schedule.from_config(schedule.to_config())
    assert (again.alphas_cumprod == schedule.alphas_cumprod).all()
    assert repr(again) == repr(schedule)


def test_tables_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        NAMED[0].alpha[0] = 2.0
