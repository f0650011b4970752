"""What the conformance suite runs: every drop-in with the configurations that change its numbers.

A class joins the suite by a line here. Each case is run in every prediction type and number of steps that the peer knows,
with the same start, network and draws on both sides (test_numbers.py), and once per class through diffusers' conventions
(test_contract.py).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from fastdiff import randn

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed here (make test installs it)")
pytest.importorskip("scipy", reason="beta grids and diffusers' LMS need scipy")

import fastdiff.integrations.diffusers as ours  # noqa: E402
from fastdiff.integrations.diffusers import tables  # noqa: E402

SHAPE = (2, 4, 6, 5)
ALL = ("epsilon", "sample", "v_prediction")
VELOCITY = ("epsilon", "v_prediction")
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Case(NamedTuple):
    """A class with a configuration and what is passed to each step.

    kinds: prediction types that the peer knows ("" where it has none). learned: the network gives twice the channels.
    exact: steps agree to 1e-6 (else 1e-5). high: of third order or more, so loops agree to 2e-4 (else 2e-5).
    steps: numbers of steps that the peer survives. set: further arguments of set_timesteps, or a function of n.
    """

    name: str
    config: dict[str, Any] = {}
    step: dict[str, Any] = {}
    kinds: tuple[str, ...] = ALL
    stochastic: bool = False
    learned: bool = False
    exact: bool = False
    high: bool = False
    steps: tuple[int, ...] = (1, 2, 3, 10, 50)
    set: Callable[[int], dict[str, Any]] | None = None

    @property
    def id(self) -> str:
        words = [f"{k}={v}" for k, v in {**self.config, **self.step}.items()]
        return ",".join([self.name.removesuffix("Scheduler"), *words, *(["set"] if self.set else [])])


def _each(name: str, variants: list[dict[str, Any]], **common: Any) -> list[Case]:
    """A case for each variant; a variant's keys that name fields of Case are those."""
    cases = []
    for variant in variants:
        fields = {k: v for k, v in variant.items() if k in Case._fields}
        cases.append(Case(name, {k: v for k, v in variant.items() if k not in Case._fields}, **{**common, **fields}))
    return cases


_SPACINGS: list[dict[str, Any]] = [{"timestep_spacing": s} for s in ("leading", "linspace", "trailing")]
_LEVELS: list[dict[str, Any]] = [{f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")]
_CURVES: list[dict[str, Any]] = [{"beta_schedule": "squaredcos_cap_v2"}, SCALED]
_BETAS = {"trained_betas": np.linspace(1e-4, 0.03, 400).tolist(), "num_train_timesteps": 400}
_ZERO: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
_ROOT = {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}

CASES = [
    *_each("DDIMScheduler", [
        *_SPACINGS, *_CURVES, _BETAS, _ROOT, {"clip_sample": False}, {"steps_offset": 1, "set_alpha_to_one": False},
        {**_ZERO, "kinds": ("sample", "v_prediction")}, {"clip_sample_range": 0.7, "num_train_timesteps": 321},
        {"step": {"use_clipped_model_output": True}},
    ], exact=True),
    *_each("DDIMScheduler", [
        {"step": {"eta": 1.0}}, {"step": {"eta": 0.4, "use_clipped_model_output": True}},
        {"step": {"eta": 0.6}, "set_alpha_to_one": False, "timestep_spacing": "trailing"},
    ], exact=True, stochastic=True),
    *_each("DDPMScheduler", [
        *_SPACINGS, *_CURVES, _BETAS, _ROOT, {"beta_schedule": "sigmoid"}, {"beta_schedule": "laplace"},
        {"clip_sample": False}, {"steps_offset": 1}, {"variance_type": "fixed_large"}, {"variance_type": "fixed_small_log"},
        {"variance_type": "fixed_large", "steps_offset": 1}, {"variance_type": "learned_range", "learned": True},
        {"variance_type": "learned", "learned": True}, {**_ZERO, "kinds": ("sample", "v_prediction")},
        {"set": lambda n: {"timesteps": list(range(997, 0, -(990 // n)))[:n]}},
    ], exact=True, stochastic=True),
    *_each("EulerDiscreteScheduler", [
        *_SPACINGS, *_LEVELS, *_CURVES, _BETAS, {"steps_offset": 1, "timestep_spacing": "leading"},
        {"final_sigmas_type": "sigma_min"}, {"use_karras_sigmas": True, "sigma_min": 0.02, "sigma_max": 70.0},
        {"timestep_type": "continuous", "use_karras_sigmas": True, "kinds": ("v_prediction",)}, _ZERO,
        {"set": lambda n: {"timesteps": list(range(997, 0, -(990 // n)))[:n]}},
        {"set": lambda n: {"sigmas": [*np.geomspace(80, 0.1, n).tolist(), 0.0]}},
    ]),
    *_each("EulerDiscreteScheduler", [
        {"step": {"s_churn": 4.0}}, {"step": {"s_churn": 30.0, "s_tmin": 0.5, "s_tmax": 20.0, "s_noise": 1.01}},
    ], stochastic=True),
    *_each("EulerAncestralDiscreteScheduler", [*_SPACINGS, *_CURVES, _BETAS, _ZERO], kinds=VELOCITY, stochastic=True),
]  # fmt: skip

CLASSES = sorted({case.name for case in CASES})


class Lifted:
    """A module whose float32 is its float64."""

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


def lift(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Lets both sides compute their tables in float64."""
    module = importlib.import_module(getattr(diffusers, name).__module__)
    monkeypatch.setattr(module, "torch", Lifted(torch))
    monkeypatch.setattr(module, "np", Lifted(np))
    monkeypatch.setattr(tables, "FLOAT", torch.float64)
    torch.set_default_dtype(torch.float64)


def both(case: Case, kind: str, **config: Any) -> tuple[Any, Any]:
    """(diffusers' scheduler, fastdiff's) of a case."""
    config = {**case.config, **({"prediction_type": kind} if kind else {}), **config}
    return getattr(diffusers, case.name)(**config), getattr(ours, case.name)(**config)


def set_timesteps(case: Case, scheduler: Any, steps: int) -> None:
    scheduler.set_timesteps(**(case.set(steps) if case.set else {"num_inference_steps": steps}))


def start(scheduler: Any, dtype: torch.dtype, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return randn(shape, seed=1, dtype=dtype) * float(scheduler.init_noise_sigma)


def network(x: torch.Tensor, kind: str = "epsilon", learned: bool = False) -> torch.Tensor:
    """A smooth network that ignores the time; with `learned` a second half in (0, 1).

    For data and noise of unit variance a perfect velocity is 0: larger ones make an unstable flow, in which roundings grow.
    """
    out = torch.tanh(0.7 * x + 0.1) - 0.2 * x / (1 + 0.01 * x * x)
    out = {"sample": 0.8, "v_prediction": 0.2}.get(kind, 1.0) * out
    return torch.cat([out, torch.sigmoid(x)], dim=1) if learned else out


def arguments(case: Case, generator: torch.Generator) -> dict[str, Any]:
    return {**case.step, **({"generator": generator} if case.stochastic else {})}


def finite(*values: torch.Tensor) -> bool:
    return all(math.isfinite(float(v.abs().max())) for v in values)
