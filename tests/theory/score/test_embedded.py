"""The embedded pair against SciPy's RK45 of each sample.

Both use the same pair, step control and error norm per system.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.integrate._ivp.rk import RK45
from torch import Tensor

from fastdiff.theory.score import embedded, integrate

RATES = torch.tensor([0.3, 1.0, 1.7, 2.4, 3.0], dtype=torch.float64)
START = torch.tensor(
    [[1.0, 0.2], [-0.3, 1.0], [0.5, 0.5], [2.0, -1.0], [0.0, 0.1]], dtype=torch.float64
)


def oscillators(state: tuple[Tensor, ...], t: np.ndarray, rows: Tensor) -> tuple[Tensor, ...]:
    """Five driven oscillators of different frequency, which need different steps."""
    (y,) = state
    at = torch.from_numpy(np.asarray(t))
    force = 0.5 * torch.cos(y[:, 0]) - RATES[rows] ** 2 * y[:, 0] * (1 + 0.5 * torch.sin(3 * at))
    return (torch.stack([y[:, 1], force], 1).to(y.dtype),)


def alone(i: int, t: float, y: np.ndarray) -> list[float]:
    """The derivative of one of the oscillators, as plain numbers."""
    pace = float(RATES[i]) ** 2
    return [y[1], 0.5 * math.cos(y[0]) - pace * y[0] * (1 + 0.5 * math.sin(3 * t))]


def test_the_tableau_is_dormand_princes() -> None:
    """The tableau is SciPy's and satisfies the order conditions up to 5 and 4."""
    np.testing.assert_array_equal(embedded.C[:6], RK45.C)
    for s in range(1, 6):
        np.testing.assert_array_equal(embedded.A[s], RK45.A[s][:s])
    np.testing.assert_array_equal(embedded.A[6], RK45.B)
    np.testing.assert_array_equal(embedded.E, RK45.E)
    a = np.array([[*row, *[0.0] * (7 - len(row))] for row in embedded.A])
    b, c = np.array([*embedded.A[6], 0.0]), np.array(embedded.C)
    for weights, order in ((b, 5), (b - np.array(embedded.E), 4)):
        for k in range(1, order + 1):
            assert weights @ c ** (k - 1) == pytest.approx(1 / k, abs=1e-15)
        assert weights @ (a @ c) == pytest.approx(1 / 6, abs=1e-15)
        assert weights @ (a @ (a @ c)) == pytest.approx(1 / 24, abs=1e-15)


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("span", [(0.0, 5.0), (4.0, -1.0)])
def test_every_sample_takes_scipys_steps(rtol: float, span: tuple[float, float]) -> None:
    """Steps and evaluations equal those of SciPy for that sample, states up to rounding.

    DOP853 agrees within the tolerance.
    """
    done = integrate(oscillators, (START,), *span, rtol=rtol, atol=rtol)
    assert len(set(done.evaluations.tolist())) > 1
    for i in range(5):
        theirs = solve_ivp(
            lambda t, y, i=i: alone(i, t, y), span, START[i].numpy(), rtol=rtol, atol=rtol
        )
        assert (theirs.nfev, len(theirs.t) - 1) == (done.evaluations[i], done.accepted[i])
        assert done.evaluations[i] == 2 + 6 * (done.accepted[i] + done.rejected[i])
        np.testing.assert_allclose(done.state[0][i].numpy(), theirs.y[:, -1], rtol=0, atol=1e-11)
        truth = solve_ivp(
            lambda t, y, i=i: alone(i, t, y),
            span,
            START[i].numpy(),
            method="DOP853",
            rtol=1e-11,
            atol=1e-11,
        )
        assert np.abs(done.state[0][i].numpy() - truth.y[:, -1]).max() < 300 * rtol


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    whole = integrate(oscillators, (START.to(dtype),), 0.0, 10.0, rtol=1e-4, atol=1e-4)
    order = torch.tensor([3, 1, 4])
    part = integrate(
        lambda y, t, rows: oscillators(y, t, order[rows]),
        (START[order].to(dtype),),
        0.0,
        10.0,
        rtol=1e-4,
        atol=1e-4,
    )
    assert torch.equal(part.state[0], whole.state[0][order])
    for ours, theirs in zip(part[1:], whole[1:], strict=True):
        assert (ours == theirs[order.numpy()]).all()


