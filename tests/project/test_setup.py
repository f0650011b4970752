"""Tests set-up where something is missing: it works, or ends with a sentence that names the fix.

Such a machine is simulated by a copy of the tree, scripts on PATH in place of programs, a
sitecustomize that hides packages, and a torch that is only a version number, because the real one
takes seconds to import. The first test uses the real one.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trees import ROOT, copy_tree, run

pytestmark = [
    pytest.mark.skipif(shutil.which("make") is None, reason="no make"),
    pytest.mark.xdist_group("setup"),  # they share what they build
]

NO_BUILD = {
    "FASTDIFF_BUILD_CPU": "0",
    "FASTDIFF_BUILD_CUDA": "0",
}  # the native build has its own tests
NO_NETWORK = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": None, "PIP_CONFIG_FILE": "/dev/null"}
HIDE = """
import importlib.machinery, os, sys
hidden = os.environ.get("HIDDEN", "").split(",")
class Hide:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}")
if hidden != [""]:
    sys.meta_path.insert(0, Hide)
    import importlib.util
    plain = importlib.util.find_spec
    def find(name, package=None):
        return None if name in hidden else plain(name, package)
    importlib.util.find_spec = find
"""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of a tarball: no .git, nothing built, and a path with a space and a letter
    outside ASCII.
    """
    return copy_tree(tmp_path_factory.mktemp("set-up") / "fd clone ü")


@pytest.fixture
def tree(pristine: Path) -> Path:
    for made in (".setup", ".venv", "fastdiff/lib"):
        shutil.rmtree(pristine / made, ignore_errors=True)
    return pristine


def make(
    tree: Path,
    target: str,
    *,
    hidden: str = "",
    torch: str | None = "2.11.0",
    **settings: str | None,
) -> subprocess.CompletedProcess[str]:
    shim = tree.parent / "shim"
    shutil.rmtree(shim, ignore_errors=True)
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(HIDE)
    if torch:
        (shim / "torch.py").write_text(f"__version__ = {torch!r}\n")
    defaults = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(shim),
        "HIDDEN": hidden,
        "HOME": str(tree.parent),
    }
    return run(["make", target], tree, **{**defaults, **NO_BUILD, **NO_NETWORK, **settings})


def sentence(answer: subprocess.CompletedProcess[str]) -> str:
    """Returns the last line of set-up; make adds a line after it."""
    return [line for line in answer.stdout.splitlines() if line.startswith("fastdiff set-up: ")][-1]


def test_borrowed_interpreter_is_used_as_it_is(tree: Path) -> None:
    """All at once: no network, no .git, a space and ü in the path, LC_ALL=C, and a HOME that can't
    be written.
    """
    settings = {"LC_ALL": "C", "LANG": "C", "HOME": "/dev/null/home"}
    first = make(tree, "setup", torch=None, **settings)
    assert first.returncode == 0, first.stdout
    assert f"using {sys.executable} with its torch" in first.stdout
    assert not (tree / ".venv").exists()
    second = make(tree, "setup", torch=None, **settings)
    assert (second.returncode, second.stdout) == (0, "")
    doctor = run(["sh", "scripts/run", "-m", "fastdiff", "doctor", "--json"], tree, **settings)
    findings = json.loads(doctor.stdout)
    assert (doctor.returncode, findings["usable"]) == (0, True)
    assert findings["location"] == str(tree / "fastdiff")
    assert not any("can't be written" in problem for problem in findings["problems"])


def test_native_build_is_repeated_when_sources_change(tree: Path) -> None:
    build = "build the native library"
    assert build in make(tree, "setup").stdout
    assert build not in make(tree, "setup").stdout
    source = next((tree / "csrc").rglob("*.cpp"))
    source.write_text(source.read_text(encoding="utf-8") + "// changed\n", encoding="utf-8")
    assert build in make(tree, "setup").stdout
    shutil.rmtree(tree / "fastdiff" / "lib")
    assert build in make(tree, "setup").stdout


