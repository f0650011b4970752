"""The plan that a sample follows: the sampler's own, or one with other steps, a later start, or a
guidance strength per row.

Three classes hold plans:

    Plan        the table of one solver over one grid, on the host (fastdiff.solvers.plan)
    Plans       makes and caches the plans of one sampler: one `Plan` for each combination of
                number of steps, start and strengths that was asked for (this module)
    DevicePlan  the plans of the samples of one run, stacked into one table on the device, in which
                every lane has its row (fastdiff.sampling.device_plan)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..recent import Recent
from ..schedule import Schedule, Time
from ..solvers import Plan, make_plan
from ..solvers.grids import grid, of_levels, of_timesteps
from ..solvers.options import SHARE
from ..solvers.windows import later
from ..table import INDEX
from ..whole import whole
from .guidance import over_rows

_MOST_PLANS, _MOST_ROWS = 256, 2**16  # that a sampler caches
_SHOWN = 12  # rows in an error message
_GRIDS = ("timesteps", "sigmas")  # the settings that list the points to visit


class Retimed:
    """A schedule whose network times come from the network's own `network_time(point)`."""

    whole_times = False

    def __init__(self, schedule: Schedule, model: Any):
        self._schedule, self.network_time = schedule, model.network_time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._schedule, name)

    def __repr__(self) -> str:
        return repr(self._schedule)


