"""The geometry of each space against 40 digits, and its users against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from scipy.integrate import quad
from scipy.stats import norm

from fastdiff import Schedule, ops
from fastdiff.integrations.networks import DenoiserAdapter
from fastdiff.sampling.adaptive.prepared_run import PreparedRun
from fastdiff.schedule import SPACES, Time, geometry, on_curve
from fastdiff.schedule.curves import Flow, Karras, SubVp, Ve, Vp
from fastdiff.schedule.space import RateSpace
from fastdiff.solvers import SOLVERS, make_plan
from fastdiff.theory.likelihood.bound import prior_term
from fastdiff.theory.score import SDES

LOG_SNR = np.array([-60.0, -30.0, -9.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 7.0, 30.0, 60.0])
CURVES = [Ve(0.01, 50.0), Karras(0.002, 80.0, 7.0), Flow(1.0), Flow(3.0), Vp(0.1, 20.0)]
CURVES += [Vp(2.0, 2.0), SubVp(0.1, 20.0), SubVp(0.3, 4.0)]
SHORT = {  # schedules that end far from pure noise
    "vp": Schedule.vp(50, beta_max=2.0),
    "discrete": Schedule.linear(10),
    "ve": Schedule.ve(50, sigma_max=2.0),
    "flow": Schedule.flow(50),
    "sub_vp": Schedule.sub_vp(50, beta_max=2.0),
}


def exact(space: str, log_snr: float) -> tuple[mpf, mpf]:
    """(alpha, sigma) with 40 digits, from the equation of the space."""
    mp.dps = 40
    rho = mp.exp(-mpf(log_snr) / 2)
    alpha = {
        "vp": 1 / mp.sqrt(1 + rho**2),
        "ve": mpf(1),
        "flow": 1 / (1 + rho),
        "sub_vp": (mp.sqrt(rho**2 + 4) - rho) / 2,  # alpha² + rho alpha = 1
    }[space]
    return alpha, rho * alpha


@pytest.mark.parametrize("space", SPACES)
def test_points_have_all_their_digits(space: str) -> None:
    """Points near clean data and near pure noise, as numbers, arrays and tensors."""
    for value in LOG_SNR.tolist():
        for got, want in zip(geometry(space).point(value), exact(space, value), strict=True):
            assert isinstance(got, float) and abs(got / want - 1) < 4e-15
        assert on_curve(space, value) == geometry(space).point(value)
    numbers = np.array([geometry(space).point(v) for v in LOG_SNR.tolist()]).T
    arrays = geometry(space).point(LOG_SNR)
    tensors = geometry(space).point(torch.from_numpy(LOG_SNR))
    for a, b, c in zip(numbers, arrays, tensors, strict=True):
        assert b.dtype == np.float64 and c.dtype == torch.float64
        np.testing.assert_allclose(b, a, rtol=4e-15)
        np.testing.assert_allclose(c, a, rtol=4e-15)
    clean = geometry(space).point(math.inf)
    assert clean == (1.0, 0.0)
    if space != "ve":
        assert geometry(space).point(-math.inf) == (0.0, 1.0)


@pytest.mark.parametrize("space", SPACES)
def test_points_have_derivatives(space: str) -> None:
    """Of alpha and sigma by the log-SNR, at 0 too, where two formulas meet."""
    values = torch.tensor([-9.0, -0.5, 0.0, 0.3, 9.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(geometry(space).point, values)
    alpha, sigma = geometry(space).point(values)
    (slope,) = torch.autograd.grad((2 * (alpha.log() - sigma.log())).sum(), values)
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=1e-12, atol=0)


@pytest.mark.parametrize("space", SPACES)
def test_noise_levels_and_angles_select_the_same_points(space: str) -> None:
    for value in LOG_SNR.tolist():
        alpha, sigma = geometry(space).point(value)
        rho, phi = math.exp(-0.5 * value), math.atan2(sigma, alpha)
        assert geometry(space).inverse_alpha(rho) * alpha == pytest.approx(1, rel=1e-14)
        radius = geometry(space).radius(np.cos([phi]), np.sin([phi]))[0]
        # cos(phi) at rho = e^30 has lost digits, which `ve` divides by
        assert radius == pytest.approx(math.hypot(alpha, sigma), rel=1e-14 if rho < 1e3 else 1e-2)
        place = geometry(space)
        if isinstance(place, RateSpace):
            again = place.at_integral(place.integral(rho))
            assert again == (pytest.approx(alpha, rel=2e-14), pytest.approx(sigma, rel=2e-14))
    if space == "vp":
        squares = geometry(space).squares(LOG_SNR)
        np.testing.assert_allclose(np.sqrt(squares), geometry(space).point(LOG_SNR), rtol=4e-15)


@pytest.mark.parametrize("curve", CURVES, ids=repr)
def test_curves_take_numbers_and_tensors(curve) -> None:
    u = torch.tensor([1e-3, 0.2, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = curve.point(u)
    for i, value in enumerate(u.tolist()):
        point = curve.point(value)
        assert point == (
            pytest.approx(float(alpha[i]), rel=4e-15),
            pytest.approx(float(sigma[i]), rel=4e-15),
        )
        log_snr = 2 * (math.log(point[0]) - math.log(point[1]))
        on = curve.space.point(log_snr)
        assert on == (pytest.approx(point[0], rel=1e-13), pytest.approx(point[1], rel=1e-13))
        assert curve.time(point[1] / point[0]) == pytest.approx(value, rel=1e-11)
    torch.testing.assert_close(curve.time(sigma / alpha), u, rtol=1e-11, atol=0)
    end = torch.tensor([1.0, math.inf], dtype=torch.float64)
    if curve.space.name == "flow":
        assert curve.time(math.inf) == curve.network_time(math.inf) == 1.0
        assert curve.time(end)[1] == 1.0
    else:
        assert curve.time(math.inf) == math.inf and torch.isinf(curve.time(end)[1])


@pytest.mark.parametrize("curve", CURVES, ids=repr)
def test_the_diffusion_is_its_integral(curve) -> None:
    """∫ g² du = ∫ 2 sigma² d ln rho, by quadrature."""
    for first, last in ((0.1, 0.35), (0.35, 0.9)):
        s, t = (Time(u, *curve.point(u), 0.0) for u in (first, last))
        want, _ = quad(
            lambda ln_rho: 2 * curve.space.point(-2 * ln_rho)[1] ** 2,
            math.log(s.rho),
            math.log(t.rho),
            epsrel=1e-12,
        )
        assert curve.space.diffusion(t, s) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("name", SHORT)
def test_sampling_bounds_and_likelihoods_have_one_prior(name: str) -> None:
    """The prior's standard deviation is 1 in `vp` and sigma_{T-1} elsewhere, in all its uses."""
    schedule = SHORT[name]
    last = schedule.at(schedule.num_train_timesteps - 1)
    std = 1.0 if schedule.space == "vp" else float(schedule.sigma[-1])
    assert schedule.prior_std() == schedule.prior_std(last) == std
    for solver in ("ddpm", "euler", "dpm++2m"):
        kind = "v" if schedule.space == "flow" else "epsilon"
        try:
            plan = make_plan(schedule, solver=solver, steps=5, prediction_type=kind)
        except ValueError:
            assert schedule.space == "flow"
            continue
        assert plan.initial_std == std
    assert all(
        make_plan(schedule, solver=s, steps=3, prediction_type="v").initial_std == 1.0
        for s, found in SOLVERS.items()
        if found.reverse
    )
    drawn = ops.randn((4, 6), seed=3, dtype=torch.float64)
    run = PreparedRun(
        "test",
        lambda x, t: x,
        schedule,
        last,
        shape=(4, 6),
        seed=3,
        dtype=torch.float64,
        prediction_type="v",
    )
    assert torch.equal(run.x, drawn * std)
    x0 = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    ratio = schedule.sigma[-1] ** 2 / std**2
    kl = 0.5 * ((x0 * schedule.alpha[-1] / std) ** 2 + ratio - 1 - math.log(ratio)).sum()
    assert float(prior_term(x0, schedule)) == pytest.approx(float(kl), rel=1e-12, abs=1e-15)
    if name in SDES:
        sde = SDES[name](**{k: v for k, v in schedule.to_config().items() if "_m" in k})
        assert sde.prior_std == pytest.approx(std, rel=1e-14)
        np.testing.assert_allclose(sde.log_prior(drawn), norm(0, std).logpdf(drawn).sum(1))


@pytest.mark.parametrize("space", SPACES)
def test_a_denoiser_gets_x_over_alpha(space: str) -> None:
    model = DenoiserAdapter(lambda x, sigma: x, space=space)
    x, rho = torch.full((3, 2), 0.5), torch.tensor([0.01, 1.0, 40.0])
    alpha = [float(exact(space, -2 * math.log(float(v)))[0]) for v in rho]
    torch.testing.assert_close(model(x, rho), x / torch.tensor(alpha)[:, None], rtol=1e-6, atol=0)


def test_an_unknown_space_is_named() -> None:
    with pytest.raises(ValueError, match="fastdiff.schedule: expected space in .*, got 'polar'"):
        geometry("polar")
