"""What a caller passes for n samples: checked, and turned into a `Batch`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..rng import signed_seed
from ..solvers.windows import WINDOW
from ..whole import whole
from .conditions import check_halves, conditions
from .device_plan import DevicePlan
from .guidance import need_levels, strength
from .plans import Plans, check_range
from .requests import Batch, signed
from .upload import upload


class SampleArguments(NamedTuple):
    """What may differ from sample to sample; see `Sampler.sample`."""

    seed: int | Tensor | Sequence[int]
    sample_ids: Tensor | Sequence[int] | None = None
    cond: Mapping[str, Any] | None = None
    uncond: Mapping[str, Any] | None = None
    guidance_scale: Any = 1.0
    steps: int | Sequence[int] | None = None
    start: int | Sequence[int] = 0
    strength: float | Sequence[float] | None = None
    x_T: Tensor | None = None
    image: Tensor | None = None
    mask: Tensor | None = None
    known: Tensor | None = None
    start_ids: Tensor | Sequence[int] | None = None
    sde_rows: tuple[int, int] | Sequence[tuple[int, int]] | None = None


def prepare(
    plans: Plans,
    device_plan: DevicePlan,
    arguments: SampleArguments,
    shape: tuple[int, ...],
    tickets: np.ndarray,
    dtype: torch.dtype,
    has_guide: bool = False,
) -> Batch:
    """The batch of these samples. Their plans are added to `device_plan`.

    Args:
        shape: [n, …] of the samples. dtype: of their state.
        tickets: int64 [n], the caller's number for each sample.
        has_guide: whether another network than the model gets the unconditional half; its arguments
            are then those of the conditional half where none are passed.

    Raises ValueError and TypeError for wrong arguments.
    """
    where, n, device, g = "fastdiff.Sampler.sample", shape[0], device_plan.device, arguments
    if g.x_T is not None and g.image is not None:
        raise ValueError(f"{where}: expected x_T (a state) or image (clean data), got both.")
    if (g.mask is None) != (g.known is None):
        raise ValueError(
            f"{where}: expected mask and known together, got one. mask is 1 where samples are"
            " drawn."
        )
    gamma, over = strength(g.guidance_scale, n)
    starts = _numbers("start", g.start, n)
    steps = _numbers("steps", g.steps, n)
    if g.strength is not None:
        if g.image is None or any(starts):
            raise ValueError(
                f"{where}: expected strength with image and without start, got another combination."
            )
        shares = zip(steps, _each("strength", g.strength, n), strict=True)
        starts = [plans.start_of(count, share) for count, share in shares]
    elif g.image is not None and n and not any(starts):
        raise ValueError(
            f"{where}: expected strength or start > 0 with image, got neither. Row 0 is noise, in"
            " which little of the image is left; strength=1 begins there."
        )
    chosen = [
        plans.get(count, start, over, window)
        for count, start, window in zip(steps, starts, _windows(g.sde_rows, n), strict=True)
    ]
    if g.x_T is None and g.image is None and any(starts):
        raise ValueError(
            f"{where}: expected x_T or image with start > 0, got neither. Noise is the state of"
            " row 0."
        )
    if dtype != torch.float64:
        for plan, row in {(id(plan), row): (plan, row) for plan, row in chosen}.values():
            check_range(plan, row, where)
    rows = np.array([device_plan.add(plan) + row for plan, row in chosen], np.int64).reshape(n)
    different = {id(plan): plan for plan, _ in chosen}.values()

    uncond, cond, guided = g.uncond, g.cond, True
    if has_guide and uncond is None:
        uncond = {} if cond is None else cond
    if not isinstance(gamma, Tensor):
        if gamma == 1:
            guided = False
        elif (
            gamma == 0
            and not has_guide
            and all((p.column("guidance_weight")[:-1] == 1).all() for p in different)
            and not any((p.column("guidance_kind") != 0).any() for p in different)
        ):
            guided, gamma = False, 1.0
            if uncond is not None:
                cond = uncond
            else:
                check_halves(cond, None, where="fastdiff.Sampler")  # uncond is missing
    if (
        guided
        and math.prod(shape[1:]) == 1
        and any(bool((p.column("guidance_rescale") != 0).any()) for p in different)
    ):
        raise ValueError(
            f"{where}: expected samples of at least 2 elements with guidance_rescale, which divides"
            f" by their deviation, got the shape {list(shape)}."
        )
    halves = conditions(cond, uncond, n, device, both=guided)
    levels = None
    if g.image is not None:
        levels = np.array([need_levels(plan, "image")[row] for plan, row in chosen]).reshape(n, 2)
    seed = _seed(g.seed, n)
    ids = _ids("sample_ids", g.sample_ids, n, device, each_first=several(seed))
    return Batch(
        rows=rows,
        seeds=signed(seed, n, device),
        ids=ids,
        start_ids=ids if g.start_ids is None else _ids("start_ids", g.start_ids, n, device),
        gamma=upload(gamma, device) if isinstance(gamma, Tensor) else np.full(n, gamma),
        guided=guided,
        conditions=halves,
        tickets=tickets,
        std=np.array([plan.initial_std for plan, _ in chosen]),
        state=_samples("x_T", g.x_T, shape, device),
        image=_samples("image", g.image, shape, device),
        levels=levels,
        mask=_samples("mask", g.mask, shape, device),
        known=_samples("known", g.known, shape, device),
    )


def _each(name: str, value: Any, n: int) -> list[Any]:
    """A value for each of n samples, from one for all or a sequence of n."""
    if isinstance(value, (Sequence, np.ndarray)):
        if len(value) != n:
            raise ValueError(
                f"fastdiff.Sampler.sample: expected {name} as one value or {n}, got {len(value)}."
            )
        return list(value)
    return [value] * n


def _numbers(name: str, value: Any, n: int) -> list[Any]:
    """`_each` of numbers or None, which the plans check further; whole ones are Python's."""
    values = _each(name, value, n)
    for i, number in enumerate(values):
        if number is not None and not isinstance(number, (int, float)):
            values[i] = whole(number)
            if values[i] is None:
                raise TypeError(
                    f"fastdiff.Sampler.sample: expected {name} as whole numbers, got"
                    f" {type(number).__name__}."
                )
    return values


