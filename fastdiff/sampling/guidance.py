"""Guidance: what pulls a sample away from the plain prediction, written into the rows of a plan.

Classifier-free guidance (Ho & Salimans 2022) is out = u + gamma (c - u) inside `reverse_step`, the
conditional half of the
network call first. A strength gamma that the host knows decides which halves are called: 1 needs
    only the conditional
one, 0 only the unconditional one; for a tensor both are.

Classifier guidance (Dhariwal & Nichol 2021, eq. 14; Luo 2022, eq. 165) adds s grad log p(y | x_t)
to the score, so x0 = x0_x x + x0_out out grows by s sigma²/alpha·grad: the row's `out_grad` is s
sigma²/(alpha x0_out).

A guidance of x0, any function (x0, x_t, t) -> x0, divides a row in two: the first gives x0, the
second takes the guided x0 as its network's output and goes on; eps follows from the guided x0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..solvers import Plan
from ..table import INDEX, OPERANDS, OUTPUTS


class Strength(NamedTuple):
    """A parsed guidance_scale: gamma per sample, as host numbers or as a tensor, and gammas over
    the rows of the plan.
    """

    gamma: float | Tensor
    over_rows: tuple[float, ...] | None = None


def strength(value: Any, batch: int | None = None) -> Strength:
    """A number for all, a tensor [batch] for a strength per sample, a sequence for one per row of
    the plan.

    Raises ValueError for anything else, and for numbers that are not finite.
    """
    if isinstance(value, Tensor) and batch is not None:
        if value.shape != (batch,):
            raise ValueError(
                f"fastdiff.Sampler: expected guidance_scale as a number or a tensor [{batch}]."
            )
        return Strength(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value):
        return Strength(2.0, tuple(_finite(v) for v in value))
    return Strength(_finite(value))


def _finite(value: Any, where: str = "fastdiff.Sampler") -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite guidance_scale, got {value!r}.")
    return float(value)


def over_rows(plan: Plan, strengths: Sequence[float]) -> Plan:
    """The plan with a strength per row: weight w = gamma_i - 1, for samples of strength 2, is 1 + w
    (2 - 1) = gamma_i.

    Rows outside a guidance interval stay there. Raises ValueError unless there is one strength per
    row.
    """
    if len(strengths) != len(plan):
        raise ValueError(
            f"fastdiff.Sampler: expected guidance_scale with {len(plan)} strengths, one per row of"
            f" the plan, got {len(strengths)}."
        )
    table = plan.table.copy()
    inside = table[:-1, INDEX["guidance_weight"]] != 0
    table[:-1, INDEX["guidance_weight"]] = np.where(inside, np.asarray(strengths) - 1.0, 0.0)
    # strength 0 selects the unconditional output as it is
    table[:-1, INDEX["guidance_rescale"]] *= np.asarray(strengths) != 0
    return dataclasses.replace(
        plan, table=table, info={**plan.info, "guidance_scale": list(strengths)}
    )


def with_classifier(plan: Plan, scale: float) -> Plan:
    """The plan with classifier guidance of this strength. Raises ValueError for a plan without
    levels.
    """
    levels = need_levels(plan, "classifier")
    table = plan.table.copy()
    for row, (alpha, sigma) in enumerate(levels[:-1]):
        if table[row, INDEX["network"]]:
            slope = alpha * table[row, INDEX["x0_out"]]
            # pure noise says nothing of y, and its gradient is zero
            table[row, INDEX["out_grad"]] = scale * sigma**2 / slope if slope else 0.0
    return dataclasses.replace(plan, table=table, info={**plan.info, "classifier_scale": scale})


def split(plan: Plan) -> tuple[Plan, Plan]:
    """(convert, finish): rows that give x0 as their next x, and rows that take x0 as the network's
    output.

    out = (x0 - x0_x x)/x0_out in the combinations. Raises ValueError where the output does not
    follow from x0.
    """
    convert, finish = plan.table.copy(), plan.table.copy()
    first = INDEX["x." + OPERANDS[0]]
    for row in range(len(plan)):
        convert[row, INDEX["next"]] = row
        convert[row, first:] = 0.0
        convert[row, INDEX["noise_mode"]] = 0.0
        if not plan.table[row, INDEX["network"]]:
            convert[row, INDEX["x.x"]] = 1.0
            continue
        convert[row, INDEX["x.x0"]] = 1.0
        on_x, on_out = plan.table[row, INDEX["x0_x"]], plan.table[row, INDEX["x0_out"]]
        for name in (
            "guidance_rescale",
            "out_grad",
            "x0_x",
            "clip_mode",
            "clip_bound",
            "clip_ratio",
        ):
            finish[row, INDEX[name]] = 0.0
        finish[row, INDEX["x0_out"]] = 1.0
        for to in OUTPUTS:
            c = plan.table[row, INDEX[f"{to}.out"]]
            if c == 0:
                continue
            if on_out == 0:
                raise ValueError(
                    "fastdiff.Sampler: expected a network output that follows from x0, got row"
                    f" {row} where it does not. Begin later, or without guidance=."
                )
            finish[row, INDEX[f"{to}.x"]] -= c * on_x / on_out
            finish[row, INDEX[f"{to}.out"]] = 0.0
            finish[row, INDEX[f"{to}.x0"]] += c / on_out
    return dataclasses.replace(plan, table=convert), dataclasses.replace(plan, table=finish)


def need_levels(plan: Plan, what: str) -> np.ndarray:
    """The plan's (alpha, sigma) per row, or a ValueError that says what needs them."""
    if plan.levels is None:
        raise ValueError(
            f"fastdiff.Sampler: expected a plan with levels for {what}, got none. Give the Plan"
            " levels=, (alpha, sigma) of the state before each row."
        )
    return plan.levels