class Plans:
    """Makes and caches the plans of a sampler: equal arguments give the same `Plan` object, as long
    as it is among those used last.

    Args:
        schedule: may be None with a plan.
        settings: arguments of `fastdiff.solvers.make_plan`; not used with a plan.
        plan: a ready plan, followed instead of one made from the settings; or None.
        model: the network, which may define its own time.

    Attributes:
        own: the plan of samples that ask for nothing else: made from the settings, or the ready
            one.
        ready: whether `own` was passed as a plan.
    """

    def __init__(
        self, schedule: Schedule | None, settings: Mapping[str, Any], plan: Plan | None, model: Any
    ):
        self._schedule: Any = schedule
        if schedule is not None and hasattr(model, "network_time"):
            self._schedule = Retimed(schedule, model)
        self._settings, self.ready = settings, plan is not None
        self._made: Recent[tuple[Plan, int]] = Recent(_MOST_PLANS, _rows, _MOST_ROWS)
        self.own = plan if plan is not None else make_plan(self._schedule, **settings)

    def get(
        self,
        steps: int | None,
        start: int,
        strengths: tuple[float, ...] | None,
        window: tuple[int, int] | None = None,
    ) -> tuple[Plan, int]:
        """(the plan to follow, the row in it to begin at).

        A run that begins at a later row has not filled the slots that earlier rows write. Where the
        rest of the plan reads them, the result is a plan traced over the rest of the grid, with row
        0.

        Args:
            steps: the number of steps; None for the sampler's.
            start: the row of the whole plan at which the run begins.
            strengths: a guidance strength for every row of the whole plan; None where they do not
                vary over rows.
            window: the rows that draw noise, as sde_rows; None for the sampler's.

        Raises ValueError for steps and a window of a ready plan, for steps of given timesteps or
        sigmas, and for rows at which a run can't begin.
        """
        key = (steps, start, strengths, window)
        found = self._made.get(key)
        return self._made.put(key, self._make(*key)) if found is None else found

    def of(self, steps: int | None) -> Plan:
        """The plan from its first row for a number of steps; None for the sampler's."""
        return self.get(steps, 0, None)[0]

    def _make(
        self,
        steps: int | None,
        start: int,
        strengths: tuple[float, ...] | None,
        window: tuple[int, int] | None,
    ) -> tuple[Plan, int]:
        if start:
            whole_plan = self.get(steps, 0, strengths, window)[0]
            return self._later(whole_plan, steps, start, strengths, window)
        if strengths is not None:
            return over_rows(self.get(steps, 0, None, window)[0], strengths), 0
        if window is not None:
            if self.ready:
                raise ValueError(
                    "fastdiff.Sampler: expected no sde_rows for a sampler of a ready plan. Make the"
                    " plan with them."
                )
            count = self._settings["steps"] if steps is None else steps
            given = {**self._settings, "steps": count, "sde_rows": window}
            return make_plan(self._schedule, **given), 0
        if steps is None or (not self.ready and steps == self._settings["steps"]):
            return self.own, 0
        if self.ready or any(name in self._settings for name in _GRIDS):
            raise ValueError(
                "fastdiff.Sampler: expected no steps for a sampler of given timesteps or sigmas, or"
                " of a ready plan."
            )
        return make_plan(self._schedule, **{**self._settings, "steps": steps}), 0

    def _later(
        self,
        plan: Plan,
        steps: int | None,
        start: int,
        strengths: tuple[float, ...] | None,
        window: tuple[int, int] | None,
    ) -> tuple[Plan, int]:
        """`get` for a run that begins at row `start` of the whole plan `plan`."""
        where = "fastdiff.Sampler.sample"
        row = whole(start)
        if row is None or not 0 <= row <= len(plan):
            raise ValueError(f"{where}: expected start in [0, {len(plan)}], got {start}.")
        if plan.enterable(start):
            return plan, int(start)
        times = None if self.ready else self._times(steps)
        if times is None or len(times) - 1 != len(plan):
            rows = [str(row) for row in range(len(plan)) if plan.enterable(row)]
            shown = ", ".join(rows[:_SHOWN]) + (", …" if len(rows) > _SHOWN else "")
            raise ValueError(
                f"{where}: expected start at a row that remembers nothing, one of {shown}, got"
                f" {start}."
            )
        asked = {} if window is None else {"sde_rows": window}
        given = later({**self._settings, **asked}, start)
        settings = {k: v for k, v in given.items() if k not in _GRIDS}
        zeros = plan.info.get("zero_init_steps")
        if zeros:  # of the whole plan's first calls, some are before the start
            settings["zero_init_steps"] = max(0, zeros - start)
        rest = make_plan(self._schedule, **settings, times=times[start:])
        table = rest.table.copy()
        # Rows draw the noise that they draw in the whole plan, not that of rows before the start.
        table[:-1, INDEX["noise_index"]] += start
        rest = dataclasses.replace(rest, table=table)
        return (rest if strengths is None else over_rows(rest, strengths[start:])), 0

    def _times(self, steps: int | None) -> Sequence[Time]:
        """The grid that the settings' solver is traced over."""
        s = self._settings
        if "timesteps" in s:
            return of_timesteps(self._schedule, s["timesteps"])
        if "sigmas" in s:
            return of_levels(self._schedule, s["sigmas"])
        return grid(self._schedule, s["steps"] if steps is None else steps, s["timestep_spacing"])

    def start_of(self, steps: int | None, strength: float) -> int:
        """The row at which a run begins that executes the share `strength` of the rows, rounded
        down to a row at which a run can begin.

        Raises ValueError for a strength outside [0, 1].
        """
        strength = SHARE.check("strength", strength, "fastdiff.Sampler.sample")
        plan = self.of(steps)
        start = len(plan) - int(strength * len(plan) + 1e-9)
        if not self.ready and len(self._times(steps)) - 1 == len(plan):
            return start
        while not plan.enterable(start):
            start += 1
        return start


def _rows(made: tuple[Plan, int]) -> int:
    return len(made[0].table)


def check_range(plan: Plan, row: int, where: str) -> None:
    """Raises ValueError for a plan whose rows from this one on float32 can't hold."""
    beyond = plan.beyond_float32(row)
    if beyond is not None:
        raise ValueError(
            f"{where}: expected a plan that float32 can hold, got {beyond}. Begin at less noise, as"
            " with timesteps=, train v or x0, or pass dtype=torch.float64."
        )
