"""Shows the progress of a run: a bar in a terminal, a line every few seconds in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 10.0


def memory(device: torch.device) -> int:
    """Returns bytes: the peak of a GPU's allocator, else the process's resident memory (or 0)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


class Progress:
    """A context manager for a run; call `update(step, numbers)` after each step.

    The last state is always shown.

    Args:
        step, steps, batch_size: of the run: the steps done, all steps, and examples per step.
        unit: of the loss.
        device: whose memory is shown.
        show: whether anything is shown.
    """

    def __init__(
        self,
        step: int,
        steps: int,
        batch_size: int,
        *,
        unit: str = "nats",
        device: torch.device | None = None,
        show: bool = True,
    ):
        self.first = self.step = step
        self.steps, self.batch_size, self.show, self.unit = steps, batch_size, show, unit
        self.device = device or torch.device("cpu")
        self.numbers: Mapping[str, float] = {}
        self.bar: Any = None

    def __enter__(self) -> Progress:
        self.begin = time.monotonic()
        self.line = self.begin
        if self.show and sys.stderr.isatty():
            done = self.step * self.batch_size
            self.bar = tqdm(
                total=self.steps * self.batch_size,
                initial=done,
                unit="img",
                desc="training",
                smoothing=0.05,
            )
        return self

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.bar is not None:
            self.bar.update((step - self.step) * self.batch_size)
            self.bar.set_postfix_str(f"loss {numbers['loss']:.4f} {self.unit}, {self._memory()}")
        self.step, self.numbers = step, numbers
        if self.show and self.bar is None and time.monotonic() - self.line >= SECONDS_BETWEEN_LINES:
            self._print()

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.show and self.step > self.first:
            self._print()

    def _memory(self) -> str:
        return f"{memory(self.device) / 2**20:.0f} MiB"

    def _print(self) -> None:
        self.line = time.monotonic()
        elapsed = max(self.line - self.begin, 1e-9)
        done, left = self.step - self.first, self.steps - self.step
        rate, eta = done * self.batch_size / elapsed, round(left * elapsed / max(done, 1))
        shown = "  ".join(
            f"{name} {value:.4g}" + (f" {self.unit}" if name == "loss" else "")
            for name, value in self.numbers.items()
            if name != "step"
        )
        text = (
            f"step {self.step}/{self.steps}  {shown}  {rate:.0f} img/s  {eta // 60}:{eta % 60:02d}"
            f" left  {self._memory()}"
        )
        print(text, file=sys.stderr, flush=True)
