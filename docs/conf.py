"""The site's settings, for Sphinx: `make docs`. The extension in docs/site does what is special."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "docs" / "site")]

from navigation import pages  # noqa: E402

from fastdiff import __version__  # noqa: E402

project, author, copyright = "fastdiff", "The fastdiff developers", "The fastdiff developers"
version = release = __version__
root_doc = "README"
# the tree is the source, so links between its pages lead to the same files here and on GitHub
include_patterns = ["README.md", "docs/README.md", *(str(p.relative_to(ROOT)) for p in pages())]
exclude_patterns = [".*", "out", "build", "dist"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxarg.ext",
    "extension",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 6  # GitHub's anchors
# attributes of several classes with one name
suppress_warnings = ["ref.python"]
smartquotes = False  # --option stays as it is
highlight_language = "text"  # blocks without a language, as on GitHub
default_role = "py:obj"  # `name` in a docstring is code, and a link where it is a public name

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Quirks", ("Results", "params_style")]
napoleon_use_ivar = True
maximum_signature_line_length = 200

html_theme = "furo"
html_title = f"fastdiff {__version__}"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
templates_path = ["site/templates"]
html_additional_pages = {"index": "redirect.html"}
