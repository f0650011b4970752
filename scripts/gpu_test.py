#!/usr/bin/env python3
"""`make gpu-test`: builds the CUDA library, runs the tests on a GPU, and writes a report as JSON.

    python scripts/gpu_test.py [--out gpu-test.json]

Needs torch, Triton, NumPy, pytest, hypothesis and nvcc, but no network. Without a GPU the suites
run as far as they can, and the report lists what was skipped. The suites are the kernels' own tests
(tests/backend/cuda on device memory), the op tests on the backends `triton` and `cuda`
(FASTDIFF_TEST_DEVICE=cuda), tests/backend/gpu, and compute-sanitizer on small shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "fastdiff" / "lib" / "libfastdiff_cuda.so"
GPU = torch.cuda.is_available()
EMULATED = ["tests/backend/cuda/test_emulated.py", "tests/backend/cuda/test_emulated_sums.py"]


def run(command: list[str], **settings: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "tests")))
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path} | settings,
        text=True,
        capture_output=True,
    )


def suite(
    name: str, arguments: list[str], prefix: list[str] | None = None, **settings: str
) -> dict[str, Any]:
    """Runs pytest; returns the counts and, for failures, their names and the end of the output."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder, "report.xml")
        pytest = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={xml}",
            *arguments,
        ]
        done = run([*(prefix or []), *pytest], **settings)
        cases = list(ElementTree.parse(xml).iter("testcase")) if xml.exists() else []
    broken = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    failed = [f"{c.get('classname')}::{c.get('name')}" for c in broken]
    skipped = sum(c.find("skipped") is not None for c in cases)
    row: dict[str, Any] = {
        "passed": len(cases) - len(failed) - skipped,
        "skipped": skipped,
        "failed": failed,
        "returncode": done.returncode,
        "seconds": round(time.monotonic() - start, 1),
    }
    if done.returncode:
        row["output"] = (done.stdout + done.stderr)[-8000:]
        print(row["output"])
    print(
        f"{name}: {row['passed']} passed, {skipped} skipped, {len(failed)} failed in"
        f" {row['seconds']} s",
        flush=True,
    )
    return row


def sanitizer() -> list[str] | None:
    """Returns the command of compute-sanitizer, or None if it is missing or there is no GPU."""
    found = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    return [found, "--error-exitcode=99", "--target-processes=all"] if found and GPU else None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-test.json"))
    arguments = parser.parse_args()
    built = run([sys.executable, "setup.py", "-q", "build_native"], FASTDIFF_BUILD_CUDA="1")
    if built.returncode:
        print(built.stdout + built.stderr)
        return 1
    print(
        "GPU: "
        + (
            torch.cuda.get_device_name()
            if GPU
            else "none; tests that need one are counted as skipped"
        )
    )
    suites: dict[str, Any] = {}
    if GPU:
        suites["kernels on the device"] = suite(
            "kernels on the device", EMULATED, FASTDIFF_TEST_CUDA=str(LIBRARY)
        )
        suites["ops on the device"] = suite(
            "ops on the device", ["tests/ops"], FASTDIFF_TEST_DEVICE="cuda"
        )
    else:
        suites["kernels emulated"] = suite("kernels emulated", EMULATED)
    suites["compiled library"] = suite("compiled library", ["tests/backend/cuda/test_compiled.py"])
    suites["gpu"] = suite("gpu", ["tests/backend/gpu"])
    if prefix := sanitizer():
        small = [*EMULATED, "-k", "shape0 or shape1 or shape2 or threshold or row or time"]
        suites["compute-sanitizer"] = suite(
            "compute-sanitizer", small, prefix, FASTDIFF_TEST_CUDA=str(LIBRARY)
        )
    report = {
        "gpu": torch.cuda.get_device_name() if GPU else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "suites": suites,
        "ok": all(row["returncode"] == 0 for row in suites.values()),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.out}")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
