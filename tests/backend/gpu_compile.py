"""`make gpu-compile`: compiles every variant of the Triton kernels that the tests launch, for GPUs.

    sh scripts/run tests/backend/gpu_compile.py [--targets 80 90 100] [--jobs 2] [--every 1]

It needs no GPU. The op tests run once and write down their launches (tests/variants.py). Then each
distinct variant is compiled for each target, on all cores. What is done stays in out/gpu-compile,
so a run that was stopped continues; a change of the kernels, the ops or their tests starts it anew.
The result is a JSON file; the exit status is 1 if a variant does not compile or a test fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "kernels"), str(ROOT)]

import triton  # noqa: E402
import variants  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

DECIDING = ("kernels", "fastdiff/ops", "tests/ops")


def fingerprint(folders: Iterable[str]) -> str:
    """Returns a digest of the Python files in these folders, and of Triton's version."""
    digest = hashlib.sha256(triton.__version__.encode())
    for folder in folders:
        for path in sorted((ROOT / folder).glob("**/*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def suites() -> list[Path]:
    """Returns the test files whose launches are recorded."""
    return sorted((ROOT / "tests/ops").glob("test_*.py"))


def record(suite: Path, to: Path) -> int:
    """Runs a suite whose launches are written to a file; returns pytest's exit status."""
    unfinished = to.with_suffix(".part")
    unfinished.unlink(missing_ok=True)
    unfinished.touch()
    folders = (ROOT, ROOT / "kernels", ROOT / "tests")
    settings = {"FASTDIFF_RECORD": str(unfinished), "TRITON_INTERPRET": "1"}
    settings["FASTDIFF_RECORD_UNBOUND"] = "1"  # the kernels are the same ones
    settings["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "variants", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(suite)],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    print(f"{suite.relative_to(ROOT)}: {done.stdout.strip().splitlines()[-1:]}", flush=True)
    if done.returncode == 0:
        unfinished.rename(to)
    else:
        print(done.stdout[-4000:] + done.stderr[-2000:], flush=True)
    return done.returncode


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", type=int, nargs="+", default=[90, 80, 100])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--every", type=int, default=1, help="compile every n-th variant")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "gpu-compile")
    parser.add_argument("--out", type=Path, default=Path("gpu-compile.json"))
    parser.add_argument("--sample", type=Path, help="only compile a sample of this file's launches")
    arguments = parser.parse_args(given)
    if arguments.sample:
        return sample(arguments.sample)

    folder = arguments.folder / fingerprint(DECIDING)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TRITON_CACHE_DIR", str(arguments.folder / "cache"))
    files, broken = [], []
    for suite in suites():
        file = folder / f"{suite.parent.name}-{suite.stem}.jsonl"
        if not file.exists() and record(suite, file):
            broken.append(str(suite.relative_to(ROOT)))
        elif file.exists():
            files.append(file)

    report: dict[str, Any] = {"triton": triton.__version__, "failed suites": broken, "targets": {}}
    for arch in arguments.targets:
        target = GPUTarget("cuda", arch, 32)
        report["targets"][f"sm_{arch}"] = compiled_for(target, files, folder, arguments)
    failed = sum(len(row["failed"]) for row in report["targets"].values())
    report["ok"] = not broken and not failed
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.out}: {failed} variants and {len(broken)} suites failed")
    return 0 if report["ok"] else 1


def sample(file: Path) -> int:
    """Compiles those of a file's launches in which each argument becomes the constant 1."""
    target = GPUTarget("cuda", 90, 32)
    launches = variants.distinct([file], target).values()
    chosen = variants.with_every_one(launches, target)
    failed = 0
    for index, result in variants.compile_all([(launch, target) for launch in chosen], 1):
        if result.error:
            failed += 1
            print(f"{chosen[index]}: {result.error}")
    print(f"{len(chosen)} of {len(launches)} variants compiled, {failed} failed")
    return min(failed, 1)


def compiled_for(
    target: GPUTarget, files: list[Path], folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Compiles the recorded variants for a GPU; returns counts and failures."""
    found = variants.distinct(files, target)
    chosen = dict(list(found.items())[:: arguments.every])
    results = folder / f"sm_{target.arch}.jsonl"
    known: dict[str, Any] = {}
    if results.exists():
        for line in results.read_text(encoding="utf-8").splitlines():
            known |= json.loads(line)
    missing = [key for key in chosen if key not in known]
    tasks = [(chosen[key], target) for key in missing]
    with results.open("a", encoding="utf-8") as file:
        for done, (index, result) in enumerate(variants.compile_all(tasks, arguments.jobs), 1):
            row = {missing[index]: result._asdict()}
            known |= row
            file.write(json.dumps(row) + "\n")
            file.flush()
            if result.error or done % 50 == 0:
                print(f"sm_{target.arch}: {done} of {len(tasks)} {result.error}", flush=True)
    failed = [
        {"kernel": chosen[key]["kernel"], "error": known[key]["error"], "launch": chosen[key]}
        for key in chosen
        if known[key]["error"]
    ]
    kernels = Counter(launch["kernel"].rpartition(".")[2] for launch in chosen.values())
    return {
        "recorded": len(found),
        "compiled": len(chosen) - len(failed),
        "kernels": dict(sorted(kernels.items())),
        "with a stack": sorted(
            {chosen[key]["kernel"] for key in chosen if known[key]["stack"] > 0}
        ),
        "most registers": max((known[key]["registers"] for key in chosen), default=0),
        "seconds": round(sum(known[key]["seconds"] for key in chosen), 1),
        "failed": failed,
    }


if __name__ == "__main__":
    sys.exit(main())
