"""Guidance against what is known in closed form: Gaussian classes, linear measurements, correlated
pixels.

This file is over 400 lines because all kinds of guidance are tested on the same few densities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from gaussian import Gaussian
from torch import Tensor

from fastdiff import Sampler, Schedule, ops
from fastdiff.sampling import guidance

SCHEDULE = Schedule.linear(1000)
ALPHA, SIGMA = torch.tensor(SCHEDULE.alpha), torch.tensor(SCHEDULE.sigma)


def levels(t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    column = (-1, *(1,) * (like.ndim - 1))
    return ALPHA[t.long()].view(column), SIGMA[t.long()].view(column)


class Classes:
    """The exact network for two classes N(±m, s²), y = ±1, and for their even mixture, y = 0
    (float64).
    """

    m, s = 1.5, 0.6

    def __init__(self, prediction_type: str = "epsilon"):
        self.kind = prediction_type
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        alpha, sigma = levels(t, x)
        total = (alpha * self.s) ** 2 + sigma**2
        y = torch.zeros(len(x), dtype=torch.float64) if y is None else y
        y = y.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
        # the mixture's mean of the class sign, given x
        sign = torch.where(y == 0, torch.tanh(alpha * self.m * x / total), y)
        eps = sigma * (x - alpha * self.m * sign) / total
        x0 = (x - sigma * eps) / alpha
        return {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0}[self.kind]

    def log_class(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(+ | x_t) per sample, the elements being independent."""
        alpha, sigma = levels(t, x)
        total = (alpha * self.s) ** 2 + sigma**2
        return torch.nn.functional.logsigmoid(2 * alpha * self.m * x / total).flatten(1).sum(1)

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        """Its gradient: (2 alpha m/V)(1 - sigmoid(2 alpha m x/V))."""
        alpha, sigma = levels(t, x)
        scale = 2 * alpha * self.m / ((alpha * self.s) ** 2 + sigma**2)
        return scale * torch.sigmoid(-scale * x)


START = torch.randn(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PLUS = {"cond": {"y": torch.ones(6)}, "uncond": {"y": torch.zeros(6)}}


def test_the_gradient_of_an_exact_classifier_is_the_difference_of_scores() -> None:
    """grad ln p(+|x_t) = s_+ - s = (2 alpha m/V)(1 - sigmoid(2 alpha m x/V)) (Luo 2022, eq. 167),
    three ways.
    """
    network, x = Classes(), torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    for t in (0, 250, 999):
        times = torch.full((9,), t)
        sigma = levels(times, x)[1]
        score_of = lambda y, sigma=sigma, times=times: (  # noqa: E731
            -network(x, times, torch.full((9,), y)) / sigma
        )
        closed = network.slope(x, times)
        torch.testing.assert_close(
            guidance.gradient(network.log_class, x, times), closed, rtol=1e-12, atol=1e-15
        )
        torch.testing.assert_close(score_of(1.0) - score_of(0.0), closed, rtol=1e-10, atol=1e-11)


def test_strengths_of_zero_and_one_are_the_networks_bitwise(backend: str) -> None:
    """With one call each, in float64, whatever the rescale; and a rescale of 1 gives x̂0 the
    conditional one's deviation.
    """
    for solver in ("ddim", "dpm++2m", "ddpm"):
        network = Classes("x0")
        sampler = Sampler(
            network, SCHEDULE, solver=solver, steps=5, prediction_type="x0", guidance_rescale=1.0
        )
        for gamma, y in ((1.0, 1.0), (0.0, 0.0)):
            network.rows.clear()
            got = sampler.sample(x_T=START, seed=1, guidance_scale=gamma, **PLUS)
            assert network.rows == [6] * 5
            assert torch.equal(
                got, sampler.sample(x_T=START, seed=1, cond={"y": torch.full((6,), y)})
            )
    wide = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    both = {"cond": {"y": torch.ones(4)}, "uncond": {"y": torch.zeros(4)}}
    sampler = Sampler(
        Classes("x0"), SCHEDULE, solver="ddim", steps=1, prediction_type="x0", guidance_rescale=1.0
    )
    # one step of DDIM is x̂0 itself; with this network's the conditional one's is wanted
    guided = sampler.sample(x_T=wide, guidance_scale=4.0, **both)  # type: ignore[arg-type]
    conditional = sampler.sample(x_T=wide, cond=both["cond"])
    deviation = [v.flatten(1).std(1) for v in (guided, conditional)]
    torch.testing.assert_close(deviation[0], deviation[1], rtol=1e-12, atol=0)
    assert (guided - conditional).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "heun", "ddpm"])
