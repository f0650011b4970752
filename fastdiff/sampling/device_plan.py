"""The plans of a run as one table on the device, and what the host knows of it."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch

from ..solvers import Plan
from ..table import INDEX, columns
from .guidance import split, with_classifier

_BUILT = (
    "plan",
    "table",
    "time",
    "times",
    "network",
    "always_calls",
    "weight",
    "scale",
    "stop",
    "local",
    "used",
    "used_quiet",
)
_made: weakref.WeakKeyDictionary[Plan, dict[Any, dict[str, Any]]] = weakref.WeakKeyDictionary()
_used_quiet: weakref.WeakKeyDictionary[Plan, int] = weakref.WeakKeyDictionary()


def used_without_network(plan: Plan) -> int:
    """The columns that the plan's rows without a network call fill."""
    if plan not in _used_quiet:
        quiet = plan.table[plan.column("network") == 0]
        _used_quiet[plan] = sum(1 << int(i) for i in np.flatnonzero((quiet != 0).any(axis=0)))
    return _used_quiet[plan]


class Program:
    """Plans stacked into one table; it grows by plans that later samples bring, and rows keep their
    numbers.

    Attributes, device: table float64 [R, 56]; times [R], int64 or float32, what the network is
        given. With `convert`,
    the two halves of every row around a guidance of x0 (fastdiff.sampling.guidance.split); with
    `forward`, the rows that noise clean data to the level of a row and that write the network's
    input of a state as it is. Attributes, host, [R] each: network, weight (of the guidance), scale
    (of the input), stop (the closing row of the row's plan), local (the row's number in its plan),
    time. always_calls: whether all rows but the closing ones call the network.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        whole_times: bool,
        classifier_scale: float = 0.0,
        splits: bool = False,
        inpaints: bool = False,
    ):
        self.device, self.whole_times = device, whole_times
        self.classifier_scale, self.splits, self.inpaints = classifier_scale, splits, inpaints
        self.version = 0
        self._first: dict[Plan, int] = {}
        self._plans: list[Plan] = []

    def add(self, plan: Plan) -> int:
        """The first row of a plan, which is stacked onto the others unless it is there already."""
        if plan not in self._first:
            self._first[plan] = sum(len(p.table) for p in self._plans)
            self._plans.append(
                with_classifier(plan, self.classifier_scale) if self.classifier_scale else plan
            )
            self._build()
        return self._first[plan]

    def _build(self) -> None:
        self.version += 1
        if len(self._plans) > 1 or self.splits or self.inpaints:
            self._stack()
            return
        # most programs are one plan, run again and again
        made, key = _made.setdefault(self._plans[0], {}), (self.device, self.whole_times)
        if key not in made:
            self._stack()
            made[key] = {name: value for name, value in vars(self).items() if name in _BUILT}
        vars(self).update(made[key])

    def _stack(self) -> None:
        self.plan, firsts = Plan.stack(self._plans)
        self.table = torch.tensor(self.plan.table, device=self.device)
        self.time = self.plan.column("t")
        times = (
            self.time.round().astype(np.int64) if self.whole_times else self.time.astype(np.float32)
        )
        self.times = torch.tensor(times, device=self.device)
        self.network = self.plan.column("network") != 0
        self.always_calls = int(self.network.sum()) == len(self.network) - len(self._plans)
        self.weight, self.scale = (
            self.plan.column("guidance_weight"),
            self.plan.column("input_scale"),
        )
        sizes = [len(p.table) for p in self._plans]
        self.stop = np.repeat(np.array(firsts) + sizes - 1, sizes)
        self.local = np.arange(sum(sizes)) - np.repeat(firsts, sizes)
        self.used, self.used_quiet = self.plan.used, used_without_network(self.plan)
        if self.splits:
            halves = [split(p) for p in self._plans]
            self.convert, self.finish = (
                self._table(Plan.stack([h[i] for h in halves])[0]) for i in (0, 1)
            )
        if self.inpaints:
            self._forward()

    def _table(self, plan: Plan) -> tuple[torch.Tensor, int]:
        return torch.tensor(plan.table, device=self.device), plan.used

    def _forward(self) -> None:
        """Row r of `noised`: clean x at the level that row r leads to, alpha x + sigma z; of
        `enter`: x as it is, with row r's input. Rows without a network call, RePaint's way back for
        one, take the known part along: there `noised` is the slot.
        """
        assert self.plan.levels is not None
        after = self.plan.column("next").astype(np.int64)
        enter = np.zeros_like(self.plan.table)
        enter[:, INDEX["next"]], enter[:, INDEX["x.x"]] = np.arange(len(after)), 1.0
        enter[:, INDEX["input_scale"]] = self.scale
        noised = np.zeros_like(enter)
        noised[:, INDEX["next"]], noised[:, INDEX["noise_index"]] = after, self.local[after]
        noised[:, [INDEX["x.x"], INDEX["x.z"]]] = np.where(
            self.network[:, None], self.plan.levels[after], 0.0
        )
        noised[:, INDEX["x.s1"]] = ~self.network
        self.enter = torch.tensor(enter, device=self.device), columns("next", "x.x", "input_scale")
        used = columns("next", "x.x", "x.z", "x.s1", "noise_index")
        self.noised = torch.tensor(noised, device=self.device), used
