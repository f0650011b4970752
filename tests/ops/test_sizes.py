"""Ops on samples of any rank and on empty ones: results, gradients, and compiled functions whose
batch and size change from call to call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import Schedule, ops
from fastdiff.solvers import make_plan
from fastdiff.theory.likelihood import vlb_table

SCHEDULE = Schedule.linear(1000)
PLAN = make_plan(SCHEDULE, solver="dpm++2m", steps=6)
RESCALED = make_plan(
    SCHEDULE, solver="ddim", steps=6, guidance_rescale=0.7, dynamic_threshold=0.8, clip_range=2.0
)
ALPHA, SIGMA = torch.tensor(SCHEDULE.alpha), torch.tensor(SCHEDULE.sigma)
NOISY = torch.tensor(make_plan(SCHEDULE, solver="ddpm", steps=6).table)
TABLE, BOUND = torch.tensor(PLAN.table), torch.tensor(vlb_table(SCHEDULE))
RESCALED_TABLE = torch.tensor(RESCALED.table)


def _times(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0]) * 7


def _rows(x: Tensor) -> Tensor:
    return torch.ones(x.shape[0], dtype=torch.int64)


def _posterior(x: Tensor, y: Tensor) -> Tensor:
    mean, variance, log_variance = ops.q_posterior(x, y, _times(x), ALPHA**2)
    return mean + (variance + log_variance).view(-1, *(1,) * (x.ndim - 1))


def _step(x: Tensor, y: Tensor) -> Tensor:
    slots = torch.zeros(PLAN.slots, *x.shape, dtype=x.dtype)
    out, slots = ops.reverse_step(x, y, TABLE, _rows(x), slots=slots)  # type: ignore[misc]
    return out + slots.sum(0)


def _rescaled_step(x: Tensor, y: Tensor) -> Tensor:
    strength = torch.full((x.shape[0],), 3.0, dtype=torch.float64)
    both = torch.cat([y, y.tanh()])
    out = ops.reverse_step(x, both, RESCALED_TABLE, _rows(x), guidance=strength, used=RESCALED.used)
    return out  # type: ignore[return-value]


# each as a function of two tensors of the same shape
CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "randn": lambda x, y: x * ops.randn(x.shape, seed=1) + y,
    "q_sample": lambda x, y: ops.q_sample(x, _times(x), ALPHA, SIGMA, seed=1) + y,
    "q_sample, given noise": lambda x, y: ops.q_sample(x, _times(x), ALPHA, SIGMA, noise=y),
    "q_sample, own levels": lambda x, y: (
        ops.q_sample(x, None, *_levels(x), seed=torch.tensor(3), sample_ids=_times(x)) + y
    ),
    "q_posterior": _posterior,
    "reverse_step": _step,
    "reverse_step, used": lambda x, y: ops.reverse_step(  # type: ignore[dict-item, return-value]
        x,
        y,
        TABLE,
        _rows(x),
        slots=torch.zeros(PLAN.slots, *x.shape, dtype=x.dtype),
        used=PLAN.used,
    )[0],
    "reverse_step, rescaled": _rescaled_step,
    "step_log_prob": lambda x, y: ops.step_log_prob(x, y, x * y, NOISY, _rows(x)) + _sum(x),
    "gaussian_kl": ops.gaussian_kl,
    "gaussian_kl, all": lambda x, y: ops.gaussian_kl(x, y, y, x),
    "discretized_gaussian_nll": lambda x, y: ops.discretized_gaussian_nll(x.detach(), x, y),
    "reparameterize": lambda x, y: ops.reparameterize(x, y, seed=1),
    "noise_mse": lambda x, y: ops.noise_mse(x * y, seed=1),
    "vlb_terms": lambda x, y: ops.vlb_terms(x.detach(), x.detach(), y, BOUND, _times(x)) + _sum(x),
}
SHAPES = [(3,), (1,), (0,), (0, 3), (3, 0), (2, 3), (2, 0, 3), (0, 2, 3), (2, 3, 1, 4)]


def _levels(x: Tensor) -> tuple[Tensor, Tensor]:
    level = torch.linspace(0.1, 0.9, x.shape[0], dtype=torch.float64)
    return level.sqrt(), (1 - level).sqrt()


def _sum(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x[:1].numel()).sum(1) if x.shape[0] else x.reshape(-1)


def _inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return (0.5 * x).requires_grad_(), (0.5 * y).requires_grad_()


def test_every_op_has_a_call() -> None:
    """All except group_norm_silu, whose samples have channels."""
    assert {name.split(",")[0] for name in CALLS} == set(ops.__all__) - {"group_norm_silu"}


def _derivatives(call: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """The result, its gradients, and the gradients of their squares."""
    result = call(x, y)
    first = torch.autograd.grad(
        result.sum(), (x, y), create_graph=True, allow_unused=True, materialize_grads=True
    )
    squares = sum(((g**2).sum() for g in first), 0 * (x.sum() + y.sum()))
    second = torch.autograd.grad(squares, (x, y), allow_unused=True, materialize_grads=True)
    return [result, *first, *second]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_any_rank_and_empty_samples(name: str, shape: tuple[int, ...], backend: str) -> None:
    """As for the same numbers [B, n, 1], which every op has tests for; nothing where nothing is."""
    call, (x, y) = CALLS[name], _inputs(shape)
    got = _derivatives(call, x, y)
    per_sample = got[0].shape != torch.Size(shape)
    assert got[0].shape == ((shape[0],) if per_sample else shape)
    flat = [
        v.detach().reshape(shape[0], x[:1].numel() if shape[0] else 1, 1).requires_grad_()
        for v in (x, y)
    ]
    if (
        x.numel() and "rescaled" not in name
    ):  # of one element a sample the deviation is not a number
        for a, b in zip(got, _derivatives(call, *flat), strict=True):
            torch.testing.assert_close(a, b.reshape(a.shape), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "shape", [(0, 4), (2, 4, 0), (0, 4, 2), (2, 0, 3), (1, 4, 3, 0, 4)], ids=str
)
@pytest.mark.parametrize("what", ["plain", "all"])
def test_empty_activations(what: str, shape: tuple[int, ...], backend: str) -> None:
    """Sums over nothing are 0: the gradients too."""
    batch, channels = shape[:2]
    groups = 2 if channels else 1
    x = torch.zeros(shape, requires_grad=True)
    per_channel = {k: torch.ones(channels, requires_grad=True) for k in ("weight", "bias")}
    per_sample = {
        k: torch.ones(batch, channels, requires_grad=True) for k in ("scale", "shift", "add")
    }
    options: dict[str, Any] = per_channel | per_sample if what == "all" else {}
    for last in (False, True):
        u = x.contiguous(memory_format=torch.channels_last) if last and x.ndim == 4 else x
        out = ops.group_norm_silu(u, groups, **options)
        assert out.shape == shape
        leaves = [x, *options.values()]
        found = torch.autograd.grad(out.sum(), leaves, create_graph=True)
        assert all(not g.any() and g.shape == v.shape for g, v in zip(found, leaves, strict=True))


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    "name, engine",
    [
        *((name, "aot_eager") for name in (*CALLS, "group_norm_silu")),
        *(
            (name, "inductor")
            for name in ("gaussian_kl", "discretized_gaussian_nll", "reverse_step")
        ),
    ],
)
def test_one_compiled_graph_serves_every_batch_and_size(name: str, engine: str) -> None:
    """With fullgraph=True; with dynamic=True, and with None, where torch finds out what changes."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def norm(x: Tensor, y: Tensor) -> Tensor:
        return ops.group_norm_silu(x, 2, add=y[:, :, 0, 0])

    call = CALLS.get(name, norm)
    dynamic = None if engine == "aot_eager" else True
    compiled = torch.compile(call, fullgraph=True, backend=engine, dynamic=dynamic)
    for shape in ((2, 4, 4, 6), (3, 4, 4, 6), (3, 4, 5, 7), (5, 4, 3, 3)):
        x, y = (v.detach().float() for v in _inputs(shape))
        torch.testing.assert_close(compiled(x, y), call(x, y), rtol=1e-6, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


@pytest.mark.parametrize("name", CALLS)
def test_lazy_views_are_read_with_their_signs(name: str, backend: str) -> None:
    """The imaginary part of a conjugate is a view of memory with the other sign."""
    x, y = (v.detach() for v in _inputs((2, 3, 4)))
    lazy = [torch.complex(torch.zeros_like(v), -v).conj().imag for v in (x, y)]
    assert all(v.is_neg() and torch.equal(v, w) for v, w in zip(lazy, (x, y), strict=True))
    with torch.no_grad():
        torch.testing.assert_close(CALLS[name](*lazy), CALLS[name](x, y), rtol=0, atol=0)


@pytest.mark.parametrize("negative", [True, False], ids=["negative view", "zeros not stored"])
@pytest.mark.parametrize("bound", [False, True], ids=["op", "bound step"])
def test_contiguous_lazy_tensors_are_read_by_their_values(
    bound: bool, negative: bool, backend: str
) -> None:
    """Also where an output is given, or a call was checked before: neither needs a dispatcher."""
    x, y = (v.detach() for v in _inputs((2, 3, 4)))

    def given(v: Tensor) -> Tensor:
        return (
            torch._neg_view(-v) if negative else torch._efficientzerotensor(v.shape, dtype=v.dtype)
        )

    def step(a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty_like(x)
        kept = {"slots": torch.zeros(PLAN.slots, *x.shape, dtype=x.dtype), "out": out}
        kept["slots_out"] = torch.zeros_like(kept["slots"])
        if not bound:
            ops.reverse_step(a, b, TABLE, _rows(x), **kept)
            return out
        arguments = ops.step.StepArguments(x, y, TABLE, _rows(x), **kept)
        run = arguments.bind("x_t", "model_output")
        run(x, y)
        run(a, b)
        return out

    values = (x, y) if negative else (torch.zeros_like(x), torch.zeros_like(y))
    assert torch.equal(step(given(x), given(y)), step(*values))
