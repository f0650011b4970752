"""The memory traffic of a plan's row: the tensors of the state's size that it reads and writes."""

from __future__ import annotations

from fastdiff.solvers import Plan
from fastdiff.table import INDEX, OPERANDS, OUTPUTS


def reads(plan: Plan, k: int) -> set[str]:
    """Returns which of x, out and s1 … s4 row k reads; x0 is computed from x and out."""
    line = plan.table[k]
    operands = {of for to in OUTPUTS for of in OPERANDS if line[INDEX[f"{to}.{of}"]]}
    if "x0" in operands:
        operands |= {of for of in ("x", "out") if line[INDEX[f"x0_{of}"]]}
    if line[INDEX["noise_mode"]] == 1:  # a learned variance
        operands.add("out")
    return operands - {"x0", "z"}


def writes(plan: Plan, k: int) -> set[str]:
    """Returns x and the slots that row k writes."""
    line = plan.table[k]
    return {"x"} | {
        to for to in OUTPUTS if to != "x" and any(line[INDEX[f"{to}.{of}"]] for of in OPERANDS)
    }


def arrays(plan: Plan, k: int) -> int:
    """Returns how many tensors of the state's size row k reads and writes."""
    return len(reads(plan, k)) + len(writes(plan, k))


def of_run(plan: Plan) -> int:
    """Returns the sum of `arrays` over all rows of the plan."""
    return sum(arrays(plan, k) for k in range(len(plan)))
