"""The bound term by term: against NumPy, against closed forms, and its kernel launches.

Expectations over Gaussian data are exact, without sampling error.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gaussian import Gaussian
from optimal import NATURAL, SCHEDULES, expected_terms, mmse
from tolerances import BOUND, VLB_SUM

import fastdiff
from fastdiff import Schedule, ops, reference
from fastdiff.backend import library as native
from fastdiff.prediction import Parametrization
from fastdiff.theory.likelihood import elbo, optimal_variance, steps, vlb_table

SPREAD = [*zip(SCHEDULES * 2, [0.3, 2.0, 1.0, 2.0, 0.3, 0.7, 1.0, 0.5], strict=False)]


@pytest.mark.parametrize(("schedule", "std"), SPREAD, ids=repr)
def test_with_the_optimal_variance_the_bound_is_tight(
    schedule: Schedule, std: float, backend: str
) -> None:
    """-ELBO = H(x) + KL(N(alpha m, V_T) || p(x_T)) for every T.

    The terms are ½ ln(1 + (SNR_{t-1} - SNR_t) mmse_t).
    """
    mean, kind = 0.4, NATURAL[schedule.space]
    error = mmse(schedule, std)
    terms, prior = expected_terms(schedule, kind, optimal_variance(schedule, error), mean, std)
    snr = np.exp(schedule.log_snr)
    np.testing.assert_allclose(
        terms[1:], 0.5 * np.log1p((snr[:-1] - snr[1:]) * error[1:]), rtol=BOUND, atol=BOUND
    )
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    total = schedule.alpha[-1] ** 2 * std**2 + schedule.sigma[-1] ** 2
    p = 1.0 if schedule.space == "vp" else schedule.sigma[-1] ** 2
    mismatch = 0.5 * ((total + (schedule.alpha[-1] * mean) ** 2) / p - 1 - math.log(total / p))
    assert terms.sum() + prior == pytest.approx(entropy + mismatch, rel=BOUND, abs=BOUND)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_with_the_posterior_s_variance_a_term_is_the_loss_of_snr(
    schedule: Schedule, backend: str
) -> None:
    """E L_t = ½ (SNR_{t-1} - SNR_t) mmse_t (Luo 2022, eq. 110).

    Also c1²/beta-tilde = SNR_{t-1} - SNR_t.
    """
    kind = NATURAL[schedule.space]
    terms, _ = expected_terms(schedule, kind, "fixed_small", -0.2, 0.5)
    snr, step = np.exp(schedule.log_snr), steps(schedule)
    lost = snr[:-1] * -np.expm1(np.diff(schedule.log_snr))
    np.testing.assert_allclose(terms[1:], 0.5 * lost * mmse(schedule, 0.5)[1:], rtol=BOUND)
    np.testing.assert_allclose(step.mean_x0[1:] ** 2 / step.posterior[1:], lost, rtol=1e-13)


def test_more_steps_lower_the_loss(backend: str) -> None:
    """L_2T <= L_T between equal ends (Kingma et al. 2021, section 4.1).

    The limit is ½ ln((1 + s² SNR_0)/(1 + s² SNR_T)).
    """
    std, ends = 0.5, (6.0, -6.0)
    losses = []
    for size in (5, 10, 20, 1000):
        schedule = Schedule.learned(np.linspace(*ends, size + 1))
        losses.append(expected_terms(schedule, "epsilon", "fixed_small", 0.0, std)[0][1:].sum())
    limit = 0.5 * (math.log1p(std**2 * math.exp(ends[0])) - math.log1p(std**2 * math.exp(ends[1])))
    assert losses[0] > losses[1] > losses[2] > losses[3] > limit and losses[3] == pytest.approx(
        limit, rel=2e-2
    )


class Learned:
    """An elementwise network with a variance half, the same in NumPy and torch."""

    def __call__(self, x, t):
        wide = (x * 0).reshape(len(x), -1)[:, 0] + t
        wide = wide.reshape(-1, *(1,) * (x.ndim - 1))
        half = x * 0.3 - 0.01 * wide
        return (np.concatenate if isinstance(x, np.ndarray) else torch.cat)(
            [0.7 * x + 0.02 * wide, half], 1
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_terms_are_numpy_s(dtype: torch.dtype, backend: str) -> None:
    schedule, model = Schedule.cosine(12), Learned()
    x0 = (
        torch.randint(0, 256, (3, 2, 5), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    ).to(dtype)
    ids = torch.tensor([7, 2**40, 3])
    result = elbo(
        model,
        x0,
        schedule,
        prediction_type="v",
        variance="learned_range",
        seed=9,
        sample_ids=ids,
        clip_range=1.0,
    )
    table = vlb_table(schedule, prediction_type="v", variance="learned_range", clip_range=1.0)
    clean, expected = x0.double().numpy(), []
    for t in range(12):
        index = np.full(3, t)
        noise = reference.randn(
            (3, 2, 5), seed=9, sample_ids=ids.numpy(), step=t, stream=2, dtype=np.float64
        )
        x_t = schedule.alpha[t] * clean + schedule.sigma[t] * noise
        expected.append(reference.vlb_terms(clean, x_t, model(x_t, index), table, index))
    limit = VLB_SUM["float64" if dtype == torch.float64 else "float32"]
    assert result.reconstruction.dtype == dtype and result.denoising.shape == (3, 12)
    np.testing.assert_allclose(result.reconstruction.numpy(), expected[0], rtol=limit)
    np.testing.assert_allclose(
        result.denoising.numpy()[:, 1:], np.stack(expected, 1)[:, 1:], rtol=limit, atol=limit
    )
    assert not result.denoising[:, 0].any(), "the timestep 0 has its term in the reconstruction"
    mean, logvar = clean * schedule.alpha[-1], np.full_like(clean, 2 * math.log(schedule.sigma[-1]))
    np.testing.assert_allclose(
        result.prior.numpy(), reference.gaussian_kl(mean, logvar), rtol=limit, atol=1e-6
    )


@pytest.mark.cpu_only
def test_ten_thousand_images_times_a_hundred_times_are_one_kernel_a_term() -> None:
    """A timestep takes one q_sample and one vlb_terms, the prior one gaussian_kl.

    The sum agrees with NumPy for an analytic network.
    """
    if not native.available():
        pytest.skip(f"the C++ library is off: {native.reason()}")
    schedule, n = Schedule.linear(100), 10_000
    x0 = torch.randint(0, 256, (n, 1, 2, 2), generator=torch.Generator().manual_seed(1)) / 127.5 - 1
    model, counted = (
        Gaussian(schedule, "x0", 0.1, 0.6),
        (
            "q_sample",
            "vlb_terms",
            "gaussian_kl",
            "randn",
        ),
    )
    with fastdiff.use("cpu"):
        before = [native.launches(op) for op in counted]
        result = elbo(model, x0, schedule, prediction_type="x0", variance="fixed_small", seed=3)
        launched = [native.launches(op) - b for op, b in zip(counted, before, strict=True)]
    assert launched == [100, 100, 1, 0]
    clean, snr, total = x0.double().numpy(), np.exp(schedule.log_snr), 0.0
    for t in range(100):
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]
        x_t = alpha * clean + sigma * reference.randn(
            clean.shape, seed=3, step=t, stream=2, dtype=np.float64
        )
        predicted = 0.1 + alpha * 0.36 / (alpha**2 * 0.36 + sigma**2) * (x_t - alpha * 0.1)
        if t == 0:
            scale = np.full_like(clean, 0.5 * math.log(steps(schedule).posterior[1]))
            total += reference.discretized_gaussian_nll(clean, predicted, scale).sum()
        else:
            total += 0.5 * (snr[t - 1] - snr[t]) * ((clean - predicted) ** 2).sum()
    mean, logvar = clean * schedule.alpha[-1], np.full_like(clean, 2 * math.log(schedule.sigma[-1]))
    total += reference.gaussian_kl(mean, logvar).sum()
    assert result.total().double().sum().item() == pytest.approx(total, rel=2e-6)


def test_every_prediction_type_gives_the_same_bound(backend: str) -> None:
    """One denoiser as x0, epsilon, score, v, flow and edm (Luo 2022, eq. 99, 130 and 148)."""
    schedule = Schedule.linear(30)
    x0 = ops.randn((4, 3), seed=5, dtype=torch.float64)
    totals = [
        elbo(
            Gaussian(schedule, kind, 0.2, 0.7),
            x0,
            schedule,
            prediction_type=kind,
            variance="fixed_large",
            seed=1,
            likelihood="gaussian",
        ).total()
        for kind in ("x0", "epsilon", "score", "v", "flow", "edm")
    ]
    for total in totals[1:]:
        torch.testing.assert_close(total, totals[0], rtol=BOUND, atol=0)


def test_few_times_are_an_unbiased_estimate_of_all() -> None:
    """The term of a timestep does not depend on the other requested times.

    The mean of the scaled estimates over all single times is the full sum.
    """
    schedule = Schedule.linear(12)
    x0 = ops.randn((5, 4), seed=2, dtype=torch.float64)
    arguments = {
        "prediction_type": "v",
        "variance": "fixed_small",
        "seed": 4,
        "likelihood": "gaussian",
    }
    model = Gaussian(schedule, "v", 0.0, 0.5)
    full = elbo(model, x0, schedule, **arguments)
    some = elbo(model, x0, schedule, times=[7, 0, 3], **arguments)
    assert torch.equal(some.denoising, full.denoising[:, [7, 0, 3]])
    assert torch.equal(some.reconstruction, full.reconstruction)
    single = [
        elbo(model, x0, schedule, times=[t], **arguments).total(scale=11) for t in range(1, 12)
    ]
    torch.testing.assert_close(torch.stack(single).mean(0), full.total(), rtol=1e-13, atol=0)
    own = torch.tensor([[1, 0], [2, 11], [3, 3], [4, 1], [5, 9]])
    each = elbo(model, x0, schedule, times=own, **arguments)
    assert (
        each.denoising.shape == (5, 2)
        and each.denoising[0, 1] == 0
        and (each.denoising[:, 0] > 0).all()
    )
    parts = [
        elbo(
            model,
            x0[b : b + 1],
            schedule,
            times=own[b : b + 1],
            sample_ids=torch.tensor([b]),
            **arguments,
        ).denoising
        for b in range(5)
    ]
    assert torch.equal(torch.cat(parts), each.denoising), (
        "a sample alone has the terms it has in company"
    )


def test_a_learned_density_at_t_0_is_the_fixed_one_s(backend: str) -> None:
    """Row 0 of the table gives -ln N(x0; mean, e^v) for fixed and learned variance."""
    schedule = Schedule.linear(5)
    x0 = ops.randn((3, 4), seed=2, dtype=torch.float64)
    fixed = elbo(
        lambda x, t: 0.5 * x,
        x0,
        schedule,
        prediction_type="x0",
        variance=np.full(5, math.exp(-1.5)),
        seed=0,
        times=[],
        likelihood="gaussian",
    )
    learned = elbo(
        lambda x, t: torch.cat([0.5 * x, torch.full_like(x, -1.5)], 1),
        x0,
        schedule,
        prediction_type="x0",
        variance="learned",
        seed=0,
        times=[],
        likelihood="gaussian",
    )
    torch.testing.assert_close(learned.reconstruction, fixed.reconstruction, rtol=BOUND, atol=BOUND)
    x_0 = ops.q_sample(
        x0,
        torch.zeros(3, dtype=torch.int64),
        *map(torch.tensor, (schedule.alpha, schedule.sigma)),
        seed=0,
    )
    expected = -torch.distributions.Normal(0.5 * x_0, math.exp(-0.75)).log_prob(x0).sum(1)
    torch.testing.assert_close(fixed.reconstruction, expected, rtol=BOUND, atol=BOUND)
    assert fixed.denoising.shape == (3, 0)
    torch.testing.assert_close(
        fixed.bits_per_dim(4), (fixed.reconstruction + fixed.prior) / (4 * math.log(2))
    )


def test_the_network_gets_its_own_time() -> None:
    seen = []

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t, y):
            seen.append((x.dtype, t, y))
            return type("Output", (), {"sample": x * self.weight})

        def network_time(self, point):
            return point.log_snr

    schedule, x0 = Schedule.linear(4), torch.zeros(2, 3, dtype=torch.float64)
    result = elbo(
        Network(), x0, schedule, prediction_type="v", variance="fixed_small", seed=0, cond={"y": 5}
    )
    assert len(seen) == 4 and not result.denoising.requires_grad
    for t, (dtype, time, y) in enumerate(seen):
        assert (
            dtype == torch.float32
            and y == 5
            and time.tolist() == pytest.approx([schedule.log_snr[t]] * 2)
        )
    elbo(
        lambda x, t: seen.append(t) or x,
        x0,
        Schedule.flow(4),
        prediction_type="flow",
        variance="fixed_small",
        seed=0,
    )
    assert seen[-1].dtype == torch.float32 and seen[-1].tolist() == [
        1.0,
        1.0,
    ], "sigma, in continuous schedules"


def test_wrong_arguments_are_named() -> None:
    x0, schedule = torch.zeros(2, 3), Schedule.linear(10)
    good = {"prediction_type": "x0", "variance": "fixed_small", "seed": 0}
    for change, message in (
        (
            {"times": [3, 10]},
            r"fastdiff.theory.likelihood.elbo: expected times in \[0, 10\), got 10",
        ),
        (
            {"times": torch.zeros(3, 1, dtype=torch.int64)},
            r"expected times as integers \[K\] or \[2, K\], got \[3, 1\]",
        ),
        ({"times": [0.5]}, r"expected times as integers .* of float32"),
        ({"likelihood": "bernoulli"}, "expected likelihood in .*, got 'bernoulli'"),
        ({"variance": "small"}, "fastdiff.theory.likelihood.vlb_table: expected variance in"),
        (
            {"variance": np.zeros(10)},
            r"expected variance as a name or positive numbers \[10\], got an array .* with 0",
        ),
        ({"prediction_type": "noise"}, "expected prediction_type in"),
        ({"prediction_type": Parametrization("v", unit_input=True)}, "expected prediction_type in"),
    ):
        with pytest.raises(ValueError, match=message):
            elbo(lambda x, t: x, x0, schedule, **good | change)
    with pytest.raises(ValueError, match="expected mmse > 0, got 0.0"):
        optimal_variance(schedule, 0.0)
    with pytest.raises(ValueError, match="defined at pure noise, got 'epsilon' with Schedule.flow"):
        vlb_table(Schedule.flow(10))
