"""Hierarchies: linear-Gaussian ones against exact likelihoods, a diffusion as one of them, and as
systems to train.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from gaussian import Gaussian as OptimalNetwork
from tolerances import BOUND
from torch import Tensor

from fastdiff import Schedule, ops
from fastdiff.models import MLP
from fastdiff.theory.information import Gaussian
from fastdiff.theory.likelihood import elbo, elbo_two_variable, optimal_variance
from fastdiff.theory.variational import HVAE, DiffusionHVAE, MarkovianHVAE
from fastdiff.theory.variational.markovian import Chain

# a Markovian hierarchy that is the VDM


def mmse(schedule: Schedule, std: float) -> np.ndarray:
    return std**2 * schedule.sigma**2 / (schedule.alpha**2 * std**2 + schedule.sigma**2)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("likelihood", ["gaussian", "discretized"])
def test_with_a_schedule_s_encoder_it_is_the_vdm_draw_by_draw(
    variance: str, likelihood: str, backend: str
) -> None:
    """The recursion's sum is `elbo_two_variable` of the same noise, in expectation `elbo` (Luo
    2022, eq. 29, 44 and 58).
    """
    schedule = Schedule.linear(6, beta_end=0.4)
    inner = OptimalNetwork(schedule, "v", 0.1, 0.8)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return (
            torch.cat([inner(x, t), 0.3 * torch.ones_like(x)], 1)
            if variance == "learned_range"
            else inner(x, t)
        )

    x0 = (
        torch.randint(0, 256, (5, 4), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    ).double()
    options = {
        "prediction_type": "v",
        "variance": variance,
        "likelihood": likelihood,
        "clip_range": 1.0,
    }
    chain = DiffusionHVAE(network, schedule, **options)
    terms = chain.terms(x0, seed=3)
    assert list(terms) == ["reconstruction", *(f"consistency_{t}" for t in range(1, 6)), "prior"]
    expected = elbo_two_variable(network, x0, schedule, seed=3, **options)
    torch.testing.assert_close(sum(terms.values()), expected, rtol=BOUND, atol=BOUND)
    torch.testing.assert_close(chain.loss(x0, seed=3), expected, rtol=BOUND, atol=BOUND)
    torch.testing.assert_close(
        sum(chain.bound(x0, seed=3).values()), expected, rtol=BOUND, atol=BOUND
    )


def test_in_expectation_both_bounds_are_one() -> None:
    schedule, n = Schedule.linear(6, beta_end=0.4), 20_000
    network = OptimalNetwork(schedule, "v", 0.1, 0.8)
    x0 = 0.5 * ops.randn((n, 2), seed=1, dtype=torch.float64)
    options = {"prediction_type": "v", "variance": "fixed_small", "likelihood": "gaussian"}
    chain = DiffusionHVAE(network, schedule, **options)
    difference = chain.loss(x0, seed=3) - elbo(network, x0, schedule, seed=4, **options).total()
    assert difference.mean().abs() < 5 * difference.std() / math.sqrt(n) and difference.std() > 0.1


def test_with_the_optimal_decoder_every_draw_gives_the_likelihood(backend: str) -> None:
    """N(0, 1) data: whatever z_1 … z_L, the recursion is -ln p(x0)."""
    schedule = Schedule.cosine(9)
    options = {
        "prediction_type": "x0",
        "variance": optimal_variance(schedule, mmse(schedule, 1.0)),
        "likelihood": "gaussian",
    }
    chain = DiffusionHVAE(OptimalNetwork(schedule, "x0"), schedule, **options)
    x0 = ops.randn((4, 3), seed=0, dtype=torch.float64)
    expected = 0.5 * (x0.square() + math.log(2 * math.pi)).sum(1)
    for seed in (1, 2):
        torch.testing.assert_close(chain.loss(x0, seed=seed), expected, rtol=BOUND, atol=BOUND)


def test_a_diffusion_hierarchy_rebuilds_itself() -> None:
    torch.manual_seed(0)
    network = MLP(dim=2, width=8, depth=1, emb=8)
    chain = DiffusionHVAE(
        network, Schedule.linear(5), prediction_type="v", variance=[0.1] * 5, likelihood="gaussian"
    )
    again = DiffusionHVAE(**json.loads(json.dumps(chain.config)))
    again.load_state_dict(chain.state_dict())
    x0 = ops.randn((3, 2), seed=0)
    assert torch.equal(again.loss(x0, seed=1), chain.loss(x0, seed=1))
    with pytest.raises(TypeError, match="expected a network of fastdiff.models"):
        _ = DiffusionHVAE(lambda x, t: x, Schedule.linear(5)).config


# a linear-Gaussian hierarchy, whose likelihood and posterior are closed form


class Linear(Chain):
    """p(z_L) = N(0, I), p(z_l|z_{l+1}) = N(W_l z_{l+1}, s² I); q has the exact mean, the exact
    variances times e^widen.
    """

    def __init__(self, maps: list[list[list[float]]], widen: float = 0.0):
        super().__init__()
        self.maps, self.depth, self.spread, self.widen = (
            [torch.tensor(w).double() for w in maps],
            len(maps),
            0.5,
            widen,
        )
        self.covariances = [torch.eye(self.maps[-1].shape[1], dtype=torch.float64)]  # of z_0 … z_L
        for w in reversed(self.maps):
            blur = self.spread**2 * torch.eye(len(w), dtype=torch.float64)
            self.covariances.insert(0, w @ self.covariances[0] @ w.T + blur)

    def posterior(self, level: int) -> tuple[Tensor, Tensor]:
        """(gain, covariance) of p(z_{l+1}|z_l)."""
        w, above = self.maps[level], self.covariances[level + 1]
        gain = above @ w.T @ torch.linalg.inv(self.covariances[level])
        return gain, above - gain @ w @ above

    def encode(self, level: int, z: Tensor) -> Gaussian:
        gain, rest = self.posterior(level)
        return Gaussian(z @ gain.T, (rest.diagonal().log() + self.widen).expand(len(z), -1))

    def decode(self, level: int, z: Tensor) -> Gaussian:
        return Gaussian(
            z @ self.maps[level].T, torch.tensor(2 * math.log(self.spread), dtype=torch.float64)
        )

    def log_likelihood(self, x0: Tensor, z: Tensor) -> Tensor:
        return self.decode(0, z).log_prob(x0)

    def log_p(self, x0: Tensor) -> Tensor:
        zero = torch.zeros(len(self.covariances[0]), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zero, self.covariances[0]).log_prob(x0)

    def gap(self) -> float:
        """Σ_l KL(q(z_{l+1}|z_l) ‖ p(z_{l+1}|z_l)): diagonal against full covariance around one
        mean.
        """
        total = 0.0
        for level in range(self.depth):
            _, rest = self.posterior(level)
            own = (rest.diagonal() * math.exp(self.widen)).diag()
            inner = torch.linalg.solve(rest, own)
            total += 0.5 * (inner.trace() - len(rest) - torch.logdet(inner)).item()
        return total


LINE = [[[0.8], [-0.5], [1.2]], [[0.7]]]
PLANE = [[[1.0, 0.9], [0.8, 1.0], [0.3, -0.5]], [[0.9, 0.4], [0.5, 1.0]]]


def test_with_the_exact_posterior_every_draw_gives_the_likelihood(backend: str) -> None:
    """Latents of one dimension, whose posterior factorises: -ln p(x) whatever is drawn."""
    chain = Linear(LINE)
    x0 = ops.randn((6, 3), seed=0, dtype=torch.float64)
    total = sum(chain.terms(x0, seed=1).values())
    torch.testing.assert_close(total, -chain.log_p(x0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("maps", "widen"), [(LINE, 0.7), (PLANE, 0.0), (PLANE, -0.4)], ids=["wide", "plane", "narrow"]
)
def test_with_another_posterior_the_gap_is_its_kl(maps: list, widen: float) -> None:
    """E[sum] + ln p(x) = KL(q(z_1:L|x) ‖ p(z_1:L|x)), which adds over the levels (Luo 2022, eq.
    15).
    """
    chain, n = Linear(maps, widen), 40_000
    x0 = ops.randn((1, 3), seed=3, dtype=torch.float64)
    value = sum(chain.terms(x0.expand(n, 3), seed=1).values()) + chain.log_p(x0)
    error = value.std() / math.sqrt(n)
    assert abs(value.mean() - chain.gap()) < 5 * error and chain.gap() > 10 * error


# the systems


@pytest.fixture
def images() -> Tensor:
    return (
        torch.randint(0, 256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    )


def small(kl_warmup: int = 0, **options) -> HVAE:
    torch.manual_seed(3)
    model = HVAE(
        (1, 8, 8), ((2, 4), (3, 2), (4, 1)), widths=(4, 6, 8), kl_warmup=kl_warmup, **options
    )
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p += 0.2 * torch.randn_like(p)
    return model


MODELS = {
    "images": (small, (1, 8, 8)),
    "vectors": (
        lambda: HVAE((3,), ((2, 1), (2, 1)), widths=(8, 8), likelihood="gaussian", kl_warmup=0),
        (3,),
    ),
    "markovian": (lambda: MarkovianHVAE((3,), (2, 2, 1), widths=(8,), kl_warmup=0), (3,)),
    "markovian levels": (
        lambda: MarkovianHVAE(
            (1, 4, 4), (3, 2), widths=(8,), likelihood="discretized", kl_warmup=0
        ),
        (1, 4, 4),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_as_a_system(name: str) -> None:
    """Rebuilt from JSON it is itself; loss, bound and samples are functions of (seed, step, ids),
    alone as in company.
    """
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    x0 = (
        torch.randint(0, 256, (5, *shape), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    ).float()
    again = type(model)(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    ids = torch.arange(70, 75)
    loss = model.loss(x0, torch.zeros(5, dtype=torch.int64), seed=1, sample_ids=ids, step=2)
    assert loss.shape == (5,) and torch.equal(again.loss(x0, seed=1, sample_ids=ids, step=2), loss)
    assert not torch.equal(model.loss(x0, seed=1, sample_ids=ids, step=3), loss)
    loss.mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        bound = model.bound(x0, seed=1, sample_ids=ids, step=2)
        torch.testing.assert_close(sum(bound.values()), loss.detach(), rtol=1e-5, atol=1e-4)
        alone = model.bound(x0[3:4], seed=1, sample_ids=ids[3:4], step=2)
        for key, value in alone.items():
            torch.testing.assert_close(value, bound[key][3:4], rtol=1e-4, atol=1e-4)
        three = model.bound(x0, seed=1, sample_ids=ids, samples=3)
        parts = [model.bound(x0, seed=1, sample_ids=ids, step=k) for k in range(3)]
    for key, value in three.items():
        torch.testing.assert_close(value, sum(p[key] for p in parts) / 3, rtol=1e-4, atol=1e-4)
    x = model.sample(4, seed=5)
    assert x.shape == (4, *shape) and x.isfinite().all()
    torch.testing.assert_close(
        model.sample(1, seed=5, sample_ids=torch.tensor([2])), x[2:3], rtol=1e-4, atol=1e-4
    )
    assert not torch.equal(model.sample(4, seed=5, mean=True), x)


def test_the_terms_are_the_likelihood_and_the_levels_kls(images: Tensor) -> None:
    """Against torch.distributions at the same draws; the importance-weighted bound is not above the
    ELBO's cost.
    """
    model = small().double()
    x0 = images.double()
    drawn = model.descend(model.features(x0), seed=4)
    bound = model.bound(x0, seed=4)
    assert list(bound) == ["reconstruction", "kl_1", "kl_2", "kl_3"]
    for i, (q, p) in enumerate(zip(drawn.q, drawn.p, strict=True)):
        normal = [torch.distributions.Normal(g.mean, torch.exp(0.5 * g.logvar)) for g in (q, p)]
        kl = torch.distributions.kl_divergence(*normal).flatten(1).sum(1)
        torch.testing.assert_close(bound[f"kl_{i + 1}"], kl, rtol=1e-10, atol=1e-10)
        assert kl.min() > 0 and drawn.z[i].shape == q.mean.shape
    assert not drawn.p[2].mean.any() and not drawn.p[2].logvar.any(), "N(0, I) at the top"
    assert drawn.p[0].mean.any(), "the prior of a lower level knows those above it"
    with torch.no_grad():
        many = model.bound(x0, seed=4, samples=8, importance=True)
    log_w = []
    for k in range(8):
        d = model.descend(model.features(x0), seed=4, step=k)
        log_p = model.observation.log_prob(x0, d.x)
        log_w.append(
            log_p
            + sum(p.log_prob(z) - q.log_prob(z) for q, p, z in zip(d.q, d.p, d.z, strict=True))
        )
    iwae = torch.logsumexp(torch.stack(log_w, 1), 1) - math.log(8)
    torch.testing.assert_close(sum(many.values()), -iwae.detach(), rtol=1e-10, atol=1e-10)
    assert (many["importance"] < 0).all() or many["importance"].mean() < 0


def test_a_lower_level_s_posterior_depends_on_the_draw_above(images: Tensor) -> None:
    """q(z_l|z_>l, x): with another z_3 and the same x, z_1's posterior moves."""
    model = small()
    features = model.features(images)
    one, two = model.descend(features, seed=1), model.descend(features, seed=2)
    assert torch.equal(one.q[2].mean, two.q[2].mean) and not torch.equal(
        one.q[0].mean, two.q[0].mean
    )


