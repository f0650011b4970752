"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled to machine code
without a driver.

The interpreter must be chosen before a kernel is decorated, and a kernel decorated for it cannot be
compiled, so each suite runs in a process of its own; its output is shown when it fails.
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


def run(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_", "FASTDIFF_"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "kernels"), environment.get("PYTHONPATH", "")]
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
    interpret = str(int(suite.startswith("triton_interpreter")))
    arguments = [
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        f"--basetemp={tmp_path / 'tmp'}",
        f"tests/backend/{suite}.py",
    ]
    result = run(
        ["-m", "pytest", *arguments],
        TRITON_INTERPRET=interpret,
        TRITON_CACHE_DIR=str(tmp_path / "cache"),
    )
    print(result.stdout)
    if result.returncode:
        pytest.fail(f"{suite}:\n{result.stdout[-6000:]}\n{result.stderr[-2000:]}", pytrace=False)
    assert " passed" in result.stdout


def test_the_package_imports_without_triton_and_without_fastdiff() -> None:
    block = (
        "import sys; sys.modules['triton'] = sys.modules['fastdiff'] = None; import"
        " fastdiff_kernels.launch as l; "
    )
    result = run(["-c", block + "print(l.launches['randn'], l.check('cpu'))"])
    assert (result.returncode, result.stdout.split()) == (0, ["0", "None"]), result.stderr
