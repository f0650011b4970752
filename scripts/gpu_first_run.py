#!/usr/bin/env python3
"""Tests and measures on a GPU that is at hand for minutes; scripts/gpu_first_run.sh starts it.

    sh scripts/gpu_first_run.sh --out DIR [--minutes 9.5] [--only a --only e …] [--wheels DIR]
                                [--patience 1] [--device cpu]

Stages run one after the other, and a stage is killed when its seconds are over. Each leaves a JSON
file in DIR, rewritten after every test and every row; run.log has all output. `--device cpu` tries
every stage without a GPU on tiny sizes, and each says what it left out.

Needs torch, Triton, NumPy, pytest and hypothesis, but no network; pytest-xdist to be in time. The
libraries of fastdiff/lib are used if they are there, else built first. Peers that are not installed
are taken from --wheels, a folder of wheels, or reported as missing. The GPU's settings are not
changed.

Exit status: 0 if every stage ended in time without a failure, 1 if not, 2 if nothing could run.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu_report import AGAIN, build, environment  # noqa: E402

from benchmarks.gpu.checkpoint import Checkpoint  # noqa: E402
from benchmarks.gpu.first_run.stages import STAGES, Stage  # noqa: E402

SHORTEST = 5.0  # seconds: with less left no stage is started
GRACE = 3.0  # seconds between a stage's end of time and its kill
KILLED = "killed"
SHOWN = 12  # failures of a stage that are printed


class Runner:
    """Runs stages until a point in time, with their output in a log."""

    def __init__(self, out: Path, device: str, env: dict[str, str], log: TextIO):
        self.out, self.device, self.env, self.log = out, device, env, log

    def command(self, stage: Stage, command: tuple[str, ...], seconds: float) -> int | str:
        """Runs one command of a stage; returns its exit status, or `killed` after `seconds`."""
        module, *options = command
        within = max(1.0, seconds - min(15.0, 0.2 * seconds))  # time for the last row
        options += ["--file", str(self.file(stage)), "--device", self.device]
        print(f"\n== {stage.name}: {module} {' '.join(options)}", file=self.log, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", module, *options, "--within", f"{within:.0f}"],
            cwd=ROOT,
            env=self.env,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a group, so that its processes end with it
        )
        try:
            return process.wait(timeout=max(0.1, seconds))
        except subprocess.TimeoutExpired:
            return KILLED
        finally:
            if end(process):
                time.sleep(1.0)  # the GPU's memory is free a little after its process

    def file(self, stage: Stage) -> Path:
        return self.out / f"{stage.name}.json"

    def stage(self, stage: Stage, seconds: float) -> Checkpoint:
        """Runs a stage, and returns its file with how it ended."""
        file, begin = self.file(stage), time.monotonic()
        file.unlink(missing_ok=True)
        until, ended = begin + seconds, "finished"
        for command in stage.commands:
            before = -1
            while True:
                status = self.command(stage, command, until - time.monotonic())
                found = Checkpoint(file, stage.name, {})
                if status == KILLED:
                    ended = f"killed after {seconds:.0f} s"
                elif status not in (0, 1, AGAIN):
                    reason = f"the process ended with status {status}"
                    found.fail(found.now or command[0], reason)
                tried = len(found.rows) + len(found.failed) + len(found.skipped)
                left = until - time.monotonic()
                if status in (0, 1, KILLED) or not stage.again or tried == before:
                    break
                if left < SHORTEST:
                    ended = f"rows are left after {seconds:.0f} s"
                    break
                before = tried
            if status == KILLED:
                break
        found.stage |= {
            "about": stage.about,
            "limit_s": round(seconds, 1),
            "seconds": round(time.monotonic() - begin, 1),
            "ended": ended,
        }
        found.finished = ended == "finished"
        found.write()
        return found


def end(process: subprocess.Popen[bytes]) -> bool:
    """Ends a process and all that it started; returns whether any of them was left."""
    left = False
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        left = True
        try:
            process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
    return left


def summary(found: Checkpoint) -> list[str]:
    """Returns the lines that are printed of a stage."""
    stage = found.stage
    parts = [f"{len(found.rows)} done", f"{len(found.failed)} failed"]
    parts += [f"{len(found.skipped)} skipped"] if found.skipped else []
    took = f"{stage['seconds']:.0f} s of {stage['limit_s']:.0f}"
    lines = [f"{found.piece:12} {', '.join(parts)}, {took}, {stage['ended']}"]
    if found.now and not found.finished:
        lines.append(f"  at the end: {found.now[:200]}")
    lines += [f"  left out: {what} ({why})" for what, why in stage.get("left_out", {}).items()]
    for name, reason in list(found.failed.items())[:SHOWN]:
        lines.append(f"  FAILED {name}: {' '.join(reason.split())[:200]}")
    if len(found.failed) > SHOWN:
        lines.append(f"  … and {len(found.failed) - SHOWN} more")
    for name, row in found.rows.items():
        if "us" in row and "per" in row:
            share = f", {row['percent_of_copy']:.0f} % of copy" if row["percent_of_copy"] else ""
            host = f", host {row['host_us'][1]:.1f}" if row["host_us"] else ""
            lines.append(f"  {name}: {row['us'][1]:.1f} us/{row['per']}{share}{host}")
    return lines


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=9.5, help="of all stages together (9.5)")
    parser.add_argument(
        "--only",
        action="append",
        choices=[stage.name[0] for stage in STAGES],
        help="run this stage; may be repeated",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=1.0,
        help="multiplies the stages' seconds, for a machine with fewer than 16 cores",
    )
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="of packages not installed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    return parser.parse_args()


def main() -> int:
    args = parsed()
    try:
        env = environment(args.wheels)
        if args.device == "cuda":
            build(env)
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    until = time.monotonic() + 60 * args.minutes
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    good = True
    with open(out / "run.log", "a", encoding="utf-8") as log:
        runner = Runner(out, args.device, env | {"PYTHONUNBUFFERED": "1"}, log)
        for stage in STAGES:
            if args.only and stage.name[0] not in args.only:
                continue
            left = until - time.monotonic() - GRACE
            seconds = left if stage.seconds is None else min(left, args.patience * stage.seconds)
            if seconds < SHORTEST:
                print(f"{stage.name:12} not started: no time is left", flush=True)
                good = False
                continue
            found = runner.stage(stage, seconds)
            print("\n".join(summary(found)), flush=True)
            good = good and found.finished and not found.failed
            if stage is STAGES[0] and unusable(found):
                print(
                    "gpu-first-run: expected a GPU that torch sees, got none, so no other stage"
                    " can run. Pass --device cpu to try the stages without one.",
                    file=sys.stderr,
                )
                return 2
    return 0 if good else 1


def unusable(found: Checkpoint) -> bool:
    """Returns whether stage a says that torch has no GPU."""
    return "torch's GPU" in found.failed


if __name__ == "__main__":
    sys.exit(main())
