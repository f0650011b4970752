"""Predictor–corrector sampling: a solver's step to the next noise level, then Langevin steps at it.

The predictor is a row of a plan, one fused kernel; the corrector leaves the marginal as it is (for
small steps) and so takes the predictor's error away without moving on (Song et al. 2021, algorithm
1; the correctors are algorithms 4 and 5). With no corrector steps it is the reverse SDE alone, with
`ddim` as predictor the corrected probability flow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...prediction import Parametrization
from ...sampling.adaptive.start import Model, Start, point
from ...schedule import Schedule
from ...solvers import make_plan
from .langevin import at_level, check
from .velocity import local


@torch.no_grad()
def predictor_corrector(
    model: Model,
    schedule: Schedule,
    shape: Sequence[int] | None = None,
    *,
    predictor: str = "euler_maruyama",
    steps: int = 100,
    corrector_steps: int = 1,
    snr: float = 0.16,
    ratio: str = "level",
    seed: int | None = None,
    sample_ids: Tensor | Sequence[int] | None = None,
    x_T: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    guidance_scale: float | Tensor = 1.0,
    prediction_type: str | Parametrization = "epsilon",
    clip_range: float | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Tensor:
    """Samples by predictor and corrector in turn (Song et al. 2021, algorithm 1).

    Args:
        model, schedule, prediction_type, cond, uncond, guidance_scale, clip_range, seed,
            sample_ids, dtype: see `Sampler`.
        shape: [B, …], or x_T: the state at the first level.
        predictor: a solver of one step without memory: `euler_maruyama`, `ddpm`, `ddim`,
            `euler_ancestral` …
        steps: of the predictor, on a grid of `timestep_spacing`; options are the solver's and
            `Sampler`'s.
        corrector_steps: Langevin steps at each new level; none at clean data, whose score is not
            known.
        snr, ratio: their size, see fastdiff.theory.score.langevin: `level`, or `norm` for each
            sample's own. Few steps a level do not forget that their size came from the state: in
            few dimensions `norm` bends the law, in many they agree.

    The predictor draws at the steps of its rows and the corrector after them, both from stream 1 of
        the noise contract: a
    sample is the same alone and in any batch.

    Raises:
        ValueError, TypeError: for arguments outside these, and a predictor that remembers earlier
            steps.
    """
    where = "fastdiff.theory.score.predictor_corrector"
    check(where, snr, ratio, corrector_steps)
    plan = make_plan(
        schedule,
        solver=predictor,
        steps=steps,
        prediction_type=prediction_type,
        clip_range=clip_range,
        **options,
    )
    if plan.slots:
        raise ValueError(
            f"{where}: expected a predictor without memory, got {predictor!r}, whose remembered"
            " states the corrector would make untrue. Take euler_maruyama, ddpm or ddim."
        )
    start = Start(
        where,
        local(model, where),
        schedule,
        shape,
        point(plan, 0),
        x_T,
        seed,
        sample_ids,
        dtype,
        cond,
        uncond,
        guidance_scale,
        prediction_type,
        clip_range,
    )

    def correct(row: int, x: Tensor) -> Tensor:
        level = point(plan, row + 1)
        if level.sigma == 0:
            return x
        return at_level(
            start, x, level, corrector_steps, snr, len(plan) + row * corrector_steps, ratio
        )

    return start.along(plan, correct=correct if corrector_steps else None)
