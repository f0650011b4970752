"""`fastdiff export`: what the peers' own readers see, memory that does not grow, and nothing left
where it is refused.

One file over 400 lines: every target is read back from the same datasets, by the same readers.
"""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
from dataset_maker import SPEC_HASH, block, classes, commit, dataset, samples, write
from PIL import Image

from fastdiff.cli import main
from fastdiff.cli.exits import FAILED, UNSOUND, USAGE
from fastdiff.jobs import export as module
from fastdiff.jobs.export import export
from fastdiff.jobs.folder import with_checksum
from fastdiff.jobs.formats import FORMATS
from fastdiff.jobs.records import record_name
from fastdiff.jobs.samples import DatasetError

SUFFIX = {
    "npz": "set.npz",
    "npy": "set.npy",
    "safetensors": "set.safetensors",
    "png": "set",
    "webdataset": "set",
}
ORIGIN = {"spec": SPEC_HASH, "plan": "91a7" * 16, "fastdiff": "0.1.0"}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read(format: str, out: Path) -> tuple[np.ndarray, list[int] | None]:
    """(samples, classes) of an export, by readers that are not fastdiff's."""
    if format == "npz":
        with np.load(out) as file:
            return file["arr_0"], file["arr_1"].tolist() if "arr_1" in file else None
    if format == "npy":
        return np.load(out, mmap_mode="r"), None
    if format == "safetensors":
        tensors = safetensors.torch.load_file(out)
        return tensors["latents"].numpy(), (
            tensors["labels"].tolist() if "labels" in tensors else None
        )
    if format == "png":
        names, pictures, labels = edm_dataset(out)
        return np.stack(pictures), labels
    found: list[np.ndarray] = []
    labels = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path, "r|") as tar:
            for info in tar:
                data = tar.extractfile(info).read()  # type: ignore[union-attr]
                if info.name.endswith(".png"):
                    picture = np.asarray(Image.open(io.BytesIO(data)))
                    found.append(picture[:, :, None] if picture.ndim == 2 else picture)
                if info.name.endswith(".npy"):
                    found.append(np.load(io.BytesIO(data)))
                if info.name.endswith(".cls"):
                    labels.append(int(data))
    return np.stack(found), labels or None


def edm_dataset(path: Path) -> tuple[list[str], list[np.ndarray], list[int] | None]:
    """ImageFolderDataset of NVlabs/edm: every file below with an extension Pillow knows, sorted as
    text; the classes from dataset.json by the picture's name.
    """
    Image.init()
    every = {
        os.path.relpath(os.path.join(root, n), path)
        for root, _, found in os.walk(path)
        for n in found
    }
    names = sorted(n for n in every if os.path.splitext(n)[1].lower() in Image.EXTENSION)
    pictures = [np.array(Image.open(path / n)) for n in names]
    pictures = [p[:, :, np.newaxis] if p.ndim == 2 else p for p in pictures]
    if "dataset.json" not in every:
        return names, pictures, None
    labels = dict(json.loads((path / "dataset.json").read_text())["labels"])
    return names, pictures, [labels[n.replace("\\", "/")] for n in names]


