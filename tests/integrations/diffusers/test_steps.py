"""Single float32 steps of a drop-in and of its peer, both against the peer's formula in float64.

All three sides are given the same states and outputs, those of the peer's own loop in float32, so
no error travels from step to step. The reference is the peer's object with its float32 tables
widened to float64 and `torch` in its module without float32. What the drop-in and its peer are
apart is then split into the rounding of each: docs/diffusers.md has the largest ones.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cases import (
    CASES,
    CLASSES,
    Case,
    Lifted,
    arguments,
    both,
    finite,
    network,
    set_timesteps,
    start,
)
from loops import scaled
from tolerances import DROP_IN_ROUNDING

pytestmark = pytest.mark.filterwarnings("ignore")


class Errors(NamedTuple):
    """The distance of both sides from the reference, relative to the largest value of a step."""

    peers: float
    ours: float
    apart: float


@contextlib.contextmanager
def doubled(module: Any) -> Iterator[None]:
    """Within it a module of diffusers has no float32, and draws float32's numbers in float64."""
    names = [name for name in ("torch", "np", "randn_tensor") if hasattr(module, name)]
    before = {name: getattr(module, name) for name in names}
    lifted: dict[str, Any] = {"torch": Lifted(torch), "np": Lifted(np)}

    def draw(*shape: Any, dtype: Any = None, **options: Any) -> torch.Tensor:
        return before["randn_tensor"](*shape, dtype=torch.float32, **options).double()

    try:
        for name in names:
            setattr(module, name, lifted.get(name, draw))
        yield
    finally:
        for name in names:
            setattr(module, name, before[name])


def widened(theirs: Any) -> Any:
    """A copy of the peer's scheduler whose float32 tables are float64."""
    other = copy.deepcopy(theirs)
    for name, value in vars(other).items():
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
            setattr(other, name, value.double())
    return other


def errors(case: Case, kind: str, steps: int) -> list[Errors]:
    """The errors of each step of a loop, up to the first one that is not finite."""
    theirs, ours = both(case, kind)
    for scheduler in (theirs, ours):
        set_timesteps(case, scheduler, steps)
    wide, module = widened(theirs), importlib.import_module(type(theirs).__module__)
    draws = [torch.Generator().manual_seed(5) for _ in range(3)]
    x, found = start(theirs, torch.float32), []
    for t, u, v in zip(theirs.timesteps, ours.timesteps, wide.timesteps, strict=True):
        out = network(scaled(theirs, x, t), kind, case.learned)
        scaled(ours, x, u)
        options = [{**arguments(case, draw), "return_dict": False} for draw in draws]
        a = theirs.step(out, t, x, **options[0])[0]
        if not finite(a):
            break
        b = ours.step(out, u, x, **options[1])[0]
        with doubled(module):
            scaled(wide, x.double(), v)
            exact = wide.step(out.double(), v, x.double(), **options[2])[0]
        if not finite(exact):
            break
        assert exact.dtype == torch.float64
        size = max(float(x.abs().max()), float(exact.abs().max()))
        off = [float((p.double() - q).abs().max()) for p, q in ((a, exact), (b, exact), (a, b))]
        found.append(Errors(*(value / size for value in off)))
        x = a
    return found


def _count(case: Case) -> int:
    return next((n for n in (5, 10) if n in case.steps), case.steps[-1])


@pytest.mark.parametrize("name", CLASSES)
def test_steps_are_as_near_to_float64_as_the_peers(name: str) -> None:
    """In every configuration, each with one of its prediction types in turn."""
    checked = 0
    roundings = DROP_IN_ROUNDING["levels" if name.startswith("CMStochastic") else "step"]
    for turn, case in enumerate(case for case in CASES if case.name == name):
        kind = case.kinds[turn % len(case.kinds)]
        for step, error in enumerate(errors(case, kind, min(_count(case), 10))):
            allowed = roundings + DROP_IN_ROUNDING["peer"] * error.peers
            assert error.ours <= allowed, (case.id, kind, step, error)
            checked += 1
    assert checked
