"""Score matching: the losses against their formulas and against the Fisher divergence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from exact import Mixture

import fastdiff
from fastdiff import Schedule, reference
from fastdiff.prediction import Parametrization
from fastdiff.theory.score import (
    denoising_score_matching,
    implicit_score_matching,
    sliced_score_matching,
)
from fastdiff.theory.score.divergence import exact_trace, probe, quadratic_forms

X = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3)


def affine(weight: torch.Tensor, shift: torch.Tensor) -> Any:
    return lambda x: x @ weight.T + shift


@pytest.mark.parametrize("kind", ["score", "epsilon", "v", "x0"])
@pytest.mark.parametrize("weighting", ["sigma2", "none", "table"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_denoising_is_its_formula(kind: str, weighting: str, backend: str) -> None:
    """lambda ‖s(x_t) + eps/sigma‖² for every prediction type, with gradients.

    x_t and eps come from the NumPy oracle.
    """
    schedule, t = Schedule.linear(100), torch.tensor([0, 99, 40, 7])
    table = torch.linspace(0.5, 2.0, 100, dtype=torch.float64)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    alpha, sigma = (v[t.numpy()][:, None] for v in (schedule.alpha, schedule.sigma))
    with fastdiff.use(backend):
        got = denoising_score_matching(
            lambda x, t: scale * x.tanh() + 0.01 * t.double()[:, None],
            X,
            schedule,
            times=t,
            prediction_type=kind,
            seed=5,
            step=3,
            weighting=table if weighting == "table" else weighting,
        )
        got.sum().backward()
    eps = reference.randn((4, 3), seed=5, step=3, stream=2).astype(np.float64)
    x_t = alpha * X.numpy() + sigma * eps
    want, slope = [], []
    for h in (0.0, 1e-6, -1e-6):
        out = (0.3 + h) * np.tanh(x_t) + 0.01 * t.numpy()[:, None]
        score = fastdiff.prediction.convert(kind, "score", out, x_t, alpha, sigma)
        weight = {"sigma2": sigma[:, 0] ** 2, "none": 1.0, "table": table.numpy()[t.numpy()]}[
            weighting
        ]
        want.append(weight * ((score + eps / sigma) ** 2).sum(1))
        slope.append(want[-1].sum())
    np.testing.assert_allclose(got.detach(), want[0], rtol=1e-11)
    assert scale.grad is not None and float(scale.grad) == pytest.approx(
        (slope[1] - slope[2]) / 2e-6, rel=1e-5
    )


def test_denoising_differs_from_the_fisher_divergence_by_a_constant() -> None:
    """½ E ‖s + eps/sigma‖² - ½ E ‖s - grad ln p_t‖² is the same for two networks.

    Vincent 2011, eq. 11, by quadrature.
    """
    mixture, schedule = Mixture([0.4, 0.6], [[-1.0], [0.8]], [0.4, 0.6]), Schedule.linear(1000)
    t, alpha, sigma = 300, float(schedule.alpha[300]), float(schedule.sigma[300])
    node, weight = np.polynomial.hermite_e.hermegauss(80)
    weight = weight / weight.sum()
    # points (part, x0, eps) with their probabilities
    parts = [
        (p, m + s * a, w)
        for p, m, s in zip((0.4, 0.6), (-1.0, 0.8), (0.4, 0.6), strict=True)
        for a, w in zip(node, weight, strict=True)
    ]
    x0 = torch.tensor([v for _, v, _ in parts for _ in node])[:, None]
    eps = torch.tensor(np.tile(node, len(parts)))[:, None]
    share = torch.tensor([p * w * v for p, _, w in parts for v in weight])
    x_t = alpha * x0 + sigma * eps
    true, gaps = mixture.score(x_t, alpha, sigma), []
    for model in (lambda x: -x, lambda x: torch.sin(2 * x)):
        dsm = 0.5 * (share * ((model(x_t) + eps / sigma) ** 2).sum(1)).sum()
        fisher = 0.5 * (share * ((model(x_t) - true) ** 2).sum(1)).sum()
        gaps.append(float(dsm - fisher))
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-9) and abs(gaps[0]) > 0.1
    # and the loss of this package estimates the first of them
    n = 40_000
    draws = torch.where(torch.arange(n) < 0.4 * n, -1.0, 0.8)[:, None].double()
    draws += (
        torch.where(torch.arange(n) < 0.4 * n, 0.4, 0.6)[:, None]
        * fastdiff.randn((n, 1), seed=1, stream=9).double()
    )
    got = (
        denoising_score_matching(
            lambda x, t: -x, draws, schedule, times=torch.full((n,), t), weighting="none", seed=2
        )
        / 2
    )
    want = 0.5 * (share * ((-x_t + eps / sigma) ** 2).sum(1)).sum()
    assert abs(float(got.mean() - want)) < 5 * float(got.std()) / n**0.5


def test_times_are_drawn_and_networks_get_their_own() -> None:
    seen: list[torch.Tensor] = []

    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return x * y[:, None]

    settings: dict[str, Any] = {"seed": 3, "step": 7, "cond": {"y": torch.ones(4)}}
    loss = denoising_score_matching(model, X, Schedule.linear(50), **settings)
    ids = torch.arange(4)
    assert torch.equal(
        seen[0], fastdiff.rng.randint(50, seed=3, sample_ids=ids, step=7)
    ) and loss.shape == (4,)
    flow = Schedule.flow(50)
    denoising_score_matching(
        model, X, flow, times=torch.tensor([0, 9, 20, 49]), prediction_type="v", **settings
    )
    assert seen[1].dtype == torch.float32
    np.testing.assert_allclose(seen[1], flow.sigma[[0, 9, 20, 49]], rtol=1e-6)
    unit = denoising_score_matching(
        lambda x, t: x / (1 + t[:, None]),
        X,
        Schedule.ve(50),
        prediction_type=Parametrization("epsilon", unit_input=True),
        times=torch.tensor([3, 9, 20, 49]),
        seed=3,
    )
    schedule = Schedule.ve(50)
    sigma = torch.from_numpy(schedule.sigma.copy())[[3, 9, 20, 49], None]
    u = torch.tensor(
        [schedule.network_time(schedule.at(t)) for t in (3, 9, 20, 49)], dtype=torch.float32
    )[:, None]
    eps = torch.from_numpy(reference.randn((4, 3), seed=3, stream=2)).double()
    given = (X + sigma * eps) / torch.sqrt(1 + sigma**2)
    torch.testing.assert_close(unit, ((given / (1 + u) - eps) ** 2).sum(1), rtol=1e-6, atol=0)


def test_implicit_and_sliced_are_the_fisher_divergence_up_to_its_constant() -> None:
    """E[tr A + ½ ‖s‖²] = ½ E ‖s - grad ln p‖² - ½ tr S^-1 for s = A x + b on N(m, S)."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    covariance, mean = (
        root @ root.T + torch.eye(3),
        torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64),
    )
    precision = torch.linalg.inv(covariance)
    a, b = (
        torch.randn(3, 3, generator=generator, dtype=torch.float64),
        torch.randn(3, generator=generator).double(),
    )
    n = 20_000
    x = mean + fastdiff.randn((n, 3), seed=4).double() @ torch.linalg.cholesky(covariance).T
    gap, off = a + precision, a @ mean + b
    fisher = 0.5 * float(torch.trace(gap @ covariance @ gap.T) + off @ off)
    want = fisher - 0.5 * float(torch.trace(precision))
    values = implicit_score_matching(affine(a, b), x).detach()
    np.testing.assert_allclose(
        values, torch.trace(a) + 0.5 * ((x @ a.T + b) ** 2).sum(1), rtol=1e-12
    )
    assert abs(float(values.mean()) - want) < 5 * float(values.std()) / n**0.5
    for kind in ("rademacher", "gaussian"):
        sliced = sliced_score_matching(affine(a, b), x, kind=kind, probes=2, seed=1).detach()
        assert abs(float((sliced - values).mean())) < 5 * float((sliced - values).std()) / n**0.5
        z = [
            probe(kind, (n, 3), p, seed=1, sample_ids=None, dtype=x.dtype, device="cpu")
            for p in (0, 1)
        ]
        forms = sum(((v @ a) * v).sum(1) for v in z) / 2
        torch.testing.assert_close(
            sliced, forms + 0.5 * ((x @ a.T + b) ** 2).sum(1), rtol=1e-11, atol=1e-11
        )


