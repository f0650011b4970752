"""The parts of fastdiff.theory import each other in one direction only."""

from __future__ import annotations

import pytest
from imports import Tree

TREE = Tree()
PREFIX = "fastdiff.theory."
# a part may import the parts of its line and of the lines before it
ORDER = [
    {"tensors", "dequantization", "conditions", "system", "information"},
    {"score"},
    {"likelihood"},
    {"variational", "autoregressive"},
    {"systems", "registry"},  # the presets of systems use the registry, which names the systems
    {"evaluation"},
]


def part(module: str) -> str:
    return module.removeprefix(PREFIX).split(".")[0]


MODULES = [name for name in TREE.modules if name.startswith(PREFIX)]


def test_every_part_is_listed() -> None:
    assert {part(name) for name in MODULES} == set().union(*ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_earlier_parts(module: str) -> None:
    imported = {part(name) for name in TREE.imports(module) if name.startswith(PREFIX)}
    line = next(i for i, parts in enumerate(ORDER) if part(module) in parts)
    later = imported & set().union(*ORDER[line + 1 :])
    assert not later, f"{module} may not import {sorted(later)}"


def test_the_imports_are_seen() -> None:
    """The test above would fail: likelihood imports score, and the registry names systems."""
    assert "fastdiff.theory.score.embedded" in TREE.imports("fastdiff.theory.likelihood.exact")
    assert any(name.startswith(PREFIX + "score") for name in TREE.imports(PREFIX + "registry"))
