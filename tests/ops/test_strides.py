"""Inputs of any layout (permuted, sliced, expanded, misaligned) give the bits of a dense copy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops.sums import SCHEDULE

from fastdiff import ops
from fastdiff.solvers import make_plan

ALPHA, SIGMA, CUMPROD = (
    torch.tensor(v) for v in (SCHEDULE.alpha, SCHEDULE.sigma, SCHEDULE.alphas_cumprod)
)
NOISY = torch.tensor(make_plan(SCHEDULE, solver="ddpm", steps=5).table)


@st.composite
def layouts(draw: st.DrawFn) -> torch.Tensor:
    """Draws a float32 tensor [B, …] of one to four dimensions that is a view of a larger one."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 3)) for _ in shape]
    starts = [draw(st.integers(0, 2)) for _ in shape]
    buffer = torch.randn(
        [shape[i] * steps[i] + starts[i] for i in order], generator=torch.Generator().manual_seed(1)
    )
    view = buffer.permute([order.index(i) for i in range(len(shape))])
    view = view[tuple(slice(s, s + n * k, k) for s, n, k in zip(starts, shape, steps, strict=True))]
    for dim in range(1, view.ndim):
        if draw(st.booleans()):
            view = view.narrow(dim, 0, 1).expand(view.shape)
    return view


def _runs(x: torch.Tensor) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    other, t = torch.full((), 0.5).expand(x.shape), torch.arange(x.shape[0]) * 7
    return {
        "q_sample": lambda v: ops.q_sample(v, t, ALPHA, SIGMA, seed=1),
        "q_sample's noise": lambda v: ops.q_sample(other, t, ALPHA, SIGMA, noise=v),
        "q_posterior": lambda v: ops.q_posterior(v, v, t, CUMPROD)[0],
        "reparameterize": lambda v: ops.reparameterize(v, v, seed=3),
        "noise_mse": lambda v: ops.noise_mse(v, seed=3),
        "step_log_prob": lambda v: ops.step_log_prob(v, v, v, NOISY, torch.ones_like(t)),
        "gaussian_kl": lambda v: ops.gaussian_kl(v, other, other, v),
        "discretized_gaussian_nll": lambda v: ops.discretized_gaussian_nll(v, other, v),
    }


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(layouts())
def test_any_layout(backend: str, x: torch.Tensor) -> None:
    for name, run in _runs(x).items():
        assert torch.equal(run(x), run(x.contiguous())), name


@pytest.mark.parametrize("offset", range(1, 8))
def test_unaligned_memory(offset: int, backend: str) -> None:
    """Addresses that are no multiple of 16 bytes, in every dtype."""
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        buffer = torch.randn(3 * 97 + offset, dtype=torch.float64).to(dtype)
        x = buffer[offset:].view(3, 97)
        for name, run in _runs(x).items():
            assert torch.equal(run(x), run(x.clone())), name
        out = torch.full((3 * 97 + offset + 1,), 7.0, dtype=dtype)
        ops.randn((3, 97), seed=5, out=out[offset:-1].view(3, 97))
        assert torch.equal(out[offset:-1].view(3, 97), ops.randn((3, 97), seed=5, dtype=dtype))
        assert out[:offset].eq(7).all() and out[-1] == 7
