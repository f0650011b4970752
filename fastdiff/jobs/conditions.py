"""The conditions of a run's samples: entries (classes, prompts, arguments) as a function of the id.

With a list of n classes, sample i has class i mod n of the list, in every run. A conditions file
has one line per sample: line k, counted from 0, belongs to the id first + k. A line that begins
with `{`, or is in double quotes, is JSON; any other is text: a class's name or number, or a prompt.

Super-resolution has a list of n small pictures, repeated in the same way; the dataset's folder
holds them as one .npy file.

A conditions file is never held in memory. One pass hashes it and finds the offset of every 64th
line; a unit's lines are then read by seeking.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..outside import NotJSON, parse_json, read_bytes, shown
from .formats.npy import encode
from .models import InvalidEntry, Model
from .models.conditioning import Arguments, Conditioning
from .models.pictures import Pictures, SmallPictures

_WHERE = "fastdiff.jobs"
_STRIDE = 64  # lines between two known offsets
_CHUNK = 1 << 22
_LONGEST = 1 << 26  # bytes of a line
_CACHED = 1 << 16  # distinct lines to remember while all are checked
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # which some editors write at the start of UTF-8


class Conditions:
    """Entries by sample id.

    Attributes:
        identity: JSON-safe, {"classes": [entries in turn]}, {"file": SHA-256, "lines": number},
            {"pictures": SHA-256, "count": number} or {}.
        file: what the dataset's folder keeps: the path of the conditions file, or the content of a
            file of small pictures; None for neither.
    """

    identity: dict[str, Any]
    file: Path | bytes | None = None

    def entries(self, first: int, stop: int) -> list[Any]:
        """Returns the entries of the ids first … stop - 1, as `Model.conditions` takes them."""
        raise NotImplementedError

    @staticmethod
    def of(
        model: Model,
        *,
        ids: tuple[int, int],
        classes: str | Sequence[Any] | None = None,
        file: str | os.PathLike[str] | None = None,
        images: Pictures | None = None,
        check: bool = True,
    ) -> Conditions:
        """Returns the conditions of a new run.

        Without classes and file, the ids cycle through all classes of the model.

        Args:
            model: parses the entries.
            ids: the run's first and last sample id, both included.
            classes: indices or names, separated by commas; a name with a comma in double quotes.
            file: a conditions file.
            images: of super-resolution, see `SmallPictures.read`.
            check: whether every line of the file is parsed now.

        Raises:
            ValueError, FileNotFoundError: in one sentence, for entries that the model cannot use
                (with the number of the line), and where the numbers of lines and ids differ.
        """
        if classes is not None and file is not None:
            raise ValueError(f"{_WHERE}: expected classes or a conditions file, got both.")
        if images is not None or isinstance(model.conditioning, SmallPictures):
            return _picture_conditions(model, classes, file, images)
        if file is not None:
            return FileConditions(model.conditioning, Path(file), ids, check)
        if classes is not None:
            return _CyclicConditions(_parse_classes(model, classes), named=True)
        entries = model.default_entries
        if entries is None:
            raise ValueError(
                f"{_WHERE}: expected a conditions file for {model!r}, got none. Pass one with a"
                " line for each id."
            )
        return _CyclicConditions(entries, named=bool(model.conditioning.labels(entries)))

    @staticmethod
    def restore(
        identity: Mapping[str, Any],
        model: Model,
        *,
        ids: tuple[int, int],
        file: str | os.PathLike[str] | None = None,
    ) -> Conditions:
        """Returns the conditions of a run's spec; its lines were checked when it was written.

        Args:
            identity: `identity` of the conditions that the run began with.
            model: parses the entries.
            ids: the run's first and last sample id, both included.
            file: the conditions file, where the identity names one.

        Raises ValueError for a file of another content, FileNotFoundError for a missing one.
        """
        if "pictures" in identity:
            return PictureConditions.read(identity, file)
        if "file" not in identity:
            return Conditions.of(model, ids=ids, classes=identity.get("classes"))
        if file is None:
            raise FileNotFoundError(
                f"{_WHERE}: expected the conditions file of {identity['file'][:12]}…, got none."
            )
        found = Conditions.of(model, ids=ids, file=file, check=False)
        if found.identity != dict(identity):
            raise ValueError(
                f"{_WHERE}: expected the conditions file {file} that the run began with"
                f" ({identity['file'][:12]}…), got another content"
                f" ({found.identity['file'][:12]}…). Restore the former file."
            )
        return found


class _CyclicConditions(Conditions):
    """A list of entries, repeated: id i has entry i mod n."""

    def __init__(self, entries: list[Any], *, named: bool):
        self._entries = entries
        self.identity = {"classes": entries} if named else {}

    def entries(self, first: int, stop: int) -> list[Any]:
        return [self._entries[i % len(self._entries)] for i in range(first, stop)]


class PictureConditions(Conditions):
    """Small pictures, repeated: id i has picture i mod n.

    pictures: uint8 [n, C, h, w].
    """

    def __init__(self, pictures: np.ndarray):
        self._pictures, self.file = pictures, encode(np.ascontiguousarray(pictures))
        digest = hashlib.sha256(self.file).hexdigest()
        self.identity = {"pictures": digest, "count": len(pictures)}

    def entries(self, first: int, stop: int) -> list[Any]:
        return [self._pictures[i % len(self._pictures)] for i in range(first, stop)]

    @staticmethod
    def read(identity: Mapping[str, Any], file: str | os.PathLike[str] | None) -> PictureConditions:
        """Returns the pictures of a run from its file.

        Raises ValueError for a file of another content, FileNotFoundError for a missing one.
        """
        name = f"{identity['pictures'][:12]}…"
        if file is None or not Path(file).is_file():
            raise FileNotFoundError(f"{_WHERE}: expected the pictures {name} of the run, got none.")
        problem = "another content. Restore the former file"
        try:
            content = read_bytes(file)
            if hashlib.sha256(content).hexdigest() == identity["pictures"]:
                pictures = np.load(io.BytesIO(content), allow_pickle=False)
                if pictures.ndim == 4 and pictures.dtype == np.uint8 and len(pictures):
                    return PictureConditions(pictures)
                problem = "no pictures"
        except (OSError, ValueError, EOFError) as error:
            problem = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{_WHERE}: expected the pictures {name} that the run began with in {shown(file)}, got"
            f" {shown(problem)}."
        )


def _picture_conditions(
    model: Model, classes: Any, file: Any, images: Pictures | None
) -> PictureConditions:
    if not isinstance(model.conditioning, SmallPictures):
        raise ValueError(
            f"{_WHERE}: expected no images for {model!r}, which is not of super-resolution, got"
            " some."
        )
    if images is None or classes is not None or file is not None:
        got = "none" if classes is None and file is None else "classes or a conditions file"
        raise ValueError(
            f"{_WHERE}: expected the small images that {model!r} enlarges, got {got}. Pass --image"
            " with files or folders of pictures, or `--image test` for the test set's (in Python"
            " images=)."
        )
    return PictureConditions(model.conditioning.read(images))


def _parse_classes(model: Model, classes: str | Sequence[Any]) -> list[Any]:
    """Returns the entries of a list of classes, or of a comma-separated text."""
    if model.labels([]) is None:
        raise ValueError(
            f"{_WHERE}: expected a model with classes for --classes, got {model!r}. Use a"
            " conditions file."
        )
    if isinstance(classes, str):
        # what a shell reads from a file may begin with the mark and end lines with \r\n
        classes = classes.removeprefix("\ufeff")
        classes = ",".join(line for line in classes.splitlines() if line.strip())
        try:
            classes = next(csv.reader([classes], skipinitialspace=True), [])
        except csv.Error as error:
            raise ValueError(
                f"{_WHERE}: expected --classes as a list separated by commas, got text in which"
                f" {error}. Put a name that has commas in double quotes."
            ) from None
    entries = []
    for value in classes:
        try:
            entries.append(
                model.conditioning.parse(value.strip() if isinstance(value, str) else value)
            )
        except InvalidEntry as error:
            raise ValueError(
                f"{_WHERE}: expected {error.expected} in --classes, got {error.got}."
            ) from None
    if not entries:
        raise ValueError(
            f"{_WHERE}: expected --classes to name at least one, got none. Leave it out to use all"
            " classes."
        )
    return entries


class _Index(NamedTuple):
    """What one pass over a conditions file finds."""

    sha256: str
    lines: int
    offsets: np.ndarray  # of every `_STRIDE`th line
    stamp: tuple[int, int]  # size and time of modification


class FileConditions(Conditions):
    """The lines of a conditions file.

    Args:
        conditioning: parses the entries.
        path: of the file.
        ids, check: see `Conditions.of`.
    """

    file: Path

    def __init__(self, conditioning: Conditioning, path: Path, ids: tuple[int, int], check: bool):
        if not path.is_file():
            raise FileNotFoundError(f"{_WHERE}: expected the conditions file {path}, got none.")
        if isinstance(conditioning, Arguments) and conditioning.unconditional:
            raise ValueError(
                f"{_WHERE}: expected no conditions file for a model that takes no conditions, got"
                f" {path}."
            )
        self.file, self._conditioning, self._first = path.absolute(), conditioning, ids[0]
        self._index = _index(path)
        count = ids[1] - ids[0] + 1
        if self._index.lines != count:
            raise ValueError(
                f"{_WHERE}: expected a line for each of the {count} ids {ids[0]}-{ids[1]} in"
                f" {path}, got {self._index.lines} lines."
            )
        self.identity = {"file": self._index.sha256, "lines": self._index.lines}
        if check:
            self._check()

    def entries(self, first: int, stop: int) -> list[Any]:
        """Returns the entries; ids outside the run, in its first and last unit, get the nearest."""
        numbers = np.clip(np.arange(first, stop) - self._first, 0, self._index.lines - 1).tolist()
        if not numbers:
            return []
        start = numbers[0]
        with open(self.file, "rb") as file:
            if _stamp(file.fileno()) != self._index.stamp:
                raise ValueError(
                    f"{_WHERE}: expected the conditions file {self.file} unchanged, got one"
                    " that was modified during the run. Restore the former file."
                )
            file.seek(self._index.offsets[start // _STRIDE])
            skip = start % _STRIDE
            lines = list(itertools.islice(file, skip, skip + numbers[-1] - start + 1))
        entries = [
            self._parse(self._read(line, start + i), start + i) for i, line in enumerate(lines)
        ]
        return [entries[number - start] for number in numbers]

    def _check(self) -> None:
        """Parses every line.

        Repeated lines are looked up in a cache, and texts are skipped where the model takes any.
        """
        conditioning, parsed, first = self._conditioning, set[bytes](), None
        with open(self.file, "rb") as file:
            file.seek(self._index.offsets[0])
            for number, line in enumerate(file):
                if line in parsed:
                    continue
                value = self._read(line, number)
                if conditioning.any_text and type(value) is str:
                    continue
                signature = conditioning.signature(self._parse(value, number))
                if number == 0:
                    first = signature
                elif signature != first:
                    raise ValueError(
                        f"{_WHERE}: expected the arguments of line 1, {first},"
                        f" {self._where(number)}, got {signature}."
                    )
                if len(parsed) < _CACHED:
                    parsed.add(line)

    def _where(self, number: int) -> str:
        return f"in line {number + 1} of {shown(self.file)}"

    def _read(self, line: bytes, number: int) -> Any:
        """Returns a line's text or JSON value."""
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise ValueError(
                f"{_WHERE}: expected UTF-8 {self._where(number)}, got other bytes."
            ) from None
        if not text:
            raise ValueError(
                f"{_WHERE}: expected an entry {self._where(number)}, got an empty line. Write an"
                ' empty prompt as "".'
            )
        if text[0] == "{" or (text[0] == text[-1] == '"' and len(text) > 1):
            try:
                return parse_json(text)
            except NotJSON as error:
                raise ValueError(
                    f"{_WHERE}: expected JSON {self._where(number)}, got {error}."
                ) from None
        return text

    def _parse(self, value: Any, number: int) -> Any:
        """Returns the model's entry of a line's value."""
        try:
            return self._conditioning.parse(value)
        except InvalidEntry as error:
            raise ValueError(
                f"{_WHERE}: expected {error.expected} {self._where(number)}, got {error.got}."
            ) from None


