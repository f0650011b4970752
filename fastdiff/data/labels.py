"""Labels of pictures: from a file, or from the folders that they are in.

CSV and TSV have rows `file,label`, with or without a first row of titles. JSON is an object {file:
label}, or EDM's {"labels": [[file, label], …]}, which may also hold "classes", the names of the
labels. Labels are whole numbers from 0, or texts, whose sorted order gives the numbers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from ..outside import NotJSON, parse_json, shown
from .options import WHERE

FILES = ("dataset.json", "labels.json", "labels.csv", "labels.tsv")
MOST = 1 << 16  # classes
_TITLES = {"file", "filename", "file_name", "image", "name", "path"}


def from_file(
    content: bytes, file: str, names: Sequence[str], inner: Sequence[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns (labels int64 [N], names of the classes) by a label file.

    Args:
        content: of the file.
        file: its name, which says its format, for messages.
        names: of the pictures, relative to the data set.
        inner: the same without the folder of a split; a label file may name pictures either way.

    The labels are None where the file has "labels": null. Raises ValueError in one sentence for
    anything wrong with the file, for labels without a picture and for pictures without a label.
    """
    pairs, classes = _pairs(content, file)
    if pairs is None:
        return None, ()
    by_name: dict[str, Any] = {}
    for name, label in pairs:
        name = name.removeprefix("./")
        if name in by_name:
            _refuse(file, "one label for each picture", f"two for {shown(name)!r}")
        by_name[name] = label
    values = []
    for name, short in zip(names, inner, strict=True):
        key = name if name in by_name else short
        if key not in by_name:
            _refuse(file, "a label for each picture", f"none for {shown(name)!r}")
        values.append(by_name[key])
    known = set(names) | set(inner)
    for name in by_name:
        if name not in known:
            _refuse(file, f"the picture {shown(name)!r} in the data set", "none of that name")
    return numbered(values, classes, file)


def from_folders(inner: Sequence[str], where: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns (labels, classes) by the first folder of each name; None without folders.

    The classes are sorted: as numbers if all are numbers, else as texts. Raises ValueError where
    some pictures are in folders and some are not.
    """
    firsts = [name.split("/", 1)[0] if "/" in name else None for name in inner]
    if all(first is None for first in firsts):
        return None, ()
    for name, first in zip(inner, firsts, strict=True):
        if first is None:
            raise ValueError(
                f"{WHERE}: expected each picture in the folder of its class in {shown(where)}, got"
                f" {shown(name)!r} beside them. Move it, or pass --label-file (none: without"
                " labels)."
            )
    return numbered([str(first) for first in firsts], None, where)


def numbered(
    values: Sequence[Any], classes: Sequence[str] | None, file: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns (labels int64 [N], names of the classes) for labels that are numbers or texts.

    classes: the names of the numbers; None derives them. Raises ValueError in one sentence.
    """
    if all(type(v) is int for v in values):
        count = len(classes) if classes is not None else MOST
        for value in values:
            if not 0 <= value < count:
                expected = f"labels in 0…{count - 1}"
                _refuse(file, expected, f"{shown(value)[:40]}")
        labels = np.array(values, np.int64)
        made = range(int(labels.max()) + 1 if len(labels) else 0)
        return labels, tuple(classes if classes is not None else map(str, made))
    for value in values:
        if type(value) not in (int, str):
            _refuse(file, "whole numbers or texts as labels", shown(repr(value))[:60])
    odd = next((v for v in values if type(v) is not str), None)
    if odd is not None:
        _refuse(file, "labels that are all texts or all numbers", shown(repr(odd))[:60])
    if classes is None:
        found = set(values)
        if len(found) > MOST:
            _refuse(file, f"at most {MOST} classes", len(found))
        as_numbers = all(v.isascii() and v.isdigit() and len(v) < 19 for v in found)
        classes = sorted(found, key=(lambda v: (int(v), v)) if as_numbers else None)
    place = {name: k for k, name in enumerate(classes)}
    for value in values:
        if value not in place:
            _refuse(file, "labels among its classes", shown(repr(value))[:60])
    return np.array([place[v] for v in values], np.int64), tuple(classes)


def _pairs(content: bytes, file: str) -> tuple[list[tuple[str, Any]] | None, list[str] | None]:
    """Returns ([(name of the picture, label)], names of the classes) of a label file."""
    if not file.lower().endswith(".json"):
        return _rows(content, file), None
    try:
        value = parse_json(content)
    except NotJSON as error:
        _refuse(file, "JSON", shown(error))
    if not isinstance(value, dict):
        _refuse(file, "an object of labels", type(value).__name__)
    if "labels" not in value:
        return list(value.items()), None
    pairs, classes = value["labels"], value.get("classes")
    if pairs is None:
        return None, None
    if isinstance(pairs, dict):
        pairs = [list(pair) for pair in pairs.items()]
    if not isinstance(pairs, list):
        _refuse(file, "a list of [file, label] under 'labels'", type(pairs).__name__)
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            _refuse(file, "[file, label] under 'labels'", shown(repr(pair))[:60])
    if classes is not None and not (
        isinstance(classes, list)
        and all(isinstance(c, str) for c in classes)
        and len(set(classes)) == len(classes) <= MOST
    ):
        _refuse(file, "different texts under 'classes'", shown(repr(classes))[:60])
    return [(pair[0], pair[1]) for pair in pairs], classes


def _rows(content: bytes, file: str) -> list[tuple[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        _refuse(file, "text in UTF-8", "other bytes")
    tab = file.lower().endswith(".tsv")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tab else ",", strict=True)
    rows: list[tuple[str, str]] = []
    try:
        for row in reader:
            if not row:
                continue
            if len(row) != 2:
                got = f"{len(row)} values in line {reader.line_num}"
                _refuse(file, f"rows file{'<tab>' if tab else ','}label", got)
            rows.append((row[0].strip(), row[1].strip()))
    except csv.Error as error:
        _refuse(file, "rows file,label", f"{shown(error)} in line {reader.line_num}")
    if rows and rows[0][0].lower() in _TITLES:
        del rows[0]
    texts = [label for _, label in rows]
    if texts and all(_whole(label) for label in texts):
        return [(name, int(label)) for name, label in rows]
    for name, label in rows:
        if not label:
            _refuse(file, "a label for each picture", f"none for {shown(name)!r}")
    return list(rows)


def _whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 19


def _refuse(file: str, expected: str, got: Any) -> NoReturn:
    raise ValueError(f"{WHERE}: expected {expected} in {shown(file)}, got {got}. Correct the file.")
