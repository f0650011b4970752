"""A call of every op on one backend, compared with the oracle.

    python -m benchmarks.gpu.first_run.calls --backend triton [--size large] [--only NAME]
                                             [--profile]

Prints `done NAME` after each. The stages f and g run it in Nsight Compute and compute-sanitizer;
with --profile only one call of each op, after its warm-up, is profiled.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from benchmarks import operations
from benchmarks.checks import as_numpy, same_bits
from benchmarks.gpu import kernels
from benchmarks.gpu.common import Target, backend
from benchmarks.gpu.predictions import LARGE
from benchmarks.harness import Workload
from fastdiff import ops, reference
from fastdiff.solvers import make_plan
from fastdiff.table import OPS

SMALL = (2, 3, 33, 35)  # a sample is longer than a block and no multiple of one
OTHERS = tuple(op for op in OPS if op != "reverse_step")
STEPS = (
    ("ddim", "exact"),
    ("ddpm", "exact"),
    ("ddpm", "fast"),
    ("unipc", "exact"),
    ("ddim guided", "exact"),
)
PREPASSES = "step with both prepasses"
NAMES = (*OTHERS, *(f"step {solver} {mode}" for solver, mode in STEPS), PREPASSES)


def workload(name: str, shape: tuple[int, ...], device: str) -> Workload:
    if name in OTHERS:
        maker = operations.Maker(shape, torch.float32, device)
        options = {"groups": shape[1]} if name == "group_norm_silu" else {}
        work: Workload = getattr(maker, name)(**options).work
        return work
    if name == PREPASSES:
        return prepasses(shape, device)
    solver, mode = name.removeprefix("step ").rsplit(" ", 1)
    made: Workload = kernels.step(shape, torch.float32, device, solver, mode, theirs=False)[0]
    return made


def prepasses(shape: tuple[int, ...], device: str) -> Workload:
    """Returns a step with rescaled guidance and a dynamic threshold, which read whole samples."""
    plan = make_plan(
        operations.SCHEDULE, solver="ddim", steps=5, dynamic_threshold=0.9, guidance_rescale=0.7
    )
    g, batch, k = torch.Generator(device).manual_seed(0), shape[0], 2
    x, out = (torch.randn(n * batch, *shape[1:], generator=g, device=device) for n in (1, 2))
    table, got = torch.tensor(plan.table, device=device), torch.empty_like(x)
    row, gamma = (torch.full((batch,), v, device=device) for v in (k, 3.0))

    def check(_: Any) -> None:
        expected = reference.reverse_step(
            as_numpy(x), as_numpy(out), plan.table, k, guidance=[3.0] * batch
        )
        same_bits(got, expected.x_s, PREPASSES)

    def call() -> Any:
        return ops.reverse_step(x, out, table, row, guidance=gamma, used=plan.used, out=got)

    return Workload(call, check, "bits equal to NumPy", (got,))


def once(work: Workload, *, profile: bool) -> None:
    """Checks a call and, with `profile`, makes another between the profiler's marks."""
    work.verify()
    if profile and torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        work.call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--size", choices=("small", LARGE), default="small")
    parser.add_argument("--only", choices=NAMES, action="append")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    device = "cuda" if args.backend in ("triton", "cuda") else "cpu"
    shape = Target(device).shapes[LARGE] if args.size == LARGE else SMALL
    failed = False
    with torch.no_grad(), backend(args.backend):
        for name in args.only or NAMES:
            try:
                once(workload(name, shape, device), profile=args.profile)
            except Exception as error:
                failed = True
                print(f"failed {name}: {type(error).__name__}: {error}", flush=True)
            else:
                print(f"done {name}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
