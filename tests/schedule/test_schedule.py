"""Schedules against their definitions, and the digits of the tables near both ends."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from mpmath import mp, mpf

from fastdiff import Schedule
from fastdiff.schedule import FORMULAS, flow_shift

NAMED = [
    Schedule.linear(1000),
    Schedule.scaled_linear(1000),
    Schedule.cosine(1000),
    Schedule.linear(7),
]


@pytest.mark.parametrize("schedule", NAMED, ids=repr)
def test_alpha_and_sigma_have_all_their_digits(schedule: Schedule) -> None:
    """alpha², sigma² and the log-SNR agree with 50-digit products of the same betas."""
    mp.dps = 50
    product = mpf(1)
    config = schedule.to_config()
    for t, beta in enumerate(_betas(config)):
        product *= 1 - mpf(beta)
        assert abs(schedule.alphas_cumprod[t] / product - 1) < 1e-13
        assert abs(schedule.one_minus_alphas_cumprod[t] / (1 - product) - 1) < 1e-13
        assert abs(schedule.log_snr[t] - mp.log(product / (1 - product))) < 1e-12 * max(
            1, abs(schedule.log_snr[t])
        )


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


@pytest.mark.parametrize("name", FORMULAS)
def test_every_formula_is_a_schedule(name: str) -> None:
    """Every named schedule has the properties of a schedule.

    Noise grows, (alpha, sigma) is on the curve of its space, a log-SNR selects one point, and the
    config rebuilds it.
    """
    schedule = getattr(Schedule, name)(50)
    assert (np.diff(schedule.log_snr) < 0).all()
    alpha, sigma = schedule.alpha, schedule.sigma
    on = {
        "vp": np.hypot(alpha, sigma),
        "ve": alpha,
        "flow": alpha + sigma,
        "sub_vp": alpha**2 + sigma,
    }[schedule.space]
    np.testing.assert_allclose(on, 1.0, rtol=0, atol=4e-16)
    for t in (0, 17, 48):
        point = schedule.at(t)
        again = schedule.at_log_snr(point.log_snr)
        assert again.t == pytest.approx(t, abs=1e-9)
        assert again.alpha == pytest.approx(point.alpha, rel=1e-14)
        assert again.sigma == pytest.approx(point.sigma, rel=1e-14)
        assert (
            (0 <= schedule.network_time(point) <= 1)
            if schedule.continuous
            else schedule.network_time(point) == t
        )
    other = Schedule.from_config(json.loads(json.dumps(schedule.to_config())))
    assert (
        (other.alpha == alpha).all()
        and (other.sigma == sigma).all()
        and repr(other) == repr(schedule)
    )


def test_ve_is_geometric_and_karras_even_in_a_power() -> None:
    ve, karras = Schedule.ve(11, sigma_min=0.01, sigma_max=50), Schedule.karras(11)
    np.testing.assert_allclose(ve.sigma[1:] / ve.sigma[:-1], 5000 ** (1 / 10), rtol=1e-13)
    np.testing.assert_allclose(
        np.diff(karras.sigma ** (1 / 7)), (80 ** (1 / 7) - 0.002 ** (1 / 7)) / 10, rtol=1e-12
    )
    assert ve.network_time(ve.at(5)) == pytest.approx(0.5) and karras.network_time(
        karras.at(10)
    ) == pytest.approx(1.0)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_flow_levels_are_shifted(shift: float) -> None:
    schedule = Schedule.flow(1000, shift=shift)
    u = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(schedule.sigma, shift * u / (1 + (shift - 1) * u), rtol=1e-15)
    assert schedule.alpha[-1] == 0 and schedule.log_snr[-1] == -np.inf
    assert schedule.network_time(schedule.at(999)) == 1.0
    assert schedule.network_time(schedule.at(499)) == pytest.approx(schedule.sigma[499], rel=1e-14)
    between = schedule.at(499.5)
    assert schedule.sigma[499] < between.sigma < schedule.sigma[500]
    assert schedule.at_log_snr(between.log_snr).t == pytest.approx(499.5)


def test_flow_shift_of_a_resolution() -> None:
    """Both time shifts of diffusers are one shift of sigma.

    e^mu/(e^mu + 1/t - 1) = k t/(1 + (k - 1) t) with k = e^mu.
    """
    assert flow_shift(256) == pytest.approx(math.exp(0.5)) and flow_shift(
        4096, kind="linear"
    ) == pytest.approx(1.15)
    mu, t = 0.5 + (1024 - 256) * 0.65 / 3840, 0.3
    k = flow_shift(1024)
    assert k * t / (1 + (k - 1) * t) == pytest.approx(
        math.exp(mu) / (math.exp(mu) + 1 / t - 1), rel=1e-14
    )


@pytest.mark.parametrize("schedule", NAMED, ids=repr)
def test_zero_terminal_snr(schedule: Schedule) -> None:
    """Lin et al. 2024, algorithm 1, with 50 digits.

    The first alpha stays, the last is 0, and sigma keeps its digits.
    """
    rescaled = schedule.rescale_zero_terminal_snr()
    mp.dps = 50
    first, last = (mp.sqrt(mpf(schedule.alphas_cumprod[i])) for i in (0, -1))
    for t in (0, 1, schedule.num_train_timesteps // 2, schedule.num_train_timesteps - 1):
        alpha = (mp.sqrt(mpf(schedule.alphas_cumprod[t])) - last) * first / (first - last)
        assert abs(rescaled.alpha[t] - alpha) <= 1e-14
        # the schedule's 1 - alpha² has more digits than one computed from alpha²
        assert abs(rescaled.one_minus_alphas_cumprod[t] / (1 - alpha**2) - 1) < 1e-11
    assert rescaled.alpha[-1] == 0 and rescaled.sigma[-1] == 1 and rescaled.log_snr[-1] == -np.inf
    assert rescaled.betas[-1] == 1.0
    again = Schedule.from_config(rescaled.to_config())
    assert (again.alpha == rescaled.alpha).all()
    with pytest.raises(ValueError, match="no rescaling"):
        rescaled.rescale_zero_terminal_snr()


@pytest.mark.parametrize("name", ["vp", "sub_vp"])
def test_linear_rates_integrate_to_the_curve(name: str) -> None:
    """The curves solve the differential equations of alpha and sigma², with 30 digits.

    dalpha/du = -beta alpha/2 and dsigma²/du = -beta sigma² + g², g² = beta for vp and beta (1 -
    e^(-2B)) for sub_vp. The inverse returns the time at both ends.
    """
    mp.dps = 30
    low, high = mpf("0.1"), mpf("20")
    schedule = getattr(Schedule, name)(500)
    for t in (0, 3, 250, 499):
        u = mpf(t + 1) / 500
        total = mp.quad(lambda v: low + (high - low) * v, [0, u])

        def spread(v: mpf, total: mpf = total) -> mpf:
            inside = low * v + (high - low) * v**2 / 2
            g2 = (low + (high - low) * v) * (1 if name == "vp" else 1 - mp.exp(-2 * inside))
            return g2 * mp.exp(inside - total)

        assert abs(schedule.alpha[t] / mp.exp(-total / 2) - 1) < 1e-14
        assert abs(schedule.sigma[t] ** 2 / mp.quad(spread, [0, u]) - 1) < 1e-12
        assert abs(schedule.at_log_snr(schedule.at(t).log_snr).t - t) < 1e-10
        assert schedule.network_time(schedule.at(t)) == pytest.approx((t + 1) / 500, abs=1e-12)
    assert schedule.at(3.5).alpha == pytest.approx(
        float(np.sqrt(schedule.alpha[3] * schedule.alpha[4])), rel=1e-4
    )
    with pytest.raises(
        ValueError,
        match=rf"fastdiff.Schedule.{name}: expected 0 < beta_min <= beta_max, got 3.0 and 2.0",
    ):
        getattr(Schedule, name)(10, beta_min=3.0, beta_max=2.0)
    with pytest.raises(
        ValueError, match="expected a variance-preserving schedule, got the continuous"
    ):
        _ = schedule.betas


def test_errors_name_what_other_spaces_lack() -> None:
    with pytest.raises(
        ValueError,
        match=r"fastdiff.Schedule.betas: expected a variance-preserving schedule, got .*flow",
    ):
        _ = Schedule.flow(10).betas
    with pytest.raises(ValueError, match="alphas_cumprod: expected a variance-preserving"):
        _ = Schedule.ve(10).alphas_cumprod
    for make in (
        lambda: Schedule.flow(shift=0.0),
        lambda: Schedule.karras(rho=-1.0),
        lambda: Schedule.ve(sigma_min=60),
    ):
        with pytest.raises(ValueError, match=r"^fastdiff\.Schedule\.\w+: expected .*, got"):
            make()


@pytest.mark.parametrize(
    "schedule, name",
    [
        (Schedule.sigmoid(), "sigmoid"),
        (Schedule.laplace(), "laplace"),
        (Schedule.cosine(), "squaredcos_cap_v2"),
        (Schedule.linear(), "linear"),
    ],
)
def test_betas_against_diffusers(schedule: Schedule, name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    betas = diffusers.DDPMScheduler(beta_schedule=name).betas.double().numpy()
    np.testing.assert_allclose(schedule.betas, betas, rtol=3e-5, atol=1e-9)  # theirs are float32
