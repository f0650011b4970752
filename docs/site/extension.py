"""The site's part of Sphinx: the sidebar, plain docstrings, generated tables and equations.

Files of the tree that are no pages are linked at the project's repository if pyproject.toml has its
address, and otherwise come with the site.
"""

from __future__ import annotations

import tomllib
from typing import Any

from docstrings import as_markup
from docutils import nodes
from latex2mathml.converter import convert
from navigation import CONTENTS, ROOT, toctrees
from pygments.lexers.special import TextLexer
from solver_table import Grids, Solvers
from sphinx import addnodes
from sphinx.application import Sphinx

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT.get("urls", {}).get("Repository", "").rstrip("/")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add_toctrees)
    app.connect("doctree-read", link_files)
    app.connect("doctree-read", write_dashes)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon
    app.add_directive("solvers", Solvers)
    app.add_directive("grids", Grids)
    app.add_html_math_renderer("mathml", (inline_math, None), (displayed_math, None))
    app.add_lexer("mermaid", TextLexer)  # a drawing on GitHub; its lines read as text
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def add_toctrees(app: Sphinx, docname: str, source: list[str]) -> None:
    page = (ROOT / app.env.doc2path(docname)).resolve()
    if page == CONTENTS:  # the sidebar itself
        source[0] = f"---\norphan: true\n---\n{source[0]}"
    source[0] += toctrees(page)


def link_files(app: Sphinx, doctree: nodes.document) -> None:
    """Links files of the tree at the repository, and names a page by its title, not by its file."""
    for node in list(doctree.findall(addnodes.download_reference)) if REPOSITORY else ():
        _, path = app.env.relfn2path(node["reftarget"], node["refdoc"])
        address = f"{REPOSITORY}/blob/main/{path.removeprefix(f'{ROOT}/')}"
        node.replace_self(nodes.reference("", "", *node.children, refuri=address))
    for node in doctree.findall(addnodes.pending_xref):
        if node.get("refdomain") == "doc" and node.astext().endswith(".md"):
            node["refexplicit"] = False  # myst then takes the title


def write_dashes(app: Sphinx, doctree: nodes.document) -> None:
    """Puts a dash where Sphinx joins an argument and its text with two hyphens."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def plain(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Makes a docstring reStructuredText.

    The docstring of a module maps its files for readers of the code and is left out.
    """
    lines[:] = [] if what == "module" else as_markup(lines)


def inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def displayed_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode
