"""docs/environment.md lists the environment variables that the code reads, and no others."""

from __future__ import annotations

import ast
import re

from imports import ROOT
from markdown import CODE, tables
from trees import files

PAGE = ROOT / "docs" / "environment.md"
NAME = re.compile(r"FASTDIFF(?:_[A-Z]+)+(?![A-Z_])")
# prefixes and names of C headers and macros, which no process reads
PARTS = {"FASTDIFF_BUILD"}
# variables of others that make code run
FOREIGN = {"CXX", "CXXFLAGS", "NVCC", "CUDA_HOME", "CUDA_PATH", "TRITON_CACHE_DIR", "RAY_ADDRESS"}


def _named() -> set[str]:
    """The names in strings of the Python files, without docstrings, and in the other scripts."""
    found: set[str] = set()
    for path in files():
        if path.suffix == ".py" and path.name != "test_environment.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found |= set(NAME.findall(node.value))
                elif isinstance(node, ast.keyword) and NAME.fullmatch(node.arg or ""):
                    found.add(str(node.arg))
        elif path.name == "Makefile" or path.suffix in (".sh", ".yml", ".toml"):
            found |= set(NAME.findall(path.read_text(encoding="utf-8")))
    return found - PARTS


def test_the_tables_are_complete() -> None:
    listed = [CODE.findall(row[0])[0] for table in tables(PAGE.read_text()) for row in table]
    assert sorted(listed) == sorted(_named()), "docs/environment.md: add or remove a row"


def test_the_variables_that_run_code_are_named() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## Variables that make code run")[2]
    assert set(CODE.findall(text)) >= {"FASTDIFF_LIB", "FASTDIFF_CUDA_LIB", *FOREIGN}
    code = "".join(
        p.read_text(encoding="utf-8")
        for p in files()
        if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in ("fastdiff", "setup.py")
    )
    assert all(f'"{name}"' in code for name in FOREIGN), "it is read no longer"


def test_a_name_in_a_string_is_found() -> None:
    assert NAME.findall('"FASTDIFF_CPU_LEVEL"=1, FASTDIFF_LIB') == [
        "FASTDIFF_CPU_LEVEL",
        "FASTDIFF_LIB",
    ]