def adm_batches(path: Path, batch: int) -> Iterator[np.ndarray]:
    """As open_npz_array of guided-diffusion's evaluator streams arr_0: the member opened in place,
    its header read, then batches of bytes.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file, "r") as archive:
        assert "arr_0.npy" in archive.namelist()
        with archive.open("arr_0.npy", "r") as member:
            assert np.lib.format.read_magic(member) == (1, 0)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
            assert not fortran and not dtype.hasobject
            for start in range(0, shape[0], batch):
                n = min(batch, shape[0] - start)
                data = member.read(n * int(np.prod(shape[1:])) * dtype.itemsize)
                yield np.frombuffer(data, dtype=dtype).reshape(n, *shape[1:])


# -- what comes out

PAIRS = [
    (source, target, kind)
    for kind in ("grey", "rgb", "latents")
    for source in FORMATS
    for target in FORMATS
    if (kind == "latents") or "safetensors" not in (source, target)
    if (kind != "latents") or "png" not in (source, target)
]


@pytest.mark.parametrize("source, target, kind", PAIRS)
def test_every_format_becomes_every_other(
    source: str, target: str, kind: str, tmp_path: Path
) -> None:
    """Units of 8 over the ids 5 … 30: the first and the last are cut."""
    out = tmp_path / "out" / SUFFIX[target]
    assert export(dataset(tmp_path / "run", kind, format=source), target, out) == 26
    got, labels = read(target, out)
    assert (
        np.array_equal(got, samples(kind, range(5, 31)))
        and got.dtype == samples(kind, range(1)).dtype
    )
    assert labels == (None if target == "npy" else classes(range(5, 31)))
    assert [p.name for p in (tmp_path / "out").iterdir()] == [SUFFIX[target]]


@pytest.mark.parametrize("target", ["npz", "png", "webdataset", "npy", "safetensors"])
def test_without_classes(target: str, tmp_path: Path) -> None:
    kind = "latents" if target == "safetensors" else "grey"
    run = dataset(tmp_path / "run", kind, labelled=False)
    export(run, target, tmp_path / SUFFIX[target])
    got, labels = read(target, tmp_path / SUFFIX[target])
    assert labels is None and np.array_equal(got, samples(kind, range(5, 31)))
    if target == "webdataset":
        with tarfile.open(tmp_path / "set" / "000000.tar") as tar:
            assert tar.getnames()[:2] == ["000000000005.png", "000000000005.json"]


@pytest.mark.parametrize("first, last", [(5, 30), (7, 7), (8, 15), (15, 16), (5, 9), (29, 30)])
@pytest.mark.parametrize("target", ["npz", "png", "webdataset"])
def test_a_range_of_ids(first: int, last: int, target: str, tmp_path: Path) -> None:
    out = tmp_path / SUFFIX[target]
    assert export(dataset(tmp_path / "run"), target, out, ids=(first, last)) == last - first + 1
    got, labels = read(target, out)
    ids = range(first, last + 1)
    assert np.array_equal(got, samples("grey", ids)) and labels == classes(ids)


def test_adm_streams_the_npz(tmp_path: Path) -> None:
    """arr_0 uint8 [N, H, W, C] and arr_1 int64 [N], as scripts/image_sample.py saves them and
    evaluator.py reads them.
    """
    out = tmp_path / "samples_26x4x6x3.npz"
    export(dataset(tmp_path / "run", "rgb"), "npz", out)
    batches = list(adm_batches(out, 7))
    assert [len(b) for b in batches] == [7, 7, 7, 5]
    assert np.array_equal(np.concatenate(batches), samples("rgb", range(5, 31)))
    with np.load(out) as file:
        assert file.files == ["arr_0", "arr_1"]
        assert file["arr_0"].dtype == np.uint8 and file["arr_1"].dtype == np.int64
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
    # as np.savez of the same arrays
    saved = io.BytesIO()
    np.savez(saved, samples("rgb", range(5, 31)), np.array(classes(range(5, 31))))
    saved.seek(0)
    with np.load(saved) as theirs, np.load(out) as ours:
        assert theirs.files == ours.files and all(
            np.array_equal(theirs[k], ours[k]) for k in ours.files
        )


def test_npz_beyond_four_gibibytes_has_the_wide_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered: sizes known beforehand must make the header of the member a wide one
    from the start.
    """
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    out = tmp_path / "set.npz"
    export(dataset(tmp_path / "run", "rgb"), "npz", out)
    data = out.read_bytes()
    assert data[:4] == b"PK\x03\x04" and data[18:26] == b"\xff" * 8, "sizes are in the zip64 field"
    monkeypatch.undo()
    with np.load(out) as file:
        assert np.array_equal(file["arr_0"], samples("rgb", range(5, 31)))
        assert file["arr_1"].tolist() == classes(range(5, 31))


def test_edm_walks_the_tree(tmp_path: Path) -> None:
    run = dataset(tmp_path / "run", "rgb", first=995, last=1012, unit=6)
    export(run, "png", tmp_path / "set")
    names, pictures, labels = edm_dataset(tmp_path / "set")
    assert names == [f"{i - i % 1000:06d}/{i:06d}.png" for i in range(995, 1013)]
    assert np.array_equal(
        np.stack(pictures), samples("rgb", range(995, 1013))
    ) and labels == classes(range(995, 1013))
    with Image.open(tmp_path / "set" / names[7]) as image:
        expected = {
            "sample_id": "1002",
            "seed": "11",
            "class": str(classes(range(1002, 1003))[0]),
            **ORIGIN,
        }
        assert image.text == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "per_shard, sizes", [(10, [10, 10, 6]), (13, [13, 13]), (1000, [26]), (26, [26]), (25, [25, 1])]
)
def test_archives_hold_so_many_samples(per_shard: int, sizes: list[int], tmp_path: Path) -> None:
    export(dataset(tmp_path / "run"), "webdataset", tmp_path / "set", per_shard=per_shard)
    paths = sorted((tmp_path / "set").glob("*.tar"))
    assert [p.name for p in paths] == [f"{i:06d}.tar" for i in range(len(sizes))]
    keys = []
    for path, size in zip(paths, sizes, strict=True):
        with tarfile.open(path) as tar:
            names = tar.getnames()
        assert len(names) == 3 * size and path.read_bytes().endswith(bytes(1024))
        keys += [name[:12] for name in names[::3]]
    assert keys == [f"{i:012d}" for i in range(5, 31)]


