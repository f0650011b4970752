#!/usr/bin/env python3
"""`make gpu-report`: measures fastdiff on a GPU, piece by piece, and compares with what was
predicted.

    python scripts/gpu_report.py --list
    python scripts/gpu_report.py [--piece N …] [--out DIR] [--wheels DIR] [--minutes M] [--tier
    default] [--device cpu]

Needs torch, Triton, NumPy, pytest, pytest-benchmark and nvcc, no network. A piece ends within 9
minutes and keeps its JSON as it goes; one that has more to measure goes on where it stopped when it
is run again, and what is finished is skipped. Without --piece all are run until they are finished.
Peers that are not installed are taken from --wheels, a folder of wheels, or named as missing.
`--device cpu` tries every piece on tiny tensors. The GPU's own settings are left alone.

Exit status: 0 all finished; 1 a row failed: wrong, or it could not run; 75 there is more to
    measure: run it again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("libfastdiff_cpu.so", "libfastdiff_cuda.so")
LONGEST, BEGUN_WITHIN, AGAIN = (
    540.0,
    300.0,
    75,
)  # seconds of a piece's run, and after which no further row is begun


def environment(wheels: Path | None) -> dict[str, str]:
    """This tree first on the path, then what the wheels hold."""
    places = [ROOT, ROOT / "kernels"]
    if wheels is not None:
        found = sorted(wheels.glob("*.whl"))
        if not found:
            raise ValueError(
                f"gpu-report: expected wheels in {wheels}, got none. Leave --wheels out, or name"
                " their folder."
            )
        places.append(unpacked(found))
    path = os.pathsep.join([*map(str, places), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def unpacked(wheels: list[Path]) -> Path:
    """The wheels' files in one folder, made once: libraries can't be loaded out of a wheel."""
    names = "\n".join(f"{w.name} {w.stat().st_size}" for w in wheels)
    folder = ROOT / "out" / "wheels" / hashlib.sha256(names.encode()).hexdigest()[:16]
    if not (folder / ".done").exists():
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as file:
                file.extractall(folder)
        (folder / ".done").touch()
    return folder


def build(env: dict[str, str]) -> None:
    """The libraries of a tree that has none yet. Raises RuntimeError with the compiler's last
    words.
    """
    if all((ROOT / "fastdiff" / "lib" / name).exists() for name in LIBRARIES):
        return
    print("building the C++ and CUDA libraries …", flush=True)
    command = [sys.executable, "setup.py", "-q", "build_native"]
    done = subprocess.run(
        command, cwd=ROOT, env=env | {"FASTDIFF_BUILD_CUDA": "1"}, text=True, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(
            "gpu-report: expected the libraries to build,"
            f" got\n{(done.stdout + done.stderr)[-4000:]}"
        )


def child(
    env: dict[str, str], *arguments: str, longest: float = LONGEST, capture: bool = False
) -> Any:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    try:
        return subprocess.run(
            command, cwd=ROOT, env=env, text=True, timeout=longest, capture_output=capture
        )
    except subprocess.TimeoutExpired:
        return None


def state(file: Path) -> tuple[bool, int]:
    """(whether a piece's file is finished, how many rows were tried)."""
    if not file.exists():
        return False, 0
    found = json.loads(file.read_text(encoding="utf-8"))
    return bool(found["finished"]), sum(
        len(found[key]) for key in ("benchmarks", "failed", "skipped")
    )


def blame(file: Path, reason: str) -> None:
    """The row that a run ended in, killed or crashed, is kept as failed, so that the next run goes
    on after it.
    """
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["now"] is not None:
            found["failed"][found["now"]], found["now"] = reason, None
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run(name: str, file: Path, env: dict[str, str], args: argparse.Namespace, until: float) -> str:
    """Runs a piece once, or until it is finished; says how it ended: done, failed, more."""
    options = ["--piece", name, "--file", str(file), "--device", args.device, "--tier", args.tier]
    while True:
        finished, before = state(file)
        if finished:
            return "failed" if json.loads(file.read_text(encoding="utf-8"))["failed"] else "done"
        left = min(LONGEST, until - time.monotonic())
        if left < 30:
            return "more"
        done = child(env, *options, "--within", str(min(BEGUN_WITHIN, 0.6 * left)), longest=left)
        if done is None and left == LONGEST:
            blame(file, f"killed: not done when the piece had run for {LONGEST:.0f} s")
        elif done is not None and done.returncode not in (0, 1, AGAIN):
            print(f"{name}: ended with status {done.returncode}", flush=True)
            blame(file, f"the process ended with status {done.returncode}")
        finished, after = state(file)
        if not finished and (
            args.piece or after == before
        ):  # one run was asked for, or nothing comes of it
            return "more" if done is None or done.returncode == AGAIN else "failed"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="the pieces, and which are finished")
    parser.add_argument(
        "--piece",
        type=int,
        action="append",
        metavar="N",
        help="this one, by its number; may be repeated",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="benchmarks/results/MACHINE; out/gpu-report of a dry run",
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="a folder of wheels for what is not installed"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=1e9,
        metavar="M",
        help="end within so many; run it again for the rest",
    )
    parser.add_argument(
        "--tier",
        choices=("quick", "default", "full"),
        help="of the suite (default; quick in a dry run)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="cpu: a dry run with tiny tensors (a GPU if there is one)",
    )
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    try:
        env = environment(args.wheels)
        listed = child(
            env, "--list", *(["--device", args.device] if args.device else []), capture=True
        )
        if listed is None or listed.returncode:
            raise RuntimeError(
                "gpu-report: expected the pieces' names,"
                f" got\n{listed.stderr[-2000:] if listed else 'nothing'}"
            )
        found = json.loads(listed.stdout.splitlines()[-1])
        args.device = found["device"]
        args.tier = args.tier or ("quick" if args.device == "cpu" else "default")
        dry = ROOT / "out" / "gpu-report"
        out = (
            args.out
            or (dry if args.device == "cpu" else ROOT / "benchmarks" / "results" / found["machine"])
        ).resolve()
        names = list(found["pieces"])
        files = {name: out / f"{name}.json" for name in names}
        wrong = [n for n in args.piece or () if not 1 <= n <= len(names)]
        if wrong:
            raise ValueError(
                f"gpu-report: expected pieces 1 to {len(names)}, got {wrong[0]}. --list names them."
            )
        if args.list:
            for i, (name, about) in enumerate(found["pieces"].items()):
                finished, tried = state(files[name])
                print(
                    f"{i + 1:3} {name:20}"
                    f" {'finished' if finished else f'{tried} rows' if tried else '-':10} {about}"
                )
            return 0
        if args.device == "cuda":
            build(env)
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    ended: dict[str, str] = {}
    before = {name: state(file) for name, file in files.items()}
    for name in [names[n - 1] for n in args.piece] if args.piece else names:
        print(f"== {name}", "(finished before)" if state(files[name])[0] else "", flush=True)
        ended[name] = run(name, files[name], env, args, until)
    if before != {name: state(file) for name, file in files.items()}:
        child(env, "--predictions", str(out))
    for name, how in ended.items():
        print(f"{how:7} {name}: {files[name]}")
    print(f"pages: python -m benchmarks.report {out}")
    return 1 if "failed" in ended.values() else AGAIN if "more" in ended.values() else 0


if __name__ == "__main__":
    sys.exit(main())
