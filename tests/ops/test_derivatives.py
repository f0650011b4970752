"""Derivatives beyond one gradient: forward mode, transforms of torch.func, gradients of gradients.

Each op is compared with finite differences in float64 (torch.autograd.gradcheck and gradgradcheck),
and vmap with a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jvp, vmap

from fastdiff import Schedule, ops
from fastdiff.sampling.guidance import with_classifier
from fastdiff.solvers import make_plan
from fastdiff.theory.likelihood import vlb_table

SCHEDULE = Schedule.linear(1000)
ALPHA, SIGMA = torch.tensor(SCHEDULE.alpha), torch.tensor(SCHEDULE.sigma)
T, FIRST_AND_LATER = torch.tensor([5, 900]), torch.tensor([0, 700])
SHAPE = (2, 4, 2, 3)
Case = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# 8-bit levels, both ends among them
LEVELS = ((_normal(*SHAPE, seed=5).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def _step(solver: str, output: int = 1, **settings: float) -> Case:
    plan = make_plan(SCHEDULE, solver=solver, steps=6, **settings)
    table, row = torch.tensor(plan.table), torch.tensor([2, 3])
    guided = settings.get("guidance_rescale") is not None
    strength = torch.tensor([2.0, 3.0], dtype=torch.float64) if guided else None
    count = plan.slots

    def call(x: Tensor, out: Tensor, *slots: Tensor) -> Tensor:
        found = ops.reverse_step(
            x,
            out,
            table,
            row,
            slots=slots[0] if slots else None,
            seed=3,
            guidance=strength,
            used=plan.used,
        )
        return torch.cat([found[0][None], found[1]]) if slots else found  # type: ignore[arg-type, return-value]

    shape = ((1 + guided) * SHAPE[0], output * SHAPE[1], *SHAPE[2:])
    slots = (_normal(count, *SHAPE, seed=4),) if count else ()
    return call, (_normal(*SHAPE), _normal(*shape, seed=1), *slots)


def _pushed_step(**settings: float) -> Case:
    """A row as a function of its noise, guidance and gradient too. Two of the strengths select a
    half.
    """
    plan = with_classifier(make_plan(SCHEDULE, solver="ddpm", steps=6, **settings), 0.5)
    table, row = torch.tensor(plan.table), torch.tensor([2, 3, 1])

    def call(x: Tensor, out: Tensor, noise: Tensor, guidance: Tensor, gradient: Tensor) -> Tensor:
        found = ops.reverse_step(
            x,
            out,
            table,
            row,
            noise=noise,
            guidance=guidance,
            gradient=gradient,
            used=plan.used,
        )
        return found  # type: ignore[return-value]

    shape = (3, *SHAPE[1:])
    strength = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    x, z, g = (_normal(*shape, seed=s) for s in range(3))
    return call, (x, _normal(6, *SHAPE[1:], seed=3), z, strength, g)


def _scored_step(solver: str, **settings: Any) -> Case:
    """A log-probability as a function of all that it reads; one of the strengths selects a half."""
    plan = make_plan(SCHEDULE, solver=solver, steps=6, **settings)
    plan = with_classifier(plan, 0.5)
    table, row = torch.tensor(plan.table), torch.tensor([2, 3])
    channels = 2 if settings.get("variance_type") == "learned_range" else 1
    count = plan.slots

    def call(
        x: Tensor, out: Tensor, x_s: Tensor, guidance: Tensor, gradient: Tensor, *slots: Tensor
    ) -> Tensor:
        return ops.step_log_prob(
            x,
            out,
            x_s,
            table,
            row,
            slots=slots[0] if slots else None,
            guidance=guidance,
            gradient=gradient,
            used=plan.used,
            reduce="mean",
        )

    out = _normal(4, channels * SHAPE[1], *SHAPE[2:], seed=1)
    strength = torch.tensor([2.0, 1.0], dtype=torch.float64)
    x, x_s, gradient = (_normal(*SHAPE, seed=s) for s in (0, 2, 3))
    slots = (_normal(count, *SHAPE, seed=4),) if count else ()
    return call, (x, out, x_s, strength, gradient, *slots)


def _cases() -> dict[str, Case]:
    x, y, z, v = (0.5 * _normal(*SHAPE, seed=s) for s in range(4))
    per_channel = tuple(0.3 * _normal(2, 4, seed=s) for s in (6, 7, 8))
    table = torch.tensor(vlb_table(SCHEDULE, variance="learned"))
    return {
        "q_sample": (
            lambda a, al, si: ops.q_sample(a, T, al, si, seed=1, step=2),
            (x, ALPHA.clone(), SIGMA.clone()),
        ),
        "q_sample, given noise": (
            lambda a, n: ops.q_sample(a, T, ALPHA, SIGMA, noise=n),
            (x, y),
        ),
        "q_posterior": (lambda a, b: ops.q_posterior(a, b, T, ALPHA**2)[0], (x, y)),
        "reparameterize": (lambda m, lv: ops.reparameterize(m, lv, seed=1), (x, y)),
        "noise_mse": (
            lambda p: ops.noise_mse(p, seed=1, weight=torch.tensor([1.0, 3.0])),
            (x,),
        ),
        "gaussian_kl": (ops.gaussian_kl, (x, y, z, v)),
        "gaussian_kl, standard normal": (ops.gaussian_kl, (x, y)),
        "discretized_gaussian_nll": (
            lambda m, s: ops.discretized_gaussian_nll(LEVELS.to(m.dtype), m, s - 2),
            (x, y),
        ),
        "vlb_terms": (
            lambda o: ops.vlb_terms(LEVELS.to(o.dtype), x.to(o.dtype), o, table, FIRST_AND_LATER),
            (_normal(2, 8, 2, 3, seed=9),),
        ),
        "group_norm_silu": (
            lambda a, s, t, b: ops.group_norm_silu(a, 2, scale=s, shift=t, add=b),
            (x, *per_channel),
        ),
        "step_log_prob": _scored_step("dpm++2m_sde"),
        "step_log_prob, learned variance": _scored_step("ddpm", variance_type="learned_range"),
        "step_log_prob, rescaled": _scored_step("ddpm", guidance_rescale=0.7),
        "step_log_prob, threshold": _scored_step("ddpm", dynamic_threshold=0.8, clip_range=2.0),
        "reverse_step": _step("dpm++2m"),
        "reverse_step, learned variance": _step("ddpm", output=2, variance_type="learned_range"),
        "reverse_step, rescaled": _step("ddim", guidance_rescale=0.7),
        "reverse_step, of all it reads": _pushed_step(),
        "reverse_step, of all it reads, rescaled": _pushed_step(guidance_rescale=0.7),
        "reverse_step, threshold": _step("ddim", dynamic_threshold=0.8, clip_range=2.0),
    }


CASES = _cases()


def test_every_op_with_gradients_has_a_case() -> None:
    """All except randn, which has no differentiable input."""
    assert {name.split(",")[0] for name in CASES} == set(ops.__all__) - {"randn"}


def _leaves(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(v.clone().requires_grad_() for v in values)


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_forward_mode_equal_finite_differences(name: str) -> None:
    call, values = CASES[name]
    assert gradcheck(call, _leaves(values), check_forward_ad=True, fast_mode=True, rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_gradients_equal_finite_differences(name: str) -> None:
    call, values = CASES[name]
    assert gradgradcheck(call, _leaves(values), fast_mode=True, rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_gradient_is_the_formulas(name: str) -> None:
    """And a gradient that is differentiated again has the same value: 1e-9 of its largest."""
    call, values = CASES[name]
    leaves = _leaves(values)
    weight = _normal(*call(*leaves).shape, seed=11)
    first = torch.autograd.grad((call(*leaves) * weight).sum(), leaves)
    again = torch.autograd.grad((call(*leaves) * weight).sum(), leaves, create_graph=True)
    func = grad(lambda v: (call(*v) * weight).sum())(values)
    for a, b, c in zip(first, again, func, strict=True):
        assert (a - b).abs().max() <= 1e-9 * a.abs().max()
        assert (a - c).abs().max() <= 1e-9 * a.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_a_tangent_in_float32_is_that_of_float64(name: str) -> None:
    """To 1e-4 of the largest: the rounding of float32 inputs and results."""
    call, values = CASES[name]
    if "alpha" in name or name == "q_sample":
        call, values = (lambda a: ops.q_sample(a, T, ALPHA, SIGMA, seed=1, step=2)), values[:1]
    along = tuple(_normal(*v.shape, seed=12) for v in values)
    want = jvp(call, values, along)
    got = jvp(call, tuple(v.float() for v in values), tuple(v.float() for v in along))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 1e-4 * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", CASES)
def test_vmap_is_a_loop(name: str) -> None:
    """Over a new first dimension of the first input; the others are shared."""
    call, values = CASES[name]
    stacked = torch.stack([values[0], 0.5 * values[0], values[0] + 0.1])
    got = vmap(lambda v: call(v, *values[1:]))(stacked)
    want = torch.stack([call(v, *values[1:]) for v in stacked])
    assert (got - want).abs().max() <= 1e-9 * want.abs().max().clamp(min=1)


def test_a_hessian() -> None:
    """Of KL(N(m, s²) || N(0, 1)) by the log-variance: e^logvar/2."""
    logvar = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    mean = torch.zeros_like(logvar)
    found = hessian(lambda v: ops.gaussian_kl(mean, v).sum())(logvar)
    assert torch.allclose(found.view(2, 2), torch.diag(logvar[0].exp() / 2))
    slope = jacfwd(lambda v: ops.gaussian_kl(mean, v).sum())(logvar)
    assert torch.allclose(slope, logvar.expm1() / 2)


def test_a_gradient_penalty_trains() -> None:
    """The gradient of |g|² is 2 H g; H of noise_mse is 2 I / n."""
    x = _normal(1, 8).requires_grad_()
    loss = ops.noise_mse(x, seed=1).sum()
    (g,) = torch.autograd.grad(loss, x, create_graph=True)
    g.square().sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, 2 * (2 / 8) * g)


def test_a_tangent_within_no_grad_is_not_dropped() -> None:
    x = _normal(*SHAPE)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        out = ops.noise_mse(dual, seed=1)
        assert torch.autograd.forward_ad.unpack_dual(out).tangent is not None
