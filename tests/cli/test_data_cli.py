"""Training and evaluation on the user's own data, through the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.cli import main
from fastdiff.data import load
from fastdiff.pretrained import load_system
from fastdiff.pretrained.files import read_json

pytestmark = pytest.mark.cpu_only
FEW = ("--steps", "3", "--batch-size", "4", "--threads", "1", "--widths", "8,8")
OWN = ("--size", "8", "--flip", "--test-share", "0.3")


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of 24 colour pictures of two classes in the current directory; its relative path."""
    draw = np.random.default_rng(0)
    for i in range(24):
        file = tmp_path / "pets" / ("cat" if i % 2 else "dog") / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        levels = draw.integers(0, 256, (12, 10, 3)).astype(np.uint8)
        Image.fromarray(levels).save(file)
    monkeypatch.chdir(tmp_path)
    return "pets"


def tensors(run: str) -> dict[str, Any]:
    system: Any = load_system(run)
    return dict(system.state_dict())


def test_train_resume_and_eval_on_a_folder(
    pets: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", "--data", pets, *OWN, *FEW, "--out", "whole"]) == 0
    out = capsys.readouterr().out
    data = load(pets, size=8, flip=True, test_share=0.3)
    assert f"{data.examples} examples" in out and data.name in out
    config = read_json(Path("whole/config.json"))
    assert config["data"]["name"] == data.name and config["data"]["classes"] == ["cat", "dog"]
    assert config["data"]["origin"] == data.origin
    assert config["data"]["origin"]["options"] == {"size": 8, "flip": True, "test_share": 0.3}
    stop = ["train", "--data", pets, *OWN, *FEW, "--out", "parts", "--minutes", "1e-9"]
    assert main(stop) == 0
    for _ in range(4):
        assert (
            main(["train", "--out", "parts", "--resume", "--minutes", "1e-9", "--threads", "1"])
            == 0
        )
    whole, parts = tensors("whole"), tensors("parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    # without --data, from anywhere: the test split of the training, without flips
    monkeypatch.chdir(Path("whole").absolute())
    run = str(Path("..").absolute() / "whole")
    capsys.readouterr()
    assert main(["eval", run, "--times", "2", "--json", "--threads", "1"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    test = load(f"../{pets}", "test", size=8, test_share=0.3)
    assert result["data"] == test.name and result["images"] == test.examples
    assert main(["eval", run, "--times", "2", "--data", f"../{pets}", "--size", "8"]) == 2
    assert "Make a folder test" in capsys.readouterr().err
    assert main(["eval", run, "--times", "2", "--test-share", "0.5"]) == 2
    assert "the model has seen some of these examples" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_other_data(
    pets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--data", pets, *OWN, *FEW, "--out", "run", "--minutes", "1e-9"]
    again = ["train", "--out", "run", "--resume", "--minutes", "1e-9", "--threads", "1"]
    assert main(train) == 0
    assert main([*again, "--size", "16"]) == 2
    assert "expected --size 8 of the run, got 16" in capsys.readouterr().err
    assert main([*again, "--data", "fashion-mnist"]) == 2
    assert "expected the data pets of the run" in capsys.readouterr().err
    Path("elsewhere").mkdir()
    Path(pets).rename("elsewhere/pets")
    assert main([*again, "--data", "elsewhere/pets"]) == 0, "the same files at another place"
    pets = "elsewhere/pets"
    kept = next(name for name in load(pets, test_share=0.3).names)
    file = Path(pets) / kept
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    capsys.readouterr()
    assert main(again) == 1
    text = capsys.readouterr().err
    assert "expected the data folder pets train (" in text and text.count("\n") == 1
    file.unlink()
    assert main(again) == 1
    file.write_bytes(content)
    assert main(again) == 0


def test_a_broken_picture_stops_the_run_or_is_left_out(
    pets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(pets) / "cat" / "07.png").write_bytes(b"\x89PNG no picture")
    assert main(["train", "--data", pets, "--size", "8", *FEW, "--out", "x", "--steps", "9"]) == 1
    text = capsys.readouterr().err
    assert "cat/07.png" in text and "--skip-broken" in text
    run = ["train", "--data", pets, "--size", "8", "--skip-broken", *FEW, "--out", "y"]
    assert main(run) == 0
    done = capsys.readouterr()
    assert "left out 1 unreadable picture: cat/07.png" in done.err and "23 examples" in done.out
    assert read_json(Path("y/config.json"))["data"]["origin"]["options"]["skip_broken"] is True


def test_exported_samples_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `fastdiff export` writes is read again, with its labels, by every format."""
    monkeypatch.chdir(tmp_path)
    few = ("--num", "4", "--steps", "1", "--classes", "Sneaker,Bag", "--threads", "1")
    assert main(["sample", "--model", "fashion-mnist", "--out", "samples", *few]) == 0
    found = {}
    for format, out in (
        ("webdataset", "tars"),
        ("png", "pictures"),
        ("npz", "samples.npz"),
        ("npy", "samples.npy"),
    ):
        assert main(["export", "samples", "--format", format, "--out", out]) == 0
        found[format] = load(out)
        assert found[format].shape == (1, 28, 28)
        x0, labels = found[format].batch(torch.arange(4))
        assert torch.equal(x0, found["webdataset"].batch(torch.arange(4))[0])
        assert labels.tolist() == ([0] * 4 if format == "npy" else [7, 8, 7, 8])
    with pytest.raises(ValueError, match="got a dataset of `fastdiff sample`"):
        load("samples")


FACTORY = """
import torch
from torch.utils.data import TensorDataset

def points(split="train"):
    n = 20 if split == "train" else 7
    return TensorDataset(torch.linspace(-1, 1, 40).reshape(20, 2)[:n], torch.arange(n) % 2)

def no_split():
    return points()

def leaves():
    raise SystemExit(0)
"""


def test_a_factory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_data_of_a_test.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name = "own_data_of_a_test:points"
    few = ("--steps", "2", "--batch-size", "4", "--threads", "1", "--widths", "8")
    assert main(["train", "--model", "vdm", "--data", name, *few, "--out", "run"]) == 0
    assert main(["eval", "run", "--times", "2", "--threads", "1"]) == 2
    assert f"expected --data {name}" in capsys.readouterr().err, "a folder does not run code"
    assert main(["eval", "run", "--times", "2", "--data", name, "--json", "--threads", "1"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["images"] == 7 and result["data"].startswith(f"dataset {name} test (7 of shape")
    other = "own_data_of_a_test:no_split"
    assert main(["eval", "run", "--times", "2", "--data", other]) == 2
    assert "expected a function that takes split='test'" in capsys.readouterr().err
    assert main(["train", "--data", "own_data_of_a_test:leaves", "--out", "z"]) == 1
    assert main(["train", "--data", "own_data_of_a_test:none", "--out", "z"]) == 2
    assert main(["train", "--data", name, "--test-share", "0.1", *few, "--out", "z"]) == 2
    assert "expected no test_share" in capsys.readouterr().err


def test_a_checkpoint_of_named_data_says_what_it_said(tmp_path: Path) -> None:
    out = tmp_path / "run"
    few = ("--steps", "1", "--batch-size", "4", "--threads", "1", "--widths", "8")
    assert main(["train", "--model", "vdm", "--data", "moons", *few, "--out", str(out)]) == 0
    config = read_json(out / "config.json")
    assert set(config["data"]) == {"name", "classes", "null_label", "shape", "range"}
    assert "data_options" not in config["training"]["arguments"]


@pytest.mark.parametrize(
    "origin",
    [{"path": "x\x1b[2J"}, {"path": 1}, [], {"path": "pets", "options": {"size": "8"}}],
)
def test_the_origin_in_someone_s_folder(
    origin: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--steps", "1", "--batch-size", "4", "--threads", "1", "--widths", "8")
    out = str(tmp_path / "run")
    assert main(["train", "--model", "vdm", "--data", "moons", *few, "--out", out]) == 0
    config = read_json(tmp_path / "run" / "config.json")
    config["data"]["origin"] = origin
    (tmp_path / "run" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(["eval", out, "--times", "2"]) == 2
    text = capsys.readouterr().err
    assert "\x1b" not in text and "expected" in text


def test_latents_of_an_autoencoder(pets: str, capsys: pytest.CaptureFixture[str]) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).eval()
    vae.save_pretrained("vae")
    command = ["data", "latents", "--vae", "vae", "--data", pets, "--size", "16", "--threads", "1"]
    assert main([*command, "--out", "pets.npy", "--batch-size", "5"]) == 0
    assert "24 latents of shape [4, 8, 8]" in capsys.readouterr().out
    pictures, stored = load(pets, size=16), np.load("pets.npy")
    with torch.no_grad():
        wanted = vae.encode(pictures.batch(torch.arange(24))[0]).latent_dist
    assert stored.shape == (24, 2, 4, 8, 8)
    assert np.abs(stored[:, 0] - wanted.mean.numpy()).max() < 1e-4
    assert np.abs(stored[:, 1] - wanted.std.numpy()).max() < 1e-4
    data = load("pets.npy", test_share=0.3)
    assert data.levels is None and data.shape == (4, 8, 8) and data.classes == ("cat", "dog")
    plain = load(pets, size=16, test_share=0.3)
    assert data.examples == plain.examples and torch.equal(data.labels, plain.labels)
    every, ids = load("pets.npy"), torch.arange(24)
    draws = torch.stack([every.batch(ids, seed=1, epoch=e)[0] for e in range(50)]).double()
    mean = (torch.from_numpy(stored[:, 0]).double() - 0.25) * 0.5
    std = torch.from_numpy(stored[:, 1]).double() * 0.5
    z = (draws - mean) / std
    assert abs(float(z.mean())) < 4 / z.numel() ** 0.5 + 1e-6
    assert abs(float(z.var()) - 1) < 4 * (2 / z.numel()) ** 0.5
    alone = every.batch(torch.tensor([17]), seed=1, epoch=3)[0]
    assert torch.equal(alone[0].double(), draws[3, 17])
    # what is decoded is near what the autoencoder itself makes of the mean
    from fastdiff.integrations.diffusers.pipeline import pictures as decoded

    with torch.no_grad():
        assert torch.allclose(
            decoded(vae, ((wanted.mean - 0.25) * 0.5)), vae.decode(wanted.mean).sample, atol=1e-4
        )
    # damage of either file
    description = json.loads(Path("pets.json").read_text())
    for key, value in (("labels", [0]), ("scaling_factor", "1"), ("parts", {}), ("names", ["x"])):
        Path("pets.json").write_text(json.dumps(description | {key: value}))
        with pytest.raises(ValueError, match=rf"^fastdiff\.data: expected .* another {key}"):
            load("pets.npy")
    Path("pets.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="expected no flip for latents"):
        load("pets.npy", flip=True)
    assert main([*command, "--channels", "1", "--out", "grey.npy"]) == 0, "grey becomes colours"
    assert main([*command, "--out", "pets.zip"]) == 2
    assert main(["data", "latents", "--vae", "nowhere", "--data", pets, "--out", "y.npy"]) == 2
    assert not list(Path(".").glob(".*.tmp"))
