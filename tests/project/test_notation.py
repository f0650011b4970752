"""docs/theory: which page uses which alpha and gamma, and the order in which to read the pages."""

from __future__ import annotations

import re

from imports import ROOT
from markdown import tables, without_blocks

FOLDER = ROOT / "docs" / "theory"
PAGES = {
    p.name: re.sub(r"^ {4}.*$", "", without_blocks(p.read_text(encoding="utf-8")), flags=re.M)
    for p in FOLDER.glob("*.md")
    if p.name not in ("README.md", "notation.md")
}
LUO = re.compile(r"√?ᾱ|√α|1 − α|\\bar\s*\\alpha|\\sqrt\{?\\alpha")
OURS = re.compile(r"σ_t|\\sigma_t|σ²|\\sigma_s|(?:α|\\alpha)(?:_t)? ?x_")
GAMMA = re.compile(r"γ|\\gamma")
STRENGTH = re.compile(r"guid", re.I)
LOG_SNR = re.compile(r"SNR|learned")


def cells() -> dict[str, tuple[str, str]]:
    """Returns {page: (what alpha_t is, what gamma is)} of the table in notation.md."""
    rows = tables((FOLDER / "notation.md").read_text(encoding="utf-8"))[1]
    found = {re.findall(r"\((\S+)\)", row[0])[0]: (row[1], row[2]) for row in rows}
    assert len(found) == len(rows) and set(found) <= set(PAGES)
    return found


def test_every_page_uses_the_alpha_that_the_table_says() -> None:
    table = cells()
    for name, text in PAGES.items():
        alpha = table.get(name, ("", ""))[0]
        assert bool(LUO.search(text)) == (alpha == "Luo's"), (name, LUO.findall(text)[:3])
        if alpha == "ours":
            assert OURS.search(text), name
        assert alpha in ("", "ours", "Luo's")


def test_every_page_with_a_gamma_says_which() -> None:
    table = cells()
    for name, text in PAGES.items():
        gamma = table.get(name, ("", ""))[1]
        assert bool(GAMMA.search(text)) == bool(gamma), name
        if "guidance" in gamma or "both" in gamma:
            assert STRENGTH.search(text), name
        if "SNR" in gamma or "both" in gamma:
            assert LOG_SNR.search(text), name


def test_the_index_has_every_page_once_and_its_order_is_that_of_readme() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\]\((\w+\.md)\)", index)
    assert sorted(listed) == sorted([*PAGES, "notation.md"])
    chapters = [re.findall(r"\((\w+\.md)\)", row[1])[0] for row in tables(index)[0]]
    theory = (ROOT / "README.md").read_text(encoding="utf-8").split("## Theory")[1]
    named = re.findall(r"\(docs/theory/(\w+\.md)\)", theory.split("\n## ")[0])
    assert [name for name in named if name in chapters] == chapters
