"""All formats: bytes depend on the samples alone; reading back; refusals and damage."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from dataset_maker import DTYPES, SHAPES, SPEC_HASH, block, commit, kinds_of

from fastdiff.jobs.formats import FORMATS, Block, pixels_sha256

PROVENANCE = {"spec": SPEC_HASH, "plan": "91a7" * 16, "fastdiff": "0.1.0"}
CASES = [(name, kind) for name in FORMATS for kind in kinds_of(name)]
# SHA-256 of the files of formats whose bytes depend on no library (`encoder` is None): they stay
# the same in every version of fastdiff and of anything else
PINNED = {
    "npy grey": "090f396054c4be47e59ac2f441ca35823b261b92215b938033573eda82c2e3fa",
    "npy latents": "3c9e299737a7a48171884a286e315af40e7c5ea1c8f04e29812ac0dfd07276f8",
    "npz grey": "bec6776bf00f236d4d3c8452abaa2236b09b3ac543a405c4a34b9e1f78c5f336",
    "npz latents": "6205f8a60ace9fd300895cfa808c34c7cabd5da83e2df65e6f6cbdbb6aa82c6e",
    "webdataset latents": "c3f6f61f95cba078e00314ee11310d842970b8c2b2c8b5f8b3063f7bf21472c2",
    "safetensors latents": "0cb2295d07225f895eb87ed2aad2ba59bfd61bd5aa2a124e47ced916b0ce8264",
}


def hashes() -> dict[str, str]:
    """Returns the SHA-256 over the names and contents of all files, for each format and kind."""
    found = {}
    for name, kind in CASES:
        total = hashlib.sha256()
        for path, content in FORMATS[name].files(
            block(kind, range(998, 1003), unit=1234567), PROVENANCE
        ):
            total.update(f"{path} {len(content)} ".encode() + content)
        found[f"{name} {kind}"] = total.hexdigest()
    return found


def test_bytes_depend_on_the_samples_alone() -> None:
    """A process with another hash seed, locale, umask, time zone and home writes the same bytes."""
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
        "USER": "another",
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


def test_formats_without_an_encoder_are_pinned() -> None:
    fixed = {
        f"{name} {kind}"
        for name, kind in CASES
        if kind in ("grey", "latents") and FORMATS[name].encoder(SHAPES[kind], DTYPES[kind]) is None
    }
    assert PINNED.keys() == fixed, "add a line to PINNED from hashes() above"


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
    for name in (name for name, fmt in FORMATS.items() if fmt.holds((8,), "float32")):
        got = FORMATS[name].read(tmp_path, commit(tmp_path, name, made))
        assert np.array_equal(got.view(np.uint32), bits)


@pytest.mark.parametrize("shape", [(3, 2), (2, 2), (7,), (1, 2, 2, 1)])
def test_data_that_is_no_picture_keeps_its_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    ids = range(64, 67)
    for name, fmt in FORMATS.items():
        for kind in ("latents", "grey"):
            if fmt.holds(shape, DTYPES[kind]):
                made = block(kind, ids, shape=shape)
                assert np.array_equal(fmt.read(tmp_path, commit(tmp_path, name, made)), made.array)


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
    good = block(kinds_of(name)[-1], range(3))
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
    """Truncates a file and flips single bits, all of them in small files.

    The samples are equal, or their hash differs, or a ValueError names the file.
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


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("name", FORMATS)
def test_another_number_of_samples_is_refused(name: str, count: int, tmp_path: Path) -> None:
    kind = kinds_of(name)[0]
    record = commit(tmp_path, name, block(kind, range(3)))
    other = commit(tmp_path, name, block(kind, range(count)))
    with pytest.raises(ValueError, match="^fastdiff.jobs: expected "):
        FORMATS[name].read(tmp_path, {**record, "files": other["files"]})


def test_records_name_files_inside_the_dataset_only(tmp_path: Path) -> None:
    record = commit(tmp_path / "set", "npy", block("grey", range(2)))
    content = (tmp_path / "set" / record["files"][0]["name"]).read_bytes()
    (tmp_path / "other.npy").write_bytes(content)
    for name in ("../other.npy", str(tmp_path / "other.npy"), "shards/../../other.npy"):
        record["files"][0]["name"] = name
        with pytest.raises(ValueError, match="expected a file inside"):
            FORMATS["npy"].read(tmp_path / "set", record)


@pytest.mark.parametrize("name, kind", CASES)
def test_files_of_units_are_apart_and_belong_to_the_dataset(name: str, kind: str) -> None:
    """Two units share no file, and the names are those that `fastdiff verify` knows."""
    names = [
        [n for n, _ in FORMATS[name].files(block(kind, range(8 * u, 8 * u + 8), unit=u), {})]
        for u in range(3)
    ]
    flat = [n for unit in names for n in unit]
    assert len(set(flat)) == len(flat) and all(names)
    for path in map(PurePosixPath, flat):
        assert not path.is_absolute() and ".." not in path.parts and len(path.parts) > 1
        assert path.parts[0] == "shards" or FORMATS[name].owns(path.parts[0])


def test_the_documentation_lists_the_formats() -> None:
    text = (Path(__file__).parents[2] / "docs/jobs.md").read_text()
    rows = [line.split("|") for line in text.partition("| `--format` |")[2].splitlines()]
    listed = {row[1].split()[0].strip("`"): row[3] for row in rows[2:] if len(row) > 4}
    assert list(listed) == list(FORMATS), "docs/jobs.md has a row for each of FORMATS, in order"
    for name, fmt in FORMATS.items():
        assert ("one file" in listed[name]) == (not fmt.folder), name


@pytest.mark.parametrize("name", FORMATS)
def test_a_record_of_another_number_of_files_is_refused(name: str, tmp_path: Path) -> None:
    record = commit(tmp_path, name, block(kinds_of(name)[0], range(2), unit=7))
    count = len(record["files"])
    for files in ([], record["files"] * 2):
        expected = f"expected {count} files? in the record of unit 7, got {len(files)}"
        with pytest.raises(ValueError, match=f"^fastdiff.jobs: {expected}"):
            FORMATS[name].read(tmp_path, {**record, "files": files})
