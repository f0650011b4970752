"""The keyword arguments of a network, for both halves of classifier-free guidance.

Tensors in them are indexed by sample; every other value, and a tensor in `shared`, is one for all
samples and both halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .upload import upload


class Conditions(NamedTuple):
    """The keyword arguments of the network for n samples.

    Attributes:
        cond, uncond: the tensors [n, …] indexed by sample, for each guidance half.
        shared: all other arguments, the same for all samples and both halves.
    """

    cond: dict[str, Tensor]
    uncond: dict[str, Tensor]
    shared: dict[str, Any]

    def part(self, rows: slice) -> Conditions:
        """The arguments of some of the samples."""
        cond, uncond = ({k: v[rows] for k, v in half.items()} for half in (self.cond, self.uncond))
        return Conditions(cond, uncond, self.shared)


class shared:  # noqa: N801  # a word in a caller's arguments
    """A tensor that all samples share, in cond and uncond: positions of tokens, for instance.

    Without it a tensor is indexed by sample.

    Args:
        tensor: as the network gets it, in every call.

    Raises TypeError for anything else.
    """

    def __init__(self, tensor: Tensor):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"fastdiff.shared: expected a tensor, got {type(tensor).__name__}. Other values are"
                " shared as they are."
            )
        self.tensor = tensor


def conditions(
    cond: Mapping[str, Any] | None,
    uncond: Mapping[str, Any] | None,
    n: int,
    device: torch.device,
    *,
    both: bool,
    where: str = "fastdiff.Sampler",
) -> Conditions:
    """The arguments of both halves, checked and on the device.

    Args:
        cond, uncond: keyword arguments of the network.
        n: the number of samples.
        both: whether uncond is needed; otherwise the unconditional half repeats the conditional
            one.
        where: the name that error messages begin with.

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
            result.cond[key], result.uncond[key] = upload(c, device), upload(u, device)
        elif same(c, u):
            c = c.tensor if isinstance(c, shared) else c
            result.shared[key] = upload(c, device) if isinstance(c, Tensor) else c
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
    """Whether two shared arguments are equal."""
    if a is b:
        return True
    if isinstance(a, shared) and isinstance(b, shared):
        a, b = a.tensor, b.tensor
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a.cpu(), b.cpu())
    return bool(a == b)


def alike(a: Conditions, b: Conditions) -> bool:
    """Whether two sets of arguments differ in nothing but the values of tensors per sample."""
    return (
        a.cond.keys() == b.cond.keys()
        and a.shared.keys() == b.shared.keys()
        and all(
            value.shape[1:] == b.cond[key].shape[1:] and value.dtype == b.cond[key].dtype
            for key, value in a.cond.items()
        )
        and all(same(value, b.shared[key]) for key, value in a.shared.items())
    )


def _per_sample(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _checked(name: str, values: Mapping[str, Any] | None, n: int, where: str) -> dict[str, Any]:
    if values is not None and not isinstance(values, Mapping):
        raise TypeError(
            f"{where}: expected {name} as a dict of keyword arguments, got {type(values).__name__}."
        )
    for key, value in (values or {}).items():
        if _per_sample(value) and value.shape[0] != n:
            raise ValueError(
                f"{where}: expected {name}[{key!r}] with {n} rows, one per sample, got"
                f" {value.shape[0]}."
            )
    return dict(values or {})
