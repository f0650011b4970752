"""The plans of a run as one table on the device, and the facts about its rows on the host."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..solvers import Plan
from ..table import INDEX, OUTPUTS, columns
from .guidance import split, with_classifier

_CACHED = (
    "table",
    "t",
    "times",
    "network",
    "draws",
    "always_calls",
    "guidance_weight",
    "input_scale",
    "last_row",
    "row_in_plan",
    "used",
    "used_without_network",
)
_built: weakref.WeakKeyDictionary[Plan, dict[Any, dict[str, Any]]] = weakref.WeakKeyDictionary()
_without_network: weakref.WeakKeyDictionary[Plan, int] = weakref.WeakKeyDictionary()


def used_without_network(plan: Plan) -> int:
    """The bit mask of the columns that rows without a network call fill."""
    if plan not in _without_network:
        rows = plan.table[plan.column("network") == 0]
        _without_network[plan] = sum(1 << int(i) for i in np.flatnonzero((rows != 0).any(axis=0)))
    return _without_network[plan]


class DevicePlan:
    """Plans stacked into one table on a device. Later samples may add plans; rows keep their
    numbers.

    Args:
        device: of the table.
        whole_times: whether the network takes int64 timesteps, else float32 times.
        classifier_scale: strength of classifier guidance, 0 without a classifier.
        splits: whether rows are also split around a guidance of x0
            (fastdiff.sampling.guidance.split).
        inpaints: whether known parts of the samples are replaced after each row.

    Attributes on the device, R the number of rows:
        table: float64 [R, 56].
        times: [R] what the network gets as its time, int64 or float32.
        to_x0, from_x0: (table, column mask) of the two halves of the rows, with `splits`.
        noising, entering: (table, column mask) with `inpaints`, see `_build_inpainting`.
    Attributes on the host, [R] each:
        network: whether the row calls the network. draws: whether it draws noise.
        guidance_weight, input_scale, t: the columns of these names.
        last_row: the closing row of the row's plan. row_in_plan: the row's number in its plan.
    Further attributes:
        plan: the stacked plan.
        always_calls: whether all rows except the closing ones call the network.
        used, used_without_network: column masks of all rows and of those without a network call.
        version: the number of changes of the table.
    """

    plan: Plan
    table: Tensor
    used: int
    used_without_network: int

    def __init__(
        self,
        device: torch.device,
        *,
        whole_times: bool = False,
        classifier_scale: float = 0.0,
        splits: bool = False,
        inpaints: bool = False,
    ):
        self.device, self.whole_times = device, whole_times
        self.classifier_scale, self.splits, self.inpaints = classifier_scale, splits, inpaints
        self.version = 0
        self._first: dict[Plan, int] = {}
        self._plans: list[Plan] = []

    @classmethod
    def of(cls, plan: Plan, device: torch.device) -> DevicePlan:
        """One plan on a device."""
        result = cls(device)
        result.add(plan)
        return result

    def add(self, plan: Plan) -> int:
        """The first row of a plan, which is stacked onto the others unless it is one of them."""
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
        # Most runs have one plan, which the next run uses again. The plan itself is not cached, or
        # it would never be freed.
        self.plan = self._plans[0]
        built, key = _built.setdefault(self._plans[0], {}), (self.device, self.whole_times)
        if key not in built:
            self._stack()
            built[key] = {name: value for name, value in vars(self).items() if name in _CACHED}
        vars(self).update(built[key])

    def _stack(self) -> None:
        self.plan, firsts = Plan.stack(self._plans)
        self.table = torch.tensor(self.plan.table, device=self.device)
        self.t = self.plan.column("t")
        times = self.t.round().astype(np.int64) if self.whole_times else self.t.astype(np.float32)
        self.times = torch.tensor(times, device=self.device)
        self.network = self.plan.column("network") != 0
        drawn = [self.plan.column(f"{to}.z") != 0 for to in OUTPUTS]
        self.draws = np.any(drawn, axis=0)
        self.always_calls = int(self.network.sum()) == len(self.network) - len(self._plans)
        self.guidance_weight = self.plan.column("guidance_weight")
        self.input_scale = self.plan.column("input_scale")
        sizes = [len(p.table) for p in self._plans]
        self.last_row = np.repeat(np.array(firsts) + sizes - 1, sizes)
        self.row_in_plan = np.arange(sum(sizes)) - np.repeat(firsts, sizes)
        self.used, self.used_without_network = self.plan.used, used_without_network(self.plan)
        if self.splits:
            halves = [split(p) for p in self._plans]
            self.to_x0, self.from_x0 = (
                self._on_device(Plan.stack([h[i] for h in halves])[0]) for i in (0, 1)
            )
        if self.inpaints:
            self._build_inpainting()

    def _on_device(self, plan: Plan) -> tuple[Tensor, int]:
        return torch.tensor(plan.table, device=self.device), plan.used

    def _build_inpainting(self) -> None:
        """Tables whose rows are applied after row r of the plan.

        `noising` takes known clean data to the level that row r leads to: alpha x + sigma z. After
        a row without a network call, such as RePaint's steps back in time, the known part of the
        state is kept instead: there the result is the slot. `entering` keeps the state
        and writes the network's input for row r.
        """
        assert self.plan.levels is not None
        following = self.plan.column("next").astype(np.int64)
        entering = np.zeros_like(self.plan.table)
        entering[:, INDEX["next"]], entering[:, INDEX["x.x"]] = np.arange(len(following)), 1.0
        entering[:, INDEX["input_scale"]] = self.input_scale
        noising = np.zeros_like(entering)
        noising[:, INDEX["next"]] = following
        noising[:, INDEX["noise_index"]] = self.row_in_plan[following]
        noising[:, [INDEX["x.x"], INDEX["x.z"]]] = np.where(
            self.network[:, None], self.plan.levels[following], 0.0
        )
        noising[:, INDEX["x.s1"]] = ~self.network
        used = columns("next", "x.x", "input_scale")
        self.entering = torch.tensor(entering, device=self.device), used
        used = columns("next", "x.x", "x.z", "x.s1", "noise_index")
        self.noising = torch.tensor(noising, device=self.device), used
