"""The site's sidebar has every page once, its reference every public name, and docstrings become
reStructuredText; all without the packages that build the site (`make docs`).
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections import Counter

import pytest
from imports import ROOT
from trees import files

import fastdiff

sys.path.insert(0, str(ROOT / "docs" / "site"))
docstrings = importlib.import_module("docstrings")
navigation = importlib.import_module("navigation")
sys.path.pop(0)

REFERENCE = ROOT / "docs" / "reference"
DIRECTIVES = [
    tuple(found)
    for page in sorted(REFERENCE.glob("*.rst"))
    for found in re.findall(r"^\.\. auto(\w+):: ([\w.]+)$", page.read_text(), flags=re.M)
]


def test_every_page_is_in_the_sidebar_once() -> None:
    count = Counter(navigation.pages())
    assert [page for page, n in count.items() if n > 1] == []
    found = {p for p in files(ROOT / "docs") if p.suffix in navigation.PAGES}
    assert {p for p in count if p.is_relative_to(ROOT / "docs")} == found - {navigation.CONTENTS}


def test_the_pages_outside_docs_are_in_the_sidebar() -> None:
    """Those that readers of the site are led to; the others are for people in the tree."""
    rest = {p for p in navigation.pages() if not p.is_relative_to(ROOT / "docs")}
    assert {ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "kernels/README.md"} <= rest
    assert all(page.exists() for page in rest)


def test_the_sidebar_of_the_theory_is_its_reading_order() -> None:
    index = ROOT / "docs" / "theory" / "README.md"
    chapters = re.findall(r"^\| \d+ \| \[(\w+\.md)\]", index.read_text(), flags=re.M)
    assert len(chapters) >= 8
    assert [page.name for page in navigation.below(index)][: len(chapters)] == chapters


def test_a_sidebar_is_markup() -> None:
    start = navigation.toctrees(ROOT / "README.md")
    assert ":caption: Guides\n\nSampling </docs/sampling>" in start
    assert navigation.toctrees(ROOT / "docs" / "sampling.md") == ""
    assert "\n/docs/theory/vae\n" in navigation.toctrees(ROOT / "docs" / "theory" / "README.md")


@pytest.mark.parametrize("name", sorted(set(fastdiff.__all__) - {"__version__"}))
def test_a_public_name_has_a_reference(name: str) -> None:
    assert [kind for kind, target in DIRECTIVES if target == f"fastdiff.{name}"], name


@pytest.mark.parametrize(("kind", "target"), DIRECTIVES)
def test_a_reference_exists(kind: str, target: str) -> None:
    if target.endswith(".k_diffusion") or "diffusers" in target or target == "fastdiff.Scheduler":
        pytest.importorskip("diffusers", reason="diffusers is not installed here")
    if kind == "module":
        assert importlib.import_module(target).__doc__
        return
    owner, _, name = target.rpartition(".")
    thing = getattr(importlib.import_module(owner), name)
    assert inspect.isclass(thing) == (kind == "class") and thing.__doc__


def markup(text: str) -> str:
    return "\n".join(docstrings.as_markup(inspect.cleandoc(text).splitlines()))


def test_signs_in_a_docstring_are_text() -> None:
    assert markup("a * b, **cond, |x0|, x_") == r"a \* b, \*\*cond, \|x0\|, x\_"
    assert markup("`Plan` of `(x, t)`, `Plan`s") == r"`Plan` of ``(x, t)``, `Plan`\ s"


def test_a_formula_in_a_docstring_is_literal() -> None:
    text = """Noises.

    x_t by:

        x_t = a * x0

    The rest * is text.
    """
    assert markup(text) == "\n".join(
        [
            *("Noises.", "", "x_t by:", "", "::", "", "    x_t = a * x0", ""),
            r"The rest \* is text.",
        ]
    )


def test_lists_and_results_of_a_docstring() -> None:
    assert markup("Quirks:\n- one\n- two") == "Quirks:\n\n- one\n- two"
    text = "Args:\n    a, b,\n        c: numbers.\n\nReturns:\n    x: one.\n    y, z: others."
    expected = "Args:\n    a, b, c: numbers.\n\nResults:\n    x: one.\n    y, z: others."
    assert markup(text) == expected
    single = "One.\n\nReturns:\n    Samples [B]: in\n        the range."
    assert markup(single) == single
