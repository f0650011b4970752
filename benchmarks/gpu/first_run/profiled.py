"""Stage f: three kernels in Nsight Compute, with the counters that say what limits them.

    python -m benchmarks.gpu.first_run.profiled --file FILE [--device cpu]

The GPU's clocks are left alone. Each kernel has a process of its own and is a row.
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from typing import Any

from benchmarks.gpu.checkpoint import Checkpoint
from benchmarks.gpu.first_run.stages import HERE, ROOT, arguments
from benchmarks.gpu.first_run.versions import tool

KERNELS = (
    ("step ddpm exact", "triton"),
    ("discretized_gaussian_nll", "triton"),
    ("step ddpm exact", "cuda"),
)
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "smsp__inst_executed.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__grid_size",
    "launch__block_size",
)


def launches(text: str) -> list[dict[str, Any]]:
    """Returns {kernel, metric: value, …} of each profiled launch in ncu's CSV."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        if not row.get("Metric Name"):
            continue
        launch = found.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        value = row["Metric Value"].replace(",", "")
        try:
            launch[row["Metric Name"]] = float(value)
        except ValueError:
            launch[row["Metric Name"]] = value
    return list(found.values())


def command(name: str, backend: str, ncu: str | None) -> list[str]:
    """Returns the command that profiles a kernel or, without ncu, only calls it."""
    size = "large" if ncu else "small"
    python = [sys.executable, "-m", f"{HERE}.calls", "--backend", backend]
    python += ["--size", size, "--only", name, "--profile"]
    if ncu is None:
        return python
    settings = ["--clock-control", "none", "--profile-from-start", "off", "--print-units", "base"]
    return [ncu, *settings, "--metrics", ",".join(METRICS), "--csv", *python]


def profile(name: str, backend: str, ncu: str | None) -> dict[str, Any]:
    """Returns the row of a kernel. Raises RuntimeError with the end of the output."""
    done = subprocess.run(command(name, backend, ncu), cwd=ROOT, text=True, capture_output=True)
    output = done.stdout + done.stderr
    found = launches(done.stdout)
    if done.returncode or f"done {name}" not in done.stdout or (ncu and not found):
        raise RuntimeError(f"status {done.returncode}: {output[-3000:]}")
    return {"backend": backend, "launches": found}


def main() -> int:
    args = arguments(__doc__).parse_args()
    checkpoint = Checkpoint(args.file, "f-profile", {})
    ncu, dry = tool("ncu"), args.device == "cpu"
    if dry:
        ncu = None
        checkpoint.leave_out("Nsight Compute", "there is no GPU: the calls run without it")
    elif ncu is None:
        checkpoint.fail("ncu", f"expected it on PATH, got none in {os.environ.get('PATH')}")
        return 1
    for name, backend in [(KERNELS[0][0], "cpu")] if dry else KERNELS:
        title = f"{name} {backend}"
        checkpoint.begin(title)
        try:
            row = profile(name, backend, ncu)
        except RuntimeError as error:
            checkpoint.fail(title, str(error), 3000)
        else:
            checkpoint.row(title, row)
            print(title, row, flush=True)
    return 1 if checkpoint.failed else 0


if __name__ == "__main__":
    sys.exit(main())