def test_native_build_is_repeated_when_a_setting_of_setup_py_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from native import native_key

    read = set(
        re.findall(r'environ\.get\("(\w+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    )
    assert {"CXX", "NVCC"} <= read
    for name in read | {"FASTDIFF_BUILD_CPU", "FASTDIFF_BUILD_CUDA"}:
        monkeypatch.delenv(name, raising=False)
        before = native_key(ROOT)
        monkeypatch.setenv(name, "another")
        assert native_key(ROOT) != before, name


@pytest.mark.parametrize(
    ("target", "hidden", "expected"),
    [
        ("setup-test", "pytest,hypothesis", "but lacks pytest, hypothesis; install them there"),
        (
            "setup-test",
            "pytest,hypothesis",
            "or let make create a new environment (make VENV=1 test).",
        ),
        ("setup", "safetensors", "but lacks safetensors; install them there"),
        (
            "setup-test",
            "ruff,diffusers",
            "set-up: it lacks diffusers, ruff: steps that need them are skipped.",
        ),
        (
            "setup-docs",
            "sphinx,furo,myst_parser,sphinxarg,latex2mathml",
            "but lacks sphinx, myst-parser, sphinx-argparse, furo, latex2mathml; install them",
        ),
        ("setup", "setuptools", "lacks setuptools, so the native library is not built"),
    ],
)
def test_borrowed_interpreter_that_lacks_packages(
    tree: Path, target: str, hidden: str, expected: str
) -> None:
    answer = make(tree, target, hidden=hidden)
    assert expected in answer.stdout
    assert answer.returncode == 0 or expected in sentence(answer)


def test_a_target_with_fewer_packages_does_not_forget_the_others(tree: Path) -> None:
    assert make(tree, "setup-test").returncode == 0
    assert make(tree, "setup").returncode == 0
    assert json.loads((tree / ".setup" / "stamp.json").read_text())["extras"] == ["test"]
    again = make(tree, "setup-test")
    assert (again.returncode, again.stdout) == (0, "")


def test_lint_skips_tools_that_a_borrowed_interpreter_lacks(tree: Path) -> None:
    answer = make(tree, "lint", hidden="ruff,mypy")
    assert answer.returncode == 0, answer.stdout
    assert "make lint: ruff is not installed" in answer.stdout
    assert "make lint: mypy is not installed" in answer.stdout


def test_no_way_to_make_an_environment(tree: Path) -> None:
    answer = make(tree, "setup", hidden="ensurepip,pip", VENV="1")
    assert answer.returncode != 0
    assert (
        "can't make virtual environments; install python3-venv (Debian, Ubuntu: apt install"
        in sentence(answer)
    )


def test_foreign_environment_is_left_alone(tree: Path) -> None:
    (tree / ".venv" / "bin").mkdir(parents=True)
    answer = make(tree, "setup", VENV="1")
    assert answer.returncode != 0
    assert ".venv was not made by this set-up; move it away, or use it with" in sentence(answer)
    assert (tree / ".venv" / "bin").is_dir()


def test_old_torch_and_an_interrupted_set_up(tree: Path) -> None:
    """With torch < 2.11 set-up announces an environment; one that is unfinished is made anew."""
    # without ensurepip, as on Debian without python3-venv, .venv gets pip from the interpreter's
    # own pip
    first = make(tree, "setup", torch="2.4.1+cu121", hidden="ensurepip")
    assert first.returncode != 0
    assert (
        "torch 2.4.1+cu121 in" in first.stdout
        and "is older than 2.11: a new environment is made" in first.stdout
    )
    assert "to download: torch==2.13.0" in first.stdout
    if sys.platform == "linux":
        assert "GB to download" in first.stdout and 'TORCH="<pip arguments' in first.stdout
    assert "could not put pip into .venv" in sentence(
        first
    ) and "fix the network, proxy or disk" in sentence(first)
    assert json.loads((tree / ".venv" / "fastdiff.json").read_text()) == {"whole": False}
    assert not (tree / ".setup" / "stamp.json").exists()
    (tree / ".venv" / "leftover").touch()
    second = make(tree, "setup", hidden="ensurepip,torch", torch=None)
    assert second.returncode != 0 and "has no torch: a new environment is made" in second.stdout
    assert not (tree / ".venv" / "leftover").exists()


def shims(folder: Path, **scripts: str) -> str:
    """Returns a PATH that starts with a folder of these shell scripts."""
    folder.mkdir()
    for name, body in scripts.items():
        path = folder / name.replace("_", ".")
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


OLD = 'case $1 in -V) echo "Python 3.10.13";; *) exit 1;; esac'
GONE = "exit 127"


@pytest.mark.parametrize(
    ("python3", "expected"),
    [
        (OLD, "expected Python >= 3.11 on PATH, found Python 3.10.13; install python3.11 or newer"),
        (GONE, "expected Python >= 3.11 on PATH, found no python3; install python3.11 or newer"),
    ],
)
def test_no_new_python(tree: Path, tmp_path: Path, python3: str, expected: str) -> None:
    path = shims(
        tmp_path / "bin", python3=python3, python3_11=GONE, python3_12=GONE, python3_13=GONE
    )
    answer = make(tree, "demo", PYTHON=None, PATH=path)
    assert answer.returncode != 0
    assert expected in sentence(answer)


def test_newer_python_next_to_an_old_one_is_found(tree: Path, tmp_path: Path) -> None:
    path = shims(
        tmp_path / "bin", python3=OLD, python3_13=GONE, python3_12=f'exec "{sys.executable}" "$@"'
    )
    answer = make(tree, "setup", PYTHON=None, PATH=path)
    assert answer.returncode == 0, answer.stdout


def test_python_that_is_named_wrongly(tree: Path) -> None:
    answer = make(tree, "setup", PYTHON="/no/such python")
    assert answer.returncode != 0
    assert "expected PYTHON to name a Python >= 3.11, got '/no/such python'" in sentence(answer)


def test_ci_is_make_test_and_fails_with_it(tree: Path, tmp_path: Path) -> None:
    path = shims(tmp_path / "bin", make=f'echo "$PWD: make $*" >"{tmp_path}/called"; exit 3')
    answer = run([tree / ".ci" / "run"], tmp_path, PATH=path)
    assert answer.returncode == 3
    assert (tmp_path / "called").read_text() == f"{tree}: make test\n"
