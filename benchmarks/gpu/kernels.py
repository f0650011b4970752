"""The kernels of the predictions, on every backend, compared with what users run instead.

A step in place, the middle one of 50; noise exact and fast; float32 and bfloat16; at the size of
real use, which fits a GPU's cache, and at one that does not. Peers are the eager formula, the same
with torch.compile, and diffusers' step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import checks, formulas, harness, operations, solvers, traffic
from benchmarks.checks import as_numpy, same_bits
from benchmarks.gpu.common import Row, Rows, Target, backend, replayed, within
from benchmarks.gpu.predictions import LARGE
from benchmarks.operations import SCHEDULE, SEED
from fastdiff import ops, reference
from fastdiff.solvers import make_plan
from fastdiff.table import INDEX, OPERANDS

# relative difference of `fast` noise, with float32 log, sin and cos, from `exact`
FAST = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
STEPS = ("ddim", "ddpm", "dpm++2m", "unipc", "ddim guided")
NOISY = {"randn", "q_sample", "step ddpm"}
PLAIN = ("gaussian_kl", "discretized_gaussian_nll")


def rows(target: Target, dtype: torch.dtype) -> Rows:
    for shape in target.shapes:
        for name in ("randn", "q_sample", *(f"step {s}" for s in STEPS), *PLAIN):
            for mode in ("exact", "fast") if name in NOISY else ("exact",):
                for which in target.backends:
                    title = f"{name} {mode} {which} {shape}"
                    yield title, lambda a=(name, mode, which, shape): row(target, dtype, *a)


def row(
    target: Target,
    dtype: torch.dtype,
    name: str,
    mode: str,
    which: str,
    shape: str,
    *,
    graph: bool = False,
    sizes: tuple[int, ...] | None = None,
) -> Row:
    """Measures a row.

    Peers run with the first backend only, torch.compile at the large size only, which the
    predictions are about.

    graph: whether the kernel is replayed from a CUDA graph.
    sizes: of the tensors, where they are not those of `shape`.
    """
    sizes, first = sizes or target.shapes[shape], which == target.backends[0]
    with backend(which):
        if name.startswith("step "):
            work, formula, inputs, nbytes, theirs = step(
                sizes, dtype, target.device, name.removeprefix("step "), mode
            )
        else:
            work, formula, inputs, nbytes = op(sizes, dtype, target.device, name, mode)
            theirs = None
        if graph:
            work = work._replace(call=replayed(target, work.call))
        peers: dict[str, Any] = {}
        if first:
            peers["torch eager"] = lambda: formula(*inputs)
            if shape == LARGE:
                peers["torch.compile"] = target.compiled(formula, *inputs)
            if theirs is not None:
                peers["diffusers"] = theirs
        case = {
            "dtype": str(dtype).removeprefix("torch."),
            "shape": list(sizes),
            "size": shape,
            "batch": sizes[0],
        }
        kind = "step" if name.startswith("step ") else "op"
        return harness.measure(
            target.setting,
            work,
            kind=kind,
            what=name,
            case=case
            | ({"mode": mode} if name in NOISY else {})
            | ({"graph": not target.dry} if graph else {}),
            peers=peers,
            elements=math.prod(sizes),
            bytes_floor=nbytes,
        ) | {"backend": which}


def op(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, name: str, mode: str
) -> tuple[Any, ...]:
    """Returns (workload, formula, inputs, bytes) of an op; `fast` is compared with `exact`."""
    maker = operations.Maker(shape, dtype, device)
    # images have three channels, activations a multiple of 32
    options = {"groups": min(32, shape[1])} if name == "group_norm_silu" else {}
    found: operations.Op = getattr(maker, name)(**options)
    work, inputs = found.work, found.inputs
    if mode == "fast":
        alpha, sigma = maker.table(SCHEDULE.alpha), maker.table(SCHEDULE.sigma)
        out, exact = found.result(), torch.empty_like(found.result())

        def call() -> Tensor:
            if name == "randn":
                return ops.randn(shape, seed=SEED, mode="fast", out=out)
            return ops.q_sample(inputs[0], inputs[1], alpha, sigma, seed=SEED, mode="fast", out=out)

        found.work.verify()  # exact, by NumPy
        exact.copy_(out)
        work = harness.Workload(
            call, lambda _: _near(out, exact, name), f"fast within {FAST[dtype]:g} of exact", (out,)
        )
    bare, _ = formulas.arms(found.formula, inputs)
    return work, bare, inputs, found.bytes_floor


def _near(out: Tensor, exact: Tensor, name: str) -> None:
    within(out, exact, FAST[out.dtype], f"{name}, fast")


def step(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    solver: str,
    mode: str,
    *,
    theirs: bool = True,
) -> tuple[Any, ...]:
    """Returns (workload, formula, inputs, bytes, diffusers' step or None).

    theirs: whether diffusers' step is made; it is None for a guided one.
    """
    guided, solver = solver.endswith(" guided"), solver.removesuffix(" guided")
    g = torch.Generator(device).manual_seed(0)
    batch = shape[0]

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=g, device=device)

    plan = make_plan(SCHEDULE, solver=solver, steps=50, timestep_spacing="leading")
    k = step_of(plan)
    x, out = normal(*shape).to(dtype), normal((2 if guided else 1) * batch, *shape[1:]).to(dtype)
    slots = normal(plan.slots, *shape) if plan.slots else None
    state, slots_in_place = x.clone(), None if slots is None else slots.clone()
    row, ids, table = (
        torch.full((batch,), k, device=device),
        torch.arange(batch, device=device),
        plan.table,
    )
    on_device, gamma = torch.tensor(table, device=device), torch.full((batch,), 3.0, device=device)
    following = torch.empty_like(x) if guided else None
    more: dict[str, Any] = {"guidance": gamma, "input_out": following} if guided else {}
    if slots_in_place is not None:
        more |= {"slots": slots_in_place, "slots_out": slots_in_place}

    def call() -> Any:
        return ops.reverse_step(
            state,
            out,
            on_device,
            row,
            seed=SEED,
            sample_ids=ids,
            used=plan.used,
            mode=mode,
            out=state,
            **more,
        )

    def restore() -> None:
        state.copy_(x)
        if slots_in_place is not None and slots is not None:
            slots_in_place.copy_(slots)

    ends = checks.first_and_last(batch)
    outputs = torch.cat([out[ends], out[[batch + b for b in ends]]]) if guided else out[ends]
    expected = reference.reverse_step(
        as_numpy(x[ends]),
        as_numpy(outputs),
        table,
        k,
        slots=None if slots is None else as_numpy(slots[:, ends]),
        seed=SEED,
        sample_ids=np.array(ends),
        guidance=[3.0] * len(ends) if guided else None,
    )

    def check(_: Any) -> None:
        if mode == "exact":
            same_bits(state[ends], expected.x_s, f"step {solver}")
        else:
            within(
                state[ends].cpu(),
                torch.from_numpy(expected.x_s),
                FAST[dtype],
                f"step {solver}, fast",
            )
        if slots_in_place is not None and expected.slots is not None:
            same_bits(slots_in_place[:, ends], expected.slots, "its slots")
        if following is not None:
            same_bits(following[ends], expected.network_input[: len(ends)], "the next input")

    checked = (
        "bits equal to NumPy"
        if mode == "exact"
        else f"fast within {FAST[dtype]:g} of NumPy's exact"
    )
    work = harness.Workload(
        call, check, checked, () if following is None else (following,), restore
    )
    memory = [] if slots is None else list(slots.unbind(0))
    peer = (
        solvers.diffusers_step(solver, x, out, int(plan.column("network")[:k].sum()))
        if theirs and not guided
        else None
    )
    return (
        work,
        _formula(plan, k, 3.0 if guided else None),
        (x, out, *memory),
        step_bytes(plan, k, x, guided),
        peer,
    )


def step_of(plan: Any) -> int:
    """Returns the row that is measured: the middle one of those that call the network."""
    calling = np.flatnonzero(plan.column("network"))
    return int(calling[len(calling) // 2])


def step_bytes(plan: Any, k: int, x: Tensor, guided: bool) -> int:
    """Returns the bytes that row k moves.

    Slots are float32. With guidance, two outputs are read and the next input is also written.
    """
    moved = [*traffic.reads(plan, k), *traffic.writes(plan, k)]
    each = [4 if name.startswith("s") else x.element_size() for name in moved]
    return (sum(each) + (2 * x.element_size() if guided else 0)) * x.numel()


def _formula(plan: Any, k: int, gamma: float | None) -> Callable[..., Any]:
    """Returns row k of a plan as users write it: coefficients are numbers, zero terms left out."""
    line = plan.table[k]
    of_x0 = float(line[INDEX["x0_x"]]), float(line[INDEX["x0_out"]])
    targets = ["x", *sorted(traffic.writes(plan, k) - {"x"})]
    weights = {
        to: {of: float(line[INDEX[f"{to}.{of}"]]) for of in OPERANDS if line[INDEX[f"{to}.{of}"]]}
        for to in targets
    }

    def formula(x: Tensor, out: Tensor, *slots: Tensor) -> Any:
        if gamma is not None:
            c, u = out.chunk(2)
            out = u + gamma * (c - u)
        values = {
            "x": x,
            "out": out,
            "x0": of_x0[0] * x + of_x0[1] * out,
            **{f"s{i + 1}": s for i, s in enumerate(slots)},
        }
        made = []
        for terms in weights.values():
            parts = [
                c * (torch.randn_like(x) if of == "z" else values[of]) for of, c in terms.items()
            ]
            made.append(sum(parts[1:], parts[0]))
        made[0] = made[0].to(x.dtype)
        return (*made, made[0].clone()) if gamma is not None else tuple(made)

    return formula
