"""The conformance suite's cases: every drop-in with the configurations that change its numbers.

A class joins the suite by a line here. Each case is run for every prediction type and number of
steps that the peer has, with the same start, network and draws on both sides (test_numbers.py), and
once per class through diffusers' conventions (test_contract.py).
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from case import BETAS, CURVES, LEVELS, ROOT, SCALED, SHAPE, SPACINGS, VELOCITY, ZERO, Case, each
from cases_few import FEW
from cases_integrators import INTEGRATORS
from cases_models import MODELS

from fastdiff import randn

diffusers = pytest.importorskip(
    "diffusers", reason="diffusers is not installed here (make test installs it)"
)
pytest.importorskip("scipy", reason="beta grids and diffusers' LMS need scipy")

import fastdiff.integrations.diffusers as ours  # noqa: E402
from fastdiff.integrations.diffusers import tables  # noqa: E402

CASES = [
    *each(
        "DDIMScheduler",
        [
            *SPACINGS,
            *CURVES,
            BETAS,
            ROOT,
            {"clip_sample": False},
            {"steps_offset": 1, "set_alpha_to_one": False},
            {**ZERO, "kinds": ("sample", "v_prediction")},
            {"clip_sample_range": 0.7, "num_train_timesteps": 321},
            {"step": {"use_clipped_model_output": True}},
        ],
        exact=True,
    ),
    *each(
        "DDIMScheduler",
        [
            {"step": {"eta": 1.0}},
            {"step": {"eta": 0.4, "use_clipped_model_output": True}},
            {"step": {"eta": 0.6}, "set_alpha_to_one": False, "timestep_spacing": "trailing"},
        ],
        exact=True,
        stochastic=True,
    ),
    *each(
        "DDPMScheduler",
        [
            *SPACINGS,
            *CURVES,
            BETAS,
            ROOT,
            {"beta_schedule": "sigmoid"},
            {"beta_schedule": "laplace"},
            {"clip_sample": False},
            {"steps_offset": 1},
            {"variance_type": "fixed_large"},
            {"variance_type": "fixed_small_log"},
            {"variance_type": "fixed_large", "steps_offset": 1},
            {"variance_type": "learned_range", "learned": True},
            {"variance_type": "learned", "learned": True},
            {**ZERO, "kinds": ("sample", "v_prediction")},
            {"set": lambda n: {"timesteps": list(range(997, 0, -(990 // n)))[:n]}},
        ],
        exact=True,
        stochastic=True,
    ),
    *each(
        "EulerDiscreteScheduler",
        [
            *SPACINGS,
            *LEVELS,
            *CURVES,
            BETAS,
            {"steps_offset": 1, "timestep_spacing": "leading"},
            {"final_sigmas_type": "sigma_min"},
            {"use_karras_sigmas": True, "sigma_min": 0.02, "sigma_max": 70.0},
            {"timestep_type": "continuous", "use_karras_sigmas": True, "kinds": ("v_prediction",)},
            ZERO,
            {"set": lambda n: {"timesteps": list(range(997, 0, -(990 // n)))[:n]}},
            {"set": lambda n: {"sigmas": [*np.geomspace(80, 0.1, n).tolist(), 0.0]}},
        ],
    ),
    *each(
        "EulerDiscreteScheduler",
        [
            {"step": {"s_churn": 4.0}},
            {"step": {"s_churn": 30.0, "s_tmin": 0.5, "s_tmax": 20.0, "s_noise": 1.01}},
        ],
        stochastic=True,
    ),
    *each(
        "DDIMInverseScheduler",
        [
            {},
            {"timestep_spacing": "trailing"},
            {"clip_sample": False, **SCALED},
            {"steps_offset": 1, "set_alpha_to_one": False},
        ],
        exact=True,
        kinds=VELOCITY,
    ),
    *each("DDIMInverseScheduler", [{"set_alpha_to_one": False}], exact=True),
    Case("DDIMParallelScheduler", exact=True),
    Case("DDPMParallelScheduler", {"timestep_spacing": "trailing"}, exact=True, stochastic=True),
    *each(
        "PNDMScheduler",
        [
            *[
                {"skip_prk_steps": True, **s}
                for s in (*SPACINGS, *CURVES, {"steps_offset": 1, "set_alpha_to_one": True})
            ],
            *[
                {**s, "steps": (4, 5, 10, 50)}
                for s in (*SPACINGS, *CURVES, {"steps_offset": 1, "set_alpha_to_one": True})
            ],
        ],
        exact=True,
        kinds=VELOCITY,
        high=True,
    ),
    Case("IPNDMScheduler", kinds=("",), high=True),
    *each(
        "LMSDiscreteScheduler",
        [*SPACINGS, *LEVELS, *CURVES, BETAS, {"step": {"order": 2}}],
        high=True,
        steps=(1, 2, 3, 10),
    ),
    Case("LMSDiscreteScheduler", kinds=("epsilon",), high=True, steps=(50,)),
    *each(
        "HeunDiscreteScheduler",
        [
            *SPACINGS,
            *LEVELS,
            *CURVES,
            {"beta_schedule": "exp"},
            BETAS,
            {"clip_sample": True, "clip_sample_range": 0.8},
            {"set": lambda n: {"timesteps": list(range(997, 0, -(990 // n)))[:n]}},
        ],
    ),
    *each("KDPM2DiscreteScheduler", [*SPACINGS, *LEVELS, *CURVES, BETAS], kinds=VELOCITY),
    *each(
        "KDPM2AncestralDiscreteScheduler",
        [*SPACINGS, *LEVELS, *CURVES, BETAS],
        kinds=VELOCITY,
        stochastic=True,
    ),
    *each(
        "EulerAncestralDiscreteScheduler",
        [*SPACINGS, *CURVES, BETAS, ZERO],
        kinds=VELOCITY,
        stochastic=True,
    ),
    *FEW,
    *INTEGRATORS,
    *MODELS,
]

CLASSES = sorted({case.name for case in CASES})


class Lifted:
    """A module whose float32 is its float64."""

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


def lift(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Lets both sides compute their tables in float64."""
    names = [name, "FlowMatchEulerDiscreteScheduler"] if name.startswith("LTX") else [name]
    for each_name in names:
        module = importlib.import_module(getattr(diffusers, each_name).__module__)
        monkeypatch.setattr(module, "torch", Lifted(torch))
        monkeypatch.setattr(module, "np", Lifted(np), raising=False)
    monkeypatch.setattr(tables, "FLOAT", torch.float64)
    torch.set_default_dtype(torch.float64)


