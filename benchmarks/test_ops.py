"""Every fused op next to what its users run instead: torch eager and diffusers' schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from benchmarks import harness
from fastdiff import Schedule, ops, reference
from fastdiff.likelihood import vlb_table
from fastdiff.solvers import make_plan

SCHEDULE = Schedule.linear(1000)
BATCH = (256, 3, 32, 32)
ELEMENTS = 256 * 3 * 32 * 32


def _diffusers(name: str) -> Any:
    try:
        import diffusers
    except ImportError:
        return None
    return getattr(diffusers, name)(num_train_timesteps=1000, clip_sample=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_randn(benchmark: Any, dtype: torch.dtype) -> None:
    out, peer = torch.empty(BATCH, dtype=dtype), torch.empty(BATCH, dtype=dtype)

    def check() -> None:
        fastdiff.randn(BATCH, seed=1, out=out)
        expected = torch.from_numpy(reference.randn((2, *BATCH[1:]), seed=1)).to(dtype)
        assert torch.equal(out[:2], expected)

    harness.report(
        benchmark,
        {"fastdiff": lambda: fastdiff.randn(BATCH, seed=1, out=out), "torch.randn": lambda: peer.normal_()},
        elements=ELEMENTS,
        bytes_floor=ELEMENTS * out.element_size(),
        check=check,
    )


def test_q_sample(benchmark: Any) -> None:
    x0, t = torch.randn(BATCH), torch.arange(256) * 3
    alpha, sigma = torch.tensor(SCHEDULE.alpha), torch.tensor(SCHEDULE.sigma)
    single_a, single_s = alpha.float(), sigma.float()
    out = torch.empty(BATCH)

    def check() -> None:
        fastdiff.q_sample(x0, t, alpha, sigma, seed=1, out=out)
        expected = reference.q_sample(x0[:2].numpy(), t[:2].numpy(), SCHEDULE.alpha, SCHEDULE.sigma, seed=1)
        assert np.array_equal(out[:2].numpy(), expected)

    def eager() -> torch.Tensor:
        shape = (-1, 1, 1, 1)
        return single_a[t].view(shape) * x0 + single_s[t].view(shape) * torch.randn_like(x0)

    arms = {"fastdiff": lambda: fastdiff.q_sample(x0, t, alpha, sigma, seed=1, out=out), "torch eager": eager}
    scheduler = _diffusers("DDPMScheduler")
    if scheduler is not None:
        arms["diffusers"] = lambda: scheduler.add_noise(x0, torch.randn_like(x0), t)
    harness.report(benchmark, arms, elements=ELEMENTS, bytes_floor=8 * ELEMENTS, check=check)


def step_arms(solver: str, shape: tuple[int, ...]) -> tuple[dict[str, harness.Arm], Callable[[], None]]:
    """One step in place, by fastdiff, torch.compile and diffusers; and the check of ours."""
    plan = make_plan(SCHEDULE, solver=solver, steps=50, timestep_spacing="leading")
    k, table, batch = 25, torch.tensor(plan.table), shape[0]
    x, model_output = torch.randn(shape), torch.randn(shape)
    row, ids = torch.full((batch,), k), torch.arange(batch)
    state = x.clone()

    def step() -> None:
        ops.reverse_step(state, model_output, table, row, seed=1, sample_ids=ids, used=plan.used, out=state)

    def check() -> None:
        state.copy_(x)
        step()
        expected = reference.reverse_step(x[:1].numpy(), model_output[:1].numpy(), plan.table, k, seed=1)
        assert np.array_equal(state[:1].numpy(), expected.x_s)

    def formula(x: torch.Tensor, out: torch.Tensor, c: tuple[float, ...]) -> torch.Tensor:
        x0 = c[0] * x + c[1] * out
        result = c[2] * x + c[3] * x0
        return result + c[4] * torch.randn_like(x) if c[4] else result

    names = ("x0_x", "x0_out", "x.x", "x.x0", "x.z")
    numbers = tuple(float(plan.table[k, plan.columns.index(name)]) for name in names)
    compiled = torch.compile(formula, dynamic=False)
    arms: dict[str, harness.Arm] = {"fastdiff": step, "torch.compile": lambda: compiled(x, model_output, numbers)}
    scheduler = _diffusers("DDPMScheduler" if solver == "ddpm" else "DDIMScheduler")
    if scheduler is not None:
        scheduler.set_timesteps(50)
        t = scheduler.timesteps[k]
        arms["diffusers"] = lambda: scheduler.step(model_output, t, x)
    return arms, check


@pytest.mark.parametrize("shape", [BATCH, (1, 3, 32, 32)], ids=["256x3x32x32", "1x3x32x32"])
@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_reverse_step(benchmark: Any, solver: str, shape: tuple[int, ...]) -> None:
    arms, check = step_arms(solver, shape)
    elements = math.prod(shape)
    harness.report(benchmark, arms, elements=elements, bytes_floor=12 * elements, check=check)


def test_q_posterior(benchmark: Any) -> None:
    x0, x_t, t = torch.randn(BATCH), torch.randn(BATCH), torch.arange(256) * 3
    kept = torch.tensor(SCHEDULE.alphas_cumprod)
    out = (torch.empty(BATCH), torch.empty(256), torch.empty(256))

    def check() -> None:
        ops.q_posterior(x0, x_t, t, kept, out=out)
        expected = reference.q_posterior(x0[:2].numpy(), x_t[:2].numpy(), t[:2].numpy(), SCHEDULE.alphas_cumprod)
        assert np.array_equal(out[0][:2].numpy(), expected[0])

    previous = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    beta = 1 - kept / previous
    on_x0 = (previous.sqrt() * beta / (1 - kept)).float()
    on_x = ((1 - beta).sqrt() * (1 - previous) / (1 - kept)).float()
    variance = (beta * (1 - previous) / (1 - kept)).float()

    def eager() -> tuple[torch.Tensor, ...]:
        shape = (-1, 1, 1, 1)
        return on_x0[t].view(shape) * x0 + on_x[t].view(shape) * x_t, variance[t], variance[t].log()

    arms = {"fastdiff": lambda: ops.q_posterior(x0, x_t, t, kept, out=out), "torch eager": eager}
    harness.report(benchmark, arms, elements=ELEMENTS, bytes_floor=12 * ELEMENTS, check=check)


def test_reparameterize(benchmark: Any) -> None:
    mean, logvar, out = torch.randn(BATCH), torch.randn(BATCH), torch.empty(BATCH)

    def check() -> None:
        ops.reparameterize(mean, logvar, seed=1, out=out)
        assert np.array_equal(out[:2].numpy(), reference.reparameterize(mean[:2].numpy(), logvar[:2].numpy(), seed=1))

    arms = {
        "fastdiff": lambda: ops.reparameterize(mean, logvar, seed=1, out=out),
        "torch eager": lambda: mean + torch.exp(0.5 * logvar) * torch.randn_like(mean),
    }
    harness.report(benchmark, arms, elements=ELEMENTS, bytes_floor=12 * ELEMENTS, check=check)


def test_noise_mse(benchmark: Any) -> None:
    """Against training as it is: noise made once, kept, and subtracted."""
    prediction, out, workspace = torch.randn(BATCH), torch.empty(256), torch.empty(3 * 256)

    def check() -> None:
        ops.noise_mse(prediction, seed=1, out=out, workspace=workspace)
        np.testing.assert_allclose(out[:2].numpy(), reference.noise_mse(prediction[:2].numpy(), seed=1), rtol=3e-6)

    arms = {
        "fastdiff": lambda: ops.noise_mse(prediction, seed=1, out=out, workspace=workspace),
        "torch eager": lambda: (prediction - torch.randn_like(prediction)).square().flatten(1).mean(1),
    }
    harness.report(benchmark, arms, elements=ELEMENTS, bytes_floor=4 * ELEMENTS, check=check)


def test_gaussian_kl(benchmark: Any) -> None:
    m1, v1, m2, v2 = (torch.randn(BATCH) for _ in range(4))
    out, workspace = torch.empty(256), torch.empty(3 * 256)

    def check() -> None:
        ops.gaussian_kl(m1, v1, m2, v2, out=out, workspace=workspace)
        expected = reference.gaussian_kl(*(v[:2].numpy() for v in (m1, v1, m2, v2)))
        np.testing.assert_allclose(out[:2].numpy(), expected, rtol=3e-6)

    def eager() -> torch.Tensor:
        return (0.5 * (-1.0 + v2 - v1 + torch.exp(v1 - v2) + (m1 - m2) ** 2 * torch.exp(-v2))).flatten(1).sum(1)

    arms = {"fastdiff": lambda: ops.gaussian_kl(m1, v1, m2, v2, out=out, workspace=workspace), "torch eager": eager}
    harness.report(benchmark, arms, elements=ELEMENTS, bytes_floor=16 * ELEMENTS, check=check)


def _eager_nll(x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """What training codes run instead: the tanh approximation of the normal's distribution, with clamps."""

    def cdf(v: torch.Tensor) -> torch.Tensor:
        return 0.5 * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (v + 0.044715 * v**3)))

    centred, inverse = x - mean, torch.exp(-log_scale)
    high, low = cdf(inverse * (centred + 1 / 255)), cdf(inverse * (centred - 1 / 255))
    middle = (high - low).clamp(min=1e-12).log()
    ends = torch.where(x > 0.999, (1 - low).clamp(min=1e-12).log(), middle)
    return -torch.where(x < -0.999, high.clamp(min=1e-12).log(), ends).flatten(1).sum(1)


