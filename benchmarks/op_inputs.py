"""What the rows of all fused ops share: inputs, the description of an op, its check with peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import instructions
from benchmarks.checks import first_and_last, near
from benchmarks.harness import Workload
from fastdiff import ops
from fastdiff.ops.common import workspace_for

SEED = 1
# relative error of sums over a sample, in other dtypes 3e-6 (tests/tolerances.py)
SUM = {torch.float64: 2e-13}
# relative difference of a formula with the op's noise: half precision rounds at every operation
FORMULA = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Op(NamedTuple):
    """An op on inputs of one shape and dtype.

    Attributes:
        work: fastdiff's call with its check.
        result: returns what the call wrote.
        formula, inputs: what its peers compute.
        numpy: the oracle on the whole batch, which is a peer too.
        bytes_floor: the bytes that an ideal kernel reads and writes.
        elements: of one call.
        stream: of the op's noise, None without noise.
        limit: returns the ceiling of benchmarks.instructions.
        tolerance: of the formula, where it approximates the op.
    """

    work: Workload
    result: Callable[[], Any]
    formula: Callable[..., Any]
    inputs: tuple[Any, ...]
    numpy: Callable[[], Any]
    bytes_floor: int
    elements: int
    stream: int | None = None
    limit: Callable[[], Any] | None = None
    tolerance: float | None = None


def same_work(op: Op) -> None:
    """Raises AssertionError unless the peers' formula, with the op's noise, has the op's result."""

    def normal(like: Tensor) -> Tensor:
        assert op.stream is not None
        return ops.randn(
            like.shape, seed=SEED, stream=op.stream, dtype=like.dtype, device=like.device
        )

    op.work.verify()
    ours, theirs = op.result(), op.formula(normal, *op.inputs)
    for a, b in zip(*((v,) if isinstance(v, Tensor) else v for v in (ours, theirs)), strict=True):
        error = float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
        if not error < (op.tolerance or FORMULA[a.dtype]):
            raise AssertionError(f"the formula differs from the op by {error:.2g} of its norm")


class Inputs:
    """Makes inputs of one shape, dtype and device, and an `Op` of what is done with them."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu"
    ):
        self.shape, self.dtype, self.device = shape, dtype, device
        self.batch, self.elements = shape[0], int(np.prod(shape))
        self.size = torch.empty((), dtype=dtype).element_size()
        self.ends = first_and_last(self.batch)
        self.g = torch.Generator(device).manual_seed(0)

    def normal(self, shape: tuple[int, ...] | None = None) -> Tensor:
        return torch.randn(shape or self.shape, generator=self.g, device=self.device).to(self.dtype)

    def pixels(self) -> Tensor:
        levels = torch.randint(0, 256, self.shape, generator=self.g, device=self.device)
        return (levels / 127.5 - 1).to(self.dtype)

    def empty(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def times(self) -> Tensor:
        return torch.arange(self.batch, device=self.device) * 7 % 1000

    def table(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.device)

    def buffers(self) -> dict[str, Any]:
        """Returns `out` for a value per sample and, if the op needs one, its `workspace`."""
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        out = torch.empty(self.batch, dtype=kind, device=self.device)
        workspace = workspace_for(self.batch, self.elements // self.batch, kind, out.device)
        return {"out": out} if workspace is None else {"out": out, "workspace": workspace}

    @property
    def sum_error(self) -> float:
        return SUM.get(self.dtype, 3e-6)

    def op(
        self,
        work: Workload,
        result: Callable[[], Any],
        formula: Any,
        inputs: tuple[Any, ...],
        numpy: Any,
        arrays: float,
        **more: Any,
    ) -> Op:
        """Returns the `Op`. arrays: how many tensors of the shape are read or written."""
        return Op(
            work,
            result,
            formula,
            inputs,
            numpy,
            int(arrays * self.elements) * self.size,
            self.elements,
            **more,
        )

    def limit(self, name: str, uses: int = 0) -> Callable[[], Any]:
        """Returns a function for the op's ceiling by arithmetic (benchmarks.instructions)."""

        def make(n: int) -> Callable[[], Any]:
            return getattr(type(self)((1, n), self.dtype, self.device), name)().work.call

        return lambda: instructions.ceiling(
            make, self.device, instructions.launch_of(name, self.empty(), uses)
        )

    def _sum(
        self,
        name: str,
        call: Any,
        buffers: dict[str, Any],
        oracle: Any,
        formula: Any,
        inputs: tuple[Any, ...],
        arrays: float,
        rtol: float | None = None,
        **more: Any,
    ) -> Op:
        """Returns the `Op` of an op with one value per sample."""
        rtol, out = rtol or self.sum_error, buffers["out"]
        work = Workload(
            call,
            lambda _: near(out[self.ends], oracle(self.ends), rtol, name),
            f"rtol {rtol:g} to NumPy",
            (out,),
        )
        return self.op(work, lambda: out, formula, inputs, oracle, arrays, **more)
