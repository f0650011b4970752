"""The same few pictures in every format that `fastdiff.data.load` reads."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "eel")
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2])
LEVELS = np.random.default_rng(3).integers(0, 256, (len(LABELS), 8, 8, 3)).astype(np.uint8)
NAMES = [f"{CLASSES[k]}/{i:03d}.png" for i, k in enumerate(LABELS)]


def png(levels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, format="PNG", **options)  # type: ignore[arg-type]
    return file.getvalue()


def folder(out: Path) -> Path:
    for name, levels in zip(NAMES, LEVELS, strict=True):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(png(levels))
    return out


def flat(out: Path, file: str, content: str) -> Path:
    """A folder without classes and a label file."""
    out.mkdir(parents=True, exist_ok=True)
    for i, levels in enumerate(LEVELS):
        (out / f"{i:03d}.png").write_bytes(png(levels))
    (out / file).write_text(content, encoding="utf-8")
    return out


def rows(between: str, titles: str = "") -> str:
    lines = [f"{i:03d}.png{between}{CLASSES[k]}" for i, k in enumerate(LABELS)]
    return "\n".join(([titles] if titles else []) + lines) + "\n"


def edm_labels(start: str = "00000/") -> str:
    return json.dumps({"labels": [[f"{start}{i:03d}.png", int(k)] for i, k in enumerate(LABELS)]})


def edm_zip(out: Path) -> Path:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for i, levels in enumerate(LEVELS):
            file.writestr(f"00000/{i:03d}.png", png(levels))
        file.writestr("dataset.json", edm_labels())
    return out


def zip_of_a_folder(out: Path) -> Path:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, levels in zip(NAMES, LEVELS, strict=True):
            file.writestr(f"pets/{name}", png(levels))
        file.writestr("__MACOSX/pets/._000.png", b"no picture")
    return out


def idx(array: np.ndarray) -> bytes:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + shape + array.astype(np.uint8).tobytes()


def idx_files(out: Path) -> Path:
    out.mkdir()
    (out / "train-images-idx4-ubyte").write_bytes(idx(LEVELS))
    (out / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    return out / "train-images-idx4-ubyte"


def tar(out: Path, label: str = "cls", format: int = tarfile.PAX_FORMAT, deep: str = "") -> Path:
    with tarfile.open(out, "w", format=format) as file:
        for i, (levels, k) in enumerate(zip(LEVELS, LABELS, strict=True)):
            text = str(k) if label == "cls" else json.dumps({"class": int(k), "caption": "é"})
            for end, content in (("png", png(levels)), (label, text.encode())):
                info = tarfile.TarInfo(f"{deep}{i:09d}.{end}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return out


def npy(out: Path, array: np.ndarray = LEVELS) -> Path:
    np.save(out, array)
    return out


def npz(out: Path, keys: tuple[str, str] = ("arr_0", "arr_1"), packed: bool = False) -> Path:
    (np.savez_compressed if packed else np.savez)(out, **{keys[0]: LEVELS, keys[1]: LABELS})
    return out


LONG = "a folder with a name that is longer than the field of a header of the first tar/" * 2
# name of the format: (writes it into a folder and returns its path, the options of `load`)
FORMATS: dict[str, Callable[[Path], tuple[Path, dict[str, object]]]] = {
    "folder": lambda t: (folder(t / "pets"), {}),
    "csv": lambda t: (flat(t / "pets", "labels.csv", rows(",")), {}),
    "csv titles": lambda t: (flat(t / "pets", "labels.csv", rows(",", "file,label")), {}),
    "tsv": lambda t: (
        flat(t / "pets", "mine.tsv", rows("\t")),
        {"label_file": str(t / "pets" / "mine.tsv")},
    ),
    "json": lambda t: (
        flat(
            t / "pets",
            "labels.json",
            json.dumps({f"{i:03d}.png": CLASSES[k] for i, k in enumerate(LABELS)}),
        ),
        {},
    ),
    "dataset.json": lambda t: (flat(t / "pets", "dataset.json", edm_labels("")), {}),
    "EDM's zip": lambda t: (edm_zip(t / "pets.zip"), {}),
    "zip of a folder": lambda t: (zip_of_a_folder(t / "pets.zip"), {}),
    "npz": lambda t: (npz(t / "x.npz"), {}),
    "npz packed": lambda t: (npz(t / "x.npz", packed=True), {}),
    "npz images": lambda t: (npz(t / "x.npz", ("images", "labels")), {}),
    "npy": lambda t: (
        npy(t / "x.npy"),
        {"label_file": str(npy(t / "y.npy", LABELS))},
    ),
    "npy channels first": lambda t: (
        npy(t / "x.npy", LEVELS.transpose(0, 3, 1, 2)),
        {"label_file": str(npy(t / "y.npy", LABELS))},
    ),
    "idx": lambda t: (idx_files(t / "idx"), {}),
    "idx folder": lambda t: (idx_files(t / "idx").parent, {}),
    "tar": lambda t: (tar(t / "x.tar"), {}),
    "tar json": lambda t: (tar(t / "x.tar", "json"), {}),
    "tar ustar": lambda t: (tar(t / "x.tar", format=tarfile.USTAR_FORMAT, deep="a/" * 60), {}),
    "tar pax": lambda t: (tar(t / "x.tar", deep=LONG), {}),
    "tar gnu": lambda t: (tar(t / "x.tar", format=tarfile.GNU_FORMAT, deep=LONG), {}),
    "tars": lambda t: (tar(_made(t / "tars") / "0.tar").parent, {}),
}


def _made(path: Path) -> Path:
    path.mkdir()
    return path
