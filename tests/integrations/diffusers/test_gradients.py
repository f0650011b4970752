"""Gradients through the steps of drop-ins, as fine-tuning on a reward takes them."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case, arguments, both, network, set_timesteps, start

import fastdiff

FIRST = {case.name: case for case in reversed(CASES)}  # of each class
STEPS = 5


def _loop(case: Case, x: torch.Tensor) -> torch.Tensor:
    """The final state from x, by a new scheduler with draws that repeat."""
    torch.manual_seed(3)
    scheduler = both(case, case.kinds[0])[1]
    set_timesteps(case, scheduler, next((n for n in case.steps if n >= STEPS), case.steps[-1]))
    options = arguments(case, torch.Generator().manual_seed(7))
    for t in scheduler.timesteps[:STEPS]:
        out = network(scheduler.scale_model_input(x, t), case.kinds[0], case.learned)
        x = scheduler.step(out, t, x, **options)[0]
    return x


@pytest.mark.parametrize("name", FIRST)
def test_gradients_through_a_loop_equal_central_differences(name: str) -> None:
    """Solvers with a memory too: what a step remembers is a function of the state before."""
    case = FIRST[name]
    x = start(both(case, case.kinds[0])[1], torch.float64, (1, 2, 2, 2))
    weight, along = (torch.randn(x.shape, dtype=torch.float64) for _ in range(2))
    leaf = x.clone().requires_grad_()
    end = _loop(case, leaf)
    (gradient,) = torch.autograd.grad((end * weight).sum(), leaf)
    got = float((gradient * along).sum())
    h = 1e-5 * float(x.abs().max())
    with torch.no_grad():
        after, before = (float((_loop(case, x + s * along) * weight).sum()) for s in (h, -h))
        assert torch.allclose(_loop(case, x), end, rtol=1e-9, atol=1e-9 * float(end.abs().max()))
    want = (after - before) / (2 * h)
    # a saturated network has a gradient of roundings
    assert abs(got - want) <= 1e-4 * max(abs(want), float(gradient.abs().max()), 1e-6)


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_gradients_after_a_run_under_inference_mode(name: str) -> None:
    scheduler = getattr(fastdiff, f"{name}Scheduler")()
    x = torch.randn(2, 3, 4, 4)
    with torch.inference_mode():
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            scheduler.step(0.3 * x, t, x)
    scheduler.set_timesteps(4)
    leaf = x.clone().requires_grad_()
    for t in scheduler.timesteps:
        x = scheduler.step(0.3 * leaf.tanh(), t, leaf)[0]
    x.sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0


def test_a_step_after_a_recorded_one_leaves_its_graph_alone() -> None:
    scheduler = fastdiff.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(6)
    leaf = torch.randn(2, 3).requires_grad_()
    x = leaf
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(0.3 * x.tanh(), t, x)[0]
    with torch.no_grad():
        rest = x
        for t in scheduler.timesteps[3:]:
            rest = scheduler.step(0.3 * rest.tanh(), t, rest)[0]
    x.sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
