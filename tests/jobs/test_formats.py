"""Formats: bytes that depend on the samples alone, a way back for every shape, and the peers' own
readers as oracles.

One file over 400 lines: each property is asked of every format, by the same blocks.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from dataset_maker import SHAPES, SPEC_HASH, block, classes, commit, samples
from PIL import Image

from fastdiff.jobs.formats import FORMATS, Block, pixels_sha256
from fastdiff.jobs.formats.webdataset import member
from fastdiff.jobs.records import read_record, record_name, records, unit_files

PROVENANCE = {"spec": SPEC_HASH, "plan": "91a7" * 16, "fastdiff": "0.1.0"}
KINDS = {
    "npy": ("grey", "rgb", "rgba", "latents"),
    "npz": ("grey", "rgb", "rgba", "latents"),
    "png": ("grey", "rgb", "rgba"),
    "webdataset": ("grey", "rgb", "rgba", "latents"),
    "safetensors": ("latents",),
}
CASES = [(f, k) for f, kinds in KINDS.items() for k in kinds]
# what does not depend on Pillow's deflate library never changes, under any version of anything
PINNED = {
    "npy grey": "090f396054c4be47e59ac2f441ca35823b261b92215b938033573eda82c2e3fa",
    "npy latents": "3c9e299737a7a48171884a286e315af40e7c5ea1c8f04e29812ac0dfd07276f8",
    "npz grey": "bec6776bf00f236d4d3c8452abaa2236b09b3ac543a405c4a34b9e1f78c5f336",
    "npz latents": "6205f8a60ace9fd300895cfa808c34c7cabd5da83e2df65e6f6cbdbb6aa82c6e",
    "webdataset latents": "c3f6f61f95cba078e00314ee11310d842970b8c2b2c8b5f8b3063f7bf21472c2",
    "safetensors latents": "0cb2295d07225f895eb87ed2aad2ba59bfd61bd5aa2a124e47ced916b0ce8264",
}


def hashes() -> dict[str, str]:
    """SHA-256 over the names and contents of all files, for each format and kind."""
    found = {}
    for name, kind in CASES:
        total = hashlib.sha256()
        for path, content in FORMATS[name].files(
            block(kind, range(998, 1003), unit=1234567), PROVENANCE
        ):
            total.update(f"{path} {len(content)} ".encode() + content)
        found[f"{name} {kind}"] = total.hexdigest()
    return found


# -- bytes


def test_bytes_depend_on_the_samples_alone() -> None:
    """Another process with other hash seed, locale, umask, zone, home and hour writes the same
    bytes.
    """
    here = hashes()
    code = (
        "import os; os.umask(0o077); import json, test_formats;"
        " print(json.dumps(test_formats.hashes()))"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "12345",
        "LC_ALL": "C",
        "LANG": "tr_TR.UTF-8",
        "TZ": "Pacific/Auckland",
        "HOME": "/",
        "USER": "somebody",
        "SOURCE_DATE_EPOCH": "1",
        "PYTHONUTF8": "0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    assert json.loads(done.stdout) == here
    assert len(set(here.values())) == len(CASES)
    assert {key: here[key] for key in PINNED} == PINNED


@pytest.mark.parametrize("name, kind", CASES)
def test_provenance_is_written_in_a_fixed_order(name: str, kind: str) -> None:
    made = block(kind, range(3))
    backwards = dict(reversed(PROVENANCE.items()))
    assert list(FORMATS[name].files(made, PROVENANCE)) == list(FORMATS[name].files(made, backwards))


@pytest.mark.parametrize("name, kind", CASES)
def test_the_layout_of_the_array_in_memory_does_not_matter(name: str, kind: str) -> None:
    made = block(kind, range(4))
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(made.array, 1, -1)), -1, 1)
    swapped = made.array.astype(made.array.dtype.newbyteorder(">"))
    expected = list(FORMATS[name].files(made, PROVENANCE))
    for array in (strided, swapped):
        other = Block(made.unit, made.first, made.seed, array, made.labels)
        assert list(FORMATS[name].files(other, PROVENANCE)) == expected
        assert pixels_sha256(array) == hashlib.sha256(made.array.tobytes()).hexdigest()


# -- there and back


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name, kind", CASES)
def test_reading_gives_the_block_again(
    name: str, kind: str, labelled: bool, count: int, tmp_path: Path
) -> None:
    made = block(kind, range(997, 997 + count), unit=7, labelled=labelled)
    record = commit(tmp_path, name, made)
    got = FORMATS[name].read(tmp_path, json.loads(json.dumps(record)))
    assert got.dtype == made.array.dtype and np.array_equal(got, made.array)
    assert pixels_sha256(got) == record["pixels"]


def test_floats_come_back_bit_by_bit(tmp_path: Path) -> None:
    """Subnormals, both zeros, infinities and two NaNs."""
    bits = np.array(
        [[0, 0x80000000, 1, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FC00001, 0x3F800001]],
        dtype=np.uint32,
    )
    made = Block(0, 0, 1, bits.view(np.float32), None)
    for name in ("npy", "npz", "webdataset", "safetensors"):
        got = FORMATS[name].read(tmp_path, commit(tmp_path, name, made))
        assert np.array_equal(got.view(np.uint32), bits)


@pytest.mark.parametrize("shape", [(3, 2), (2, 2), (7,), (1, 2, 2, 1)])
def test_data_that_is_no_picture_keeps_its_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    ids = range(64, 67)
    for name in ("npy", "npz", "webdataset", "safetensors"):
        made = block("latents", ids, shape=shape)
        assert np.array_equal(
            FORMATS[name].read(tmp_path, commit(tmp_path, name, made)), made.array
        )
    for name in ("npy", "npz", "webdataset"):
        made = block("grey", ids, shape=shape)
        assert np.array_equal(
            FORMATS[name].read(tmp_path, commit(tmp_path, name, made)), made.array
        )


def test_files_lie_where_the_layout_says() -> None:
    made = block("rgb", range(998, 1003), unit=12345)
    names = {
        name: [p for p, _ in FORMATS[name].files(made, {})]
        for name in ("npy", "npz", "png", "webdataset")
    }
    assert names["npy"] == ["shards/00012/000012345.npy"]
    assert names["npz"] == ["shards/00012/000012345.npz"]
    assert names["webdataset"] == ["shards/00012/000012345.tar"]
    # generate.py of NVlabs/edm: f'{seed-seed%1000:06d}', f'{seed:06d}.png'
    expected = [
        "000000/000998.png",
        "000000/000999.png",
        "001000/001000.png",
        "001000/001001.png",
        "001000/001002.png",
    ]
    assert names["png"] == expected
    latents = FORMATS["safetensors"].files(block("latents", range(2), unit=12345), {})
    assert [p for p, _ in latents] == ["shards/00012/000012345.safetensors"]
    far = FORMATS["png"].files(block("grey", range(12_345_678, 12_345_679)), {})
    assert [p for p, _ in far] == ["12345000/12345678.png"]


# -- the peers' readers


@pytest.mark.parametrize("kind", ["grey", "rgb", "latents"])
def test_numpy_loads_npy(kind: str) -> None:
    made = block(kind, range(3))
    ((_, content),) = FORMATS["npy"].files(made, {})
    got = np.load(io.BytesIO(content))
    assert got.dtype == made.array.dtype and np.array_equal(got, made.array)


@pytest.mark.parametrize("kind", ["grey", "latents"])
def test_numpy_loads_npz_as_adm_names_it(kind: str) -> None:
    made = block(kind, range(20, 26))
    ((_, content),) = FORMATS["npz"].files(made, {})
    with np.load(io.BytesIO(content)) as file:
        assert file.files == ["arr_0", "arr_1"]
        assert np.array_equal(file["arr_0"], made.array) and file["arr_0"].dtype == made.array.dtype
        assert file["arr_1"].dtype == np.int64 and file["arr_1"].tolist() == classes(range(20, 26))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
    ((_, content),) = FORMATS["npz"].files(block(kind, range(3), labelled=False), {})
    with np.load(io.BytesIO(content)) as file:
        assert file.files == ["arr_0"]


def test_a_picture_says_where_it_comes_from(tmp_path: Path) -> None:
    made = block("rgb", range(41, 44), seed=2**63 + 1)
    commit(tmp_path, "png", made, PROVENANCE)
    for i, label in zip(range(41, 44), classes(range(41, 44)), strict=True):
        with Image.open(tmp_path / f"000000/{i:06d}.png") as image:
            text = image.text  # type: ignore[attr-defined]
            assert text == {
                "sample_id": str(i),
                "seed": str(2**63 + 1),
                "class": str(label),
                **PROVENANCE,
            }
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), made.array[i - 41])
    commit(
        tmp_path, "png", block("grey", range(41, 42), labelled=False), {"seed": "not the sample's"}
    )
    with Image.open(tmp_path / "000000/000041.png") as image:
        assert image.mode == "L"
        assert image.text == {"sample_id": "41", "seed": "11"}  # type: ignore[attr-defined]


def test_tarfile_reads_the_archive_as_webdataset_groups_it() -> None:
    """Members up to the first dot are a sample; they follow each other; owner, mode and date are
    fixed.
    """
    made = block("rgb", range(41, 44))
    ((_, content),) = FORMATS["webdataset"].files(made, PROVENANCE)
    assert content[257:265] == b"ustar\x0000" and content.endswith(bytes(1024))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        infos = tar.getmembers()
        data = {i.name: tar.extractfile(i).read() for i in infos}  # type: ignore[union-attr]
    assert [i.name for i in infos] == [
        f"{i:012d}.{e}" for i in range(41, 44) for e in ("png", "cls", "json")
    ]
    assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode, i.isreg()) for i in infos} == {
        (0, 0, 0, "", "", 0o644, True)
    }
    for i in range(41, 44):
        key = f"{i:012d}"
        with Image.open(io.BytesIO(data[f"{key}.png"])) as image:
            assert np.array_equal(np.asarray(image), made.array[i - 41])
        assert int(data[f"{key}.cls"]) == classes(range(i, i + 1))[0]
        expected = {"sample_id": i, "seed": 11, "class": classes(range(i, i + 1))[0], **PROVENANCE}
        assert json.loads(data[f"{key}.json"]) == expected
    ((_, content),) = FORMATS["webdataset"].files(block("latents", range(2), labelled=False), {})
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.getnames() == [f"{i:012d}.{e}" for i in range(2) for e in ("npy", "json")]
        first = np.load(io.BytesIO(tar.extractfile(tar.getnames()[0]).read()))  # type: ignore[union-attr]
    assert np.array_equal(first, samples("latents", range(1))[0])


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 100_000])
@pytest.mark.parametrize("name", ["a", "000000000001.png", "9" * 17 + ".json", "n" * 100])
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    expected = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + b"x" * size
    made = member(name, b"x" * size)
    assert made.rstrip(b"\0") == expected.rstrip(b"\0") and len(made) == 512 + -(-size // 512) * 512


@pytest.mark.parametrize("kind, extension", [("rgb", "png"), ("latents", "npy")])
def test_webdataset_itself_reads_the_archive(kind: str, extension: str, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    made = block(kind, range(41, 46))
    record = commit(tmp_path, "webdataset", made, PROVENANCE)
    url = str(tmp_path / record["files"][0]["name"])
    rows = list(
        webdataset.WebDataset(url, shardshuffle=False)
        .decode("rgb8")
        .to_tuple(extension, "cls", "json")
    )
    assert np.array_equal(np.stack([r[0] for r in rows]), made.array)
    assert [r[1] for r in rows] == classes(range(41, 46))
    assert [r[2]["sample_id"] for r in rows] == list(range(41, 46))


def test_safetensors_reads_latents(tmp_path: Path) -> None:
    made = block("latents", range(41, 44))
    record = commit(tmp_path, "safetensors", made, PROVENANCE)
    path = tmp_path / record["files"][0]["name"]
    tensors = safetensors.torch.load_file(path)
    assert set(tensors) == {"latents", "labels"}
    assert tensors["latents"].dtype == torch.float32 and torch.equal(
        tensors["latents"], torch.tensor(made.array)
    )
    assert tensors["labels"].dtype == torch.int64 and tensors["labels"].tolist() == classes(
        range(41, 44)
    )
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {**PROVENANCE, "first": "41", "seed": "11"}
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert length % 8 == 0, "tensors lie on their alignment"
    commit(tmp_path, "safetensors", block("latents", range(1), labelled=False))
    assert set(safetensors.torch.load_file(path)) == {"latents"}


def edm_folder(path: Path) -> list[tuple[str, np.ndarray]]:
    """What ImageFolderDataset of NVlabs/edm (training/dataset.py) sees: every file below that
    Pillow has a reader for, sorted by its name as text, HWC.
    """
    Image.init()
    names = [
        os.path.relpath(os.path.join(root, name), path)
        for root, _, found in os.walk(path)
        for name in found
        if os.path.splitext(name)[1].lower() in Image.EXTENSION
    ]
    seen = []
    for name in sorted(names):
        picture = np.array(Image.open(os.path.join(path, name)))
        seen.append((name, picture[:, :, np.newaxis] if picture.ndim == 2 else picture))
    return seen


@pytest.mark.parametrize("kind", ["grey", "rgb"])
def test_edm_walks_the_dataset_itself(kind: str, tmp_path: Path) -> None:
    """Sidecars beside the pictures are no pictures to it; names sort as ids do."""
    for unit, ids in ((2, range(1990, 2005)), (0, range(995, 1001)), (1, range(1001, 1003))):
        commit(tmp_path, "png", block(kind, ids, unit=unit))
    (tmp_path / "spec.json").write_text("{}")
    seen = edm_folder(tmp_path)
    ids = [*range(995, 1003), *range(1990, 2005)]
    assert [int(Path(name).stem) for name, _ in seen] == ids
    for i, (_, picture) in zip(ids, seen, strict=True):
        assert np.array_equal(picture, samples(kind, range(i, i + 1))[0])


# -- refusals and damage


REFUSED = [
    (
        "png",
        "latents",
        None,
        (
            "expected pictures [H, W, C] uint8 with 1-4 channels for the format png, got float32 "
            "[4, 2, 3]. Use npy, which stores any samples."
        ),
    ),
    ("png", "grey", (4, 4, 5), "got uint8 [4, 4, 5]."),
    ("png", "grey", (4, 4), "got uint8 [4, 4]."),
    (
        "safetensors",
        "grey",
        None,
        (
            "expected float32 latents for the format safetensors, got uint8 [5, 4, 1]. Use npy, "
            "which stores any samples."
        ),
    ),
]


@pytest.mark.parametrize("name, kind, shape, message", REFUSED)
def test_formats_refuse_what_they_cannot_hold(
    name: str, kind: str, shape: tuple[int, ...] | None, message: str
) -> None:
    made = block(kind, range(2), shape=shape)
    with pytest.raises(ValueError, match="^fastdiff.jobs: expected") as refused:
        list(FORMATS[name].files(made, {}))
    assert message in str(refused.value)
    with pytest.raises(ValueError) as early:
        FORMATS[name].check(made.array.shape[1:], made.array.dtype.name)
    assert str(early.value) == str(refused.value)


@pytest.mark.parametrize("name", FORMATS)
def test_other_types_and_wrong_labels_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected samples of type uint8 or float32, got float64"):
        list(FORMATS[name].files(Block(0, 0, 0, np.zeros((2, 4, 4, 3)), None), {}))
    good = block("latents" if name == "safetensors" else "rgb", range(3))
    with pytest.raises(ValueError, match="expected 3 labels in unit 0, one per sample, got 2"):
        list(FORMATS[name].files(Block(0, 0, 0, good.array, [1, 2]), {}))


@pytest.mark.parametrize("name, kind", CASES)
def test_a_missing_file_is_named(name: str, kind: str, tmp_path: Path) -> None:
    record = commit(tmp_path, name, block(kind, range(3)))
    path = tmp_path / record["files"][-1]["name"]
    path.unlink()
    with pytest.raises(FileNotFoundError) as missing:
        FORMATS[name].read(tmp_path, record)
    assert str(missing.value) == f"fastdiff.jobs: expected the file {path}, got none."


@pytest.mark.parametrize("name, kind", CASES)
def test_damage_is_seen_or_refused_in_a_sentence(name: str, kind: str, tmp_path: Path) -> None:
    """Lengths a file may be cut to, and bytes with one bit flipped, every one of small files: the
    samples are right, or their hash differs, or a ValueError names the file. Nothing else is
    raised.
    """
    made = block(kind, range(2), labelled=False, shape=(2, 3, 1) if kind == "grey" else None)
    record = commit(tmp_path, name, made)
    path = tmp_path / record["files"][-1]["name"]
    whole = path.read_bytes()
    rng = np.random.default_rng(5)
    cut = [whole[:n] for n in {*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1}]
    positions = (
        range(len(whole))
        if len(whole) < 400
        else sorted(rng.choice(len(whole), 400, replace=False))
    )
    flipped = [
        whole[:i] + bytes([whole[i] ^ (1 << int(rng.integers(8)))]) + whole[i + 1 :]
        for i in positions
    ]
    refused = 0
    for damaged in [*cut, *flipped, whole + b"\0", b"", bytes(len(whole))]:
        path.write_bytes(damaged)
        try:
            got = FORMATS[name].read(tmp_path, record)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(
                f"fastdiff.jobs: expected {path} to hold "
            ) and "\n" not in str(error)
            assert " 0x" not in str(error) and len(str(error)) < len(str(path)) + 150
        else:
            assert got.shape == made.array.shape and got.dtype == made.array.dtype
            assert np.array_equal(got, made.array) or pixels_sha256(got) != record["pixels"]
    assert refused >= len(cut) // 2


@pytest.mark.parametrize("name", ["npy", "npz"])
def test_another_header_is_refused(name: str, tmp_path: Path) -> None:
    """The same bytes under another shape or type are what other tools would read: not the samples
    of the record.
    """
    made = block("grey", range(3), labelled=False)
    record = commit(tmp_path, name, made)
    for array in (
        made.array.reshape(3, 4, 5, 1),
        made.array.view(np.int8),
        np.asfortranarray(made.array),
    ):
        with open(tmp_path / record["files"][0]["name"], "wb") as file:
            np.save(file, array) if name == "npy" else np.savez(file, array)
        with pytest.raises(ValueError, match=f"to hold {name} of uint8 .*, got another header"):
            FORMATS[name].read(tmp_path, record)


def test_latents_of_another_type_are_refused(tmp_path: Path) -> None:
    made = block("latents", range(3))
    record = commit(tmp_path, "safetensors", made)
    path = tmp_path / record["files"][0]["name"]
    for wrong in (torch.tensor(made.array.view(np.int32)), torch.tensor(made.array).double()):
        safetensors.torch.save_file({"latents": wrong}, path)
        with pytest.raises(
            ValueError, match=r"to hold safetensors of float32 \[3, 4, 2, 3\], got (int32|float64) "
        ):
            FORMATS["safetensors"].read(tmp_path, record)
    safetensors.torch.save_file({"samples": torch.tensor(made.array)}, path)
    with pytest.raises(
        ValueError, match=r"to hold safetensors of float32 .*, got the tensors \['samples'\]"
    ):
        FORMATS["safetensors"].read(tmp_path, record)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["npy", "npz", "png", "webdataset"])
def test_another_number_of_samples_is_refused(name: str, count: int, tmp_path: Path) -> None:
    record = commit(tmp_path, name, block("grey", range(3)))
    other = commit(tmp_path, name, block("grey", range(count)))
    with pytest.raises(ValueError, match="^fastdiff.jobs: expected "):
        FORMATS[name].read(tmp_path, {**record, "files": other["files"]})


@pytest.mark.parametrize("name", ["png", "webdataset"])
def test_pictures_of_another_size_are_refused(name: str, tmp_path: Path) -> None:
    """Portrait for landscape has as many bytes; a small file may hold a huge picture."""
    record = commit(tmp_path, name, block("rgb", range(2)))
    for shape, said in (
        ((6, 4, 3), "RGB of 4 x 6 pixels"),
        ((3000, 3000, 1), "L of 3000 x 3000 pixels"),
    ):
        other = Block(0, 0, 11, np.zeros((2, *shape), dtype=np.uint8), None)
        files = commit(tmp_path, name, other)["files"]
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"got {said}"):
            FORMATS[name].read(tmp_path, {**record, "files": files})
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        tracemalloc.stop()


def test_a_small_archive_does_not_become_a_huge_array(tmp_path: Path) -> None:
    record = commit(tmp_path, "npz", block("grey", range(2)))
    head = list(FORMATS["npy"].files(block("grey", range(2)), {}))[0][1]
    with zipfile.ZipFile(
        tmp_path / record["files"][0]["name"], "w", zipfile.ZIP_DEFLATED
    ) as archive:
        archive.writestr("arr_0.npy", head + bytes(30_000_000))
    tracemalloc.start()
    with pytest.raises(ValueError, match="to hold npz of uint8"):
        FORMATS["npz"].read(tmp_path, record)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_records_name_files_inside_the_dataset_only(tmp_path: Path) -> None:
    record = commit(tmp_path / "set", "npy", block("grey", range(2)))
    content = (tmp_path / "set" / record["files"][0]["name"]).read_bytes()
    (tmp_path / "other.npy").write_bytes(content)
    for name in ("../other.npy", str(tmp_path / "other.npy"), "shards/../../other.npy"):
        record["files"][0]["name"] = name
        with pytest.raises(ValueError, match="expected a file inside"):
            FORMATS["npy"].read(tmp_path / "set", record)


# -- records


def test_records_come_in_the_order_of_their_units(tmp_path: Path) -> None:
    units = [0, 9, 10, 999, 1000, 1001, 12_345, 99_999_999, 100_000_000, 1_234_567_890]
    for unit in np.random.default_rng(1).permutation(units).tolist():
        commit(tmp_path, "npy", block("grey", range(2), unit=unit))
    assert [r["unit"] for r in records(tmp_path)] == units
    assert [u for u, _ in unit_files(tmp_path)] == units
    assert record_name(12_345) == "units/00012/000012345.json"
    assert all(path == tmp_path / record_name(unit) for unit, path in unit_files(tmp_path))


def test_other_entries_are_passed_over(tmp_path: Path) -> None:
    assert list(records(tmp_path)) == []
    commit(tmp_path, "npy", block("grey", range(2), unit=3))
    for name in (
        "units/.nfs0001",
        "units/00000/.000000004.json.77.tmp",
        "units/00000/000000004.json.tmp",
        "units/00000/4.json",
        "units/notes/000000005.json",
        "units/00001/000000006.json",
        "units/00002",
        "units/00000/lost+found/x",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [r["unit"] for r in records(tmp_path)] == [3]


WRONG: list[tuple[Any, str]] = [
    (b"", "no JSON object"),
    (b'{"unit": 3', "no JSON object"),
    (b"[1]", "no JSON object"),
    (b"\xff\xfe", "no JSON object"),
    ({"unit": 4}, "the one of unit 4"),
    ({"first": "0"}, "no whole numbers as first"),
    ({"seed": True}, "no whole numbers as seed"),
    ({"stop": 3}, "shape [2, 5, 4, 1] for the ids 0 to 2"),
    ({"shape": []}, "shape [] for the ids 0 to 1"),
    ({"shape": [2, 0, 4, 1]}, "shape [2, 0, 4, 1] for"),
    ({"dtype": "int32"}, "dtype 'int32'"),
    ({"labels": [1]}, "labels other than 2 whole numbers"),
    ({"labels": [1, "2"]}, "labels other than 2 whole numbers"),
    ({"pixels": "abc"}, "no hash of its pixels"),
    ({"files": []}, "no list of its files"),
    ({"files": [{"name": "x"}]}, "no list of its files"),
    ({"files": None}, "no list of its files"),
]


@pytest.mark.parametrize("change, message", WRONG)
def test_a_damaged_record_is_named(change: Any, message: str, tmp_path: Path) -> None:
    record = commit(tmp_path, "npy", block("grey", range(2), unit=3))
    path = tmp_path / record_name(3)
    assert read_record(path, 3) == record
    path.write_bytes(
        change if isinstance(change, bytes) else json.dumps({**record, **change}).encode()
    )
    with pytest.raises(ValueError) as damaged:
        list(records(tmp_path))
    text = str(damaged.value)
    assert text.startswith(f"fastdiff.jobs: expected the record of unit 3 in {path}, got {message}")
    assert text.endswith(f"Run `fastdiff resume {tmp_path}`.")


def test_a_record_that_goes_meanwhile_is_passed_over(tmp_path: Path) -> None:
    for unit in range(3):
        commit(tmp_path, "npy", block("grey", range(2), unit=unit))
    stream = records(tmp_path)
    assert next(stream)["unit"] == 0
    (tmp_path / record_name(1)).unlink()
    assert [r["unit"] for r in stream] == [2]


@pytest.mark.parametrize("kind", SHAPES)
def test_the_encoder_is_named_where_bytes_depend_on_it(kind: str) -> None:
    shape, dtype = SHAPES[kind], "float32" if kind == "latents" else "uint8"
    for name in ("npy", "npz", "safetensors"):
        assert FORMATS[name].encoder(shape, dtype) is None
    said = FORMATS["webdataset"].encoder(shape, dtype)
    assert (said is None) == (kind == "latents")
    if said is not None:
        assert (
            said == FORMATS["png"].encoder(shape, dtype)
            and said.startswith("Pillow ")
            and "zlib" in said
        )