def test_the_kl_s_weight_rises(images: Tensor) -> None:
    model = small(kl_warmup=10)
    bound = {k: v.detach() for k, v in model.bound(images, seed=1, step=4).items()}
    kl = sum(v for k, v in bound.items() if k != "reconstruction")
    expected = bound["reconstruction"] + 0.5 * kl
    torch.testing.assert_close(
        model.loss(images, seed=1, step=4).detach(), expected, rtol=1e-5, atol=1e-4
    )
    late = {k: v.detach() for k, v in model.bound(images, seed=1, step=40).items()}
    torch.testing.assert_close(
        model.loss(images, seed=1, step=40).detach(), sum(late.values()), rtol=1e-5, atol=1e-4
    )


def test_a_markovian_chain_s_weights_and_warmup() -> None:
    """The importance-weighted bound of K chains is that of their log-ratios; the warm-up leaves the
    reconstruction alone.
    """
    torch.manual_seed(0)
    model = MarkovianHVAE((3,), (2, 2), widths=(8,), kl_warmup=10).double()
    x0 = torch.randn(6, 3, dtype=torch.float64)
    with torch.no_grad():
        chains = [sum(model.terms(x0, seed=4, step=2 * 8 + k).values()) for k in range(8)]
        bound = model.bound(x0, seed=4, step=2, samples=8, importance=True)
        iwae = torch.logsumexp(-torch.stack(chains, 1), 1) - math.log(8)
        torch.testing.assert_close(sum(bound.values()), -iwae, rtol=1e-12, atol=1e-12)
        assert (bound["importance"] < 0).all() and list(bound)[-1] == "importance"
        terms = model.terms(x0, seed=1, step=4)
        rest = sum(v for k, v in terms.items() if k != "reconstruction")
        torch.testing.assert_close(
            model.loss(x0, seed=1, step=4), terms["reconstruction"] + 0.5 * rest
        )
        late = sum(model.terms(x0, seed=1, step=10).values())
        torch.testing.assert_close(model.loss(x0, seed=1, step=10), late)


