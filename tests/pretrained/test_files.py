"""Files of tensors while another process replaces them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from fastdiff.pretrained.files import read_tensors, write_tensors


def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(tmp_path: Path) -> None:
    """Metadata and tensors are of one version, whose header may be longer than the last one's."""
    path, stop = tmp_path / "state.safetensors", threading.Event()

    def write(number: int) -> None:
        tensors = {"number": torch.full((1000,), float(number))}
        write_tensors(path, tensors, {"number": str(number), "text": "x" * (number % 7)})

    def keep_writing() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            write(number)

    write(0)
    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        seen = set()
        for _ in range(300):
            tensors, metadata = read_tensors(path)
            assert (tensors["number"] == int(metadata["number"])).all()
            seen.add(metadata["number"])
        assert len(seen) > 1, "nothing was replaced: it proves nothing"
    finally:
        stop.set()
        writer.join()


def test_a_file_without_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"number": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="expected safetensors in .* got unreadable content"):
        read_tensors(path)
