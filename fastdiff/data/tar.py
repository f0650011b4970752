"""The members of an uncompressed tar archive: ustar, with the long names of POSIX (pax) and GNU.

Python's tarfile follows links, keeps an object per member and, in some versions, never ends on a
negative size; here a header is 512 bytes that are checked one after the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from ..outside import open_regular, shown
from .options import WHERE
from .paths import check_member

BLOCK = 512
_LONGEST = 1 << 16  # bytes of a name, or of a pax header


class Member(NamedTuple):
    """A regular file in an archive: its content is `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """Yields the regular files of an archive, in its order.

    Raises FileNotFoundError, or ValueError in one sentence: for links, devices, names that lead out
    of the archive, and content that is no tar.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{WHERE}: expected a tar archive in {shown(path)}, got {shown(error)}."
        ) from None
    with file:
        total, at = os.fstat(file.fileno()).st_size, 0
        name: str | None = None  # of the next member, from a header before it
        size: int | None = None
        while at < total:
            head = os.pread(file.fileno(), BLOCK, at)
            if at == 0 and head[:2] == b"\x1f\x8b":
                _refuse(path, "a compressed one. Unpack it with gunzip")
            if not head.strip(b"\0"):
                return
            if len(head) < BLOCK or _number(head[148:156]) != sum(head, 256) - sum(head[148:156]):
                _refuse(path, f"other content at byte {at}")
            kind, stated = chr(head[156]), _number(head[124:136])
            length = stated if size is None or kind in "xgLK" else size
            if length is None or at + BLOCK + length > total:
                _refuse(path, f"one that is cut off at byte {total}")
            if kind in "xgLK":
                if length > _LONGEST:
                    _refuse(path, f"a header of {length} bytes")
                body = os.pread(file.fileno(), length, at + BLOCK)
                if kind == "L":
                    name = _text(body.rstrip(b"\0"))
                elif kind == "x":
                    name, size = _pax(body, path, name, size)
            else:
                if name is None:
                    name = _name(head)
                if kind in "\x000\x37":
                    check_member(name, path, linked=False)
                    if not name.endswith("/"):  # a folder, in archives of the first tar
                        yield Member(name.removeprefix("./"), at + BLOCK, length)
                elif kind in "12":
                    check_member(name, path, linked=True)
                elif kind != "5":
                    _refuse(path, f"the device or sparse file {shown(name)}. Leave it out")
                name = size = None
            at += BLOCK + length + -length % BLOCK


def _refuse(path: Path, got: str) -> NoReturn:
    raise ValueError(f"{WHERE}: expected a tar archive in {shown(path)}, got {got}.")


def _number(field: bytes) -> int | None:
    """Returns an octal number, or one in base 256; None for other content and below 0."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip(b" ")
    if text.strip(b"01234567"):
        return None
    return int(text or b"0", 8)


def _name(head: bytes) -> str:
    name = head[:100].split(b"\0", 1)[0]
    prefix = head[345:500].split(b"\0", 1)[0]
    if head[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _pax(
    body: bytes, path: Path, name: str | None, size: int | None
) -> tuple[str | None, int | None]:
    """Returns (name, size) of a pax header's records "length key=value\\n"."""
    at = 0
    while at < len(body) and body[at]:
        space = body.find(b" ", at, at + 20)
        digits = body[at:space] if space > 0 else b""
        length = int(digits) if digits.isdigit() else 0
        record = body[space + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if not equals or not record.endswith(b"\n") or at + length > len(body):
            _refuse(path, "a damaged header of a long name")
        if key == b"path":
            name = _text(value[:-1])
        elif key == b"size":
            if not value[:-1].isdigit() or len(value) > 20:
                _refuse(path, "a damaged header of a large file")
            size = int(value[:-1])
        at += length
    return name, size
