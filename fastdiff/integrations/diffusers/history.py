"""What diffusers remembers between steps, for users who read or replace it.

A drop-in remembers linear terms in the slots of its plan. When an attribute of `_history` is read
or assigned, the run is handed over: the slots become diffusers' attributes, and from then on
diffusers' own step, which reads and writes these attributes, takes the steps of this run. So what
is assigned has diffusers' effect, and the numbers are diffusers'. The next `set_timesteps` begins
a run of the plan again.

A class lists in `_history` the attributes and their values before the first step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...table import INDEX, OPERANDS
from .state import State
from .traced import TracedPlan


class Remembered:
    """An attribute that diffusers' step reads and writes; any use hands the run over."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, scheduler: Any, owner: type) -> Any:
        if scheduler is None:
            return self
        return handed_over(scheduler)[self.name]

    def __set__(self, scheduler: Any, value: Any) -> None:
        handed_over(scheduler)[self.name] = value


Defaults = Mapping[str, Callable[[Any], Any]]
"""The attributes that a class remembers, and functions of the scheduler that make their values."""


def outputs(scheduler: Any) -> list[None]:
    """The empty history of a solver of some order."""
    config = scheduler.config
    order = config.get("solver_order")
    if order is None:
        order = max(config.predictor_order, config.corrector_order - 1)
    return [None] * order


MULTISTEP: Defaults = {"model_outputs": outputs, "lower_order_nums": lambda _: 0}


def handed_over(scheduler: Any) -> dict[str, Any]:
    """The attributes of a run that diffusers' step takes, which it becomes here.

    Raises AttributeError where the plan's slots do not have what diffusers would remember.
    """
    state = scheduler._state
    if state.driven is None:
        driven = {name: make(scheduler) for name, make in scheduler._history.items()}
        known = state.last_index is None or (
            state.last is not None and scheduler._recall(state, driven)
        )
        if not known:
            raise AttributeError(
                f"fastdiff.{type(scheduler).__name__}: expected what diffusers remembers between"
                f" steps ({', '.join(driven)}) to be read before the first step or between whole"
                " ones, got a run whose slots have sums of it. Read it earlier, or use diffusers'"
                " class."
            )
        state.driven = driven
    return state.driven


def restarted(scheduler: Any) -> None:
    """Lets a run go on from another index with its history, as in diffusers.

    Raises ValueError where the slots do not have that history.
    """
    try:
        handed_over(scheduler)
    except AttributeError:
        raise ValueError(
            f"fastdiff.{type(scheduler).__name__}: expected set_timesteps before another run, got"
            " an assigned _step_index, with which diffusers goes on with what it remembers of this"
            " run. Call set_timesteps."
        ) from None


def step(scheduler: Any, *arguments: Any, **keywords: Any) -> Any:
    """diffusers' step on a drop-in, with the keywords that it takes."""
    theirs = scheduler._peer
    takes = inspect.signature(theirs.step).parameters
    return theirs.step(
        scheduler, *arguments, **{k: v for k, v in keywords.items() if k in takes and v is not None}
    )


def kept(state: State, states: bool) -> tuple[dict[int, Tensor], Tensor | None]:
    """The network's converted outputs in the slots by call, and the last state that was kept.

    states: whether the solver keeps states at all.
    """
    assert state.last is not None
    traced, call = state.last
    by_slot: dict[int, tuple[bool, int]] = {}  # (whether it is a state, call)
    for number in range(call + 1):
        for row in traced.calls[number].rows:
            by_slot |= _written(traced, row, number)
    slots = state._slots[0] if by_slot else None
    found: dict[int, Tensor] = {}
    last: tuple[int, Tensor] | None = None
    for slot, (is_state, number) in by_slot.items():
        assert slots is not None
        if not (is_state and states):
            found[number] = slots[slot]
        elif last is None or number > last[0]:
            last = number, slots[slot]
    return found, None if last is None else last[1]


def _written(traced: TracedPlan, row: int, call: int) -> dict[int, tuple[bool, int]]:
    """The slots that a row writes. A state is x itself or has terms of other slots."""
    written = {}
    for slot in range(traced.slots):
        of = {o: float(traced.plan.table[row, INDEX[f"s{slot + 1}.{o}"]]) for o in OPERANDS}
        used = {o: c for o, c in of.items() if c}
        if used:
            is_state = used == {"x": 1.0} or any(o.startswith("s") for o in used)
            written[slot] = is_state, call
    return written


def recall_multistep(state: State, driven: dict[str, Any], needed: int | None = None) -> bool:
    """Fills the history of a multistep solver; whether it has the `needed` latest outputs.

    By default they are all but the one that the next step replaces.
    """
    assert state.last is not None
    found, last = kept(state, bool({"last_sample", "sample"} & set(driven)))
    call, size = state.last[1], len(driven["model_outputs"])
    for number, value in found.items():
        if call - number < size:
            driven["model_outputs"][number - call - 1] = value.clone()
    if "lower_order_nums" in driven:
        driven["lower_order_nums"] = min(call + 1, size)
    # a step of a lower order leaves out what diffusers would still show
    needed = size - 1 if needed is None else needed
    if any(call - back not in found for back in range(min(needed, call + 1))):
        return False
    for name in ("last_sample", "sample"):
        if name in driven:
            driven[name] = None if last is None else last.clone()
    if "timestep_list" in driven:
        first = (state.history_start or 0) + call
        for back in range(min(size, call + 1)):
            driven["timestep_list"][-1 - back] = state.values[first - back]
    return True


def recall_list(state: State, driven: dict[str, Any], name: str, most: int) -> bool:
    """Fills a list of the latest outputs, the latest one last."""
    found, _ = kept(state, False)
    assert state.last is not None
    call = state.last[1]
    latest = range(max(0, call - most + 2), call + 1)  # the next step adds one to them
    if any(number not in found for number in latest):
        return False
    driven[name] = [found[number].clone() for number in latest]
    return True
