"""What a model is told of a sample: an entry, and the keyword arguments that B of them become.

An entry is parsed from a class list or from a line of a conditions file when a run is described, so
that what a model can't use is refused before the first sample. For classifier-free guidance the
entries make two sets of arguments, those of the conditional half of a network call and those of the
unconditional one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

Halves = tuple[dict[str, Any] | None, dict[str, Any] | None]
_SHOWN = 12  # names in an error


class Unfit(ValueError):
    """An entry that a model can't use: `expected` and `got` make a sentence together with where it
    was found.
    """

    def __init__(self, expected: str, got: Any):
        text = repr(got)
        self.expected, self.got = (
            expected,
            (text if len(text) <= 60 else f"{text[:50]}… ({len(text)} characters)"),
        )
        super().__init__(f"fastdiff.jobs: expected {self.expected}, got {self.got}.")


class Conditioning:
    """What a model takes.

    Attributes:
        default_entries: what ids get in turn when nothing is named; None where something must be.
        names: of the classes, () if none. any_text: whether every text is an entry.
        identity: JSON-safe, what else the arguments depend on.
    """

    default_entries: list[Any] | None = None
    names: tuple[str, ...] = ()
    any_text = False
    identity: Mapping[str, Any] = {}

    def parse(self, value: Any) -> Any:
        """The entry of a text or a JSON value. Raises Unfit for what the model can't use."""
        raise NotImplementedError

    def signature(self, entry: Any) -> Any:
        """What all entries of a run must have in common."""
        return None

    def conditions(self, entries: Sequence[Any]) -> Halves:
        """(cond, uncond) of `Sampler.sample` for B entries."""
        raise NotImplementedError

    def labels(self, entries: Sequence[Any]) -> list[int] | None:
        """The class of each entry, None where they are no classes."""
        return None


class Classes(Conditioning):
    """Classes 0 … count - 1: cond = {argument: class}, uncond = {argument: null_label}.

    Args:
        count: of classes. names: one for each, or none. A name with commas, as ImageNet's, is also
            known by each of its parts that no other class has.
        null_label: stands for "no class" (Ho & Salimans 2022); None where the network knows none.
        argument: the network's.

    Raises:
        ValueError: for numbers that do not fit together.
    """

    def __init__(
        self,
        count: int,
        names: Sequence[str] = (),
        *,
        null_label: int | None = None,
        argument: str = "y",
    ):
        if (
            isinstance(count, bool)
            or not isinstance(count, int)
            or count < 1
            or (names and len(names) != count)
        ):
            raise ValueError(
                "fastdiff.jobs.Model: expected a number of classes >= 1 and a name for each, or"
                f" none, got {count!r} classes and {len(names)} names."
            )
        if null_label is not None and (
            isinstance(null_label, bool) or not isinstance(null_label, int)
        ):
            raise ValueError(
                "fastdiff.jobs.Model: expected null_label as a whole number or None, got"
                f" {null_label!r}."
            )
        self.count, self.names, self.null_label, self.argument = (
            count,
            tuple(names),
            null_label,
            argument,
        )
        self.default_entries = list(range(count))
        self.identity = {"classes": count, "null_label": null_label, "argument": argument}
        parts: dict[str, set[int]] = {}
        for index, name in enumerate(self.names):
            for part in name.split(","):
                parts.setdefault(part.strip(), set()).add(index)
        self._index = {part: min(indices) for part, indices in parts.items() if len(indices) == 1}
        self._index |= {name: index for index, name in reversed(list(enumerate(self.names)))}

    def parse(self, value: Any) -> int:
        found = value
        if (
            isinstance(value, Mapping)
            and len(value) == 1
            and set(value) <= {self.argument, "class"}
        ):
            found = next(iter(value.values()))
        if isinstance(found, str):
            found = self._index.get(found, int(found) if found.isdecimal() else -1)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < self.count:
            names = ", ".join((*self.names[:_SHOWN], *(("…",) if self.count > _SHOWN else ())))
            raise Unfit(
                f"a class among 0-{self.count - 1}{f' or {names}' if self.names else ''}", value
            )
        return found

    def conditions(self, entries: Sequence[Any]) -> Halves:
        y = torch.tensor(entries, dtype=torch.int64)
        null = (
            None
            if self.null_label is None
            else {self.argument: torch.full_like(y, self.null_label)}
        )
        return {self.argument: y}, null

    def labels(self, entries: Sequence[Any]) -> list[int]:
        return list(entries)


class Arguments(Conditioning):
    """A network's own keyword arguments, {"name": number or list of numbers}, stacked; no
    unconditional half.

    Whole numbers become int64, others float32. A network that takes nothing but (x, t) takes no
    entries either.
    """

    def __init__(self, network: Callable[..., Any]):
        self._taken, self._needed = keywords(network)
        self.default_entries = None if self._needed else [None]
        self.identity = {"arguments": None if self._taken is None else sorted(self._taken)}

    @property
    def unconditional(self) -> bool:
        """Whether the network takes nothing."""
        return self._taken == frozenset()

    def parse(self, value: Any) -> dict[str, Any]:
        if self.unconditional:
            raise Unfit("no conditions for a model that takes none", value)
        known = "" if self._taken is None else f" with keys in {sorted(self._taken)}"
        expected = (
            f"an object of the network's arguments, {{name: number or list of numbers}},{known}"
        )
        if not isinstance(value, Mapping) or not value:
            raise Unfit(expected.rstrip(","), value)
        if (
            self._taken is not None and not value.keys() <= self._taken
        ) or not self._needed <= value.keys():
            raise Unfit(expected.rstrip(","), dict(value))
        for number in value.values():
            _array(number)
        return dict(value)

    def signature(self, entry: Any) -> Any:
        if entry is None:
            return None
        arrays = {k: _array(v) for k, v in sorted(entry.items())}
        return {k: f"{array.dtype} {list(array.shape)}" for k, array in arrays.items()}

    def conditions(self, entries: Sequence[Any]) -> Halves:
        if not entries or entries[0] is None:
            return None, None
        columns = {k: np.stack([_array(entry[k]) for entry in entries]) for k in entries[0]}
        return {k: torch.from_numpy(column) for k, column in columns.items()}, None


class Custom(Conditioning):
    """Entries as they are read, texts or JSON values, for a function of B of them -> (cond,
    uncond).
    """

    any_text = True
    identity = {"conditions": "own"}

    def __init__(self, function: Callable[[list[Any]], Halves]):
        self._function = function

    def parse(self, value: Any) -> Any:
        return value

    def conditions(self, entries: Sequence[Any]) -> Halves:
        return self._function(list(entries))


def keywords(network: Callable[..., Any]) -> tuple[frozenset[str] | None, frozenset[str]]:
    """(arguments that a network takes after x and t, those that it can't do without); None where it
    takes any.
    """
    function = network.forward if isinstance(network, nn.Module) else network
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None, frozenset()
    named = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY, p.POSITIONAL_ONLY)
    ][2:]
    needed = frozenset(p.name for p in named if p.default is p.empty)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return (None if open_ended else frozenset(p.name for p in named)), needed


_DTYPES: dict[str, type[np.generic]] = {"b": np.bool_, "i": np.int64, "f": np.float32}


def _array(value: Any) -> np.ndarray:
    """Of a number, or of nested lists of numbers. Raises Unfit for anything else."""
    try:
        array = np.asarray(value)
        if array.size and np.isfinite(array).all():
            return array.astype(_DTYPES[array.dtype.kind])
    except (ValueError, TypeError, KeyError):
        pass
    raise Unfit(
        "finite numbers, or lists of them of one length each, as the network's arguments", value
    )
