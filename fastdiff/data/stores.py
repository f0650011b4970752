"""Lists the pictures of a folder, a zip or WebDataset's tar archives, and reads their bytes.

Only names and sizes are kept; a picture is read when it is asked for. The stores hold no open
files, so worker processes may share them.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..outside import NotJSON, open_regular, parse_json, read_bytes, shown
from . import labels as label_files
from .decode import ENCODED
from .listing import TEST, Listing
from .options import WHERE, Options
from .paths import check_member, content_offset, is_picture
from .tar import Member, members

_LABEL_BYTES = 1 << 28  # of a label file
_SMALL = 1 << 20  # bytes of a tar's .cls and .json


class Folder:
    """Files below a folder."""

    def __init__(self, root: Path, names: list[str]):
        self._root, self._names = root, names

    def read(self, example: int) -> bytes:
        return read_bytes(self._root / self._names[example], ENCODED)


class Zip:
    """Members of a zip, stored or deflated."""

    def __init__(self, path: Path, infos: list[zipfile.ZipInfo]):
        self._path = path
        self._members = [
            (i.header_offset, i.compress_size, i.file_size, i.CRC, i.compress_type) for i in infos
        ]

    def read(self, example: int) -> bytes:
        offset, packed_size, size, checksum, method = self._members[example]
        if max(packed_size, size) > ENCODED:
            raise ValueError(f"more than {ENCODED} bytes")
        with open_regular(self._path) as file:
            content = os.pread(file.fileno(), packed_size, content_offset(file, offset))
        if method == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompressobj(-15).decompress(content, size + 1)
            except zlib.error as error:
                raise ValueError(f"damaged content ({error})") from None
        if len(content) != size or zlib.crc32(content) != checksum:
            raise ValueError("damaged content")
        return content


class Archives:
    """Members of tar archives."""

    def __init__(self, paths: list[Path], places: list[tuple[int, int, int]]):
        self._paths, self._places = paths, places  # (number of the archive, offset, size)

    def read(self, example: int) -> bytes:
        number, offset, size = self._places[example]
        if size > ENCODED:
            raise ValueError(f"more than {ENCODED} bytes")
        with open_regular(self._paths[number]) as file:
            return os.pread(file.fileno(), size, offset)


def folder(root: Path, options: Options) -> Listing:
    """Returns the listing of a folder of pictures. Raises ValueError in one sentence."""
    found = dict(sorted(_walk(root)))
    names = [name for name in found if is_picture(name)]
    names, labels, classes, parts = _arrange(
        names, lambda name: read_bytes(root / name, _LABEL_BYTES), found, root, options
    )
    sizes, base = [found[name] for name in names], root.resolve().name
    return Listing("folder", base, names, sizes, Folder(root, names), labels, classes, parts)


def archive(path: Path, options: Options) -> Listing:
    """Returns the listing of a zip of pictures. Raises ValueError in one sentence."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as opened:
            infos = opened.infolist()
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile raises nearly anything on damaged bytes
        raise ValueError(
            f"{WHERE}: expected a zip in {shown(path)}, got {shown(str(error)[:100])}."
        ) from None
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        check_member(info.filename, path, linked=stat.S_ISLNK(info.external_attr >> 16))
        if info.is_dir():
            continue
        if info.filename in found:
            _refuse_archive(path, f"two files {shown(info.filename)[:100]!r}")
        if info.flag_bits & 1:
            _refuse_archive(path, f"the encrypted file {shown(info.filename)[:100]!r}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            _refuse_archive(path, f"compression {info.compress_type} of {shown(info.filename)!r}")
        found[info.filename] = info
    found = _without_top(found)
    names = sorted(name for name in found if is_picture(name))

    def content(name: str) -> bytes:
        return Zip(path, [found[name]]).read(0)

    names, labels, classes, parts = _arrange(names, content, found, path, options)
    chosen = [found[name] for name in names]
    sizes = [info.file_size for info in chosen]
    return Listing("zip", path.name, names, sizes, Zip(path, chosen), labels, classes, parts)


def webdataset(path: Path, options: Options) -> Listing:
    """Returns the listing of one tar archive of WebDataset's, or of a folder of them.

    The members of a sample follow each other and share their name up to the first dot: a picture,
    and the label in `.cls`, or in `.json` under "class", "label" or "cls".

    Raises ValueError in one sentence.
    """
    paths = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    values: list[Any] = []
    for number, file in enumerate(paths):
        keys = set()
        for key, group in _samples(file):
            if key in keys:
                _refuse_archive(file, f"the sample {shown(key)[:100]!r} twice")
            keys.add(key)
            pictures = [m for m in group if is_picture(m.name.rsplit("/", 1)[-1])]
            if len(pictures) > 1:
                _refuse_archive(file, f"two pictures of the sample {shown(key)[:100]!r}")
            if not pictures:
                continue
            name = pictures[0].name
            names.append(f"{file.name}/{name}" if path.is_dir() else name)
            places.append((number, pictures[0].offset, pictures[0].size))
            values.append(_label(file, key, group) if options.label_file is None else None)
    if options.label_file not in (None, "none"):
        raise ValueError(
            f"{WHERE}: expected the labels of {shown(path)} in the archive, as .cls or .json, got"
            f" label_file {shown(options.label_file)}. Leave it out, or pass none."
        )
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    if any(value is not None for value in values):
        for name, value in zip(names, values, strict=True):
            if value is None:
                raise ValueError(
                    f"{WHERE}: expected a label for each picture in {shown(path)}, got none for"
                    f" {shown(name)!r}. Add its .cls."
                )
        labels, classes = label_files.numbered(values, None, str(path))
    sizes = [size for _, _, size in places]
    base = path.resolve().name
    return Listing("tar", base, names, sizes, Archives(paths, places), labels, classes)


def _arrange(
    names: list[str], read: Callable[[str], bytes], files: Collection[str], root: Path, o: Options
) -> tuple[list[str], np.ndarray | None, tuple[str, ...], list[str] | None]:
    """Returns (names, labels, classes, splits) of pictures that are named by paths.

    read: returns the content of one of the `files`, which may be a label file.
    """
    if not names:
        raise ValueError(f"{WHERE}: expected pictures (.png, .jpg, …) in {shown(root)}, got none.")
    parts: list[str] | None = [_part(name) for name in names]
    inner = names
    present = set(parts or ())
    test = next((t for t in TEST if t in present), None)
    if test is None or parts is None:
        parts = None  # a folder `train` alone is a class like any other
    else:
        # other folders next to those of the splits belong to neither
        used = {test, "train" if "train" in present else ""}
        names = [n for n, p in zip(names, parts, strict=True) if p in used]
        parts = [p for p in parts if p in used]
        inner = [n.split("/", 1)[1] if p else n for n, p in zip(names, parts, strict=True)]
    chosen = o.label_file
    if chosen is None:
        there = [f for f in label_files.FILES if f in files]
        if len(there) > 1:
            raise ValueError(
                f"{WHERE}: expected one label file in {shown(root)}, got {there[0]} and"
                f" {there[1]}. Pass --label-file."
            )
        chosen = there[0] if there else None
    if chosen == "none":
        return names, None, (), parts
    if chosen is None:
        return names, *label_files.from_folders(inner, str(root)), parts
    try:
        content = read(chosen) if chosen in files else read_bytes(chosen, _LABEL_BYTES)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ValueError(
            f"{WHERE}: expected a label file in {shown(chosen)}, got {shown(reason)}. Pass its"
            " path with --label-file."
        ) from None
    return names, *label_files.from_file(content, chosen, names, inner), parts


def _part(name: str) -> str:
    first = name.split("/", 1)[0]
    return first if "/" in name and first in ("train", *TEST) else ""


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    """Yields (path relative to root, size) of all files. Links to folders are followed once."""
    pending: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(root, "", frozenset())]
    while pending:
        here, prefix, above = pending.pop()
        status = os.stat(here)
        key = (status.st_dev, status.st_ino)
        if key in above:
            raise ValueError(
                f"{WHERE}: expected folders that end, got the link {shown(here)} to a folder above"
                " it. Remove it."
            )
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append((Path(entry.path), f"{prefix}{entry.name}/", above | {key}))
                    continue
                try:
                    yield prefix + entry.name, entry.stat().st_size
                except OSError:  # a link to nothing: reading it will say so
                    yield prefix + entry.name, 0


