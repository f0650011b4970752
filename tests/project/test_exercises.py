"""The exercises of docs/theory: their numbers are computed, and the notebook has all of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

THEORY = Path(__file__).resolve().parents[2] / "docs" / "theory"
sys.path.append(str(THEORY))
import exercises  # noqa: E402

CHAPTERS = exercises.chapters()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.page)
def test_a_chapter_ends_with_numbered_exercises(chapter: exercises.Chapter) -> None:
    number = CHAPTERS.index(chapter) + 1
    assert 3 <= len(chapter.exercises) <= 5
    expected = [f"{number}.{i + 1}" for i in range(len(chapter.exercises))]
    assert [one.number for one in chapter.exercises] == expected
    for one in chapter.exercises:
        assert one.question.endswith(("?", ".")) and len(one.question) > 40
    last = (THEORY / chapter.page).read_text(encoding="utf-8").split(exercises.TITLE)[1]
    assert "\n## " not in last, "a section after the exercises"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.page)
def test_the_answers_are_what_their_code_computes(chapter: exercises.Chapter) -> None:
    """Each bold number, to its last digit. The code needs the chapter's exercises only."""
    names: dict[str, Any] = {}
    exec(chapter.setup, names)
    wrong = []
    for one in chapter.exercises:
        names.pop("answer", None)
        exec(compile(one.code, f"exercise {one.number}", "exec"), names)
        wrong += one.wrong(names["answer"])
    assert wrong == []


def test_a_wrong_number_is_seen() -> None:
    one = replace(CHAPTERS[0].exercises[0], answer="It is **1,000.5** and **−0.25**, not 3.")
    assert one.printed() == [(1000.5, 0.05), (-0.25, 0.005)]
    assert one.wrong((1000.54, -0.246)) == []
    assert len(one.wrong((1000.56, -0.25))) == 1 and len(one.wrong((1000.5, 0.25))) == 1
    assert one.wrong(1000.5) and one.wrong((1000.5, float("nan")))
    assert replace(one, answer="no number").wrong(())


def test_the_notebook_is_what_the_script_writes() -> None:
    assert exercises.NOTEBOOK.read_text(encoding="utf-8") == exercises.render(), (
        "run python docs/theory/exercises.py"
    )


def test_the_notebook_runs_from_top_to_bottom() -> None:
    """In one namespace, as in Jupyter; the last line of an answer's cell is what the text says."""
    found = json.loads(exercises.NOTEBOOK.read_text(encoding="utf-8"))
    assert found["nbformat"] == 4 and len({cell["id"] for cell in found["cells"]}) > 100
    names: dict[str, Any] = {}
    answers = []
    for cell in found["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
            if cell["metadata"]:
                answers.append(names.pop("answer"))
    every = [one for chapter in CHAPTERS for one in chapter.exercises]
    assert len(answers) == len(every)
    wrong = [one.wrong(values) for one, values in zip(every, answers, strict=True)]
    assert sum(wrong, []) == []
