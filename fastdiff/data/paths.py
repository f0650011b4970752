"""Names of the members of archives and folders, and where a zip keeps their content."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..outside import shown
from .decode import SUFFIXES
from .options import WHERE

_LOCAL = 30  # bytes of a zip's local header before its two names


def check_member(name: str, archive: Path, *, linked: bool) -> None:
    """Refuses a member of an archive that is a link or leads out of it.

    Nothing is unpacked here, but whoever unpacks such an archive is in danger. Raises ValueError.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if linked:
        got = f"the link {shown(name)[:100]}"
    elif not parts or parts[0][0] == "/" or ".." in parts or parts[0][1:2] == ":" or "\0" in name:
        got = f"the path {shown(name)[:100]!r}, which leads out of it"
    else:
        return
    raise ValueError(
        f"{WHERE}: expected an archive of plain files in {shown(archive)}, got {got}. Pack the"
        " pictures again, without it."
    )


def content_offset(file: BinaryIO, header: int) -> int:
    """Returns where the content of a zip's member begins, whose local header is at `header`.

    The names in the local header may be longer than in the directory. Raises ValueError for other
    bytes.
    """
    head = os.pread(file.fileno(), _LOCAL, header)
    if len(head) < _LOCAL or head[:4] != b"PK\3\4":
        raise ValueError("a damaged zip")
    names = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    return header + _LOCAL + names


def is_picture(name: str) -> bool:
    """Whether a file counts as a picture: by its ending, unless it or a folder of it is hidden."""
    if os.path.splitext(name)[1].lower() not in SUFFIXES:
        return False
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