def gradient(classifier: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    """grad log p(y | x_t) by automatic differentiation of the classifier's log p [B], or as it
    gives it, [B, …].

    Raises ValueError for a result of another shape.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        result = classifier(leaf, t)
        if isinstance(result, Tensor) and result.requires_grad and result.shape == x.shape[:1]:
            return torch.autograd.grad(result.sum(), leaf)[0]
    if not isinstance(result, Tensor) or result.shape != x.shape:
        got = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(
            f"fastdiff.Sampler: expected classifier(x, t) to give log p(y|x) [{len(x)}] that"
            f" depends on x, or its gradient {list(x.shape)}, got {got}."
        )
    return result.detach()


def single_strength(value: Any, where: str) -> float | Tensor:
    """A guidance strength that does not vary over rows: a finite number, or a tensor [] or [B].

    Raises ValueError for anything else.
    """
    if isinstance(value, Tensor):
        if value.ndim > 1 or not value.is_floating_point():
            raise ValueError(f"{where}: expected guidance_scale as a number or a tensor [B].")
        return value
    if isinstance(value, Sequence):
        raise ValueError(
            f"{where}: expected guidance_scale as a number or a tensor [B], got {value!r}."
        )
    return _finite(value, where)


class Conditions(NamedTuple):
    """The keyword arguments of the network: tensors [n, …] per sample for both halves, and the
    arguments that all samples share.
    """

    cond: dict[str, Tensor]
    uncond: dict[str, Tensor]
    shared: dict[str, Any]

    def part(self, rows: slice) -> Conditions:
        """The arguments of some of the samples."""
        cond, uncond = ({k: v[rows] for k, v in half.items()} for half in (self.cond, self.uncond))
        return Conditions(cond, uncond, self.shared)


def conditions(
    cond: Mapping[str, Any] | None,
    uncond: Mapping[str, Any] | None,
    n: int,
    device: torch.device,
    *,
    both: bool,
    where: str = "fastdiff.Sampler",
) -> Conditions:
    """Both halves checked and on the device; without `both`, the unconditional half repeats the
    conditional one.

    Raises ValueError for a missing uncond, rows that do not match the samples, or halves that do
    not fit together.
    """
    first = _checked("cond", cond, n, where)
    second = _checked("uncond", uncond, n, where) if both else first
    if both:
        check_halves(cond, uncond, where=where)
    result = Conditions({}, {}, {})
    for key, c in first.items():
        u = second[key]
        if _per_sample(c) and _per_sample(u):
            result.cond[key], result.uncond[key] = c.to(device), u.to(device)
        elif same(c, u):
            result.shared[key] = c.to(device) if isinstance(c, Tensor) else c
        else:
            raise ValueError(
                f"{where}: expected one value of {key!r} for both halves, or tensors"
                f" indexed by sample, got {c!r} and {u!r}."
            )
    return result


def check_halves(
    cond: Mapping[str, Any] | None, uncond: Mapping[str, Any] | None, *, where: str
) -> None:
    """Raises ValueError where guidance lacks uncond, or its keys differ from those of cond."""
    if uncond is None:
        raise ValueError(
            f"{where}: expected uncond with a guidance_scale other than 1. Pass the keyword"
            " arguments of the unconditional call."
        )
    if (cond or {}).keys() != uncond.keys():
        raise ValueError(
            f"{where}: expected the same keys in cond and uncond, got {sorted(cond or {})} and"
            f" {sorted(uncond)}."
        )


def same(a: Any, b: Any) -> bool:
    """Whether two arguments that are shared by samples are one."""
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a.cpu(), b.cpu())
    return bool(a == b)


def _per_sample(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _checked(name: str, given: Mapping[str, Any] | None, n: int, where: str) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            f"{where}: expected {name} as a dict of keyword arguments, got {type(given).__name__}."
        )
    for key, value in (given or {}).items():
        if _per_sample(value) and value.shape[0] != n:
            raise ValueError(
                f"{where}: expected {name}[{key!r}] with {n} rows, one per sample, got"
                f" {value.shape[0]}."
            )
    return dict(given or {})
