"""The conformance suite's cases of exponential integrators: DPM-Solver(++), UniPC, DEIS, SA-Solver, and EDM's."""

from __future__ import annotations

from typing import Any

from case import ALL, BETAS, LEVELS, ROOT, SCALED, VELOCITY, ZERO, Case, each

_SPACINGS: list[dict[str, Any]] = [{"timestep_spacing": s, "steps_offset": 1} for s in ("leading", "linspace")]
# beyond, the peer's first timesteps are equal, and it leaves its tables
_DULL: dict[str, Any] = {"steps": (1, 2, 3, 10)}
_CURVES: list[dict[str, Any]] = [
    SCALED, {"beta_schedule": "squaredcos_cap_v2"}, BETAS,
    {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True, "steps": (1, 2, 3)},
]  # fmt: skip
_ZERO: dict[str, Any] = {**ZERO, "kinds": VELOCITY}
_CLIPPED: dict[str, Any] = {"lambda_min_clipped": -4.0, "beta_schedule": "squaredcos_cap_v2"}
_MIN: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
_FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "kinds": ("flow_prediction", *ALL)}
_FLOWN = {**_FLOW, "kinds": ("flow_prediction",)}
_SHIFTED = {
    "use_flow_sigmas": True, "use_dynamic_shifting": True, "kinds": ("flow_prediction",),
    "set": lambda n: {"num_inference_steps": n, "mu": 0.7},
}  # fmt: skip
_GIVEN = {"set": lambda n: {"timesteps": list(range(997, 0, -(990 // n)))[:n]}}
_THIRD = {"solver_order": 3, "high": True}
_NOISY = {"algorithm_type": "sde-dpmsolver++", "stochastic": True}
_EPS = {"algorithm_type": "dpmsolver", **_MIN}

INTEGRATORS: list[Case] = [
    *each("DPMSolverMultistepScheduler", [
        {"timestep_spacing": "trailing"}, *_SPACINGS, *LEVELS, *_CURVES, _ZERO, ROOT, _CLIPPED, _MIN, _FLOW, _SHIFTED,
        _GIVEN, {"use_lu_lambdas": True},
        {"solver_order": 1}, {"solver_type": "heun"}, {"lower_order_final": False}, {"kinds": ("flow_prediction",)},
        {**_MIN, "euler_at_final": True}, {**_MIN, "lower_order_final": False}, _THIRD, {**_THIRD, **_MIN},
        {**_THIRD, "use_karras_sigmas": True}, {**_THIRD, **_FLOWN},
        _EPS, {**_EPS, "solver_order": 1}, {**_EPS, "solver_type": "heun"}, {**_EPS, **_THIRD}, {**_EPS, **ROOT},
        {**_EPS, "euler_at_final": True, **_THIRD},
        _NOISY, {**_NOISY, "solver_order": 1}, {**_NOISY, "solver_type": "heun"}, {**_NOISY, **_THIRD},
        {**_NOISY, **_MIN}, {**_NOISY, "use_karras_sigmas": True, "euler_at_final": True}, {**_NOISY, **_FLOWN},
        {**_EPS, "algorithm_type": "sde-dpmsolver", "stochastic": True},
        {**_EPS, "algorithm_type": "sde-dpmsolver", "stochastic": True, "solver_type": "heun"},
    ]),
    *each("DPMSolverMultistepInverseScheduler", [
        {"timestep_spacing": "trailing"}, *_SPACINGS, *(level | _DULL for level in LEVELS), *_CURVES, ROOT, _CLIPPED,
        _FLOWN, {"solver_order": 1}, {"solver_type": "heun"}, _THIRD,
        {"algorithm_type": "dpmsolver"}, {"algorithm_type": "dpmsolver", **_THIRD}, {"euler_at_final": True},
    ]),
    *each("DPMSolverSinglestepScheduler", [
        {}, *LEVELS, *_CURVES, ROOT, _CLIPPED, _MIN, _FLOW, _SHIFTED, _GIVEN, {"solver_order": 1},
        {"solver_type": "heun"}, {"lower_order_final": True}, {**_MIN, "lower_order_final": True}, _THIRD,
        {**_THIRD, "solver_type": "heun"}, {**_THIRD, **_MIN, "lower_order_final": True},
        {"use_karras_sigmas": True, **_THIRD},
        _EPS, {**_EPS, "solver_type": "heun"}, {**_EPS, **_THIRD}, {**_EPS, **_THIRD, "solver_type": "heun"},
        _NOISY, {**_NOISY, "solver_type": "heun"}, {**_NOISY, **_THIRD}, {**_NOISY, **_THIRD, "solver_type": "heun"},
    ]),
]  # fmt: skip
