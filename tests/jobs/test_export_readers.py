"""Exports of single formats, read like the tools that use them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
from dataset_maker import SPEC_HASH, classes, dataset, samples
from export_readers import adm_batches, edm_dataset
from PIL import Image

from fastdiff.jobs.export import export
from fastdiff.jobs.records import record_name


def origin(run: Path) -> dict[str, str]:
    """Returns what files say about a run: its recipe is the spec without ids and conditions."""
    spec = json.loads((run / "spec.json").read_text())
    recipe = {k: v for k, v in spec.items() if k not in ("hash", "ids", "conditions")}
    return {
        "recipe": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
        "plan": "91a7" * 16,
        "fastdiff": "0.1.0",
    }


def test_adm_streams_the_npz(tmp_path: Path) -> None:
    """arr_0 uint8 [N, H, W, C], arr_1 int64 [N], as in scripts/image_sample.py and evaluator.py."""
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
    """With a lower limit, the header of the member is a zip64 one from the start."""
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
            **origin(run),
        }
        assert image.text == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "per_shard, sizes", [(10, [10, 10, 6]), (13, [13, 13]), (1000, [26]), (26, [26]), (25, [25, 1])]
)
def test_archives_hold_per_shard_samples(per_shard: int, sizes: list[int], tmp_path: Path) -> None:
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
    assert [r[2] for r in rows][0] == {
        "sample_id": 5,
        "seed": 11,
        "class": 6,
        **origin(tmp_path / "run"),
    }


def test_safetensors_says_where_it_comes_from(tmp_path: Path) -> None:
    out = tmp_path / "set.safetensors"
    export(dataset(tmp_path / "run", "latents", format="safetensors"), "safetensors", out)
    with safetensors.safe_open(out, framework="pt") as file:
        assert file.metadata() == {**origin(tmp_path / "run"), "seed": "11"} and sorted(
            file.keys()
        ) == [
            "labels",
            "latents",
        ]


def test_folders_say_what_they_are(tmp_path: Path) -> None:
    export(dataset(tmp_path / "run"), "png", tmp_path / "set", ids=(6, 20))
    said = json.loads((tmp_path / "set" / "export.json").read_text())
    assert said == {"format": "png", "ids": [6, 20], "samples": 15, "spec": SPEC_HASH} | origin(
        tmp_path / "run"
    )


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
