"""Loops of 256×3×32×32 around a network that costs nothing, with and without the step's graph; and
seeds per sample.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness, solvers
from benchmarks.checks import as_numpy, first_and_last, same_bits
from benchmarks.gpu import kernels
from benchmarks.gpu.common import Row, Rows, Target, backend
from fastdiff import Sampler, ops, reference

SOLVERS = ("ddim", "ddpm", "euler", "dpm++2m", "unipc")
SEED = 1


def rows(target: Target) -> Rows:
    for which in target.backends:
        for solver in SOLVERS:
            yield f"loop {solver} {which}", lambda s=solver, w=which: loop(target, s, w)
        for solver in ("ddim", "ddpm"):
            yield f"graph step {solver} {which}", lambda s=solver, w=which: graph_step(target, s, w)
        yield f"seeds step {which}", lambda w=which: seeds_step(target, w)
        yield f"seeds randn {which}", lambda w=which: seeds_randn(target, w)


def tensors(target: Target) -> tuple[Tensor, Tensor]:
    g = torch.Generator(target.device).manual_seed(0)
    start, out = (
        torch.randn(target.shapes["real"], generator=g, device=target.device) for _ in range(2)
    )
    return start, out


def sampler(solver: str, out: Tensor, steps: int, graph: bool | str) -> Sampler:
    return Sampler(
        lambda x, t: out,
        solvers.schedule(solver),
        solver=solver,
        steps=steps,
        graph=graph,
        timestep_spacing="leading",
    )


def _case(target: Target, solver: str, steps: int) -> Row:
    shape = list(target.shapes["real"])
    return {"dtype": "float32", "shape": shape, "batch": shape[0], "solver": solver, "steps": steps}


def loop(target: Target, solver: str, which: str) -> Row:
    """Measures a loop of 50 steps including its Python code, which is the time a user waits."""
    start, out = tensors(target)
    steps = solvers.PEERS[solver].steps
    ours, bare = (sampler(solver, out, steps, graph) for graph in ("auto", False))
    with backend(which):
        check = solvers.check_loop(ours.plan, start, out, SEED)
        work = harness.Workload(
            lambda: ours.sample(x_T=start, seed=SEED), check, "bits equal to NumPy"
        )
        peers: dict[str, Any] = {"diffusers": solvers.diffusers_loop(solver, start, out)}
        if not target.dry:
            peers["fastdiff, no graph"] = lambda: bare.sample(x_T=start, seed=SEED)
        return harness.measure(
            target.setting,
            work,
            kind="loop",
            what=f"loop {solver}",
            case=_case(target, solver, steps),
            peers=peers,
            per="step",
            divide=steps,
            elements=steps * start.numel(),
            bytes_floor=12 * steps * start.numel(),
        ) | {"backend": which}


def graph_step(target: Target, solver: str, which: str) -> Row:
    """Measures a step of a long loop, compared with torch.compile's kernel of the same formula.

    The loop is long enough that the set-up of the call does not count.
    """
    start, out = tensors(target)
    steps = target.size(500, 20)
    ours = sampler(solver, out, steps, "auto")
    with backend(which):
        check = solvers.check_loop(ours.plan, start, out, SEED) if target.dry else _finite
        checked = "bits equal to NumPy" if target.dry else "finite; bits in the row of 50 steps"
        work = harness.Workload(lambda: ours.sample(x_T=start, seed=SEED), check, checked)
        one = kernels.step(tuple(start.shape), torch.float32, target.device, solver, "exact")
        formula, inputs = one[1], one[2]
        modes = target.compiled(formula, *inputs)
        peers: dict[str, Any] = {"torch.compile": modes}
        if isinstance(modes, dict):
            peers["torch.compile"] = {
                mode: _repeated(arm, steps) for mode, arm in modes.items() if callable(arm)
            }
        return harness.measure(
            target.setting,
            work,
            kind="loop",
            what=f"graph step {solver}",
            case=_case(target, solver, steps),
            peers=peers,
            per="step",
            divide=steps,
            elements=steps * start.numel(),
            bytes_floor=12 * steps * start.numel(),
        ) | {"backend": which}


def _finite(x: Tensor) -> None:
    if not x.isfinite().all():
        raise AssertionError("graph step: expected finite samples")


def _repeated(arm: Any, times: int) -> Any:
    def call() -> None:
        for _ in range(times):
            arm()

    return call


def _seeds(target: Target) -> tuple[Tensor, tuple[int, ...]]:
    shape = target.shapes["real"]
    return torch.arange(shape[0], device=target.device) * 7919 + 1, shape


def seeds_step(target: Target, which: str) -> Row:
    """Measures a DDPM step with a seed for each sample, compared with one seed for all."""
    seeds, shape = _seeds(target)
    plan = sampler("ddpm", torch.empty(0), 50, False).plan
    x, out = tensors(target)
    k, state, other = 25, x.clone(), x.clone()
    table, row = (
        torch.tensor(plan.table, device=target.device),
        torch.full((shape[0],), 25, device=target.device),
    )
    last = shape[0] - 1
    expected = reference.reverse_step(
        as_numpy(x[-1:]),
        as_numpy(out[-1:]),
        plan.table,
        k,
        seed=int(seeds[-1]),
        sample_ids=np.array([last]),
    )

    def call(seed: Any = seeds, into: Tensor = state) -> Any:
        return ops.reverse_step(into, out, table, row, seed=seed, used=plan.used, out=into)

    with backend(which):
        work = harness.Workload(
            call,
            lambda _: same_bits(state[-1:], expected.x_s, "seeds"),
            "bits equal to NumPy",
            restore=lambda: state.copy_(x),
        )
        peers = {"fastdiff, one seed": lambda: call(SEED, other)}
        return _measured(target, work, "step ddpm, a seed per sample", shape, peers, 12, which)


def seeds_randn(target: Target, which: str) -> Row:
    """Measures a batch of noise with a seed for each sample, compared with a list of torch's
    generators, which pipelines take.
    """
    seeds, shape = _seeds(target)
    generators = [torch.Generator(target.device).manual_seed(int(s)) for s in seeds]
    out, numbers = torch.empty(shape, device=target.device), np.array(seeds.cpu())

    def check(_: Any) -> None:
        for b in first_and_last(shape[0]):
            expected = reference.randn((1, *shape[1:]), seed=int(numbers[b]), sample_ids=[b])
            same_bits(out[b : b + 1], expected.astype(np.float32), "randn")

    def theirs() -> Tensor:
        return torch.cat(
            [torch.randn((1, *shape[1:]), generator=g, device=target.device) for g in generators]
        )

    with backend(which):
        work = harness.Workload(
            lambda: ops.randn(shape, seed=seeds, out=out), check, "bits equal to NumPy", (out,)
        )
        return _measured(
            target,
            work,
            "randn, a seed per sample",
            shape,
            {"a generator a sample": theirs},
            4,
            which,
        )


def _measured(
    target: Target,
    work: harness.Workload,
    what: str,
    shape: tuple[int, ...],
    peers: Any,
    width: int,
    which: str,
) -> Row:
    elements = math.prod(shape)
    case = {"dtype": "float32", "shape": list(shape), "batch": shape[0]}
    return harness.measure(
        target.setting,
        work,
        kind="seeds",
        what=what,
        case=case,
        peers=peers,
        elements=elements,
        bytes_floor=width * elements,
    ) | {"backend": which}
