"""Refused and failed exports: nothing is left behind, and nothing but an export is overwritten."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dataset_maker import dataset, write
from export_readers import PICTURE_FORMATS, SUFFIX, edm_dataset, read, tree

from fastdiff.jobs import export as module
from fastdiff.jobs.export import export
from fastdiff.jobs.formats import FORMATS
from fastdiff.jobs.records import record_name, with_checksum
from fastdiff.jobs.samples import DatasetError


def spoil_pixels(run: Path) -> None:
    path = run / "shards/00000/000000002.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def spoil_label(run: Path) -> None:
    path = run / record_name(2)
    record = json.loads(path.read_text())
    record["labels"][3] += 1
    path.write_text(json.dumps(record))


def changed(run: Path, **change: Any) -> None:
    path = run / record_name(2)
    path.write_text(json.dumps(with_checksum({**json.loads(path.read_text()), **change})))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE: list[tuple[Any, str]] = [
    (spoil_pixels, "expected unit 2 to have samples with the hash in its record, got others."),
    (
        spoil_label,
        (
            "expected unit 2 to have the record {run}/units/00000/000000002.json as it was written,"
            " got a changed"
        ),
    ),
    (
        lambda run: (run / "shards/00000/000000002.npy").unlink(),
        (
            "expected the file {run}/shards/00000/000000002.npy, got none. It belongs to unit 2:"
            " run `fastdiff resume {run}`"
        ),
    ),
    (
        lambda run: cut(run / "shards/00000/000000002.npy"),
        (
            "expected {run}/shards/00000/000000002.npy to hold npy of uint8 [8, 5, 4, 1], got too"
            " few bytes."
        ),
    ),
    (
        lambda run: cut(run / record_name(2)),
        "expected the record of unit 2 in {run}/units/00000/000000002.json, got no",
    ),
    (
        lambda run: changed(run, first=17, stop=25),
        "expected unit 2 to have the ids 16-23 of seed 11, got 17-24 of seed 11.",
    ),
    (
        lambda run: changed(run, seed=12),
        "expected unit 2 to have the ids 16-23 of seed 11, got 16-23 of seed 12.",
    ),
    (
        lambda run: changed(run, labels=None),
        (
            "expected unit 2 to have samples of uint8 [5, 4, 1] with classes, got samples of uint8"
            " [5, 4, 1] without classes."
        ),
    ),
    (
        lambda run: changed(run, shape=[8, 4, 5, 1]),
        (
            "expected unit 2 to have samples of uint8 [5, 4, 1] with classes, got samples of uint8"
            " [4, 5, 1] with classes."
        ),
    ),
]


@pytest.mark.parametrize("target", PICTURE_FORMATS)
@pytest.mark.parametrize("damage, message", DAMAGE)
def test_a_damaged_unit_is_named_and_nothing_stays(
    damage: Any, message: str, target: str, tmp_path: Path
) -> None:
    run = dataset(tmp_path / "run")
    damage(run)
    out = tmp_path / SUFFIX[target]
    with pytest.raises(DatasetError) as refused:
        export(run, target, out, partial=True)
    text = str(refused.value)
    assert (
        text.startswith("fastdiff.")
        and message.format(run=run) in text
        and f"`fastdiff resume {run}`" in text
    )
    assert "unit 2" in text and "\n" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    # units before and after it are intact
    assert export(run, target, out, ids=(24, 30)) == 7


@pytest.mark.parametrize("target", PICTURE_FORMATS)
def test_an_earlier_export_survives_a_failed_one(target: str, tmp_path: Path) -> None:
    run, out = dataset(tmp_path / "run"), tmp_path / SUFFIX[target]
    export(run, target, out)
    before = tree(tmp_path)
    with pytest.raises(FileExistsError) as refused:
        export(run, target, out)
    assert (
        str(refused.value)
        == f"fastdiff.jobs.export: expected a new {out}, got one. Name another path, or pass"
        " --overwrite."
    )
    content = (run / "shards/00000/000000002.npy").read_bytes()
    spoil_pixels(run)
    with pytest.raises(ValueError, match="expected unit 2 to have"):
        export(run, target, out, overwrite=True)
    write(run, "shards/00000/000000002.npy", content)
    assert tree(tmp_path) == before
    assert export(run, target, out, ids=(5, 6), overwrite=True) == 2
    assert read(target, out)[0].shape == (2, 5, 4, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["run", SUFFIX[target]])


def test_nothing_is_written_over_but_an_export(tmp_path: Path) -> None:
    run = dataset(tmp_path / "run")
    write(tmp_path, "home/thesis.tex", b"years")
    before = tree(tmp_path)
    with pytest.raises(
        ValueError, match="expected an earlier export in .*home, got a folder without export.json"
    ):
        export(run, "png", tmp_path / "home", overwrite=True)
    with pytest.raises(ValueError, match="expected .*home to become a file, got a folder there"):
        export(run, "npz", tmp_path / "home", overwrite=True)
    with pytest.raises(
        ValueError, match="expected .*thesis.tex to become a folder, got a file there"
    ):
        export(run, "png", tmp_path / "home/thesis.tex", overwrite=True)
    for place in (run, run / "set", tmp_path, run / "shards/../x"):
        with pytest.raises(ValueError, match="expected a path outside the dataset"):
            export(run, "png", place, overwrite=True)
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(ValueError, match="expected a path outside the dataset"):
        export(run, "npz", tmp_path / "link" / "set.npz")
    (tmp_path / "link").unlink()
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert export(run, "png", tmp_path / "empty", overwrite=True) == 26


REFUSED: list[tuple[Mapping[str, Any], str]] = [
    ({"format": "jpeg"}, f"fastdiff.jobs.export: expected format in {list(FORMATS)}, got 'jpeg'."),
    (
        {"format": "safetensors"},
        "fastdiff.jobs: expected float32 latents for the format safetensors, got uint8 [5, 4, 1].",
    ),
    ({"ids": (4, 10)}, "fastdiff.jobs.export: expected ids within 5-30, got 4-10."),
    ({"ids": (10, 31)}, "fastdiff.jobs.export: expected ids within 5-30, got 10-31."),
    ({"ids": (10, 9)}, "fastdiff.jobs.export: expected ids within 5-30, got 10-9."),
    (
        {"per_shard": 0, "format": "webdataset"},
        (
            "fastdiff.jobs.export: expected per_shard >= 1, and only for the format webdataset, got"
            " 0"
            " for webdataset."
        ),
    ),
    (
        {"per_shard": 10},
        (
            "fastdiff.jobs.export: expected per_shard >= 1, and only for the format webdataset, got"
            " 10"
            " for npz."
        ),
    ),
]


@pytest.mark.parametrize("change, message", REFUSED)
def test_wrong_arguments_raise(change: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    arguments = {"format": "npz", "out": tmp_path / "set", **change}
    with pytest.raises(ValueError) as refused:
        export(dataset(tmp_path / "run"), **arguments)
    assert str(refused.value).startswith(message)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "change",
    [
        {"ids": [5]},
        {"ids": None},
        {"ids": ["5", "30"]},
        {"unit": None},
        {"seed": "11"},
        {"format": "jpeg"},
        {"hash": 5},
    ],
)
def test_a_spec_that_says_too_little_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    path = dataset(tmp_path / "run") / "spec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(
        ValueError,
        match=f"expected ids, unit, seed, format and hash of a run in {path}, got others",
    ):
        export(tmp_path / "run", "npz", tmp_path / "set.npz")


def test_what_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"expected a dataset in {tmp_path}/none, got no spec.json there"
    ):
        export(tmp_path / "none", "npz", tmp_path / "set.npz")


@pytest.mark.parametrize("target", PICTURE_FORMATS)
def test_a_full_disk_leaves_nothing(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full represents a disk that fills up."""
    run = dataset(tmp_path / "run")
    stream, place = FORMATS[target].export, SUFFIX[target]

    def fill(out: Path, source: Any, per_shard: int) -> None:
        stream(out, source, per_shard)
        with open("/dev/full", "wb") as full:
            full.write(b"x")

    monkeypatch.setattr(type(FORMATS[target]), "export", lambda self, *a: fill(*a))
    with pytest.raises(OSError) as refused:
        export(run, target, tmp_path / place)
    assert refused.value.errno is None
    assert str(refused.value).startswith(
        f"fastdiff.jobs.export: expected to write {tmp_path / place}, got"
        f" {os.strerror(errno.ENOSPC)!r}"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_folder_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out, seen = dataset(tmp_path / "run"), tmp_path / "set", []
    sync = module._sync_tree

    def watched(folder: Path) -> None:
        seen.append((folder.parent == tmp_path, len(list(folder.rglob("*.png"))), out.exists()))
        sync(folder)

    monkeypatch.setattr(module, "_sync_tree", watched)
    export(run, "png", out)
    assert seen == [(True, 26, False)] and len(list(out.rglob("*.png"))) == 26

    def broken(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))

    monkeypatch.setattr(module, "_sync_tree", broken)
    before = tree(tmp_path)
    with pytest.raises(OSError, match=f"expected to write {out}, got {os.strerror(errno.EIO)!r}"):
        export(run, "png", out, overwrite=True)
    assert tree(tmp_path) == before


