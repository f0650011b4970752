"""Runs the code blocks of README.md and of each page of docs/, one after the other."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from fastdiff.solvers import SOLVERS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def run(page: str, **names: Any) -> dict[str, Any]:
    """Runs a page's blocks with these names defined; returns all names that are defined then."""
    blocks = re.findall(
        r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.S
    )
    assert blocks
    for block in blocks:
        exec(compile(block, str(DOCS / page), "exec"), names)
    return names


def test_readme() -> None:
    pytest.importorskip(
        "diffusers", reason="diffusers is not installed here (make test installs it)"
    )
    names = run("../README.md", pipe=run("diffusers.md")["pipe"])
    assert names["again"].isfinite().all()
    assert names["loss"].shape == names["bound"].shape == (8,)


@pytest.mark.parametrize(
    "page", ["tour.md", "network.md", "callbacks.md", "pictures.md", "likelihood.md"]
)
def test_guide(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks assert what the text says; what they write goes into the current directory."""
    monkeypatch.chdir(tmp_path)
    run(page)


def test_solver_guide() -> None:
    known = dict(SOLVERS)
    try:
        run("solver.md", __name__="solver_guide")
        assert len(SOLVERS) == len(known) + 1
    finally:
        SOLVERS.clear()
        SOLVERS.update(known)


def test_accelerate() -> None:
    names = run("accelerate.md")
    assert names["x"].shape == (3, 1, 28, 28) and names["x"].isfinite().all()


def test_sampling(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("sampling.md")
    assert names["edited"].shape == (3, 3, 16, 16) and names["edited"].isfinite().all()
    assert len(capsys.readouterr().out.splitlines()) >= 10, "every request was served"


def test_rollouts() -> None:
    names = run("rollouts.md")
    assert names["rollout"].log_prob.isfinite().all() and names["mine"].samples.isfinite().all()
    assert names["state"].done and names["state"].x.isfinite().all()


def test_training_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("training/data.md")
    assert names["data"].examples + names["held_out"].examples == 12
    assert names["condition"]["text"][:, 0, 0].tolist() == [2.0, 5.0]
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_training_models() -> None:
    pytest.importorskip(
        "diffusers", reason="diffusers is not installed here (make test installs it)"
    )
    names = run("training/models.md")
    assert names["loss"].isfinite().all() and names["ours"].config["size"] == 32
    assert names["default"] == 1.3, "the table says so"


def test_training_objectives() -> None:
    names = run("training/objectives.md")
    assert names["loss"].shape == (8,) and names["loss"].isfinite().all()


def test_training_metrics() -> None:
    names = run("training/metrics.md")
    assert names["dark"]["frechet"] > 10 and names["same"]["kernel_subsets"] == 4


def test_the_numbers_of_objectives_are_those_of_the_runs() -> None:
    """Its tables are what examples/objectives.py prints for the stored bounds."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed here")
    script = runpy.run_path(str(DOCS.parent / "examples" / "objectives.py"))
    runs = json.loads((DOCS / "training" / "objectives.json").read_text())["runs"]
    page = (DOCS / "training" / "objectives.md").read_text(encoding="utf-8").splitlines()
    rows = script["rows"](runs)
    assert len(rows) > 9 and [row for row in rows if row not in page] == []
    assert (DOCS / "training" / "figures" / "objectives.png").exists()


def test_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("training/trainer.md")
    assert names["averaged"].training is False
    assert (tmp_path / "runs/moons/best.safetensors").exists()


@pytest.mark.parametrize(
    "page", sorted(p.name for p in (DOCS / "theory").glob("*.md") if "```python" in p.read_text())
)
def test_theory(page: str) -> None:
    """The blocks of a chapter assert what the text claims, and its pictures exist."""
    run(f"theory/{page}")
    for picture in re.findall(
        r"!\[.*?\]\((\S+?)\)", (DOCS / "theory" / page).read_text(encoding="utf-8"), flags=re.S
    ):
        assert (DOCS / "theory" / picture).exists(), picture


def test_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("jobs.md")
    assert names["report"].complete and names["report"].made == 0
    assert len(capsys.readouterr().out.splitlines()) == 3, "two units and the report"


def test_clusters(capsys: pytest.CaptureFixture[str]) -> None:
    """The table of costs on the page is the one that its block prints."""
    run("clusters.md")
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 7
    page = (DOCS / "clusters.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if row not in page] == []


def test_diffusers(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(
        "diffusers", reason="diffusers is not installed here (make test installs it)"
    )
    import fastdiff

    names = run("diffusers.md")
    assert "fastdiff" in capsys.readouterr().out
    assert names["x"].isfinite().all()
    page = (DOCS / "diffusers.md").read_text(encoding="utf-8")
    listed = re.findall(r"\w+", page.split("## The classes")[1].split(", each followed")[0])
    assert len(listed) >= 31
    for name in listed:
        if name != "and":
            assert hasattr(fastdiff, f"{name}Scheduler"), name
