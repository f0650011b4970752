"""Model folders that are damaged or made to do harm: one sentence, before anything is allocated."""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import HOSTILE, bytes_damages, outcome, value_damages
from safetensors.torch import load_file, save_file

from fastdiff import Sampler, Schedule, pretrained
from fastdiff.models import MLP, UNet
from fastdiff.theory.variational import VDM


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind: a network with a schedule, a perceptron, a system."""
    torch.manual_seed(0)
    top = tmp_path_factory.mktemp("models")
    unet = UNet(size=8, widths=(8, 16), emb=16, groups=8)
    Sampler(unet, Schedule.cosine(100), steps=5, guidance_scale=2.0).save_pretrained(top / "unet")
    mlp = MLP(width=8, depth=2, emb=8)
    Sampler(mlp, Schedule.flow(50), steps=5, prediction_type="v").save_pretrained(top / "mlp")
    pretrained.save_system(top / "vdm", VDM((1, 8, 8), widths=(8, 16)))
    return {path.name: path for path in top.iterdir()}


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["unet"], tmp_path / "model"))


def _load(path: Path) -> Any:
    if path.name == "vdm":
        return pretrained.load_system(path)
    return Sampler.from_pretrained(path)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_config_that_is_no_json(text: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(text)
    found = outcome(lambda: _load(folder))
    assert isinstance(found, str) and "config.json" in found


@pytest.mark.parametrize("name", ["unet", "mlp", "vdm"])
def test_any_value_in_the_place_of_any_other(
    name: str, made: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made[name], tmp_path / name))
    good, refused = json.loads((folder / "config.json").read_text()), 0
    for what, config in value_damages(good):
        (folder / "config.json").write_text(json.dumps(config))
        refused += isinstance(outcome(lambda: _load(folder), what), str)
    assert refused > 100


@pytest.mark.parametrize(
    "key, value",
    [
        ("size", True),
        ("emb", 16.0),
        ("channels", "1"),
        ("widths", 8),
        ("widths", [8, "16"]),
        ("widths", [8, 16.0]),
        ("time_scale", "1"),
        ("time_scale", True),
        ("num_classes", None),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, value: Any, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"expected .* as 'model.config.{key}' in .*config.json"):
        _load(folder)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """2 GiB of address space more than now: an allocation of gigabytes fails."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    "name, path, value",
    [
        ("mlp", ("model", "config", "depth"), 10**30),
        ("mlp", ("model", "config", "depth"), 10**9),
        ("mlp", ("model", "config", "depth"), 900_000),
        ("mlp", ("model", "config", "width"), 900_000),
        ("unet", ("model", "config", "channels"), 10**9),
        ("unet", ("model", "config", "mid_blocks"), 500_000),
        ("unet", ("model", "config", "num_classes"), 900_000),
        ("unet", ("model", "config", "widths"), [8] * 100_000),
        ("unet", ("schedule", "num_train_timesteps"), 10**12),
        ("unet", ("sampler", "steps"), 10**9),
        ("vdm", ("system", "config", "network", "config", "widths"), [8] * 5000),
        ("vdm", ("system", "config", "shape"), [1, 10**9, 10**9]),
        ("vdm", ("system", "config", "num_steps"), 10**15),
    ],
)
def test_a_config_that_would_fill_the_memory_is_refused_at_once(
    name: str,
    path: tuple[str, ...],
    value: Any,
    made: dict[str, Path],
    tmp_path: Path,
    little_memory: None,
) -> None:
    folder = Path(shutil.copytree(made[name], tmp_path / name))
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    begin = time.process_time()
    found = outcome(lambda: _load(folder))
    assert isinstance(found, str) and len(found) < 5000
    assert time.process_time() - begin < 60


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.bool])
def test_weights_of_whole_numbers_are_refused(dtype: torch.dtype, folder: Path) -> None:
    """They would be cast silently, to a network that draws noise."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name].to(dtype)}, file)
    with pytest.raises(ValueError, match=f"expected weights of type .* for '{name}' .*, got [IB]"):
        _load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_floating_type_are_taken(dtype: torch.dtype, folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({k: v.to(dtype) for k, v in load_file(file).items()}, file)
    assert {p.dtype for p in _load(folder).model.parameters()} == {torch.float32}


def test_damaged_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    good = file.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    refused = 0
    for bad in bytes_damages(good[:header], 0, 300):
        file.write_bytes(bad + good[header:])
        refused += isinstance(outcome(lambda: _load(folder)), str)
    assert refused > 200


def test_damaged_config_bytes(folder: Path) -> None:
    file = folder / "config.json"
    for bad in bytes_damages(file.read_bytes(), 1, 300):
        file.write_bytes(bad)
        outcome(lambda: _load(folder), repr(bad))


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder: Path) -> None:
    import os

    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / "kept")
        os.mkfifo(folder / name)
        assert isinstance(outcome(lambda: _load(folder)), str)
        (folder / name).unlink()
        (folder / "kept").rename(folder / name)
