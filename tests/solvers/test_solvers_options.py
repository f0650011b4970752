"""Every option of every solver has a domain, and every solver a plan or a sentence on any grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff import Sampler, Schedule
from fastdiff.prediction import Parametrization
from fastdiff.schedule import Time
from fastdiff.solvers import SOLVERS, Linear, Trace, make_plan, options
from fastdiff.solvers.grids import SPACINGS
from fastdiff.solvers.registry import solver

BAD = [
    -1,
    0,
    2,
    1.5,
    1e-30,
    1e30,
    1e200,
    10**30,
    10**400,
    10**5000,
    math.nan,
    math.inf,
    -math.inf,
    "x",
    "",
    None,
    True,
    [1],
    (),
    {},
    object(),
    np.float32(0.5),
    np.float64(-0.5),
    np.int64(1),
    np.bool_(True),
    torch.tensor(0.5),
    torch.zeros(2),
    1j,
]
LINEAR = Schedule.linear(1000)
REFUSED = r"^fastdiff\.Sampler: expected .+, got .+\.( Did you mean '\w+'\?)?$"
SCHEDULES = {
    "linear": LINEAR,
    "one": Schedule.linear(1),
    "cosine": Schedule.cosine(10),
    "zero": LINEAR.rescale_zero_terminal_snr(),
    "flow": Schedule.flow(1000),
    "vp": Schedule.vp(1000),
    "sub_vp": Schedule.sub_vp(1000),
    "karras": Schedule.karras(1000),
    "ve": Schedule.ve(1000),
}
OPTIONS = [(name, option) for name, found in SOLVERS.items() for option in found.options]


def plan_or_sentence(**arguments: Any) -> bool:
    """Whether these arguments make a plan. Anything but one sentence of fastdiff's fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            plan = make_plan(**arguments)
        except (ValueError, TypeError) as error:
            text = str(error)
            assert text.startswith("fastdiff.") and "expected" in text and "got" in text, text
            assert text.endswith(".") and "\n" not in text and len(text) < 700, text
            return False
    assert np.isfinite(plan.table).all()
    return True


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_bad_values(name: str, option: str) -> None:
    for value in BAD:
        plan_or_sentence(schedule=LINEAR, solver=name, steps=5, **{option: value})
    default = SOLVERS[name].options[option]
    assert plan_or_sentence(schedule=LINEAR, solver=name, steps=5, **{option: default})
    for value in ("x", math.nan, object(), {}):
        with pytest.raises(ValueError, match=rf"fastdiff\.Sampler: expected {option} "):
            make_plan(LINEAR, solver=name, steps=5, **{option: value})


OUTSIDE: list[tuple[str, dict[str, Any], str]] = [
    ("res_2s", {"c2": 0.0}, "c2 in (0, 1]"),
    ("res_3s", {"c2": 0.5, "c3": 0.5}, "c2 < c3"),
    ("res_3s", {"c2": 2 / 3}, "other than 2/3"),
    ("seeds2", {"r": 1.5}, "expected r in (0, 1]"),
    ("seeds2", {"eta": -1.0}, "expected eta >= 0"),
    ("seeds2", {"solver_type": "phi_3"}, "solver_type in"),
    ("seeds3", {"r1": 0.7}, "expected r1 < r2"),
    ("er_sde", {"order": 4}, "order in [1, 2, 3]"),
    ("er_sde", {"phi": lambda rho: rho**0.5}, "does not fall"),
    ("gradient_estimation", {"gamma": math.nan}, "gamma as a finite number"),
    ("ipndm_v", {"order": 0}, "order in [1, 2, 3, 4]"),
    ("rk", {"variable": "time"}, "variable in"),
    ("rk", {"tableau": "rk5"}, "tableau in"),
    ("rk", {"tableau": 4}, "as a name, (a, b) or (a, b, c)"),
    ("rk", {"tableau": ([[]], [])}, "as many rows of a as weights"),
    ("rk", {"tableau": ([[], [1.0]], [0.5, 0.4])}, "whose b adds up to 1"),
    ("rk", {"tableau": ([[], [1.0]], [0.5, "half"])}, "lists of finite numbers"),
    ("rk", {"tableau": ([[], [0.5, 0.5]], [0.5, 0.5])}, "that is explicit"),
    ("rk", {"tableau": ([[], [1.0, 0.0, 0.0]], [0.5, 0.5])}, "1 or 2 numbers in row 1"),
    ("rk", {"tableau": ([[], [1.0]], [0.5, 0.5], [0.0, 0.5])}, "add up to c"),
    ("rk", {"tableau": ([[], [1.0]], [0.5, 0.5], [0.0])}, "as many times c"),
    ("rk", {"tableau": ([[], [1.5]], [2 / 3, 1 / 3])}, "with c in [0, 1]"),
]


