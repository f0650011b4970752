"""`vlb_terms`: the terms of the variational bound in one pass.

test_sums.py tests what it shares with the other sums.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.cases import outside
from ops.sums import OPS

import fastdiff
from fastdiff import Schedule, ops
from fastdiff.theory.likelihood import vlb_table


def test_vlb_terms_are_the_posterior_against_the_model(backend) -> None:
    """It equals q_posterior of x0 and of the prediction, followed by gaussian_kl or the NLL."""
    inputs = OPS["vlb_terms"].inputs((5, 4, 3), torch.float64)
    x0, x_t, out, table, t = (inputs[k] for k in ("x0", "x_t", "model_output", "table", "t"))
    rows = table[t].view(5, -1, 1, 1)
    eps, half = out.chunk(2, dim=1)
    predicted = (rows[:, 0] * x_t + rows[:, 1] * eps).clamp(-1, 1)
    alphas_cumprod = torch.tensor(fastdiff.Schedule.linear(100).alphas_cumprod)
    true, _, logvar = ops.q_posterior(x0, x_t, t, alphas_cumprod)
    model, _, _ = ops.q_posterior(predicted, x_t, t, alphas_cumprod)
    variance = rows[:, 6] + (rows[:, 7] - rows[:, 6]) * (half + 1) / 2
    kl = ops.gaussian_kl(true, logvar.view(-1, 1, 1), model, variance)
    nll = ops.discretized_gaussian_nll(x0, model, variance / 2)
    expected = torch.where(t == 0, nll, kl)
    torch.testing.assert_close(
        ops.vlb_terms(x0, x_t, out, table, t), expected, rtol=1e-9, atol=1e-9
    )


def test_bad_times_raise_before_anything_is_written(backend) -> None:
    inputs = OPS["vlb_terms"].inputs((3, 5), torch.float32)
    out = torch.full((3,), 7.0)
    for bad in (-1, 100):
        times = {"t": torch.tensor([3, bad, 4])}
        message = f"fastdiff.vlb_terms: expected t in [0, 100), got {bad} at index 1"
        outside(backend, lambda times=times: ops.vlb_terms(**inputs | times, out=out), message, 1)
    assert backend in ("cuda", "triton") or out.eq(7).all()


@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_the_bound_of_gaussian_data_has_its_closed_form(spread, backend) -> None:
    """On N(0, s²) with the optimal denoiser L_t = ½ (SNR_{t-1} - SNR_t) mmse_t.

    mmse_t = s² (1 - a_t)/V_t with V_t = a_t s² + 1 - a_t. The estimate averages n squares of
    normals, so its relative standard error is sqrt(2/n); the limit is five.
    """
    schedule, n = Schedule.linear(50), 40_000
    table = torch.tensor(vlb_table(schedule, prediction_type="x0"))
    a = schedule.alphas_cumprod
    for t in (1, 10, 49):
        x0 = ops.randn((n, 1), seed=t, dtype=torch.float64) * spread
        index = torch.full((n,), t)
        x_t = ops.q_sample(
            x0, index, torch.tensor(schedule.alpha), torch.tensor(schedule.sigma), seed=t
        )
        total = a[t] * spread**2 + 1 - a[t]
        terms = ops.vlb_terms(x0, x_t, x_t * (a[t] ** 0.5 * spread**2 / total), table, index)
        snr = a / (1 - a)
        expected = 0.5 * (snr[t - 1] - snr[t]) * spread**2 * (1 - a[t]) / total
        assert abs(terms.mean().item() / expected - 1) < 5 * (2 / n) ** 0.5


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_the_table_has_the_variance_of_the_model(variance: str) -> None:
    schedule = Schedule.cosine(20)
    rows = vlb_table(schedule, variance=variance)
    lo, hi = rows[:, 6], rows[:, 7]
    small = np.log(
        schedule.betas[5]
        * schedule.one_minus_alphas_cumprod[4]
        / schedule.one_minus_alphas_cumprod[5]
    )
    large = np.log(schedule.betas[5])
    expected = {
        "fixed_small": (small, small),
        "fixed_large": (large, large),
        "learned": (-1, 1),
        "learned_range": (small, large),
    }[variance]
    np.testing.assert_allclose((lo[5], hi[5]), expected, rtol=1e-12)
    assert (
        rows[0, 8] == 1
        and not rows[1:, 8].any()
        and np.isfinite(rows[:, [0, 1, 3, 4, 5, 6, 7]]).all()
    )


def test_bad_names_of_the_table() -> None:
    with pytest.raises(
        ValueError, match="fastdiff.theory.likelihood.vlb_table: expected variance in"
    ):
        vlb_table(Schedule.linear(10), variance="small")
    with pytest.raises(
        ValueError,
        match="fastdiff.theory.likelihood.vlb_table: expected clip_range > 0 or None, got -1",
    ):
        vlb_table(Schedule.linear(10), clip_range=-1)
    with pytest.raises(
        ValueError, match=r"expected table as float64 \[T, 9\], got float64 \[10, 8\]"
    ):
        ops.vlb_terms(
            *(torch.zeros(2, 3),) * 3, torch.zeros(10, 8, dtype=torch.float64), torch.tensor([0, 1])
        )


def test_training_on_the_bound_learns_the_variance(backend) -> None:
    """Minimizing L_t over one log-variance, with x̂0 = 0, ends at the optimum.

    The optimum is ln (variance_q + mean_x0² E (x0 - x̂0)²).
    """
    schedule, n = Schedule.linear(50), 256
    table, t = (
        torch.tensor(vlb_table(schedule, prediction_type="x0", variance="learned")),
        torch.full((n,), 20),
    )
    x0 = ops.randn((n, 1), seed=0)
    x_t = ops.q_sample(x0, t, torch.tensor(schedule.alpha), torch.tensor(schedule.sigma), seed=0)
    v = torch.full((1,), -2.0, requires_grad=True)
    optimizer = torch.optim.Adam([v], lr=0.05)
    for _ in range(400):
        out = torch.cat([torch.zeros(n, 1), v.expand(n, 1)], dim=1)
        loss = ops.vlb_terms(x0, x_t, out, table, t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    row = table[20]
    optimum = torch.log(row[5].exp() + (row[3] * x0.double()).square().mean())
    assert abs(v.item() - optimum.item()) < 1e-3
