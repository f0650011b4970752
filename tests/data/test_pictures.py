"""Pictures: decoding of every mode, size, augmentation, splits, caches."""

from __future__ import annotations

import io
from pathlib import Path

import made
import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data import Options, load
from fastdiff.data.decode import decode, prepare

pytestmark = pytest.mark.cpu_only
ALL = torch.arange(len(made.LABELS))
X0 = torch.from_numpy(made.LEVELS.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def levels(content: bytes, channels: int = 3) -> np.ndarray:
    return prepare(decode(content), Options(channels=channels), channels)


def test_transparency_is_laid_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]
    expected = [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).convert("RGBa")):
        if image.mode == "RGBA":
            assert levels(encoded(image)).transpose(1, 2, 0)[0].tolist() == expected
    grey = Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8), "LA")
    assert levels(encoded(grey), 1)[0, 0].tolist() == [100, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.putpixel((1, 0), 1)
    found = levels(encoded(palette, transparency=1)).transpose(1, 2, 0)[0]
    assert found.tolist() == [[1, 2, 3], [255, 255, 255]]


def test_other_modes() -> None:
    sixteen = np.array([[0, 255, 256, 65535]], np.uint16)
    assert levels(encoded(Image.fromarray(sixteen)), 1)[0, 0].tolist() == [0, 0, 1, 255]
    bits = Image.fromarray(np.array([[True, False]]))
    assert levels(encoded(bits), 1)[0, 0].tolist() == [255, 0]
    colour = Image.new("RGB", (16, 16), (200, 30, 40))
    near = levels(encoded(colour.convert("CMYK"), "JPEG", quality=100))
    assert np.abs(near[:, 8, 8].astype(int) - [200, 30, 40]).max() <= 3
    luma = np.asarray(colour.convert("L"))[0, 0]
    assert levels(encoded(colour), 1)[0, 0, 0] == luma == round(0.299 * 200 + 0.587 * 30 + 4.56)
    turned = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    assert levels(encoded(turned, "JPEG", exif=exif.tobytes())).shape == (3, 4, 2)


@pytest.mark.parametrize("filter", ["lanczos", "box"])
def test_a_reduction_does_not_alias(filter: str, tmp_path: Path) -> None:
    """Stripes of one pixel become grey; the centred square is kept."""
    wide = np.zeros((64, 96, 3), np.uint8)
    wide[:, 16:80:2] = 255  # the square; what lies beside it is black, then red
    wide[:, :16, 0] = 255
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "a.png").write_bytes(made.png(wide))
    data = load(tmp_path / "pets", size=8, filter=filter)
    found = data.pictures(torch.tensor([0]))[0].int()
    assert data.shape == (3, 8, 8) and data.classes == ()
    assert (found[:, :, 1:-1] - 128).abs().max() <= (1 if filter == "box" else 6)
    assert found[0].float().mean() < 140, "the red beside the square is cut off"


def test_box_is_the_mean_of_the_area(tmp_path: Path) -> None:
    made.folder(tmp_path / "pets")
    found = load(tmp_path / "pets", size=4, filter="box").pictures(ALL).double()
    x = torch.from_numpy(made.LEVELS.copy()).permute(0, 3, 1, 2).double()
    assert (found - torch.nn.functional.avg_pool2d(x, 2)).abs().max() <= 1.0


def test_flips_and_crops_are_functions_of_seed_epoch_and_example(tmp_path: Path) -> None:
    made.folder(tmp_path / "pets")
    flips = load(tmp_path / "pets", flip=True)
    mirrored = []
    for epoch in range(40):
        x0, _ = flips.batch(ALL, seed=1, epoch=epoch)
        same = (x0 == X0).flatten(1).all(1)
        assert (same | (x0 == X0.flip(-1)).flatten(1).all(1)).all()
        mirrored.append(~same)
        alone = torch.cat([flips.batch(i[None], seed=1, epoch=epoch)[0] for i in ALL])
        assert torch.equal(alone, x0)
    share = torch.stack(mirrored).double().mean()
    assert abs(float(share) - 0.5) < 4 * 0.5 / (40 * len(ALL)) ** 0.5
    assert not torch.equal(flips.batch(ALL, seed=2)[0], flips.batch(ALL, seed=1)[0])
    crops = load(tmp_path / "pets", size=7, random_crop=True)  # 7/0.875 = 8: nothing is resampled
    places = set()
    for epoch in range(30):
        x0, _ = crops.batch(ALL, epoch=epoch)
        for i, cut in enumerate(x0):
            found = [
                (top, left)
                for top in (0, 1)
                for left in (0, 1)
                if torch.equal(cut, X0[i, :, top : top + 7, left : left + 7])
            ]
            assert len(found) == 1
            places.add(found[0])
    assert places == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_dequantisation_fills_a_level(tmp_path: Path) -> None:
    made.folder(tmp_path / "pets")
    data = load(tmp_path / "pets", dequantize=True)
    k = torch.from_numpy(made.LEVELS.copy()).permute(0, 3, 1, 2).double()
    u = torch.stack([(data.batch(ALL, epoch=e)[0].double() + 1) * 128 - k for e in range(20)])
    assert u.min() >= 0 and u.max() <= 1, "z = (k + u)/128 - 1"
    n = u.numel()
    assert abs(float(u.mean()) - 0.5) < 4 * (1 / 12 / n) ** 0.5
    assert abs(float(u.var()) - 1 / 12) < 4 * (1 / 180 / n) ** 0.5
    assert not torch.equal(u[0], u[1])


