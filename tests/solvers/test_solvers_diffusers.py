"""Compares solvers over full loops with diffusers' schedulers that work on a table of noise levels,
in float64 (peers.py).

These schedulers store x/alpha. Three solvers are missing because diffusers is wrong there, and
test_solvers_order.py compares them with the exact solution: dpm++3m_sde, where diffusers has -½ and
the integral and k-diffusion have +½; Euler with churn, where diffusers passes the network the state
before the churn; and the first step of ipndm from pure noise, where diffusers divides by 1e-8 in
place of 0 (the comparison starts later).
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from peers import KINDS, close, lifted, loop, run, start, times_of

from fastdiff import Schedule
from fastdiff.schedule import CLEAN
from fastdiff.solvers import make_plan

pytest.importorskip("diffusers", reason="diffusers is not installed here (make test installs it)")
pytest.importorskip("scipy", reason="diffusers' LMS needs scipy")

# diffusers converts tensors by the `numpy` that is replaced here
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning"),
]

BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
SCHEDULE = Schedule.scaled_linear(1000)
STEPS = (1, 2, 3, 10, 50)
DPM, UNI, DEIS, SA = "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "SASolver"
FULL = {"lower_order_final": False}
NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
SDE = {"algorithm_type": "sde-dpmsolver++"}


def tau(time) -> float:
    """diffusers' default: noise between timesteps 200 and 800."""
    return 1.0 if 200 <= time.t <= 800 else 0.0


CASES = [
    # fastdiff's solver and options, diffusers' class and configuration, whether it stores x/alpha
    ("dpm++1", {}, DPM, {"solver_order": 1}, False),
    ("dpm++2m", {}, DPM, {"solver_order": 2, **FULL}, False),
    (
        "dpm++2m",
        {"lower_order_final": True},
        DPM,
        {"solver_order": 2, "final_sigmas_type": "sigma_min"},
        False,
    ),
    (
        "dpm++2m",
        {"solver_type": "heun"},
        DPM,
        {"solver_order": 2, "solver_type": "heun", **FULL},
        False,
    ),
    ("res_2m", {}, DPM, {"solver_order": 2, "solver_type": "heun", **FULL}, False),
    (
        "res_2m_ancestral",
        {"eta": 0.0},
        DPM,
        {"solver_order": 2, "solver_type": "heun", **FULL},
        False,
    ),
    ("er_sde", {"phi": 1.0, "order": 1}, DPM, {"solver_order": 1, **SDE}, False),
    ("dpm++3m", {"as_published": True}, DPM, {"solver_order": 3, **FULL}, False),
    ("dpm++2m_sde", {}, DPM, {"solver_order": 2, **SDE, **FULL}, False),
    (
        "dpm++2m_sde",
        {"solver_type": "heun"},
        DPM,
        {"solver_order": 2, **SDE, "solver_type": "heun", **FULL},
        False,
    ),
    ("dpm1", {}, DPM, {"solver_order": 1, **NOISE}, False),
    ("dpm2m", {}, DPM, {"solver_order": 2, **NOISE, **FULL}, False),
    ("dpm3m", {"as_published": True}, DPM, {"solver_order": 3, **NOISE, **FULL}, False),
    ("unipc", {"order": 1}, UNI, {"solver_order": 1}, False),
    ("unipc", {"order": 2}, UNI, {"solver_order": 2}, False),
    ("unipc", {"order": 3}, UNI, {"solver_order": 3}, False),
    (
        "unipc",
        {"order": 2, "solver_type": "bh1"},
        UNI,
        {"solver_order": 2, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        False,
    ),
    ("deis", {"order": 1}, DEIS, {"solver_order": 1}, False),
    ("deis", {"order": 2}, DEIS, {"solver_order": 2, **FULL}, False),
    ("deis", {"order": 3}, DEIS, {"solver_order": 3, **FULL}, False),
    ("sa", {"tau": tau, "as_published": True}, SA, {}, False),
    (
        "sa",
        {"tau": tau, "predictor_order": 1, "corrector_order": 1},
        SA,
        {"predictor_order": 1, "corrector_order": 1},
        False,
    ),
    (
        "sa",
        {"tau": tau, "predictor_order": 3, "corrector_order": 4, "as_published": True},
        SA,
        {"predictor_order": 3, "corrector_order": 4},
        False,
    ),
    (
        "sa",
        {
            "tau": tau,
            "predictor_order": 3,
            "corrector_order": 3,
            "as_published": True,
            "lower_order_final": False,
        },
        SA,
        {"predictor_order": 3, "corrector_order": 3, **FULL},
        False,
    ),
    ("euler", {}, "EulerDiscrete", {}, True),
    ("euler_ancestral", {}, "EulerAncestralDiscrete", {}, True),
    ("heun", {}, "HeunDiscrete", {}, True),
    ("rk", {"tableau": "euler"}, "EulerDiscrete", {}, True),
    ("rk", {"tableau": "heun"}, "HeunDiscrete", {}, True),
    ("gradient_estimation", {"gamma": 1.0}, "EulerDiscrete", {}, True),
    ("lms", {}, "LMSDiscrete", {}, True),
    ("kdpm2", {}, "KDPM2Discrete", {}, True),
    ("kdpm2_ancestral", {}, "KDPM2AncestralDiscrete", {}, True),
]
WITHOUT_X0 = ("EulerAncestralDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")


def _id(case: tuple) -> str:
    return case[0] + "".join(f"-{v.__name__ if callable(v) else v}" for v in case[1].values())


def _compare(solver, options, name, config, scaled, kind, steps, monkeypatch, spacing=None):
    if kind == "x0" and name in WITHOUT_X0:
        pytest.skip("the peer does not know this prediction type")
    # KDPM2 draws after its second stage
    draws = itertools.count(1, 2) if name.startswith("KDPM2") else itertools.count()
    given = {**BETAS, "prediction_type": KINDS[kind], **config}
    scheduler = lifted(f"{name}Scheduler", monkeypatch, draws, **given)
    scheduler.set_timesteps(steps)
    sigmas, timesteps = scheduler.sigmas, scheduler.timesteps
    assert sigmas.dtype == torch.float64
    if name.startswith(("Heun", "KDPM2")):  # interior levels are there twice
        sigmas = torch.cat([sigmas[:1], sigmas[1 : 2 * steps : 2]])
    x, first, last = start(), float(sigmas[0]), float(sigmas[-1])
    expected = loop(scheduler, x * math.sqrt(first**2 + 1) if scaled else x)
    if scaled and last > 0:
        expected = expected / math.sqrt(last**2 + 1)
    if not expected.isfinite().all():
        pytest.skip("the peer is not finite")
    times = times_of(sigmas, timesteps)
    if name == DPM and "lower_order_final" in options:
        options = {"lower_order_final": steps < 15}  # as diffusers decides
    plan = make_plan(
        SCHEDULE, solver=solver, steps=steps, times=times, prediction_type=kind, **options
    )
    close(run(plan, x), expected)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=_id)
