"""The native build: compiles csrc/ into fastdiff/lib with a C++ compiler, without torch or Python
headers.

The metadata is in pyproject.toml. This file defines the build command and the wheel's tag:
py3-none-<platform>, because the library is loaded with ctypes and works with every Python and
torch. `python setup.py build_native` builds in place.

FASTDIFF_BUILD_CPU and FASTDIFF_BUILD_CUDA are auto, 0 or 1. With auto, a library that can't be
built is left out, and the reason is written to fastdiff/lib/build_info.json, which `fastdiff
doctor` shows; with 1 that is an error.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
SOURCES = Path("csrc/cpu")
# compiled once; every other source of csrc/cpu is a kernel and is compiled once per CPU level
HOST = ("api", "checks", "contents_api", "winograd_api")
KERNELS = sorted({path.stem for path in (ROOT / SOURCES).glob("*.cpp")} - set(HOST))
LIBRARY, CUDA_LIBRARY = "libfastdiff_cpu.so", "libfastdiff_cuda.so"

# Contraction is off for the same bits on every processor; so -ffast-math and -march=native are out.
FLAGS = (
    "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -fno-math-errno"
    " -fno-trapping-math -ffp-contract=off -fopenmp-simd -Icsrc/include -Icsrc/cpu"
).split()
# Scheduling before register allocation interleaves the independent chains of the noise: 10 % faster
# with gcc. clang does it by default.
SCHEDULE = "-fschedule-insns -fsched-pressure".split()
# From the oldest GPU with bfloat16 to the newest, and PTX for later ones.
CUDA_ARCHS = ("80", "90", "100")
CUDA_FLAGS = (
    # a kernel that calls a function of the host compiles with a warning and does not run
    "-std=c++17 -O3 -fmad=false -Werror=cross-execution-space-call"
    " -Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off -DFD_LEVEL=cuda -Icsrc/include"
).split()
X86_LEVELS = {
    "avx2": "-mavx2 -mf16c".split(),
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mf16c -mprefer-vector-width=512".split(),
}
# Kernels of fastdiff.acceleration only, which promises a tolerance instead of bits: multiply-adds
# are fused.
FUSED = {"winograd": {"avx2": ["-mfma"]}}


class NotBuilt(Exception):
    """The reason why a library is left out, in one sentence."""


def choice(name: str) -> str:
    value = os.environ.get(name) or "auto"
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"fastdiff set-up: expected {name} to be auto, 0 or 1, got {value!r}.")
    return value


def find_compiler() -> list[str]:
    """Returns the command of the C++ compiler: $CXX, which may have arguments, or c++."""
    command = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(command[0]) is None:
        raise NotBuilt(
            f"no C++ compiler: {command[0]} is not on PATH; install g++ or clang, or set CXX"
        )
    return command


def compiles(
    compiler: list[str], flags: list[str], code: str = "int main() { return 0; }\n"
) -> bool:
    """Returns whether a small program compiles and links with these flags."""
    with TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(code, encoding="ascii")
        command = [*compiler, *flags, str(source), "-o", str(Path(folder, "probe"))]
        return subprocess.run(command, capture_output=True).returncode == 0


def wants_library() -> bool:
    """Returns whether this run will try to build; then the wheel's tag names the platform."""
    try:
        find_compiler()
    except NotBuilt:
        return choice("FASTDIFF_BUILD_CPU") == "1"
    return choice("FASTDIFF_BUILD_CPU") != "0"


def build_cpu(objects: Path, library: Path) -> dict[str, Any]:
    """Compiles the library; returns its entry of build_info.json. Raises NotBuilt."""
    compiler = find_compiler()
    if not compiles(compiler, ["-std=c++17"]):
        raise NotBuilt(f"{shlex.join(compiler)} does not compile and link a C++17 program")
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    schedule = SCHEDULE if compiles(compiler, ["-Werror", *SCHEDULE]) else []
    openmp = (
        ["-fopenmp"]
        if compiles(compiler, ["-fopenmp"], "#include <omp.h>\nint main() { return 0; }\n")
        else []
    )
    x86 = compiles(compiler, [], "#ifndef __x86_64__\n#error\n#endif\nint main() { return 0; }\n")
    levels: dict[str, list[str]] = {"baseline": []} | {
        k: v for k, v in X86_LEVELS.items() if x86 and compiles(compiler, v)
    }
    have = [f"-DFD_HAVE_{level.upper()}" for level in levels if level != "baseline"]
    jobs = {objects / f"{name}.o": (SOURCES / f"{name}.cpp", have) for name in HOST}
    for level, own in levels.items():
        for op in KERNELS:
            special = [*own, *FUSED.get(op, {}).get(level, []), f"-DFD_LEVEL={level}"]
            jobs[objects / f"{op}.{level}.o"] = SOURCES / f"{op}.cpp", special

    flags = [*FLAGS, *schedule, *openmp, *extra]
    objects.mkdir(parents=True, exist_ok=True)
    run_all(
        {
            to: [*compiler, *flags, *own, "-c", str(source), "-o", str(to)]
            for to, (source, own) in jobs.items()
        },
        objects,
    )
    linked = objects / LIBRARY
    as_needed = ["-Wl,--as-needed"] if sys.platform.startswith("linux") else []
    run([*compiler, *as_needed, "-shared", *openmp, *extra, *map(str, jobs), "-o", str(linked)])
    shutil.copyfile(linked, library)
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, text=True
    ).stdout.splitlines()
    return {
        "built": True,
        "reason": "",
        "compiler": version[0] if version else shlex.join(compiler),
        "flags": shlex.join(flags),
        "levels": {level: shlex.join(own) for level, own in levels.items()},
        "openmp": bool(openmp),
    }


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        raise NotBuilt(f"{command[0]} failed; its messages were printed while building")


