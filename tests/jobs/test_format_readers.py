"""Each format alone: other readers of its files as oracles, its layout and its refusals."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from dataset_maker import DTYPES, SHAPES, SPEC_HASH, block, classes, commit, samples
from export_readers import edm_dataset
from PIL import Image

from fastdiff.jobs.formats import FORMATS, Block
from fastdiff.jobs.formats.webdataset import member

PROVENANCE = {"recipe": SPEC_HASH, "plan": "91a7" * 16, "fastdiff": "0.1.0"}


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
    """Members of a sample follow each other; owner, mode and date are fixed."""
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


@pytest.mark.parametrize("kind", ["grey", "rgb"])
def test_edm_walks_the_dataset_itself(kind: str, tmp_path: Path) -> None:
    """Records next to the pictures are ignored, and names sort as ids do."""
    for unit, ids in ((2, range(1990, 2005)), (0, range(995, 1001)), (1, range(1001, 1003))):
        commit(tmp_path, "png", block(kind, ids, unit=unit))
    (tmp_path / "spec.json").write_text("{}")
    names, pictures, _ = edm_dataset(tmp_path)
    ids = [*range(995, 1003), *range(1990, 2005)]
    assert [int(Path(name).stem) for name in names] == ids
    for i, picture in zip(ids, pictures, strict=True):
        assert np.array_equal(picture, samples(kind, range(i, i + 1))[0])


def forged(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record with the sizes that its files have now."""
    files = [file | {"bytes": (folder / file["name"]).stat().st_size} for file in record["files"]]
    return record | {"files": files}


@pytest.mark.parametrize("name", ["npy", "npz"])
def test_another_header_is_refused(name: str, tmp_path: Path) -> None:
    """The same bytes under another shape or type are other samples for every tool."""
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
            FORMATS[name].read(tmp_path, forged(tmp_path, record))


def test_latents_of_another_type_are_refused(tmp_path: Path) -> None:
    made = block("latents", range(3))
    record = commit(tmp_path, "safetensors", made)
    path = tmp_path / record["files"][0]["name"]
    for wrong in (torch.tensor(made.array.view(np.int32)), torch.tensor(made.array).double()):
        safetensors.torch.save_file({"latents": wrong}, path)
        with pytest.raises(
            ValueError, match=r"to hold safetensors of float32 \[3, 4, 2, 3\], got (int32|float64) "
        ):
            FORMATS["safetensors"].read(tmp_path, forged(tmp_path, record))
    safetensors.torch.save_file({"samples": torch.tensor(made.array)}, path)
    with pytest.raises(
        ValueError, match=r"to hold safetensors of float32 .*, got the tensors \['samples'\]"
    ):
        FORMATS["safetensors"].read(tmp_path, forged(tmp_path, record))


@pytest.mark.parametrize("name", ["png", "webdataset"])
def test_pictures_of_another_size_are_refused(name: str, tmp_path: Path) -> None:
    """Portrait and landscape have equal bytes; a small file may hold a huge picture."""
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
        FORMATS["npz"].read(tmp_path, forged(tmp_path, record))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", SHAPES)
def test_the_encoder_of_pictures_is_pillow(kind: str) -> None:
    shape, dtype = SHAPES[kind], DTYPES[kind]
    for name in ("npy", "npz", "safetensors"):
        assert FORMATS[name].encoder(shape, dtype) is None
    encoder = FORMATS["webdataset"].encoder(shape, dtype)
    assert (encoder is None) == (kind == "latents")
    if encoder is not None:
        assert encoder == FORMATS["png"].encoder(shape, dtype)
        assert encoder.startswith("Pillow ") and "zlib" in encoder