def both(case: Case, kind: str, **config: Any) -> tuple[Any, Any]:
    """(diffusers' scheduler, fastdiff's) of a case."""
    config = {**case.config, **({"prediction_type": kind} if kind else {}), **config}
    return getattr(diffusers, case.name)(**config), getattr(ours, case.name)(**config)


def set_timesteps(case: Case, scheduler: Any, steps: int) -> None:
    scheduler.set_timesteps(**(case.set(steps) if case.set else {"num_inference_steps": steps}))


def start(scheduler: Any, dtype: torch.dtype, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return randn(shape, seed=1, dtype=dtype) * float(getattr(scheduler, "init_noise_sigma", 1.0))


def network(x: torch.Tensor, kind: str = "epsilon", learned: bool = False) -> torch.Tensor:
    """A smooth network that ignores the time; with `learned` it has a second half in (0, 1).

    For data and noise of unit variance a perfect velocity is 0. Larger ones make an unstable flow,
    in which roundings grow.
    """
    out = torch.tanh(0.7 * x + 0.1) - 0.2 * x / (1 + 0.01 * x * x)
    out = {"sample": 0.8, "v_prediction": 0.2}.get(kind, 1.0) * out
    return torch.cat([out, torch.sigmoid(x)], dim=1) if learned else out


def arguments(case: Case, generator: torch.Generator) -> dict[str, Any]:
    return {**case.step, **({"generator": generator} if case.stochastic else {})}


def finite(*values: torch.Tensor) -> bool:
    return all(math.isfinite(float(v.abs().max())) for v in values)
