"""Shows the progress of a run: a bar in a terminal, a line every few seconds in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A context manager for a run; call `update(step, numbers)` after each step.

    The last state is always shown.
    """

    def __init__(self, step: int, steps: int, batch_size: int, *, show: bool = True):
        self.first = self.step = step
        self.steps, self.batch_size, self.show = steps, batch_size, show
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
            self.bar.set_postfix(loss=f"{numbers['loss']:.4f}")
        self.step, self.numbers = step, numbers
        if self.show and self.bar is None and time.monotonic() - self.line >= SECONDS_BETWEEN_LINES:
            self._print()

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.show and self.step > self.first:
            self._print()

    def _print(self) -> None:
        self.line = time.monotonic()
        elapsed = max(self.line - self.begin, 1e-9)
        done, left = self.step - self.first, self.steps - self.step
        rate, eta = done * self.batch_size / elapsed, round(left * elapsed / max(done, 1))
        shown = "  ".join(
            f"{name} {value:.4g}" for name, value in self.numbers.items() if name != "step"
        )
        text = (
            f"step {self.step}/{self.steps}  {shown}  {rate:.0f} img/s  {eta // 60}:{eta % 60:02d}"
            " left"
        )
        print(text, file=sys.stderr, flush=True)