def test_discretized_gaussian_nll(benchmark: Any) -> None:
    x0 = torch.randint(0, 256, BATCH) / 127.5 - 1
    mean, log_scale = x0 + 0.05 * torch.randn(BATCH), torch.randn(BATCH) * 0.3 - 3
    out, workspace = torch.empty(256), torch.empty(3 * 256)

    def check() -> None:
        ops.discretized_gaussian_nll(x0, mean, log_scale, out=out, workspace=workspace)
        expected = reference.discretized_gaussian_nll(*(v[:2].numpy() for v in (x0, mean, log_scale)))
        np.testing.assert_allclose(out[:2].numpy(), expected, rtol=3e-6)

    arms = {
        "fastdiff": lambda: ops.discretized_gaussian_nll(x0, mean, log_scale, out=out, workspace=workspace),
        "torch eager (tanh approximation)": lambda: _eager_nll(x0, mean, log_scale),
    }
    harness.report(benchmark, arms, elements=ELEMENTS, bytes_floor=12 * ELEMENTS, check=check)


def test_vlb_terms(benchmark: Any) -> None:
    """Against the formulas one after the other, as training codes write them."""
    shape = (64, 3, 32, 32)
    x0, t = torch.randint(0, 256, shape) / 127.5 - 1, torch.arange(64) * 15
    x_t, output = torch.randn(shape), torch.randn(64, 6, 32, 32)
    rows = vlb_table(SCHEDULE, variance="learned_range", clip_range=1.0)
    table, out, workspace = torch.tensor(rows), torch.empty(64), torch.empty(3 * 64)

    def check() -> None:
        ops.vlb_terms(x0, x_t, output, table, t, out=out, workspace=workspace)
        expected = reference.vlb_terms(*(v[:2].numpy() for v in (x0, x_t, output)), rows, t[:2].numpy())
        np.testing.assert_allclose(out[:2].numpy(), expected, rtol=2e-5)

    def eager() -> torch.Tensor:
        columns = table[t].float().view(64, -1, 1, 1).unbind(1)
        x0_x, x0_out, _, mean_x0, mean_x, logvar_q, low, high, _ = (c.view(64, 1, 1, 1) for c in columns)
        eps, half = output.chunk(2, dim=1)
        predicted = (x0_x * x_t + x0_out * eps).clamp(-1, 1)
        true, model = mean_x0 * x0 + mean_x * x_t, mean_x0 * predicted + mean_x * x_t
        v = low + (high - low) * (half + 1) / 2
        kl = 0.5 * (-1.0 + v - logvar_q + torch.exp(logvar_q - v) + (true - model) ** 2 * torch.exp(-v))
        return torch.where(t == 0, _eager_nll(x0, model, 0.5 * v), kl.flatten(1).sum(1))

    arms = {
        "fastdiff": lambda: ops.vlb_terms(x0, x_t, output, table, t, out=out, workspace=workspace),
        "torch eager": eager,
    }
    elements = x0.numel()
    harness.report(benchmark, arms, elements=elements, bytes_floor=16 * elements, check=check)
