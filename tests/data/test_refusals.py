"""Data sets that are damaged, wrong or made to do harm: one sentence that names the first fault.

This file is over 400 lines because it has a case for every way in which a file can be wrong.
"""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import made
import numpy as np
import pytest
import torch
from damage import HOSTILE, bytes_damages, outcome, within
from PIL import Image

from fastdiff.data import decode, load, reopen, wrap

pytestmark = pytest.mark.cpu_only
ALL = torch.arange(len(made.LABELS))


def used(path: Path, **options: object) -> object:
    """Reads all of a data set."""
    data = load(path, **options)
    return data.batch(torch.arange(data.examples))


def refused(path: Path, **options: object) -> str:
    found = outcome(lambda: used(path, **options), str(path))
    assert isinstance(found, str), "it was read"
    assert found.startswith("fastdiff.data: expected ") and found.count("\n") == 0
    return found


BROKEN: dict[str, Callable[[Path], object]] = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-30]),
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("no picture"),
    "a program for a printer": lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    "floats": lambda p: p.write_bytes(tiff(np.zeros((8, 8), np.float32))),
    "another size": lambda p: p.write_bytes(made.png(np.zeros((8, 9, 3), np.uint8))),
    "a link to nothing": lambda p: (p.unlink(), p.symlink_to("nowhere.png")),
    "a pipe": lambda p: (p.unlink(), os.mkfifo(p)),
}


def tiff(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="TIFF")
    return file.getvalue()


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_a_broken_picture_is_named_or_left_out(kind: str, tmp_path: Path) -> None:
    root = made.folder(tmp_path / "pets")
    BROKEN[kind](root / made.NAMES[5])
    text = refused(root)
    assert made.NAMES[5] in text and ("--skip-broken" in text)
    whole = load(root, skip_broken=True)
    assert [name for name, _ in whole.skipped] == [made.NAMES[5]]
    kept = [i for i in range(len(ALL)) if i != 5]
    x0, labels = whole.batch(torch.arange(whole.examples))
    assert whole.names == [made.NAMES[i] for i in kept]
    assert labels.tolist() == made.LABELS[kept].tolist()
    levels = torch.from_numpy(made.LEVELS[kept]).permute(0, 3, 1, 2)
    assert torch.equal(((x0 + 1) * 127.5).round().byte(), levels)
    assert "11 pictures" in whole.name


def test_a_first_picture_that_is_broken(tmp_path: Path) -> None:
    root = made.folder(tmp_path / "pets")
    (root / made.NAMES[0]).write_bytes(b"")
    assert made.NAMES[0] in refused(root)
    assert load(root, skip_broken=True).examples == 11
    for name in made.NAMES:
        (root / name).write_bytes(b"")
    assert "expected a readable picture" in refused(root, skip_broken=True)


def test_a_picture_of_too_many_pixels_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = made.folder(tmp_path / "pets")
    (root / made.NAMES[2]).write_bytes(made.png(np.zeros((300, 300), np.uint8)))
    loaded: list[object] = []
    monkeypatch.setattr(Image.Image, "resize", lambda *a, **k: loaded.append(a))
    monkeypatch.setattr(decode, "PIXELS", 64 * 64)
    assert "300 by 300 pixels, which are more than 4096" in refused(root)
    huge = bytearray(made.png(np.zeros((1, 1), np.uint8)))
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # more than Pillow's own limit
    (root / made.NAMES[0]).write_bytes(huge)
    assert made.NAMES[0] in refused(root) and not loaded


def test_a_file_of_too_many_bytes_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdiff.data import stores

    monkeypatch.setattr(stores, "ENCODED", 100)
    for name in ("folder", "zip of a folder", "tar"):
        (tmp_path / name).mkdir()
        path, _ = made.FORMATS[name](tmp_path / name)
        assert "more than 100 bytes" in refused(path)


