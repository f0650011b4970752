"""Data: the bundled images, IDX files and their errors."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff.data import load_fashion_mnist
from fastdiff.data.fashion_mnist import BUNDLED, CLASSES, SYSTEM, read_idx


def test_the_bundled_split_is_fixed() -> None:
    train, test = load_fashion_mnist("bundled-train"), load_fashion_mnist("bundled-test")
    assert train.images.shape == (9000, 1, 28, 28) and test.images.shape == (1000, 1, 28, 28)
    whole = read_idx(BUNDLED / "t10k-images-idx3-ubyte.gz")
    assert torch.equal(torch.cat([train.images, test.images])[:, 0], torch.from_numpy(whole.copy()))
    counts = torch.bincount(torch.cat([train.labels, test.labels]))
    assert counts.tolist() == [1000] * 10 and len(CLASSES) == 10
    assert sum(p.stat().st_size for p in BUNDLED.iterdir()) < 5_000_000


def test_a_batch_spans_the_range() -> None:
    x, y = load_fashion_mnist().batch(torch.arange(100))
    assert (
        x.dtype == torch.float32
        and float(x.min()) == -1.0
        and float(x.max()) == 1.0
        and y.shape == (100,)
    )


@pytest.mark.skipif(not SYSTEM.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_full_set() -> None:
    train, test = load_fashion_mnist("train"), load_fashion_mnist("test")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert torch.equal(test.images[:9000], load_fashion_mnist().images), (
        "the bundled images are the test split"
    )


def _write(folder: Path, images: bytes, labels: bytes) -> Path:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)  # gzipped or not
    return folder


def _idx(array: np.ndarray) -> bytes:
    return (
        b"\0\0\x08"
        + bytes([array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def test_any_folder_of_idx_files(tmp_path: Path) -> None:
    images = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    data = load_fashion_mnist(
        "train", _write(tmp_path, _idx(images), _idx(np.array([1, 2, 3], np.uint8)))
    )
    assert torch.equal(data.images[:, 0], torch.from_numpy(images)) and data.labels.tolist() == [
        1,
        2,
        3,
    ]


GOOD = _idx(np.zeros((3, 4, 5), np.uint8))
LABELS = _idx(np.zeros(3, np.uint8))


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (b"\x89PNG", LABELS, "expected an IDX file of unsigned bytes, got other content in"),
        (GOOD[:-1], LABELS, "expected 60 bytes of data in .*, got 59"),
        (GOOD[:6], LABELS, "expected an IDX file of unsigned bytes"),
        (GOOD, LABELS + b"x", "expected 3 bytes of data in .*, got 4"),
        (
            GOOD,
            _idx(np.zeros(2, np.uint8)),
            r"expected one label per image in .*, got \[3, 4, 5\] and \[2\]",
        ),
    ],
)
def test_bad_files(images: bytes, labels: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^fastdiff\.data: {message}"):
        load_fashion_mnist("train", _write(tmp_path, images, labels))


def test_missing_files_and_splits(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="Install Debian's dataset-fashion-mnist or pass its folder"
    ):
        load_fashion_mnist("train", tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="expected gzip data in"):
        load_fashion_mnist("train", tmp_path)
    with pytest.raises(ValueError, match="expected split in"):
        load_fashion_mnist("validation")
