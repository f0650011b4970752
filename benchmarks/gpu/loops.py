"""Loops at 256×3×32×32 around a network that costs nothing, with the step's graph and without;
seeds per sample.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness, solvers
from benchmarks.gpu import kernels
from benchmarks.gpu.common import Place, Row, Rows, backend
from benchmarks.operations import same_bits, truth
from fastdiff import Sampler, ops, reference

SOLVERS = ("ddim", "ddpm", "euler", "dpm++2m", "unipc")
SEED = 1


def rows(place: Place) -> Rows:
    for which in place.backends:
        for solver in SOLVERS:
            yield f"loop {solver} {which}", lambda s=solver, w=which: loop(place, s, w)
        for solver in ("ddim", "ddpm"):
            yield f"graph step {solver} {which}", lambda s=solver, w=which: graph_step(place, s, w)
        yield f"seeds step {which}", lambda w=which: seeds_step(place, w)
        yield f"seeds randn {which}", lambda w=which: seeds_randn(place, w)


def tensors(place: Place) -> tuple[Tensor, Tensor]:
    g = torch.Generator(place.device).manual_seed(0)
    start, out = (
        torch.randn(place.shapes["real"], generator=g, device=place.device) for _ in range(2)
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


def _case(place: Place, solver: str, steps: int) -> Row:
    shape = list(place.shapes["real"])
    return {"dtype": "float32", "shape": shape, "batch": shape[0], "solver": solver, "steps": steps}


def loop(place: Place, solver: str, which: str) -> Row:
    """50 steps, Python's part included: what a user waits for."""
    start, out = tensors(place)
    steps, (ours, bare) = (
        solvers.STEPS,
        (sampler(solver, out, solvers.STEPS, graph) for graph in ("auto", False)),
    )
    with backend(which):
        check = solvers.check_loop(ours.plan, start, out, SEED)
        work = harness.Work(lambda: ours.sample(x_T=start, seed=SEED), check, "bits equal to NumPy")
        peers: dict[str, Any] = {"diffusers": solvers.diffusers_loop(solver, start, out)}
        if not place.dry:
            peers["fastdiff, no graph"] = lambda: bare.sample(x_T=start, seed=SEED)
        return harness.measure(
            place.setting,
            work,
            kind="loop",
            what=f"loop {solver}",
            case=_case(place, solver, steps),
            peers=peers,
            per="step",
            divide=steps,
            elements=steps * start.numel(),
            bytes_floor=12 * steps * start.numel(),
        ) | {"backend": which}


def graph_step(place: Place, solver: str, which: str) -> Row:
    """A step of a long loop, in which the call's set-up is lost; next to torch.compile's kernel of
    the same formula.
    """
    start, out = tensors(place)
    steps = place.size(500, 20)
    ours = sampler(solver, out, steps, "auto")
    with backend(which):
        check = solvers.check_loop(ours.plan, start, out, SEED) if place.dry else _finite
        told = "bits equal to NumPy" if place.dry else "finite; bits in the row of 50 steps"
        work = harness.Work(lambda: ours.sample(x_T=start, seed=SEED), check, told)
        one = kernels.step(tuple(start.shape), torch.float32, place.device, solver, "exact")
        formula, inputs = one[1], one[2]
        modes = place.compiled(formula, *inputs)
        peers: dict[str, Any] = {"torch.compile": modes}
        if isinstance(modes, dict):
            peers["torch.compile"] = {
                mode: _repeated(arm, steps) for mode, arm in modes.items() if callable(arm)
            }
        return harness.measure(
            place.setting,
            work,
            kind="loop",
            what=f"graph step {solver}",
            case=_case(place, solver, steps),
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


def _seeds(place: Place) -> tuple[Tensor, tuple[int, ...]]:
    shape = place.shapes["real"]
    return torch.arange(shape[0], device=place.device) * 7919 + 1, shape


def seeds_step(place: Place, which: str) -> Row:
    """A DDPM step with a seed for each sample beside the same with one."""
    seeds, shape = _seeds(place)
    plan = sampler("ddpm", torch.empty(0), 50, False).plan
    x, out = tensors(place)
    k, state, other = 25, x.clone(), x.clone()
    table, row = (
        torch.tensor(plan.table, device=place.device),
        torch.full((shape[0],), 25, device=place.device),
    )
    last = shape[0] - 1
    expected = reference.reverse_step(
        truth(x[-1:]),
        truth(out[-1:]),
        plan.table,
        k,
        seed=int(seeds[-1]),
        sample_ids=np.array([last]),
    )

    def call(seed: Any = seeds, into: Tensor = state) -> Any:
        return ops.reverse_step(into, out, table, row, seed=seed, used=plan.used, out=into)

    with backend(which):
        work = harness.Work(
            call,
            lambda _: same_bits(state[-1:], expected.x_s, "seeds"),
            "bits equal to NumPy",
            restore=lambda: state.copy_(x),
        )
        peers = {"fastdiff, one seed": lambda: call(SEED, other)}
        return _measured(place, work, "step ddpm, a seed per sample", shape, peers, 12, which)


def seeds_randn(place: Place, which: str) -> Row:
    """The noise of a batch with a seed for each sample beside a list of torch's generators, as
    pipelines take it.
    """
    seeds, shape = _seeds(place)
    generators = [torch.Generator(place.device).manual_seed(int(s)) for s in seeds]
    out, numbers = torch.empty(shape, device=place.device), np.array(seeds.cpu())

    def check(_: Any) -> None:
        for b in (0, shape[0] - 1):
            expected = reference.randn((1, *shape[1:]), seed=int(numbers[b]), sample_ids=[b])
            same_bits(out[b : b + 1], expected.astype(np.float32), "randn")

    def theirs() -> Tensor:
        return torch.cat(
            [torch.randn((1, *shape[1:]), generator=g, device=place.device) for g in generators]
        )

    with backend(which):
        work = harness.Work(
            lambda: ops.randn(shape, seed=seeds, out=out), check, "bits equal to NumPy", (out,)
        )
        return _measured(
            place,
            work,
            "randn, a seed per sample",
            shape,
            {"a generator a sample": theirs},
            4,
            which,
        )


def _measured(
    place: Place,
    work: harness.Work,
    what: str,
    shape: tuple[int, ...],
    peers: Any,
    width: int,
    which: str,
) -> Row:
    elements = math.prod(shape)
    case = {"dtype": "float32", "shape": list(shape), "batch": shape[0]}
    return harness.measure(
        place.setting,
        work,
        kind="seeds",
        what=what,
        case=case,
        peers=peers,
        elements=elements,
        bytes_floor=width * elements,
    ) | {"backend": which}
