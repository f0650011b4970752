"""Sheets of pictures: rows by class, a captioned square for many classes, fewer large pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import Schedule, images
from fastdiff.cli import main
from fastdiff.jobs import Folder, Job, Model, run
from fastdiff.jobs.preview import MOST, PIXELS, write_grid


def pictures(n: int, size: int) -> np.ndarray:
    """Pictures [n, size, size, 1] of one grey each, another for each of them."""
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, size, size, 1))


def test_few_classes_have_a_row_each() -> None:
    labels = np.arange(160) % 10
    sheet = images.grid(pictures(160, 28), labels, [str(k) for k in range(10)])
    assert sheet.height == 10 * 60
    left = sheet.width - 16 * 60
    shades = np.asarray(sheet.convert("L"))
    for k in range(160):
        row, column = k % 10, k // 10
        tile = shades[
            row * 60 + 2 : row * 60 + 58, left + column * 60 + 2 : left + column * 60 + 58
        ]
        assert (tile == k).all()


@pytest.mark.parametrize("classes", [33, 100, 1000])
def test_many_classes_fill_a_square(classes: int) -> None:
    n = 256
    labels = np.random.default_rng(0).integers(0, classes, n)
    names = [
        ("a name that is far too long for a picture " if k % 2 else "") + str(k)
        for k in range(classes)
    ]
    sheet = images.grid(pictures(n, 28), labels, names)
    assert sheet.size == (16 * 60, 16 * 74)
    shades = np.asarray(sheet.convert("L"))
    captions = []
    for place, index in enumerate(np.argsort(labels, kind="stable")):
        x, y = place % 16 * 60, place // 16 * 74
        assert (shades[y + 2 : y + 58, x + 2 : x + 58] == index).all(), "over its picture"
        assert (shades[y : y + 74, [x, x + 1, x + 58, x + 59]] == 255).all(), (
            "white at the left and right"
        )
        captions.append(shades[y + 58 : y + 74, x : x + 60])
    assert all((caption < 128).any() for caption in captions)
    ordered = np.sort(labels)
    for a, b, first, second in zip(captions, captions[1:], ordered, ordered[1:], strict=False):
        if first == second:
            assert np.array_equal(a, b)
        elif first % 2 == second % 2 == 0:
            assert not np.array_equal(a, b)


class Zero(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def large() -> Model:
    """A model of large pictures and many classes."""
    settings = {"solver": "ddim", "clip_range": 1.0}
    return Model(
        Zero(), (1, 1024, 1024), schedule=Schedule.linear(100), settings=settings, num_classes=1000
    )


def test_large_pictures_are_fewer(tmp_path: Path) -> None:
    job = Job.plan(f"{__name__}:large", ids=(0, 5), unit=2, steps=1, threads=1)
    run(job, tmp_path / "run")
    assert write_grid(Folder(tmp_path / "run"), job.model.classes)
    with Image.open(tmp_path / "run" / "grid.png") as sheet:
        side = 1024 + 2
        shown = PIXELS // 1024**2
        assert shown == 4 < MOST and sheet.height == shown * side, "a row of each class"
    assert math.prod(sheet.size) < 1.1 * PIXELS


def test_more_samples_than_asked_for_are_announced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "--steps", "1", "--out"]
    assert main([*command, str(tmp_path / "a"), "--ids", "5", "--unit", "8"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("computing 8 samples for 1: units are whole blocks of 8 ids")
    assert "a smaller --unit computes fewer" in said[0]
    assert main([*command, str(tmp_path / "a"), "--ids", "5", "--unit", "8"]) == 0
    assert main([*command, str(tmp_path / "b"), "--ids", "8-15", "--unit", "8"]) == 0
    assert "computing" not in capsys.readouterr().out
