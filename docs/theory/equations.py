"""Writes docs/theory/equations.md from equations.toml: Luo 2022's equations, functions and tests.

python docs/theory/equations.py
"""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE / "equations.md"
HEAD = """# Equations

<!-- Written by docs/theory/equations.py from equations.toml: edit that file and run the script. -->

Every numbered equation of Calvin Luo's "Understanding Diffusion Models: A Unified Perspective"
(arXiv 2208.11970): what it says, the functions that compute it, the tests that verify them, and
where it is explained or drawn. `t` is the paper's: its x_1 is the timestep 0 of `Schedule`, and its
ω is `gamma`, minus the log-SNR, in `fastdiff.theory.variational`.

The numbers are those of the paper's first version, which numbers every line of a derivation; the
lines of a derivation share a row. Numbers that other works cite, or that the paper's text refers
to, are certain: {anchors}.
The lines between them were counted. Where a number has a ~, the count may be off by one: between
158 and 163 there are four numbered lines, and it is not certain which of the equations there has
no number.

Functions are named without `fastdiff.`; tests are below `tests/`. {skipped}
"""
ANCHORS = (1, 2, 8, 15, 19, 23, 24, 28, 31, 32, 58, 69, 70, 85, 115, 125, 133, 157, 166)


def load() -> dict[str, Any]:
    """Reads equations.toml."""
    with open(HERE / "equations.toml", "rb") as f:
        return tomllib.load(f)


def rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for section in table["section"] for row in section["row"]]


def numbers(row: dict[str, Any]) -> range:
    """Returns the equation numbers of a row."""
    first, _, last = row["numbers"].partition("-")
    return range(int(first), int(last or first) + 1)


def resolve(name: str) -> Any:
    """Returns the object with a dotted name below fastdiff.

    Raises ImportError or AttributeError if there is none.
    """
    value: Any = importlib.import_module("fastdiff")
    path = "fastdiff"
    for part in name.split("."):
        path += f".{part}"
        try:
            value = getattr(value, part)
        except AttributeError:
            try:
                value = importlib.import_module(path)
            except ModuleNotFoundError:
                raise AttributeError(f"{path} does not exist") from None
    return value


def _line(row: dict[str, Any]) -> str:
    """Returns the line of the page's table for a row."""
    shown = row["numbers"].replace("-", "–") + (" ~" if row.get("counted") else "")
    functions = (
        "<br>".join(f"`{name}`" for name in row.get("functions", ()))
        or f"not computed: {row['skip']}"
    )
    tests = []
    for test in row.get("tests", ()):
        file, _, function = test.partition("::")
        tests.append(
            f"[{Path(file).stem} ·"
            f" {function.removeprefix('test_').replace('_', ' ')}](../../tests/{file})"
        )
    see = []
    for path in row.get("see", ()):
        kind = "figure: " if path.startswith("figures/") else ""
        see.append(f"[{kind}{Path(path).stem.replace('_', ' ')}]({path})")
    says = row["says"].replace("|", "\\|").replace("_", "\\_")
    return f"| {' | '.join([shown, says, functions, '<br>'.join(tests), '<br>'.join(see)])} |"


def render(table: dict[str, Any]) -> str:
    """Returns the text of equations.md."""
    skipped = [row for row in rows(table) if "skip" in row]
    shown = ", ".join(row["numbers"].replace("-", "–") for row in skipped)
    parts = [
        HEAD.format(
            anchors=", ".join(map(str, ANCHORS)),
            skipped=f"Not computed, for the reason in the row: {shown}.",
        )
    ]
    for section in table["section"]:
        lines = [
            f"## {section['title']}",
            "",
            "| Eq. | says | functions | tests | see |",
            "|---|---|---|---|---|",
        ]
        parts.append("\n".join([*lines, *map(_line, section["row"])]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(load()), encoding="utf-8")
    print(
        f"{PAGE}: {sum(len(numbers(row)) for row in rows(load()))} equations in {len(rows(load()))}"
        " rows"
    )
