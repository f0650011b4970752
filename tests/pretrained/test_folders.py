"""A model folder that cannot be read is named in one sentence and left as it is."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff import Sampler, Schedule
from fastdiff.models import UNet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = UNet(size=8, widths=(8, 16), emb=16, groups=8)
    Sampler(network, Schedule.cosine(100), steps=5).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in {**config, **changes}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))


BAD_FOLDERS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: (f / "config.json").unlink(), "config.json"),
    (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    (lambda f: (f / "config.json").write_text("{"), "config.json"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), "model.safetensors"),
    (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-10]
        ),
        "model.safetensors",
    ),
    (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps({"a": 1})), "model.safetensors"),
    (lambda f: _edit(f, format_version=99), "format_version"),
    (lambda f: _edit(f, schedule=None), "'schedule'"),
    (lambda f: _edit(f, model={"class": "os.system", "config": {}}), "os.system"),
    (
        lambda f: _edit(f, model={"class": "UNet", "config": {"widths": [8, 32]}}),
        "do not belong together",
    ),
    (lambda f: _edit(f, sampler={"solver": "nope"}), "'nope'"),
    (
        lambda f: (
            (f / "model.safetensors").unlink(),
            (f / "model.bin").write_bytes(pickle.dumps(1)),
        ),
        "safetensors",
    ),
]


@pytest.mark.parametrize("number", range(len(BAD_FOLDERS)))
def test_unreadable_folders_are_named_and_left_alone(number: int, folder: Path) -> None:
    damage, word = BAD_FOLDERS[number]
    damage(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises((ValueError, OSError)) as error:
        Sampler.from_pretrained(folder)
    text = str(error.value)
    assert word in text and "\n" not in text and text.startswith("fastdiff."), text
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_foreign_networks_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a network of fastdiff.models"):
        Sampler(lambda x, t: x, Schedule.linear(1000)).save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()