def test_splits_by_share_are_by_name(tmp_path: Path) -> None:
    made.folder(tmp_path / "pets")
    train, test = (load(tmp_path / "pets", s, test_share=0.3) for s in ("train", "test"))
    assert sorted(train.names + test.names) == sorted(made.NAMES)
    assert train.classes == test.classes == made.CLASSES, "classes are those of all examples"
    x0, labels = test.batch(torch.arange(test.examples))
    chosen = [made.NAMES.index(n) for n in test.names]
    assert torch.equal(x0, X0[chosen]) and labels.tolist() == made.LABELS[chosen].tolist()
    added = {f"cat/-{i}.png" for i in range(12)}  # before all others
    for name in added:
        (tmp_path / "pets" / name).write_bytes(made.png(made.LEVELS[0]))
    later = load(tmp_path / "pets", "test", test_share=0.3)
    assert set(later.names) - added == set(test.names), "no example moves"
    counts = [load(tmp_path / "pets", "test", test_share=s).examples for s in (0.2, 0.5, 0.8)]
    assert counts == sorted(counts)


@pytest.mark.parametrize("train", ["train/", ""])
@pytest.mark.parametrize("test", ["test", "val"])
def test_splits_by_folder(train: str, test: str, tmp_path: Path) -> None:
    made.folder(tmp_path / "pets" / train)
    for name in ("cat/x.png", "eel/y.png"):
        file = tmp_path / "pets" / test / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(made.png(made.LEVELS[0]))
    data = load(tmp_path / "pets"), load(tmp_path / "pets", "test")
    assert [d.examples for d in data] == [len(ALL), 2]
    assert all(d.classes == made.CLASSES for d in data)
    assert data[1].labels.tolist() == [0, 2] and torch.equal(data[0].batch(ALL)[0], X0)
    with pytest.raises(ValueError, match=r"expected the folder .* or test_share .*, got both"):
        load(tmp_path / "pets", test_share=0.1)


def test_the_cache_holds_what_was_decoded(tmp_path: Path) -> None:
    root = made.folder(tmp_path / "pets")
    kept, streamed = load(root), load(root, cache_mib=0)
    assert kept.name == streamed.name
    assert torch.equal(kept.batch(ALL)[0], X0) and torch.equal(streamed.batch(ALL)[0], X0)
    (root / made.NAMES[3]).write_bytes(made.png(255 - made.LEVELS[3]))
    assert torch.equal(kept.batch(ALL)[0], X0)
    assert not torch.equal(streamed.batch(ALL)[0], X0), "files are read when they are needed"


def test_folders_are_numbered_as_numbers_and_order_is_by_name(tmp_path: Path) -> None:
    for k in ("10", "9", "1"):
        (tmp_path / k).mkdir()
        (tmp_path / k / "a.png").write_bytes(made.png(made.LEVELS[int(k) % 5]))
    data = load(tmp_path)
    assert data.classes == ("1", "9", "10") and data.names == ["1/a.png", "10/a.png", "9/a.png"]
    assert data.labels.tolist() == [0, 2, 1]
    assert load(tmp_path, label_file="none").classes == ()


def test_the_name_changes_with_the_data(tmp_path: Path) -> None:
    root = made.folder(tmp_path / "pets")
    names = {load(root).name, load(root, flip=True).name, load(root, size=4).name}
    (root / "cat" / "new.png").write_bytes(made.png(made.LEVELS[0]))
    names.add(load(root).name)
    (root / "cat" / "new.png").write_bytes(made.png(made.LEVELS[1]) + bytes(3))
    names.add(load(root).name)
    (root / "cat" / "new.png").rename(root / "dog" / "new.png")
    names.add(load(root).name)
    assert len(names) == 6
    assert all(n.startswith("folder pets train (") for n in names)


def test_options_change_named_pictures_and_nothing_else() -> None:
    plain, small = load("fashion-mnist", "test"), load("fashion-mnist", "test", size=14)
    assert small.shape == (1, 14, 14) and small.classes == plain.classes
    assert torch.equal(small.labels, plain.labels) and "bundled-test" in small.name
    assert plain.name == "fashion-mnist bundled-test"
    with pytest.raises(ValueError, match="expected no size for moons"):
        load("moons", size=8)
    with pytest.raises(ValueError, match="expected no test_share for fashion-mnist"):
        load("fashion-mnist", test_share=0.5)
