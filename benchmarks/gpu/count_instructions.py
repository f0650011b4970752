"""Counts the instructions an element of the predictions' kernels, and writes instructions.json.

    python -m benchmarks.gpu.count_instructions            writes the table
    python -m benchmarks.gpu.count_instructions --check    only says what differs by over 5 %

It needs Triton and no GPU. The kernels are compiled for sm_90 as they are launched at the size of
the predictions, which decides how many chunks a program computes. benchmarks/instructions.py says
how a path through the machine code is counted. A kernel with several paths has several counts, and
the last and highest, where every branch has work, is its ceiling's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import instructions
from benchmarks.gpu import issue_limits
from benchmarks.gpu.kernels import step_bytes, step_of
from benchmarks.operations import SCHEDULE
from fastdiff.ops.step import StepArguments
from fastdiff.solvers import make_plan

SHAPE = (1024, 3, 128, 128)
SLACK = 0.05
# launch and bytes an element, of a dtype
Case = Callable[[torch.dtype], tuple[Any, float]]


def tensor(dtype: torch.dtype, batch: int = SHAPE[0], channels: int = SHAPE[1]) -> Tensor:
    """Returns memory that is never touched: only its address, dtype and shape decide."""
    return torch.empty((batch, channels, *SHAPE[2:]), dtype=dtype)


def per_sample(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(SHAPE[0], dtype=dtype)


def step(solver: str, mode: str = "exact") -> Case:
    """Returns the case of the predictions' step (benchmarks/gpu/kernels.py)."""

    def case(dtype: torch.dtype) -> tuple[Any, float]:
        from fastdiff_kernels import launch

        name, guided = solver.removesuffix(" guided"), solver.endswith(" guided")
        plan = make_plan(SCHEDULE, solver=name, steps=50, timestep_spacing="leading")
        x = tensor(dtype)
        slots = torch.empty((plan.slots, *SHAPE)) if plan.slots else None
        call = launch.reverse_step_call(
            StepArguments(
                x,
                tensor(dtype, (1 + guided) * SHAPE[0]),
                torch.zeros(plan.table.shape, dtype=torch.float64),
                per_sample(torch.int64),
                out=x,
                slots=slots,
                slots_out=slots,
                seed=1,
                sample_ids=per_sample(torch.int64),
                guidance=per_sample() if guided else None,
                input_out=tensor(dtype) if guided else None,
                used=plan.used,
                mode=mode,
            )
        )
        return call, step_bytes(plan, step_of(plan), x, guided) / x.numel()

    return case


def arrays(count: float, make: Callable[[Any, torch.dtype], Any]) -> Case:
    """Returns the case of an op that reads or writes `count` tensors of the shape."""

    def case(dtype: torch.dtype) -> tuple[Any, float]:
        from fastdiff_kernels import launch

        return make(launch, dtype), count * torch.empty((), dtype=dtype).element_size()

    return case


def randn(mode: str) -> Case:
    return arrays(
        1,
        lambda launch, dtype: launch.randn_call(tensor(dtype), 1, None, None, 0, 0, mode == "fast"),
    )


def q_sample(mode: str) -> Case:
    table = torch.empty(1000, dtype=torch.float64)
    return arrays(
        2,
        lambda launch, dtype: launch.q_sample_call(
            tensor(dtype),
            tensor(dtype),
            per_sample(torch.int64),
            table,
            table,
            None,
            1,
            None,
            None,
            0,
            2,
            mode == "fast",
        ),
    )


def views(count: int, dtype: torch.dtype) -> list[Tensor]:
    return [tensor(dtype).view(SHAPE[0], -1) for _ in range(count)]


def sums(count: int, make: Callable[..., Any]) -> Case:
    """Returns the case of an op of one value per sample; make: of launch, dtype, result, parts."""
    parts = torch.empty(SHAPE[0] * math.ceil(math.prod(SHAPE[1:]) / 1024))
    return arrays(count, lambda launch, dtype: make(launch, dtype, per_sample(), parts))


