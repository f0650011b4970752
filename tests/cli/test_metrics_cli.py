"""`fastdiff metrics`: every kind of set gives the same numbers for the same pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastdiff.cli import main
from fastdiff.data import load

pytestmark = pytest.mark.cpu_only
IMAGES = load("fashion-mnist", "test").images  # uint8 [1000, 1, 28, 28]
PICTURES = IMAGES[:, 0, :, :, None].numpy()  # NHWC
MINE = """
import torch

def features():
    return lambda x: x.float().flatten(1)[:, ::97] / 255

def exits():
    raise SystemExit(0)
"""


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["metrics", *arguments, "--threads", "1", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in report.items() if k not in ("a", "b")}


def test_every_kind_of_set_gives_the_same_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", PICTURES)
    np.savez(tmp_path / "a.npz", PICTURES, np.arange(len(PICTURES)))
    np.savez_compressed(tmp_path / "small.npz", arr_0=PICTURES)
    np.savez(tmp_path / "fortran.npz", arr_0=np.asfortranarray(PICTURES))
    np.save(tmp_path / "range.npy", IMAGES.numpy() / np.float32(127.5) - np.float32(1))
    b = str(tmp_path / "b.npy")
    np.save(b, PICTURES[::-1] // 2)
    expected = numbers(measured(capsys, "fashion-mnist:test", b))
    assert expected["title"] == "FD-fashion" and expected["dimensions"] == 128
    assert expected["frechet"] > 10 and expected["kernel_subsets"] == 4
    for name in ("a.npy", "a.npz", "small.npz", "fortran.npz"):
        assert numbers(measured(capsys, str(tmp_path / name), b)) == expected, name
    floating = numbers(measured(capsys, str(tmp_path / "range.npy"), b))
    assert floating["frechet"] == pytest.approx(expected["frechet"], rel=1e-4)


def test_pictures_in_files_are_those_of_the_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder and a zip of PNG files, exported by EDM's and everyone's layout."""
    folder, b = tmp_path / "pictures", str(tmp_path / "b.npy")
    folder.mkdir()
    np.save(tmp_path / "a.npy", PICTURES[:60])
    np.save(b, PICTURES[60:200] // 2)
    for i, picture in enumerate(PICTURES[:60]):
        Image.fromarray(picture[..., 0]).save(folder / f"{i:05d}.png")
    shutil.make_archive(str(tmp_path / "pictures"), "zip", folder)
    expected = numbers(measured(capsys, str(tmp_path / "a.npy"), b))
    for a in (str(folder), str(tmp_path / "pictures.zip")):
        report = measured(capsys, a, b)
        assert numbers(report) == expected and report["a"]["samples"] == 60
    smaller = measured(
        capsys, str(folder), b, "--size", "14", "--features", "raw", "--channels", "1"
    )
    assert smaller["dimensions"] == 14 * 14
    (folder / "00007.png").write_bytes(b"no picture")
    assert main(["metrics", str(folder), b]) == 1
    assert "00007.png" in capsys.readouterr().err
    report = measured(capsys, str(folder), b, "--skip-broken")
    assert report["a"]["samples"] == 59


def test_a_run_and_its_export_give_the_same_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, export = str(tmp_path / "run"), str(tmp_path / "run.npz")
    few = ("--num", "12", "--unit", "5", "--steps", "2", "--threads", "1")
    assert main(["sample", "--out", run, *few]) == 0
    assert main(["export", run, "--format", "npz", "--out", export]) == 0
    reports = [measured(capsys, a, "fashion-mnist:test") for a in (run, export)]
    assert numbers(reports[0]) == numbers(reports[1])
    assert reports[0]["a"] == {"name": run, "samples": 12}
    (shard,) = (Path(run) / "shards").rglob("*1.*")
    shard.write_bytes(shard.read_bytes()[:-3])
    assert main(["metrics", run, "fashion-mnist:test"]) == 4
    assert "fastdiff resume" in capsys.readouterr().err


def test_statistics_are_stored_and_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, stats = (str(tmp_path / name) for name in ("a.npy", "b.npy", "b.npz"))
    np.save(a, PICTURES[:400])
    np.save(b, PICTURES[400:])
    assert main(["metrics", b, "--stats", stats, "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("600 samples of npy b.npy all (600 pictures of 28 by 28")
    assert captured.out.endswith(f") in {stats}\n")
    assert captured.err.splitlines()[-1].startswith("fastdiff metrics: expected 10,000 samples")
    with np.load(stats) as file:
        assert file["mu"].shape == (128,) and file["sigma"].shape == (128, 128) and file["n"] == 600
    found, direct = measured(capsys, a, stats), measured(capsys, a, b)
    assert found["frechet"] == pytest.approx(direct["frechet"], rel=1e-9)
    assert "kernel" not in found and found["b"] == {"name": stats, "samples": 600}
    assert main(["metrics", stats, stats]) == 0
    assert "need the pictures of both sets" in capsys.readouterr().out
    for arguments, status, reason in (
        ((a, stats, "--features", "raw"), 1, "statistics of the features 'raw' in"),
        ((stats, "--stats", b), 2, "expected pictures in"),
        ((a,), 2, "expected two sets to compare"),
        ((a, b, "--stats", stats), 2, "expected two sets to compare"),
    ):
        assert main(["metrics", *arguments]) == status
        assert reason in capsys.readouterr().err


def test_a_function_gives_the_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_features.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    report = measured(
        capsys, "fashion-mnist:test", "fashion-mnist:test", "--features", "my_features:features"
    )
    assert report["features"] == "my_features:features" and report["dimensions"] == 9
    assert report["frechet"] == pytest.approx(0, abs=1e-6) and report["precision"] == 1
    for name, reason in (
        ("my_features:exits", "got an exit with the status 0"),
        ("my_features:none", "no such name"),
        ("no_module:none", "expected a module 'no_module' for the features"),
        ("nothing", "expected --features in"),
    ):
        assert main(["metrics", "fashion-mnist:test", "fashion-mnist", "--features", name]) in (
            1,
            2,
        )
        assert reason in capsys.readouterr().err


def test_inception_is_fid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Tiny(torch.nn.Module):
        def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
            return img.float().mean((2, 3)) if return_features else img.float()

    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(Tiny()).save(str(path))
    arguments = ("fashion-mnist:test", "fashion-mnist:test", "--inception", str(path))
    report = measured(capsys, *arguments)
    assert (report["title"], report["features"], report["dimensions"]) == ("FID", "inception", 3)
    assert main(["metrics", *arguments, "--keep", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[:3] in ("FID", "KID")] == ["FID", "KID"]
    assert "of 50 and 50 samples" in lines[-1]


def test_points_of_the_plane_are_compared_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--features", "raw", "--keep", "2000")
    same = measured(capsys, "moons:test", "moons", *few)
    other = measured(capsys, "swiss-roll", "moons", *few)
    assert same["frechet"] < 0.001 < 0.05 < other["frechet"]
    assert same["precision"] > 0.9 > other["precision"]


BAD = {
    "nothing": ((), 2, "expected a folder, a file or a data set in"),
    "empty": (np.zeros((0, 4, 4, 3), np.uint8), 2, "expected examples in"),
    "colour": (np.zeros((9, 3, 28, 28), np.uint8), 1, "expected pictures of shape [1, 28, 28]"),
    "int64": (np.zeros((9, 28, 28, 1), np.int64), 2, "expected pictures as uint8 [N, H, W, C]"),
    "large": (np.zeros((9, 32, 32, 1), np.uint8), 1, "expected pictures of shape [1, 28, 28]"),
    "one": (np.zeros((1, 28, 28, 1), np.uint8), 1, "expected at least 2 samples"),
}


@pytest.mark.parametrize("array, status, reason", BAD.values(), ids=BAD)
@pytest.mark.parametrize("end", ["npy", "npz"])
def test_other_content_is_refused_in_a_sentence(
    array: Any,
    status: int,
    reason: str,
    end: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / f"x.{end}"
    if len(array) or isinstance(array, np.ndarray):
        np.save(path, array) if end == "npy" else np.savez(path, array)
    assert main(["metrics", str(path), "fashion-mnist:test"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastdiff metrics: ") and reason in line and line.endswith(".")


@pytest.mark.parametrize("end", ["npy", "npz"])
@pytest.mark.parametrize("size", [0, 50, 1000])
def test_damaged_files_are_refused_in_a_sentence(
    end: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"x.{end}"
    np.save(path, PICTURES[:9]) if end == "npy" else np.savez(path, PICTURES[:9])
    path.write_bytes(path.read_bytes()[:size])
    assert main(["metrics", str(path), "fashion-mnist:test"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"expected an {end} file in" in line or "got unreadable content" in line


@pytest.mark.parametrize(
    "flags",
    [("--k", "0"), ("--keep", "0"), ("--batch-size", "0"), ("--seed", "-1"), ("--threads", "0")],
)
def test_bad_numbers_are_wrong_arguments(
    flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["metrics", "fashion-mnist:test", "fashion-mnist", *flags]) == 2
    assert f"expected {flags[0]}" in capsys.readouterr().err
