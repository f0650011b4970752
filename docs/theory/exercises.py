"""Reads the exercises of the chapters, and writes examples/theory.ipynb from them.

python docs/theory/exercises.py

An exercise is **Exercise 2.1.** and its text, then a block <details> with the answer. The answer's
code ends with `answer = …`, the numbers that are bold in the answer's text, in their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOTEBOOK = HERE.parents[1] / "examples" / "theory.ipynb"
TITLE = "## Exercises\n"
START = re.compile(r"^\*\*Exercise (\d+\.\d+)\.\*\* ", re.M)
CODE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
ANSWER = re.compile(
    r"(?P<question>.*?)\n<details><summary>Answer</summary>\n\n(?P<answer>.*)\n</details>\n*", re.S
)
NUMBER = re.compile(r"\*\*(−?[\d,]*\d(?:\.\d+)?)\*\*")


@dataclass(frozen=True)
class Exercise:
    """Question and answer as Markdown, and the code that computes the numbers of the answer."""

    number: str
    question: str
    answer: str
    code: str

    def printed(self) -> list[tuple[float, float]]:
        """The bold numbers of the answer, each with half a unit of its last digit."""
        found = []
        for text in NUMBER.findall(self.answer):
            digits = text.replace(",", "").replace("−", "-")
            places = len(digits.partition(".")[2])
            found.append((float(digits), 0.5 * 10.0**-places))
        return found

    def wrong(self, values: Any) -> list[str]:
        """What differs between the computed numbers and the printed ones."""
        numbers = list(values) if isinstance(values, tuple | list) else [values]
        printed = self.printed()
        if len(numbers) != len(printed) or not printed:
            return [f"{self.number} prints {len(printed)} numbers and computes {len(numbers)}"]
        return [
            f"{self.number} prints {shown} and computes {value}"
            for value, (shown, half) in zip(numbers, printed, strict=True)
            if not abs(value - shown) <= half * (1 + 1e-9)
        ]


@dataclass(frozen=True)
class Chapter:
    """The exercises at the end of a page, after a text and a block of code that they share."""

    page: str
    title: str
    text: str
    setup: str
    exercises: list[Exercise]


def chapters() -> list[Chapter]:
    """Returns the exercises of all chapters, in the order of README.md."""
    index = (HERE / "README.md").read_text(encoding="utf-8")
    return [read(page) for page in re.findall(r"^\| \d+ \| \[(\w+\.md)\]", index, flags=re.M)]


def read(page: str) -> Chapter:
    """Reads the last section of a page. Raises ValueError if it has another form."""
    whole = (HERE / page).read_text(encoding="utf-8")
    if TITLE not in whole:
        raise ValueError(f"docs/theory/exercises.py: expected {page} to end with exercises.")
    head, *parts = START.split(whole.split(TITLE)[1])
    setup = CODE.findall(head)
    if len(setup) != 1:
        raise ValueError(
            f"docs/theory/exercises.py: expected one block before the exercises of {page},"
            f" got {len(setup)}."
        )
    exercises = [_exercise(n, text) for n, text in zip(parts[::2], parts[1::2], strict=True)]
    title = whole.partition("\n")[0].removeprefix("# ")
    return Chapter(page, title, CODE.sub("", head).strip(), setup[0], exercises)


def _exercise(number: str, text: str) -> Exercise:
    found = ANSWER.fullmatch(text)
    code = CODE.findall(found["answer"]) if found else []
    if not found or len(code) != 1:
        raise ValueError(
            f"docs/theory/exercises.py: expected exercise {number} as a text and an answer with one"
            " block of code."
        )
    answer = CODE.sub("", found["answer"]).strip()
    return Exercise(number, found["question"].strip(), answer, code[0])


def cells(chapter: Chapter) -> Iterator[dict[str, Any]]:
    """Returns a chapter's cells: shared code, then for each exercise question, answer and code."""
    heading = f"## [{chapter.title}](../docs/theory/{chapter.page})"
    yield _cell("markdown", f"{heading}\n\n{chapter.text}".strip())
    yield _cell("code", chapter.setup)
    for one in chapter.exercises:
        yield _cell("markdown", f"**Exercise {one.number}.** {one.question}")
        yield _cell("code", "")
        folded = f"<details><summary>Answer {one.number}</summary>\n\n{one.answer}\n\n</details>"
        yield _cell("markdown", folded)
        yield _cell("code", f"{one.code}answer", jupyter={"source_hidden": True})


def _cell(kind: str, source: str, **metadata: Any) -> dict[str, Any]:
    cell = {"cell_type": kind, "metadata": metadata, "source": source.rstrip().splitlines(True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def notebook() -> dict[str, Any]:
    """Returns the notebook (format 4.5) of all exercises."""
    intro = (
        "# Exercises\n\nOf the chapters in [docs/theory](../docs/theory/README.md), to whose lines"
        " (n.m) they refer. Each has an empty cell for your work, a folded answer, and the code of"
        " its numbers. `python docs/theory/exercises.py` writes this notebook."
    )
    all_cells = [_cell("markdown", intro)]
    for chapter in chapters():
        all_cells += cells(chapter)
    for i, cell in enumerate(all_cells):
        cell["id"] = f"cell-{i}"
    language = {"name": "python", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": language, "language_info": {"name": "python"}}
    return {"cells": all_cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def render() -> str:
    """Returns the text of examples/theory.ipynb."""
    return json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(render(), encoding="utf-8")
    count = sum(len(chapter.exercises) for chapter in chapters())
    print(f"{NOTEBOOK}: {count} exercises in {len(chapters())} chapters")
