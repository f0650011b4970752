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
from numpy.typing import NDArray

from ...sampling.guidance import need_levels
from ...solvers import Plan
from ...solvers.guidance_kinds import GuidanceKind, guidance_kind
from ...solvers.options import INTERVAL, SHARE
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
    count = np.arange(int(plan.column("network").sum()))
    acts = (int(guider._start * steps) <= count) & (count < int(guider._stop * steps)) & (not off)
    info = {"guider": _settings(guider) | kind.info}
    plan = _written(plan, acts, float(guider.guidance_rescale), kind, info)
    return plan, 1.0 if off else gamma


def with_guidance(
    plan: Plan,
    *,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    guidance_type: str = "cfg",
    **options: Any,
) -> Plan:
    """Returns a scheduler's own plan with these settings of `fastdiff.Sampler`.

    Raises ValueError for values outside their domains, for cfg++, whose steps are the solver's, and
    for a plan without levels.
    """
    guidance_rescale = SHARE.check("guidance_rescale", guidance_rescale, _WHERE)
    INTERVAL.check("guidance_interval", guidance_interval, _WHERE)
    kind = guidance_kind(guidance_type, **options)
    if guidance_type == "cfg++":
        raise ValueError(
            f"{_WHERE}: expected guidance_type other than 'cfg++' for the scheduler's own steps."
            " Pass a solver too."
        )
    acts = np.ones(int(plan.column("network").sum()), bool)
    if guidance_interval is not None:
        levels = need_levels(plan, "guidance_interval")[: len(plan.table)]
        alpha, sigma = levels[plan.column("network")[: len(levels)] != 0].T
        with np.errstate(divide="ignore"):
            rho = sigma / alpha
        acts = (guidance_interval[0] <= rho) & (rho <= guidance_interval[1])
    info = {"guidance_rescale": guidance_rescale or None, "guidance_interval": guidance_interval}
    return _written(plan, acts, guidance_rescale, kind, info | kind.info)


def _written(
    plan: Plan, acts: NDArray[np.bool_], rescale: float, kind: GuidanceKind, info: dict[str, Any]
) -> Plan:
    """Returns the plan with guidance of this kind and rescale at the network calls in `acts`."""
    table = plan.table.copy()
    rows = np.flatnonzero(table[:, INDEX["network"]])
    table[rows, INDEX["guidance_weight"]] = acts
    table[rows, INDEX["guidance_rescale"]] = acts * rescale
    kind.write(table, _WHERE)
    return dataclasses.replace(plan, table=table, info={**plan.info, **info})


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