def _without_top(found: dict[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Leaves out the folder that a zip of a folder has around everything."""
    kept = {n: i for n, i in found.items() if not n.startswith("__MACOSX/")}
    tops = {name.split("/", 1)[0] if "/" in name else "" for name in kept}
    deeper = any(name.count("/") > 1 or name.split("/")[-1] in label_files.FILES for name in kept)
    if len(tops) == 1 and "" not in tops and deeper and not tops & {"train", *TEST}:
        return {name.split("/", 1)[1]: info for name, info in kept.items()}
    return kept


def _samples(file: Path) -> Iterator[tuple[str, list[Member]]]:
    """Yields (key, members) of the samples of an archive."""
    key = ""
    group: list[Member] = []
    for member in members(file):
        folder_, _, base = member.name.rpartition("/")
        if base.startswith("."):
            continue
        own = f"{folder_}/{base.split('.', 1)[0]}"
        if group and own != key:
            yield key.removeprefix("/"), group
            group = []
        key = own
        group.append(member)
    if group:
        yield key.removeprefix("/"), group


def _label(file: Path, key: str, group: list[Member]) -> Any:
    """Returns the label of a sample of an archive; None where it has none."""
    kinds = {m.name.rsplit("/", 1)[-1].split(".", 1)[-1].lower(): m for m in group}
    for kind in ("cls", "json"):
        if kind not in kinds:
            continue
        member = kinds[kind]
        if member.size > _SMALL:
            _refuse_archive(file, f"{member.size} bytes in {shown(member.name)!r}")
        with open_regular(file) as opened:
            content = os.pread(opened.fileno(), member.size, member.offset)
        if kind == "cls":
            try:
                text = content.decode("utf-8").strip()
            except UnicodeDecodeError:
                _refuse_archive(file, f"no text in {shown(member.name)!r}")
            return int(text) if text.removeprefix("-").isdecimal() and len(text) < 19 else text
        try:
            value = parse_json(content)
        except NotJSON as error:
            _refuse_archive(file, f"{shown(error)} in {shown(member.name)!r}")
        for name in ("class", "label", "cls"):
            if isinstance(value, dict) and name in value:
                return value[name]
    return None


def _refuse_archive(path: Path, got: str) -> NoReturn:
    raise ValueError(
        f"{WHERE}: expected an archive of pictures in {shown(path)}, got {got}. Pack it again."
    )
