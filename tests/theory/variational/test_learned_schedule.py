"""gamma: monotone, with exact end points and slopes; and the gradients that train it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import Schedule, ops
from fastdiff.theory.variational import times
from fastdiff.theory.variational.diffusion import diffusion_terms
from fastdiff.theory.variational.gamma import (
    CosineGamma,
    Gamma,
    LearnedGamma,
    LinearGamma,
    TableGamma,
    make,
    point,
)
from fastdiff.theory.variational.vdm import VDM

STD = 0.5


def bent(low: float = -6.0, high: float = 4.0) -> LearnedGamma:
    """Returns a learned gamma with a path far from a line."""
    gamma = LearnedGamma(low, high, hidden=16)
    with torch.no_grad():
        gamma.w3 += torch.linspace(-1.0, 7.0, 16, dtype=torch.float64)
    return gamma


GAMMAS = {
    "linear": lambda: LinearGamma(-6.0, 4.0),
    "cosine": lambda: CosineGamma(-6.0, 4.0),
    "learned": lambda: bent(),
    "table": lambda: TableGamma(LinearGamma(-6.0, 4.0).schedule(9)),
}


def optimal(z: Tensor, gamma_t: Tensor) -> Tensor:
    """Returns the optimal eps^ for N(0, s²) data, differentiable in gamma."""
    alpha, sigma = (v[:, None] for v in point(gamma_t))
    return (sigma * z.double() / (alpha**2 * STD**2 + sigma**2)).to(z.dtype)


@pytest.mark.parametrize("name", GAMMAS)
def test_gamma_rises_between_its_ends_with_its_slope(name: str) -> None:
    gamma = GAMMAS[name]()
    u = torch.linspace(0, 1, 201, dtype=torch.float64, requires_grad=True)
    value, slope = gamma(u)
    assert value.dtype == torch.float64 and (value.diff() > 0).all()
    assert value[0].item() == pytest.approx(-6.0, abs=1e-12) and value[-1].item() == pytest.approx(
        4.0, abs=1e-12
    )
    (numeric,) = torch.autograd.grad(value.sum(), u)
    torch.testing.assert_close(slope, numeric, rtol=1e-11, atol=1e-11)
    alpha, sigma = point(torch.tensor([-40.0, 0.0, 40.0], dtype=torch.float64))
    expected = [math.exp(-20), math.sqrt(0.5), 1.0]
    assert sigma.tolist() == pytest.approx(expected, rel=1e-14) and alpha.tolist() == pytest.approx(
        expected[::-1], rel=1e-14
    )


def test_cosine_is_nichol_and_dhariwal_s_between_its_ends() -> None:
    """alpha is the cosine of an angle that is linear in u."""
    gamma = CosineGamma(-6.0, 4.0)
    angles = torch.asin(point(gamma(torch.linspace(0, 1, 6, dtype=torch.float64))[0]).sigma)
    torch.testing.assert_close(angles.diff(), angles.diff()[:1].expand(5), rtol=1e-11, atol=0)


def test_a_gamma_becomes_a_schedule() -> None:
    gamma = bent()
    schedule = gamma.schedule(50)
    np.testing.assert_allclose(
        schedule.log_snr, gamma.log_snr(np.linspace(0, 1, 50)), rtol=1e-13, atol=1e-13
    )
    again = Schedule.from_config(json.loads(json.dumps(schedule.to_config())))
    assert (again.alpha == schedule.alpha).all() and (again.sigma == schedule.sigma).all()
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1.0, rtol=0, atol=4e-16)
    through = TableGamma(schedule)
    np.testing.assert_allclose(
        through.log_snr(np.arange(50) / 49), schedule.log_snr, rtol=1e-12, atol=1e-12
    )
    assert float(gamma.log_snr(0.5)) == pytest.approx(
        -gamma(torch.tensor([0.5]))[0].item(), rel=1e-14
    )


SCHEDULES = [Schedule.linear(1000), Schedule.cosine(20), Schedule.ve(30), Schedule.flow(30)]
SCHEDULES.append(Schedule.learned(lambda u: 9 - 15 * u, 40))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_composed_transitions_are_the_marginal(schedule: Schedule) -> None:
    """q(x_t|x_s), composed over all or random timesteps, is q(x_t|x0) (Luo 2022, eq. 61–70)."""
    last = schedule.num_train_timesteps - 1
    some = np.unique(np.random.default_rng(0).integers(0, last, 7))
    for path in (np.arange(-1, last + 1), np.array([-1, *some, last])):
        scale, variance = schedule.transition(path[1:], path[:-1])
        alpha, spread = 1.0, 0.0
        for a, v, t in zip(scale, variance, path[1:], strict=True):
            alpha, spread = alpha * a, a**2 * spread + v
            assert alpha == pytest.approx(schedule.alpha[t], rel=1e-11, abs=1e-300)
            assert spread == pytest.approx(schedule.sigma[t] ** 2, rel=1e-11)
    scale, variance = schedule.transition([[3, 4], [5, 6]], 2)
    assert (
        scale.shape == variance.shape == (2, 2) and variance[1, 0] == schedule.transition(5, 2)[1]
    )
    assert schedule.transition(5, 5) == (1.0, 0.0)
    assert schedule.transition(7, -1) == (
        schedule.alpha[7],
        pytest.approx(schedule.sigma[7] ** 2, rel=1e-15),
    )


def test_continuous_times_have_transitions() -> None:
    schedule = Schedule.ve(30)
    a, v = schedule.transition(10.5, 3.25)
    late, early = schedule.at(10.5), schedule.at(3.25)
    assert a == 1.0 and v == pytest.approx(late.sigma**2 - early.sigma**2, rel=1e-12)


def gradients(gamma: Gamma, loss: Tensor) -> dict[str, Tensor]:
    names = [n for n, _ in gamma.named_parameters()]
    grads = torch.autograd.grad(
        loss, list(gamma.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(names, grads, strict=True))


def terms(
    gamma: Gamma,
    n: int = 512,
    *,
    seed: int = 0,
    scale: float | None = None,
    num_steps: int | None = None,
) -> Tensor:
    x0 = STD * ops.randn((n, 4), seed=7, dtype=torch.float64)
    u = times.stratified(torch.arange(n), seed=seed, step=0)
    return diffusion_terms(
        optimal, x0, gamma, u, seed=seed, num_steps=num_steps, variance_path=scale
    )


def test_the_ends_get_the_gradient_of_the_loss_and_the_path_that_of_its_square(
    backend: str,
) -> None:
    """One backward pass gives the gradients of the loss and of E[loss²]/c.

    The second is checked by autograd and by central differences.
    """
    gamma, scale = bent(), 3.0
    plain = gradients(gamma, terms(gamma).mean())
    square = gradients(gamma, terms(gamma).square().mean() / scale)
    both = gradients(gamma, terms(gamma, scale=scale).mean())
    for name, got in both.items():
        expected = plain[name] if name.startswith("gamma") else square[name]
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(terms(gamma, scale=scale), terms(gamma)), "the value is the loss"
    for name, at in (("w3", 3), ("w3", 12), ("b2", 8), ("w2", 5)):
        parameter, step, values = getattr(gamma, name), 1e-4, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[at] += sign * step
                values.append((terms(gamma).square().mean() / scale).item())
                parameter[at] -= sign * step
        assert both[name][at].item() == pytest.approx(
            (values[0] - values[1]) / (2 * step), rel=1e-5
        )


def test_the_square_s_gradient_is_the_variance_s() -> None:
    """The mean of the loss does not depend on the path, so d E[L²] = d Var L.

    (Kingma et al. 2021, eq. 60.)
    """
    gamma = bent()
    mean, square = [], []
    for seed in range(12):
        value = terms(gamma, 4_096, seed=seed)
        mean.append(gradients(gamma, value.mean())["w3"])
        square.append(gradients(gamma, value.square().mean())["w3"])
    mean, square = torch.stack(mean), torch.stack(square)
    error = mean.std(0) / math.sqrt(12)
    assert (mean.mean(0).abs() < 5 * error).all(), "the gradient of the mean is 0 within its error"
    # d Var = d E[L²] - 2 E[L]·d E[L]; the second term vanishes
    level = terms(gamma, 4_096).mean()
    assert (2 * level * mean.mean(0)).norm() < 0.1 * square.mean(0).norm()


def test_the_ends_gradients_are_those_of_the_closed_form() -> None:
    """Derivatives of ½ ln((1 + s² e^-min)/(1 + s² e^-max)), within 5 standard errors."""
    gamma = bent(-4.0, -1.0)
    estimates = [
        gradients(gamma, terms(gamma, 4_096, seed=seed, scale=1.0).mean()) for seed in range(12)
    ]
    for name, sign in (("gamma_min", -1.0), ("gamma_max", 1.0)):
        power = STD**2 * math.exp(-float(getattr(gamma, name).detach()))
        expected = 4 * sign * 0.5 * power / (1 + power)
        got = torch.stack([g[name] for g in estimates])
        assert abs(got.mean() - expected) < 5 * got.std() / math.sqrt(len(estimates))
        assert got.std() / math.sqrt(len(estimates)) < 0.15 * abs(expected)


def test_with_finite_steps_the_path_learns_by_the_bound() -> None:
    gamma = bent()
    plain = gradients(gamma, terms(gamma, num_steps=7).mean())
    routed = gradients(gamma, terms(gamma, num_steps=7, scale=2.0).mean())
    assert all(torch.equal(plain[n], routed[n]) for n in plain)
    assert plain["w3"].norm() > 1e-3


def test_learning_the_path_lowers_the_variance_and_leaves_the_bound() -> None:
    """On N(0, s²) data, training makes the loss more even over u and keeps the mean."""
    gamma, line = LearnedGamma(-10.0, 6.0, hidden=32), LinearGamma(-10.0, 6.0)
    optimizer = torch.optim.Adam(
        [p for n, p in gamma.named_parameters() if not n.startswith("gamma")], lr=0.05
    )
    for step in range(250):
        optimizer.zero_grad()
        terms(gamma, 256, seed=step, scale=1.0).mean().backward()
        optimizer.step()
    closed = 4 * 0.5 * (math.log1p(STD**2 * math.exp(10.0)) - math.log1p(STD**2 * math.exp(-6.0)))
    learned, before = (terms(g, 50_000, seed=1).detach() for g in (gamma, line))
    for value in (learned, before):
        assert value.mean().item() == pytest.approx(closed, rel=0.02)
    assert learned.var() < 0.75 * before.var(), "the rest is the variance of the noise"
    # the mean of the loss over x0 and eps becomes more even in u
    grid = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    at, slope = gamma(grid)
    power = STD**2 * torch.exp(-at)
    flat = (0.5 * slope * power / (1 + power)).detach()
    ratio = 0.5 * 16.0 * torch.sigmoid(math.log(STD**2) - line(grid)[0])
    assert flat.std() / flat.mean() < 0.45 * ratio.std() / ratio.mean()


def test_vdm_s_loss_routes_the_gradients() -> None:
    """The end points get the gradient of the bound, the path that of E[L²], in bits per dimension.

    L is the diffusion loss.
    """
    torch.manual_seed(0)
    vdm = VDM(shape=[3], likelihood="gaussian", widths=[4], gamma_min=-5.0, gamma_max=3.0)
    with torch.no_grad():
        for p in vdm.network.parameters():
            p += 0.1 * torch.randn_like(p)
    vdm.double()
    x0, unit, counter = (
        ops.randn((64, 3), seed=1, dtype=torch.float64),
        3 * math.log(2),
        {"seed": 2, "step": 5},
    )
    got = gradients(vdm.gamma, vdm.loss(x0, **counter).mean())
    u = times.stratified(torch.arange(64), **counter)
    value = diffusion_terms(vdm.predict, x0, vdm.gamma, u, prediction_type="v", **counter) / unit
    rest = (vdm.reconstruction(x0, sample_ids=torch.arange(64), **counter) + vdm.prior(x0)) / unit
    ends, path = (
        gradients(vdm.gamma, (value + rest).mean()),
        gradients(vdm.gamma, value.square().mean()),
    )
    for name, gradient in got.items():
        expected = ends[name] if name.startswith("gamma") else path[name]
        torch.testing.assert_close(
            gradient, expected, rtol=1e-5, atol=1e-8
        )  # the network's time embedding is float32
        assert gradient.abs().max() > 0
    torch.testing.assert_close(vdm.loss(x0, **counter), value + rest)


def test_errors_are_one_sentence() -> None:
    for call, message in (
        (
            lambda: make("quadratic", -6, 4),
            "fastdiff.theory.variational: expected schedule in .*, got 'quadratic'",
        ),
        (lambda: make("linear", 4, -6), "expected finite gamma_min < gamma_max, got 4, -6"),
        (
            lambda: make(Schedule.flow(10), -6, 4),
            "expected a variance-preserving schedule .*, got Schedule.flow",
        ),
        (lambda: LearnedGamma(hidden=0), "expected hidden >= 1, got 0"),
        (
            lambda: Schedule.learned([1.0, 2.0]),
            "Schedule.learned: expected strictly decreasing log_snr, got 2.0 at index 1",
        ),
        (lambda: Schedule.learned([math.inf, 2.0]), "expected log_snr as finite numbers"),
        (
            lambda: Schedule.learned(lambda u: -u, 0),
            "Schedule.learned: expected num_train_timesteps >= 1, got 0",
        ),
        (
            lambda: Schedule.linear(10).transition(3, 4),
            "expected timesteps -1 <= s <= t < 10, got t = 3 and s = 4",
        ),
        (lambda: Schedule.linear(10).transition([1, 2.5], 0), "got t = 2.5 and s = 0"),
        (lambda: Schedule.linear(10).transition(10, 0), "got t = 10 and s = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