def test_webdataset_itself_reads_the_archives(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    export(dataset(tmp_path / "run", "rgb"), "webdataset", tmp_path / "set", per_shard=10)
    url = str(tmp_path / "set" / "{000000..000002}.tar")
    rows = list(
        webdataset.WebDataset(url, shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "json")
    )
    assert np.array_equal(np.stack([r[0] for r in rows]), samples("rgb", range(5, 31)))
    assert [r[1] for r in rows] == classes(range(5, 31))
    assert [r[2] for r in rows][0] == {"sample_id": 5, "seed": 11, "class": 6, **ORIGIN}


def test_safetensors_says_where_it_comes_from(tmp_path: Path) -> None:
    out = tmp_path / "set.safetensors"
    export(dataset(tmp_path / "run", "latents", format="safetensors"), "safetensors", out)
    with safetensors.safe_open(out, framework="pt") as file:
        assert file.metadata() == {**ORIGIN, "seed": "11"} and sorted(file.keys()) == [
            "labels",
            "latents",
        ]


def test_folders_say_what_they_are(tmp_path: Path) -> None:
    export(dataset(tmp_path / "run"), "png", tmp_path / "set", ids=(6, 20))
    said = json.loads((tmp_path / "set" / "export.json").read_text())
    assert said == {"format": "png", "ids": [6, 20], "samples": 15, **ORIGIN}


def test_exports_are_reproducible(tmp_path: Path) -> None:
    """Another process, hash seed, locale and umask write the same bytes."""
    runs = {
        "rgb": dataset(tmp_path / "rgb", "rgb"),
        "latents": dataset(tmp_path / "latents", "latents"),
    }
    wishes = [
        (kind, f)
        for kind in runs
        for f in FORMATS
        if (kind, f) not in (("rgb", "safetensors"), ("latents", "png"))
    ]
    code = (
        "import os, sys; os.umask(0o077); from fastdiff.jobs.export import export; "
        "[export(*sys.argv[i:i + 3]) for i in range(1, len(sys.argv), 3)]"
    )
    arguments = []
    for kind, f in wishes:
        export(runs[kind], f, tmp_path / "a" / f"{kind}-{f}")
        arguments += [str(runs[kind]), f, str(tmp_path / "b" / f"{kind}-{f}")]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "77",
        "LC_ALL": "C",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True)
    assert (
        tree(tmp_path / "a") == tree(tmp_path / "b") and len(list((tmp_path / "a").iterdir())) == 8
    )


# -- parts


def test_an_unfinished_dataset_is_exported_only_on_demand(tmp_path: Path) -> None:
    run = dataset(tmp_path / "run", "rgb")
    for unit in (0, 2):
        (run / record_name(unit)).unlink()
    with pytest.raises(DatasetError) as refused:
        export(run, "npz", tmp_path / "set.npz")
    assert (
        str(refused.value)
        == "fastdiff.export: expected all units of the ids 5-30, got none for unit 0 (ids 5-7) and"
        f" 1 more. Run `fastdiff resume {run}`, or export what is there with --partial."
    )
    ids = [*range(8, 16), *range(24, 31)]
    assert export(run, "npz", tmp_path / "set.npz", partial=True) == 15
    with np.load(tmp_path / "set.npz") as file:
        assert file["ids"].tolist() == ids and file["ids"].dtype == np.int64
        assert np.array_equal(file["arr_0"], samples("rgb", range(5, 31))[[i - 5 for i in ids]])
        assert file["arr_1"].tolist() == [(3 * i + 1) % 10 for i in ids]
    assert export(run, "png", tmp_path / "set", partial=True) == 15
    assert [int(Path(n).stem) for n in edm_dataset(tmp_path / "set")[0]] == ids
    # what is complete within the range needs no --partial, and with it is no different
    assert export(run, "npy", tmp_path / "a.npy", ids=(8, 15)) == 8
    assert export(run, "npy", tmp_path / "b.npy", ids=(8, 15), partial=True) == 8
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    with pytest.raises(
        ValueError, match="expected all ids for the format npy, which cannot say which are missing"
    ):
        export(run, "npy", tmp_path / "c.npy", partial=True)
    with pytest.raises(
        ValueError,
        match=r"expected all units of the ids 16-23, got none for unit 2 \(ids 16-23\)\. Run",
    ):
        export(run, "npz", tmp_path / "c.npz", ids=(16, 23), partial=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "b.npy", "run", "set", "set.npz"]