def test_the_earlier_export_comes_back_where_the_new_one_cannot_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = dataset(tmp_path / "run"), tmp_path / "set"
    export(run, "png", out)
    before, rename = tree(tmp_path), os.rename

    def refuse(source: Path, target: Path) -> None:
        if source.suffix == ".tmp":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))
        rename(source, target)

    monkeypatch.setattr(module.os, "rename", refuse)
    with pytest.raises(
        OSError, match=f"expected to write {out}, got {os.strerror(errno.EACCES)!r}"
    ):
        export(run, "png", out, ids=(6, 7), overwrite=True)
    assert tree(tmp_path) == before


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """Those in which nothing has changed for a day; younger ones may be a live process's."""
    left, live = (f".set.{digit * 32}" for digit in "5a")
    for name in (f"{left}.tmp", f"{left}.old", f"{live}.tmp"):
        write(tmp_path, f"{name}/000000/000001.png", b"half")
    write(tmp_path, f".other.{'5' * 32}.tmp", b"of another export")
    day_ago = time.time() - 90_000
    for path in (p for p in tmp_path.rglob("*") if live not in str(p)):
        os.utime(path, (day_ago, day_ago))
    os.utime(tmp_path / f"{live}.tmp", (day_ago, day_ago))  # its files are younger
    export(dataset(tmp_path / "run"), "png", tmp_path / "set")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f".other.{'5' * 32}.tmp", f"{live}.tmp", "run", "set"]
    assert [int(Path(n).stem) for n in edm_dataset(tmp_path / "set")[0]] == list(range(5, 31))


@pytest.mark.parametrize("target", PICTURE_FORMATS)
def test_an_interrupt_leaves_nothing(target: str, tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(dataset(tmp_path / "run"), target, tmp_path / "set", progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
