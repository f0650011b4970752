"""The one reader of JSON and the one way to show text: limits, and what they leave alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from damage import HOSTILE, bytes_damages, within

from fastdiff.outside import DEPTH, NotJSON, parse_json, read_bytes, read_object, shown

VALUE = {"text": "prêt-à-porter 👗", "numbers": [0, -1, 2**64 - 1, 0.5, -1e300], "a": {"b": [None]}}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_is_read(mark: str) -> None:
    for ascii_only in (True, False):
        text = mark + json.dumps(VALUE, ensure_ascii=ascii_only)
        assert parse_json(text) == parse_json(text.encode()) == VALUE
    assert parse_json(b"[" * DEPTH + b"]" * DEPTH)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_json_object_is_refused(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(text)
    with within(10), pytest.raises(ValueError, match=r"^fastdiff.x: expected .* in .*x\.json, got"):
        read_object(file, "fastdiff.x")


def test_damage_gives_not_json_and_nothing_else() -> None:
    for bad in bytes_damages(json.dumps(VALUE).encode(), 0, 2000):
        try:
            parse_json(bad)
        except NotJSON as error:
            assert "\n" not in str(error)


def test_infinities_are_read_where_diffusers_writes_them() -> None:
    assert parse_json('{"a": -Infinity}', finite=False) == {"a": float("-inf")}
    with pytest.raises(NotJSON, match="the number -Infinity"):
        parse_json('{"a": -Infinity}')


def test_only_regular_files_of_a_limited_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    for name, message in (("link", "device"), ("pipe", "pipe"), ("x", "more than 4 bytes")):
        with within(5), pytest.raises(ValueError, match=message):
            read_bytes(tmp_path / name, 4)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)


def test_shown_text_has_no_power_over_a_terminal() -> None:
    everything = "".join(map(chr, range(0x110000)))
    result = shown(everything)
    assert all(c.isprintable() or c.isspace() for c in shown(everything, keep="\n"))
    assert not set(result) & set(map(chr, [*range(32), *range(127, 160), 0x202E, 0x2066, 0xFEFF]))
    assert "\n" not in result and "\n" in shown(everything, keep="\n")
    assert result.encode(), "what is no Unicode is escaped too"
    assert shown("prêt-à-porter 👗 衣服") == "prêt-à-porter 👗 衣服"
    assert shown("\x1b[2J\u202e") == "\\x1b[2J\\u202e"