def test_damaged_archives_are_refused_or_read_as_they_were(tmp_path: Path) -> None:
    """A zip has checksums of its members, a tar of its headers only: PNG finds the rest."""
    good = torch.from_numpy(made.LEVELS.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    for name, file in (("EDM's zip", "pets.zip"), ("tar", "x.tar")):
        path, _ = made.FORMATS[name](tmp_path)
        data, refusals = (tmp_path / file).read_bytes(), 0
        for bad in bytes_damages(data, 7, 150):
            path.write_bytes(bad)
            found = outcome(lambda path=path: used(path), repr(bad[:30]))
            refusals += isinstance(found, str)
            if name == "EDM's zip" and not isinstance(found, str):
                assert len(found[0]) < len(good) or torch.equal(found[0], good)
        assert refusals > 40, name


@pytest.mark.parametrize("name", ["npz", "npy", "npz packed", "idx"])
def test_damaged_arrays_are_refused_or_read(name: str, tmp_path: Path) -> None:
    path, options = made.FORMATS[name](tmp_path)
    data = path.read_bytes()
    for bad in [*bytes_damages(data[:400], 1, 150), *bytes_damages(data[-300:], 2, 60)]:
        whole = bad + data[400:] if len(bad) > 320 or bad[:4] == data[:4] else data[:-300] + bad
        path.write_bytes(whole)
        outcome(lambda: used(path, **options), repr(bad[:30]))


def zipped(path: Path, change: Callable[[zipfile.ZipFile], object]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("cat/a.png", made.png(made.LEVELS[0]))
        change(file)
    return path


def _link(file: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("cat/b.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    file.writestr(info, "/etc/passwd")


ZIPS: dict[str, tuple[Callable[[zipfile.ZipFile], object], str]] = {
    "link": (_link, "the link cat/b.png"),
    "absolute": (lambda f: f.writestr("/etc/x.png", b"x"), "leads out of it"),
    "upwards": (lambda f: f.writestr("../x.png", b"x"), "leads out of it"),
    "drive": (lambda f: f.writestr("C:/x.png", b"x"), "leads out of it"),
    "twice": (lambda f: f.writestr("cat/a.png", b"x"), "two files"),
    "packing": (
        lambda f: f.writestr("cat/b.png", b"x", compress_type=zipfile.ZIP_LZMA),
        "compression 14",
    ),
    "terminal": (lambda f: f.writestr("../\x1b[2J.png", b"x"), r"\x1b"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", sorted(ZIPS))
def test_zips_of_danger(kind: str, tmp_path: Path) -> None:
    change, expected = ZIPS[kind]
    assert expected in refused(zipped(tmp_path / "x.zip", change))


def test_a_zip_that_says_a_small_size(tmp_path: Path) -> None:
    """The content of a member is unpacked up to the size that the zip states, and no further."""
    path, size = tmp_path / "x.zip", 32 << 20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("cat/a.png", bytes(size))
    data = path.read_bytes()
    # in the local header and in the directory
    path.write_bytes(data.replace(size.to_bytes(4, "little"), (100).to_bytes(4, "little")))
    tracemalloc.start()
    try:
        assert "damaged content" in refused(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_changed_pixel_in_a_zip_is_found(tmp_path: Path) -> None:
    """BMP has no checksum of its own."""
    path, file = tmp_path / "x.zip", io.BytesIO()
    Image.fromarray(made.LEVELS[0]).save(file, format="BMP")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/a.bmp", file.getvalue())
    data = bytearray(path.read_bytes())
    data[data.index(b"BM") + 100] ^= 1
    path.write_bytes(data)
    assert "cat/a.bmp" in refused(path)


def tarred(path: Path, kind: bytes, name: str, size: int = 0) -> Path:
    made.tar(path)
    with tarfile.open(path, "a") as file:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info, io.BytesIO())
    return path


@pytest.mark.parametrize(
    "kind, name, expected",
    [
        (tarfile.SYMTYPE, "x.png", "the link x.png"),
        (tarfile.LNKTYPE, "x.png", "the link x.png"),
        (tarfile.CHRTYPE, "x.png", "the device or sparse file x.png"),
        (tarfile.FIFOTYPE, "x.png", "the device or sparse file x.png"),
        (tarfile.REGTYPE, "../x.png", "leads out of it"),
        (tarfile.REGTYPE, "/x.png", "leads out of it"),
    ],
)
def test_tars_of_danger(kind: bytes, name: str, expected: str, tmp_path: Path) -> None:
    assert expected in refused(tarred(tmp_path / "x.tar", kind, name))


def test_tars_that_are_none(tmp_path: Path) -> None:
    path = made.tar(tmp_path / "x.tar")
    data = path.read_bytes()
    negative = bytearray(data)
    negative[124:136] = b"\xff" * 12  # a size below 0, at which some readers never end
    for bad, expected in (
        (b"\x1f\x8b" + data, "gunzip"),
        (data[:700], "cut off"),
        (bytes(negative), "other content at byte 0"),
        (b"", "expected"),
    ):
        path.write_bytes(bad)
        assert expected in refused(path)


LABELS: dict[str, tuple[str, str, str]] = {
    # name: (file, content, part of the sentence)
    "missing picture": ("labels.csv", made.rows(",") + "x.png,cat\n", "the picture 'x.png'"),
    "missing label": ("labels.csv", made.rows(",").replace("003.png,cat\n", ""), "'003.png'"),
    "twice": ("labels.csv", made.rows(",") + "000.png,cat\n", "two for '000.png'"),
    "no label": ("labels.csv", made.rows(",").replace("003.png,cat", "003.png,"), "'003.png'"),
    "columns": ("labels.csv", made.rows(",").replace("003.png,cat", "003.png,cat,1"), "line 4"),
    "quote": ("labels.csv", made.rows(",") + '"x.png,cat', "line"),
    "negative": ("dataset.json", made.edm_labels("").replace(", 2]", ", -2]"), "got -2"),
    "too large": ("dataset.json", made.edm_labels("").replace(", 2]", ", 99999999]"), "99999999"),
    "fraction": ("dataset.json", made.edm_labels("").replace(", 2]", ", 0.5]"), "0.5"),
    "truth": ("dataset.json", made.edm_labels("").replace(", 2]", ", true]"), "True"),
    "vector": ("dataset.json", made.edm_labels("").replace(", 2]", ", [0, 1]]"), "[0, 1]"),
    "mixed": ("dataset.json", made.edm_labels("").replace(", 2]", ', "2"]'), "all texts or all"),
    "no pairs": ("dataset.json", '{"labels": [["000.png"]]}', "[file, label]"),
    "no JSON": ("dataset.json", "{'labels': []}", "expected JSON"),
    "a list": ("labels.json", "[]", "list"),
    "unknown": (
        "labels.json",
        json.dumps(
            {
                "classes": ["cat", "dog"],
                "labels": {f"{i:03d}.png": made.CLASSES[k] for i, k in enumerate(made.LABELS)},
            }
        ),
        "'eel'",
    ),
    "beyond": (
        "labels.json",
        json.dumps(json.loads(made.edm_labels("")) | {"classes": ["cat", "dog"]}),
        "labels in 0…1",
    ),
    "classes": (
        "labels.json",
        json.dumps(json.loads(made.edm_labels("")) | {"classes": ["cat", "cat", "eel"]}),
        "different texts",
    ),
}


@pytest.mark.parametrize("kind", sorted(LABELS))
def test_wrong_label_files(kind: str, tmp_path: Path) -> None:
    file, content, expected = LABELS[kind]
    text = refused(made.flat(tmp_path / "pets", file, content))
    assert expected in text and file in text


@pytest.mark.parametrize("kind", sorted(HOSTILE))
@pytest.mark.parametrize("file", ["dataset.json", "labels.csv"])
def test_label_files_that_no_writer_makes(kind: str, file: str, tmp_path: Path) -> None:
    made.flat(tmp_path / "pets", file, "")
    (tmp_path / "pets" / file).write_bytes(HOSTILE[kind])
    assert file in refused(tmp_path / "pets")


def test_labels_that_contradict_each_other(tmp_path: Path) -> None:
    root = made.folder(tmp_path / "pets")
    (root / "beside.png").write_bytes(made.png(made.LEVELS[0]))
    assert "'beside.png' beside them" in refused(root)
    flat = made.flat(tmp_path / "flat", "labels.csv", made.rows(","))
    (flat / "labels.json").write_text("{}")
    assert "expected one label file" in refused(flat)
    assert "expected a label file in" in refused(flat, label_file="none.csv")


@pytest.mark.parametrize("label", ["-1", "", "two words", "9" * 30])
def test_wrong_labels_in_a_tar(label: str, tmp_path: Path) -> None:
    path = made.tar(tmp_path / "x.tar")
    data = path.read_bytes()
    at = data.index(b"000000003.cls")
    size = b"%011o\0" % len(label)
    head = bytearray(data[at : at + 512])
    head[124:136], head[148:156] = size, b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path.write_bytes(data[:at] + bytes(head) + label.encode().ljust(512, b"\0") + data[at + 1024 :])
    assert "x.tar" in refused(path)


def test_links_to_folders_end(tmp_path: Path) -> None:
    root = made.folder(tmp_path / "pets")
    (root / "cat" / "up").symlink_to(root)
    assert "to a folder above" in refused(root)
    (root / "cat" / "up").unlink()
    (root / "cat" / "other").symlink_to(root / "dog")
    assert load(root).examples == 15


def test_colours_among_grey_pictures(tmp_path: Path) -> None:
    root = made.folder(tmp_path / "pets")
    (root / made.NAMES[0]).write_bytes(made.png(made.LEVELS[0][..., 0]))
    assert "pass --channels 1 or 3" in refused(root)
    assert load(root, channels=3).batch(ALL)[0].shape == (12, 3, 8, 8)
    assert load(root, channels=1).batch(ALL)[0].shape == (12, 1, 8, 8)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": 10**6},
        {"filter": "cubic"},
        {"channels": 2},
        {"test_share": 1.0},
        {"random_crop": True},
        {"cache_mib": -1},
    ],
)
def test_options_that_are_none(options: dict[str, object], tmp_path: Path) -> None:
    root = made.folder(tmp_path / "pets")
    text = refused(root, **options)
    assert next(iter(options)) in text


@pytest.mark.parametrize(
    "origin",
    [
        None,
        {},
        {"path": 3},
        {"path": "x", "options": []},
        {"path": "x", "options": {"size": "8"}},
        {"path": "x", "options": {"size": True}},
        {"path": "x", "options": {"run": "rm"}},
        {"path": "x\x1b[2J", "options": {}},
        {"path": "pkg:factory", "options": {}},
    ],
)
def test_an_origin_of_someone_s_file(origin: object) -> None:
    found = outcome(lambda: reopen(origin, "train", "config.json"))
    assert isinstance(found, str)


def test_arrays_of_other_kinds(tmp_path: Path) -> None:
    for array, expected in (
        (np.zeros((3, 8, 8, 3), np.int64), "pictures as uint8"),
        (np.zeros((3, 8, 8, 5), np.uint8), "C in 1, 3, 4"),
        (np.zeros((0, 8, 8, 3), np.uint8), "expected examples"),
        (np.zeros(3), "floating-point rows"),
        (np.array([{}]), "Object arrays|pickle|objects"),
    ):
        np.save(tmp_path / "x.npy", array)
        text = refused(tmp_path / "x.npy")
        assert any(part in text for part in expected.split("|")), text
    np.savez(tmp_path / "x.npz", other=np.zeros(3))
    assert "arr_0 or images" in refused(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", arr_0=made.LEVELS, arr_1=made.LABELS[:3])
    assert "whole numbers [12] as labels" in refused(tmp_path / "x.npz")
    np.savez_compressed(tmp_path / "x.npz", arr_0=np.zeros((600, 64, 64, 3), np.uint8))
    assert "packed bytes of arr_0, more than 1048576" in refused(tmp_path / "x.npz", cache_mib=1)
    made.npy(tmp_path / "x.npy", np.zeros((3, 4)))
    assert "expected no flip" in refused(tmp_path / "x.npy", flip=True)


def test_paths_that_are_none(tmp_path: Path) -> None:
    assert "or the path of a file or folder" in refused(tmp_path / "nothing")
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    assert "expected a folder, .zip, .tar" in refused(tmp_path / "x.rar")
    (tmp_path / "empty").mkdir()
    assert "got none" in refused(tmp_path / "empty")
    assert "Make a folder test" in str(
        outcome(lambda: load(made.folder(tmp_path / "pets"), "test"))
    )


class Items:
    def __init__(self, *items: object):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> object:
        return self.items[i]


X = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    "items",
    [
        (),
        ((X, 0, 0),),
        ((X, -1),),
        ((X, "cat"),),
        ({"y": X},),
        ((X, 0), (X[:4], 0)),
        ((X, 0), (X, {"text": 1.5})),
        ((np.zeros((8, 8), np.int64), 0),),
        ((np.array([np.nan]), 0),),
        (("text", 0),),
    ],
    ids=lambda items: repr(items)[:20],
)
def test_items_of_other_forms(items: tuple[object, ...]) -> None:
    def read() -> object:
        data = wrap(Items(*items))
        return data.batch(torch.arange(data.examples))

    assert isinstance(outcome(read), str)


def test_an_iterable_has_no_order() -> None:
    with pytest.raises(TypeError, match=r"^fastdiff\.data: expected a map-style data set"):
        wrap(iter([X]))


@pytest.mark.parametrize("format", decode.FORMATS)
def test_damaged_pictures_of_every_format(format: str) -> None:
    """Any error of a decoder becomes a reason; what is decoded has a mode that is used."""
    from fastdiff.data import Options

    file = io.BytesIO()
    Image.fromarray(made.LEVELS[:4].reshape(16, 16, 3)).save(file, format=format)
    refusals = 0
    for bad in bytes_damages(file.getvalue(), 11, 120):
        with within(10):
            try:
                levels = decode.prepare(decode.decode(bad), Options(size=8), 3)
                assert levels.shape == (3, 8, 8) and levels.dtype == np.uint8
            except decode.Unreadable as error:
                refusals += 1
                assert str(error).isprintable()
    assert refusals > 10
