"""Feature extractors: the shipped network, TorchScript, callables; and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastdiff.data import load
from fastdiff.metrics import Extractor, fashion, of_callable, raw, torchscript
from fastdiff.metrics.extractors import FASHION, fashion_classifier
from fastdiff.pretrained.files import read_json


class Inception(nn.Module):
    """A tiny network that is called as NVIDIA's TorchScript of Inception-v3 is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = img.float() / 255
        features = torch.cat([x.mean((2, 3)), x.amax(dim=(2, 3))], dim=1)
        return features if return_features else self.head(features).softmax(1)


class Plain(nn.Module):
    """A network of pictures without an option."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3))


@pytest.fixture
def inception(tmp_path: Path) -> Path:
    path = tmp_path / "inception.pt"
    torch.jit.script(Inception()).save(str(path))
    return path


@pytest.mark.cpu_only
def test_the_shipped_network_classifies_as_its_config_says() -> None:
    config, data = read_json(FASHION / "config.json"), load("fashion-mnist", "test")
    x, y = data.batch(torch.arange(data.examples))
    right = float((fashion_classifier()(x).argmax(1) == y).double().mean())
    assert right == pytest.approx(config["test_accuracy"], abs=0.03), "1,000 of the 10,000 images"
    assert (FASHION / "model.safetensors").stat().st_size < 600_000
    features = fashion()(data.images[:3])
    assert list(features.shape) == [3, config["features"]] and features.isfinite().all()


@pytest.mark.cpu_only
def test_levels_and_the_data_range_give_the_same_features() -> None:
    images = load("fashion-mnist", "test").images[:4]
    for extractor in (fashion(), raw()):
        torch.testing.assert_close(extractor(images), extractor(images.float() / 127.5 - 1))


def test_inception_is_called_for_its_features(inception: Path) -> None:
    x = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    found = torchscript(inception, inception=True)
    expected = torch.cat([x.float().mean((2, 3)), x.float().amax((2, 3))], 1) / 255
    torch.testing.assert_close(found(x), expected)
    assert (found.title, found.name) == ("FID", "inception")
    grey = x[:, :1]
    torch.testing.assert_close(found(grey), found(grey.repeat(1, 3, 1, 1)))
    assert torchscript(inception).name == "inception.pt", "as --features it is no FID"


def test_a_plain_script_is_called_with_the_pictures(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    torch.jit.script(Plain()).save(str(path))
    x = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(torchscript(path)(x), x.float().mean((2, 3)))
    with pytest.raises(ValueError, match="without return_features: not NVIDIA's Inception"):
        torchscript(path, inception=True)


def test_other_files_are_refused_in_a_sentence(inception: Path, tmp_path: Path) -> None:
    weights, damaged = tmp_path / "state.pth", tmp_path / "damaged.pt"
    torch.save(Inception().state_dict(), weights)  # as pytorch-fid's file is
    with pytest.raises(ValueError, match="got a state dict: weights without a network"):
        torchscript(weights)
    for content in (b"", b"text", inception.read_bytes()[:300]):
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match=r"^fastdiff\.metrics: expected a TorchScript file"):
            torchscript(damaged)
    with pytest.raises(FileNotFoundError, match="got none"):
        torchscript(tmp_path / "missing.pt")


def test_a_callable_says_what_it_takes() -> None:
    seen = []

    def mine(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x.float().flatten(1)

    x = torch.full((2, 1, 2, 2), 255, dtype=torch.uint8)
    assert float(of_callable(mine, "a:b")(x).max()) == 255
    mine.takes = "[-1, 1]"  # type: ignore[attr-defined]
    assert float(of_callable(mine, "a:b")(x).max()) == 1
    assert seen == [torch.uint8, torch.float32]
    mine.takes = "latents"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"expected takes in \['uint8', '\[-1, 1\]'\]"):
        of_callable(mine, "a:b")
    with pytest.raises(TypeError, match="expected a:b to give a callable of pictures, got int"):
        of_callable(3, "a:b")
    assert of_callable(extractor := raw(), "a:b") is extractor
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    assert module.training and not of_callable(module, "a:b").function.training


def test_wrong_pictures_and_wrong_features_are_refused() -> None:
    x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"pictures of shape \[1, 28, 28\] for the features"):
        fashion()(x)
    for wrong in (lambda x: x.float(), lambda x: x.float().mean((2, 3))[:1], lambda x: None):
        with pytest.raises(ValueError, match=r"expected features \[2, F\] from mine"):
            Extractor(wrong, "mine", "FD")(x)


def test_nothing_is_loaded_that_nobody_named() -> None:
    """torch.jit.load is in one function, which the command calls for --inception and --features."""
    from fastdiff.metrics import compare, distances, extractors, moments

    sources = {m.__name__: inspect.getsource(m) for m in (compare, distances, extractors, moments)}
    assert [n for n, s in sources.items() if "jit.load" in s] == ["fastdiff.metrics.extractors"]
    assert sources["fastdiff.metrics.extractors"].count("torch.jit.load(") == 1
    assert "torch.jit.load(" in inspect.getsource(torchscript)
