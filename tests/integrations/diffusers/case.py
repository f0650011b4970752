"""A case of the conformance suite, and the configurations that several classes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

SHAPE = (2, 4, 6, 5)
ALL = ("epsilon", "sample", "v_prediction")
VELOCITY = ("epsilon", "v_prediction")
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Case(NamedTuple):
    """A class with a configuration, and the arguments of its steps.

    kinds: the prediction types that the peer has ("" where it has none). learned: whether the
    network returns twice the channels. exact: whether steps agree to 1e-6, otherwise to 1e-5. high:
    whether the order is 3 or more; then loops agree to 2e-4, otherwise to 2e-5. steps: numbers of
    steps that work in the peer. narrow: those of them that are compared in float32; with more, the
    peer's own roundings grow beyond any tolerance.
    set: further arguments of set_timesteps, or a function of n that returns them.
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
    narrow: tuple[int, ...] = (1, 2, 3, 10, 50)
    set: Callable[[int], dict[str, Any]] | None = None

    @property
    def id(self) -> str:
        shown = {
            k: "…" if isinstance(v, list) or callable(v) else v
            for k, v in {**self.config, **self.step}.items()
        }
        words = [f"{k}={v}" for k, v in shown.items()]
        return ",".join(
            [self.name.removesuffix("Scheduler"), *words, *(["set"] if self.set else [])]
        )


def each(name: str, variants: list[dict[str, Any]], **common: Any) -> list[Case]:
    """A case for each variant; a variant's keys that name fields of Case are those."""
    cases = []
    for variant in variants:
        fields = {k: v for k, v in variant.items() if k in Case._fields}
        cases.append(
            Case(
                name,
                {k: v for k, v in variant.items() if k not in Case._fields},
                **{**common, **fields},
            )
        )
    return cases


SPACINGS: list[dict[str, Any]] = [
    {"timestep_spacing": s} for s in ("leading", "linspace", "trailing")
]
LEVELS: list[dict[str, Any]] = [
    {f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")
]
CURVES: list[dict[str, Any]] = [{"beta_schedule": "squaredcos_cap_v2"}, SCALED]
BETAS = {"trained_betas": np.linspace(1e-4, 0.03, 400).tolist(), "num_train_timesteps": 400}
ZERO: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
ROOT = {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}
