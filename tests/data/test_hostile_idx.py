"""IDX files that are damaged or made to do harm: one sentence, or the data as it was."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from damage import bytes_damages, outcome

from fastdiff.data import fashion_mnist, load_fashion_mnist
from fastdiff.data.fashion_mnist import read_idx

SHAPE = (6, 28, 28)
DRAWN = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
GOOD = b"\0\0\x08\x03" + struct.pack(">3I", *SHAPE) + DRAWN.tobytes()


def test_a_damaged_gzip_is_refused_or_read_as_it_was(tmp_path: Path) -> None:
    """zlib, struct and EOF errors become a sentence; gzip's checksum finds every changed pixel."""
    file, refused = tmp_path / "x.gz", 0
    for bad in bytes_damages(gzip.compress(GOOD), 0, 1500):
        file.write_bytes(bad)
        found = outcome(lambda: read_idx(file), repr(bad[:30]))
        if isinstance(found, str):
            refused += 1
            assert str(file) in found
        else:
            assert np.array_equal(found, DRAWN), "damage was read as data"
    assert refused > 1000


def test_a_damaged_header_without_gzip(tmp_path: Path) -> None:
    file = tmp_path / "x"
    for bad in bytes_damages(GOOD[:16], 1, 1000):
        file.write_bytes(bad + GOOD[16:])
        found = outcome(lambda: read_idx(file))
        assert isinstance(found, str) or found.size <= len(bad) + DRAWN.size


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x08\0",
        b"\0\0\x08\x40" + b"\0\0\0\1" * 64 + b"x",
        b"\0\0\x08\3" + b"\xff" * 12,
        b"\0\0\x08\3" + bytes(12),
    ],
)
def test_headers_that_claim_anything(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\1\0")
    found = outcome(lambda: load_fashion_mnist("train", tmp_path))
    assert isinstance(found, str) and str(tmp_path) in found


def test_labels_that_name_no_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(GOOD)
    labels = b"\0\0\x08\1" + struct.pack(">I", SHAPE[0])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels + bytes([9] * 5 + [10]))
    with pytest.raises(ValueError, match=r"^fastdiff\.data: expected labels below 10 in .*got 10"):
        load_fashion_mnist("train", tmp_path)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "LARGEST", 1 << 16)
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(ValueError, match="expected gzip data in .*, got more than 65536 bytes"):
        read_idx(tmp_path / "x.gz")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gz")
    assert "a pipe or a device" in outcome(lambda: read_idx(tmp_path / "x.gz"))