@pytest.mark.parametrize(
    "solver, options, said", OUTSIDE, ids=[f"{solver} {said}" for solver, _, said in OUTSIDE]
)
def test_options_outside_their_domain_are_refused(
    solver: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=REFUSED) as caught:
        make_plan(LINEAR, solver=solver, steps=5, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_option_declares_its_domain(name: str) -> None:
    assert SOLVERS[name].domains.keys() == SOLVERS[name].options.keys()


def test_an_option_without_a_domain_is_no_solver() -> None:
    def undeclared(p: Trace, times: Sequence[Time], *, gamma: float = 1.0) -> Linear:
        return p.start

    with pytest.raises(TypeError, match="expected a domain for the option 'gamma' of undeclared"):
        solver("undeclared", paper="none")(undeclared)
    assert "undeclared" not in SOLVERS


@pytest.mark.parametrize("name", SOLVERS)
def test_few_steps_on_every_grid(name: str) -> None:
    """With every configuration, so that no option meets a point outside the schedule.

    Each grid meets three of the schedules, one at each number of steps; others for other solvers.
    """
    own = SOLVERS[name]
    flags = [{o: not v} for o, v in own.options.items() if isinstance(v, bool)]
    configurations = [{}, *flags, *(dict(c.options) for c in own.configurations)]
    made, first = 0, list(SOLVERS).index(name)
    for steps in (1, 2, 3):
        for number, spacing in enumerate(SPACINGS):
            for schedule in list(SCHEDULES.values())[(first + number + 3 * steps) % 9 :: 9]:
                for chosen in configurations:
                    made += plan_or_sentence(
                        schedule=schedule,
                        solver=name,
                        steps=steps,
                        timestep_spacing=spacing,
                        prediction_type="v",
                        **chosen,
                    )
    assert made > 15


@pytest.mark.parametrize("name", SOLVERS)
def test_points_of_the_user(name: str) -> None:
    sigmas = [[0.9, 0.5, 0.2, 0.0], [0.99], [1e-20, 1e-30], [1.0, 0.5], [0.5, 0.4999999999999999]]
    timesteps = [[9, 5, 2], [0], [999, 998], [1, 0], [2.5, 1.5]]
    for schedule in SCHEDULES.values():
        for values in sigmas:
            plan_or_sentence(schedule=schedule, solver=name, steps=1, sigmas=values)
        for times in timesteps:
            plan_or_sentence(schedule=schedule, solver=name, steps=1, timesteps=times)


@pytest.mark.parametrize(
    "argument",
    [
        "solver",
        "steps",
        "prediction_type",
        "clip_range",
        "timestep_spacing",
        "timesteps",
        "sigmas",
        "dynamic_threshold",
        "guidance_rescale",
        "guidance_interval",
        "guidance_type",
    ],
)
def test_bad_values_of_a_plan(argument: str) -> None:
    lists: list[Any] = [[None], ["x"], [math.nan], [1, 2], [2, math.nan], [10**400], ["2", "1"]]
    for schedule in (LINEAR, SCHEDULES["flow"]):
        for value in [*BAD, *lists]:
            arguments = {"solver": "ddim", "steps": 5, argument: value}
            plan_or_sentence(schedule=schedule, **arguments)
    arguments = {"solver": "ddim", "steps": 5, argument: object()}
    assert not plan_or_sentence(schedule=LINEAR, **arguments)


def test_numbers_of_any_type_are_the_same_plan() -> None:
    expected = make_plan(LINEAR, solver="ddim", steps=5, eta=0.5)
    for eta in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), Fraction(1, 2)):
        plan = make_plan(LINEAR, solver="ddim", steps=5, eta=eta)
        assert plan.hash == expected.hash
    order = make_plan(LINEAR, solver="unipc", steps=5, order=np.int64(3))
    assert order.hash == make_plan(LINEAR, solver="unipc", steps=5, order=3).hash


def test_full_rows_of_a_tableau_are_its_lower_triangle() -> None:
    square = ([[0.0, 0.0], [1.0, 0.0]], [0.5, 0.5], [0.0, 1.0])
    plans = [
        make_plan(LINEAR, solver="rk", steps=5, tableau=given)
        for given in ("heun", square, [[[], [1]], [0.5, 0.5]])
    ]
    assert len({plan.hash for plan in plans}) == 1


def test_a_function_as_tau() -> None:
    with pytest.raises(ValueError, match=r"fastdiff.Sampler: expected tau\(point\) >= 0"):
        make_plan(LINEAR, solver="sa", steps=5, tau=lambda point: "x")
    assert make_plan(LINEAR, solver="sa", steps=5, tau=lambda point: 0.5).stochastic


def test_jumps_that_need_too_many_rows() -> None:
    with pytest.raises(ValueError, match="expected jumps that need 1048576 rows at most"):
        make_plan(LINEAR, solver="repaint", steps=50, jump_length=1, jump_n_sample=10**9)


def test_a_level_below_all_timesteps() -> None:
    """TCD stays at a point that has no timestep below it."""
    plan = make_plan(LINEAR, solver="tcd", steps=2, sigmas=[1e-3, 1e-4])
    assert plan.column("x.z")[0] == 0.0
    for t in (-1, 1000, math.nan, math.inf, -5293):
        with pytest.raises(ValueError, match="fastdiff.Schedule.at: expected t in"):
            LINEAR.at(t)
    for t in (-1, 1500.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="fastdiff.Schedule.at: expected t in"):
            SCHEDULES["flow"].at(t)


def test_the_samplers_own_arguments() -> None:
    for arguments in (
        {"solver": "ddim", "eta": "x"},
        {"solver": "dpm++2m_sde", "eta": -1},
        {"solver": "dpm++sde", "r": 2},
        {"prediction_type": Parametrization("v", unit_input=True, sigma_data=0.0)},
        {"prediction_type": Parametrization(None)},  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"^fastdiff\.Sampler: expected "):
            Sampler(lambda x, t: x, LINEAR, steps=3, **arguments)  # type: ignore[arg-type]


def test_values_in_sentences_are_short() -> None:
    assert options.shown("x" * 1000).endswith("…") and len(options.shown("x" * 1000)) == 80
    assert options.shown(10**5000) == "a huge int"
