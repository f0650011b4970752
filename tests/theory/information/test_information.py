"""Surprise, entropy, cross-entropy and KL in float64 against closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import INFORMATION, SUM

from fastdiff.theory import information
from fastdiff.theory.information import Gaussian, Sampled

INF = math.inf


def probabilities(shape: tuple[int, ...], seed: int = 0, zeros: float = 0.0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    p = random.gamma(0.5, size=shape) * (random.random(shape) >= zeros)
    p[..., 0] += 1e-3  # never all zero
    return torch.from_numpy(p / p.sum(-1, keepdims=True))


def gaussians(shape: tuple[int, ...], seed: int) -> Gaussian:
    random = np.random.default_rng(seed)
    return Gaussian(*(torch.from_numpy(random.standard_normal(shape)) for _ in range(2)))


def test_a_fair_coin() -> None:
    """A side has one bit of surprise, and the entropy is one bit, or ln 2 nats."""
    coin = torch.tensor([0.5, 0.5])
    assert information.surprise(coin, unit="bits").tolist() == [1.0, 1.0]
    assert information.surprise(0.5, unit="bits").item() == 1.0
    assert information.entropy(coin, unit="bits").item() == 1.0
    assert information.entropy([0.5, 0.5]).item() == math.log(2)
    assert information.surprise(coin, torch.tensor(1), unit="bits").item() == 1.0
    loaded = torch.tensor([0.9, 0.1], dtype=torch.float64)
    expected = -math.log2(0.9) * 0.5 - math.log2(0.1) * 0.5
    assert (
        abs(information.cross_entropy(coin.double(), loaded, unit="bits").item() - expected) < 1e-15
    )


def test_discrete_against_scipy() -> None:
    p, q = probabilities((5, 7), 1, zeros=0.4), probabilities((5, 7), 2)
    np.testing.assert_allclose(
        information.entropy(p).numpy(),
        scipy.special.entr(p.numpy()).sum(-1),
        rtol=INFORMATION,
        atol=INFORMATION,
    )
    expected = scipy.special.rel_entr(p.numpy(), q.numpy()).sum(-1)
    np.testing.assert_allclose(
        information.kl(p, q).numpy(), expected, rtol=INFORMATION, atol=INFORMATION
    )
    np.testing.assert_allclose(
        information.kl(p, q, unit="bits").numpy() * math.log(2),
        expected,
        rtol=INFORMATION,
        atol=INFORMATION,
    )
    np.testing.assert_allclose(
        information.cross_entropy(p, q).numpy(),
        -scipy.special.xlogy(p.numpy(), q.numpy()).sum(-1),
        rtol=INFORMATION,
    )


def test_zeros() -> None:
    """0 log 0 = 0; the surprise of q = 0 < p is infinite; outcomes with p = 0 do not count."""
    sure, even, other = [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]
    assert information.entropy(sure).item() == 0
    assert information.kl(sure, even).item() == pytest.approx(math.log(2), abs=1e-15)
    assert information.cross_entropy(sure, even).item() == pytest.approx(math.log(2), abs=1e-15)
    assert information.kl(even, sure).item() == information.cross_entropy(even, other).item() == INF
    assert information.kl(sure, sure).item() == information.kl(even, even).item() == 0
    assert information.surprise(sure).tolist() == [0, INF, INF]
    logits = torch.tensor([0.0, -INF, 3.0], dtype=torch.float64, requires_grad=True)
    value = information.entropy(logits, logits=True) + information.kl(
        logits, torch.zeros(3).double(), logits=True
    )
    assert value.item() == pytest.approx(math.log(3), abs=1e-15), "H(p) + KL(p‖uniform) = log K"
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_no_measure_is_minus_zero() -> None:
    """A certain outcome has the surprise 0, which prints without a sign, in either unit."""
    sure, logits = torch.tensor([1.0, 0.0]), torch.tensor([0.0, -torch.inf])
    flat = Sampled(lambda x: torch.zeros(len(x)), lambda n, seed: torch.zeros(n, 1))
    for unit in ("nats", "bits"):
        for value in (
            information.entropy(sure, unit=unit),
            information.entropy(logits, logits=True, unit=unit),
            information.cross_entropy(sure, sure, unit=unit),
            information.kl(sure, sure, unit=unit),
            information.surprise(sure, unit=unit)[0],
            information.surprise(sure, torch.tensor(0), unit=unit),
            information.surprise(flat, torch.zeros(3, 1), unit=unit),
            information.entropy(flat, unit=unit).value,
            information.cross_entropy(flat, flat, unit=unit).value,
        ):
            assert (value == 0).all() and not torch.signbit(value).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_identities_of_discrete_distributions(seed: int, outcomes: int) -> None:
    """H(p, q) = H(p) + KL(p‖q) >= H(p), KL >= 0 and 0 at q = p, H <= log K."""
    p, q = probabilities((3, outcomes), seed, zeros=0.3), probabilities((3, outcomes), seed + 1)
    h, cross, kl = information.entropy(p), information.cross_entropy(p, q), information.kl(p, q)
    torch.testing.assert_close(cross, h + kl, rtol=INFORMATION, atol=INFORMATION)
    assert (kl >= 0).all() and (h >= 0).all() and (h <= math.log(outcomes) + INFORMATION).all()
    assert (information.kl(p, p) == 0).all()


def test_near_equal_distributions_keep_their_digits() -> None:
    """KL(p‖p + d) = Σ d²/2p + O(d³), far below a rounding of its terms."""
    p, d = (
        torch.full((4,), 0.25, dtype=torch.float64),
        torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64) * 1e-9,
    )
    assert information.kl(p, p + d).item() == pytest.approx((d**2 / (2 * p)).sum().item(), rel=1e-6)


def test_logits_and_probabilities_agree_and_logits_reach_further() -> None:
    logits = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    other = logits.flip(-1)
    for f in (information.cross_entropy, information.kl):
        torch.testing.assert_close(
            f(logits, other, logits=True), f(logits.softmax(-1), other.softmax(-1))
        )
    far = torch.tensor([0.0, -2000.0], dtype=torch.float64)
    assert information.kl(torch.zeros(2).double(), far, logits=True).item() == pytest.approx(
        1000 - math.log(2)
    )
    assert information.surprise(far, torch.tensor([1]), logits=True).item() == 2000


def test_gradients_of_discrete_measures() -> None:
    p, q = probabilities((2, 4), 3), probabilities((2, 4), 4)
    for values in (p, q):
        values.requires_grad_()
    for f in (information.kl, information.cross_entropy):
        on_simplex = lambda a, b, f=f: f(a.softmax(-1), b.softmax(-1))  # noqa: E731
        assert torch.autograd.gradcheck(on_simplex, (p, q))
        assert torch.autograd.gradcheck(lambda a, b, f=f: f(a, b, logits=True), (p, q))
    assert torch.autograd.gradcheck(
        lambda a: information.entropy(a, logits=True, unit="bits"), (p,)
    )


def test_gaussians_against_scipy(backend: str) -> None:
    p, q = gaussians((3, 2, 4), 5), gaussians((3, 2, 4), 6)
    s = {n: (g.mean.numpy(), np.exp(0.5 * g.logvar.numpy())) for n, g in {"p": p, "q": q}.items()}
    entropy = scipy.stats.norm(*s["p"]).entropy().sum((1, 2))
    np.testing.assert_allclose(information.entropy(p).numpy(), entropy, rtol=INFORMATION)
    (m0, s0), (m1, s1) = s["p"], s["q"]
    expected = 0.5 * (np.log(s1**2 / s0**2) + (s0**2 + (m0 - m1) ** 2) / s1**2 - 1).sum((1, 2))
    np.testing.assert_allclose(information.kl(p, q).numpy(), expected, rtol=SUM["float64"])
    cross = information.cross_entropy(p, q)
    np.testing.assert_allclose(cross.numpy(), entropy + expected, rtol=SUM["float64"])
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    density = scipy.stats.norm(*s["p"]).logpdf(x.numpy()).sum((1, 2))
    np.testing.assert_allclose(information.surprise(p, x).numpy(), -density, rtol=INFORMATION)
    assert (information.kl(p, p) == 0).all()
    assert torch.equal(information.kl(tuple(p), tuple(q)), information.kl(p, q)), (
        "a plain pair is a Gaussian"
    )


def test_a_single_gaussian_and_broadcasting(backend: str) -> None:
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert information.kl((one, zero), (zero, zero)).item() == 0.5
    assert information.entropy((zero, zero)).item() == pytest.approx(
        0.5 * math.log(2 * math.pi * math.e), abs=1e-15
    )
    assert information.cross_entropy((one, zero), (zero, zero)).item() == pytest.approx(
        1 + 0.5 * math.log(2 * math.pi)
    )
    wide, narrow = Gaussian(torch.zeros(5, 3).double(), zero), gaussians((5, 3), 7)
    assert information.entropy(wide).shape == information.kl(narrow, wide).shape == (5,)
    torch.testing.assert_close(information.kl(narrow, (zero, zero)), information.kl(narrow, wide))


def test_gradients_of_gaussian_measures(backend: str) -> None:
    values = [v.requires_grad_() for g in (gaussians((2, 3), 8), gaussians((2, 3), 9)) for v in g]
    for f in (information.kl, information.cross_entropy):
        assert torch.autograd.gradcheck(lambda a, b, c, d, f=f: f((a, b), (c, d)), values)


def test_monte_carlo_agrees_with_closed_forms(backend: str) -> None:
    """Estimates agree within five standard errors, which halve with four times the draws."""
    p, q = gaussians((4, 3), 10), gaussians((4, 3), 11)
    sampled = Sampled(p.log_prob, p.sample)
    for got, expected in [
        (information.entropy(sampled), information.entropy(p)),
        (information.cross_entropy(sampled, q), information.cross_entropy(p, q)),
        (information.kl(sampled, q), information.kl(p, q)),
        (information.kl(p, q.log_prob), information.kl(p, q)),
        (
            information.kl(p, Sampled(q.log_prob, q.sample), unit="bits"),
            information.kl(p, q, unit="bits"),
        ),
    ]:
        assert got.value.shape == got.stderr.shape == (4,)
        assert ((got.value - expected).abs() < 5 * got.stderr).all() and (got.stderr > 0).all()
    few, many = (information.kl(sampled, q, samples=n) for n in (10_000, 40_000))
    np.testing.assert_allclose((few.stderr / many.stderr).numpy(), 2, rtol=0.05)


def test_the_standard_error_is_the_spread_of_the_estimate(backend: str) -> None:
    """Over 200 seeds the spread of the estimates agrees with their standard errors."""
    p, q = gaussians((1, 2), 12), gaussians((1, 2), 13)
    runs = [
        information.kl(Sampled(p.log_prob, p.sample), q, samples=400, seed=s) for s in range(200)
    ]
    z = torch.stack([(r.value - information.kl(p, q)) / r.stderr for r in runs])
    assert abs(z.mean()) < 5 / math.sqrt(200) and abs(z.std() - 1) < 5 / math.sqrt(400)


def test_draws_are_the_contract(backend: str) -> None:
    p = gaussians((4, 3), 14)
    assert torch.equal(p.sample(10, seed=3)[:4], p.sample(4, seed=3)), (
        "draw i does not depend on the number of draws"
    )
    estimates = [
        information.entropy(Sampled(p.log_prob, p.sample), seed=s).value for s in (5, 5, 6)
    ]
    assert torch.equal(estimates[0], estimates[1]) and not torch.equal(estimates[0], estimates[2])


def test_a_mixture_by_monte_carlo() -> None:
    """For large m, the differential entropy of ½N(-m, 1) + ½N(m, 1) is the Gaussian's plus ln 2."""
    m, gaussian = 30.0, Gaussian(torch.zeros(1, 1).double(), torch.zeros(1, 1).double())

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(gaussian.log_prob(x - m), gaussian.log_prob(x + m)) - math.log(2)

    def sample(n: int, seed: int) -> torch.Tensor:
        sign = torch.where(torch.arange(n) % 2 == 0, m, -m).double()[:, None]
        return gaussian.sample(n, seed)[:, 0] + sign

    got = information.entropy(Sampled(log_prob, sample))
    assert abs(got.value - 0.5 * math.log(2 * math.pi * math.e) - math.log(2)) < 5 * got.stderr


