"""The cases of distilled networks, flow matching, RePaint, unCLIP and consistency models."""

from __future__ import annotations

from typing import Any

import numpy as np
from case import BETAS, CURVES, LEVELS, ROOT, Case, each

_SHIFTS: list[dict[str, Any]] = [
    {},
    *LEVELS,
    {"shift": 3.0},
    {"shift": 3.0, "use_karras_sigmas": True},
    {"shift_terminal": 0.1, "shift": 2.0, "steps": (2, 3, 10, 50)},
    {"invert_sigmas": True, "shift": 1.5},
    {"num_train_timesteps": 300},
    {"use_dynamic_shifting": True, "set": lambda n: {"num_inference_steps": n, "mu": 0.8}},
    {
        "use_dynamic_shifting": True,
        "time_shift_type": "linear",
        "set": lambda n: {"num_inference_steps": n, "mu": 2.2},
    },
    {"shift": 2.0, "set": lambda n: {"sigmas": np.linspace(1.0, 1 / n, n).tolist()}},
    {"shift": 2.0, "set": lambda n: {"timesteps": np.linspace(990, 10, n).tolist()}},
    {
        "set": lambda n: {
            "timesteps": np.linspace(990, 10, n).tolist(),
            "sigmas": np.linspace(0.98, 0.02, n).tolist(),
        }
    },
]
_CUT = {
    "set": lambda n: {"timesteps": np.linspace(999, 30, n).astype(int).tolist(), "strength": 0.6},
    "steps": (2, 3, 10, 50),
}
_GIVEN = {"set": lambda n: {"timesteps": np.linspace(999, 30, n).astype(int).tolist()}}
_DISTILLED: list[dict[str, Any]] = [
    {"set": lambda n: {"num_inference_steps": n, "original_inference_steps": 1000}},
    {},
    *CURVES,
    BETAS,
    ROOT,
    _GIVEN,
    _CUT,
    {"clip_sample": True, "clip_sample_range": 0.8},
    {"set": lambda n: {"num_inference_steps": n, "original_inference_steps": 60, "strength": 0.9}},
    {"rescale_betas_zero_snr": True, "kinds": ("sample", "v_prediction")},
    {"original_inference_steps": 100},
]

FEW = [
    *each("FlowMatchEulerDiscreteScheduler", _SHIFTS, kinds=("",)),
    *each(
        "FlowMatchEulerDiscreteScheduler",
        [
            {"stochastic_sampling": True},
            {"stochastic_sampling": True, "invert_sigmas": True, "shift": 3.0},
        ],
        kinds=("",),
        stochastic=True,
    ),
    *each(
        "FlowMatchHeunDiscreteScheduler",
        [{}, {"shift": 3.0}, {"num_train_timesteps": 300}],
        kinds=("",),
    ),
    *each(
        "FlowMatchHeunDiscreteScheduler",
        [
            {"step": {"s_churn": 3.0}},
            {"step": {"s_churn": 9.0, "s_tmin": 0.3, "s_tmax": 0.8, "s_noise": 1.02}, "shift": 2.0},
        ],
        kinds=("",),
        stochastic=True,
    ),
    *each("LCMScheduler", [*_DISTILLED, {"timestep_scaling": 1.0}], stochastic=True),
    *each(
        "TCDScheduler",
        [*_DISTILLED, *({"step": {"eta": eta}} for eta in (0.0, 0.07, 1.0))],
        stochastic=True,
    ),
    Case(  # (1 - eta) 600 is below 504 in float32
        "TCDScheduler",
        {},
        {"eta": 0.16},
        stochastic=True,
        steps=(2, 3, 5),
        set=lambda n: {"timesteps": [999, 600, 300, 150, 75][:n]},
    ),
    *each(
        "CMStochasticIterativeScheduler",
        [
            {"num_train_timesteps": 1000},
            {"clip_denoised": False, "s_noise": 1.1},
            {"sigma_data": 1.0, "num_train_timesteps": 300},
            {
                "num_train_timesteps": 300,
                "set": lambda n: {"timesteps": np.linspace(290, 7, n).astype(int).tolist()},
            },
        ],
        kinds=("",),
        stochastic=True,
        steps=(1, 2, 3, 10, 40),
    ),
    *each(
        "UnCLIPScheduler",
        [
            {},
            {"clip_sample": False},
            {"clip_sample_range": 2.0, "num_train_timesteps": 500},
            {"variance_type": "learned_range", "learned": True},
        ],
        kinds=("epsilon", "sample"),
        stochastic=True,
        steps=(2, 3, 10, 50),
    ),
    *each("FlowMatchLCMScheduler", _SHIFTS, kinds=("",), stochastic=True),
]
