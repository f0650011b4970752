"""Predictor–corrector sampling: a solver's step to the next noise level, then Langevin steps there.

The predictor is one row of a plan, one fused kernel. The corrector leaves the marginal at its noise
level unchanged (for small steps) and so reduces the predictor's error (Song et al. 2021, algorithm
1; the correctors are algorithms 4 and 5). Without corrector steps this is the reverse SDE; with
`ddim` as the predictor it is the probability flow with corrections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...grad_mode import restored
from ...prediction import Parametrization
from ...sampling.adaptive.prepared_run import Model, PreparedRun, point
from ...schedule import Schedule
from ...solvers import make_plan
from .langevin import at_level, check
from .local_model import local_model


@restored
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
    """Samples by alternating predictor and corrector steps (Song et al. 2021, algorithm 1).

    Args:
        model, schedule, prediction_type, cond, uncond, guidance_scale, clip_range, seed,
            sample_ids, dtype: see `Sampler`.
        shape: [B, …]. x_T: the state at the first level, instead of shape.
        predictor: a solver without slots: `euler_maruyama`, `ddpm`, `ddim`, `euler_ancestral` …
        steps: of the predictor, on a grid of `timestep_spacing`. options: further arguments of the
            solver and of `Sampler`.
        corrector_steps: Langevin steps at each new level; none at clean data, where the score is
            not known.
        snr, ratio: their step size, see fastdiff.theory.score.langevin. `norm` computes it from
            the state, which biases few steps a level in few dimensions; in many dimensions both
            agree.

    Noise is stream 1 of the noise contract, at the steps of the rows for the predictor and after
    them for the corrector: a sample is the same alone and in any batch.

    Raises:
        ValueError, TypeError: arguments outside these, and a predictor that uses earlier steps.
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
            f"{where}: expected a predictor without memory, got {predictor!r}, which uses earlier"
            " states that the corrector has changed. Use euler_maruyama, ddpm or ddim."
        )
    run = PreparedRun(
        where,
        local_model(model, where),
        schedule,
        point(plan, 0),
        shape=shape,
        x_T=x_T,
        seed=seed,
        sample_ids=sample_ids,
        dtype=dtype,
        cond=cond,
        uncond=uncond,
        guidance_scale=guidance_scale,
        prediction_type=prediction_type,
        clip_range=clip_range,
    )

    def correct(row: int, x: Tensor) -> Tensor:
        level = point(plan, row + 1)
        if level.sigma == 0:
            return x
        return at_level(
            run, x, level, corrector_steps, snr, len(plan) + row * corrector_steps, ratio
        )

    return run.follow(plan, correct=correct if corrector_steps else None)