def _windows(value: Any, n: int) -> list[tuple[int, int] | None]:
    """A window of rows for each of n samples, from one for all or a sequence of n."""
    if isinstance(value, Sequence) and value and isinstance(value[0], Sequence):
        windows = _each("sde_rows", value, n)
    else:
        windows = [value] * n
    return [WINDOW.check("sde_rows", window, "fastdiff.Sampler.sample") for window in windows]


def _samples(
    name: str, value: Tensor | None, shape: tuple[int, ...], device: torch.device
) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        raise TypeError(
            f"fastdiff.Sampler.sample: expected {name} as a tensor, got {type(value).__name__}."
        )
    if name in ("mask", "known"):
        # One mask or one known image may serve all samples.
        try:
            value = torch.broadcast_to(value, shape)
        except RuntimeError:
            raise ValueError(
                f"fastdiff.Sampler.sample: expected {name} of shape {list(shape)} or one that"
                f" broadcasts to it, got {list(value.shape)}."
            ) from None
    if tuple(value.shape) != shape:
        raise ValueError(
            f"fastdiff.Sampler.sample: expected {name} of shape {list(shape)}, got"
            f" {list(value.shape)}."
        )
    return upload(value, device)


def several(seed: Any) -> bool:
    """Whether a seed is one per sample, so that each sample is the first of its own run."""
    return seed.ndim > 0 if isinstance(seed, Tensor) else isinstance(seed, (Sequence, np.ndarray))


def _seed(seed: int | Tensor | Sequence[int], n: int) -> int | Tensor:
    """A checked seed: an int in [0, 2⁶⁴), or int64 [] or [n] in two's complement."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.shape not in ((), (n,)):
            raise ValueError(
                f"fastdiff.Sampler.sample: expected seed as an int or an int64 tensor [{n}], got"
                f" {seed.dtype} of shape {list(seed.shape)}."
            )
        return seed
    if several(seed) and not isinstance(seed, (str, bytes)):
        seeds = [signed_seed(_one_seed(each)) for each in _each("seed", seed, n)]
        return torch.tensor(seeds, dtype=torch.int64)
    return _one_seed(seed)


def _one_seed(seed: Any) -> int:
    number = whole(seed)
    if number is None:
        raise TypeError(
            "fastdiff.Sampler.sample: expected seed as an int or an int64 tensor, got"
            f" {type(seed).__name__}."
        )
    if not 0 <= number < 2**64:
        raise ValueError(f"fastdiff.Sampler.sample: expected seed in [0, 2**64), got {seed}.")
    return number


def _ids(
    name: str,
    ids: Tensor | Sequence[int] | None,
    n: int,
    device: torch.device,
    *,
    each_first: bool = False,
) -> Tensor:
    """Ids int64 [n]; by default 0 … n - 1, or 0 for all with `each_first`."""
    if ids is None:
        if each_first:
            return torch.zeros(n, dtype=torch.int64, device=device)
        return torch.arange(n, device=device)
    if isinstance(ids, range) and 0 <= ids.start and ids.stop <= 2**56:
        return torch.arange(ids.start, ids.stop, ids.step, device=device)
    try:
        ids = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f"fastdiff.Sampler.sample: expected {n} integer {name}, got a"
            f" {type(ids).__name__} of other values."
        ) from None
    if ids.dtype != torch.int64 or ids.shape != (n,):
        raise ValueError(
            f"fastdiff.Sampler.sample: expected {n} integer {name}, got {ids.dtype} of shape"
            f" {list(ids.shape)}."
        )
    if ids.device.type == "cpu" and n and not (0 <= int(ids.min()) and int(ids.max()) < 2**56):
        raise ValueError(
            f"fastdiff.Sampler.sample: expected {name} in [0, 2**56). They name samples of the run."
        )
    return upload(ids, device)
