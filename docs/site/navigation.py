"""The order of the site's pages: the links of each folder's README.md, as GitHub shows them too.

docs/README.md lists all pages under headings, which group the sidebar. The README.md of another
folder is itself a page, and the pages of its folder that it links to are below it, in its order.
This file uses the standard library only, so that the tests read the same order without the
packages that build the site.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTENTS = ROOT / "docs" / "README.md"
PAGES = (".md", ".rst")
_BLOCK = re.compile(r"^```.*?^```", flags=re.S | re.M)
_LINK = re.compile(r"(?<!!)\[([^]]*)\]\(([^)\s#]+)[^)\s]*\)")


def sections() -> dict[str, dict[Path, str]]:
    """Returns the pages under each heading of docs/README.md, with the text of their links."""
    found: dict[str, dict[Path, str]] = {}
    for part in re.split(r"^## ", _text(CONTENTS), flags=re.M)[1:]:
        title, _, body = part.partition("\n")
        found[title.strip()] = _linked(body, CONTENTS.parent)
    return found


def below(index: Path) -> list[Path]:
    """Returns the pages of a README.md's own folder that it links to."""
    linked = _linked(_text(index), index.parent)
    return [page for page in linked if page.parent == index.parent and page != index]


def pages() -> list[Path]:
    """Returns every page of the site in the order of the sidebar, after the root README.md."""
    found: list[Path] = []
    for linked in sections().values():
        for page in linked:
            found += [page, *(below(page) if _is_index(page) else [])]
    return found


def toctrees(page: Path) -> str:
    """Returns the Markdown that makes the sidebar's entries below a page, "" for most pages."""
    if page == ROOT / "README.md":
        return "".join(
            _toctree([f"{text} <{_docname(to)}>" for to, text in linked.items()], title)
            for title, linked in sections().items()
        )
    return _toctree([_docname(to) for to in below(page)]) if _is_index(page) else ""


def _is_index(page: Path) -> bool:
    """Returns whether a page lists pages of its folder."""
    return page.name == "README.md" and page.is_relative_to(CONTENTS.parent) and page != CONTENTS


def _toctree(entries: list[str], caption: str = "") -> str:
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["\n\n```{toctree}", *options, "", *entries, "```", ""]) if entries else ""


def _docname(page: Path) -> str:
    return f"/{page.relative_to(ROOT).with_suffix('')}"


def _linked(text: str, folder: Path) -> dict[Path, str]:
    """Returns the pages that a text links to, each once, in order, with the links' texts."""
    found: dict[Path, str] = {}
    for title, target in _LINK.findall(text):
        page = (folder / target).resolve()
        if not re.match(r"[a-z]+:", target) and page.suffix in PAGES:
            found.setdefault(page, title)
    return found


def _text(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))
