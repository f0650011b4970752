"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled without a driver.

The variable that chooses the interpreter is read when a kernel is decorated, and a kernel decorated
for the interpreter cannot be compiled. So each suite runs in a process of its own. A suite of the
interpreter writes down its launches. Those in which a number became the constant 1 are then
compiled; `make gpu-compile` compiles all variants.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SUITES = [
    str(path.relative_to(HERE).with_suffix(""))
    for folder in ("triton_interpreter", "triton_compile")
    for path in sorted((HERE / folder).glob("*.py"))
]

# suites that run the functions of the kernels in kernels of their own
OF_FUNCTIONS = ("triton_interpreter/bins",)


def run_python(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in this tree without the outer settings of Triton, pytest and fastdiff."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_", "FASTDIFF_"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests"), environment.get("PYTHONPATH", "")]
    )
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("suite", SUITES)
def test_suite(suite: str, tmp_path: Path) -> None:
    """A file of tests passes; its output is shown when it does not."""
    interpreted = suite.startswith("triton_interpreter")
    record = tmp_path / "launches.jsonl"
    settings = {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    arguments = [
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "variants",
        f"--basetemp={tmp_path / 'tmp'}",
        f"tests/backend/{suite}.py",
    ]
    if interpreted:
        record.touch()
        settings["FASTDIFF_RECORD"] = str(record)
    result = run_python(
        ["-m", "pytest", *arguments], **settings, TRITON_INTERPRET=str(int(interpreted))
    )
    print(result.stdout)
    if result.returncode:
        pytest.fail(f"{suite}:\n{result.stdout[-6000:]}\n{result.stderr[-2000:]}", pytrace=False)
    assert " passed" in result.stdout
    if interpreted:
        if suite in OF_FUNCTIONS:
            return  # it launches no kernel of the package
        assert record.stat().st_size > 0
        result = run_python(["tests/backend/gpu_compile.py", "--sample", str(record)], **settings)
        print(result.stdout)
        assert result.returncode == 0, result.stdout + result.stderr[-2000:]


def test_the_package_imports_without_triton_and_without_fastdiff() -> None:
    program = (
        "import sys; sys.modules['triton'] = sys.modules['fastdiff'] = None;"
        " import fastdiff_kernels.launch as l; print(l.launches['randn'], l.check('cpu'))"
    )
    result = run_python(["-c", program])
    assert (result.returncode, result.stdout.split()) == (0, ["0", "None"]), result.stderr
