"""`fastdiff solvers` and `fastdiff plan`: every solver, every schedule, and the figure."""

from __future__ import annotations

import json
import sys

import pytest

from fastdiff.cli import main
from fastdiff.schedule import FORMULAS
from fastdiff.solvers import SOLVERS, make_plan
from fastdiff.solvers.advice import ADVICE


def test_solvers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solvers"]) == 0
    lines, advice = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in lines.splitlines()] == ["solver", *SOLVERS]
    printed = advice.splitlines()[1:]
    assert len(printed) == len(ADVICE)
    for line, a in zip(printed, ADVICE, strict=True):
        assert line.startswith(a.when) and f"{a.calls[0]} to {a.calls[1]}" in line
        assert line.endswith(f'solver="{a.solver}", timestep_spacing="{a.spacing}"')
    assert main(["solvers", "--json"]) == 0
    rows = {row["solver"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["sa"]["noise"] and rows["sa"]["order"] == 2 and "Xue" in rows["sa"]["paper"]
    assert {c for row in rows.values() for c in row["recommended"]} == {a.case for a in ADVICE}
    assert all(a.case in rows[a.solver]["recommended"] for a in ADVICE)
    assert rows["dpm++3s"]["calls"] == 3 and not rows["ddim_inverse"]["noise"]


@pytest.mark.parametrize("name", FORMULAS)
def test_plans_of_every_schedule(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--solver", "unipc", "--schedule", name, "--steps", "3"]) == 0
    assert f"Schedule.{name}(" in capsys.readouterr().out


def test_options_of_a_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            ["plan", "--schedule", "flow", "--schedule-option", "shift=3", "--steps", "2", "--json"]
        )
        == 0
    )
    table = json.loads(capsys.readouterr().out)["table"]
    assert [row[1] for row in table[:2]] == pytest.approx([1.0, 0.75])  # sigma = 3 u/(1 + 2 u)
    assert main(["plan", "--zero-snr", "--steps", "2"]) == 0
    assert "prediction_type v" in capsys.readouterr().out
    assert main(["plan", "--schedule-option", "shift=3"]) == 2
    assert "expected options of the schedule 'linear', got ['shift']." in capsys.readouterr().err
    assert main(["plan", "--zero-snr", "--prediction", "epsilon"]) == 2
    assert "expected a prediction type that is defined at pure noise" in capsys.readouterr().err


@pytest.mark.parametrize("solver", ["sa", "flow_heun", "ddim_inverse", "repaint"])
def test_a_plan_is_drawn(solver: str, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is a panel for each level and output, with a line for each operand that it reads."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed here (the extra `plot`)")
    from PIL import Image

    from fastdiff import Schedule
    from fastdiff.cli import plan_figure

    path = tmp_path / "plan.png"
    assert main(["plan", "--solver", solver, "--steps", "12", "--plot", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 1000
        colours = {c for _, c in picture.convert("RGB").getcolors(1 << 20)}
    plan = make_plan(Schedule.linear(1000), solver=solver, steps=12)
    for of, colour in plan_figure.COLOURS.items():
        used = any(
            (plan.column(f"{to}.{of}")[:-1] != 0).any() for to in ("x", "s1", "s2", "s3", "s4")
        )
        assert (tuple(bytes.fromhex(colour[1:])) in colours) == used, of


def test_without_matplotlib_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["plan", "--steps", "2", "--plot", str(tmp_path / "plan.png")]) == 1
    assert "expected matplotlib for a plot, got none installed." in capsys.readouterr().err
