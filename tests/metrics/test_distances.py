"""Distances by closed forms, by their definitions in NumPy, and by what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from fastdiff.metrics import Moments, frechet_distance, kernel_distance, neighbours


def draw(n: int, f: int = 5, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    x = torch.randn(n, f, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * x + shift


def gaussian(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    moments = Moments(len(mean))
    moments.n, moments.mean, moments.scatter = None, mean.double(), covariance.double()
    return moments


def of(x: torch.Tensor) -> Moments:
    moments = Moments(x.shape[1])
    moments.add(x)
    return moments


def test_the_frechet_distance_of_gaussians_is_known() -> None:
    """With commuting covariances FD² = |m1 - m2|² + Σ (√a_i - √b_i)²."""
    a, b = torch.tensor([4.0, 9.0, 0.25, 1e-12]), torch.tensor([1.0, 16.0, 0.0, 1e-12])
    q = torch.linalg.qr(draw(4, 4, seed=3)).Q
    mean = torch.tensor([1.0, -2.0, 0.5, 0.0])
    first = gaussian(mean, q @ a.diag().double() @ q.T)
    second = gaussian(-mean, q @ b.diag().double() @ q.T)
    expected = float(4 * mean.square().sum()) + 1 + 1 + 0.25
    for x, y in ((first, second), (second, first)):
        assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_the_frechet_distance_is_that_of_the_matrix_root() -> None:
    """As pytorch-fid and EDM compute it: the root of S1 S2 by scipy.linalg.sqrtm."""
    x, y = draw(400, 12) @ draw(12, 12, seed=1), draw(300, 12, seed=2, shift=0.3)
    s1, s2 = (np.cov(v.numpy(), rowvar=False) for v in (x, y))
    root = scipy.linalg.sqrtm(s1 @ s2)
    difference = x.numpy().mean(0) - y.numpy().mean(0)
    expected = difference @ difference + np.trace(s1 + s2) - 2 * np.trace(root).real
    assert frechet_distance(of(x), of(y)) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_is_its_definition() -> None:
    """Every subset by the O(n²) sums, written out; the subsets have all samples once."""
    a, b = draw(24, 3), draw(24, 3, seed=1, shift=0.5)
    found = kernel_distance(a, b, size=24 // 2)

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return (sum(float(p) * float(q) for p, q in zip(x, y, strict=True)) / 3 + 1) ** 3

    def mmd2(x: torch.Tensor, y: torch.Tensor) -> float:
        n = len(x)
        own = sum(k(v[i], v[j]) for v in (x, y) for i in range(n) for j in range(n) if i != j) / (
            n * (n - 1)
        )
        return own - 2 * sum(k(p, q) for p in x for q in y) / n**2

    # without the order of the subsets: two identical halves give the same estimate whatever it is
    twice = kernel_distance(a[:1].expand(8, 3), b[:1].expand(8, 3), size=4)
    assert twice.value == pytest.approx(mmd2(a[:1].expand(4, 3), b[:1].expand(4, 3)), rel=1e-12)
    assert twice.standard_error == pytest.approx(0, abs=1e-12)
    from fastdiff.metrics.distances import _shuffled

    x, y = _shuffled(a, 0, 0), _shuffled(b, 0, 1)
    assert sorted(map(tuple, x.tolist())) == sorted(map(tuple, a.tolist())), "a permutation"
    assert not torch.equal(x, a)
    parts = [mmd2(p, q) for p, q in zip(x.split(12), y.split(12), strict=True)]
    assert found.value == pytest.approx(np.mean(parts), rel=1e-10)
    assert found.standard_error == pytest.approx(np.std(parts, ddof=1) / 2**0.5, rel=1e-10)
    assert (found.subsets, found.size) == (2, 12)


def test_the_kernel_distance_is_unbiased_and_its_error_is_right() -> None:
    """Over many draws of equal distributions its mean is 0, and the errors are as stated."""
    z = []
    for seed in range(200):
        found = kernel_distance(
            draw(100, 4, seed=2 * seed), draw(100, 4, seed=2 * seed + 1), size=10
        )
        z.append((found.value, found.standard_error))
    values, errors = (np.array(v) for v in zip(*z, strict=True))
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    assert values.std() == pytest.approx((errors**2).mean() ** 0.5, rel=0.25)
    far = kernel_distance(draw(1000, 4), draw(1000, 4, seed=1, shift=0.5))
    assert far.value > 10 * far.standard_error and far.size == 250


def by_force(a: np.ndarray, b: np.ndarray, k: int, wide: int) -> dict[str, float]:
    """The definitions of precision, recall, density and coverage, sample by sample."""

    def radii(x: np.ndarray, k: int) -> list[float]:
        return [
            sorted(np.sqrt(((x[i] - x[j]) ** 2).sum()) for j in range(len(x)) if j != i)[k - 1]
            for i in range(len(x))
        ]

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sqrt(((x - y) ** 2).sum()))

    of_a, of_b, wider = radii(a, k), radii(b, k), radii(b, wide)
    m, n = range(len(b)), range(len(a))
    return {
        "precision": np.mean([any(distance(a[i], b[j]) <= of_b[j] for j in m) for i in n]),
        "recall": np.mean([any(distance(a[i], b[j]) <= of_a[i] for i in n) for j in m]),
        "density": sum(distance(a[i], b[j]) < wider[j] for i in n for j in m) / (wide * len(a)),
        "coverage": np.mean([any(distance(a[i], b[j]) < wider[j] for i in n) for j in m]),
    }


@pytest.mark.parametrize("k, wide", [(3, 5), (1, 1), (4, 2)])
@pytest.mark.parametrize("rows", [7, 1024])
def test_neighbours_are_their_definition(
    k: int, wide: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdiff.metrics.distances._ROWS", rows)
    a, b = draw(40, 3, scale=0.6, shift=100.4), draw(31, 3, seed=1, shift=100.0)
    found = neighbours(a, b, k=k, density_k=wide)._asdict()
    expected = by_force(a.numpy(), b.numpy(), k, wide)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert 0 < expected["recall"] < 1, "the case distinguishes"


def test_neighbours_see_what_is_lost() -> None:
    """Few modes lose recall, noise loses precision; equal sets have density and coverage near 1."""
    data = torch.cat([draw(300, 2, seed=i, scale=0.1, shift=4.0 * i) for i in range(4)])
    one_mode = draw(400, 2, seed=9, scale=0.1)
    spread = draw(400, 2, seed=9, scale=8.0)
    same = torch.cat([draw(100, 2, seed=10 + i, scale=0.1, shift=4.0 * i) for i in range(4)])
    lost, noisy, equal = (neighbours(x, data) for x in (one_mode, spread, same))
    assert lost.precision > 0.9 and lost.recall < 0.35 and lost.coverage < 0.35
    assert noisy.precision < 0.2
    assert min(equal.precision, equal.recall) > 0.9 and 0.8 < equal.density < 1.2


def test_copies_have_distance_zero() -> None:
    x = draw(64, 6, shift=50.0)
    found = neighbours(x, x)
    assert found.precision == found.recall == found.coverage == 1


def test_what_cannot_be_compared_is_refused() -> None:
    x = draw(20, 3)
    cases = [
        (lambda: frechet_distance(of(x), of(draw(20, 4))), "the same number of features"),
        (lambda: kernel_distance(x, draw(20, 4)), r"features \[N, F\] and \[M, F\]"),
        (lambda: kernel_distance(x[:3], x), "2 subsets of at least 2 samples"),
        (lambda: kernel_distance(x, x, size=11), "got 20 samples and subsets of 11"),
        (lambda: kernel_distance(x, x, size=1), "subsets of 1"),
        (lambda: neighbours(x[:5], x), "more than 5 samples in either set"),
        (lambda: neighbours(x, x, k=0), "k >= 1"),
        (lambda: neighbours(x, x[:, 0]), r"features \[N, F\] and \[M, F\]"),
    ]
    for call, reason in cases:
        with pytest.raises(ValueError, match=r"^fastdiff\.metrics: .*" + reason):
            call()


def test_the_benchmark_of_the_shipped_weights_has_this_distance() -> None:
    """Its numbers are those of the formula on whole sets, as it computed them before."""
    from benchmarks.quality import frechet

    a, b = (draw(500, 9, seed=i, shift=i).float() @ draw(9, 9, seed=5).float() for i in (0, 1))
    x, y = a.double(), b.double()
    s1, s2 = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(s1)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ s2 @ root).clamp_min(0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + s1.trace() + s2.trace() - 2 * cross
    assert frechet(a, b) == pytest.approx(float(expected), rel=1e-11)
