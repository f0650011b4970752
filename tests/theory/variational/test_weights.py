"""Weights of noise levels, the objectives built from them, and the sampling of times."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gaussian import Gaussian
from tolerances import BOUND, CONVERSION

from fastdiff import Schedule, ops, prediction
from fastdiff.theory.likelihood import elbo, steps
from fastdiff.theory.variational import times
from fastdiff.theory.variational.denoising import DenoisingLoss
from fastdiff.theory.variational.weights import WEIGHTINGS, output_weight, vlb_weight, weight

LOG_SNR = torch.linspace(-12, 12, 49, dtype=torch.float64)
SNR = LOG_SNR.exp()
ALPHA, SIGMA = torch.sigmoid(LOG_SNR).sqrt(), torch.sigmoid(-LOG_SNR).sqrt()


@pytest.mark.parametrize("kind", prediction.PREDICTION_TYPES)
def test_errors_of_all_predictions_are_one_error(kind: str) -> None:
    """‖eps - eps^‖² = output_weight·‖output error‖² for two outputs of each type at one x_t."""
    x_t = torch.full_like(ALPHA, 0.3)
    eps = [
        prediction.convert(kind, "epsilon", torch.full_like(ALPHA, v), x_t, ALPHA, SIGMA)
        for v in (0.7, -0.4)
    ]
    squared = (eps[0] - eps[1]).square()
    torch.testing.assert_close(
        output_weight(kind, ALPHA, SIGMA) * 1.1**2, squared, rtol=CONVERSION * 1e3, atol=0
    )
    ratios = {"epsilon": 1 + 0 * SNR, "x0": SNR, "v": ALPHA**2, "score": SIGMA**2}
    if kind in ratios:
        torch.testing.assert_close(
            output_weight(kind, ALPHA, SIGMA), ratios[kind], rtol=CONVERSION, atol=0
        )


def test_the_weights_have_their_papers_values() -> None:
    """As factors of ‖x0 - x̂0‖², which is ‖eps - eps^‖²/SNR."""
    rho = SIGMA / ALPHA
    on_x0 = {
        "simple": SNR,
        "v": SNR + 1,
        "x0": torch.ones_like(SNR),
        "min_snr": SNR.clamp(max=5.0),
        "edm": (rho**2 + 0.25) / (rho * 0.5) ** 2,
        "p2": SNR / (1 + SNR),
        "sigmoid": math.e**2 * torch.sigmoid(LOG_SNR - 2),
    }
    assert set(on_x0) == set(WEIGHTINGS)
    for name, value in on_x0.items():
        torch.testing.assert_close(weight(name, LOG_SNR) * SNR, value, rtol=CONVERSION, atol=0)
    # v with weight 1 on v's own error
    torch.testing.assert_close(
        weight("v", LOG_SNR) * output_weight("v", ALPHA, SIGMA), torch.ones_like(SNR)
    )
    assert weight("edm", torch.tensor([-math.inf, math.inf]), sigma_data=2.0).tolist() == [
        math.inf,
        1.0,
    ]


@pytest.mark.parametrize("schedule", [Schedule.linear(1000), Schedule.cosine(40)], ids=repr)
def test_the_bound_s_weight(schedule: Schedule) -> None:
    """½ expm1(log_snr_s - log_snr_t)·SNR_t = ½ c1²/beta-tilde (Luo 2022, eq. 101–110)."""
    levels, step = torch.tensor(schedule.log_snr), steps(schedule)
    got = vlb_weight(levels[:-1], levels[1:]) * levels[1:].exp()
    expected = 0.5 * step.mean_x0[1:] ** 2 / step.posterior[1:]
    np.testing.assert_allclose(got.numpy(), expected, rtol=BOUND)


def test_the_losses_are_their_definitions(backend: str) -> None:
    schedule = Schedule.linear(20)
    x0, t = ops.randn((5, 3), seed=2, dtype=torch.float64), torch.tensor([0, 3, 7, 12, 19])
    eps = ops.randn((5, 3), seed=9, stream=2, step=4, dtype=torch.float64)
    levels = torch.tensor(schedule.log_snr)[t]
    for kind in ("epsilon", "x0", "v", "score"):
        model = Gaussian(schedule, kind, 0.4, 0.5)  # not the optimal network for these data
        x_t = model.alpha[t, None] * x0 + model.sigma[t, None] * eps
        estimate = Gaussian(schedule, "epsilon", 0.4, 0.5)(x_t, t)
        plain = (eps - estimate).square().mean(1)
        for name in WEIGHTINGS:
            loss = DenoisingLoss(schedule, prediction_type=kind, objective=name)(
                model, x0, t, seed=9, step=4
            )
            torch.testing.assert_close(loss, weight(name, levels) * plain, rtol=1e-9, atol=0)


def test_the_mean_of_l_vlb_is_the_bound() -> None:
    """The mean of T·L_t over all timesteps is reconstruction plus denoising, in bits per dim."""
    schedule = Schedule.cosine(8)
    x0 = (
        torch.randint(0, 256, (3, 4), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    ).double()
    model = Gaussian(schedule, "v", 0.0, 0.5)
    loss = DenoisingLoss(schedule, prediction_type="v", objective="vlb")
    values = [loss(model, x0, torch.full((3,), t), seed=1, step=t) for t in range(8)]
    terms = elbo(model, x0, schedule, prediction_type="v", variance="fixed_small", seed=1)
    expected = (terms.reconstruction + terms.denoising.sum(1)) / (4 * math.log(2))
    torch.testing.assert_close(torch.stack(values).mean(0), expected, rtol=1e-12, atol=0)


def test_hybrid_teaches_the_mean_by_l_simple_and_the_variance_by_the_bound(backend: str) -> None:
    """The mean gets the gradient of L_simple, the variance that of share·L_vlb.

    (Nichol & Dhariwal 2021, section 3.1.)
    """
    schedule, t = Schedule.linear(20), torch.tensor([1, 4, 9, 15])
    x0 = ops.randn((4, 2, 3), seed=2, dtype=torch.float64)
    out = ops.randn((4, 4, 3), seed=3, dtype=torch.float64).requires_grad_()
    grads = {}
    for name in ("simple", "vlb", "hybrid"):
        loss = DenoisingLoss(schedule, objective=name, variance="learned_range", vlb_share=0.01)
        (grads[name],) = torch.autograd.grad(loss(lambda x, t: out, x0, t, seed=1).sum(), out)
    torch.testing.assert_close(grads["hybrid"][:, :2], grads["simple"][:, :2], rtol=1e-13, atol=0)
    torch.testing.assert_close(
        grads["hybrid"][:, 2:], 0.01 * grads["vlb"][:, 2:], rtol=1e-12, atol=0
    )
    assert not grads["simple"][:, 2:].any() and grads["vlb"][:, :2].abs().min() > 0
    fixed = DenoisingLoss(schedule, objective="hybrid")
    (gradient,) = torch.autograd.grad(fixed(lambda x, t: out[:, :2], x0, t, seed=1).sum(), out)
    torch.testing.assert_close(gradient, grads["simple"], rtol=1e-13, atol=0)


def test_hybrid_training_finds_the_optimal_variance() -> None:
    """At one timestep v tends to ln(beta-tilde + c1² mmse), with the optimal mean unchanged.

    (Bao et al. 2022, theorem 1.)
    """
    schedule, n = Schedule.linear(50), 1_024
    x0, t = ops.randn((n, 1), seed=0, dtype=torch.float64), torch.full((n,), 20)
    optimal = Gaussian(schedule, "epsilon")
    v = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = DenoisingLoss(schedule, objective="hybrid", variance="learned", vlb_share=1.0)
    optimizer = torch.optim.Adam([v], lr=0.1)
    for step in range(150):
        optimizer.zero_grad()
        loss(
            lambda x, t: torch.cat([optimal(x, t), v.expand(n, 1)], 1), x0, t, seed=0, step=step
        ).mean().backward()
        optimizer.step()
    row = steps(schedule)
    expected = math.log(row.posterior[20] + row.mean_x0[20] ** 2 * schedule.sigma[20] ** 2)
    assert v.item() == pytest.approx(expected, abs=0.02)


# times

IDS = torch.arange(100, 164)


@pytest.mark.parametrize("name", times.SAMPLINGS)
def test_times_are_functions_of_seed_and_step_and_uniform(name: str) -> None:
    again = times.draw(name, IDS, seed=3, step=5)
    assert (
        torch.equal(times.draw(name, IDS, seed=3, step=5), again) and again.dtype == torch.float64
    )
    assert not torch.equal(times.draw(name, IDS, seed=3, step=6), again)
    assert not torch.equal(times.draw(name, IDS, seed=4, step=5), again)
    many = torch.cat([times.draw(name, IDS, seed=0, step=s) for s in range(400)])
    assert 0 <= many.min() and many.max() < 1
    count = torch.histc(many, 10, 0, 1)
    assert (count - len(many) / 10).abs().max() < 5 * math.sqrt(len(many) / 10)


def test_a_sample_s_own_time_does_not_depend_on_its_batch() -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    u = times.uniform(IDS, seed=3, step=5)
    assert torch.equal(times.uniform(IDS[order], seed=3, step=5), u[order])


def test_antithetic_pairs_and_strata() -> None:
    u = times.antithetic(IDS, seed=3, step=5)
    torch.testing.assert_close(
        u[::2] + u[1::2], torch.ones(32, dtype=torch.float64), rtol=0, atol=1e-15
    )
    u = times.stratified(IDS, seed=3, step=5)
    assert sorted((u * 64).floor().int().tolist()) == list(range(64)), "one in each stratum"
    halves = [times.stratified(IDS[a : a + 32], seed=3, step=5, start=a, total=64) for a in (0, 32)]
    assert torch.equal(torch.cat(halves), u), "the parts of a batch form its grid"
    parts = [times.antithetic(IDS[a : a + 32], seed=3, step=5, start=a) for a in (0, 32)]
    assert torch.equal(torch.cat(parts), times.antithetic(IDS, seed=3, step=5))
    rows = times.spread(4, IDS, seed=1)
    assert ((rows * 4).floor() == torch.arange(4)).all() and len(rows[:, 0].unique()) == 64


def test_even_times_estimate_a_mean_with_less_variance() -> None:
    """For a smooth function; antithetic pairs cancel its odd part around ½."""
    means = {
        name: torch.stack(
            [torch.exp(times.draw(name, IDS, seed=0, step=s)).mean() for s in range(100)]
        )
        for name in times.SAMPLINGS
    }
    for value in means.values():
        assert abs(value.mean() - (math.e - 1)) < 5 * value.std() / 10
    assert means["stratified"].var() < 0.03 * means["uniform"].var()
    assert means["antithetic"].var() < 0.1 * means["uniform"].var()


def test_edm_s_noise_levels_are_lognormal() -> None:
    u = torch.tensor([0.5, 0.8413447460685429, 0.15865525393145705], dtype=torch.float64)
    rho = torch.exp(-0.5 * times.edm_log_snr(u))
    expected = torch.tensor([math.exp(-1.2), 1.0, math.exp(-2.4)], dtype=torch.float64)
    torch.testing.assert_close(rho, expected, rtol=1e-12, atol=0)


def test_loss_aware_times_are_unbiased_and_follow_the_loss() -> None:
    truth = torch.tensor([8.0, 1.0, 0.5, 0.25, 4.0], dtype=torch.float64)
    aware = times.LossAware(5, history=4)
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    assert aware(grid)[1].unique().tolist() == [1.0], (
        "uniform until every timestep has `history` losses"
    )
    for _ in range(5):
        aware.update(torch.arange(5), truth)
    p = aware.probabilities()
    torch.testing.assert_close(p, 0.999 * truth / truth.sum() + 0.001 / 5, rtol=1e-14, atol=0)
    t, weights = aware(grid)
    torch.testing.assert_close((p * truth / (5 * p)).sum(), truth.mean())
    assert (weights * truth[t]).mean().item() == pytest.approx(truth.mean().item(), rel=1e-3)
    assert (weights * truth[t]).std() < 0.02 * truth[(grid * 5).long()].std()
    aware.update(torch.tensor([3]), torch.tensor([100.0]))
    assert aware.losses[3].tolist() == [0.25, 100.0, 0.25, 0.25], "the oldest value is replaced"
    again = times.LossAware(5, history=4)
    again.load_state_dict(aware.state_dict())
    assert torch.equal(again.probabilities(), aware.probabilities())


def test_errors_are_one_sentence() -> None:
    for call, message in (
        (
            lambda: weight("snr", LOG_SNR),
            "fastdiff.theory.variational.weight: expected weighting in",
        ),
        (
            lambda: weight("edm", LOG_SNR, sigma_data=0),
            "expected cap, sigma_data, k > 0, got 5.0, 0 and 1.0",
        ),
        (lambda: times.draw("even", IDS, seed=0, step=0), "expected sampling in .*, got 'even'"),
        (
            lambda: times.stratified(IDS, seed=0, step=0, start=1, total=64),
            r"expected start \+ 64 <= total, got 1 and 64",
        ),
        (lambda: times.spread(0, IDS, seed=0), "expected times >= 1, got 0"),
        (
            lambda: times.LossAware(5, floor=0.0),
            r"expected num_train_timesteps, history >= 1 and floor in \(0, 1\]",
        ),
        (
            lambda: DenoisingLoss(Schedule.linear(5), objective="l2"),
            "expected objective in .*, got 'l2'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
