"""The set-up of the make targets: makes one environment and one native build, each only once.

The environment is the first of these that is possible:
- the interpreter that runs this file, unchanged, if it imports torch >= 2.11 (for example on a GPU
  machine; no network is needed);
- .venv, a new environment with the versions of constraints.txt; VENV=1 forces it.
In both cases the package runs from the source tree (scripts/run sets PYTHONPATH) and the native
library is built in place, so there is one way to run. Each step is recorded after it is done
(.venv/fastdiff.json, .setup/stamp.json), so an interrupted set-up starts over and a repeated one
returns at once.

This file uses the standard library only; scripts/setup.sh has checked that Python is >= 3.11.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from native import build_native, built, native_key
from requirements import IMPORT_NAMES, TORCH_NEEDS, constraints, digest, extra, floor, pin, runtime

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".setup"
STAMP = STATE / "stamp.json"
VENV = ROOT / ".venv"
MARK = VENV / "fastdiff.json"  # present if set-up made the environment; says if it is complete
# what each level installs besides the package's own dependencies: extras of pyproject.toml
LEVELS: dict[str, tuple[str, ...]] = {"run": (), "test": ("test",), "docs": ("docs",)}
TARGETS = {"run": "demo", "test": "test", "docs": "docs"}
# packages that the user's own interpreter may lack
BORROWED_OPTIONAL = (
    "diffusers",
    "pytest-benchmark",
    "pytest-xdist",
    "ray[data]",
    "ruff",
    "mypy",
)


def main(level: str) -> None:
    """Sets up the environment and the native library.

    level: "run" (enough to sample), "test" (also what tests, benchmarks and linters need) or "docs"
    (also what the site needs).
    """
    STATE.mkdir(exist_ok=True)
    with locked():
        stamp = read(STAMP)
        base = own_base() or sys.executable
        force = own_base() is not None or os.environ.get("VENV") == "1"
        if not settled(stamp, level, base, force):
            torch, why_not = (None, "VENV=1") if force else find_torch(base)
            if torch is not None:
                check_borrowed(base, torch, level)
                python, extras = base, [*LEVELS[level]]
                if stamp.get("python") == base and stamp.get("pins") == digest(ROOT):
                    extras += stamp.get("extras", ())
            else:
                python = make_own(base, level, why_not)
                extras = read(MARK)["extras"]
            stamp |= {
                "root": str(ROOT),
                "base": base,
                "python": python,
                "own": torch is None,
                "extras": sorted({*extras}),
            }
            stamp["pins"] = digest(ROOT)
        key = native_key(ROOT)
        if stamp.get("native") != key or not built(ROOT):
            stamp.pop("native", None)
            build_native(ROOT, stamp["python"])
            stamp["native"] = key
        write(STATE / "python", stamp["python"] + "\n")
        write(STAMP, json.dumps(stamp, indent=2) + "\n")


def settled(stamp: dict[str, Any], level: str, base: str, force: bool) -> bool:
    """Returns whether the recorded environment is complete and fits this call."""
    torch = os.environ.get("TORCH")
    return (
        stamp.get("root") == str(ROOT)
        and stamp["base"] == base
        and stamp["pins"] == digest(ROOT)
        and {*LEVELS[level]} <= {*stamp.get("extras", ())}
        and Path(stamp["python"]).exists()
        and (not stamp["own"] or (whole(read(MARK)) and torch in (None, "", read(MARK)["torch"])))
        and (stamp["own"] or not force)
    )


def find_torch(python: str) -> tuple[str | None, str]:
    """Returns (the version of a torch that imports and is new enough, or None; the reason)."""
    found = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True
    )
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no message"])[-1]
        missing = "No module named 'torch'" in last
        return None, (
            f"{python} has no torch" if missing else f"torch in {python} does not import ({last})"
        )
    version = found.stdout.strip().splitlines()[-1]
    least = floor(ROOT, "torch")
    if tuple(int("".join(filter(str.isdigit, p)) or 0) for p in version.split(".")[:2]) < least:
        return None, f"torch {version} in {python} is older than {'.'.join(map(str, least))}"
    return version, ""


def check_borrowed(python: str, torch: str, level: str) -> None:
    """Reports what the user's interpreter lacks; nothing is installed into it."""
    wanted = [*runtime(ROOT), *(name for each in LEVELS[level] for name in extra(ROOT, each))]
    probe = (
        "import importlib.util, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n)"
        " is None])"
    )
    modules = {IMPORT_NAMES.get(name, name): name for name in wanted}
    answer = subprocess.run(
        [python, "-c", probe, *modules], capture_output=True, text=True, check=True
    ).stdout.split()
    missing = [modules[m] for m in answer]
    needed = [m for m in missing if m not in BORROWED_OPTIONAL]
    target = TARGETS[level]
    if needed:
        fail(
            f"{python} has torch {torch} but lacks {', '.join(needed)}; install them there "
            f"({shlex.quote(python)} -m pip install {' '.join(needed)}) "
            f"or let make create a new environment (make VENV=1 {target})."
        )
    say(
        f"using {python} with its torch {torch} (make VENV=1 {target} creates a new environment"
        " instead)."
    )
    if missing:
        say(f"it lacks {', '.join(missing)}: steps that need them are skipped.")