P = torch.tensor([0.5, 0.5])
G = Gaussian(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (
            lambda: information.entropy(P, unit="bit"),
            ValueError,
            "fastdiff.theory.information.entropy: expected unit in ['nats', 'bits'], got 'bit'.",
        ),
        (
            lambda: information.entropy(2 * P),
            ValueError,
            (
                "fastdiff.theory.information.entropy: expected probabilities p that sum to 1 over"
                " the last dimension, got a sum 1 away. Divide by the sum."
            ),
        ),
        (
            lambda: information.entropy(-P),
            ValueError,
            (
                "fastdiff.theory.information.entropy: expected probabilities p in [0, 1], got"
                " values in [-0.5, -0.5]. Pass logits=True for unnormalised log-probabilities."
            ),
        ),
        (
            lambda: information.entropy(P.long()),
            TypeError,
            "fastdiff.theory.information.entropy: expected p of a floating dtype, got torch.int64.",
        ),
        (
            lambda: information.kl(P, [0.2, 0.3, 0.5]),
            ValueError,
            "fastdiff.theory.information.kl: expected p and q over the same outcomes, got 2 and 3.",
        ),
        (
            lambda: information.kl(P, G),
            TypeError,
            (
                "fastdiff.theory.information.kl: expected p and q both discrete or both densities,"
                " got one of each."
            ),
        ),
        (
            lambda: information.kl("p", P),
            TypeError,
            (
                "fastdiff.theory.information.kl: expected p as probabilities, Gaussian(mean,"
                " logvar) or Sampled(log_prob, sample), got str."
            ),
        ),
        (
            lambda: information.kl(G.log_prob, G),
            TypeError,
            (
                "fastdiff.theory.information.kl: expected p with draws, got a function. Pass"
                " Sampled(log_prob, sample)."
            ),
        ),
        (
            lambda: information.entropy(Sampled(G.log_prob, G.sample), samples=1),
            ValueError,
            (
                "fastdiff.theory.information.entropy: expected samples >= 2 for a standard error,"
                " got 1."
            ),
        ),
        (
            lambda: information.entropy(Sampled(lambda x: x.sum(), G.sample), samples=4),
            ValueError,
            (
                "fastdiff.theory.information.entropy: expected log_prob to return [4, ...] for 4"
                " draws, got []."
            ),
        ),
        (
            lambda: information.surprise(G),
            TypeError,
            (
                "fastdiff.theory.information.surprise: expected x with a density, got None. Pass"
                " the outcome."
            ),
        ),
        (
            lambda: information.surprise(P, torch.tensor([2])),
            ValueError,
            (
                "fastdiff.theory.information.surprise: expected x as int64 indices in [0, 2), got"
                " int64 [2]."
            ),
        ),
        (
            lambda: information.surprise(G, torch.zeros(3, 3)),
            ValueError,
            (
                "fastdiff.theory.information.Gaussian: expected x of shape [..., 2, 3], got [3, 3]."
                " Pass one batch of points for each member of the batch."
            ),
        ),
    ],
)
def test_bad_input(call, kind, message) -> None:
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == message
