"""The cases of schedulers that were made for one family of models."""

from __future__ import annotations

from typing import Any

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
]
