"""Points of the plane: reproducible, and drawn from their density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from fastdiff.data import TOYS, load, load_toy


@pytest.mark.parametrize("name", sorted(TOYS))
def test_a_point_is_a_function_of_seed_and_id(name: str) -> None:
    many, few, other, test = (
        load_toy(name, n=500),
        load_toy(name, n=20),
        load_toy(name, n=20, seed=1),
        load(name, "test"),
    )
    assert torch.equal(many.points[:20], few.points) and torch.equal(many.labels[:20], few.labels)
    assert (
        not torch.isclose(other.points, few.points).any()
        and not torch.isclose(test.points[:20], few.points).any()
    )
    x, y = many.batch(torch.tensor([3, 7]))
    assert torch.equal(x, many.points[[3, 7]]) and torch.equal(y, many.labels[[3, 7]])
    assert many.shape == (2,) and many.examples == 500 and many.levels is None
    assert set(many.labels.tolist()) == set(range(max(len(many.classes), 1)))


@pytest.mark.parametrize("name", sorted(TOYS))
def test_the_density_sums_to_one(name: str) -> None:
    """A trapezoid rule with steps below the blur is exact to rounding (analytic integrand)."""
    toy = load_toy(name, n=1)
    side = torch.linspace(-3.5, 3.5, 141, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    assert abs(float(toy.log_density(grid).exp().sum()) * (7 / 140) ** 2 - 1) < 1e-9


def test_the_mixture_s_density_is_the_formula() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    angle = 2 * np.pi * np.arange(8) / 8
    centres = np.stack([np.cos(angle), np.sin(angle)], 1)
    p = np.mean([stats.multivariate_normal(c, 0.01 * np.eye(2)).pdf(x) for c in centres], axis=0)
    representable = p > 1e-290
    ours = load_toy("mixture", n=1).log_density(torch.from_numpy(x))
    np.testing.assert_allclose(ours[representable], np.log(p[representable]), rtol=1e-12)


@pytest.mark.parametrize("name", ["moons", "swiss-roll"])
def test_the_quadrature_is_scipy_s_integral(name: str) -> None:
    toy = load_toy(name, n=1)
    curves, variance = toy.curves, toy.curves.deviation**2
    for x in load_toy(name, n=6, seed=5).points.double():

        def density(u: float, k: int, x: torch.Tensor = x) -> float:
            c = curves.centre(torch.tensor([k]), torch.tensor([u], dtype=torch.float64))[0]
            return math.exp(-float((x - c).square().sum()) / (2 * variance)) / (
                2 * math.pi * variance
            )

        breaks = np.linspace(0, 1, 41)
        exact = (
            sum(
                integrate.quad(density, a, b, args=(k,), epsabs=1e-13, epsrel=1e-12)[0]
                for k in range(curves.number)
                for a, b in zip(breaks, breaks[1:], strict=False)
            )
            / curves.number
        )
        assert float(toy.log_density(x[None])[0]) == pytest.approx(math.log(exact), abs=1e-11)


@pytest.mark.parametrize("name", sorted(TOYS))
def test_the_points_have_that_density(name: str) -> None:
    """The counts of points in a grid's cells agree with the density's integrals (chi-squared)."""
    toy = load_toy(name, n=20_000)
    edges = np.linspace(-2.5, 2.5, 13)
    fine = 10  # midpoints per cell and axis: the error is below 1e-3 of a cell's share
    middle = torch.from_numpy(np.linspace(-2.5, 2.5, 12 * fine, endpoint=False) + 2.5 / (12 * fine))
    p = (
        toy.log_density(torch.cartesian_prod(middle, middle))
        .exp()
        .reshape(12, fine, 12, fine)
        .sum((1, 3))
        .numpy()
    )
    p *= (5 / (12 * fine)) ** 2
    counts = np.histogram2d(*toy.points.double().numpy().T, bins=(edges, edges))[0]
    frequent = p * 20_000 > 10
    expected = np.append(p[frequent], 1 - p[frequent].sum()) * 20_000
    observed = np.append(counts[frequent], 20_000 - counts[frequent].sum())
    used = expected > 5
    statistic = float(((observed - expected) ** 2 / expected)[used].sum())
    assert stats.chi2.sf(statistic, int(used.sum()) - 1) > 1e-4


def test_scales_suit_a_diffusion() -> None:
    for name in TOYS:
        points = load_toy(name).points
        assert points.mean(0).abs().max() < 0.3 and 0.5 < points.std() < 1.3, name


@pytest.mark.parametrize(
    "call",
    [lambda: load_toy("cube"), lambda: load_toy("moons", "dev"), lambda: load_toy("moons", n=0)],
)
def test_bad_names(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        ValueError, match=r"fastdiff\.data: expected a toy in \['mixture', 'moons', 'swiss-roll'\]"
    ):
        call()
    with pytest.raises(ValueError, match="expected a data set in"):
        load("cifar")
