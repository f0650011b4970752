"""The cases of exponential integrators: DPM-Solver(++), UniPC, DEIS, SA-Solver and EDM's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from case import ALL, BETAS, LEVELS, ROOT, SCALED, VELOCITY, ZERO, Case, each

_SPACINGS: list[dict[str, Any]] = [
    {"timestep_spacing": s, "steps_offset": 1} for s in ("leading", "linspace")
]
# beyond, the peer's first timesteps are equal, and it leaves its tables
_DULL: dict[str, Any] = {"steps": (1, 2, 3, 10)}
_CURVES: list[dict[str, Any]] = [
    SCALED,
    {"beta_schedule": "squaredcos_cap_v2"},
    BETAS,
    {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True, "steps": (1, 2, 3)},
]
_ZERO: dict[str, Any] = {**ZERO, "kinds": VELOCITY}
_CLIPPED: dict[str, Any] = {"lambda_min_clipped": -4.0, "beta_schedule": "squaredcos_cap_v2"}
_MIN: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
_FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "kinds": ("flow_prediction", *ALL)}
_FLOWN = {**_FLOW, "kinds": ("flow_prediction",)}
_SHIFTED = {
    "use_flow_sigmas": True,
    "use_dynamic_shifting": True,
    "kinds": ("flow_prediction",),
    "set": lambda n: {"num_inference_steps": n, "mu": 0.7},
}
_GIVEN = {"set": lambda n: {"timesteps": list(range(997, 0, -(990 // n)))[:n]}}
_THIRD = {"solver_order": 3, "high": True}
_NOISY = {"algorithm_type": "sde-dpmsolver++", "stochastic": True}
# the corrected state is remembered, and eps' steps multiply its roundings again and again
_REMEMBERED: dict[str, Any] = {"narrow": (1, 2, 3, 10)}
# a loop of two or three such steps multiplies them by 157 each time
_LEAPS: dict[str, Any] = {"narrow": (1, 10)}
_NOISE: dict[str, Any] = {"algorithm_type": "noise_prediction", **_REMEMBERED}
_EPS = {"algorithm_type": "dpmsolver", **_MIN}

_EVERY: list[Case] = [
    *each(
        "DPMSolverMultistepScheduler",
        [
            {"timestep_spacing": "trailing"},
            *_SPACINGS,
            *LEVELS,
            *_CURVES,
            _ZERO,
            ROOT,
            _CLIPPED,
            _MIN,
            _FLOW,
            _SHIFTED,
            _GIVEN,
            {"use_lu_lambdas": True},
            {"solver_order": 1},
            {"solver_type": "heun"},
            {"lower_order_final": False},
            {"kinds": ("flow_prediction",)},
            {**_MIN, "euler_at_final": True},
            {**_MIN, "lower_order_final": False},
            _THIRD,
            {**_THIRD, **_MIN},
            {**_THIRD, "use_karras_sigmas": True},
            {**_THIRD, **_FLOWN},
            _EPS,
            {**_EPS, "solver_order": 1},
            {**_EPS, "solver_type": "heun"},
            {**_EPS, **_THIRD},
            {**_EPS, **ROOT},
            {**_EPS, "euler_at_final": True, **_THIRD},
            _NOISY,
            {**_NOISY, "solver_order": 1},
            {**_NOISY, "solver_type": "heun"},
            {**_NOISY, **_THIRD},
            {**_NOISY, **_MIN},
            {**_NOISY, "use_karras_sigmas": True, "euler_at_final": True},
            {**_NOISY, **_FLOWN},
            {**_EPS, "algorithm_type": "sde-dpmsolver", "stochastic": True},
            {**_EPS, "algorithm_type": "sde-dpmsolver", "stochastic": True, "solver_type": "heun"},
        ],
    ),
    *each(
        "DPMSolverMultistepInverseScheduler",
        [
            {"timestep_spacing": "trailing"},
            *_SPACINGS,
            *(level | _DULL for level in LEVELS),
            *_CURVES,
            ROOT,
            _CLIPPED,
            _FLOWN,
            {"solver_order": 1},
            {"solver_type": "heun"},
            _THIRD,
            {"algorithm_type": "dpmsolver"},
            {"algorithm_type": "dpmsolver", **_THIRD},
            {"euler_at_final": True},
        ],
    ),
    *each(
        "DPMSolverSinglestepScheduler",
        [
            {},
            *LEVELS,
            *_CURVES,
            ROOT,
            _CLIPPED,
            _MIN,
            _FLOW,
            _SHIFTED,
            _GIVEN,
            {"solver_order": 1},
            {"solver_type": "heun"},
            {"lower_order_final": True},
            {**_MIN, "lower_order_final": True},
            _THIRD,
            {**_THIRD, "solver_type": "heun"},
            {**_THIRD, **_MIN, "lower_order_final": True},
            {"use_karras_sigmas": True, **_THIRD},
            _EPS,
            {**_EPS, "solver_type": "heun"},
            {**_EPS, **_THIRD, **_LEAPS},
            {**_EPS, **_THIRD, **_LEAPS, "solver_type": "heun"},
            _NOISY,
            {**_NOISY, "solver_type": "heun"},
            {**_NOISY, **_THIRD},
            {**_NOISY, **_THIRD, "solver_type": "heun"},
        ],
    ),
    *each(
        "UniPCMultistepScheduler",
        [
            {"timestep_spacing": "trailing"},
            *_SPACINGS,
            *(level | _DULL for level in LEVELS),
            SCALED,
            BETAS,
            _ZERO,
            ROOT,
            _MIN,
            {"use_karras_sigmas": True, **_MIN, **_DULL},
            {"solver_order": 1},
            {"solver_order": 1, **_MIN},
            _THIRD,
            {**_THIRD, **_MIN},
            {**_THIRD, **_MIN, "lower_order_final": False},
            {**_MIN, "solver_type": "bh1"},
            {**_MIN, "solver_type": "bh1", **_THIRD},
            {"disable_corrector": [0, 2, 5]},
            {**_THIRD, "disable_corrector": [1, 2]},
            {**_MIN, "predict_x0": False, **_LEAPS},
            {**_MIN, "predict_x0": False, "solver_type": "bh1", **_THIRD, **_REMEMBERED},
            {**_MIN, "predict_x0": False, **ROOT, **_LEAPS},
            {"use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 60.0},
            _FLOW,
            {**_FLOWN, **_MIN},
            {**_FLOWN, **_THIRD},
            {**_FLOWN, "use_karras_sigmas": True},
            {**_FLOWN, "shift_terminal": 0.1, "steps": (2, 3, 10, 50)},
            {**_SHIFTED, "shift_terminal": 0.05, "steps": (2, 3, 10, 50)},
            {**_SHIFTED, "time_shift_type": "linear"},
            {**_FLOWN, "set": lambda n: {"sigmas": np.linspace(1.0, 1 / n, n)}},
            {"kinds": ("flow_prediction",)},
        ],
    ),
    *each(
        "DEISMultistepScheduler",
        [
            {"timestep_spacing": "trailing"},
            *_SPACINGS,
            *(level | _DULL for level in LEVELS),
            SCALED,
            BETAS,
            ROOT,
            _FLOW,
            _SHIFTED,
            {"solver_order": 1},
            {"lower_order_final": False},
            {**_THIRD, **_REMEMBERED},
            {**_THIRD, "lower_order_final": False, **_REMEMBERED},
            {"kinds": ("flow_prediction",)},
            {**_THIRD, "use_karras_sigmas": True, **_DULL},
        ],
    ),
    *each(
        "SASolverScheduler",
        [
            {"timestep_spacing": "trailing"},
            *_SPACINGS,
            *(level | _DULL for level in LEVELS),
            SCALED,
            BETAS,
            ROOT,
            _CLIPPED,
            _FLOW,
            {"predictor_order": 1, "corrector_order": 1},
            {"predictor_order": 3, "corrector_order": 4, "high": True, **_REMEMBERED},
            {"predictor_order": 1, "corrector_order": 3, "high": True},
            {"predictor_order": 3, "corrector_order": 1, "high": True},
            {"lower_order_final": False},
            {"tau_func": lambda t: 0.3 + 0.5 * (t > 500)},
            {"tau_func": lambda t: 0},
            _NOISE,
            {**_NOISE, "tau_func": lambda t: 1},
            {**_NOISE, "lower_order_final": False},
            {
                **_NOISE,
                "predictor_order": 3,
                "corrector_order": 3,
                "high": True,
                "narrow": (1, 2, 3),
            },
        ],
        stochastic=True,
    ),
    *each(
        "EDMEulerScheduler",
        [
            {},
            {"sigma_schedule": "exponential"},
            {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 1.0, "rho": 5.0},
            _MIN,
            {"set": lambda n: {"sigmas": torch.linspace(0, 0.9, n)}},
        ],
        kinds=VELOCITY,
    ),
    *each(
        "EDMEulerScheduler",
        [
            {"step": {"s_churn": 4.0}},
            {"step": {"s_churn": 30.0, "s_tmin": 0.5, "s_tmax": 20.0, "s_noise": 1.01}},
        ],
        kinds=VELOCITY,
        stochastic=True,
    ),
    *each(
        "EDMDPMSolverMultistepScheduler",
        [
            {},
            {"sigma_schedule": "exponential"},
            {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 1.0, "rho": 5.0},
            _MIN,
            ROOT,
            {"solver_order": 1},
            {"solver_type": "heun"},
            {**_MIN, "euler_at_final": True},
            {"lower_order_final": False},
            _THIRD,
            {**_NOISY},
            {**_NOISY, "solver_type": "heun"},
            {**_NOISY, **_MIN},
        ],
        kinds=VELOCITY,
    ),
    *each(
        "DPMSolverSDEScheduler",
        [
            {},
            {"timestep_spacing": "leading", "steps_offset": 1},
            {"timestep_spacing": "trailing"},
            *LEVELS,
            SCALED,
            BETAS,
        ],
        kinds=VELOCITY,
        step={"s_noise": 0.0},
    ),
]


def _by_turns(cases: list[Case]) -> list[Case]:
    """A class's first case with every prediction type, and each variant with one of them in turn.

    The full product agrees too, but takes minutes.
    """
    seen: dict[str, int] = {}
    taken = []
    for case in cases:
        turn = seen[case.name] = seen.get(case.name, -1) + 1
        taken.append(case._replace(kinds=(ALL[turn % 3],)) if turn and case.kinds == ALL else case)
    return taken


INTEGRATORS = _by_turns(_EVERY)
