"""Compares docs/theory/equations.md with the repository, and tests formulas of Luo 2022 that no
other test covers.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import BOUND, CONVERSION

from fastdiff import Schedule, ops, prediction
from fastdiff.solvers import make_plan
from fastdiff.theory.likelihood import steps, vlb_table
from fastdiff.theory.variational import weights

ROOT = Path(__file__).resolve().parents[2]
THEORY = ROOT / "docs" / "theory"
sys.path.append(str(THEORY))
import equations  # noqa: E402

TABLE = equations.load()
ROWS = equations.rows(TABLE)
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row["numbers"])


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_page_is_what_the_generator_writes() -> None:
    assert equations.PAGE.read_text(encoding="utf-8") == equations.render(TABLE), (
        "run python docs/theory/equations.py"
    )


def test_every_number_has_exactly_one_row() -> None:
    """A number of the paper that has no row, or two, fails by name."""
    listed = [n for row in ROWS for n in equations.numbers(row)]
    assert sorted(set(range(1, TABLE["last"] + 1)) - set(listed)) == [], (
        "these equations have no row"
    )
    assert listed == sorted(set(listed)) and listed[-1] == TABLE["last"], (
        "rows overlap or are out of order"
    )


@each_row
def test_a_row_names_what_exists(row: dict) -> None:
    assert set(row) <= {"numbers", "says", "functions", "tests", "see", "skip", "counted"}
    assert row["says"] and (bool(row.get("functions")) != bool(row.get("skip"))), (
        "functions, or the reason for none"
    )
    for name in row.get("functions", ()):
        equations.resolve(name)
    assert row.get("tests") or row.get("skip"), "a function without a test"
    for test in row.get("tests", ()):
        file, _, function = test.partition("::")
        assert function.startswith("test_") and function in functions_of(file), test
    for path in row.get("see", ()):
        assert (THEORY / path).is_file(), path


def test_the_checks_can_fail() -> None:
    with pytest.raises(AttributeError):
        equations.resolve("theory.variational.VAE.nothing")
    with pytest.raises(AttributeError):
        equations.resolve("theory.likelihood.nowhere.elbo")
    assert "test_nothing" not in functions_of("project/test_equations.py")
    broken = {"last": 3, "section": [{"title": "", "row": [{"numbers": "1"}, {"numbers": "3"}]}]}
    assert {n for row in equations.rows(broken) for n in equations.numbers(row)} == {1, 3}


def test_printed_numbers_are_in_the_table() -> None:
    """Numbers that docstrings cite as `Luo 2022, eq. N` are in the table."""
    for path in (ROOT / "fastdiff").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "Luo 2022, eq. " in line:
                cited = line.split("Luo 2022, eq. ")[1].split(")")[0].split(";")[0]
                found = [int(number) for number in re.findall(r"\d+", cited)]
                assert found and all(1 <= n <= TABLE["last"] for n in found), (path, line)


SCHEDULES = [Schedule.linear(1000), Schedule.cosine(50), Schedule.linear(10)]
on_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


class Printed:
    """alpha_t, ᾱ_t, ᾱ_{t-1} and 1 minus each, as the paper prints them, for t = 1 … T-1, the steps
    with a posterior.
    """

    def __init__(self, schedule: Schedule):
        self.bar, self.lost = schedule.alphas_cumprod[1:], schedule.one_minus_alphas_cumprod[1:]
        self.before, self.lost_before = (
            schedule.alphas_cumprod[:-1],
            schedule.one_minus_alphas_cumprod[:-1],
        )
        self.alpha = self.bar / self.before
        self.beta = (self.lost - self.lost_before) / self.before  # 1 - alpha_t
        self.variance = self.beta * self.lost_before / self.lost  # eq. 85


@on_schedules
def test_printed_coefficients_of_the_steps(schedule: Schedule) -> None:
    """Eq. 85 and 93, in the table and in the op."""
    p, step = Printed(schedule), steps(schedule)
    on_x, on_x0 = np.sqrt(p.alpha) * p.lost_before / p.lost, np.sqrt(p.before) * p.beta / p.lost
    for got, expected in ((step.posterior, p.variance), (step.mean_x, on_x), (step.mean_x0, on_x0)):
        np.testing.assert_allclose(got[1:], expected, rtol=BOUND)
    n = len(on_x)
    x0, x_t = ops.randn((2, n, 3), seed=1, dtype=torch.float64)
    mean, variance, _ = ops.q_posterior(
        x0, x_t, torch.arange(1, n + 1), torch.tensor(schedule.alphas_cumprod)
    )
    expected = torch.tensor(on_x)[:, None] * x_t + torch.tensor(on_x0)[:, None] * x0
    torch.testing.assert_close(mean, expected, rtol=BOUND, atol=BOUND)
    torch.testing.assert_close(variance, torch.tensor(p.variance), rtol=BOUND, atol=0)


@on_schedules
def test_bayes_rule_of_the_steps(schedule: Schedule) -> None:
    """Eq. 46 and 71-84: ln q(x_t|x_s) + ln q(x_s|x_0) = ln q(x_s|x_t, x_0) + ln q(x_t|x_0) at any
    points.
    """
    step = steps(schedule)
    x0, before, after = np.random.default_rng(0).standard_normal((3, len(step.alpha) - 1))

    def log_normal(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))

    alpha, lost = schedule.alpha, schedule.one_minus_alphas_cumprod
    forward = log_normal(after, step.alpha[1:] * before, step.variance[1:])
    left = forward + log_normal(before, alpha[:-1] * x0, lost[:-1])
    posterior = log_normal(
        before, step.mean_x0[1:] * x0 + step.mean_x[1:] * after, step.posterior[1:]
    )
    right = posterior + log_normal(after, alpha[1:] * x0, lost[1:])
    np.testing.assert_allclose(left, right, rtol=1e-9)


@on_schedules
def test_the_mean_by_noise_and_by_score(schedule: Schedule) -> None:
    """Eq. 124, 125, 142 and 143: μ_q with x_0 expressed by eps and by the score; a DDPM row
    computes the same.
    """
    p, step = Printed(schedule), steps(schedule)
    x0, eps = np.random.default_rng(1).standard_normal((2, len(p.bar)))
    x_t = np.sqrt(p.bar) * x0 + np.sqrt(p.lost) * eps
    mean = step.mean_x0[1:] * x0 + step.mean_x[1:] * x_t
    score = prediction.convert("epsilon", "score", eps, x_t, np.sqrt(p.bar), np.sqrt(p.lost))
    by_noise = x_t / np.sqrt(p.alpha) - p.beta / np.sqrt(p.lost * p.alpha) * eps
    by_score = x_t / np.sqrt(p.alpha) + p.beta / np.sqrt(p.alpha) * score
    scale = 1 + np.abs(mean) + p.beta / np.sqrt(p.bar)
    for other in (by_noise, by_score):
        assert (np.abs(other - mean) / scale).max() < BOUND
    for kind, output in (("epsilon", eps), ("score", score)):
        plan = make_plan(
            schedule,
            solver="ddpm",
            steps=len(p.bar) + 1,
            prediction_type=kind,
            timestep_spacing="trailing",
        )
        table = torch.tensor(
            np.concatenate([plan.table[:-2][::-1], plan.table[-1:]])
        )  # rows by t = 1 …
        assert plan.column("t")[:-2].tolist() == list(range(len(p.bar), 0, -1))
        zero = torch.zeros(len(p.bar), 1, dtype=torch.float64)
        row = torch.arange(len(p.bar))
        got = ops.reverse_step(
            torch.tensor(x_t)[:, None], torch.tensor(output)[:, None], table, row, noise=zero
        )
        assert isinstance(got, torch.Tensor)
        assert (np.abs(got[:, 0].numpy() - mean) / scale).max() < BOUND


@on_schedules
def test_the_three_weights_are_one_divergence(schedule: Schedule) -> None:
    """Eq. 99, 108, 130 and 148: the errors of x0, eps and score give one KL, which `vlb_terms` and
    `vlb_weight` give too.
    """
    p = Printed(schedule)
    by_x0 = p.before * p.beta**2 / (2 * p.variance * p.lost**2)
    by_eps = p.beta**2 / (2 * p.variance * p.lost * p.alpha)
    by_score = p.beta**2 / (2 * p.variance * p.alpha)
    snr = p.bar / p.lost
    np.testing.assert_allclose(by_x0, 0.5 * (p.before / p.lost_before - snr), rtol=1e-8)
    # an error e of x0 is one of -√SNR e of eps and of √SNR/σ e of the score
    np.testing.assert_allclose(by_eps * snr, by_x0, rtol=BOUND)
    np.testing.assert_allclose(by_score * snr / p.lost, by_x0, rtol=BOUND)
    levels = torch.tensor(schedule.log_snr)
    np.testing.assert_allclose(
        weights.vlb_weight(levels[:-1], levels[1:]).numpy(), by_eps, rtol=BOUND
    )
    x0, x_t, error = ops.randn((3, len(snr), 2), seed=2, dtype=torch.float64)
    table, t = (
        torch.tensor(vlb_table(schedule, prediction_type="x0")),
        torch.arange(1, len(snr) + 1),
    )
    got = ops.vlb_terms(x0, x_t, x0 + error, table, t)
    torch.testing.assert_close(got, torch.tensor(by_x0) * error.square().sum(1), rtol=BOUND, atol=0)


def test_tweedie_s_formula_on_a_mixture() -> None:
    """Eq. 133 is E[x_0|x_t]: a quadrature over an x_0 with two modes, for which the density of x_t
    has a closed form.
    """
    means, std, share = np.array([-1.5, 1.0]), 0.4, np.array([0.3, 0.7])
    grid, width = np.linspace(-5, 5, 4001, retstep=True)
    prior = (share * np.exp(-0.5 * ((grid[:, None] - means) / std) ** 2)).sum(1)
    for bar in (0.9, 0.5, 0.05):
        alpha, sigma = np.sqrt(bar), np.sqrt(1 - bar)
        total = bar * std**2 + 1 - bar
        for x in (-2.0, -0.1, 0.3, 1.7):
            weight = prior * np.exp(-0.5 * ((x - alpha * grid) / sigma) ** 2)
            expected = (weight * grid).sum() / weight.sum()
            part = share * np.exp(-0.5 * (x - alpha * means) ** 2 / total)
            score = (part * -(x - alpha * means) / total).sum() / part.sum()
            got = prediction.convert("score", "x0", score, x, alpha, sigma)
            assert got == pytest.approx(expected, rel=1e-10, abs=CONVERSION) and width < std / 100
