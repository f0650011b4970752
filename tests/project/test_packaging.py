"""Packaging: sdist, wheel and installation without torch and without a compiler, and what the files
of this tree say.

pip builds the wheel in its own isolated environment, as a user's pip does, so torch can't be there.
Without a package registry the installed setuptools is used.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from trees import ROOT, copy_tree, files, run

import fastdiff

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMPILER = (
    os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
)
NO_COMPILER = {"CXX": "/nonexistent/c++", "FASTDIFF_BUILD_CUDA": "0"}
pytestmark = pytest.mark.xdist_group("packages")  # they share what they build


@pytest.fixture(scope="session")
def isolation(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Returns pip's options: none if a package registry has setuptools."""
    folder = tmp_path_factory.mktemp("registry")
    if run([*PIP, "download", "--no-deps", "-d", folder, "setuptools>=77"], folder).returncode == 0:
        return []
    pytest.importorskip(
        "setuptools", minversion="77", reason="no registry answers and setuptools >= 77 is not here"
    )
    return ["--no-build-isolation"]


@pytest.fixture(scope="session")
def quick(isolation: list[str]) -> list[str]:
    """Returns pip's options for builds that need not test isolation, which the wheel of the sdist
    tests.
    """
    return ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else isolation


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("packaging") / "fd clone ü")


@pytest.fixture(scope="session")
def sdist(tree: Path) -> Path:
    pytest.importorskip("setuptools", minversion="77")
    answer = run([sys.executable, "setup.py", "-q", "sdist", "-d", tree.parent / "sdist"], tree)
    assert answer.returncode == 0, answer.stdout
    return next((tree.parent / "sdist").glob("*.tar.gz"))


