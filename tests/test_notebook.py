"""What people see of plans, schedules and jobs: one line as a repr, a table in a notebook."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from typing import Any

import numpy as np
import pytest

from fastdiff import Schedule
from fastdiff.jobs import Job
from fastdiff.notebook import html_table
from fastdiff.solvers import make_plan

LINEAR = Schedule.linear(1000)


def rows(value: Any) -> list[list[str]]:
    """The cells of the table that a notebook shows."""
    table = xml.fromstring(value._repr_html_())
    assert table.tag == "table"
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def test_cells_are_text() -> None:
    table = xml.fromstring(html_table("<b> & c", [["|x0| <= 1"], ["<script>"]]))
    assert [e.text for e in table.iter() if e.text and e.text.strip()] == [
        "<b> & c",
        "|x0| <= 1",
        "<script>",
    ]


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
def test_a_plan(solver: str) -> None:
    """The table has the cells of the text."""
    plan = make_plan(LINEAR, solver=solver, steps=5, clip_range=1.0)
    head, *shown = rows(plan)
    printed = str(plan).splitlines()
    assert len(shown) == len(plan) and "\n" not in repr(plan) and len(repr(plan)) < 400
    assert repr(plan) == f"Plan({printed[0]})"
    for cells, line in zip([head, *shown], printed[1:], strict=True):
        assert line.split() == " ".join(cells).split()


@pytest.mark.parametrize(
    "schedule", [LINEAR, Schedule.flow(3), Schedule.from_betas(np.full(50, 0.1)), Schedule.ve(1)]
)
def test_a_schedule(schedule: Schedule) -> None:
    head, *shown = rows(schedule)
    assert head == ["t", "alpha", "sigma", "log SNR"] and len(repr(schedule)) < 120
    assert int(shown[0][0]) == 0 and int(shown[-1][0]) == schedule.num_train_timesteps - 1
    for t, *numbers in shown:
        exact = [c[int(t)] for c in (schedule.alpha, schedule.sigma, schedule.log_snr)]
        assert np.allclose([float(n) for n in numbers], exact, rtol=1e-5)


def test_a_job() -> None:
    job = Job.plan("fashion-mnist", ids=(3, 130), seed=9, steps=4, threads=1)
    facts = dict(rows(job)[1:])
    assert facts["ids"] == "3-130 in 3 units of 64" and facts["seed"] == "9"
    assert facts["model"] == "fashion-mnist" and "steps=4" in facts["settings"]
    assert facts["hash"] == job.spec.hash[:12] and len(repr(job)) < 300
