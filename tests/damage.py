"""Damages bytes and JSON values by a seed, and separates the project's errors from raw ones."""

from __future__ import annotations

import copy
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# what a hostile or a careless writer puts in the place of any value
STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    3,
    10**9,
    10**18,
    2**63,
    2**64 - 1,
    0.5,
    -1e308,
    "",
    "x",
    "7",
    "\x1b[2J\u202e\n",
    "../../../etc/passwd",
    "a:b",
    [],
    [0],
    [[]],
    ["x", None],
    {},
    {"x": 1},
    {"class": "UNet"},
)
# texts that no JSON writer makes
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "nested lists": b"[" * 200_000,
    "nested objects": b'{"a":' * 200_000,
    "nested and closed": b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
    "a huge number": b'{"seed": 1' + b"0" * 10_000 + b"}",
    "a large number": b'{"seed": 1' + b"0" * 30 + b"}",
    "an infinity": b'{"seed": Infinity}',
    "a number beyond float64": b'{"seed": 1e999}',
    "no number": b'{"seed": NaN}',
    "a key twice": b'{"seed": 1, "seed": 2}',
    "no UTF-8": b'{"seed": "\xff\xfe"}',
    "UTF-16": '{"seed": 1}'.encode("utf-16"),
    "half a pair": b'{"seed": "\\ud800"}',
    "a list": b"[1]",
    "a number": b"1",
    "a zero byte": b'{"seed": 1}\0',
    "NUL": bytes(64),
}


def bytes_damages(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Yields damages of the bytes: a bit flipped, a part cut, inserted, copied or zeroed."""
    draw = random.Random(seed)
    for _ in range(count):
        bad = bytearray(data)
        for _ in range(draw.choice((1, 1, 1, 3))):
            at = draw.randrange(len(bad) + 1)
            kind = draw.randrange(5)
            if kind == 0 and bad:
                bad[at % len(bad)] ^= 1 << draw.randrange(8)
            elif kind == 1:
                del bad[at:]
            elif kind == 2:
                bad[at:at] = draw.randbytes(draw.randrange(1, 5))
            elif kind == 3:
                bad[at:at] = bad[at : at + draw.randrange(1, 40)]
            else:
                bad[at : at + 4] = bytes(len(bad[at : at + 4]))
        if bytes(bad) != data:
            yield bytes(bad)


def value_damages(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields (what was done, a copy of a JSON value in which one part is replaced or left out)."""
    for path in list(_paths(value)):
        name = "/".join(map(str, path))
        for strange in STRANGE:
            if strange != (now := _at(value, path)) or type(strange) is not type(now):
                changed = copy.deepcopy(value)
                _at(changed, path[:-1])[path[-1]] = strange
                yield f"{name} = {strange!r}", changed
        changed = copy.deepcopy(value)
        del _at(changed, path[:-1])[path[-1]]
        yield f"without {name}", changed


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:2])
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fails if the block takes longer: damage must not make anything hang."""

    def late(*_: Any) -> None:
        raise AssertionError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(call: Callable[[], Any], what: str = "", seconds: int = 20) -> Any:
    """Returns call()'s result, or the sentence with which it refuses; fails at any other error."""
    with within(seconds):
        try:
            return call()
        except (ValueError, TypeError, OSError, ImportError) as error:
            text = str(error)
            raw = not text.startswith("fastdiff")
            if raw or any(ord(c) < 32 and c != "\n" or c in "\x7f\u202e" for c in text):
                raise AssertionError(f"{what}: {type(error).__name__}: {text!r}") from error
            return text
