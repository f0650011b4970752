"""The conditions of a model: entries of samples, and the network's arguments made from them.

An entry belongs to one sample. It is parsed from a list of classes or from a line of a conditions
file when a run is planned, so that entries that the model cannot use are refused before the first
sample. B entries become keyword arguments of the network. For classifier-free guidance there are
two sets of arguments, for the conditional and the unconditional half of a network call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...sampling.takes import innermost, network_arguments, null_of
from ...whole import whole

# (cond, uncond): the network's keyword arguments in the two halves of a guided call
Halves = tuple[dict[str, Any] | None, dict[str, Any] | None]
_SHOWN = 12  # class names in an error message


class InvalidEntry(ValueError):
    """An entry that a model cannot use.

    `expected` and `got` are parts of a sentence, to which the caller adds where the entry was.
    """

    def __init__(self, expected: str, got: Any):
        text = repr(got)
        self.expected, self.got = (
            expected,
            (text if len(text) <= 60 else f"{text[:50]}… ({len(text)} characters)"),
        )
        super().__init__(f"fastdiff.jobs: expected {self.expected}, got {self.got}.")


class Conditioning:
    """The entries that a model accepts, and the network's arguments made from them.

    Attributes:
        default_entries: entries that the ids cycle through when the user names none; None where
            the user must name them.
        names: of the classes, () without classes.
        any_text: whether every text is a valid entry.
        identity: JSON-safe, what else the arguments depend on.
    """

    default_entries: list[Any] | None = None
    names: tuple[str, ...] = ()
    any_text = False
    identity: Mapping[str, Any] = {}

    def parse(self, value: Any) -> Any:
        """Returns the entry of a text or a JSON value. Raises InvalidEntry for unusable ones."""
        raise NotImplementedError

    def signature(self, entry: Any) -> Any:
        """Returns what must be equal for all entries of a run, such as the arguments' shapes."""
        return None

    def conditions(self, entries: Sequence[Any]) -> Halves:
        """Returns (cond, uncond) of `Sampler.sample` for B entries."""
        raise NotImplementedError

    def labels(self, entries: Sequence[Any]) -> list[int] | None:
        """Returns the class of each entry, None where entries are no classes."""
        return None


class Classes(Conditioning):
    """Classes 0 … count - 1: cond = {argument: class}, uncond = {argument: null_label}.

    Args:
        count: number of classes.
        names: one for each class, or none. A class whose name has commas, as in ImageNet, can also
            be named by each part that no other class has.
        null_label: the label for "no class" (Ho & Salimans 2022), None without one.
        argument: name of the network's argument.

    Raises:
        ValueError: for inconsistent numbers.
    """

    def __init__(
        self,
        count: int,
        names: Sequence[str] = (),
        *,
        null_label: int | None = None,
        argument: str = "y",
    ):
        number = whole(count) or 0
        if number < 1 or (names and len(names) != number):
            raise ValueError(
                "fastdiff.jobs.Model: expected a number of classes >= 1 and a name for each, or"
                f" none, got {count!r} classes and {len(names)} names."
            )
        label = None if null_label is None else whole(null_label)
        if null_label is not None and label is None:
            raise ValueError(
                "fastdiff.jobs.Model: expected null_label as a whole number or None, got"
                f" {null_label!r}."
            )
        count, null_label = number, label
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
            number = int(found) if found.isdecimal() and len(found) < 20 else -1
            found = self._index.get(found, number)
        index = whole(found)
        if index is None or not 0 <= index < self.count:
            names = ", ".join((*self.names[:_SHOWN], *(("…",) if self.count > _SHOWN else ())))
            raise InvalidEntry(
                f"a class among 0-{self.count - 1}{f' or {names}' if self.names else ''}", value
            )
        return index

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
    """Entries are a network's own keyword arguments: {"name": number or list of numbers}.

    The values of B entries are stacked: integers as int64, other numbers as float32. A network that
    takes only (x, t) accepts no entries.

    Args:
        network: a callable (x, t, **cond).
        nulls: whether there is an unconditional half, with what `null_of` says for each argument;
            by default for a network with `null_cond`.
    """

    KEYS = frozenset({"arguments"})  # of `identity`

    def __init__(self, network: Callable[..., Any], nulls: bool | None = None):
        self._network = network
        self._nulls = (
            getattr(innermost(network), "null_cond", None) is not None if nulls is None else nulls
        )
        self._names, self._required = network_arguments(network)
        self.default_entries = None if self._required else [None]
        self.identity = {"arguments": None if self._names is None else sorted(self._names)}
        # without the network nobody can say what stands for no condition
        self.identity |= {"nulls": True} if self._nulls else {}

    @property
    def unconditional(self) -> bool:
        """Whether the network takes only (x, t)."""
        return self._names == frozenset()

    def parse(self, value: Any) -> dict[str, Any]:
        if self.unconditional:
            raise InvalidEntry("no conditions for a model that takes none", value)
        known = "" if self._names is None else f" with keys in {sorted(self._names)}"
        expected = (
            f"an object of the network's arguments, {{name: number or list of numbers}},{known}"
        )
        if not isinstance(value, Mapping) or not value:
            raise InvalidEntry(expected.rstrip(","), value)
        unknown = self._names is not None and not value.keys() <= self._names
        if unknown or not self._required <= value.keys():
            raise InvalidEntry(expected.rstrip(","), dict(value))
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
        cond = {k: torch.from_numpy(column) for k, column in columns.items()}
        if not self._nulls:
            return cond, None
        try:
            nulls = {k: null_of(self._network, k, v, "fastdiff.jobs") for k, v in cond.items()}
        except ValueError:  # there is none, so that guidance is refused
            return cond, None
        return cond, {k: v.detach().expand_as(cond[k]).contiguous() for k, v in nulls.items()}


class Custom(Conditioning):
    """Texts or JSON values, which a user's function turns into (cond, uncond), B at a time."""

    KEYS = frozenset({"conditions"})  # of `identity`
    any_text = True
    identity = {"conditions": "own"}

    def __init__(self, function: Callable[[list[Any]], Halves]):
        self._function = function

    def parse(self, value: Any) -> Any:
        return value

    def conditions(self, entries: Sequence[Any]) -> Halves:
        return self._function(list(entries))


_DTYPES: dict[str, type[np.generic]] = {"b": np.bool_, "i": np.int64, "f": np.float32}


def _array(value: Any) -> np.ndarray:
    """Returns the array of a number or of nested lists. Raises InvalidEntry for anything else."""
    try:
        array = np.asarray(value)
        if array.size and np.isfinite(array).all():
            with np.errstate(over="ignore"):
                array = array.astype(_DTYPES[array.dtype.kind])
            if np.isfinite(array).all():  # a float64 may be too large for float32
                return array
    except (ValueError, TypeError, KeyError, OverflowError):
        pass
    raise InvalidEntry(
        "finite numbers, or rectangular lists of them, as the network's arguments", value
    )