@pytest.fixture(scope="session")
def wheel(sdist: Path, isolation: list[str]) -> Path:
    """The wheel of the sdist; its build is timed in CPU seconds, which load hardly changes."""
    folder = sdist.parent / "wheel"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # without CUDA: its compiler takes another minute, and set-up has built that library
    answer = run(
        [*PIP, "wheel", "--no-deps", *isolation, "-w", folder, sdist],
        sdist.parent,
        FASTDIFF_BUILD_CUDA="0",
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert answer.returncode == 0, answer.stdout
    # a minute on two cores: 113 s of CPU alone, 131 with other tests, which use the same caches
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 180
    return next(folder.glob("*.whl"))


def install(wheel: Path, to: Path) -> Path:
    answer = run([*PIP, "install", "--no-deps", "--no-index", "--target", to, wheel], to.parent)
    assert answer.returncode == 0, answer.stdout
    return to


def doctor(site: Path, cwd: Path) -> dict[str, dict[str, dict[str, object]]]:
    """Returns the findings of the package installed in `site`, read from another folder."""
    answer = run([sys.executable, "-m", "fastdiff", "doctor", "--json"], cwd, PYTHONPATH=str(site))
    assert answer.returncode == 0, answer.stdout
    findings = json.loads(answer.stdout)
    assert findings["location"] == str(site / "fastdiff")
    return dict(findings)


def test_groups_of_tests_stay_in_one_process(request: pytest.FixtureRequest) -> None:
    """Otherwise each process would build the packages; pytest-xdist marks the group in the name."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("one process, or without --dist loadgroup")
    assert request.node.nodeid.endswith("@packages")


def test_sdist_is_the_source_tree(sdist: Path, tree: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    made = ("fastdiff_engine.egg-info", "PKG-INFO", ".gitignore")
    assert {str(p.relative_to(tree)) for p in files(tree)} - held <= set(made)


def test_wheel_content(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(n.partition("/")[0] for n in names if ".dist-info/" in n)
        metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"fastdiff_engine-{fastdiff.__version__}-py3-none-{machine}.whl"
    assert {n.partition("/")[0] for n in names} == {"fastdiff", "fastdiff_kernels", info}
    source = [p.relative_to(ROOT / "fastdiff") for p in files(ROOT / "fastdiff")]
    assert {f"fastdiff/{p.as_posix()}" for p in source if p.suffix != ".pyc"} <= set(names)
    assert "fastdiff/lib/build_info.json" in names
    if COMPILER:
        assert any(n.startswith("fastdiff/lib/libfastdiff_cpu") for n in names)
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/THIRD_PARTY.md"} <= set(names)
    assert "fastdiff = fastdiff.__main__:main" in scripts
    assert metadata["Name"] == "fastdiff-engine"
    needs = metadata.get_all("Requires-Dist") or []
    assert [n for n in needs if "extra ==" not in n] == [
        "torch>=2.11",
        "numpy",
        "safetensors",
        "tqdm",
        "pillow",
    ]


def test_installed_wheel_runs_natively(wheel: Path, tmp_path: Path) -> None:
    findings = doctor(install(wheel, tmp_path / "site"), tmp_path)
    if COMPILER:
        assert findings["backends"]["cpu"]["available"], findings["backends"]["cpu"]["reason"]


def test_the_tests_pass_on_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """The op tests run on the wheel's package in a clean folder, and not on this tree's."""
    site = install(wheel, tmp_path / "site")
    shutil.copytree(
        ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__")
    )
    chosen = [
        f"tests/ops/{name}"
        for name in ("test_randn.py", "test_q_posterior.py", "test_gaussian_kl.py")
    ]
    answer = run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *chosen,
            "-k",
            "torch or cpu",
        ],
        tmp_path,
        PYTHONPATH=os.pathsep.join(map(str, (site, tmp_path / "tests"))),
        FASTDIFF_REQUIRE="cpu" if COMPILER else None,
    )
    assert answer.returncode == 0 and " passed" in answer.stdout, answer.stdout[-3000:]


def test_editable_install(tree: Path, quick: list[str], tmp_path: Path) -> None:
    settings = {"FASTDIFF_BUILD_CPU": "0", "FASTDIFF_BUILD_CUDA": "0"}
    command = [*PIP, "install", "--no-deps", *quick, "--prefix", tmp_path, "-e", "."]
    answer = run(command, tree, **settings)
    assert answer.returncode == 0, answer.stdout
    site = sysconfig.get_path("purelib", vars={"base": str(tmp_path)})
    code = (
        f"import site; site.addsitedir({site!r}); import fastdiff.cli, fastdiff_kernels; "
        "print(fastdiff.__file__, fastdiff_kernels.__file__, sep='\\n')"
    )
    answer = run([sys.executable, "-c", code], tmp_path)
    expected = [
        tree / "fastdiff" / "__init__.py",
        tree / "kernels" / "fastdiff_kernels" / "__init__.py",
    ]
    assert answer.stdout.splitlines() == [str(p) for p in expected]
    assert (tmp_path / "bin" / "fastdiff").exists()


def test_without_a_compiler_it_installs_and_says_why(
    tree: Path, quick: list[str], tmp_path: Path
) -> None:
    answer = run(
        [*PIP, "wheel", "--no-deps", *quick, "-w", tmp_path, tree], tmp_path, **NO_COMPILER
    )
    assert answer.returncode == 0, answer.stdout
    state = doctor(install(next(tmp_path.glob("*.whl")), tmp_path / "site"), tmp_path)["backends"][
        "cpu"
    ]
    assert state["available"] is False
    assert "compiler" in str(state["reason"]) and "/nonexistent/c++" in str(state["reason"])


def test_required_library_without_a_compiler_fails(tree: Path) -> None:
    pytest.importorskip("setuptools")
    answer = run(
        [sys.executable, "setup.py", "-q", "build_native"],
        tree,
        **NO_COMPILER,
        FASTDIFF_BUILD_CPU="1",
    )
    assert answer.returncode != 0
    assert "FASTDIFF_BUILD_CPU" in answer.stdout and "/nonexistent/c++" in answer.stdout
    assert "Traceback" not in answer.stdout


def test_required_cuda_library_without_nvcc_fails(tree: Path) -> None:
    pytest.importorskip("setuptools")
    settings = {"NVCC": "/nonexistent/nvcc", "FASTDIFF_BUILD_CUDA": "1", "FASTDIFF_BUILD_CPU": "0"}
    answer = run([sys.executable, "setup.py", "-q", "build_native"], tree, **settings)
    assert answer.returncode != 0 and "Traceback" not in answer.stdout
    assert "FASTDIFF_BUILD_CUDA=1, but NVCC=/nonexistent/nvcc is not a program" in answer.stdout


def test_the_native_libraries_of_this_tree_are_built_where_they_can_be() -> None:
    """A missing library makes its tests skip, so where a compiler is installed, its library must
    exist and load.
    """
    from fastdiff.backend import library

    if COMPILER and os.environ.get("FASTDIFF_BUILD_CPU") != "0":
        assert library.available("cpu"), library.reason("cpu")
    if shutil.which("nvcc") and os.environ.get("FASTDIFF_BUILD_CUDA") != "0":
        assert (library.FOLDER / library.LIBRARIES["cuda"]).exists(), library.reason("cuda")


def test_versions_agree() -> None:
    assert PROJECT["version"] == fastdiff.__version__
    pinned = {
        line.partition("==")[0]
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    wanted = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    assert {re.split(r"[^A-Za-z0-9._-]", text)[0] for text in wanted} <= pinned
    assert not [text for text in wanted if "==" in text.partition(";")[0]]


def test_no_file_names_a_registry_or_the_wrong_package() -> None:
    wrong = re.compile(r"pip3? +install +(-\S+ +)*[\"']?fastdiff(?!-engine|\w)")
    hosts = re.compile(
        r"\b(pypi\.org|pythonhosted\.org|download\.pytorch\.org|conda\.anaconda\.org)"
    )
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for pattern in (wrong, hosts):
            found = pattern.search(text)
            assert found is None, f"{path.relative_to(ROOT)}: {found[0] if found else ''}"


def test_set_up_scripts_are_plain_shell() -> None:
    """GNU make 3.81, bash 3.2 and BSD tools run them: no GNU-only commands, and the shells parse
    the scripts.
    """
    scripts = [ROOT / "scripts" / name for name in ("run", "setup.sh", "gpu_first_run.sh")]
    names = [*scripts, ROOT / ".ci" / "run"]
    gnu = re.compile(
        r"readlink -f|sed -i|sha256sum|realpath|\bmapfile\b|\$\{\w+\^\^|declare -A|cp --|<<<|stat"
        r" -c|date -d"
    )
    for path in [*names, ROOT / "Makefile"]:
        assert gnu.search(path.read_text(encoding="utf-8")) is None, path.name
    for path in names:
        subprocess.run([shutil.which("bash") or "sh", "-n", path], check=True)