def test_minimising_them_finds_the_precision() -> None:
    """The gradient of the loss with respect to A is zero at A = -S^-1.

    The data have exact moments.
    """
    covariance = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=torch.float64)
    # four points of zero mean with exactly this covariance
    root = torch.linalg.cholesky(covariance) * 2**0.5
    x = torch.cat([root.T, -root.T])
    best = -torch.linalg.inv(covariance)
    for loss in (
        lambda score: implicit_score_matching(score, x),
        lambda score: torch.stack(
            [sliced_score_matching(score, x, seed=s, probes=4) for s in range(40)]
        ).mean(0),
    ):
        for a, vanishes in ((best, True), (0.7 * best, False)):
            weight = a.clone().requires_grad_()
            loss(affine(weight, torch.zeros(2, dtype=torch.float64))).mean().backward()
            assert weight.grad is not None
            off = float((weight.grad + weight.grad.T).abs().max())
            assert (off < 0.25) == vanishes, off
    weight = best.clone().requires_grad_()
    implicit_score_matching(affine(weight, torch.zeros(2).double()), x).mean().backward()
    assert weight.grad is not None and float(weight.grad.abs().max()) < 1e-12


def test_probes_are_the_contracts_and_traces_the_jacobians() -> None:
    jacobian = torch.tensor(
        [[1.0, 2.0, 0.0], [0.5, -1.0, 3.0], [0.0, 1.0, 2.0]], dtype=torch.float64
    )
    ids = torch.tensor([4, 0, 9, 2])
    z = probe("gaussian", (4, 3), 6, seed=2, sample_ids=ids, dtype=torch.float64, device="cpu")
    np.testing.assert_array_equal(
        z, reference.randn((4, 3), seed=2, sample_ids=ids.numpy(), step=6, stream=5)
    )
    signs = probe(
        "rademacher", (4, 3), 6, seed=2, sample_ids=ids, dtype=torch.float64, device="cpu"
    )
    np.testing.assert_array_equal(signs, np.sign(z))
    many = probe(
        "rademacher", (1000, 100), 0, seed=0, sample_ids=None, dtype=torch.float32, device="cpu"
    )
    assert abs(float(many.mean())) < 5 / 1e5**0.5 and set(many.unique().tolist()) == {-1.0, 1.0}
    value, forms = quadratic_forms(lambda x: x @ jacobian.T + 1.0, X, [z, signs])
    torch.testing.assert_close(value, X @ jacobian.T + 1.0)
    torch.testing.assert_close(
        forms[:, 0], torch.einsum("bi,ij,bj->b", z, jacobian, z), rtol=1e-12, atol=1e-12
    )
    _, trace = exact_trace(lambda x: x @ jacobian.T, X)
    torch.testing.assert_close(trace, torch.full((4,), 2.0, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"expected probes in \['rademacher', 'gaussian'\], got 'sphere'"
    ):
        probe("sphere", (1, 1), 0, seed=0, sample_ids=None, dtype=torch.float32, device="cpu")


def test_wrong_arguments_are_named() -> None:
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x

    schedule = Schedule.linear(10)
    with pytest.raises(
        ValueError, match="denoising_score_matching: expected weighting in .* or a table, got 'g2'"
    ):
        denoising_score_matching(model, X, schedule, weighting="g2", seed=0)
    with pytest.raises(ValueError, match=r"expected a table of weights \[10\], got \[3\]"):
        denoising_score_matching(model, X, schedule, weighting=torch.ones(3), seed=0)
    with pytest.raises(IndexError, match=r"expected times in \[0, 10\)"):
        denoising_score_matching(model, X, schedule, times=torch.tensor([0, 1, 2, 10]), seed=0)
    with pytest.raises(
        ValueError, match="sliced_score_matching: expected at least one probe, got 0"
    ):
        sliced_score_matching(lambda x: x, X, probes=0, seed=0)