def run_all(commands: dict[Path, list[str]], folder: Path) -> None:
    """Runs the compile commands {output: command} on all cores; ninja, if found, skips what is
    current.
    """
    ninja = shutil.which("ninja")
    if ninja is None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, commands.values()))
        return

    def path(value: object) -> str:
        return str(value).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    rules = [
        f"builddir = {path(folder)}\nrule cxx\n command = $line -MMD -MF $out.d\n depfile ="
        " $out.d\n deps = gcc\n"
    ]
    for to, command in commands.items():
        line = shlex.join(command).replace("$", "$$")
        rules.append(f"build {path(to)}: cxx {path(command[-3])}\n line = {line}\n")
    script = folder / "build.ninja"
    script.write_text("\n".join(rules), encoding="utf-8")
    run([ninja, "-f", str(script)])


def find_nvcc() -> str:
    """Returns $NVCC, or the nvcc of CUDA_HOME, of PATH or of /usr/local/cuda."""
    named, home = os.environ.get("NVCC"), os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        if found := shutil.which(named):
            return found
        raise NotBuilt(f"NVCC={named} is not a program")
    for path in (*([f"{home}/bin"] if home else []), None, "/usr/local/cuda/bin"):
        if found := shutil.which("nvcc", path=path):
            return found
    raise NotBuilt(
        "no nvcc, so GPUs run the triton backend; install the CUDA toolkit or set CUDA_HOME"
    )


def build_cuda(objects: Path, library: Path) -> dict[str, Any]:
    """Compiles the CUDA library; returns its entry of build_info.json. Raises NotBuilt."""
    nvcc = find_nvcc()
    listed = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True
    ).stdout.split()
    archs = [arch for arch in CUDA_ARCHS if f"compute_{arch}" in listed]
    if not archs:
        raise NotBuilt(
            f"{nvcc} compiles for none of the GPUs {', '.join(f'sm_{arch}' for arch in CUDA_ARCHS)}"
        )
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs[:-1]]
    code.append(f"-gencode=arch=compute_{archs[-1]},code=[sm_{archs[-1]},compute_{archs[-1]}]")
    objects.mkdir(parents=True, exist_ok=True)
    jobs = {
        objects / f"{source.stem}.o": source
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    }
    commands = {
        to: [nvcc, *CUDA_FLAGS, *code, "-c", str(source), "-o", str(to)]
        for to, source in jobs.items()
    }
    run_all(commands, objects)
    linked = objects / library.name
    run([nvcc, "-shared", "-cudart", "static", *code, *map(str, jobs), "-o", str(linked)])
    shutil.copyfile(linked, library)
    version = (
        subprocess.run([nvcc, "--version"], capture_output=True, text=True)
        .stdout.strip()
        .splitlines()
    )
    flags = shlex.join([*CUDA_FLAGS, *code])
    return {
        "built": True,
        "reason": "",
        "compiler": version[-1] if version else nvcc,
        "flags": flags,
        "archs": archs,
    }


class BuildNative(Command):
    """The step of `build` that compiles: into the wheel's tree, or for editable installs and direct
    calls into the source tree.
    """

    description = "compile csrc/ into fastdiff/lib"
    user_options: list[tuple[str, str | None, str]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.build_temp: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options(
            "build", ("build_lib", "build_lib"), ("build_temp", "build_temp")
        )
        if self.editable_mode or "build_native" in self.distribution.commands:
            self.build_lib = str(ROOT)

    def run(self) -> None:
        folder = Path(str(self.build_lib), "fastdiff", "lib")
        # package data may have copied a library of an earlier build, which this one may leave out
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        temporary = Path(str(self.build_temp), "native").resolve()
        info = {
            "cpu": self._attempt("CPU", lambda: build_cpu(temporary / "cpu", folder / LIBRARY)),
            "cuda": self._attempt(
                "CUDA", lambda: build_cuda(temporary / "cuda", folder / CUDA_LIBRARY)
            ),
        }
        (folder / "build_info.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def _attempt(name: str, make: Any) -> dict[str, Any]:
        wanted = choice(f"FASTDIFF_BUILD_{name}")
        if wanted == "0":
            return {"built": False, "reason": f"FASTDIFF_BUILD_{name}=0 when it was installed"}
        try:
            return make()
        except NotBuilt as reason:
            if wanted == "1":
                raise SystemExit(
                    f"fastdiff set-up: FASTDIFF_BUILD_{name}=1, but {reason}."
                ) from None
            if name == "CPU":
                print(
                    "fastdiff set-up: continuing without the C++ library, so the slower torch"
                    f" backend runs: {reason}."
                )
            return {"built": False, "reason": str(reason)}

    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").rglob("*")) if p.is_file()]

    def get_outputs(self) -> list[str]:
        folder = Path(str(self.build_lib), "fastdiff", "lib")
        return [
            str(folder / name)
            for name in (LIBRARY, CUDA_LIBRARY, "build_info.json")
            if (folder / name).exists()
        ]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


class WithLibrary(Distribution):
    def has_ext_modules(self) -> bool:
        return wants_library()


setup(
    distclass=WithLibrary,
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel},
)
