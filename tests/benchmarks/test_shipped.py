"""The README's section about the shipped weights: of these weights, and made by its script."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import quality, shipped
from benchmarks.quality import GOALS, RESULT
from fastdiff import Sampler
from fastdiff.data import load_fashion_mnist
from fastdiff.images import to_uint8
from fastdiff.metrics.extractors import fashion_network
from fastdiff.pretrained import locate, read_config

REPORT = json.loads(RESULT.read_text(encoding="utf-8"))
CONFIG = read_config(shipped.MODEL)
CLASSES = CONFIG["data"]["classes"]
# The networks of other processors round otherwise; twenty-five guided steps make levels of it.
LEVELS = 3.0
PARTS = {"train": slice(0, 300), "test": slice(300, 600)}  # of the bundled pictures


def test_the_section_is_made_from_the_record() -> None:
    """`make report` writes it."""
    text = shipped.README.read_text(encoding="utf-8")
    written = text.split(shipped.BEGIN)[1].split(shipped.END)[0]
    assert written == f"\n{shipped.section(REPORT, CONFIG['training'])}\n"
    for name in GOALS:
        assert shipped.WHAT[name] in written


def test_the_record_is_of_these_weights_and_this_sampler() -> None:
    assert REPORT["weights_sha256"] == shipped.digest(locate(shipped.MODEL) / "model.safetensors")
    assert REPORT["sampler"] == CONFIG["sampler"] | {"steps": REPORT["sampler"]["steps"]}
    sampler = Sampler.from_pretrained(shipped.MODEL, steps=REPORT["sampler"]["steps"])
    assert REPORT["plan"] == sampler.plan.hash
    assert {k: f"{sign} {goal:g}" for k, (sign, goal) in GOALS.items()} == REPORT["goals"]
    assert REPORT["missed"] == quality.missed({name: REPORT[name] for name in GOALS})
    assert REPORT["samples"] >= 10_000 and len(REPORT["classifiers"]) >= 2


def test_the_loss_is_that_of_the_runs() -> None:
    path = locate(shipped.MODEL) / "loss.csv"
    with Image.open(shipped.FIGURES / "loss.png") as picture:
        assert picture.info["Source"] == shipped.digest(path)
        assert 700 < picture.width < 900
    steps, values = shipped.losses(path)
    assert (np.diff(steps) > 0).all() and np.isfinite(values).all()
    assert steps[-1] == sum(run["steps"] for run in CONFIG["training"]["runs"])


def drawn(first: int, n: int, seed: int = 0) -> np.ndarray:
    """Samples of the shipped weights as the command line draws them: uint8 [n, 28, 28]."""
    sampler = Sampler.from_pretrained(shipped.MODEL, steps=25)
    y = torch.arange(first, first + n) % len(CLASSES)
    conditions = {"cond": {"y": y}, "uncond": {"y": torch.full_like(y, len(CLASSES))}}
    shape = (n, *CONFIG["data"]["shape"])
    x = sampler.sample(shape, seed=seed, sample_ids=list(range(first, first + n)), **conditions)
    return to_uint8(x)[:, 0].numpy()


def tile(picture: Image.Image, row: int, column: int, rows: int, columns: int) -> np.ndarray:
    """One sample [28, 28] of a sheet of `images.grid`, where pictures of 28 are drawn twice as
    large in cells of 60, right of the names.
    """
    assert picture.height == 60 * rows
    left, top = picture.width - 60 * columns + 60 * column + 2, 60 * row + 2
    return np.asarray(picture.convert("L"))[top : top + 56 : 2, left : left + 56 : 2].astype(float)


@pytest.mark.parametrize(
    ("file", "rows", "per_class"),
    [(shipped.FIGURES / "samples.png", 10, 1), (shipped.ROOT / "docs" / "demo.png", 20, 2)],
    ids=["samples", "demo"],
)
def test_the_pictures_show_samples_of_these_weights(file: Path, rows: int, per_class: int) -> None:
    """A row of each class begins with samples 0 to 9 of seed 0."""
    samples, others = drawn(0, 10), drawn(0, 10, seed=1)
    with Image.open(file) as picture:
        tiles = np.stack([tile(picture, per_class * k, 0, rows, 16) for k in range(10)])
    assert np.abs(tiles - samples).mean((1, 2)).max() < LEVELS
    assert np.abs(tiles - others).mean() > 5 * LEVELS  # another seed is far away


def test_the_script_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command on few images, with classifiers that know nothing: it refuses them, and
    with the accuracy that they have it writes the record; the second run draws no sample anew.
    """
    test = load_fashion_mnist("test")
    few = {
        split: test._replace(images=test.images[part], labels=test.labels[part])
        for split, part in PARTS.items()
    }
    monkeypatch.setattr(quality, "load_fashion_mnist", lambda split, root: few[split])
    for seed in quality.SEEDS:
        torch.manual_seed(seed)
        network = fashion_network().eval()
        path = tmp_path / f"fashion-mnist-classifier-{seed}.safetensors"
        quality.save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    out = tmp_path / "quality.json"
    command = ["--cache", str(tmp_path), "--samples", "20", "--steps", "3", "--out", str(out)]
    assert quality.main(command) == 1 and not out.exists()
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("samples-*.npy")}
    assert len(kept) == 1
    monkeypatch.setattr(quality, "ENOUGH_ACCURACY", 0.0)
    assert quality.main(command) == 1
    assert kept == {p: p.stat().st_mtime_ns for p in tmp_path.glob("samples-*.npy")}
    report = json.loads(out.read_text())
    assert report["samples"] == 20 and "agreement" in report["missed"]
    assert report["diversity"] > 0.2 and report["frechet"] > 0