CASES: dict[str, Case] = {
    "DDIM step": step("ddim"),
    "DDPM step, fast": step("ddpm", "fast"),
    "DDPM step, exact": step("ddpm"),
    "guidance + step, writes next input": step("ddim guided"),
    "DPM++ 2M step": step("dpm++2m"),
    "UniPC-2 step": step("unipc"),
    "normal fill, fast": randn("fast"),
    "normal fill, exact": randn("exact"),
    "q_sample, noise not stored": q_sample("fast"),
    "q_sample, exact": q_sample("exact"),
    "noise_mse": sums(
        1,
        lambda launch, dtype, out, parts: launch.noise_mse_call(
            out, parts, tensor(dtype), None, 1, None, None, 0, 2, False
        ),
    ),
    "Gaussian KL per sample": sums(
        4, lambda launch, dtype, out, parts: launch.gaussian_kl_call(out, parts, *views(4, dtype))
    ),
    "discretised NLL": sums(
        3,
        lambda launch, dtype, out, parts: launch.discretized_gaussian_nll_call(
            out, parts, *views(3, dtype)
        ),
    ),
    "reparameterisation": arrays(
        3,
        lambda launch, dtype: launch.reparameterize_call(
            tensor(dtype), tensor(dtype), tensor(dtype), 1, None, None, 0, 3, False
        ),
    ),
    "vlb_terms": sums(
        4,
        lambda launch, dtype, out, parts: launch.vlb_terms_call(
            out,
            parts,
            tensor(dtype),
            tensor(dtype),
            tensor(dtype, channels=2 * SHAPE[1]),
            torch.empty(1000, 9, dtype=torch.float64),
            per_sample(torch.int64),
        ),
    ),
}


def entry_of(name: str, dtype: str) -> dict[str, Any]:
    """Returns a kernel's entry of the table."""
    call, nbytes = CASES[name](getattr(torch, dtype))
    paths = instructions.per_element(call)
    return {
        "instructions": [round(n, 1) for n in paths],
        "bytes": nbytes,
        "ceiling": round(issue_limits.ceiling(paths[-1], nbytes), 1),
    }


def counted() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Returns (kernel, dtype, its entry of the table) for each case."""
    for name in CASES:
        for dtype in issue_limits.DTYPES:
            yield name, dtype, entry_of(name, dtype)


def difference(name: str, dtype: str, entry: dict[str, Any]) -> str | None:
    """Returns in a sentence how an entry differs from the table's; None within the slack."""
    stored = issue_limits.table().get(name, {}).get(dtype)
    now = entry["instructions"]
    if stored is None:
        return f"{name}, {dtype}: expected an entry in {issue_limits.FILE.name}, got none."
    before = stored["instructions"]
    close = len(now) == len(before) and all(
        abs(a - b) <= SLACK * b for a, b in zip(now, before, strict=True)
    )
    if close and stored["bytes"] == entry["bytes"]:
        return None
    return (
        f"{name}, {dtype}: expected {before} instructions and {stored['bytes']} bytes an element"
        f" within {SLACK:.0%}, got {now} and {entry['bytes']}; after a change on purpose, run"
        " python -m benchmarks.gpu.count_instructions and read the predictions again."
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.count_instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="compare with the table instead")
    check = parser.parse_args(argv).check
    kernels: dict[str, dict[str, Any]] = {}
    wrong = []
    for name, dtype, entry in counted():
        print(f"{name}, {dtype}: {entry['instructions']}, {entry['ceiling']:.0f} % of a copy")
        kernels.setdefault(name, {})[dtype] = entry
        wrong += [said] if check and (said := difference(name, dtype, entry)) else []
    if check:
        print("\n".join(wrong))
        return int(bool(wrong))
    import triton

    content = {"target": "sm_90", "triton": triton.__version__, "shape": SHAPE, "kernels": kernels}
    issue_limits.FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
