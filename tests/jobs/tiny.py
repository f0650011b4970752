"""A small real network for tests of batch jobs, named `tiny:factory`, with faults on demand.

The classes are the sample ids, so that the network knows which sample it computes. Environment
variables set the faults; except for the weights they are not part of the model's identity:

    TINY_WEIGHTS=1      other weights
    TINY_SLEEP=0.01     additional seconds of each network call
    TINY_NAN=17@50      the output for sample 17 at time 50 is NaN; `17@50 once`: the first time
    TINY_KILL=0.01:5    SIGKILL immediately before or after a call of os.fsync, os.replace, os.link
                        or os.unlink, each with this probability, drawn with this seed and the
                        process's number in the run; `@17`: before call 17 of these, from 0
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff import Schedule
from fastdiff.jobs import Model

CALLS = ("fsync", "replace", "link", "unlink")  # the calls of a commit
MOST = 10_000  # number of classes: sample ids below this


class Tiny(nn.Module):
    def __init__(self, weights: int):
        super().__init__()
        self.into = nn.Conv2d(1, 8, 3, padding=1)
        self.back = nn.Conv2d(8, 1, 3, padding=1)
        generator = torch.Generator().manual_seed(weights)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        self._sleep = float(os.environ.get("TINY_SLEEP", "0"))
        where, _, once = os.environ.get("TINY_NAN", "").partition(" ")
        self._nan = tuple(map(int, where.split("@"))) if where else None
        self._once = bool(once)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        time.sleep(self._sleep)
        out = self.back(
            torch.tanh(
                self.into(x) + t.view(-1, 1, 1, 1) / 100 + torch.sin(y.float()).view(-1, 1, 1, 1)
            )
        )
        if self._nan is not None:
            sample, moment = self._nan
            hit = (y == sample) & (t == moment)
            if bool(hit.any()):
                out[hit, 0, 0, 0] = float("nan")
                if self._once:
                    self._nan = None
        return out


def factory() -> Model:
    return Model(
        Tiny(int(os.environ.get("TINY_WEIGHTS", "0"))),
        (1, 8, 8),
        schedule=Schedule.linear(100),
        settings={"solver": "ddim", "eta": 1.0, "clip_range": 1.0},
        num_classes=MOST,
    )


def flow() -> Model:
    """The same network as a flow whose steps draw noise."""
    return Model(
        Tiny(int(os.environ.get("TINY_WEIGHTS", "0"))),
        (1, 8, 8),
        schedule=Schedule.flow(1000),
        settings={"solver": "flow_sde", "prediction_type": "flow"},
        num_classes=MOST,
    )


def _deadly(call: Callable[..., Any], dies: Callable[[bool], bool]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if dies(True):
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if dies(False):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def _fate(text: str) -> Callable[[bool], bool]:
    """Returns dies(before): whether the process dies now, before or after one of the calls."""
    chance, _, seed = text.partition(":")
    if chance.startswith("@"):
        count = itertools.count()
        return lambda before: before and next(count) == int(chance[1:])
    draw = random.Random(f"{seed} {os.environ.get('RANK', 0)}")
    return lambda before: draw.random() < float(chance)


if os.environ.get("TINY_KILL"):
    _dies = _fate(os.environ["TINY_KILL"])
    for _name in CALLS:
        setattr(os, _name, _deadly(getattr(os, _name), _dies))
