"""The table of stages. It needs Python alone: the runner never imports torch.

A command is `python -m MODULE … --file FILE --device DEVICE --within SECONDS`. Commands of a stage
share its seconds and its file. The seconds add up to 500; the last stage has what is left of the
9.5 minutes of a run.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
HERE = "benchmarks.gpu.first_run"
CUDA_LIBRARY = ROOT / "fastdiff" / "lib" / "libfastdiff_cuda.so"


class Suite(NamedTuple):
    """Tests that a stage runs.

    Attributes:
        tests: paths for pytest.
        selects: how many tests they are at least on a GPU; fewer fail the stage.
        dry: the paths of a dry run, none if nothing of it runs without a GPU.
        settings: the environment on a GPU.
        dry_settings: the environment in a dry run.
        parallel: whether several processes share the GPU; not where time or memory are measured.
    """

    tests: tuple[str, ...]
    selects: int
    dry: tuple[str, ...]
    settings: Mapping[str, str] = {}
    dry_settings: Mapping[str, str] = {}
    parallel: bool = True


class Stage(NamedTuple):
    """A stage: its file is NAME.json.

    Attributes:
        seconds: after which it is killed, None for what is left.
        again: whether a command that ended early is started again and continues.
    """

    name: str
    seconds: float | None
    about: str
    commands: tuple[tuple[str, ...], ...]
    again: bool = False


GPU = "tests/backend/gpu"
KERNELS = ("tests/backend/cuda/test_emulated.py", "tests/backend/cuda/test_emulated_sums.py")
ON_CPU = {"FASTDIFF_GPU_TESTS": "cpu"}
SUITES = {
    "gpu": Suite(
        (f"{GPU}/test_gpu.py", f"{GPU}/test_gpu_captures.py"),
        selects=48,
        dry=(f"{GPU}/test_gpu.py", f"{GPU}/test_gpu_captures.py"),
        dry_settings=ON_CPU,
    ),
    "sampler": Suite(
        (f"{GPU}/test_sampler_on_gpu.py",),
        selects=22,
        dry=(f"{GPU}/test_sampler_on_gpu.py",),
        dry_settings=ON_CPU,
        parallel=False,
    ),
    "threads": Suite(
        (f"{GPU}/test_gpu_threads.py",),
        selects=4,
        dry=(f"{GPU}/test_gpu_threads.py",),
        dry_settings=ON_CPU,
        parallel=False,
    ),
    "ops": Suite(
        ("tests/ops",),
        selects=3260,
        dry=("tests/ops/test_q_posterior.py",),
        settings={"FASTDIFF_TEST_DEVICE": "cuda"},
        dry_settings={"FASTDIFF_TEST_BACKENDS": "cpu"},
    ),
    "kernels": Suite(
        KERNELS, selects=780, dry=(), settings={"FASTDIFF_TEST_CUDA": str(CUDA_LIBRARY)}
    ),
}
STAGES = (
    Stage("a-versions", 20, "versions, doctor, both backends load", ((f"{HERE}.versions",),)),
    Stage(
        "b-gpu",
        60,
        "tests/backend/gpu: bits, errors, captures, group norm at batch 1 and 2",
        ((f"{HERE}.suites", "gpu"),),
    ),
    Stage(
        "c-sampler",
        60,
        "graphed, eager and CPU have the same bits; 40 calls; reads of the device; threads",
        ((f"{HERE}.suites", "sampler"), (f"{HERE}.suites", "threads")),
    ),
    Stage(
        "d-ops",
        150,
        "op tests on both backends, then the CUDA library's own tests",
        ((f"{HERE}.suites", "ops"), (f"{HERE}.suites", "kernels")),
    ),
    Stage(
        "e-speed",
        150,
        "alone on the GPU: copy, kernels from graphs, graphed steps, the host's time",
        (("benchmarks.gpu", "--piece", "first"),),
        again=True,
    ),
    Stage("f-profile", 60, "three kernels in Nsight Compute", ((f"{HERE}.profiled",),)),
    Stage("g-sanitizer", None, "every op in compute-sanitizer", ((f"{HERE}.sanitized",),)),
)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of a stage's command."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, required=True, help="the stage's results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--within", type=float, default=300.0, metavar="SECONDS")
    return parser
