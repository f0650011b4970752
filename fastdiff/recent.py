"""A dictionary of bounded size, for whatever is kept by what a user passes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The values that were used last, by their keys; those used longest ago are forgotten.

    Threads may share it. Copies and pickles of it are empty.

    Args:
        most: the number of values that are kept.
        size: the size of a value, and `most_size` of all values together; the latest value is kept
            whatever its size. None where only their number counts.
    """

    def __init__(
        self, most: int, size: Callable[[Value], int] | None = None, most_size: int | None = None
    ):
        self._arguments = most, size, most_size
        self._most, self._size, self._most_size = most, size, most_size
        self._values: dict[Hashable, Value] = {}  # in the order of use
        self._total = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        """Returns the value of a key, which is now the one used last; None without."""
        with self._lock:
            if key not in self._values:
                return None
            value = self._values[key] = self._values.pop(key)
            return value

    def put(self, key: Hashable, value: Value) -> Value:
        """Keeps a value, forgets others where there are too many, and returns it."""
        with self._lock:
            self._drop(key)
            self._values[key] = value
            self._total += self._size(value) if self._size is not None else 0
            while len(self._values) > 1 and (
                len(self._values) > self._most
                or (self._most_size is not None and self._total > self._most_size)
            ):
                self._drop(next(iter(self._values)))
        return value

    def _drop(self, key: Hashable) -> None:
        if key in self._values:
            value = self._values.pop(key)
            self._total -= self._size(value) if self._size is not None else 0

    def __reduce__(self) -> Any:
        return type(self), self._arguments
