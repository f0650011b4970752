"""The cases of schedulers that were made for one family of models."""

from __future__ import annotations

import numpy as np
import torch
from case import BETAS, SPACINGS, Case, each

MODELS: list[Case] = [
    *each(
        "CogVideoXDDIMScheduler",
        [
            *SPACINGS,
            BETAS,
            {"beta_schedule": "linear"},
            {"beta_schedule": "squaredcos_cap_v2", "snr_shift_scale": 1.0},
            {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
            {"snr_shift_scale": 1.5, "num_train_timesteps": 321},
            {
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
                "kinds": ("sample", "v_prediction"),
            },
        ],
        exact=True,
    ),
    *each(
        "LTXEulerAncestralRFScheduler",
        [
            {},
            {"eta": 0.4, "s_noise": 1.05},
            {"num_train_timesteps": 300},
            {"eta": 0.7, "set": lambda n: {"sigmas": np.linspace(1.0, 0.0, n + 1).tolist()}},
            {"set": lambda n: {"timesteps": torch.linspace(0.9, 0.1, n + 1)}},
        ],
        kinds=("",),
        stochastic=True,
    ),
    *each("LTXEulerAncestralRFScheduler", [{"eta": 0.0}, {"s_noise": 0.0}], kinds=("",)),
    *each(
        "FlowMapEulerDiscreteScheduler",
        [
            {},
            {"shift": 5.0},
            {"num_train_timesteps": 300, "shift": 2.0},
            {"shift": 2.0, "set": lambda n: {"sigmas": np.linspace(1.0, 1 / n, n).tolist()}},
            {"set": lambda n: {"timesteps": np.linspace(990, 10, n).tolist()}},
        ],
        kinds=("",),
    ),
]
