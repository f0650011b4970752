"""diffusers' guiders as columns of a plan: those whose formula is a row's.

`ClassifierFreeGuidance` gives u + gamma (c - u), rescaled by phi, at the steps
int(start n) … int(stop n) - 1 of n, and c at the others. A row has gamma (guidance_scale), phi
(guidance_rescale) and whether guidance acts (guidance_weight).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ...solvers import Plan
from ...table import INDEX

_WHERE = "fastdiff.Sampler.from_diffusers"


def with_guider(plan: Plan, guider: Any, steps: int) -> tuple[Plan, float]:
    """Returns the plan with a guider's rescale and range of steps, and its guidance_scale.

    A scheduler of two timesteps a step visits more of them than num_inference_steps, and the guider
    counts timesteps: as in diffusers, it stops at the timestep of that number.

    Args:
        plan: with a row for each timestep that the pipeline visits.
        guider: a ClassifierFreeGuidance of diffusers, which is not changed.
        steps: num_inference_steps, of which start and stop are shares.

    Raises TypeError for other guiders.
    """
    kind: Any = type(guider)
    known: Any = next((c for c in kind.__mro__ if c.__name__ == "ClassifierFreeGuidance"), None)
    if known is None or kind.forward is not known.forward:
        raise TypeError(
            f"{_WHERE}: expected guider as diffusers' ClassifierFreeGuidance, got"
            f" {type(guider).__name__}. Other guidance is an option of fastdiff.Sampler."
        )
    # in the original formulation the output is c + scale (c - u)
    gamma = float(guider.guidance_scale) + bool(guider.use_original_formulation)
    if not guider._enabled or math.isclose(gamma, 1.0):
        return plan, 1.0
    table = plan.table.copy()
    rows = np.flatnonzero(table[:, INDEX["network"]])
    count = np.arange(len(rows))
    acts = (int(guider._start * steps) <= count) & (count < int(guider._stop * steps))
    table[rows, INDEX["guidance_weight"]] = acts
    table[rows, INDEX["guidance_rescale"]] = acts * float(guider.guidance_rescale)
    info = {**plan.info, "guider": dict(_settings(guider))}
    return dataclasses.replace(plan, table=table, info=info), gamma


def _settings(guider: Any) -> dict[str, Any]:
    """Returns a guider's settings that decide on the plan."""
    return {
        "start": float(guider._start),
        "stop": float(guider._stop),
        "guidance_rescale": float(guider.guidance_rescale),
    }
