"""docs/architecture.md names the folders that exist; its table and drawing match the layer test."""

from __future__ import annotations

import re

from imports import ROOT, cycles
from markdown import CODE, section, tables
from test_layers import ALLOWED, LEAVES
from trees import files

PAGE = ROOT / "docs" / "architecture.md"
# described in words
ENTRANCES = {"__init__", "__main__", "moved"}


def closure(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Returns all nodes that each node leads to."""
    reached = {node: set(targets) for node, targets in edges.items()}
    changed = True
    while changed:
        changed = False
        for targets in reached.values():
            further = set().union(*(reached.get(t, set()) for t in targets)) - targets
            targets |= further
            changed = changed or bool(further)
    return reached


def grouped(names: set[str]) -> set[str]:
    """Returns the names, with the leaves as one name."""
    return {"leaves" if name in LEAVES else name for name in names}


def test_the_table_is_the_rule() -> None:
    rows = tables(section(PAGE, "The layers"))[0]
    stated: dict[str, set[str]] = {}
    for name, _, imports in rows:
        (unit,) = CODE.findall(name)
        if imports.startswith("all of the above except"):
            stated[unit] = set(stated) - set(CODE.findall(imports))
        else:
            stated[unit] = set(CODE.findall(imports))
            stated[unit] |= LEAVES if re.search(r"\bleaves\b", imports) else set()
    assert stated == {unit: names for unit, names in ALLOWED.items() if unit not in ENTRANCES}


def test_the_drawing_is_the_rule() -> None:
    drawing = re.search(r"```mermaid\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert drawing
    drawn: dict[str, set[str]] = {}
    for line in drawing[1].splitlines()[1:]:
        here, _, there = (part.strip() for part in line.partition("-->"))
        for name in (here, there):
            drawn.setdefault(name, set())
        drawn[here].add(there)
    lonely = drawn.pop("")  # a node without an arrow
    assert not lonely and drawn.pop("reference") == {""}
    assert not ALLOWED["reference"]
    rule: dict[str, set[str]] = {"leaves": set(), "fastdiff_kernels": set()}
    for unit, names in ALLOWED.items():
        if unit not in ENTRANCES | LEAVES | {"reference"}:
            rule[unit] = grouped(names)
    assert closure(drawn) == closure(rule)
    assert cycles(drawn) == []
    for here, targets in drawn.items():  # no arrow that others imply
        for target in targets:
            rest = {**drawn, here: targets - {target}}
            assert target not in closure(rest)[here], f"{here} --> {target} is implied"


def test_the_leaves_are_named() -> None:
    sentence = re.search(r"The \*leaves\* are (.*?):", PAGE.read_text(encoding="utf-8"), re.S)
    assert sentence and set(CODE.findall(sentence[1])) == LEAVES


def test_every_folder_is_named() -> None:
    rows = tables(section(PAGE, "The layers"))
    units = {CODE.findall(row[0])[0] for row in rows[0]}
    inside = {p.relative_to(ROOT / "fastdiff").parts for p in files(ROOT / "fastdiff")}
    modules = {
        parts[0].removesuffix(".py")
        for parts in inside
        if len(parts) > 1 or parts[0].endswith(".py")
    }
    assert modules - ENTRANCES == {unit for unit in units if "." not in unit}
    others = {CODE.findall(row[0])[0].rstrip("/") for row in rows[1]}
    folders = {p.relative_to(ROOT).parts[0] for p in files() if p.parent != ROOT}
    assert {f for f in folders if not f.startswith(".")} - {"fastdiff"} == others


def test_tests_mirror_the_package() -> None:
    """A folder of tests has the name of a folder of the package."""
    others = {"benchmarks", "fuzz", "golden", "project", "walks"}
    for path in (ROOT / "tests").iterdir():
        if path.is_dir() and path.name not in others | {"__pycache__"}:
            assert (ROOT / "fastdiff" / path.name).is_dir(), path.name
