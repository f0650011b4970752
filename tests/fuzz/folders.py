"""Fuzzes model folders: config.json and model.safetensors with any kind of wrong content.

A case takes a good folder of a small model and damages one of its files, or both. Every door that
reads folders either refuses it in a sentence, or returns a model with the tensors that its config
describes, which then samples or refuses to in a sentence. The worker's memory is limited, so that
content that makes a reader allocate without bound is found.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from campaign import Campaign, Report, described, is_sentence, kind_of

from fastdiff import Sampler, Schedule
from fastdiff.jobs.models.folder import from_folder
from fastdiff.models import MLP, Classifier, UNet
from fastdiff.pretrained import load_system, save
from fastdiff.pretrained.folders import save_system
from fastdiff.solvers import SOLVERS
from fastdiff.theory.systems.classifier import NoisyClassifier
from fastdiff.theory.systems.denoiser import Denoiser

GOOD = Path("good")
NAMES = ("vectors", "classes", "pictures", "denoiser", "classifier")
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def prepare() -> None:
    """Writes the good folders."""
    vectors, small = {"width": 8, "depth": 1, "emb": 4}, {"widths": [8], "groups": 4, "heads": 1}
    options = {"prediction_type": "v", "solver": "ddim", "eta": 0.5, "steps": 2}
    save(GOOD / "vectors", MLP(2, **vectors), Schedule.linear(50), options)
    save(
        GOOD / "classes",
        MLP(3, num_classes=4, **vectors, waves=(0, 1)),
        Schedule.flow(40),
        {"prediction_type": "flow", "solver": "flow_euler", "steps": 2, "clip_range": 1.0},
        data={"classes": ["a", "b", "c", "d"], "shape": [3]},
    )
    unet = UNet(1, 4, num_classes=2, mid_blocks=1, emb=4, **small)
    save(GOOD / "pictures", unet, Schedule.cosine(30), {"prediction_type": "epsilon", "steps": 2})
    save_system(GOOD / "denoiser", Denoiser(MLP(2, **vectors), Schedule.vp(20)))
    save_system(
        GOOD / "classifier",
        NoisyClassifier(
            Classifier(1, 4, 2, widths=[8], emb=4, groups=4, heads=1), Schedule.linear(9)
        ),
    )


# ---- config.json

TEXTS = ("", "x", "MLP", "UNet", "linear", "flow", "v", "../..", "\0", "é" * 50, "x" * 100_000,
         "__class__", "nan", "1e999", *SOLVERS)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 1.5, 1e308, -1e-300, 10**9, 10**18, 2**63, 10**30,
    float("nan"), float("inf"), [], {}, [1], [[]], {"class": "MLP"}, [8, 8, 8], [10**9], *TEXTS,
)  # fmt: skip
RAW = (
    "1e400", "-1e400", "9" * 5_000, "0x10", "01", "'a'", "[" * 100_000, '{"a":' * 50_000, "NaN",
    "-Infinity", '"\\ud800"', '"\\u0000"', "nul", "1e-400", "[" + "1," * 200_000 + "1]",
)  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Returns (container, key) of every value inside a JSON value."""
    found = []
    keys = (
        value.keys()
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    for key in list(keys):
        found += [(value, key), *places(value[key])]
    return found


def typed(r: random.Random, text: bytes) -> bytes:
    """Another value at one to three places, of any type and size."""
    config = json.loads(text)
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        container, key = r.choice(places(config))
        container[key] = r.choice(VALUES)
    return json.dumps(config).encode("utf-8", "surrogatepass")


def keyed(r: random.Random, text: bytes) -> bytes:
    """A key or an item that is missing, another's, or one more."""
    config = json.loads(text)
    container, key = r.choice(places(config))
    kind = r.randrange(4)
    if kind == 0:
        del container[key]
    elif isinstance(container, list):
        container.append(container[key])
    elif kind == 1:
        container[
            r.choice(("system", "model", "sampler", "steps", "x", "", "network", "config"))
        ] = r.choice(VALUES)
    elif kind == 2:
        other, name = r.choice(places(config))
        container[key] = json.loads(json.dumps(other[name]))
    else:
        container[str(key) + r.choice(("_", "s", " "))] = container.pop(key)
    return json.dumps(config).encode("utf-8", "surrogatepass")


def raw(r: random.Random, text: bytes) -> bytes:
    """Text that json.dumps would not write, in a value's place: deep, long, of other syntax."""
    config = json.loads(text)
    container, key = r.choice(places(config))
    container[key] = "@@"
    return json.dumps(config).replace('"@@"', r.choice(RAW)).encode("utf-8", "surrogatepass")


def doubled(r: random.Random, text: bytes) -> bytes:
    """A key twice."""
    value = json.dumps(r.choice(VALUES)).encode("utf-8", "surrogatepass")
    return text.replace(b"{", b'{"model": ' + value + b",", 1)


def encoded(r: random.Random, text: bytes) -> bytes:
    """Another encoding, or other bytes before or after."""
    words = text.decode()
    return r.choice((
        words.encode("utf-16"), words.encode("utf-32"), b"\xef\xbb\xbf" + text, text + b"\0",
        b"\x80" + text, text + text, b"", b" ", b"null", b"[]", b'"x"', b"{}", text[::-1],
    ))  # fmt: skip


# ---- bytes of any file


def flipped(r: random.Random, content: bytes) -> bytes:
    """Some flipped bits."""
    changed = bytearray(content)
    for _ in range(r.choice((1, 1, 2, 8))):
        changed[r.randrange(len(changed))] ^= 1 << r.randrange(8)
    return bytes(changed)


def truncated(r: random.Random, content: bytes) -> bytes:
    """The first part."""
    return content[: r.randrange(len(content))]


def spliced(r: random.Random, content: bytes) -> bytes:
    """A part that is missing, repeated, or replaced by random bytes."""
    a, b = sorted(r.randrange(len(content) + 1) for _ in range(2))
    middle = r.choice((b"", content[a:b] * 2, r.randbytes(b - a), bytes(b - a)))
    return content[:a] + middle + content[b:]


# ---- model.safetensors


def with_header(r: random.Random, content: bytes) -> bytes:
    """A header whose entries say other types, shapes, places or names."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = [n for n in header if n != "__metadata__"]
    name = r.choice(names)
    entry, kind = header[name], r.randrange(8)
    if kind == 0:
        entry["dtype"] = r.choice(
            ("F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "X", 3)
        )
    elif kind == 1:
        entry["shape"] = r.choice(([], [0], [-1], [2**40, 2**40], [1.5], "x", [*entry["shape"], 1],
                                   entry["shape"][::-1], [10**30], None))  # fmt: skip
    elif kind == 2:
        entry["data_offsets"] = r.choice((
            [0, 0], [0, len(data)], [len(data), 0], [-4, 0], [0, 2**63], [0, 10**30], [1, 5], [],
            "x", None,
        ))  # fmt: skip
    elif kind == 3:
        del header[name]
    elif kind == 4:
        header[r.choice(("extra", "", name + ".x", "network." + name, "\0"))] = entry
    elif kind == 5:
        other = r.choice(names)
        header[name], header[other] = header[other], header[name]
    elif kind == 6:
        header["__metadata__"] = r.choice(({"a": 1}, [], "x", {"a": "x" * 10_000}, None))
    else:
        header[name] = r.choice(VALUES)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def other_types(r: random.Random, content: bytes) -> bytes:
    """Well formed tensors of other types, shapes, names or numbers."""
    from safetensors.torch import load, save

    tensors = load(content)
    name = r.choice(list(tensors))
    value = tensors[name]
    change: Callable[[torch.Tensor], torch.Tensor] = r.choice((
        lambda v: v.double(), lambda v: v.half(), lambda v: v.bfloat16(), lambda v: v.long(),
        lambda v: v.bool(), lambda v: v.to(torch.complex64), lambda v: v.to(torch.float8_e5m2),
        lambda v: v * float("nan"), lambda v: v[:0], lambda v: v[None], lambda v: v.flatten(),
    ))  # fmt: skip
    tensors[name] = change(value).contiguous()
    return save(tensors)


def lengths(r: random.Random, content: bytes) -> bytes:
    """A wrong length of the header."""
    size = struct.unpack("<Q", content[:8])[0]
    length = r.choice((0, 1, size - 1, size + 1, len(content), 2**31, 2**63, 2**64 - 1))
    return struct.pack("<Q", length) + content[8:]


# ---- what is in a file's place


def replaced(r: random.Random, path: Path) -> None:
    """Something that is no regular file, or another's."""
    path.unlink()
    kind = r.randrange(8)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to("/dev/zero")
    elif kind == 2:
        path.symlink_to(path.name)
    elif kind == 3:
        path.symlink_to("nowhere")
    elif kind == 4:
        path.symlink_to("/dev/null")
    elif kind == 5:
        (path.parent / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    elif kind == 6:
        os.mkfifo(path)
    # else: missing


IN_CONFIG = (typed, typed, typed, keyed, keyed, raw, doubled, encoded, flipped, truncated, spliced)
IN_WEIGHTS = (with_header, with_header, other_types, lengths, flipped, truncated, spliced)


def damage(r: random.Random, folder: Path) -> str:
    """Damages a folder and returns in words how."""
    which = r.choice((CONFIG, CONFIG, WEIGHTS))
    path = folder / which
    if r.random() < 0.04:
        replaced(r, path)
        return f"{which}: replaced"
    how = r.choice(IN_CONFIG if which == CONFIG else IN_WEIGHTS)
    path.write_bytes(how(r, path.read_bytes()))
    return f"{which}: {how.__name__}"


def run(r: random.Random, report: Report) -> None:
    """Executes one case: damages a copy of a folder, and opens every door."""
    name = r.choice(NAMES)
    # a name of its own, which messages repeat
    folder = Path(f"case-{report.case}")
    shutil.copytree(GOOD / name, folder)
    try:
        how = damage(r, folder)
        second = folder / r.choice((CONFIG, WEIGHTS))
        if r.random() < 0.1 and "replaced" not in how and second.stat().st_size > 0:
            change = r.choice((flipped, truncated, spliced))
            second.write_bytes(change(r, second.read_bytes()))
            how += f", {second.name}: {change.__name__}"
        if os.environ.get("FUZZ_SHOW"):
            print(f"{name}, {how}")
            shown = folder / CONFIG
            if shown.is_file() and not shown.is_symlink():
                print(shown.read_bytes()[:1500])
        report.count(f"damaged {how.partition(',')[0]}")
        _open(name, how, folder, report)
    finally:
        shutil.rmtree(folder)


def _open(name: str, how: str, folder: Path, report: Report) -> None:
    doors: dict[str, Callable[[str], Any]] = {
        "Sampler.from_pretrained": Sampler.from_pretrained,
        "load_system": load_system,
        "jobs": from_folder,
    }
    for door, read in doors.items():
        report.count("folders opened")
        try:
            found = read(str(folder))
        except Exception as error:
            if is_sentence(error):
                report.count(f"refused: {kind_of(str(error))}")
            else:
                report.finding(f"{name}, {how}: {door} raised {described(error)}")
            continue
        report.count("folders that were loaded")
        if door == "Sampler.from_pretrained":
            _sample(name, how, found, report)


def _sample(name: str, how: str, sampler: Sampler, report: Report) -> None:
    config: dict[str, Any] = getattr(sampler.model, "config", {})
    size = config.get("size", 1)
    shape = (1, config["dim"]) if "dim" in config else (1, config.get("channels", 1), size, size)
    if max(shape) > 64 or len(sampler.plan) > 200:
        return
    try:
        sampler.sample(shape, seed=0, guidance_scale=1.0)
        report.count("models that sample")
    except Exception as error:
        if is_sentence(error):
            report.count(f"refused: {kind_of(str(error))}")
        else:
            report.finding(f"{name}, {how}: sample raised {described(error)}")


CAMPAIGN = Campaign(
    run, cases=12_000, short=120, batch=200, seconds=10.0, memory=3 << 29, prepare=prepare
)