@pytest.mark.parametrize("kind", ["hvae", "markovian"])
def test_training_comes_near_the_entropy(kind: str) -> None:
    """Correlated Gaussian data of known entropy; the untrained bound is far above it."""
    torch.manual_seed(0)
    w = torch.tensor([[1.0, 0.0], [0.95, 0.3]])
    x0 = ops.randn((2_048, 2), seed=0) @ w.T
    entropy = math.log(2 * math.pi * math.e) + math.log(0.3)
    model: HVAE | MarkovianHVAE
    if kind == "hvae":
        model = HVAE((2,), ((2, 1), (2, 1)), widths=(16, 16), likelihood="gaussian", kl_warmup=0)
    else:
        model = MarkovianHVAE((2,), (2, 2), widths=(16,), kl_warmup=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    values = []
    for step in range(100):
        if step in (0, 99):
            with torch.no_grad():
                values.append(sum(model.bound(x0, seed=9).values()).mean().item())
        ids = torch.arange(step * 128, (step + 1) * 128) % 2_048
        optimizer.zero_grad()
        model.loss(x0[ids], seed=0, sample_ids=ids, step=step).mean().backward()
        optimizer.step()
    assert values[1] > entropy - 0.1 and values[1] - entropy < 0.4 * (values[0] - entropy)


def test_mistakes_are_told_in_one_sentence(images: Tensor) -> None:
    for call, message in (
        (
            lambda: HVAE((1, 8, 8), ((2, 3),), widths=(4,)),
            "fastdiff.theory.variational.HVAE: expected sizes that divide .*, got 3 above 8",
        ),
        (
            lambda: HVAE((1, 8, 8), ((2, 4), (2, 2)), widths=(4,)),
            r"expected a width >= 1 for each of the latents",
        ),
        (
            lambda: HVAE((1, 8, 6), ((2, 1),), widths=(4,)),
            r"expected shape \[C, S, S\] or \[D\], got \[1, 8, 6\]",
        ),
        (lambda: small(kl_warmup=-1), "expected kl_warmup >= 0, got -1"),
        (lambda: small(likelihood="laplace"), "expected likelihood in .*, got 'laplace'"),
        (
            lambda: small().loss(images[:, :, :4], seed=0),
            r"HVAE: expected x0 of shape \[B, 1, 8, 8\], got \[5, 1, 4, 8\]",
        ),
        (lambda: small().bound(images, seed=0, samples=0), "expected samples >= 1, got 0"),
        (
            lambda: MarkovianHVAE((2,), ()),
            "MarkovianHVAE: expected sizes >= 1 in shape, latents and widths",
        ),
        (
            lambda: MarkovianHVAE((2,)).loss(images, seed=0),
            r"MarkovianHVAE: expected x0 of shape \[B, 2\]",
        ),
        (
            lambda: DiffusionHVAE(lambda x, t: x, Schedule.linear(3), likelihood="l"),
            "expected likelihood in .*, got 'l'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