def make_own(base: str, level: str, why: str) -> str:
    """Makes or completes .venv and returns its Python."""
    mark = read(MARK)
    if VENV.exists() and not MARK.exists():
        fail(
            ".venv was not made by this set-up; move it away, or use it with make"
            " PYTHON=.venv/bin/python."
        )
    python = str(VENV / "bin" / "python")
    keep = whole(mark) and runs(python) and (mark["base"] == base or not os.environ.get("PYTHON"))
    torch = os.environ.get("TORCH") or (mark["torch"] if keep else pin(ROOT, "torch"))
    if not keep:
        installer = pip_source(base)
        announce(torch, level, why)
        shutil.rmtree(VENV, ignore_errors=True)
        VENV.mkdir()
    # until the end the environment is incomplete: an interruption starts it over
    write(MARK, json.dumps({"whole": False}))
    if not keep:
        step(
            [base, "-m", "venv", *(["--without-pip"] if installer == "pip" else []), str(VENV)],
            "make .venv",
        )
        if installer == "pip":
            step(
                [base, "-m", "pip", "--python", python, *PIP[2:], "-q", "pip"], "put pip into .venv"
            )
    pins = STATE / "constraints.txt"
    write(pins, constraints(ROOT))
    # what other targets installed stays, in the versions of now
    extras = sorted({*(mark.get("extras", ()) if keep else ()), *LEVELS[level]})
    added = [name for each in extras for name in extra(ROOT, each)]
    names = list(dict.fromkeys([*runtime(ROOT), *TORCH_NEEDS, *added]))
    # torch's own needs come first and pinned, so that TORCH may name an index that holds torch
    # alone
    step(
        [python, *PIP, "-q", "-c", str(pins), *names, "wheel", "ninja"],
        f"install {', '.join(names)}",
    )
    step([python, *PIP, *shlex.split(torch)], f"install {torch}")
    found, why_not = find_torch(python)
    if found is None:
        fail(
            f"TORCH='{torch}' did not install a torch that works: {why_not}; choose another with"
            " TORCH=<pip arguments>."
        )
    if "test" in extras and platform.system() == "Linux" and not runs(python, "import triton"):
        # the tests run the GPU kernels in Triton's interpreter; a CPU build of torch brings no
        # triton
        step([python, *PIP, "-q", "--no-deps", pin(ROOT, "triton")], "install triton")
    if "test" in extras and not runs(
        python, "import importlib.metadata as m; m.version('k-diffusion')"
    ):
        # only its samplers are used, and its dependencies for training are not needed
        step(
            [python, *PIP, "-q", "--no-deps", *(pin(ROOT, name) for name in K_DIFFUSION)],
            "install k-diffusion",
        )
    write(
        MARK,
        json.dumps(
            {"whole": True, "root": str(ROOT), "base": base, "torch": torch, "extras": extras}
        ),
    )
    return python


K_DIFFUSION = ("k-diffusion", "torchsde", "torchdiffeq", "trampoline")
PIP = [
    "-m",
    "pip",
    "install",
    "--disable-pip-version-check",
    "--no-input",
    "--no-warn-script-location",
]


def pip_source(base: str) -> str:
    """Returns how .venv gets pip: "ensurepip", or "pip" of the base if ensurepip is missing."""
    if runs(base, "import venv, ensurepip"):
        return "ensurepip"
    if runs(
        base,
        "import venv, pip; sys.exit(tuple(map(int, pip.__version__.split('.')[:2])) < (22, 3))",
    ):
        return "pip"
    version = platform.python_version().rpartition(".")[0]
    fail(
        f"{base} can't make virtual environments; install python3-venv (Debian, Ubuntu: apt install"
        f" python{version}-venv), or choose another interpreter with make PYTHON=<path>."
    )


def announce(torch: str, level: str, why: str) -> None:
    """Says what is about to be downloaded, its size, and how to download less."""
    target = TARGETS[level]
    others = {"run": "0.05 GB of others", "test": "0.5 GB of others", "docs": "0.1 GB of others"}
    say(
        f"{why}: a new environment is made in .venv; to download: {torch} and about"
        f" {others[level]}."
    )
    if platform.system() == "Linux" and not os.environ.get("TORCH"):
        say(
            "PyPI's torch for Linux is the CUDA build, about 2.5 GB to download and 6 GB on disk;"
            " without a GPU 0.2 GB "
            f'are enough: stop (Ctrl-C) and run make {target} TORCH="<pip arguments that name a CPU'
            ' build of torch>", '
            'which PyTorch\'s "Get started" page gives (what follows pip install).'
        )


def whole(mark: dict[str, Any]) -> bool:
    return mark.get("whole") is True and mark.get("root") == str(ROOT)


def own_base() -> str | None:
    """Returns the base interpreter of .venv if this file runs in it (it is activated), or None."""
    return (
        getattr(sys, "_base_executable", None)
        if Path(sys.prefix) == VENV and MARK.exists()
        else None
    )


def runs(python: str, code: str = "") -> bool:
    try:
        return (
            subprocess.run([python, "-c", f"import sys; {code}"], capture_output=True).returncode
            == 0
        )
    except OSError:
        return False


def step(command: list[str], what: str) -> None:
    say(what)
    env = {k: v for k, v in os.environ.items() if k not in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX")}
    if not os.access(os.environ.get("HOME", "/nonexistent"), os.W_OK):
        env["PIP_NO_CACHE_DIR"] = "1"  # the cache is in HOME
    if subprocess.run(command, cwd=ROOT, env=env).returncode:
        fail(
            f"could not {what} (see the reason above); fix the network, proxy or disk, then run"
            " make again."
        )


@contextmanager
def locked() -> Iterator[None]:
    """Allows one set-up at a time (`make -j demo test`)."""
    with open(STATE / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another set-up of this tree.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def say(text: str) -> None:
    print(f"fastdiff set-up: {text}", flush=True)


def fail(text: str) -> NoReturn:
    sys.exit(f"fastdiff set-up: {text}")


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a path with an umlaut under LC_ALL=C
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        fail("interrupted; make continues from the last complete step.")
