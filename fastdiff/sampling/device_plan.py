"""The plans of a run as one table on the device, and what the host knows about its rows.

The samples of a run may follow different plans (fastdiff.sampling.plans). Their tables are stacked,
so that one kernel serves all lanes: each lane has a row of the stacked table. Guidance of x0 and
inpainting need more work than a plan's row does. For them there are further tables with the same
row numbers, `Rows`, which `reverse_step` executes like the plan's.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..grad_mode import outside_inference
from ..solvers import Plan
from ..table import COLUMNS, INDEX, OUTPUTS, columns
from .guidance import split, with_classifier
from .row_space import RowSpace
from .upload import upload

_HOST = {
    "t": np.float64,
    "network": np.bool_,
    "draws": np.bool_,
    "guidance_weight": np.float64,
    "changes_uncond": np.bool_,
    "input_scale": np.float64,
    "last_row": np.int64,
    "row_in_plan": np.int64,
}
_CACHED = (*_HOST, "table", "times", "always_calls", "used", "used_without_network", "slots")
_MOST_ROWS = 4096  # that plans which no sample follows any more may share with the others
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
    plan of every sample that it takes, and releases the rows of samples that are done. A plan that
    no sample follows stays for later ones; where the table grows beyond a number of rows, those
    that were released longest ago are forgotten, and other plans get their rows. So a server's
    table is bounded, whatever its requests ask for.

    Args:
        device: of the table.
        whole_times: whether the network takes int64 timesteps, else float32 times.
        classifier_scale: strength of classifier guidance, 0 without a classifier.
        splits: whether rows are also split around a guidance of x0
            (fastdiff.sampling.guidance.split).
        inpaints: whether known parts of the samples are replaced after each row.

    Attributes on the device, R the number of rows:
        table: float64 [at least R, 62]; more plans are added in place while there is space.
        times: [like table] what the network gets as its time, int64 or float32.
    `Rows` on the device, whose row r belongs to row r of the plan:
        to_x0_rows: with `splits`, compute x0, to which the user's guidance is then applied.
        from_x0_rows: with `splits`, do the rest of row r: they read the guided x0 in place of the
            network's output.
        known_rows: with `inpaints`, compute the known part of the state that row r leads to.
        input_rows: with `inpaints`, leave the state as it is and write the network's input for
            row r, after the known part of the state was replaced.
    Attributes on the host, [at least R] each:
        network: whether the row calls the network. draws: whether it draws noise.
        changes_uncond: whether guidance takes something else than u as the unconditional output.
        guidance_weight, input_scale, t: the columns of these names (`fastdiff.table`).
        last_row: the closing row of the row's plan. row_in_plan: the row's number in its plan.
    Further attributes, of all plans that were ever added:
        always_calls: whether all rows except the closing ones call the network.
        slots: the number of slots that a run needs.
        used, used_without_network: column masks of all rows and of those without a network call.
        version: the number of times that a table moved or what decides on the kernels changed.
    """

    table: Tensor
    times: Tensor
    t: NDArray[np.float64]
    network: NDArray[np.bool_]
    draws: NDArray[np.bool_]
    guidance_weight: NDArray[np.float64]
    changes_uncond: NDArray[np.bool_]
    input_scale: NDArray[np.float64]
    last_row: NDArray[np.int64]
    row_in_plan: NDArray[np.int64]
    to_x0_rows: Rows
    from_x0_rows: Rows
    known_rows: Rows
    input_rows: Rows

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
        self.always_calls, self.slots = True, 0
        self.used = self.used_without_network = 0
        self._capacity = 0  # rows that are this object's to write; 0 where others read them too
        self._space = RowSpace()
        self._stretches: dict[Plan, _Stretch] = {}
        self._ending: dict[int, _Stretch] = {}  # by their closing row
        self._idle: dict[Plan, None] = {}  # that no sample follows, released longest ago first

    @classmethod
    def of(cls, plan: Plan, device: torch.device) -> DevicePlan:
        """One plan on a device."""
        result = cls(device)
        result.add(plan)
        return result

    def add(self, plan: Plan) -> int:
        """The first row of a plan, which one sample more follows until it is released.

        The plan is stacked onto the others unless it is one of them.
        """
        stretch = self._stretches.get(plan)
        if stretch is None:
            stretch = self._stack(plan)
        self._idle.pop(plan, None)
        stretch.samples += 1
        return stretch.first

    def release(self, rows: NDArray[np.int64]) -> None:
        """Says that the samples at these rows [n] are done, and follow their plans no longer."""
        for last, count in zip(*np.unique(self.last_row[rows], return_counts=True), strict=True):
            stretch = self._ending[int(last)]
            stretch.samples -= int(count)
            if not stretch.samples:
                self._idle[stretch.owner] = None

    def plan_at(self, row: int) -> Plan:
        """The plan that a row belongs to, with classifier guidance where the run has it."""
        return self._ending[int(self.last_row[row])].plan

    @property
    def long(self) -> bool:
        """Whether the table has grown so large that a new run should begin without it."""
        return self._capacity > 2 * _MOST_ROWS

    @outside_inference  # the tables are kept for later runs, which may need gradients
    def _stack(self, owner: Plan) -> _Stretch:
        """Gives a plan its rows, and writes them."""
        plan = with_classifier(owner, self.classifier_scale) if self.classifier_scale else owner
        count = len(plan.table)
        first = self._rows_for(count)
        stretch = _Stretch(owner, plan, first)
        self._stretches[owner] = self._ending[first + count - 1] = stretch
        alone = len(self._stretches) == 1 and not self.version
        if alone and not (self.splits or self.inpaints):
            # Most runs have one plan, which the next run uses again. The plan itself is not cached,
            # or it would never be freed.
            built, key = _built.setdefault(plan, {}), (self.device, self.whole_times)
            if key not in built:
                self._write(stretch)
                built[key] = {name: value for name, value in vars(self).items() if name in _CACHED}
            vars(self).update(built[key])
            self._capacity, self.version = 0, 1
        else:
            self._write(stretch)
        return stretch

    def _rows_for(self, count: int) -> int:
        """Returns the first of `count` rows for a plan; a long table forgets idle plans."""
        first = self._space.fit(count)
        while first is None and self._idle and self._space.end + count > _MOST_ROWS:
            stretch = self._stretches.pop(next(iter(self._idle)))
            del self._idle[stretch.owner]
            del self._ending[stretch.first + len(stretch.plan.table) - 1]
            self._space.give(stretch.first, len(stretch.plan.table))
            first = self._space.fit(count)
        return self._space.append(count) if first is None else first

    def _write(self, stretch: _Stretch) -> None:
        """Writes the rows of a plan, on the host and on the device."""
        plan, first = stretch.plan, stretch.first
        rows = slice(first, first + len(plan.table))
        before = self.used, self.used_without_network, self.slots
        moved = self._space.end > self._capacity
        if moved:
            self._grow()
        drawn = [plan.column(f"{to}.z") != 0 for to in OUTPUTS]
        values = {
            **{name: plan.column(name) for name in ("t", "guidance_weight", "input_scale")},
            "network": plan.column("network") != 0,
            "changes_uncond": plan.column("guidance_kind") != 0,
            "draws": np.any(drawn, axis=0),
            "last_row": rows.stop - 1,
            "row_in_plan": np.arange(len(plan.table)),
        }
        for name, value in values.items():
            getattr(self, name)[rows] = value
        self.times[rows].copy_(upload(self._network_times(self.t[rows]), self.device))
        self._put(self.table, plan.table, first)
        self.always_calls &= bool(self.network[rows][:-1].all())
        self.used |= plan.used
        self.used_without_network |= used_without_network(plan)
        self.slots = max(self.slots, plan.slots)
        if self.splits:
            for name, half in zip(("to_x0_rows", "from_x0_rows"), split(plan), strict=True):
                moved |= self._put_rows(name, half.table, half.used, first)
        if self.inpaints:
            known, inputs = self._inpainting(plan)
            used = columns("next", "x.x", "x.z", "x.s1", "noise_index")
            moved |= self._put_rows("known_rows", known, used, first)
            used = columns("next", "x.x", "input_scale")
            moved |= self._put_rows("input_rows", inputs, used, first)
        if moved or before != (self.used, self.used_without_network, self.slots):
            self.version += 1

    def _grow(self) -> None:
        """Moves everything into memory for more rows.

        A captured step reads the tables where they are. A run to which plans are added one by one
        gets space for more, so that few of them move the tables.
        """
        end, held = self._space.end, len(self.last_row) if self.version else 0
        self._capacity = max(held, 1 << (2 * end - 1).bit_length()) if held else end
        for name, kind in _HOST.items():
            grown: Any = np.zeros(self._capacity, kind)
            if held:
                grown[:held] = getattr(self, name)[:held]
            setattr(self, name, grown)
        self.input_scale[held:] = 1.0
        times = torch.from_numpy(self._network_times(self.t[:0])).dtype
        for name, shape, dtype in (
            ("table", (len(COLUMNS),), torch.float64),
            ("times", (), times),
        ):
            old = getattr(self, name) if held else None
            setattr(self, name, self._longer(old, held, shape, dtype))
        for name in ("to_x0_rows", "from_x0_rows", "known_rows", "input_rows"):
            rows: Rows | None = getattr(self, name, None)
            if rows is not None:
                longer = self._longer(rows.table, held, (len(COLUMNS),), torch.float64)
                setattr(self, name, Rows(longer, rows.used))

    def _longer(
        self, old: Tensor | None, held: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        """Memory for all rows, with the first `held` of another tensor."""
        grown = torch.zeros((self._capacity, *shape), dtype=dtype, device=self.device)
        if old is not None:
            grown[:held].copy_(old[:held])
        return grown

    def _network_times(self, t: NDArray[np.float64]) -> NDArray[Any]:
        return t.round().astype(np.int64) if self.whole_times else t.astype(np.float32)

    def _put(self, table: Tensor, rows: NDArray[np.float64], first: int) -> None:
        """Writes a plan's rows into a table, from this row on."""
        if first:
            rows = rows.copy()
            rows[:, INDEX["next"]] += first
        table[first : first + len(rows)].copy_(upload(rows, self.device))

    def _put_rows(self, name: str, rows: NDArray[np.float64], used: int, first: int) -> bool:
        """Writes a plan's rows into further rows, and returns whether these changed their mask."""
        held: Rows | None = getattr(self, name, None)
        if held is None:
            held = Rows(self._longer(None, 0, (len(COLUMNS),), torch.float64), 0)
        self._put(held.table, rows, first)
        setattr(self, name, Rows(held.table, held.used | used))
        return held.used | used != held.used

    def _inpainting(self, plan: Plan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The rows of a plan in `known_rows` and `input_rows`.

        With x the known clean data and the state in slot 1, row r of `known_rows` gives alpha x +
        sigma z at the level that row r of the plan leads to. After a row without a network call,
        such as RePaint's steps back in time, the known part of the state stays as it is: the result
        is slot 1.
        """
        assert plan.levels is not None
        following, network = plan.column("next").astype(np.int64), plan.column("network") != 0
        known = np.zeros_like(plan.table)
        known[:, INDEX["next"]] = following
        known[:, INDEX["noise_index"]] = following
        known[:, [INDEX["x.x"], INDEX["x.z"]]] = np.where(
            network[:, None], plan.levels[following], 0.0
        )
        known[:, INDEX["x.s1"]] = ~network
        # Rows that lead to themselves: `reverse_step` scales the input by the next row's column.
        inputs = np.zeros_like(known)
        inputs[:, INDEX["next"]], inputs[:, INDEX["x.x"]] = np.arange(len(following)), 1.0
        inputs[:, INDEX["input_scale"]] = plan.column("input_scale")
        return known, inputs


@dataclasses.dataclass(eq=False)
class _Stretch:
    """The rows of one plan in the table, and the number of samples in flight that follow it.

    `owner` is the plan as it was added, `plan` that with classifier guidance.
    """

    owner: Plan
    plan: Plan
    first: int
    samples: int = 0
