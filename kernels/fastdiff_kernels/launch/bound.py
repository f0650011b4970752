"""Binds reverse_step to its arguments: a call computes only what moves, and launches.

The first call with each alignment of the moving tensors launches like a step that is not bound, and
keeps the compiled kernels with all their values. Later calls fill in addresses and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .common import Call, kernel_of, launches, on_device, run, seed_words
from .compiled import Variant, triton_driver, undisturbed
from .step import reverse_step_calls

_MOST_FORMS = 64  # of a bound step
# the kernels' names of a step's arguments, and those of the second pass of a sum
_IN_KERNELS = {"out": "x_s", "seed": "seeds", "log_prob_out": "log_prob"}
_IN_SUMS = _IN_KERNELS | {"log_prob_out": "out"}


class _Launch(NamedTuple):
    """A kernel of a bound step: its values, and where among them the moving ones belong."""

    op: str
    grid: tuple[int, int, int]
    variant: Variant
    values: list[Any]
    addresses: list[tuple[int, int]]  # (place, which moving tensor)
    seeds: list[tuple[int, int, int]]  # (place of the low word, of the high word, which value)


def bind_reverse_step(
    step: Any, moving: Sequence[str], both_ways: bool
) -> list[Callable[[Sequence[Any]], None]]:
    """Returns functions of the moving values that launch the kernels of `step`.

    `step` is a checked StepArguments. The values of a call are like those of `step`: the same ones
    are None, and shapes, dtypes and devices are equal. With `both_ways` there is a second function,
    which exchanges `row` and `row_out`.
    """
    nothing: dict[str, Any] = dict.fromkeys(moving)
    ways = [step._replace(**nothing)]
    if both_ways:
        back: dict[str, Any] = {"row": step.row_out, "row_out": step.row} | nothing
        ways.append(step._replace(**back))
    return [_BoundStep(way, step, moving) for way in ways]


class _BoundStep:
    """Launches a step whose arguments are fixed except for the moving ones.

    It may be called from several threads.
    """

    def __init__(self, fixed: Any, like: Any, moving: Sequence[str]) -> None:
        self._fixed, self._moving = fixed, tuple(moving)
        self._device = like.x_t.get_device()
        self._driver = triton_driver()
        values = [(i, name, getattr(like, name)) for i, name in enumerate(moving)]
        self._tensors = [i for i, _, value in values if isinstance(value, Tensor)]
        self._names = [name for _, name, value in values if isinstance(value, Tensor)]
        self._numbers = [i for i, _, value in values if isinstance(value, int)]
        # Slots are copied where they are read from other memory than they are written to. So where
        # one of the two moves, the kernel depends on whether they are the same.
        self._slots = (
            like.slots is not None
            and like.slots_out is not None
            and not {"slots", "slots_out"}.isdisjoint(moving)
        )
        self._forms: dict[int, list[_Launch]] = {}

    def __call__(self, values: Sequence[Any]) -> None:
        """Launches the step with these values of the moving arguments."""
        addresses, bits = [], 0
        for i in self._tensors:
            address = values[i].data_ptr()
            addresses.append(address)
            bits |= address
        key = self._key(values, addresses) if bits & 15 or self._slots else 0
        form = self._forms.get(key)
        if form is None or not undisturbed():
            self._first(key, values)
            return
        with on_device(self._device):
            active = self._driver.active
            stream = active.get_current_stream(active.get_current_device())
            for op, grid, variant, fixed, moved, seeds in form:
                arguments = fixed[:]
                for place, which in moved:
                    arguments[place] = addresses[which]
                for low, high, which in seeds:
                    arguments[low], arguments[high] = seed_words(values[which])
                variant.run(
                    *grid, stream, variant.function, variant.metadata, None, None, None, *arguments
                )
                launches[op] += 1

    def _key(self, values: Sequence[Any], addresses: list[int]) -> int:
        """Returns what decides on the kernels: the alignment of what moves, and of slots more."""
        key = 0
        for address in addresses:
            key = key << 1 | (address & 15 != 0)
        if self._slots:
            step = self._step(values)
            key = key << 1 | (step.slots.data_ptr() != step.slots_out.data_ptr())
        return key

    def _step(self, values: Sequence[Any]) -> Any:
        return self._fixed._replace(**dict(zip(self._moving, values, strict=True)))

    def _first(self, key: int, values: Sequence[Any]) -> None:
        """Launches like a step that is not bound, and keeps the kernels for later calls."""
        step = self._step(values)
        launched = [(call, run(call, step.out)) for call in reverse_step_calls(step)]
        if any(variant is None for _, variant in launched):
            return
        if len(self._forms) >= _MOST_FORMS:
            self._forms.clear()
        self._forms[key] = [self._launch(call, variant) for call, variant in launched if variant]

    def _launch(self, call: Call, variant: Variant) -> _Launch:
        """Returns a launched call with addresses in place of tensors.

        Moving tensors belong to the caller: no reference to them stays.
        """
        names = kernel_of(call).names
        values = [call.arguments[name] for name in names]
        place = {name: i for i, name in enumerate(names) if values[i] is not None}
        addresses, seeds = [], []
        theirs = _IN_SUMS if call.op == "sum_chunks" else _IN_KERNELS
        for which, name in enumerate(self._names):
            at = place.get(theirs.get(name, name))
            if at is not None:
                addresses.append((at, which))
        if "seed_lo" in place:
            seeds = [(place["seed_lo"], place["seed_hi"], which) for which in self._numbers]
        fixed = [value.data_ptr() if isinstance(value, Tensor) else value for value in values]
        return _Launch(call.op, call.grid, variant, fixed, addresses, seeds)
