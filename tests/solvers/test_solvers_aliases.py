"""Names of other programs: each resolves, makes a plan, and is accepted by every door."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fastdiff import Sampler, Schedule
from fastdiff.cli import main
from fastdiff.sampling.settings import merged
from fastdiff.solvers import SOLVERS, find, make_plan, resolve
from fastdiff.solvers.aliases import PROGRAMS, SAMPLERS, SCHEDULERS
from fastdiff.solvers.grids import SPACINGS, grid, timesteps

SCHEDULE = Schedule.scaled_linear(1000)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_s_name_makes_a_plan(name: str) -> None:
    """The plan is that of the solver that the table names, with its options."""
    alias = SAMPLERS[name]
    assert set(alias.options) <= set(SOLVERS[alias.solver].options)
    assert find(name).name == alias.solver
    plan = make_plan(SCHEDULE, solver=name, steps=8)
    named = make_plan(
        SCHEDULE,
        solver=alias.solver,
        steps=8,
        timestep_spacing=alias.spacing or "trailing",
        **alias.options,
    )
    assert plan.hash == named.hash and dict(plan.info) == dict(named.info)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_s_name_is_a_grid(name: str) -> None:
    assert SCHEDULERS[name] in SPACINGS
    assert grid(SCHEDULE, 7, name) == grid(SCHEDULE, 7, SCHEDULERS[name])
    plan = make_plan(SCHEDULE, solver="euler", steps=7, timestep_spacing=name)
    assert plan.info["timestep_spacing"] == SCHEDULERS[name]


def test_names_are_unambiguous() -> None:
    """A name means one thing in all programs, and fastdiff's own names mean fastdiff's solvers."""
    assert len(SAMPLERS) == sum(len(names.samplers) for names in PROGRAMS.values())
    assert len(SCHEDULERS) == sum(len(names.schedulers) for names in PROGRAMS.values())
    for name, alias in SAMPLERS.items():
        if name in SOLVERS:
            assert (alias.solver, dict(alias.options), alias.spacing) == (name, {}, None)
    for name, spacing in SCHEDULERS.items():
        assert name not in SPACINGS or name == spacing
    for names in PROGRAMS.values():
        assert not names.others.keys() & ({*names.samplers} | {*names.schedulers})


def test_the_peers_of_the_benchmarks_are_known_by_their_own_names() -> None:
    """A name is that of a solver whose steps the benchmarks compare with that class or function."""
    for program, field, form in (
        ("diffusers", "scheduler", "{}Scheduler"),
        ("k_diffusion", "sampler", "sample_{}"),
    ):
        peers: dict[str, set[str]] = {}
        for solver in SOLVERS.values():
            peer = getattr(solver.peer, field)
            if peer:
                peers.setdefault(form.format(peer), set()).add(solver.name)
        assert len(peers) > 10
        for name, solvers in peers.items():
            assert PROGRAMS[program].samplers[name].solver in solvers, name


def test_options_of_the_user_replace_those_of_the_name() -> None:
    assert resolve("dpmpp_2m_sde_heun", {"solver_type": "midpoint"}, "trailing") == (
        "dpm++2m_sde",
        {"solver_type": "midpoint"},
        "trailing",
    )
    with pytest.raises(ValueError, match="solver 'unipc' takes the options"):
        make_plan(SCHEDULE, solver="uni_pc", steps=3, eta=1.0)


def test_a_grid_in_the_name() -> None:
    assert resolve("DPM++ 2M Karras", {}, "trailing") == ("dpm++2m", {}, "karras")
    assert resolve("DPM++ 2M Karras", {}, "Karras") == ("dpm++2m", {}, "karras")
    assert resolve("DPM++ 2M", {}, "SGM Uniform") == ("dpm++2m", {}, "sgm_uniform")
    expected = (
        r"^fastdiff\.Sampler: expected timestep_spacing 'karras' or none with the solver 'DPM\+\+"
        r" 2M Karras', which names it, got 'ays'\.$"
    )
    with pytest.raises(ValueError, match=expected):
        make_plan(SCHEDULE, solver="DPM++ 2M Karras", steps=3, timestep_spacing="ays")


def test_the_sampler_keeps_fastdiff_s_names() -> None:
    """So runs with other steps, later starts and stored settings use the grid of the name."""
    one = Sampler(lambda x, t: 0.3 * x, SCHEDULE, solver="DPM++ 2M SDE Heun Karras", steps=6)
    other = Sampler(
        lambda x, t: 0.3 * x,
        SCHEDULE,
        solver="dpm++2m_sde",
        solver_type="heun",
        timestep_spacing="karras",
        steps=6,
    )
    assert one.settings == other.settings and one.plan.hash == other.plan.hash
    image = torch.linspace(-1, 1, 24).view(2, 3, 4)
    for arguments in ({"steps": 4, "strength": 1.0}, {"strength": 0.5}):
        a, b = (s.sample(image=image, seed=3, **arguments) for s in (one, other))
        assert torch.equal(a, b)


def test_a_stored_sampler_s_solver_may_be_overridden_by_a_name() -> None:
    stored = {"solver": "unipc", "steps": 10, "order": 3, "prediction_type": "v"}
    settings: dict[str, Any] = merged(stored, {"solver": "dpmpp_2m"})
    assert settings == {"solver": "dpmpp_2m", "steps": 10, "prediction_type": "v"}
    assert Sampler(lambda x, t: x, SCHEDULE, **settings).settings["solver"] == "dpm++2m"


def test_timesteps_of_a_scheduler_s_name() -> None:
    assert timesteps(1000, 20, "Turbo") == timesteps(1000, 20, "trailing")
    assert timesteps(1000, 20, "DDIM") == timesteps(1000, 20, "ddim_uniform")


@pytest.mark.parametrize("name", [None, 3, ["euler"], "DPM++ 4M"])
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^fastdiff\.Sampler: expected solver in \['"):
        make_plan(SCHEDULE, solver=name, steps=3)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_command_prints_the_names(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = PROGRAMS[program]
    assert main(["solvers", "--names", program]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, alias in names.samplers.items():
        assert any(line.startswith(f"{name}  ") and alias.solver in line for line in lines), name
    for name in (*names.schedulers, *names.others):
        assert any(line.startswith(f"{name}  ") for line in lines), name
    assert main(["solvers", "--names", program, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["samplers"].keys() == names.samplers.keys()
    assert printed["schedulers"].keys() == names.schedulers.keys()
    assert printed["others"] == names.others


def test_the_command_plan_accepts_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--solver", "dpmpp_2m", "--spacing", "SGM Uniform", "--steps", "3"]) == 0
    printed = capsys.readouterr().out
    assert "solver dpm++2m" in printed and "timestep_spacing sgm_uniform" in printed
