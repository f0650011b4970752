"""SDEs against their differential equations, exactly propagated moments, and their schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact import Mixture
from scipy.integrate import solve_ivp
from scipy.stats import norm
from targets import Mixture as Targets
from targets import follow

from fastdiff import Sampler, Schedule
from fastdiff.prediction import Parametrization
from fastdiff.schedule import Time
from fastdiff.solvers import make_plan
from fastdiff.theory.score import SDE, SDES, VESDE, VPSDE, SubVPSDE

ALL = [VPSDE(), VPSDE(0.3, 7.0), SubVPSDE(), VESDE(), VESDE(0.1, 3.0)]
TIMES = torch.tensor([1e-5, 0.01, 0.3, 0.77, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("sde", ALL, ids=repr)
def test_marginals_solve_the_equations_of_the_moments(sde: SDE) -> None:
    """dalpha/dt = f alpha and dsigma²/dt = 2 f sigma² + g², integrated to 1e-12 from t = 1e-5."""

    def slope(t: float, y: np.ndarray) -> list[float]:
        f, g2 = float(sde.f(t)), float(sde.g2(t))
        return [f * y[0], 2 * f * y[1] + g2]

    alpha, sigma = sde.marginal(TIMES)
    start = [float(alpha[0]), float(sigma[0]) ** 2]
    done = solve_ivp(
        slope, (1e-5, 1.0), start, t_eval=TIMES.numpy(), method="DOP853", rtol=1e-12, atol=1e-18
    )
    np.testing.assert_allclose(alpha, done.y[0], rtol=1e-9)
    np.testing.assert_allclose(sigma**2, done.y[1], rtol=1e-8)


def test_marginals_are_the_published_ones() -> None:
    """Song et al. 2021, eq. 29 and appendix C, as printed, in float64 NumPy."""
    t = TIMES.numpy()
    total = 0.5 * t**2 * (20 - 0.1) + 0.1 * t
    for sde, alpha, variance in [
        (VPSDE(), np.exp(-total / 2), 1 - np.exp(-total)),
        (SubVPSDE(), np.exp(-total / 2), (1 - np.exp(-total)) ** 2),
        (VESDE(), np.ones(5), (0.01 * 5000**t) ** 2),
    ]:
        ours = sde.marginal(TIMES)
        np.testing.assert_allclose(ours[0], alpha, rtol=1e-13)
        np.testing.assert_allclose(
            ours[1] ** 2, variance, rtol=2e-10
        )  # 1 - e^(-B) as printed has lost digits
    beta = 0.1 + t * 19.9
    np.testing.assert_allclose(SubVPSDE().g2(TIMES), beta * (1 - np.exp(-2 * total)), rtol=1e-9)
    np.testing.assert_allclose(
        VESDE().diffusion(TIMES), 0.01 * 5000**t * math.sqrt(2 * math.log(5000)), rtol=1e-13
    )


@pytest.mark.parametrize("sde", ALL, ids=repr)
def test_euler_maruyama_tends_to_the_marginals(sde: SDE) -> None:
    """The moments of Euler–Maruyama steps, propagated exactly: errors halve with the step."""
    alpha, sigma = (float(v) for v in sde.marginal(0.6))
    first = [float(v) for v in sde.marginal(0.1)]
    wanted = np.array(
        [alpha / first[0], sigma**2 - (alpha * first[1] / first[0]) ** 2]
    )  # of q(x_0.6 | x_0.1)
    errors = []
    for n in (400, 800):
        h, mean, variance = 0.5 / n, 1.0, 0.0
        for t in 0.1 + h * np.arange(n):
            gain = float(sde.drift(torch.ones(1, 1, dtype=torch.float64), float(t))) * h + 1.0
            mean, variance = (
                gain * mean,
                gain**2 * variance + h * float(sde.diffusion(float(t))) ** 2,
            )
        errors.append(np.abs(np.array([mean, variance]) / wanted - 1))
    assert (errors[1] < 0.02).all()
    moving = errors[0] > 1e-12  # VE has no drift
    np.testing.assert_allclose(errors[0][moving] / errors[1][moving], 2.0, rtol=0.05)


@pytest.mark.parametrize("sde", ALL, ids=repr)
def test_times_and_rates_belong_to_the_log_snr(sde: SDE) -> None:
    log_snr = sde.log_snr(TIMES)
    np.testing.assert_allclose(sde.time(log_snr), TIMES, rtol=1e-9)
    h = 1e-6
    inner = TIMES[1:4]
    slope = (sde.log_snr(inner + h) - sde.log_snr(inner - h)) / (2 * h)
    np.testing.assert_allclose(sde.rate(inner), -slope, rtol=1e-6)


@pytest.mark.parametrize("sde", ALL, ids=repr)
def test_the_schedule_is_the_same_path(sde: SDE) -> None:
    schedule = sde.schedule(200)
    assert schedule.space == sde.name and schedule.continuous
    for t in (0, 57, 199):
        point = schedule.at(t)
        u = schedule.network_time(point)
        alpha, sigma = sde.marginal(u)
        assert point.alpha == pytest.approx(float(alpha), rel=1e-12)
        assert point.sigma == pytest.approx(float(sigma), rel=1e-10)
    x = sde.prior((4, 300), seed=3, dtype=torch.float64)
    assert float(x.std()) / sde.prior_std == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(
        sde.log_prior(x), norm(0.0, sde.prior_std).logpdf(x.numpy()).sum(1), rtol=1e-12
    )


@pytest.mark.parametrize("sde", ALL, ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_time_reversed_keeps_the_marginals(sde: SDE, eta: float) -> None:
    """dV/dt = 2 a V - eta² g² of the reverse process is the slope of the forward variance.

    On N(0, s²) the reverse drift is linear, a x; this holds for every eta.
    """
    s2 = 0.3

    def variance(t: float) -> float:
        alpha, sigma = (float(v) for v in sde.marginal(t))
        return alpha**2 * s2 + sigma**2

    back = sde.reverse(lambda x, t: -x / variance(float(t[0])), eta)
    for t in (0.2, 0.6, 0.9):
        a = float(back.drift(torch.ones(1, 1, dtype=torch.float64), t))
        slope = (variance(t + 1e-6) - variance(t - 1e-6)) / 2e-6
        g2 = float(sde.diffusion(t)) ** 2
        assert 2 * a * variance(t) - eta**2 * g2 == pytest.approx(slope, rel=1e-6)
        assert float(back.diffusion(t)) == pytest.approx(eta * math.sqrt(g2), rel=1e-12)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(0.01, 50.0)], ids=repr)
def test_the_plan_euler_maruyama_is_the_reverse_sde(sde: SDE) -> None:
    """Drift and noise of one fine step against `reverse`.

    Whole runs reach the data's variance, which is propagated exactly.
    """
    schedule, data = sde.schedule(4000), Targets((1.0,), (0.0,), (0.5,))
    t, s = schedule.at(2400), schedule.at(2399)
    plan = make_plan(schedule, solver="euler_maruyama", steps=1, times=[t, s], prediction_type="v")
    x = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    noise = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).view(1, 3, 1)
    end = follow(plan, x, data, noise=noise)[:, 0] - x[:, 0]

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (v.view(-1, 1) for v in sde.marginal(t))
        return -x / (alpha**2 * 0.25 + sigma**2)

    u, h = schedule.network_time(t), schedule.network_time(t) - schedule.network_time(s)
    back = sde.reverse(score)
    drift = float(back.drift(torch.ones(1, 1, dtype=torch.float64), u - h / 2))
    assert float(end[1]) == pytest.approx(-drift * h, rel=5e-3)
    assert float(end[2]) == pytest.approx(float(back.diffusion(u - h / 2)) * math.sqrt(h), rel=5e-3)
    steps = 1000
    whole = make_plan(schedule, solver="euler_maruyama", steps=steps, prediction_type="v")
    impulses = torch.cat([torch.zeros(len(whole), 1), torch.eye(len(whole))], dim=1)[
        ..., None
    ].double()
    state = torch.zeros(len(whole) + 1, 1, dtype=torch.float64)
    state[0] = whole.initial_std
    variance = float((follow(whole, state, data, noise=impulses)[:, 0] ** 2).sum())
    assert variance == pytest.approx(0.25, rel=0.03)


def test_a_networks_score_and_wrong_arguments() -> None:
    """`score` converts every prediction type, input and time of a network.

    A sampler on the SDE's schedule with the same network agrees with the data.
    """
    mixture = Mixture([0.4, 0.6], [[-1.0], [0.8]], [0.3, 0.5])
    sde = VPSDE()
    x, t = (
        torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None],
        torch.full((5,), 0.4, dtype=torch.float64),
    )
    alpha, sigma = (float(v) for v in sde.marginal(0.4))

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.dtype == torch.float32
        return (x - alpha * mixture.x0(x, alpha, sigma)) / sigma

    torch.testing.assert_close(
        sde.score(model, "epsilon")(x, t), mixture.score(x, alpha, sigma), rtol=1e-10, atol=1e-12
    )

    class Own:  # a network with unit input and its own time, the log-SNR
        def network_time(self, point: Time) -> float:
            return point.log_snr

        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            cos, sin = (torch.exp(0.5 * torch.nn.functional.logsigmoid(v)) for v in (t, -t))
            return mixture.x0(x, cos.double()[:, None], sin.double()[:, None])

    for other in ALL:
        levels = torch.tensor([0.2, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
        alphas, sigmas = (v[:, None] for v in other.marginal(levels))
        got = other.score(Own(), Parametrization("x0", unit_input=True))(x, levels)
        want = mixture.score(x, alphas, sigmas)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)  # its times are float32
    samples = Sampler(
        mixture, sde.schedule(), solver="euler_maruyama", steps=100, prediction_type="v"
    ).sample((2000, 1), seed=0)
    assert abs(float(samples.mean()) - 0.08) < 0.1
    with pytest.raises(
        ValueError,
        match="fastdiff.theory.score.VPSDE: expected 0 < beta_min <= beta_max, got 3.0 and 1.0",
    ):
        VPSDE(3.0, 1.0)
    with pytest.raises(
        ValueError, match="fastdiff.theory.score.VESDE: expected 0 < sigma_min < sigma_max"
    ):
        VESDE(1.0, 0.5)
    with pytest.raises(ValueError, match="expected eta >= 0, got -1.0"):
        sde.reverse(lambda x, t: x, -1.0)
    assert set(SDES) == {"vp", "ve", "sub_vp"} and isinstance(sde.schedule(), Schedule)
