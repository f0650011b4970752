#!/usr/bin/env python3
"""`make gpu-report`: measures fastdiff on a GPU in pieces, and compares with the predictions.

    python scripts/gpu_report.py --list
    python scripts/gpu_report.py [--piece N …] [--out DIR] [--wheels DIR] [--minutes M]
                                 [--tier default] [--device cpu]

Needs torch, Triton, NumPy, pytest, pytest-benchmark and nvcc, but no network. A piece ends within 9
minutes and writes its JSON after every row. If it has more to measure, the next run continues it;
finished pieces are skipped. Without --piece all pieces run until they are finished. Peers that are
not installed are taken from --wheels, a folder of wheels, or reported as missing. `--device cpu`
tries every piece on tiny tensors. The GPU's settings are not changed.

Exit status: 0 all finished; 1 a row failed (a wrong result, or it could not run); 75 there is more
to measure: run the same command again.
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
LONGEST = 540.0  # seconds of a piece's run
BEGUN_WITHIN = 300.0  # seconds after which a piece starts no further row
AGAIN = 75  # exit status


def environment(wheels: Path | None) -> dict[str, str]:
    """Returns the environment of a piece: on PYTHONPATH this tree, then the unpacked wheels."""
    folders = [ROOT, ROOT / "kernels"]
    if wheels is not None:
        found = sorted(wheels.glob("*.whl"))
        if not found:
            raise ValueError(
                f"gpu-report: expected wheels in {wheels}, got none. Leave --wheels out, or name"
                " their folder."
            )
        folders.append(unpacked(found))
    path = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def unpacked(wheels: list[Path]) -> Path:
    """Returns a folder with the wheels' files, because libraries can't be loaded from a wheel."""
    names = "\n".join(f"{w.name} {w.stat().st_size}" for w in wheels)
    folder = ROOT / "out" / "wheels" / hashlib.sha256(names.encode()).hexdigest()[:16]
    if not (folder / ".done").exists():
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as file:
                file.extractall(folder)
        (folder / ".done").touch()
    return folder


def build(env: dict[str, str]) -> None:
    """Builds the libraries if the tree has none. Raises RuntimeError with the messages."""
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
    """Runs benchmarks.gpu; returns the ended process, or None if it took `longest` seconds."""
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    try:
        return subprocess.run(
            command, cwd=ROOT, env=env, text=True, timeout=longest, capture_output=capture
        )
    except subprocess.TimeoutExpired:
        return None


def state(file: Path) -> tuple[bool, int]:
    """Returns (whether the piece is finished, how many of its rows have been tried)."""
    if not file.exists():
        return False, 0
    found = json.loads(file.read_text(encoding="utf-8"))
    return bool(found["finished"]), sum(
        len(found[key]) for key in ("benchmarks", "failed", "skipped")
    )


def blame(file: Path, reason: str) -> None:
    """Records the row in which a run was killed or crashed as failed; the next run skips it."""
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["now"] is not None:
            found["failed"][found["now"]], found["now"] = reason, None
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run(name: str, file: Path, env: dict[str, str], args: argparse.Namespace, until: float) -> str:
    """Runs a piece once (--piece) or until it is finished; returns "done", "failed" or "more"."""
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
        # a single run was requested, or the run measured nothing
        if not finished and (args.piece or after == before):
            return "more" if done is None or done.returncode == AGAIN else "failed"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--list", action="store_true", help="list the pieces and which of them are finished"
    )
    parser.add_argument(
        "--piece",
        type=int,
        action="append",
        metavar="N",
        help="run this piece, by its number; may be repeated",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="(benchmarks/results/MACHINE; for a dry run out/gpu-report)",
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="a folder of wheels of packages that are not installed",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=1e9,
        metavar="M",
        help="end within M minutes; run again for the rest",
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