def test_finished_samples_cost_nothing() -> None:
    seen = np.zeros(5, dtype=int)

    def counted(state: Any, t: np.ndarray, rows: Tensor) -> Any:
        assert len(state[0]) == len(t) == len(rows)
        seen[rows.numpy()] += 1
        return oscillators(state, t, rows)

    done = integrate(counted, (START,), 0.0, 10.0, rtol=1e-6, atol=1e-6)
    assert (seen == done.evaluations).all() and seen.max() > 2 * seen.min()


def test_parts_move_together_and_the_worst_decides() -> None:
    """A part that integrates cos(20 t) determines the steps.

    Both parts reach their closed forms, each sample at its own end time.
    """
    end = np.array([1.0, 2.0, 0.0])

    def field(state: Any, t: np.ndarray, rows: Tensor) -> Any:
        slow, fast = state
        return -slow, torch.from_numpy(np.cos(20 * t))[:, None].expand_as(fast)

    slow, fast = torch.ones(3, 2, 2), torch.zeros(3, 1, dtype=torch.float64)
    done = integrate(field, (slow, fast), 0.0, end, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(done.state[0][:, 0, 0].numpy(), np.exp(-end), rtol=1e-4)
    np.testing.assert_allclose(done.state[1][:, 0].numpy(), np.sin(20 * end) / 20, atol=1e-5)
    easy = integrate(lambda y, t, rows: (-y[0],), (slow,), 0.0, end, rtol=1e-5, atol=1e-6)
    assert (done.accepted[:2] > 3 * easy.accepted[:2]).all() and done.evaluations[2] == 0


def test_errors_name_what_cannot_be_integrated() -> None:
    y = torch.ones(2, 3, dtype=torch.float64)

    def singular(state: Any, t: np.ndarray, rows: Tensor) -> Any:  # blows up at t = 1
        return (state[0] ** 2,)

    with pytest.raises(
        RuntimeError,
        match=r"expected steps above the resolution of time, got .* in sample 0. Raise rtol",
    ):
        integrate(singular, (y,), 0.0, 2.0)
    with pytest.raises(RuntimeError, match="expected at most 60 evaluations, got more in sample 1"):
        integrate(
            lambda s, t, rows: (torch.sin(50 * s[0]) * rows[:, None],),
            (y,),
            0.0,
            9.0,
            rtol=1e-9,
            max_evaluations=60,
        )
    with pytest.raises(ValueError, match="expected a finite start, got .* in sample 1"):
        integrate(
            lambda s, t, rows: (s[0] * torch.tensor([1.0, torch.nan])[rows, None],), (y,), 0.0, 1.0
        )
    for bad in ({"rtol": 1e-9, "atol": 0.0}, {"rtol": -1.0}):
        with pytest.raises(
            ValueError, match=r"expected rtol \+ atol >= 10 roundings of torch.float32"
        ):
            integrate(lambda s, t, rows: s, (y.float(),), 0.0, 1.0, **bad)
    with pytest.raises(ValueError, match="expected finite times"):
        integrate(lambda s, t, rows: s, (y,), 0.0, float("inf"))


def test_a_step_that_leaves_the_domain_is_retried() -> None:
    """Trial stages at negative y are rejected, where sqrt is not defined.

    The solution (1 - t/2)² is reached.
    """
    y = torch.ones(1, 1, dtype=torch.float64)
    done = integrate(
        lambda s, t, rows: (-torch.sqrt(s[0]),), (y,), 0.0, 1.99, rtol=1e-8, atol=1e-10
    )
    assert float(done.state[0]) == pytest.approx(0.005**2, rel=1e-2)
    empty = integrate(lambda s, t, rows: s, (y[:0],), 0.0, 1.0)
    assert empty.state[0].shape == (0, 1) and len(empty.evaluations) == 0
