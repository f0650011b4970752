"""The op tests, a short fuzz campaign of the ops, and the tests of accelerated networks' kernels,
on a C++ library with address and behaviour sanitizers.

The library is built for this test. The process that loads it preloads the runtimes of
AddressSanitizer and UndefinedBehaviorSanitizer; their first report ends it, which fails the test.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trees import ROOT, copy_tree, run

FLAGS = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
# tests of the C++ backend, without the slow ones of torch's compiler, of numerical gradients, and
# of operands that are refused in processes of their own
CHOICE = "cpu and not compil and not opcheck and not fullgraph and not gradcheck"
CHOICE += " and not wrong_operand"
OURS = [f"tests/acceleration/test_{name}.py" for name in ("winograd", "contents")]
OURS += ["tests/fuzz/test_fuzz.py"]  # whose workers' deaths are findings
TESTS = ["tests/ops", *OURS, "-k", CHOICE]


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="preloading the runtimes is for Linux"
)
def test_the_op_tests_under_sanitizers(tmp_path: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("c++") or "")
    if not compiler:
        pytest.skip("no C++ compiler")
    runtimes = []
    for name in ("libasan.so", "libubsan.so"):
        named = [*compiler, f"-print-file-name={name}"]
        runtimes.append(
            Path(subprocess.run(named, capture_output=True, text=True).stdout.strip()).resolve()
        )
    if not all(path.is_file() for path in runtimes):
        pytest.skip("the compiler brings no sanitizer runtimes")
    tree = copy_tree(tmp_path / "tree")
    built = run(
        [sys.executable, "setup.py", "-q", "build_native"],
        tree,
        CXXFLAGS=FLAGS,
        FASTDIFF_BUILD_CPU="1",
        FASTDIFF_BUILD_CUDA="0",
    )
    assert built.returncode == 0, built.stdout
    library = next((tree / "fastdiff" / "lib").glob("libfastdiff_cpu*"))
    answer = run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            f"--basetemp={tmp_path / 't'}",
            *TESTS,
        ],
        ROOT,
        LD_PRELOAD=" ".join(map(str, runtimes)),
        ASAN_OPTIONS="detect_leaks=0:halt_on_error=1",
        UBSAN_OPTIONS="print_stacktrace=1",
        FASTDIFF_LIB=str(library),
        FASTDIFF_REQUIRE="cpu",
        PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "tests"))),
    )
    assert answer.returncode == 0, answer.stdout[-6000:]
    assert " passed" in answer.stdout and "runtime error" not in answer.stdout
