"""`fastdiff doctor`: reports which backends run on this machine and why the others do not.

One dictionary has all findings. --json prints it, and the text is made from it, so the two agree.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..backend import backends, library
from ..backend.hardware import usable_cpus
from ..versions import __version__
from .output import say, say_json

TORCH_FLOOR = (2, 11)
# time of a step of ddim, ddpm and dpm++2m by torch over that by C++, one thread of an x86 with
# AVX-512, float32 8×3×32×32 and 64×3×32×32: 11 to 18
SLOWER = 10
# network file systems: they are slow, and Triton's cache has races on them
NETWORK_FILESYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "afs",
    "fuse.sshfs",
    "9p",
}


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="report what runs on this machine and why the rest does not",
        description=(
            "Report what runs on this machine and why the rest does not. Exit status 0 if sampling"
            " works."
        ),
    )
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    findings = examine()
    if args.json:
        say_json(findings, 2)
    else:
        say(describe(findings))
    return 0 if findings["usable"] else 1


def examine() -> dict[str, Any]:
    """Returns all findings.

    `usable` is whether sampling works here, and `problems` lists sentences, each with a fix.
    """
    states = {
        name: state._asdict() for name, state in backends().items()
    }  # loads the library after torch
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    runtimes = openmp_runtimes()
    problems = []
    old_torch = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < TORCH_FLOOR
    if old_torch:
        problems.append(f"torch {torch.__version__} is older than 2.11: update it.")
    problems += [
        p for p in (foreign_fastdiff(), second_openmp(runtimes), triton_cache_problem()) if p
    ]
    if not library.available():
        problems.append(
            f"the C++ library is off ({library.reason()}): on the CPU each solver step, apart from"
            f" the network, takes torch about {SLOWER} times as long, with the same noise. Install"
            " a C++17 compiler such as g++ or clang, then fastdiff-engine again; `pip install -v`"
            " shows what the build says."
        )
    elif library.build_info().get("cpu", {}).get("openmp") is False:
        problems.append(
            "the C++ library was built without OpenMP and runs on one thread: rebuild it with"
            " OpenMP."
        )
    return {
        "usable": not old_torch and any(state["available"] for state in states.values()),
        "versions": {
            "fastdiff": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "triton")},
        },
        "location": str(Path(__file__).resolve().parent.parent),
        "interpreter": sys.executable,
        "platform": platform.platform(),
        "threads": {"torch": torch.get_num_threads(), "cpus": usable_cpus()},
        "cpu": {
            "levels": library.levels() if library.available() else [],
            "chosen": (
                (os.environ.get("FASTDIFF_CPU_LEVEL") or library.levels()[-1])
                if library.available()
                else None
            ),
        },
        "build": library.build_info(),
        "cuda_devices": cuda,
        "openmp_runtimes": runtimes,
        "backends": states,
        "problems": problems,
    }


def describe(findings: dict[str, Any]) -> str:
    """Returns the findings as text."""
    threads, cpu = findings["threads"], findings["cpu"]
    rows = [(name, value or "not installed") for name, value in findings["versions"].items()]
    rows += [
        ("location", findings["location"]),
        ("interpreter", findings["interpreter"]),
        ("platform", findings["platform"]),
        ("threads", f"torch uses {threads['torch']}, {threads['cpus']} CPUs are usable"),
        (
            "CPU levels",
            (
                f"{', '.join(cpu['levels'])}; chosen: {cpu['chosen']}"
                if cpu["levels"]
                else "none: see backend cpu"
            ),
        ),
        ("CUDA devices", ", ".join(findings["cuda_devices"]) or "none"),
    ]
    lines = [f"{name:<13} {value}" for name, value in rows]
    lines += ["", "backends"]
    for name, state in findings["backends"].items():
        lines.append(f"  {name:<7} {'on ' if state['available'] else 'off'}  {state['reason']}")
    lines += ["", "problems" if findings["problems"] else "no problems found"]
    lines += [f"  - {problem}" for problem in findings["problems"]]
    lines.append("" if findings["usable"] else "sampling does not work here")
    return "\n".join(lines).rstrip()


def version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def foreign_fastdiff() -> str | None:
    """Returns a problem if PyPI's text-diff library, of the same import name, is installed."""
    found = version("fastdiff")
    if found is None:
        return None
    return (
        f"the distribution fastdiff {found}, a text-diff library with the same import name, is"
        f" installed next to fastdiff-engine: {sys.executable} -m pip uninstall fastdiff, then"
        " install fastdiff-engine again."
    )


def openmp_runtimes(maps: str | None = None) -> list[str]:
    """Returns the files of loaded OpenMP runtimes; `maps` is the text of /proc/self/maps."""
    if maps is None:
        try:
            maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []  # not Linux: unknown
    paths = (line.split(maxsplit=5)[5] for line in maps.splitlines() if line.count("/"))
    return sorted({p for p in paths if re.match(r"lib(gomp|iomp5?|omp5?)\b", os.path.basename(p))})


def second_openmp(runtimes: list[str]) -> str | None:
    if len(runtimes) < 2:
        return None
    return (
        f"{len(runtimes)} OpenMP runtimes are loaded ({', '.join(runtimes)}), which start twice the"
        " threads and can hang: import torch before other libraries, or rebuild with the compiler"
        " of torch's runtime."
    )


def triton_cache_problem(home: str | None = None, mounts: str | None = None) -> str | None:
    """Returns a problem if Triton's cache folder can't be written or is on a network disk."""
    if version("triton") is None:
        return None
    folder = Path(
        os.environ.get("TRITON_CACHE_DIR")
        or Path(home or os.path.expanduser("~")) / ".triton" / "cache"
    )
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    fix = "set TRITON_CACHE_DIR to a folder on a local disk."
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return f"Triton's cache folder {folder} can't be written: {fix}"
    kind = filesystem(existing.resolve(), mounts)
    return (
        f"Triton's cache folder {folder} is on a network disk ({kind}): {fix}"
        if kind in NETWORK_FILESYSTEMS
        else None
    )


def filesystem(path: Path, mounts: str | None = None) -> str | None:
    """Returns the type of the file system of `path`; `mounts` is the text of /proc/mounts."""
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
    best, kind = -1, None
    for line in mounts.splitlines():
        _, point, found, *_ = line.split()
        point = point.replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), found
    return kind
