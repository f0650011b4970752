"""The piece `first`: what is worth knowing in the first minutes on a GPU, the most telling first.

The ceiling of a copy; every kernel of the predictions at the large size, replayed from a CUDA graph
and next to torch eager, torch.randn and diffusers' step; a step of a graphed loop; and the host's
time of an eager call, with and without bound arguments. Each row has the copy bandwidth that was
measured in the same run. The other pieces compare with torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu import ceilings, kernels, loops
from benchmarks.gpu.common import Row, Rows, Target, alone, backend
from benchmarks.gpu.predictions import LARGE
from benchmarks.operations import SCHEDULE, SEED
from fastdiff import ops
from fastdiff.solvers import make_plan

KERNELS = (
    ("step ddim", "exact"),
    ("step ddpm", "exact"),
    ("step ddpm", "fast"),
    ("step ddim guided", "exact"),
    ("randn", "exact"),
    ("randn", "fast"),
    ("q_sample", "exact"),
    ("q_sample", "fast"),
    ("gaussian_kl", "exact"),
    ("discretized_gaussian_nll", "exact"),
    ("group_norm_silu", "exact"),
)
# as many elements as the large images; group norm is also measured on activations like these
ACTIVATIONS, FEW = (96, 128, 64, 64), (2, 32, 8, 8)


def rows(target: Target) -> Rows:
    megabytes = target.size(4096, 1)
    yield f"copy {megabytes}", lambda: ceilings.copy(target, megabytes)
    yield from _kernels(target, torch.float32)
    for which in target.backends:
        for solver in ("ddim", "ddpm"):
            yield (
                f"graph step {solver} {which}",
                lambda s=solver, w=which: loops.graph_step(target, s, w),
            )
    for which in target.backends:
        for how in HOST:
            yield f"host {how} {which}", lambda h=how, w=which: host(target, h, w)
    yield from _kernels(target, torch.bfloat16)


def _kernels(target: Target, dtype: torch.dtype) -> Rows:
    short = str(dtype).removeprefix("torch.")
    for name, mode in KERNELS:
        for which in target.backends:
            yield (
                f"{name} {mode} {which} {short}",
                lambda a=(name, mode, which): kernels.row(target, dtype, *a, LARGE, graph=True),
            )
    shape = target.size(ACTIVATIONS, FEW)
    for which in target.backends:
        yield (
            f"group_norm_silu {which} {short} activations",
            lambda w=which: kernels.row(
                target, dtype, "group_norm_silu", "exact", w, LARGE, graph=True, sizes=shape
            ),
        )


def _unbound(step: ops.StepArguments) -> Callable[[], Any]:
    arguments = step._asdict()
    first = [arguments.pop(name) for name in ("x_t", "model_output", "table", "row")]
    return lambda: ops.reverse_step(*first, **arguments)


def _bound(step: ops.StepArguments) -> Callable[[], Any]:
    bound = step.bind("model_output")
    return lambda: bound(step.model_output)


def _randn(step: ops.StepArguments) -> Callable[[], Any]:
    return lambda: ops.randn(tuple(step.x_t.shape), seed=SEED, out=step.x_t)


def _torch_randn(step: ops.StepArguments) -> Callable[[], Any]:
    return step.x_t.normal_


HOST: dict[str, Callable[[ops.StepArguments], Callable[[], Any]]] = {
    "unbound step": _unbound,
    "bound step": _bound,
    "randn": _randn,
    "torch.randn": _torch_randn,
}


def host(target: Target, how: str, which: str) -> Row:
    """Measures an eager call on a tensor so small that the host's time is what a user waits for."""
    shape = (4, 3, 32, 32)
    plan = make_plan(SCHEDULE, solver="ddpm", steps=50, timestep_spacing="leading")
    x, out = (torch.randn(shape, device=target.device) for _ in range(2))
    table = torch.tensor(plan.table, device=target.device)
    row = torch.full((shape[0],), 25, device=target.device)
    following = torch.empty_like(row)
    step = ops.StepArguments(
        x, out, table, row, seed=SEED, used=plan.used, out=x, row_out=following
    )
    call = HOST[how](step)
    with backend(which):
        call()
        if not x.isfinite().all():
            raise AssertionError(f"host {how}: expected finite values")
        return alone(
            target,
            call,
            kind="ceiling" if how == "torch.randn" else "step",
            what=f"host {how}",
            case={"dtype": "float32", "shape": list(shape), "batch": shape[0]},
            checked="finite; bits in the rows of the large size",
        ) | {"backend": which}
