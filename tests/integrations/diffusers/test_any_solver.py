"""`fastdiff.Scheduler`: every solver and grid inside pipelines of every family.

The pipeline's states are compared with those of `Sampler`, which runs the same plan in its own loop
on a network that replays the pipeline's outputs and checks what it is given.

The whole table of families, solvers and grids runs with FASTDIFF_TEST_ALL=1; otherwise a part of it
does, another part every day.
"""

from __future__ import annotations

import datetime
import inspect
import os
import random
import re
from typing import Any

import diffusers
import pytest
import torch
from tolerances import DROP_IN_PIPELINE

import fastdiff
from fastdiff.integrations.diffusers.sampler_settings import trained
from fastdiff.solvers import SOLVERS, make_plan
from fastdiff.solvers.grids import SPACINGS

pytest.importorskip("transformers", reason="diffusers' text-to-image pipelines import transformers")
from any_pipelines import FAMILIES, drawn, made  # noqa: E402
from any_runs import check, close, scheduler_for  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ALL = os.environ.get("FASTDIFF_TEST_ALL") == "1"
TODAY = random.Random(datetime.date.today().toordinal())


def part(cases: list[Any], count: int) -> list[Any]:
    """All cases, or `count` of them that depend on the day."""
    return cases if ALL or len(cases) <= count else sorted(TODAY.sample(cases, count))


TABLE = [(family, solver, "trailing") for family in FAMILIES for solver in SOLVERS]
GRIDS = [(family, "dpm++2m", grid) for family in FAMILIES for grid in SPACINGS]
OWN = [(family, solver, None) for family in FAMILIES for solver in ("ddim", "heun", "unipc")]


def refusal(family: str, solver: str, grid: str | None) -> str | None:
    """Why a solver or a grid is undefined on a family's schedule; None where it is not."""
    theirs = made(family).scheduler
    known = trained("Scheduler", type(theirs).__name__, theirs.config, mu=1.0)
    try:
        make_plan(
            known.schedule,
            solver=solver,
            steps=10,
            prediction_type=known.parametrization,
            timestep_spacing=grid or "trailing",
        )
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("family, solver, grid", [*part(TABLE, 14), *part(GRIDS, 6), *part(OWN, 4)])
def test_a_pipeline_takes_the_steps_of_the_sampler(
    family: str, solver: str, grid: str | None
) -> None:
    reason = refusal(family, solver, grid)
    if reason is not None:
        with pytest.raises(ValueError, match=re.escape(reason)):
            scheduler_for(family, solver, grid)
        return
    scheduler = scheduler_for(family, solver, grid)
    check(family, scheduler)


# solvers whose steps are diffusers' own with this class, and those of them that each family has
EQUAL = (
    "euler",
    "heun",
    "euler_ancestral",
    "kdpm2_ancestral",
    "lcm",
    "ddim",
    "ddpm",
    "dpm++1",
    "dpm++2m",
    "dpm++2m_sde",
    "dpm1",
    "unipc",
)
SAME = [
    *((family, solver) for family in ("sd", "sd image") for solver in EQUAL),
    *((name, "flow_euler") for name, f in FAMILIES.items() if f.scheduler[0].startswith("FlowM")),
    ("sd3", "flow_heun"),
    ("wan", "unipc"),
    ("sana", "dpm++2m"),
    ("edm", "euler"),
    ("dit", "ddim"),
    ("cogvideox", "ddim"),
]


@pytest.mark.parametrize("family, solver", part(SAME, 8))
def test_a_pipeline_gives_what_it_gives_with_diffusers_scheduler(family: str, solver: str) -> None:
    """With the same generator, so the draws are the same, too."""
    pipe, peer = made(family), SOLVERS[solver].peer
    if family.startswith("sd"):
        cls = getattr(diffusers, f"{peer.scheduler}Scheduler")
        config = {**FAMILIES[family].scheduler[1], **peer.config}
        pipe.scheduler = cls(
            **{k: v for k, v in config.items() if k in inspect.signature(cls).parameters}
        )
    theirs = pipe.scheduler
    expected = drawn(pipe, family, generator=torch.Generator().manual_seed(0))
    pipe.scheduler = fastdiff.Scheduler.like(theirs, solver=solver)
    got = drawn(pipe, family, generator=torch.Generator().manual_seed(0))
    close(got, expected, DROP_IN_PIPELINE)