def test_safetensors_of_a_part_holds_the_ids(tmp_path: Path) -> None:
    run = dataset(tmp_path / "run", "latents")
    (run / record_name(1)).unlink()
    export(run, "safetensors", tmp_path / "set.safetensors", partial=True)
    tensors = safetensors.torch.load_file(tmp_path / "set.safetensors")
    ids = [5, 6, 7, *range(16, 31)]
    assert tensors["ids"].tolist() == ids and tensors["labels"].tolist() == [
        (3 * i + 1) % 10 for i in ids
    ]
    assert np.array_equal(
        tensors["latents"].numpy(), samples("latents", range(5, 31))[[i - 5 for i in ids]]
    )


# -- memory


@pytest.mark.parametrize("target", ["npz", "png", "webdataset", "npy"])
def test_memory_does_not_grow_with_the_dataset(target: str, tmp_path: Path) -> None:
    """Peaks of traced memory over 4 and over 40 units of 192 KiB: within 5 %, and far below the
    larger dataset.
    """
    small = dataset(tmp_path / "small", "rgb", first=0, last=4 * 16 - 1, unit=16, shape=(64, 64, 3))
    large = dataset(
        tmp_path / "large", "rgb", first=0, last=40 * 16 - 1, unit=16, shape=(64, 64, 3)
    )
    peaks = []
    export(small, target, tmp_path / "warm")
    for run in (small, large):
        tracemalloc.start()
        export(run, target, tmp_path / f"{run.name}-out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] and peaks[1] < 40 * 192 * 1024 / 4


# -- refusals and accidents


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


@pytest.mark.parametrize("target", ["npz", "png", "webdataset"])
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
    # units before and after it are good
    assert export(run, target, out, ids=(24, 30)) == 7


@pytest.mark.parametrize("target", ["npz", "png", "webdataset"])
def test_an_earlier_export_survives_a_failed_one(target: str, tmp_path: Path) -> None:
    run, out = dataset(tmp_path / "run"), tmp_path / SUFFIX[target]
    export(run, target, out)
    before = tree(tmp_path)
    with pytest.raises(FileExistsError) as refused:
        export(run, target, out)
    assert (
        str(refused.value)
        == f"fastdiff.export: expected a new {out}, got one. Name another path, or pass"
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
    ({"format": "jpeg"}, f"fastdiff.export: expected format in {list(FORMATS)}, got 'jpeg'."),
    (
        {"format": "safetensors"},
        "fastdiff.jobs: expected float32 latents for the format safetensors, got uint8 [5, 4, 1].",
    ),
    ({"ids": (4, 10)}, "fastdiff.export: expected ids within 5-30, got 4-10."),
    ({"ids": (10, 31)}, "fastdiff.export: expected ids within 5-30, got 10-31."),
    ({"ids": (10, 9)}, "fastdiff.export: expected ids within 5-30, got 10-9."),
    (
        {"per_shard": 0, "format": "webdataset"},
        (
            "fastdiff.export: expected per_shard >= 1, and only for the format webdataset, got 0"
            " for webdataset."
        ),
    ),
    (
        {"per_shard": 10},
        (
            "fastdiff.export: expected per_shard >= 1, and only for the format webdataset, got 10"
            " for npz."
        ),
    ),
]


@pytest.mark.parametrize("change, message", REFUSED)
def test_wrong_wishes_are_refused(change: Mapping[str, Any], message: str, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("target", ["npz", "png"])
def test_a_full_disk_leaves_nothing(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device that is always full stands for one that fills up."""
    run = dataset(tmp_path / "run")
    stream, place = FORMATS[target].export, "set.npz" if target == "npz" else "set"

    def fill(out: Path, source: Any, per_shard: int) -> None:
        stream(out, source, per_shard)
        with open("/dev/full", "wb") as full:
            full.write(b"x")

    monkeypatch.setattr(type(FORMATS[target]), "export", lambda self, *a: fill(*a))
    with pytest.raises(OSError) as refused:
        export(run, target, tmp_path / place)
    assert refused.value.errno is None
    assert str(refused.value).startswith(
        f"fastdiff.export: expected to write {tmp_path / place}, got {os.strerror(errno.ENOSPC)!r}"
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


def test_leftovers_of_a_killed_process_do_not_count(tmp_path: Path) -> None:
    """Process numbers return, in containers at once."""
    write(tmp_path, f".set.{os.getpid()}.tmp/000000/000001.png", b"half")
    write(tmp_path, f".set.{os.getpid()}.old/000000/000001.png", b"earlier")
    export(dataset(tmp_path / "run"), "png", tmp_path / "set")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "set"]
    assert [int(Path(n).stem) for n in edm_dataset(tmp_path / "set")[0]] == list(range(5, 31))


@pytest.mark.parametrize("target", ["npz", "png", "webdataset"])
def test_an_interrupt_leaves_nothing(target: str, tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(dataset(tmp_path / "run"), target, tmp_path / "set", progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = dataset(tmp_path / "run"), tmp_path / "set.npz"
    assert main(["export", str(run), "--format", "npz", "--out", str(out), "--ids", "6-20"]) == 0
    assert capsys.readouterr().out == f"15 samples in {out}\n"
    assert read("npz", out)[0].shape == (15, 5, 4, 1)
    assert main(["export", str(run), "--format", "npz", "--out", str(out)]) == USAGE
    assert capsys.readouterr().err.startswith("fastdiff export: fastdiff.export: expected a new ")
    assert main(["export", str(run), "--format", "npz", "--out", str(out), "--overwrite"]) == 0
    folder = str(tmp_path / "tars")
    assert (
        main(["export", str(run), "--format", "webdataset", "--out", folder, "--per-shard", "5"])
        == 0
    )
    assert len(list((tmp_path / "tars").glob("*.tar"))) == 6
    (run / record_name(1)).unlink()
    assert main(["export", str(run), "--format", "png", "--out", str(tmp_path / "png")]) == UNSOUND
    assert f"Run `fastdiff resume {run}`" in capsys.readouterr().err
    assert (
        main(["export", str(run), "--format", "png", "--out", str(tmp_path / "png"), "--partial"])
        == 0
    )
    capsys.readouterr()
    for ids in ("20-6", "6-", "a-b", "-3-4", "6..20"):
        assert (
            main(
                [
                    "export",
                    str(run),
                    "--format",
                    "npz",
                    "--out",
                    str(tmp_path / "x"),
                    f"--ids={ids}",
                ]
            )
            == USAGE
        )
        said = capsys.readouterr().err.splitlines()[-1]
        assert (
            said == f"fastdiff export: expected --ids A-B with A <= B, both included, got {ids!r}."
        )
    for wrong in (["--format", "jpeg", "--out", "x"], ["--format", "npz"], ["--out", "x"]):
        with pytest.raises(SystemExit) as usage:
            main(["export", str(run), *wrong])
        assert usage.value.code == USAGE
    assert (
        main(["export", str(tmp_path / "none"), "--format", "npz", "--out", str(tmp_path / "x")])
        == USAGE
    )
    # a place that cannot be written is neither the arguments' fault nor the dataset's
    assert (
        main(["export", str(run), "--format", "npz", "--out", str(out / "below"), "--partial"])
        == FAILED
    )
    assert "fastdiff.export: expected to write" in capsys.readouterr().err


def test_progress_counts_samples(tmp_path: Path) -> None:
    counted: list[int] = []
    export(
        dataset(tmp_path / "run"), "npy", tmp_path / "set.npy", progress=counted.append, ids=(6, 20)
    )
    assert counted == [2, 8, 5]


def test_units_that_no_longer_belong_are_not_read(tmp_path: Path) -> None:
    """Records beyond the spec's ids, of another run say, are never touched."""
    run = dataset(tmp_path / "run")
    commit(run, "npy", block("rgb", range(80, 88), unit=10))
    assert export(run, "npz", tmp_path / "set.npz") == 26
