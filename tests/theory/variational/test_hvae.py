"""Hierarchical models: linear-Gaussian ones against exact likelihoods, and as systems."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from fastdiff import Schedule, ops
from fastdiff.theory.information import Gaussian
from fastdiff.theory.variational import HVAE, DiffusionHVAE, MarkovianHVAE
from fastdiff.theory.variational.markovian import Chain

# a linear-Gaussian hierarchy, with likelihood and posterior in closed form


class Linear(Chain):
    """p(z_L) = N(0, I), p(z_l|z_{l+1}) = N(W_l z_{l+1}, s² I).

    q has the exact means and the exact variances times e^widen.
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
        """Returns Σ_l KL(q(z_{l+1}|z_l) ‖ p(z_{l+1}|z_l)), of equal means."""
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
    """For latents of one dimension, the posterior factorises: every draw gives -ln p(x)."""
    chain = Linear(LINE)
    x0 = ops.randn((6, 3), seed=0, dtype=torch.float64)
    total = sum(chain.terms(x0, seed=1).values())
    torch.testing.assert_close(total, -chain.log_p(x0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("maps", "widen"), [(LINE, 0.7), (PLANE, 0.0), (PLANE, -0.4)], ids=["wide", "plane", "narrow"]
)
def test_with_another_posterior_the_gap_is_its_kl(maps: list, widen: float) -> None:
    """E[sum] + ln p(x) = KL(q(z_1:L|x) ‖ p(z_1:L|x)), a sum over the levels (Luo 2022, eq. 15)."""
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
    """JSON rebuilds a system; loss, bound and samples are functions of (seed, step, ids)."""
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
    """The terms equal those of torch.distributions at the same draws; -IWAE is at most -ELBO."""
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
    assert drawn.p[0].mean.any(), "the prior of a lower level depends on the levels above it"
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
    """q(z_l|z_>l, x): with another z_3 and the same x, the posterior of z_1 changes."""
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
    """-IWAE_K follows from the log-ratios of K chains; the warm-up leaves the reconstruction."""
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
    """On correlated Gaussian data, training brings the bound close to the known entropy."""
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


def test_errors_are_one_sentence(images: Tensor) -> None:
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
        (lambda: small(likelihood="laplace"), r"\.HVAE: expected likelihood in .*, got 'laplace'"),
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
            r"\.DiffusionHVAE: expected likelihood in .*, got 'l'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
