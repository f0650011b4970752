"""Pages, comments and docstrings point at what exists, and README counts what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from imports import ROOT
from markdown import CODE, without_blocks
from trees import files

from fastdiff.integrations.diffusers import __all__ as DROP_INS
from fastdiff.ops import __all__ as OPS
from fastdiff.solvers import SOLVERS

FILES = files()
PAGES = sorted(p for p in FILES if p.suffix == ".md")
SOURCES = sorted(p for p in FILES if p.suffix in (".py", ".h", ".cpp", ".cu"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = {p.relative_to(ROOT).parts[0] for p in FILES if p.parent != ROOT}
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
IN_SOURCE = re.compile(
    r"(?<![\w/.])(?:benchmarks|csrc|docs|examples|fastdiff|kernels|scripts|tests)(?:/[\w-]+)*/[\w-]+"
    r"\.(?:py|md|h|cpp|cu|toml|txt)\b"
)


THEIRS = {"scripts/image_sample.py"}  # of guided-diffusion


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives to a page's headings."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", without_blocks(text), flags=re.M):
        found.add(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    return found


def missing_paths(text: str) -> list[str]:
    """Returns the paths in backticks that start in a folder of the repository and do not exist.

    Capitals and <angle brackets> are placeholders.
    """
    missing = []
    for token in CODE.findall(without_blocks(text)):
        parts = token.rstrip("/").split("/")
        if not PATH.fullmatch(token) or "/" not in token or any(p.isupper() for p in parts):
            continue
        starts = [ROOT] if parts[0] in FOLDERS else [ROOT / "fastdiff", ROOT / "kernels"]
        known = any((start / parts[0]).is_dir() for start in starts)
        if known and not any((start / token).exists() for start in starts):
            missing.append(token)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = without_blocks(page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text):
        target = "".join(target)
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        to = (page.parent / file).resolve() if file else page
        assert to.exists(), f"{name(page)} links to {target}"
        if anchor and to.suffix == ".md":
            assert anchor in anchors(to.read_text(encoding="utf-8")), f"{name(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_in_backticks_exist(page: Path) -> None:
    assert missing_paths(page.read_text(encoding="utf-8")) == []


def test_a_missing_path_is_found() -> None:
    text = "`fastdiff/nothing.py`, `solvers/nothing.py`, `fastdiff/<op>.py`, `out/x.py`, `i/n`"
    assert missing_paths(text) == ["fastdiff/nothing.py", "solvers/nothing.py"]


def test_paths_in_comments_and_docstrings_exist() -> None:
    missing = [
        f"{name(path)}: {found}"
        for path in SOURCES
        if path != Path(__file__)
        for found in IN_SOURCE.findall(path.read_text(encoding="utf-8"))
        if found not in THEIRS
        and not any((start / found).exists() for start in (ROOT, ROOT / "csrc" / "include"))
    ]
    assert missing == []


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=name)
def test_no_document_is_cited_that_is_not_here(path: Path) -> None:
    if path == Path(__file__):
        return
    text = path.read_text(encoding="utf-8")
    cited = re.search(r"DESIGN\b|\b[Tt]he design(?: says|, section)|(?<![\w/])notes/", text)
    assert cited is None, cited


def test_readme_counts_what_there_is() -> None:
    """The number of solvers is a round one, so that one more solver does not change the page."""
    (solvers,) = {int(n) for n in re.findall(r"over (\d+) solvers", README, flags=re.I)}
    assert solvers <= len(SOLVERS) - 1 < solvers + 10
    (schedulers,) = {
        int(n) for n in re.findall(r"drop-in replacements for (\d+) schedulers", README, flags=re.I)
    }
    assert schedulers == sum(n.endswith("Scheduler") for n in DROP_INS)
    assert re.findall(r"(\d+) fused ops", README) == [str(len(OPS))]
    for op in OPS:
        assert f"`{op}`" in README


def test_readme_begins_with_what_was_measured() -> None:
    """The first lines have ratios of runs with networks, and say what was not run."""
    top, _, rest = README.partition("## Your network")
    runs = rest.partition("| network | times faster |")[2].partition("\n\n")[0]
    ratios = re.findall(r"(\d+\.\d+) times", top)
    assert len(ratios) == 2
    assert all(re.search(rf"\| {ratio} \[", runs) for ratio in ratios)
    assert "Not yet measured on a GPU" in top and "(#where-we-lose)" in top
    assert rest.index("| network | times faster |") < rest.index("a network that costs nothing")


def test_few_lines_escape_the_formatter() -> None:
    """`fmt: skip` is for tables of numbers, because dense lines hide mistakes."""
    escaped = [
        f"{name(path)}:{number}"
        for path in FILES
        if path.suffix in (".py", ".md") and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"# fmt: (skip|off)", line)
    ]
    assert len(escaped) < 80, escaped
