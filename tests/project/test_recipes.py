"""The file lists in CONTRIBUTING.md match the tree for each solver, grid, op, drop-in, format and
backend.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from imports import ROOT
from markdown import CODE, section, tables
from trees import files

from fastdiff.backend import choice
from fastdiff.integrations.diffusers import __all__ as DROP_INS
from fastdiff.jobs.formats import FORMATS
from fastdiff.ops import __all__ as OPS
from fastdiff.solvers import SOLVERS
from fastdiff.solvers.grids import SPACINGS

PAGE = ROOT / "CONTRIBUTING.md"
CLASSES = [name for name in DROP_INS if name.endswith("Scheduler")]
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in files()
    if path.suffix in (".py", ".md", ".h", ".cpp", ".cu", ".txt", ".toml")
}
# pages and records that list what there is, and are not edited for each addition
LISTS = re.compile(r"CHANGELOG\.md|CONTRIBUTING\.md|docs/performance/|benchmarks/NOTES\.md")


def listed(title: str) -> list[str]:
    """Returns the paths of a recipe."""
    paths = [CODE.findall(row[0])[0] for table in tables(section(PAGE, title)) for row in table]
    assert paths and len(set(paths)) == len(paths)
    return paths


def shared(title: str) -> list[str]:
    return [path for path in listed(title) if "<" not in path]


def filled(path: str, **names: str) -> str:
    """Returns a path with its placeholders filled in."""
    return re.sub(r"<(\w+)>", lambda m: names[m[1]], path)


def naming_all(names: Iterable[str], pattern: str = r"\b{}\b") -> set[str]:
    """Returns the files in which every name occurs."""
    words = [re.compile(pattern.format(re.escape(name))) for name in names]
    return {
        path
        for path, text in TEXTS.items()
        if not LISTS.match(path) and all(word.search(text) for word in words)
    }


def module_of(thing: object) -> str:
    """Returns the name of the file that defines something, without folder and ending."""
    return Path(inspect.getfile(inspect.unwrap(thing))).stem  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_solver(solver) -> None:
    module = module_of(solver.formula)
    own, registered = listed("Add a solver")
    assert f'"{solver.name}"' in TEXTS[filled(own, module=module)]
    assert f"from . import {module} as {module}\n" in TEXTS[registered]


def test_no_file_lists_the_solvers() -> None:
    assert naming_all(SOLVERS, pattern=r"""["'`]{}["'`]""") == set()


def test_grid() -> None:
    assert naming_all(SPACINGS, pattern=r"""["']{}["']""") == set(listed("Add a grid"))


@pytest.mark.parametrize("op", OPS)
def test_op_has_its_files(op: str) -> None:
    for path in listed("Add an op"):
        assert filled(path, op=op) in TEXTS, path
        if "<" not in path:
            assert re.search(rf"(?<![a-z]){op}(?![a-z])", TEXTS[path]), f"{path} lacks {op}"
    folder = "tests/backend/triton_interpreter/"
    interpreted = "".join(text for path, text in TEXTS.items() if path.startswith(folder))
    assert re.search(rf'launch\.{op}\b|"{op}"', interpreted), f"{folder} lacks {op}"


def test_the_recipe_of_an_op_is_complete() -> None:
    own = {path for path in TEXTS for op in OPS if re.fullmatch(rf"(test_)?{op}", Path(path).stem)}
    patterns = [path for path in listed("Add an op") if "<op>" in path]
    assert own == {filled(path, op=op) for path in patterns for op in OPS}
    everywhere = naming_all(OPS, pattern=r"(?<![a-z]){}(?![a-z])")
    assert everywhere == set(shared("Add an op"))


@pytest.mark.parametrize("name", CLASSES)
def test_drop_in(name: str) -> None:
    module = module_of(getattr(importlib.import_module("fastdiff.integrations.diffusers"), name))
    for path in listed("Add a drop-in class"):
        text = TEXTS[filled(path, module=module)]
        short = name if path.endswith(".py") else name.removesuffix("Scheduler")
        assert re.search(rf"\b{short}\b", text), f"{path} lacks {short}"
    tests = [p for p in TEXTS if p.startswith("tests/integrations/diffusers/")]
    assert any(name in TEXTS[path] for path in tests)


def test_the_recipe_of_a_drop_in_is_complete() -> None:
    assert naming_all(CLASSES) == {p for p in shared("Add a drop-in class") if p.endswith(".py")}


@pytest.mark.parametrize("name", FORMATS)
def test_format(name: str) -> None:
    made = type(FORMATS[name])
    for path in listed("Add an output format"):
        text = TEXTS[filled(path, module=module_of(made))]
        assert re.search(rf"\b({name}|{made.__name__})\b", text, flags=re.I), f"{path} lacks {name}"


def test_the_recipe_of_a_format_is_complete() -> None:
    """No other file of the package lists the formats; it uses FORMATS."""
    found = naming_all(FORMATS, pattern=r"""["']{}["']""")
    assert {path for path in found if path.startswith("fastdiff/")} == set()


def test_backend() -> None:
    (path,) = listed("Add a backend")
    assert set(choice._MODULES) == set(choice._DEVICES) == set(choice.ORDER)
    eager = importlib.import_module("fastdiff.backend.eager").LAUNCHERS
    assert {op for op in OPS} <= set(eager)
    for name, module in choice._MODULES.items():
        assert f'"{name}"' in TEXTS[path]
        launchers = importlib.import_module(module).LAUNCHERS
        assert set(launchers) == set(eager), name
    assert {p for p in naming_all(choice.ORDER, pattern='"{}"') if p.startswith("fastdiff/")} == {
        path
    }


def test_network_family() -> None:
    """The classes that `accelerate` finds by name have tests and are on its page."""
    page, *_ = [p for p in listed("Add a network family to `accelerate`") if p.endswith(".md")]
    convert = TEXTS["fastdiff/acceleration/convert.py"]
    networks = set(re.findall(r'"(\w+Model|UNet\w+)"', convert))
    assert len(networks) >= 3
    tests = "".join(text for path, text in TEXTS.items() if path.startswith("tests/acceleration/"))
    for name in networks:
        assert name in TEXTS[page] and name in tests, name
    assert all(path in TEXTS for path in listed("Add a network family to `accelerate`"))
