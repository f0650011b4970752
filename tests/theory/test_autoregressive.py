"""The autoregressive model: its order, its probabilities, its samples, and what it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tolerances import CONVERSION

from fastdiff.cli import system_figure
from fastdiff.data import load_toy
from fastdiff.theory.autoregressive import Autoregressive
from fastdiff.theory.autoregressive.mixture import HALF, Mixture
from fastdiff.theory.evaluation import Request, evaluate
from fastdiff.theory.systems.presets import make

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def model(shape: tuple[int, ...], seed: int = 0, **options: Any) -> Autoregressive:
    """A model in float64 whose weights are no longer those of the start, some of which are 0."""
    torch.manual_seed(seed)
    made = Autoregressive(shape, **{"widths": (8, 8), "components": 3} | options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 3, 4), (5,), (1,)], ids=str)
def test_an_element_reads_all_elements_before_it_and_no_other(shape: tuple[int, ...]) -> None:
    made = model(shape, widths=(8, 8, 8))
    x = LEVELS[torch.randint(0, 256, (1, *shape))].requires_grad_()
    order = made._order()
    assert len(set(order)) == math.prod(shape)
    for i, at in enumerate(order):
        p = made.conditionals(x)
        total = sum(v[(..., *at)].sin().sum() for v in p)
        if len(order) == 1:
            assert not total.requires_grad or not torch.autograd.grad(total, x)[0].any()
            continue
        slope = torch.autograd.grad(total, x)[0][0]
        assert [bool(slope[o] != 0) for o in order] == [j < i for j in range(len(order))], at


def test_the_mass_of_a_mixture_against_scipy() -> None:
    """Sums to one over the levels, also where all components are far from [-1, 1] or narrow."""
    shares = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for means, scales in (
        ((-0.4, 0.1, 0.9), (0.3, 0.05, 0.002)),
        ((-1.7, 1.2, 3.0), (0.02, 0.02, 0.5)),
    ):
        mean, scale = (torch.tensor(v, dtype=torch.float64) for v in (means, scales))
        p = Mixture(*(v.expand(256, 3) for v in (shares.log(), mean, scale.log())))
        got = p.log_mass(LEVELS)
        edges = np.concatenate([[-np.inf], LEVELS[:-1].numpy() + HALF, [np.inf]])
        parts = stats.logistic.cdf(edges[:, None], mean.numpy(), scale.numpy())
        expected = (np.diff(parts, axis=0) * shares.numpy()).sum(1)
        np.testing.assert_allclose(got.exp(), expected, rtol=0, atol=1e-14)
        assert got.exp().sum() == pytest.approx(1, abs=1e-13) and got.isfinite().all()


def test_far_tails_have_digits_and_gradients() -> None:
    """A level at 400 scales from the mean: ln P = -400 + ln(2 sinh …), in float32 too."""
    mean = torch.zeros(1, 1, requires_grad=True)
    log_scale = torch.full((1, 1), math.log(1 / 500)).requires_grad_()
    x = LEVELS[[230]].float()
    got = Mixture(torch.zeros(1, 1), mean, log_scale).log_mass(x)
    a, width = 500 * (float(x) - HALF), 2 * HALF * 500
    assert float(got.detach()) == pytest.approx(-a + math.log1p(-math.exp(-width)), rel=1e-6)
    got.sum().backward()
    assert mean.grad is not None and float(mean.grad) == pytest.approx(500, rel=1e-4)
    for edge in (0, 255):
        at = LEVELS[[edge]].float()
        value = Mixture(torch.zeros(1, 1), mean, log_scale).log_mass(at).sum()
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, (mean, log_scale)))


def test_probabilities_of_all_pictures_sum_to_one() -> None:
    """65,536 pictures of two pixels, and those of one pixel with two channels."""
    pairs = torch.cartesian_prod(LEVELS, LEVELS)
    for shape in ((1, 1, 2), (2, 1, 1), (1, 2, 1), (2,)):
        made = model(shape, initial_std=0.1, widths=(4,), components=2)
        with torch.no_grad():
            log_p = made.log_prob(pairs.view(-1, *shape))
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-10), shape
        assert log_p.std() > 0.3


def test_a_density_integrates_to_one() -> None:
    made = model((2,), likelihood="gaussian", initial_std=0.5)
    side = torch.linspace(-16, 16, 801, dtype=torch.float64)
    with torch.no_grad():
        log_p = made.log_prob(torch.cartesian_prod(side, side))
    assert float(log_p.exp().sum()) * 0.04**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 1, 2), (2,)], ids=str)
def test_samples_have_the_model_s_law(shape: tuple[int, ...]) -> None:
    """Counts of 16 x 16 blocks of levels against their probabilities, by a chi-squared test."""
    made, n = model(shape, initial_std=0.2, widths=(4,)), 20_000
    drawn = made.sample(n, seed=0).reshape(n, 2)
    level = ((drawn + 1) * 127.5).round()
    assert (level / 127.5 - 1 - drawn).abs().max() < CONVERSION
    with torch.no_grad():
        p = made.log_prob(torch.cartesian_prod(LEVELS, LEVELS).view(-1, *shape)).exp()
    blocks = p.view(16, 16, 16, 16).sum((1, 3)).flatten()
    index = (level[:, 0] // 16 * 16 + level[:, 1] // 16).long()
    counts = torch.bincount(index, minlength=256)
    group = torch.where(blocks * n > 5, torch.arange(256), int(blocks.argmax()))  # rare ones in one
    found = torch.zeros(256).double().index_add(0, group, counts.double())
    expected = torch.zeros(256).double().index_add(0, group, blocks * n)
    used = expected > 0
    assert used.sum() > 10
    assert stats.chisquare(found[used], expected[used] * n / expected.sum()).pvalue > 1e-3


def test_samples_of_a_density_have_its_moments() -> None:
    made, n = model((2,), likelihood="gaussian", initial_std=0.5), 20_000
    drawn = made.sample(n, seed=1)
    side = torch.linspace(-12, 12, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        p = made.log_prob(grid).exp() * 0.04**2
    for f in (lambda x: x, lambda x: x**2, lambda x: x[:, :1] * x[:, 1:]):
        exact, values = (p[:, None] * f(grid)).sum(0), f(drawn)
        assert ((values.mean(0) - exact).abs() < 5 * values.std(0) / math.sqrt(n)).all()


def test_a_sample_is_a_function_of_its_seed_and_id() -> None:
    made = model((1, 4, 3))
    whole = made.sample(6, seed=3)
    part = made.sample(2, seed=3, sample_ids=torch.tensor([4, 2]))
    assert torch.equal(part, whole[[4, 2]])
    assert not torch.equal(made.sample(6, seed=4), whole)
    # each element is the quantile of its own law, given the others
    again = made.conditionals(whole)
    assert again.mean.shape == (6, 3, 1, 4, 3)


@pytest.mark.parametrize("shape", [(1, 4, 3), (4,)], ids=str)
def test_the_bound_is_the_likelihood(shape: tuple[int, ...]) -> None:
    """It adds the elements' logarithms, has nothing random, and is minus the loss's sign."""
    made = model(shape)
    x = LEVELS[torch.randint(0, 256, (5, *shape))]
    ids = torch.arange(5)
    terms = made.bound(x, seed=0, sample_ids=ids)
    assert list(terms) == ["elements"]
    torch.testing.assert_close(terms["elements"], made.loss(x, seed=7, sample_ids=ids + 9, step=3))
    each = made.conditionals(x).log_mass(x).flatten(1).sum(1)
    torch.testing.assert_close(terms["elements"], -each, rtol=1e-12, atol=0)


def test_training_reaches_the_entropy() -> None:
    """Of x_1 normal and x_2 = x_1² - 1 + noise: in 400 steps within 0.05 nats, and not below."""
    torch.manual_seed(0)
    made = Autoregressive((2,), widths=(48, 48), components=4, likelihood="gaussian")
    generator = torch.Generator().manual_seed(1)

    def draw(n: int) -> torch.Tensor:
        a, b = torch.randn(2, n, generator=generator)
        return torch.stack([0.7 * a, (0.7 * a) ** 2 - 1 + 0.3 * b], dim=1)

    optimizer = torch.optim.Adam(made.parameters(), 5e-3)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 400)
        optimizer.zero_grad()
        made.loss(draw(256)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        losses = made.loss(draw(20_000))
    entropy = math.log(2 * math.pi * math.e) + math.log(0.7 * 0.3)
    error = float(losses.std()) / math.sqrt(20_000)
    assert entropy - 4 * error < float(losses.mean()) < entropy + 0.05


class Pictures:
    """Ten pictures of noise on levels."""

    examples, shape, levels, classes, name = 10, (1, 4, 4), 256, (), "noise"

    def batch(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        k = torch.randint(0, 256, (10, *self.shape), generator=generator)
        return (k / 127.5 - 1)[ids], torch.zeros(len(ids), dtype=torch.int64)


def test_its_report_in_bits() -> None:
    made = Autoregressive((1, 4, 4), widths=(8,))
    result = evaluate(made, Pictures(), Request(images=10))
    assert result is not None and result["convention"].startswith("probability of 256 levels")
    x, _ = Pictures().batch(torch.arange(10))
    bits = float(made.loss(x).mean().detach()) / (16 * math.log(2))
    assert result["bound"]["bits_per_dim"] == pytest.approx(bits, rel=1e-6)
    assert list(result["terms"]) == ["elements"]


def test_its_picture_has_its_own_density(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed here")
    moons = load_toy("moons", n=64)
    made = make("autoregressive", moons, widths=(8,))
    x, _ = moons.batch(torch.arange(64))
    (found,) = system_figure._density(made, x, seed=0).values()
    torch.testing.assert_close(found, made.log_prob(x).double().exp().detach())
    system_figure.draw(made, moons, tmp_path / "points.png")
    assert (tmp_path / "points.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (2, 3)}, r"expected shape \[D\] or \[C, H, W\], got \[2, 3\]"),
        ({"shape": (0,)}, r"expected shape \[D\] or \[C, H, W\], got \[0\]"),
        ({"widths": ()}, r"expected widths >= 1, got \[\]"),
        ({"widths": (8, 16)}, "expected equal widths for images, one for each block"),
        ({"components": 0}, "expected components >= 1, got 0"),
        ({"likelihood": "laplace"}, "expected likelihood in .*, got 'laplace'"),
        ({"initial_std": 1e-4}, r"expected initial_std above its floor e\^-7, got 0.0001"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"autoregressive.Autoregressive: {message}"):
        Autoregressive(**({"shape": (1, 4, 4)} | change))


def test_data_of_another_shape_are_refused() -> None:
    made = Autoregressive((1, 4, 4), widths=(8,))
    for shape in ((2, 4, 4), (1, 5, 4), (1, 4, 3), (16,)):
        with pytest.raises(ValueError, match=r"expected x0 of shape \[B, 1, 4, 4\], got"):
            made.loss(torch.zeros(3, *shape))
