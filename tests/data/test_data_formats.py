"""Every format gives the same tensors for the same pictures, whatever the number of workers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from fastdiff.data import batches, load, reopen, wrap

pytestmark = pytest.mark.cpu_only
N = len(made.LABELS)
ALL = torch.arange(N)
X0 = torch.from_numpy(made.LEVELS.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1.0
Y = torch.from_numpy(made.LABELS)
NUMBERED = ("0", "1", "2")


@pytest.mark.parametrize("name", sorted(made.FORMATS))
def test_the_same_pictures_in_every_format(name: str, tmp_path: Path) -> None:
    path, options = made.FORMATS[name](tmp_path)
    data = load(path, **options)
    assert data.examples == N and data.shape == (3, 8, 8) and data.levels == 256
    assert data.classes in (made.CLASSES, NUMBERED)
    x0, labels = data.batch(ALL)
    assert x0.dtype == torch.float32 and torch.equal(x0, X0) and torch.equal(labels, Y)
    x0, labels = data.batch(torch.tensor([7, 2, 7]))
    assert torch.equal(x0, X0[[7, 2, 7]]) and torch.equal(labels, Y[[7, 2, 7]])
    again = reopen(data.origin, "train", "the test")
    assert again.name == data.name and torch.equal(again.batch(ALL)[0], X0)
    assert path.name in data.name and "all" not in data.name
    stored = pickle.dumps(data)  # for processes that are not forked
    assert len(stored) < 6000 or "idx" in name, "mapped files are mapped again"
    copied = pickle.loads(stored)
    assert torch.equal(copied.batch(ALL)[0], X0)


class Pairs:
    """A map-style data set of arrays; its classes are found by reading it."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return made.LEVELS[i], int(made.LABELS[i])


class Dicts(Pairs):
    classes = list(made.CLASSES)

    def __getitem__(self, i: int) -> Any:
        return {"image": torch.from_numpy(made.LEVELS[i]), "label": torch.tensor(made.LABELS[i])}


class Pillow(Pairs):
    def __getitem__(self, i: int) -> Any:
        from PIL import Image

        return Image.fromarray(made.LEVELS[i]), np.int64(made.LABELS[i])


@pytest.mark.parametrize("kind", [Pairs, Dicts, Pillow])
def test_map_style_data_sets(kind: type) -> None:
    data = wrap(kind())
    assert data.shape == (3, 8, 8) and data.levels == 256 and len(data.classes) == 3
    x0, labels = data.batch(ALL)
    assert torch.equal(x0, X0) and isinstance(labels, Tensor) and torch.equal(labels, Y)


def test_a_tensor_data_set_is_used_as_it_is() -> None:
    data = wrap(TensorDataset(X0, Y), name="tensors")
    assert data.levels is None and data.classes == NUMBERED and "tensors" in data.name
    x0, labels = data.batch(ALL)
    assert torch.equal(x0, X0) and torch.equal(labels, Y)  # type: ignore[arg-type]
    assert wrap(TensorDataset(X0[:, :1], Y)).name != data.name


class Texts(Pairs):
    """Pictures with an embedding of a text; one item's noise is drawn by the data set itself."""

    def __getitem__(self, i: int) -> Any:
        noise = torch.rand(3, 8, 8) + float(np.random.rand())
        return noise, {"text": torch.full((2, 4), float(i)), "weight": 0.5}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_conditions_and_the_data_set_s_own_random_numbers(workers: int) -> None:
    data = wrap(Texts())
    assert data.classes == ()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    plan = [(ALL[:5], 0), (ALL[3:8], 1)]
    found = list(batches(data, plan, seed=5, workers=workers))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    for index, _, condition in found:
        assert isinstance(condition, dict) and set(condition) == {"text", "weight"}
        assert torch.equal(condition["text"][:, 1, 2], index.float())
        assert condition["weight"].shape == (len(index),)
    first, second = found[0][1], found[1][1]
    assert not torch.isclose(first[3:], second[:2]).any(), "another epoch draws anew"
    one = data.batch(torch.tensor([4]), seed=5, epoch=0)[0]
    assert torch.equal(one[0], first[4]), "an example's numbers do not depend on its batch"


@pytest.mark.parametrize("name", ["folder", "EDM's zip", "npz", "tar"])
def test_workers_change_no_bit(name: str, tmp_path: Path) -> None:
    path, _ = made.FORMATS[name](tmp_path)
    options = {"size": 6, "random_crop": True, "flip": True, "dequantize": True}
    plan = [(ALL[i : i + 4], epoch) for epoch, i in enumerate((0, 4, 8, 0, 4))]
    found = []
    for workers in (0, 1, 2):
        data = load(path, **options)
        found.append(list(batches(data, plan, seed=9, workers=workers)))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(found[0][0][0], found[0][3][0])
    assert not torch.equal(found[0][0][1], found[0][3][1]), "another epoch draws anew"


def test_points_and_their_conditions_are_continuous(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(20, 2))
    np.save(tmp_path / "points.npy", points)
    data = load(tmp_path / "points.npy", test_share=0.3)
    test = load(tmp_path / "points.npy", "test", test_share=0.3)
    assert data.levels is None and data.shape == (2,) and data.classes == ()
    assert data.examples + test.examples == 20 and 1 <= test.examples <= 12
    everything = torch.cat([d.batch(torch.arange(d.examples))[0] for d in (data, test)])
    assert sorted(everything[:, 0].tolist()) == sorted(points[:, 0].astype(np.float32).tolist())
    points[3] = np.nan
    np.save(tmp_path / "points.npy", points)
    with pytest.raises(ValueError, match=r"^fastdiff\.data: expected finite numbers in .* row 3\."):
        load(tmp_path / "points.npy").batch(torch.arange(20))
