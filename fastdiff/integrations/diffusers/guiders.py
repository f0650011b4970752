"""diffusers' guiders as columns of a plan: those whose formula is a row's.

At the steps int(start n) … int(stop n) - 1 of n a guider combines the two halves, and at the others
the output is c. A row has the strength gamma (guidance_scale), the rescale phi (guidance_rescale),
whether guidance acts (guidance_weight), and its kind (fastdiff.solvers.guidance_kinds):

    ClassifierFreeGuidance            u + gamma (c - u)
    ClassifierFreeZeroStarGuidance    s u + gamma (c - s u), and 0 at the first steps
    AdaptiveProjectedGuidance         u + gamma D, in the space of outputs

use_original_formulation begins at c instead, which is a strength that is larger by 1.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ...solvers import Plan
from ...solvers.guidance_kinds import GuidanceKind
from ...table import INDEX, PROJECTED, PROJECTED_FROM_UNCOND

_WHERE = "fastdiff.Sampler.from_diffusers"


def with_guider(plan: Plan, guider: Any, steps: int) -> tuple[Plan, float]:
    """Returns the plan with a guider's kind, rescale and range of steps, and its guidance_scale.

    A scheduler of two timesteps a step visits more of them than num_inference_steps, and the guider
    counts timesteps: as in diffusers, it stops at the timestep of that number.

    Args:
        plan: with a row for each timestep that the pipeline visits.
        guider: one of diffusers, which is not changed.
        steps: num_inference_steps, of which start and stop are shares.

    Raises TypeError for other guiders, and ValueError for a norm over some dimensions only and for
    momentum where the scheduler needs all slots itself.
    """
    kind = _kind_of(guider)
    gamma = float(guider.guidance_scale) + bool(guider.use_original_formulation)
    off = math.isclose(gamma, 1.0)
    if not guider._enabled or (off and not kind.zero_init_steps):
        return plan, 1.0
    table = plan.table.copy()
    rows = np.flatnonzero(table[:, INDEX["network"]])
    count = np.arange(len(rows))
    acts = (int(guider._start * steps) <= count) & (count < int(guider._stop * steps)) & (not off)
    table[rows, INDEX["guidance_weight"]] = acts
    table[rows, INDEX["guidance_rescale"]] = acts * float(guider.guidance_rescale)
    kind.write(table, _WHERE)
    info = {**plan.info, "guider": _settings(guider) | kind.info}
    return dataclasses.replace(plan, table=table, info=info), 1.0 if off else gamma


def _classifier_free(guider: Any) -> GuidanceKind:
    return GuidanceKind()


def _zero_star(guider: Any) -> GuidanceKind:
    return GuidanceKind("cfg_zero_star", zero_init_steps=int(guider.zero_init_steps))


def _projected(guider: Any) -> GuidanceKind:
    dims = guider.adaptive_projected_guidance_norm_dim
    if dims is not None:
        raise ValueError(
            f"{_WHERE}: expected a guider without adaptive_projected_guidance_norm_dim, whose norm"
            f" is that of a whole sample, got {dims!r}."
        )
    norm = float(guider.adaptive_projected_guidance_rescale)
    return GuidanceKind(
        "apg",
        eta=float(guider.eta),
        norm=norm if norm > 0 else None,
        momentum=float(guider.adaptive_projected_guidance_momentum or 0.0),
        space="output",
        base=PROJECTED if guider.use_original_formulation else PROJECTED_FROM_UNCOND,
    )


_KINDS = {
    "ClassifierFreeGuidance": _classifier_free,
    "ClassifierFreeZeroStarGuidance": _zero_star,
    "AdaptiveProjectedGuidance": _projected,
}


def _kind_of(guider: Any) -> GuidanceKind:
    """Returns a guider's kind. Raises TypeError unless its forward is that of a known class."""
    for base in type(guider).__mro__:
        of: Any = base
        if base.__name__ in _KINDS and type(guider).forward is of.forward:
            return _KINDS[base.__name__](guider)
    raise TypeError(
        f"{_WHERE}: expected guider as diffusers' {', '.join(list(_KINDS)[:-1])} or"
        f" {list(_KINDS)[-1]}, got {type(guider).__name__}. AutoGuidance is guide= here, and other"
        " guidance is an option of fastdiff.Sampler."
    )


def _settings(guider: Any) -> dict[str, Any]:
    """Returns a guider's settings that decide on the plan, but those of its kind."""
    return {
        "start": float(guider._start),
        "stop": float(guider._stop),
        "guidance_rescale": float(guider.guidance_rescale),
    }
