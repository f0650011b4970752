"""Files while others replace them, and names that others foresee."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from fastdiff.pretrained import files
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


def test_links_laid_for_a_writer_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither under the name that the unfinished file will have, nor laid while it is written."""
    secret, target = tmp_path / "secret", tmp_path / "x.json"
    secret.write_text("mine")
    secret.chmod(0o600)
    monkeypatch.setattr(files, "temporary_path", lambda path: tmp_path / "foreseen")
    (tmp_path / "foreseen").symlink_to(secret)
    with pytest.raises(FileExistsError):
        files.write_json(target, {})
    (tmp_path / "foreseen").unlink()

    def exchanged(path: Path) -> None:
        path.write_text("{}")
        path.unlink()
        path.symlink_to(secret)

    with pytest.raises(OSError):
        files.write_atomically(target, exchanged)
    assert secret.read_text() == "mine" and secret.stat().st_mode & 0o777 == 0o600
    assert not target.exists()


def test_threads_write_one_file_without_mixing_their_bytes(tmp_path: Path) -> None:
    path, found = tmp_path / "x.json", set()

    def write(number: int) -> None:
        for _ in range(20):
            files.write_json(path, {"numbers": [number] * 2000})
            found.add(len(set(files.read_json(path)["numbers"])))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1} and [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_files_have_the_mode_that_the_umask_permits(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        files.write_json(tmp_path / "x.json", {})
        files.write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
    assert modes == {0o666 & ~mask}
