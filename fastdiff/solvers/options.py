"""Domains: what an option may be, in words and as a check. Every option of every solver has one.

A formula declares them as the types of its keyword-only parameters. The registry checks them before
every call of the formula:

    def tcd(p: Trace, times: Sequence[Time], *, eta: Share = 0.3) -> Linear: ...

Values arrive as plain Python numbers, whatever type of number was passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ..nearest import nearest
from ..schedule import Time
from ..whole import whole

_SHOWN = 80  # characters of a value in an error message


@dataclass(frozen=True)
class Domain:
    """The values that an option may have.

    Attributes:
        words: the end of "expected <name> …" in the error message.
        read: value -> the value as the formula gets it. It raises ValueError, TypeError,
            OverflowError or RuntimeError for any other.
        known: names, of which an error suggests the nearest.
    """

    words: str
    read: Callable[[Any], Any]
    known: tuple[str, ...] = ()

    def check(self, name: str, value: Any, where: str = "fastdiff.Sampler") -> Any:
        """Returns the value as the formula gets it. Raises ValueError outside the domain."""
        try:
            return self.read(value)
        except (ValueError, TypeError, OverflowError, RuntimeError):
            raise ValueError(
                f"{where}: expected {name} {self.words}, got {shown(value)}."
                f"{nearest(value, self.known)}"
            ) from None


def shown(value: Any) -> str:
    """A value in an error message: its repr, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def plain(value: Any) -> float:
    """A number of any type as Python's int or float.

    Raises ValueError, TypeError, OverflowError or RuntimeError for anything else.
    """
    if type(value) in (int, float):
        float(value)  # OverflowError for an int beyond all floats
        return value
    if isinstance(value, (bool, str, bytes)) or type(value).__name__ == "bool_":
        raise TypeError
    number = whole(value)
    return float(value) if number is None else number


def number(low: float, high: float, words: str, *, above: bool = False) -> Domain:
    """Numbers in [low, high], or in (low, high] with `above`; never NaN."""

    def read(value: Any) -> float:
        found = plain(value)
        if not low <= found <= high or (above and found == low):
            raise ValueError
        return found

    return Domain(words, read)


def whole_number(low: int, words: str) -> Domain:
    """Whole numbers from `low` on, of any integer type."""

    def read(value: Any) -> int:
        found = whole(value)
        if found is None or found < low:
            raise ValueError
        return found

    return Domain(words, read)


def one_of(values: Iterable[Any], aliases: Iterable[str] = ()) -> Domain:
    """These texts or whole numbers. An error may suggest an alias too, which the caller reads."""
    known = list(values)
    names = (*(value for value in known if isinstance(value, str)), *aliases)

    def read(value: Any) -> Any:
        found = value if isinstance(value, str) else whole(value)
        if found is None or found not in known:
            raise ValueError
        return found

    return Domain(f"in {known}", read, names)


def optional(domain: Domain) -> Domain:
    """None, or a value of the domain."""
    return Domain(f"{domain.words} or None", lambda v: None if v is None else domain.read(v))


def either(domain: Domain, other: Callable[[Any], bool], words: str) -> Domain:
    """A value of the domain, or one for which `other` is true; it is passed on as it is."""
    return Domain(words, lambda v: v if other(v) else domain.read(v))


def _flag(value: Any) -> Any:
    """A truth value; 0 and 1 are passed on as they are."""
    if isinstance(value, (bool, int)) and value in (0, 1):
        return value
    if type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError


def _indices(value: Any) -> Sequence[int]:
    if not isinstance(value, Collection) or isinstance(value, (str, bytes, Mapping)):
        raise TypeError
    found = [whole(v) for v in value]
    if None in found:
        raise ValueError
    return value  # type: ignore[return-value]


_LARGEST = float.fromhex("0x1.fffffffffffffp+1023")
FINITE = number(0.0, _LARGEST, ">= 0 and finite")
STRENGTH = number(0.0, math.inf, ">= 0")
SHARE = number(0.0, 1.0, "in [0, 1]")
BOUND = number(0.0, _LARGEST, "> 0 and finite, or None", above=True)
FACTOR_OF_SIGN = number(-_LARGEST, _LARGEST, "as a finite number")
WHOLE = whole_number(0, "as a whole number >= 0")
SPACE = one_of(("x0", "output"))

Share = Annotated[float, SHARE]
"""In [0, 1]."""
Part = Annotated[float, number(0.0, 1.0, "in (0, 1]", above=True)]
"""In (0, 1]."""
Strength = Annotated[float, STRENGTH]
"""At least 0, infinity included."""
Factor = Annotated[float, FINITE]
"""At least 0 and finite."""
Level = Annotated[float, number(-math.inf, math.inf, "as a number")]
"""A bound of noise levels: any number but NaN."""
Flag = Annotated[bool, Domain("as True or False", _flag)]
Count = Annotated[int, whole_number(1, "as a whole number >= 1")]
Order3 = Annotated[int, one_of((1, 2, 3))]
Order4 = Annotated[int, one_of((1, 2, 3, 4))]
Indices = Annotated[Sequence[int], Domain("as a sequence of whole numbers", _indices)]
Noise = Annotated[
    float | Callable[[Time], float],
    either(FINITE, callable, ">= 0 and finite, or a function of the point"),
]
"""SA-Solver's tau."""
Variance = Annotated[float | None, optional(FINITE)]
Number = Annotated[float, number(-_LARGEST, _LARGEST, "as a finite number")]
Stages = Annotated[str, one_of(("phi_1", "phi_2"))]
"""The weight of a stage of an exponential integrator."""


def domains(formula: Callable[..., Any], hints: Mapping[str, Any]) -> dict[str, Domain]:
    """The domains of a formula's options, from its resolved type hints.

    Raises TypeError for an option without one.
    """
    found = {}
    for name in formula.__kwdefaults__ or {}:
        declared: Any = getattr(hints.get(name), "__metadata__", ())
        if len(declared) != 1 or not isinstance(declared[0], Domain):
            raise TypeError(
                f"fastdiff.solvers: expected a domain for the option {name!r} of"
                f" {formula.__name__}, got none. Declare it as its type, see solvers/options.py."
            )
        found[name] = declared[0]
    return found


CLIP = optional(number(0.0, _LARGEST, "> 0 (the c of [-c, c])", above=True))
RATIO = optional(number(0.0, 1.0, "in (0, 1]", above=True))
POSITIVE = number(0.0, _LARGEST, "> 0", above=True)
"""Finite."""


def numbers(name: str, words: str, values: Any) -> list[float]:
    """The numbers of a list that a user passes. Raises ValueError for one that has others."""

    def read(given: Any) -> list[float]:
        if isinstance(given, (str, bytes, Mapping)):
            raise TypeError
        return [plain(v) for v in given]

    found: list[float] = Domain(words, read).check(name, values)
    return found


def _interval(value: Any) -> tuple[float, float]:
    low, high = (plain(v) for v in value)
    if not 0 <= low <= high:
        raise ValueError
    return low, high


INTERVAL = optional(Domain("(low, high) of sigmas", _interval))
