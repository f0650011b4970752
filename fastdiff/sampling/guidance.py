"""Guidance, which moves samples away from the plain prediction, written into the rows of a plan.

Classifier-free guidance (Ho & Salimans 2022) is out = u + gamma (c - u) inside `reverse_step`, with
the conditional half of the network call first. If the host knows the strength gamma, it decides
which halves are called: for 1 only the conditional one, for 0 only the unconditional one. For
strengths in a tensor both are called. CFG++ (Chung et al. 2024) uses the guided output for x0 only:
the noise that a step adds again is the unconditional output's (the column out_uncond). CFG-Zero*
and APG change the unconditional output itself (fastdiff.solvers.guidance_kinds); at strength 0 too
both halves are called then.

Classifier guidance (Dhariwal & Nichol 2021, eq. 14; Luo 2022, eq. 166) adds s grad log p(y | x_t)
to the score, so x0 = x0_x x + x0_out out grows by s sigma²/alpha·grad. The row adds out_grad·grad
to the output, with out_grad = s sigma²/(alpha x0_out).

A guidance of x0, any function (x0, x_t, t) -> x0, splits a row in two: the first row computes x0,
the second reads the guided x0 as its network output. eps follows from the guided x0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..grad_mode import restored
from ..solvers import Plan
from ..table import INDEX, OPERANDS, OUTPUTS


class Strength(NamedTuple):
    """A parsed guidance_scale.

    Attributes:
        gamma: of the samples, a number or a tensor [B].
        over_rows: a gamma for every row of the plan, which `over_rows` writes into it; gamma is
            then 2. None if the strength does not vary over rows.
    """

    gamma: float | Tensor
    over_rows: tuple[float, ...] | None = None


def strength(value: Any, batch: int | None = None) -> Strength:
    """Parses a guidance_scale: a number for all samples, a tensor [batch] with a strength per
    sample, or a sequence with one per row of the plan.

    Raises ValueError for anything else, and for numbers that are not finite.
    """
    if isinstance(value, Tensor) and batch is not None:
        if value.shape != (batch,):
            raise ValueError(
                f"fastdiff.Sampler: expected guidance_scale as a number or a tensor [{batch}]."
            )
        return Strength(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value):
        return Strength(2.0, tuple(_finite(v) for v in value))  # 2.0: see over_rows
    return Strength(_finite(value))


def _finite(value: Any, where: str = "fastdiff.Sampler") -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite guidance_scale, got {value!r}.")
    return float(value)


def single_strength(value: Any, where: str) -> float | Tensor:
    """A guidance strength that does not vary over rows: a finite number, or a tensor [] or [B].

    Raises ValueError for anything else.
    """
    if isinstance(value, Tensor):
        if value.ndim > 1:
            raise ValueError(f"{where}: expected guidance_scale as a number or a tensor [B].")
        return value
    if isinstance(value, Sequence):
        raise ValueError(
            f"{where}: expected guidance_scale as a number or a tensor [B], got {value!r}."
        )
    return _finite(value, where)


def over_rows(plan: Plan, strengths: Sequence[float]) -> Plan:
    """The plan with a strength per row.

    Samples get strength 2 and row i the weight w = gamma_i - 1, so that the strength used is
    1 + w (2 - 1) = gamma_i. Rows outside a guidance interval stay outside.

    Raises ValueError unless there is one strength per row.
    """
    if len(strengths) != len(plan):
        raise ValueError(
            f"fastdiff.Sampler: expected guidance_scale with {len(plan)} strengths, one per row of"
            f" the plan, got {len(strengths)}."
        )
    if 1.0 in strengths and (plan.column("guidance_momentum") != 0).any():
        raise ValueError(
            "fastdiff.Sampler: expected strengths other than 1 with apg_momentum, whose rows"
            " remember the guidance before, got 1. Use guidance_interval for rows without guidance."
        )
    table = plan.table.copy()
    inside = table[:-1, INDEX["guidance_weight"]] != 0
    table[:-1, INDEX["guidance_weight"]] = np.where(inside, np.asarray(strengths) - 1.0, 0.0)
    # Strength 0 selects the unconditional output, which is not rescaled unless a kind changes it.
    changed = table[:-1, INDEX["guidance_kind"]] != 0
    table[:-1, INDEX["guidance_rescale"]] *= changed | (np.asarray(strengths) != 0)
    return dataclasses.replace(
        plan, table=table, info={**plan.info, "guidance_scale": list(strengths)}
    )


def with_classifier(plan: Plan, scale: float) -> Plan:
    """The plan with classifier guidance of this strength.

    Raises ValueError for a plan without levels.
    """
    levels = need_levels(plan, "classifier")
    table = plan.table.copy()
    for row, (alpha, sigma) in enumerate(levels[:-1]):
        if table[row, INDEX["network"]]:
            slope = alpha * table[row, INDEX["x0_out"]]
            # Pure noise (alpha = 0) is independent of y: its gradient is zero.
            table[row, INDEX["out_grad"]] = scale * sigma**2 / slope if slope else 0.0
    return dataclasses.replace(plan, table=table, info={**plan.info, "classifier_scale": scale})


def split(plan: Plan) -> tuple[Plan, Plan]:
    """(to_x0, from_x0): a plan whose rows end in x0, and one whose rows read x0 as the network's
    output.

    In `from_x0`, out = (x0 - x0_x x)/x0_out.

    Raises ValueError where the output does not follow from x0.
    """
    to_x0, from_x0 = plan.table.copy(), plan.table.copy()
    first = INDEX["x." + OPERANDS[0]]  # of the coefficients of all outputs
    coefficients = slice(first, first + len(OUTPUTS) * len(OPERANDS))
    if (plan.column("guidance_momentum") != 0).any():
        raise ValueError(
            "fastdiff.Sampler: expected apg_momentum 0 with guidance=, which splits a row in two,"
            " got another."
        )
    if (plan.column("out_uncond") != 0).any():
        raise ValueError(
            "fastdiff.Sampler: expected guidance_type 'cfg' with guidance=, got 'cfg++', whose"
            " steps read another output than x0 follows from."
        )
    for row in range(len(plan)):
        to_x0[row, INDEX["next"]] = row
        to_x0[row, coefficients] = 0.0
        to_x0[row, INDEX["noise_mode"]] = 0.0
        if not plan.table[row, INDEX["network"]]:
            to_x0[row, INDEX["x.x"]] = 1.0
            continue
        to_x0[row, INDEX["x.x0"]] = 1.0
        on_x, on_out = plan.table[row, INDEX["x0_x"]], plan.table[row, INDEX["x0_out"]]
        for name in (
            "guidance_rescale",
            "guidance_kind",
            "guidance_parallel",
            "guidance_x",
            "guidance_bound",
            "out_grad",
            "x0_x",
            "clip_mode",
            "clip_bound",
            "clip_ratio",
        ):
            from_x0[row, INDEX[name]] = 0.0
        from_x0[row, INDEX["x0_out"]] = 1.0
        for to in OUTPUTS:
            c = plan.table[row, INDEX[f"{to}.out"]]
            if c == 0:
                continue
            if on_out == 0:
                raise ValueError(
                    "fastdiff.Sampler: expected a network output that follows from x0, got row"
                    f" {row} where it does not. Begin later, or without guidance=."
                )
            from_x0[row, INDEX[f"{to}.x"]] -= c * on_x / on_out
            from_x0[row, INDEX[f"{to}.out"]] = 0.0
            from_x0[row, INDEX[f"{to}.x0"]] += c / on_out
    return dataclasses.replace(plan, table=to_x0), dataclasses.replace(plan, table=from_x0)


def need_levels(plan: Plan, what: str) -> np.ndarray:
    """The plan's (alpha, sigma) per row [R, 2].

    Raises ValueError for a plan without levels; `what` names the option that needs them.
    """
    if plan.levels is None:
        raise ValueError(
            f"fastdiff.Sampler: expected a plan with levels for {what}, got none. Give the Plan"
            " levels=, (alpha, sigma) of the state before each row."
        )
    return plan.levels


@restored
def gradient(
    classifier: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, *, recorded: bool = False
) -> Tensor:
    """grad log p(y | x_t) [B, …], by automatic differentiation of the log p [B] that the classifier
    returns, or as the classifier returns it. With `recorded` it can be differentiated again.

    Raises ValueError for a result of another shape.
    """
    with torch.enable_grad():
        leaf = x if recorded and x.requires_grad else x.detach().requires_grad_()
        result = classifier(leaf, t)
        if isinstance(result, Tensor) and result.requires_grad and result.shape == x.shape[:1]:
            return torch.autograd.grad(result.sum(), leaf, create_graph=recorded)[0]
    if not isinstance(result, Tensor) or result.shape != x.shape:
        got = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(
            f"fastdiff.Sampler: expected classifier(x, t) to give log p(y|x) [{len(x)}] that"
            f" depends on x, or its gradient {list(x.shape)}, got {got}."
        )
    return result if recorded else result.detach()
