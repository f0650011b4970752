"""Stage a: versions, tools, `fastdiff doctor`, and a launch on every backend.

    python -m benchmarks.gpu.first_run.versions --file FILE [--device cpu]

Every finding is a row of its own, so that what can't be imported costs no other finding.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.checkpoint import Checkpoint
from benchmarks.gpu.first_run.stages import ROOT, arguments

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "scipy",
    "pytest",
    "pytest-xdist",
    "pytest-benchmark",
    "hypothesis",
    "safetensors",
    "pillow",
    "tqdm",
    "diffusers",
    "huggingface-hub",
)
TOOLS = ("nvcc", "ninja", "ncu", "compute-sanitizer", "nvidia-smi", "c++")
CUDA_FOLDERS = os.pathsep.join(
    [os.environ.get("PATH", ""), "/usr/local/cuda/bin", "/usr/local/nvidia/bin"]
)
GOLDEN = ROOT / "tests" / "golden" / "noise_v1.json"


def tool(name: str) -> str | None:
    """Returns the path of a program on PATH or in CUDA's folders."""
    return shutil.which(name, path=CUDA_FOLDERS)


def versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def tools() -> dict[str, Any]:
    return {name: tool(name) for name in TOOLS}


def card() -> dict[str, Any]:
    """Returns what nvidia-smi reports of the GPU."""
    wanted = (
        "name,driver_version,memory.total,memory.used,clocks.sm,clocks.mem,"
        "clocks.max.sm,temperature.gpu,power.draw,utilization.gpu,compute_mode"
    )
    command = [tool("nvidia-smi") or "nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    if done.returncode:
        raise RuntimeError(done.stderr or done.stdout)
    return dict(zip(wanted.split(","), done.stdout.strip().split(", "), strict=False))


def torch_gpu() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU")
    p = torch.cuda.get_device_properties(0)
    return {
        "name": p.name,
        "capability": [p.major, p.minor],
        "multiprocessors": p.multi_processor_count,
        "bytes": p.total_memory,
        "L2": p.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def doctor() -> dict[str, Any]:
    from fastdiff.cli.doctor import examine

    found = examine()
    if found["problems"]:
        raise RuntimeError(" ".join(found["problems"]))
    return found


def launch(backend: str) -> dict[str, Any]:
    """Draws the first case of the golden file on a backend and compares the bits."""
    import torch

    import fastdiff
    from fastdiff import ops

    state = fastdiff.backends()[backend]
    if not state.available:
        raise RuntimeError(f"off: {state.reason}")
    case = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"][0]
    with fastdiff.use(backend):
        ids = torch.tensor([case["sample_id"]])
        device = "cuda" if backend in ("triton", "cuda") else "cpu"
        got = ops.randn(
            (1, case["elements"]),
            seed=case["seed"],
            sample_ids=ids.to(device),
            step=case["step"],
            stream=case["stream"],
            device=device,
        )
    bits = " ".join(f"{b & 0xFFFFFFFF:08x}" for b in got.cpu().view(torch.int32)[0].tolist())
    if bits != case["bits"]:
        raise AssertionError(f"expected the golden file's bits {case['bits']}, got {bits}")
    return {"reason": state.reason}


def main() -> int:
    args = arguments(__doc__).parse_args()
    checkpoint = Checkpoint(args.file, "a-versions", {})
    findings: dict[str, Callable[[], dict[str, Any]]] = {"versions": versions, "tools": tools}
    if args.device == "cuda":
        findings |= {"nvidia-smi": card, "torch's GPU": torch_gpu}
    findings["doctor"] = doctor
    backends = ("torch", "cpu", "triton", "cuda") if args.device == "cuda" else ("torch", "cpu")
    for backend in backends:
        findings[f"backend {backend}"] = lambda name=backend: launch(name)
    for name, find in findings.items():
        checkpoint.begin(name)
        try:
            found = find()
        except Exception as error:
            checkpoint.fail(name, f"{type(error).__name__}: {error}", 2000)
        else:
            checkpoint.row(name, found)
            print(name, json.dumps(found), flush=True)
    if args.device == "cpu":
        checkpoint.leave_out("nvidia-smi, backends triton and cuda", "there is no GPU")
    return 1 if checkpoint.failed else 0


if __name__ == "__main__":
    sys.exit(main())
