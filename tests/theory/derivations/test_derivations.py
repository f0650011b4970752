"""Every numbered line of the chapters holds, is tested as it is printed, and could fail."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from lines import LINES, Function, Line, Sides, difference, unseen
from tolerances import DERIVATION

HERE = Path(__file__).resolve().parent
THEORY = HERE.parents[2] / "docs" / "theory"
CHAPTERS = re.findall(
    r"^\| (\d+) \| \[(\w+\.md)\]", (THEORY / "README.md").read_text(encoding="utf-8"), flags=re.M
)
for module in sorted(HERE.glob("d*_*.py")):
    importlib.import_module(module.stem)
each_line = pytest.mark.parametrize("one", LINES.values(), ids=lambda one: one.number)
each_chapter = pytest.mark.parametrize(("number", "page"), CHAPTERS)


@each_line
def test_a_line_holds(one: Line) -> None:
    assert one.holds(one.function), one.row


@each_line
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_changed_line_does_not_hold(one: Line) -> None:
    """A number, a sign, an operator or a quantity of the tested sides cannot be wrong unseen."""
    assert one.unseen() == list(one.free)


def test_the_checks_can_fail() -> None:
    """A wrong factor, sides of different shapes, and a quantity without influence are seen."""
    x, zero = np.array([0.3, 2.0]), np.zeros(2)

    def right() -> Sides:
        values = np.array([0.3, 2.0])
        return values**2, values * values

    def blind() -> Sides:
        values, nothing = np.array([0.3, 2.0]), np.zeros(2)
        return values**2, values * values + nothing

    assert difference(*right()) == 0 and list(unseen(right, agree)) == []
    assert difference(x**2, 1.001 * x * x) > 1e-4
    assert list(unseen(blind, agree)) == [
        "values * values + nothing became values * values - nothing",
        "nothing became _grown(nothing)",
    ]
    for pair in ((x, x[:1]), (zero, zero), (np.full(2, np.inf), x)):
        with pytest.raises(AssertionError, match="expected"):
            difference(*pair)


def agree(function: Function) -> bool:
    return difference(*function()) < DERIVATION


@each_chapter
def test_a_chapter_has_its_lines_in_order(number: str, page: str) -> None:
    """The rows of the page are those of the functions, character by character."""
    text = (THEORY / page).read_text(encoding="utf-8")
    printed = re.findall(r"^\| \(\d+\.\d+\) \|.*$", text, flags=re.M)
    expected = [one.row for one in LINES.values() if one.number.split(".")[0] == number]
    assert printed == expected
    assert [row.split(")")[0] for row in printed] == [
        f"| ({number}.{i + 1}" for i in range(len(printed))
    ]
    assert printed


@each_line
def test_a_line_follows_from_earlier_ones(one: Line) -> None:
    earlier = list(LINES)[: list(LINES).index(one.number)]
    assert set(re.findall(r"\((\d\.\d+)\)", one.because)) <= set(earlier)


@each_chapter
def test_every_displayed_formula_is_derived(number: str, page: str) -> None:
    """A section with a displayed formula has lines, or names those that derive it."""
    for section in re.split(r"^(?=## )", prose(page), flags=re.M):
        if "$$" in section:
            assert re.search(r"\(\d\.\d+\)", section), section.splitlines()[0]


def test_references_name_lines() -> None:
    for _, page in CHAPTERS:
        for cited in re.findall(r"\((\d\.\d{1,2})\)", prose(page)):
            assert cited in LINES, f"{page} refers to line {cited}"


def prose(page: str) -> str:
    """A page without its blocks of code, and without tables of numbers."""
    text = (THEORY / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return re.sub(r"^\| [−\d].*$", "", text, flags=re.M)
