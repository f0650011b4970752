"""What the tests of the loop share: a network in static memory, a watch over memory, and graphs.

The graphs run their steps again instead of replaying kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff.sampling.engine
from fastdiff import Schedule
from fastdiff.sampling.graph import Graphs

SCHEDULE = Schedule.linear(1000)


class InPlace:
    """An elementwise network that writes into static memory, like a captured one."""

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        if len(x) not in self.buffers:
            self.buffers[len(x)] = torch.empty_like(x)
        buffer = self.buffers[len(x)]
        torch.mul(x, 0.3, out=buffer)
        return buffer if y is None else buffer.add_(y.view(-1, 1))


class Watch(TorchDispatchMode):
    """Notes the memory of every tensor that ops give, and refuses to let the host read one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}  # the tensors are held, so that memory is not used twice
        self.new: list[str] = []
        self.log: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(
            word in name for word in ("_local_scalar_dense", "nonzero", "is_nonzero", "unique")
        ), name
        result = func(*args, **(kwargs or {}))
        inputs = [v for v in (*args, *(kwargs or {}).values()) if isinstance(v, Tensor)]
        self.log.append((name, [v.data_ptr() for v in inputs]))
        for value in inputs:
            self.seen.setdefault(value.untyped_storage().data_ptr(), value)
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor) and value.numel():
                key = value.untyped_storage().data_ptr()
                if key not in self.seen:
                    self.new.append(name)
                    self.seen[key] = value
        return result


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "float64": {"dtype": torch.float64},
    "guided": {"guidance_scale": 2.0},
    "by a tensor": {"guidance_scale": torch.linspace(0, 2, 4)},
    "by a list": {"guidance_scale": [0.0, 1.0, 2.0, 1.0, 0.0, 3.0, 2.0, 2.0]},
    "own steps": {"steps": [8, 8, 8, 9]},
    "inpainting": {"mask": torch.tensor([1.0, 0, 1, 0, 1]), "known": torch.zeros(5)},
}


class Recorder:
    """A device for graphs: captured steps run again, and must touch the same memory every time."""

    def __init__(self, fails: bool = False, same: bool = True):
        self.fails, self.same = fails, same
        self.captured = self.replayed = self.warmed = 0

    def warm(self, step: Callable[[], None]) -> None:
        self.warmed += 1
        step()

    def watch(self, step: Callable[[], None]) -> list[str]:
        self.warm(step)
        return []

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured += 1
        first: list[Any] = []

        def replay() -> None:
            self.replayed += 1
            with Watch() as watch:
                step()
            unchanged = watch.log == (first or watch.log) or not self.same
            assert watch.log and unchanged, "a replay on other memory"
            first[:] = watch.log

        return replay

    def install(self, monkeypatch: pytest.MonkeyPatch, required: bool = False) -> None:
        def graphs(option: Any, device: Any) -> Graphs:
            return Graphs(self, required=required)

        monkeypatch.setattr(fastdiff.sampling.engine, "graphs", graphs)
