"""Reads files and JSON that others wrote, within limits, and shows their text safely.

Every JSON file and every line of JSON in the package goes through `parse_json`. A file may be
damaged or made to do harm, so whatever is wrong with it becomes one NotJSON, never another error:
too many bytes, nesting that later code could not follow, a key twice, numbers that no computation
here can hold.
"""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import stat
import unicodedata
from io import BufferedReader
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

LIMIT = 1 << 28  # bytes of a file of JSON
DEPTH = 64  # of lists and objects inside each other
WHOLE = 1 << 64  # whole numbers are below this in magnitude: seeds need 64 bits
_DIGITS = 20  # of the largest
_OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class NotJSON(ValueError):
    """Content that is no JSON within the limits; the message is what it is, as part of a sentence.

    The caller adds which file it is.
    """


def open_regular(path: str | PathLike[str]) -> BufferedReader:
    """Opens a regular file to read its bytes.

    Raises ValueError, with part of a sentence, for a pipe or a device, which might never end;
    OSError as `open` does.
    """
    number = os.open(path, _OPEN)  # without waiting for the writer of a pipe
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return open(number, "rb")
    os.close(number)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise ValueError("a pipe or a device")


def read_bytes(path: str | PathLike[str], limit: int = LIMIT) -> bytes:
    """Returns the content of a regular file of at most `limit` bytes.

    Raises ValueError, with part of a sentence, for a larger file, and as `open_regular` does.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size  # of /proc's files it is 0
        content = file.read(min(size, limit) + 1)
        while len(content) <= limit and (part := file.read(1 << 16)):
            content += part
    if len(content) > limit:
        raise ValueError(f"more than {limit} bytes")
    return content


def parse_json(text: bytes | str, *, finite: bool = True, limit: int = LIMIT) -> Any:
    """Returns the value of a JSON text in UTF-8, with or without a byte order mark.

    finite: whether NaN and the infinities, which JSON does not have, are refused.

    Raises NotJSON for anything else.
    """
    if len(text) > limit:
        raise NotJSON(f"more than {limit} bytes")
    if isinstance(text, bytes):
        try:
            text = text.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        except UnicodeDecodeError:
            raise NotJSON("bytes that are not UTF-8") from None
    try:
        value = (_STRICT if finite else _LOOSE).decode(text.removeprefix("\ufeff"))
    except NotJSON:
        raise
    except json.JSONDecodeError as error:
        raise NotJSON(f"{error.msg} in line {error.lineno}, column {error.colno}") from None
    except (RecursionError, ValueError):
        value = _TOO_DEEP
    if value is _TOO_DEEP or _deeper(value, DEPTH):
        raise NotJSON(f"lists or objects that are nested more than {DEPTH} deep")
    if "\\u" in text:
        try:  # half of a pair of \uD8.. and \uDC.. is no text that could be written or hashed
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise NotJSON("text that is not Unicode") from None
    return value


def read_object(
    path: Path, where: str, what: str = "a JSON object", *, finite: bool = True
) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Args:
        path: of the file.
        where: the beginning of the message.
        what: the file should hold, for the message.
        finite: see `parse_json`.

    Raises FileNotFoundError, or ValueError in one sentence for any other content.
    """
    try:
        value = parse_json(read_bytes(path), finite=finite)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{where}: expected the file {shown(path)}, got none. Check the folder's path."
        ) from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ValueError(f"{where}: expected JSON in {shown(path)}, got {reason}.") from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: expected {what} in {shown(path)}, got {type(value).__name__}. Take the file"
            " from a backup."
        )
    return value


def shown(text: Any, keep: str = "") -> str:
    """Returns a text as it may be printed: on one line, and without power over a terminal.

    Control characters (ESC, line ends, C1), marks that reorder text, other invisible characters
    and what is no Unicode become escapes such as \\x1b and \\u202e.

    keep: characters that stay as they are.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c
        if c.isprintable() or c in keep or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text
    )


def _deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` deep."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if type(outer) is dict or type(outer) is list
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True


def _whole(text: str) -> int:
    if len(text) <= _DIGITS + 1 and -WHOLE < (value := int(text)) < WHOLE:
        return value
    raise NotJSON(f"a whole number of {len(text.lstrip('-'))} digits")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJSON(f"the number {text[:40]}, which is too large")
    return value


def _constant(name: str) -> NoReturn:
    raise NotJSON(f"the number {name}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        left = set(value)
        for name, _ in pairs:
            if name not in left:
                raise NotJSON(f"the key {name[:40]!r} twice")
            left.remove(name)
    return value


_TOO_DEEP = object()
_STRICT = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_whole, parse_float=_float, parse_constant=_constant
)
_LOOSE = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole)