def _stamp(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_size, status.st_mtime_ns


def _index(path: Path) -> _Index:
    """Returns the index of a file, from one pass with a fixed amount of memory."""
    digest = hashlib.sha256()
    position = ended = 0
    with open(path, "rb", buffering=0) as file:
        stamp = _stamp(file.fileno())
        marked = file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK
        start = len(BYTE_ORDER_MARK) if marked else 0
        file.seek(0)
        offsets, last = [np.array([start])], b""
        longest = begun = 0  # bytes of the longest line, and of the one that has no end yet
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10)
            longest = max(longest, begun + (ends[0] + 1 if len(ends) else len(chunk)))
            longest = max(longest, np.diff(ends).max(initial=0))
            begun = len(chunk) - 1 - ends[-1] if len(ends) else begun + len(chunk)
            if max(longest, begun) > _LONGEST:
                raise ValueError(
                    f"{_WHERE}: expected lines of at most {_LONGEST >> 20} MiB in {shown(path)},"
                    " got a longer one."
                )
            # line j + 1 begins after the end of line j
            offsets.append(ends[(-ended - 1) % _STRIDE :: _STRIDE] + position + 1)
            ended, position, last = ended + len(ends), position + len(chunk), chunk[-1:]
    lines = ended + (last != b"\n" and position > start)
    return _Index(digest.hexdigest(), int(lines), np.concatenate(offsets), stamp)
