"""docs/glossary.md: each term has one meaning and is in use."""

from __future__ import annotations

import re

import pytest
from imports import ROOT
from markdown import tables
from trees import files

PAGE = ROOT / "docs" / "glossary.md"
ROWS = tables(PAGE.read_text(encoding="utf-8"))[0]
TERMS = [re.findall(r"\*([^*]+)\*", row[0])[0] for row in ROWS]
USES = {
    path: path.read_text(encoding="utf-8").lower()
    for path in files()
    if path.suffix in (".py", ".md", ".h", ".cpp", ".cu")
    and path not in (PAGE, ROOT / "tests" / "project" / "test_glossary.py")
}


def test_a_term_has_one_line() -> None:
    assert len(set(TERMS)) == len(TERMS) >= 25
    for row in ROWS:
        assert len(row) == 2 and re.search(r"\w.*\.$", row[1]), row


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_used(term: str) -> None:
    word = re.compile(rf"\b{re.escape(term)}s?\b".replace(r"\ ", r"[\s_]+"))
    assert any(word.search(text) for text in USES.values()), f"{term!r} is used nowhere"