def test_full_loops(case: tuple, kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _compare(*case, kind, steps, monkeypatch)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c[0] in ("dpm++1", "euler", "euler_ancestral")], ids=_id
)
def test_a_thousand_steps(case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other schedulers of diffusers are not finite there, because their grid of 1000 steps has a
    timestep twice.
    """
    _compare(*case, "epsilon", 1000, monkeypatch)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    "solver, name",
    [
        ("flow_euler", "FlowMatchEulerDiscrete"),
        ("flow_heun", "FlowMatchHeunDiscrete"),
        ("rk-euler", "FlowMatchEulerDiscrete"),
        ("rk-heun", "FlowMatchHeunDiscrete"),
    ],
)
def test_flow_matching(
    solver: str, name: str, shift: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starts at sigma = 1, pure noise. For Heun's method diffusers' table has each interior level
    twice.
    """
    scheduler = lifted(f"{name}Scheduler", monkeypatch, shift=shift)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas
    if "Heun" in name:
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
    times = times_of(sigmas, scheduler.timesteps, "flow")
    assert len(times) == steps + 1 and times[0].alpha == 0 and times[-1] == CLEAN
    solver, _, tableau = solver.partition("-")
    options = {"tableau": tableau, "variable": "flow"} if tableau else {}
    plan = make_plan(
        Schedule.flow(shift=shift),
        solver=solver,
        steps=steps,
        times=times,
        prediction_type="flow",
        **options,
    )
    if "Heun" in name and steps > 1:
        assert plan.network_calls == 2 * steps - 1
    close(run(plan, start()), loop(scheduler, start()))


@pytest.mark.parametrize("steps", [2, 3, 10, 50])
def test_ipndm(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' networks predict v with alpha² + sigma² = 1, and its `betas` are sigma."""
    levels = torch.cat(
        [
            torch.linspace(0.99, 0.05, steps, dtype=torch.float64),
            torch.zeros(1, dtype=torch.float64),
        ]
    )
    scheduler = lifted("IPNDMScheduler", monkeypatch, trained_betas=levels.tolist())
    scheduler.set_timesteps(steps)
    times = times_of(levels / (1 - levels**2).sqrt(), torch.zeros(steps))
    plan = make_plan(SCHEDULE, solver="ipndm", steps=steps, times=times, prediction_type="v")
    close(run(plan, start()), loop(scheduler, start()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm, solver", [("dpmsolver++", "dpm++2s"), ("dpmsolver", "dpm2s")])
def test_singlestep(
    algorithm: str, solver: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' inner points are the odd ones of its grid. On levels even in lambda they are
    fastdiff's midpoints.
    """
    config = {"solver_order": 2, "algorithm_type": algorithm, "final_sigmas_type": "sigma_min"}
    scheduler = lifted(
        "DPMSolverSinglestepScheduler", monkeypatch, **BETAS, prediction_type=KINDS[kind], **config
    )
    scheduler.set_timesteps(10)
    scheduler.sigmas = torch.exp(
        torch.linspace(math.log(14.0), math.log(0.05), 11, dtype=torch.float64)
    )
    times = times_of(scheduler.sigmas, scheduler.timesteps)[::2]
    plan = make_plan(SCHEDULE, solver=solver, steps=5, times=times, prediction_type=kind)
    close(run(plan, start()), loop(scheduler, start()))