@pytest.mark.parametrize("gamma", [2.5, 0.5, -1.0])
def test_classifier_guidance_is_classifier_free_guidance(
    kind: str, solver: str, gamma: float
) -> None:
    """gamma s_c + (1 - gamma) s_u = s_u + gamma grad ln p(y|x_t), for exact networks and an exact
    classifier.
    """
    network = Classes(kind)
    sampler = Sampler(network, SCHEDULE, solver=solver, steps=12, prediction_type=kind)
    free = sampler.sample(x_T=START, seed=1, guidance_scale=gamma, **PLUS)
    pull: dict[str, Any] = {"x_T": START, "seed": 1, "classifier_scale": gamma}
    by_classifier = sampler.sample(classifier=network.log_class, **pull)
    by_gradient = sampler.sample(classifier=network.slope, **pull)
    torch.testing.assert_close(by_classifier, free, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(by_gradient, free, rtol=1e-9, atol=1e-9)
    assert (free - sampler.sample(x_T=START, seed=1)).abs().max() > 0.05


@pytest.mark.parametrize(
    "kind, solver, gamma", [("epsilon", "ddim", 2.5), ("v", "ddpm", -1.0), ("x0", "dpm++2m", 0.5)]
)
def test_both_guidances_are_one_on_every_backend(
    kind: str, solver: str, gamma: float, backend: str
) -> None:
    test_classifier_guidance_is_classifier_free_guidance(kind, solver, gamma)


@pytest.mark.parametrize("gamma", [3.0, 0.5, -1.0])
def test_the_guided_mean_of_equal_gaussians_is_known(gamma: float, backend: str) -> None:
    """Guiding N(m_c, s²) against N(m_u, s²) is the exact score of N(m_u + gamma (m_c - m_u),
    s²).
    """

    def network(x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        alpha, sigma = levels(t, x)
        return sigma * (x - alpha * mean.view(-1, 1)) / ((alpha * 0.5) ** 2 + sigma**2)

    sampler = Sampler(network, SCHEDULE, solver="dpm++2m", steps=30, guidance_scale=gamma)
    means = {"cond": {"mean": torch.full((6,), 0.8)}, "uncond": {"mean": torch.full((6,), 0.2)}}
    means = {k: {"mean": v["mean"].double()} for k, v in means.items()}
    got = sampler.sample(x_T=START, seed=0, **means)
    target = Gaussian(SCHEDULE, mean=0.2 + gamma * (0.8 - 0.2), std=0.5)
    torch.testing.assert_close(
        got,
        Sampler(target, SCHEDULE, solver="dpm++2m", steps=30).sample(x_T=START),
        rtol=1e-7,
        atol=1e-7,
    )


def test_a_strength_per_row_makes_the_calls_it_needs() -> None:
    network = Classes()
    sampler = Sampler(network, SCHEDULE, solver="ddim", steps=6)
    strengths = [0.0, 1.0, 2.5, 2.5, -1.0, 1.0]
    got = sampler.sample(x_T=START, seed=1, guidance_scale=strengths, **PLUS)
    assert network.rows == [6, 6, 12, 12, 12, 6]
    x = START
    for row, gamma in enumerate(strengths):  # one row after the other, each with a plain number
        rest: list[Tensor] = []

        def keep(i: int, t: float, x: Tensor, x0: Tensor, rest: list[Tensor] = rest) -> None:
            rest.append(x.clone())

        whole = sampler.sample(x_T=x, start=row, guidance_scale=gamma, callback=keep, **PLUS)
        assert whole.isfinite().all()
        x = rest[0]
    assert torch.equal(got, x)
    tensor = sampler.sample(x_T=START, seed=1, guidance_scale=torch.full((6,), 2.5), **PLUS)
    same = sampler.sample(x_T=START, seed=1, guidance_scale=[2.5] * 6, **PLUS)
    assert torch.equal(tensor, same)
    for wrong in ([1.0], [1.0, 2.0, 3.0, 4.0, 5.0, float("nan")]):
        with pytest.raises(
            ValueError, match="expected guidance_scale with 6 strengths|expected a finite guidance"
        ):
            sampler.sample(x_T=START, guidance_scale=wrong, **PLUS)


def test_a_row_of_strength_zero_is_not_rescaled_in_company() -> None:
    """Alone it makes only the unconditional call, among others both. Its bits are the same."""
    from fastdiff import Request

    sampler = Sampler(Classes(), SCHEDULE, solver="ddim", steps=4, guidance_rescale=0.7)
    y = {"cond": {"y": torch.tensor(1.0)}, "uncond": {"y": torch.tensor(0.0)}}
    states = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    strengths: list[Any] = [[0.0, 2.0, 0.0, 0.0], 3.0]
    requests = [
        Request(i, 0, x_T=states[i], guidance_scale=g, **y) for i, g in enumerate(strengths)
    ]  # type: ignore[arg-type]
    for request, x in sampler.serve(requests, (3,), batch_size=2):
        lone = {k: {"y": v["y"][None]} for k, v in y.items()}
        assert request.x_T is not None
        alone = sampler.sample(
            x_T=request.x_T[None], seed=0, guidance_scale=request.guidance_scale, **lone
        )
        assert torch.equal(alone[0], x)


def test_negative_conditioning_is_another_uncond() -> None:
    sampler = Sampler(Classes(), SCHEDULE, steps=30, solver="dpm++2m", guidance_scale=1.7)
    away = sampler.sample(x_T=START, cond={"y": torch.ones(6)}, uncond={"y": -torch.ones(6)})
    # (1 + w) m - w (-m): the mean of the guided Gaussian
    target = Gaussian(SCHEDULE, mean=1.5 * (2 * 1.7 - 1), std=0.6)
    expected = Sampler(target, SCHEDULE, steps=30, solver="dpm++2m").sample(x_T=START)
    torch.testing.assert_close(away, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize("solver", ["ddim", "unipc", "dpm++2m", "heun"])
def test_guidance_that_changes_nothing_changes_nothing(solver: str, kind: str) -> None:
    """Split in two and put together again, a row does what it did, to rounding."""
    network = Gaussian(SCHEDULE, kind, mean=0.3, std=0.7)
    sampler = Sampler(network, SCHEDULE, solver=solver, steps=9, prediction_type=kind)
    split = sampler.sample(x_T=START, guidance=lambda x0, x, t: x0)
    torch.testing.assert_close(split, sampler.sample(x_T=START), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["dpm++2m", "ddim", "ddpm"])
def test_posterior_sampling_of_a_linear_measurement(solver: str) -> None:
    """y = x + r n of x ~ N(m, s²): with the exact E[x0 | x_t, y] as guidance the samples follow the
    exact posterior.

    A deterministic run is the same as with the exact network of the posterior; DDPM's too, given
    the same noise.
    """
    m, s, r, y = 0.3, 0.7, 0.4, 1.5

    def to_posterior(x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = levels(t, x)
        spread = (s * sigma) ** 2 / ((alpha * s) ** 2 + sigma**2)  # of x0 given x_t
        return (x0 / spread + y / r**2) / (1 / spread + 1 / r**2)

    prior = Sampler(Gaussian(SCHEDULE, mean=m, std=s), SCHEDULE, solver=solver, steps=20)
    precision = 1 / s**2 + 1 / r**2
    posterior = Gaussian(SCHEDULE, mean=(m / s**2 + y / r**2) / precision, std=precision**-0.5)
    expected = Sampler(posterior, SCHEDULE, solver=solver, steps=20).sample(x_T=START, seed=4)
    got = prior.sample(x_T=START, seed=4, guidance=to_posterior)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network_batch", [None, 4])
@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_posterior_sampling_through_the_network(gamma: float, network_batch: int | None) -> None:
    """With Cov[x0 | x_t] = sigma²/alpha dx0/dx_t (Tweedie's second order) the update by C/(C + r²)
    is exact for Gaussians, so the derivative through network, guidance and conversion must be
    right.
    """
    m, s, r, y = 0.3, 0.7, 0.4, 1.5

    def network(x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        alpha, sigma = levels(t, x)
        return sigma * (x - alpha * mean.view(-1, 1)) / ((alpha * s) ** 2 + sigma**2)

    def update(x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = levels(t, x)
        (slope,) = torch.autograd.grad(x0.sum(), x)
        spread = sigma**2 / alpha * slope
        return x0 + spread / (spread + r**2) * (y - x0)

    means = {
        "cond": {"mean": torch.full((6,), m).double()},
        "uncond": {"mean": torch.zeros(6).double()},
    }
    sampler = Sampler(
        network,
        SCHEDULE,
        solver="ddim",
        steps=15,
        guidance_scale=gamma,
        network_batch=network_batch,
    )
    got = sampler.sample(x_T=START, guidance=update, through_network=True, **means)
    precision = 1 / s**2 + 1 / r**2
    prior = gamma * means["cond"]["mean"][0].item()
    target = Gaussian(SCHEDULE, mean=(prior / s**2 + y / r**2) / precision, std=precision**-0.5)
    expected = Sampler(target, SCHEDULE, solver="ddim", steps=15).sample(x_T=START)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert not got.requires_grad


def test_guidance_and_classifier_in_one_stream() -> None:
    network = Classes()
    sampler = Sampler(network, SCHEDULE, solver="dpm++2m", steps=8)
    hooks: dict[str, Any] = {"classifier": network.slope, "classifier_scale": 2.0}
    hooks["guidance"] = lambda x0, x, t: x0.clamp(-2.0, 2.0)
    steps = [2, 9, 4, 4, 1, 3]
    whole = sampler.sample(x_T=START, seed=0, steps=steps, **hooks)
    parts = list(sampler.stream(6, (1,), batch_size=2, x_T=START, seed=0, steps=steps, **hooks))
    assert torch.equal(torch.cat(parts), whole)
    with pytest.raises(
        ValueError,
        match=r"expected guidance\(x0, x_t, t\) to return x0 of shape \[6, 1\], got \[6\]",
    ):
        sampler.sample(x_T=START, guidance=lambda x0, x, t: x0[:, 0])
    with pytest.raises(
        ValueError, match=r"expected classifier\(x, t\) to give log p\(y\|x\) \[6\]"
    ):
        sampler.sample(x_T=START, classifier=lambda x, t: torch.zeros(6))


class Pixels:
    """The exact network for N(0, C), C the covariance of a row of pixels that look like their
    neighbours.
    """

    def __init__(self, n: int = 8, reach: float = 3.0):
        at = np.arange(n)
        self.covariance = np.exp(-np.abs(at[:, None] - at) / reach)
        values, vectors = np.linalg.eigh(self.covariance)
        self.values, self.vectors = torch.tensor(values), torch.tensor(vectors)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = levels(t, x)
        turned = x.double() @ self.vectors
        return ((sigma * turned / (alpha**2 * self.values + sigma**2)) @ self.vectors.T).to(x.dtype)

    def given(self, keep: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the free pixels given the kept ones: N(m_{1|2}, S_{1|2})."""
        c = self.covariance
        gain = c[np.ix_(~keep, keep)] @ np.linalg.inv(c[np.ix_(keep, keep)])
        return gain @ known[keep], c[np.ix_(~keep, ~keep)] - gain @ c[np.ix_(keep, ~keep)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inpainting_replaces_the_known_part_at_every_level(dtype: torch.dtype) -> None:
    """Step by step against the formula, from the loop's own states; the last step leaves the known
    part as it is.
    """
    network, known = Pixels(), torch.linspace(-1, 1, 8, dtype=dtype)
    mask = (torch.arange(8) >= 5).to(dtype)
    sampler = Sampler(network, SCHEDULE, solver="ddpm", steps=7)
    start = torch.randn(5, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))
    states: list[Tensor] = []
    x = sampler.sample(
        x_T=start,
        seed=9,
        mask=mask,
        known=known,
        callback=lambda i, t, x, x0: states.append(x.clone()),
    )
    assert torch.equal(x[:, :5], known[:5].expand(5, 5))
    before, table = start, torch.tensor(sampler.plan.table)
    assert sampler.plan.levels is not None
    for row, after in enumerate(states):
        t = torch.full((5,), int(sampler.plan.column("t")[row]))
        free = ops.reverse_step(before, network(before, t), table, torch.full((5,), row), seed=9)
        alpha, sigma = sampler.plan.levels[row + 1]
        z = ops.randn((5, 8), seed=9, step=row + 1, stream=2, dtype=dtype)
        assert isinstance(free, Tensor)
        expected = mask * free + (1 - mask) * (alpha * known + sigma * z)
        bound = 8 * tolerances.ROUNDING[str(dtype).removeprefix("torch.")]
        torch.testing.assert_close(after, expected.to(dtype), rtol=bound, atol=bound)
        before = after
    # alone, in a stream, at other places: the same, to the rounding of the network's matrix
    # products
    parts = list(
        sampler.stream(
            5, (8,), batch_size=2, seed=9, x_T=start, mask=mask, known=known, steps=[7, 3, 7, 7, 2]
        )
    )
    torch.testing.assert_close(torch.cat(parts)[[0, 2, 3]], x[[0, 2, 3]], rtol=bound, atol=bound)
    short = sampler.sample(
        (1, 8), seed=9, sample_ids=[1], x_T=start[1:2], mask=mask, known=known, steps=3
    )
    torch.testing.assert_close(torch.cat(parts)[1], short[0], rtol=bound, atol=bound)
    with pytest.raises(ValueError, match="expected mask and known together"):
        sampler.sample((5, 8), mask=mask)


def test_the_way_back_takes_the_known_part_along() -> None:
    """RePaint noises the whole picture on its way back (algorithm 1, line 10): nothing is replaced
    there.
    """
    network, known = Pixels(), torch.linspace(-1, 1, 8)
    mask = (torch.arange(8) >= 5).float()
    sampler = Sampler(network, SCHEDULE, solver="repaint", steps=8, jump_length=2, jump_n_sample=3)
    back = np.flatnonzero(sampler.plan.column("network")[:-1] == 0)
    assert len(back) >= 4
    states: list[Tensor] = []
    sampler.sample(
        (3, 8),
        seed=4,
        mask=mask,
        known=known,
        callback=lambda i, t, x, x0: states.append(x.clone()),
    )
    table = torch.tensor(sampler.plan.table)
    for row in back:
        free = ops.reverse_step(
            states[row - 1], None, table, torch.full((3,), int(row)), seed=4, used=-1
        )
        assert torch.equal(states[row], free), row
    mixed = sampler.sample((3, 8), seed=4, mask=mask, known=known, steps=[8, 5, 8])
    torch.testing.assert_close(mixed[[0, 2]], states[-1][[0, 2]], rtol=1e-5, atol=1e-5)


def test_inpainted_gaussian_pixels_follow_the_conditional() -> None:
    """RePaint's resampling brings the free pixels to N(m_{1|2}, S_{1|2}): 4,096 samples (standard
    error 0.015), ten resamplings; what is left of the bias, 0.14 here, falls with their number.
    Replacement alone, which the paper's section 4.2 begins from, leaves some 0.55 of the mean
    1.29.
    """
    network, keep = Pixels(), np.arange(8) < 5
    known = torch.tensor([-0.5, 0.2, 0.8, 1.4, 1.8, 0.0, 0.0, 0.0])
    mean, covariance = network.given(keep, known.double().numpy())

    def draw(**settings: Any) -> np.ndarray:
        sampler = Sampler(network, SCHEDULE, steps=50, **settings)
        x = sampler.sample((4096, 8), seed=2, mask=torch.tensor(~keep).float(), known=known)
        assert torch.equal(x[:, :5], known[:5].expand(4096, 5))
        return x.double().numpy()[:, ~keep]

    x = draw(solver="repaint", jump_length=5, jump_n_sample=10)
    assert np.abs(x.mean(axis=0) - mean).max() < 0.2
    assert np.abs(np.cov(x.T) - covariance).max() < 0.25
    once = draw(solver="ddpm").mean(axis=0) - mean
    assert (
        np.abs(once).max() > 2 * np.abs(x.mean(axis=0) - mean).max() and np.abs(once).max() < 0.65
    )
    assert mean.min() > 0.6, "the known part is informative"
