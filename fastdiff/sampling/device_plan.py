"""The plans of a run as one table on the device, and what the host knows about its rows.

The samples of a run may follow different plans (fastdiff.sampling.plans). Their tables are stacked,
so that one kernel serves all lanes: each lane has a row of the stacked table. Guidance of x0 and
inpainting need more work than a plan's row does. For them there are further tables with the same
row numbers, `Rows`, which `reverse_step` executes like the plan's.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..solvers import Plan
from ..table import INDEX, OUTPUTS, columns
from .guidance import split, with_classifier
from .upload import upload

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
_MOST_ROWS = 4096  # of plans that later runs may use again
_built: weakref.WeakKeyDictionary[Plan, dict[Any, dict[str, Any]]] = weakref.WeakKeyDictionary()
_without_network: weakref.WeakKeyDictionary[Plan, int] = weakref.WeakKeyDictionary()


class Rows(NamedTuple):
    """A table with the row numbers of a stacked plan, and the bit mask of the columns it uses."""

    table: Tensor
    used: int

    def following(self, row: Tensor) -> Tensor:
        """The rows after these [B], in new memory."""
        return self.table[:, INDEX["next"]].index_select(0, row).to(torch.int64)


def used_without_network(plan: Plan) -> int:
    """The bit mask of the columns that rows without a network call fill."""
    if plan not in _without_network:
        rows = plan.table[plan.column("network") == 0]
        _without_network[plan] = sum(1 << int(i) for i in np.flatnonzero((rows != 0).any(axis=0)))
    return _without_network[plan]


class DevicePlan:
    """Plans stacked into one table on a device, empty at first.

    `add` stacks a plan onto those that are there, whose rows keep their numbers. A run adds the
    plan of every sample that it takes.

    Args:
        device: of the table.
        whole_times: whether the network takes int64 timesteps, else float32 times.
        classifier_scale: strength of classifier guidance, 0 without a classifier.
        splits: whether rows are also split around a guidance of x0
            (fastdiff.sampling.guidance.split).
        inpaints: whether known parts of the samples are replaced after each row.

    Attributes on the device, R the number of rows:
        table: float64 [at least R, 56]; more plans are added in place while there is space.
        times: [like table] what the network gets as its time, int64 or float32.
    `Rows` on the device, whose row r belongs to row r of the plan:
        to_x0_rows: with `splits`, compute x0, to which the user's guidance is then applied.
        from_x0_rows: with `splits`, do the rest of row r: they read the guided x0 in place of the
            network's output.
        known_rows: with `inpaints`, compute the known part of the state that row r leads to.
        input_rows: with `inpaints`, leave the state as it is and write the network's input for
            row r, after the known part of the state was replaced.
    Attributes on the host, [R] each:
        network: whether the row calls the network. draws: whether it draws noise.
        guidance_weight, input_scale, t: the columns of these names (`fastdiff.table`).
        last_row: the closing row of the row's plan. row_in_plan: the row's number in its plan.
    Further attributes:
        plan: the stacked plan.
        always_calls: whether all rows except the closing ones call the network.
        used, used_without_network: column masks of all rows and of those without a network call.
        version: the number of times that the table moved or its columns in use changed.
    """

    plan: Plan
    table: Tensor
    to_x0_rows: Rows
    from_x0_rows: Rows
    known_rows: Rows
    input_rows: Rows
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
        self._rows = 0  # of `table` that are this object's to write; 0 where others read it too
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

    @property
    def long(self) -> bool:
        """Whether the plans have so many rows that a new run should begin without them."""
        return len(self.plan.table) > _MOST_ROWS

    @torch.inference_mode(False)  # the tables are kept for later runs, which may need gradients
    def _build(self) -> None:
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
        self._rows = 0
        self.version += 1

    def _stack(self) -> None:
        before = self._kernels() if self.version else None
        self.plan, firsts = Plan.stack(self._plans)
        self.t = self.plan.column("t")
        times = self.t.round().astype(np.int64) if self.whole_times else self.t.astype(np.float32)
        moved = self._write(times)
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
        if moved or self.splits or self.inpaints or before != self._kernels():
            self.version += 1
        if self.splits:
            halves = [split(p) for p in self._plans]
            self.to_x0_rows, self.from_x0_rows = (
                self._on_device(Plan.stack([h[i] for h in halves])[0]) for i in (0, 1)
            )
        if self.inpaints:
            self._build_inpainting()

    def _kernels(self) -> tuple[int, int, int]:
        """What of the plans decides which kernels a step starts."""
        return self.used, self.used_without_network, self.plan.slots

    def _write(self, times: np.ndarray) -> bool:
        """Writes the table and the times, and returns whether they needed new memory.

        A captured step reads them where they are. A run to which plans are added one by one gets
        space for more, so that few of them move the table.
        """
        rows, table = len(times), self.plan.table
        moved = rows > self._rows
        if moved:
            self._rows = rows if len(self._plans) == 1 else 1 << (2 * rows - 1).bit_length()
            self.table = torch.zeros(
                (self._rows, table.shape[1]), dtype=torch.float64, device=self.device
            )
            self.times = torch.zeros(
                self._rows, dtype=torch.from_numpy(times).dtype, device=self.device
            )
        self.table[:rows].copy_(upload(table, self.device))
        self.times[:rows].copy_(upload(times, self.device))
        return moved

    def _on_device(self, plan: Plan) -> Rows:
        return Rows(upload(plan.table, self.device), plan.used)

    def _build_inpainting(self) -> None:
        """Sets `known_rows` and `input_rows`.

        With x the known clean data and the state in slot 1, row r of `known_rows` gives alpha x +
        sigma z at the level that row r of the plan leads to. After a row without a network call,
        such as RePaint's steps back in time, the known part of the state stays as it is: the result
        is slot 1.
        """
        assert self.plan.levels is not None
        following = self.plan.column("next").astype(np.int64)
        known = np.zeros_like(self.plan.table)
        known[:, INDEX["next"]] = following
        known[:, INDEX["noise_index"]] = self.row_in_plan[following]
        known[:, [INDEX["x.x"], INDEX["x.z"]]] = np.where(
            self.network[:, None], self.plan.levels[following], 0.0
        )
        known[:, INDEX["x.s1"]] = ~self.network
        # Rows that lead to themselves: `reverse_step` scales the input by the next row's column.
        inputs = np.zeros_like(known)
        inputs[:, INDEX["next"]], inputs[:, INDEX["x.x"]] = np.arange(len(following)), 1.0
        inputs[:, INDEX["input_scale"]] = self.input_scale
        self.known_rows = Rows(
            torch.tensor(known, device=self.device),
            columns("next", "x.x", "x.z", "x.s1", "noise_index"),
        )
        self.input_rows = Rows(
            torch.tensor(inputs, device=self.device), columns("next", "x.x", "input_scale")
        )
