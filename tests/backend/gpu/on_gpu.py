"""What the tests on a GPU share. With FASTDIFF_GPU_TESTS=cpu they are tried without one.

Then they run on the CPU backend, except for those marked `needs_gpu`, so that a mistake in a test
is found before a GPU is at hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import torch

from fastdiff import Schedule, ops
from fastdiff.solvers import Plan, make_plan

GPU = torch.cuda.is_available()
TRIED = not GPU and os.environ.get("FASTDIFF_GPU_TESTS") == "cpu"
DEVICE = "cuda" if GPU else "cpu"
BACKENDS = ["cpu"] if TRIED else ["triton", "cuda"]
SCHEDULE = Schedule.linear(1000)


def step_inputs() -> tuple[Plan, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns a DDPM plan, its table, a state and a network output for five samples."""
    plan = make_plan(SCHEDULE, solver="ddpm", steps=20, clip_range=1.0)
    x, out = (ops.randn((5, 3, 8, 9), seed=s, device=DEVICE) for s in (1, 2))
    return plan, torch.tensor(plan.table, device=DEVICE), x, out


def in_a_new_process(backend: str, code: str) -> None:
    """Runs code in which no kernel has been launched before; fails with its output."""
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": path, "FASTDIFF_BACKEND": backend},
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
