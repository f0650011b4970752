"""Entries by sample id: cycles of classes, and files with a line per id, read by seeking."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff import Schedule
from fastdiff.jobs import Model, open_model
from fastdiff.jobs.conditions import Conditions
from fastdiff.jobs.models.prompts import Prompts

NAMES = ("T-shirt", "Coat", "Ankle boot", "bag, purse")


def of_classes() -> Model:
    return Model(lambda x, t, y: x, (2,), schedule=Schedule.cosine(10), classes=NAMES, null_label=4)


def of_prompts() -> Model:
    return Model(
        lambda x, t, y: x,
        (2,),
        schedule=Schedule.cosine(10),
        conditions=Prompts(None, lambda *_: ({}, {})),
    )


def of_arguments() -> Model:
    return Model(lambda x, t, *, y: x, (2,), schedule=Schedule.cosine(10))


def of_nothing() -> Model:
    return Model(lambda x, t: x, (2,), schedule=Schedule.cosine(10))


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def one_sentence(error: BaseException, *words: str) -> None:
    text = str(error)
    assert text.startswith("fastdiff.jobs: expected ") and ", got " in text and "\n" not in text, (
        text
    )
    assert all(word in text for word in words), text


def test_classes_in_turn() -> None:
    model = of_classes()
    given = Conditions.of(model, ids=(5, 99), classes="3, Coat,Ankle boot")
    assert given.entries(0, 7) == [3, 1, 2, 3, 1, 2, 3] and given.entries(6, 6) == []
    assert given.identity == {"classes": [3, 1, 2]} and given.file is None
    # an id's class is the same in every run
    other = Conditions.of(model, ids=(0, 10**9), classes='3,"Coat","Ankle boot"')
    assert other.entries(10**9, 10**9 + 2) == given.entries(10**9, 10**9 + 2) == [1, 2]
    assert Conditions.of(model, ids=(0, 9), classes='"bag, purse",purse').identity == {
        "classes": [3, 3]
    }
    everything = Conditions.of(model, ids=(0, 9))
    assert everything.identity == {"classes": [0, 1, 2, 3]} and everything.entries(2, 6) == [
        2,
        3,
        0,
        1,
    ]
    again = Conditions.restore(json.loads(json.dumps(given.identity)), model, ids=(5, 99))
    assert again.entries(0, 50) == given.entries(0, 50) and again.identity == given.identity


@pytest.mark.parametrize("classes", ["4", "-1", "Trouser", "3,,1", "", "1 2", "3.0"])
def test_classes_that_are_none(classes: str) -> None:
    with pytest.raises(ValueError) as caught:
        Conditions.of(of_classes(), ids=(0, 9), classes=classes)
    one_sentence(caught.value, "--classes")


def test_models_without_classes() -> None:
    nothing = Conditions.of(of_nothing(), ids=(0, 9))
    assert nothing.identity == {} and nothing.entries(3, 5) == [None, None]
    assert Conditions.restore({}, of_nothing(), ids=(0, 9)).entries(0, 1) == [None]
    for model in (of_nothing(), of_prompts(), of_arguments()):
        with pytest.raises(ValueError) as caught:
            Conditions.of(model, ids=(0, 9), classes="1")
        one_sentence(caught.value, "model with classes")
    for model in (of_prompts(), of_arguments()):
        with pytest.raises(ValueError) as caught:
            Conditions.of(model, ids=(0, 9))
        one_sentence(caught.value, "conditions file")


def test_a_file_of_classes(tmp_path: Path) -> None:
    """Names, numbers, JSON and both line endings; line k is the id first + k."""
    text = 'Coat\n3\r\n "2"\n{"y": 1}\n{"class": "T-shirt"}\nbag, purse'
    path = written(tmp_path / "labels.txt", text)
    given = Conditions.of(of_classes(), ids=(100, 105), file=path)
    assert given.entries(100, 106) == [1, 3, 2, 1, 0, 3]
    assert (
        given.entries(102, 104) == [2, 1]
        and given.entries(105, 106) == [3]
        and given.entries(103, 103) == []
    )
    # ids outside the run have the entry of the nearest sample
    assert given.entries(98, 102) == [1, 1, 1, 3] and given.entries(104, 109) == [0, 3, 3, 3, 3]
    assert given.identity == {"file": hashlib.sha256(text.encode()).hexdigest(), "lines": 6}
    assert given.file == path
    assert Conditions.of(of_classes(), ids=(0, 5), file=written(path, text + "\n")).entries(
        5, 6
    ) == [3]
    marked = Conditions.of(
        of_classes(), ids=(0, 5), file=written(path, b"\xef\xbb\xbf" + text.encode())
    )
    assert marked.entries(0, 6) == [1, 3, 2, 1, 0, 3]


def test_a_file_of_prompts(tmp_path: Path) -> None:
    lines = [
        "a red shoe",
        '"a \\"red\\" shoe"',
        '"Starry Night" by van Gogh',
        "1984",
        "  ein rötlicher Schuh 👟 ",
        '{"prompt": "bag", "negative_prompt": "blue"}',
        '""',
        "[1, 2]",
        "null",
        '"',
    ]
    texts = [
        "a red shoe",
        'a "red" shoe',
        '"Starry Night" by van Gogh',
        "1984",
        "ein rötlicher Schuh 👟",
        "bag",
        "",
        "[1, 2]",
        "null",
        '"',
    ]
    given = Conditions.of(
        of_prompts(), ids=(0, 9), file=written(tmp_path / "p.txt", "\n".join(lines))
    )
    assert [entry["prompt"] for entry in given.entries(0, 10)] == texts
    assert [entry["negative_prompt"] for entry in given.entries(0, 10)] == [None] * 5 + ["blue"] + [
        None
    ] * 4


def test_a_file_of_arguments(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", '{"y": 1}\n{"y": 2}\n')
    model = of_arguments()
    given = Conditions.of(model, ids=(0, 1), file=path)
    cond, uncond = model.conditions(given.entries(0, 4))
    assert cond is not None and cond["y"].tolist() == [1, 2, 2, 2] and uncond is None
    for text in ('{"y": 1}\n{"y": 1.5}', '{"y": 1}\n{"y": [1, 2]}'):
        with pytest.raises(ValueError) as caught:
            Conditions.of(model, ids=(0, 1), file=written(path, text))
        one_sentence(caught.value, "line 2")


@pytest.mark.parametrize(
    "text, words",
    [
        ("Coat\nTrouser\n1\n", "in line 2 of"),
        ("Coat\n\n1\n", "line 2"),
        ("Coat\n1\n \n", "line 3"),
        ("Coat\n1\n4\n", "in line 3 of"),
        ('Coat\n{"y": 1\n1\n', "JSON in line 2"),
        ('Coat\n{"y": NaN}\n1\n', "NaN"),
        ('Coat\n"a" or "b"\n1\n', "JSON in line 2"),
        ('Coat\n{"prompt": "a shoe"}\n1\n', "in line 2 of"),
        (b"Coat\n\xff\xfe\n1\n", "UTF-8 in line 2"),
        ("Coat\n1\n", "got 2 lines"),
        ("Coat\n1\n2\n3\n", "got 4 lines"),
        ("Coat\n1\n2\n3", "got 4 lines"),
        ("", "got 0 lines"),
    ],
)
def test_files_that_are_refused(text: str | bytes, words: str, tmp_path: Path) -> None:
    path = written(tmp_path / "labels.txt", text)
    with pytest.raises(ValueError) as caught:
        Conditions.of(of_classes(), ids=(7, 9), file=path)
    one_sentence(caught.value, words, str(path))


def test_other_refusals(tmp_path: Path) -> None:
    path = written(tmp_path / "labels.txt", "1\n2\n")
    with pytest.raises(ValueError) as caught:
        Conditions.of(of_nothing(), ids=(0, 1), file=path)
    one_sentence(caught.value, "takes no conditions")
    with pytest.raises(ValueError) as caught:
        Conditions.of(of_classes(), ids=(0, 1), file=path, classes="1")
    one_sentence(caught.value, "got both")
    with pytest.raises(FileNotFoundError) as missing:
        Conditions.of(of_classes(), ids=(0, 1), file=tmp_path / "nothing.txt")
    one_sentence(missing.value, "nothing.txt")
    with pytest.raises(FileNotFoundError) as missing:
        Conditions.of(of_classes(), ids=(0, 1), file=tmp_path)
    identity = Conditions.of(of_classes(), ids=(0, 1), file=path).identity
    with pytest.raises(FileNotFoundError) as missing:
        Conditions.restore(identity, of_classes(), ids=(0, 1))
    one_sentence(missing.value)
    with pytest.raises(ValueError) as caught:
        Conditions.restore(identity, of_classes(), ids=(0, 1), file=written(path, "1\n3\n"))
    one_sentence(caught.value, "that the run began with")


def test_a_worker_reads_what_the_writer_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker does not parse every line again, and notices a file that changes during the run."""
    path = written(tmp_path / "labels.txt", "1\n2\n3\n")
    model = open_model("fashion-mnist")
    written_by = Conditions.of(model, ids=(0, 2), file=path)
    parsed: list[Any] = []
    parse = model.conditioning.parse
    monkeypatch.setattr(
        model.conditioning, "parse", lambda value: parsed.append(value) or parse(value)
    )
    monkeypatch.chdir(tmp_path)
    worker = Conditions.restore(written_by.identity, model, ids=(0, 2), file="labels.txt")
    assert not parsed and worker.entries(1, 3) == [2, 3] and parsed == ["2", "3"]
    monkeypatch.undo()
    assert pickle.loads(pickle.dumps(written_by)).entries(0, 3) == [1, 2, 3]
    os.utime(path, ns=(0, 0))
    with pytest.raises(ValueError) as caught:
        worker.entries(0, 1)
    one_sentence(caught.value, "unchanged")


def test_any_range_of_a_long_file(tmp_path: Path) -> None:
    """Ranges equal those of a list; lines of 1 to 300 bytes cross the chunks of the index."""
    draw = random.Random(0)
    lines = [str(i) + " " + "é" * draw.choice((0, 1, 5, 149)) for i in range(60_000)]
    path = written(tmp_path / "prompts.txt", "\n".join(lines) + "\n")
    assert path.stat().st_size > 1 << 22  # more than one chunk
    first = 10**12
    given = Conditions.of(of_prompts(), ids=(first, first + len(lines) - 1), file=path)
    for begin in [0, 1, 63, 64, 65, 59_936, *(draw.randrange(len(lines)) for _ in range(200))]:
        stop = min(begin + draw.randrange(1, 200), len(lines))
        got = [entry["prompt"] for entry in given.entries(first + begin, first + stop)]
        assert got == [line.strip() for line in lines[begin:stop]]


def test_a_long_file_takes_little_time_and_memory(tmp_path: Path) -> None:
    """A million lines are checked in at most 3 s of a core (0.2 measured)."""
    lines = 10**6
    path = written(tmp_path / "labels.txt", "".join(f"{i % 4}\n" for i in range(lines)))
    model, ids = of_classes(), (0, lines - 1)
    begin = time.process_time()
    given = Conditions.of(model, ids=ids, file=path)
    assert time.process_time() - begin < 60, "a line takes microseconds"
    tracemalloc.start()
    again = Conditions.restore(given.identity, model, ids=ids, file=path)
    retained, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        most < 48 << 20 and retained < 1 << 20
    )  # 16 bytes for each 64 lines, and one chunk with its line ends
    assert again.entries(777_777, 777_781) == [1, 2, 3, 0]


def test_entries_reach_the_network(tmp_path: Path) -> None:
    """A file's classes give the same samples, bit for bit, as the same classes passed directly."""
    model = open_model("fashion-mnist")
    path = written(tmp_path / "labels.txt", "Coat\nBag\n3\n")
    entries = Conditions.of(model, ids=(10, 12), file=path).entries(10, 14)
    sampler = model.sampler(steps=2, network_batch=4)
    cond, uncond = model.conditions(entries)
    got = sampler.sample((4, 1, 28, 28), seed=0, sample_ids=range(10, 14), cond=cond, uncond=uncond)
    y = torch.tensor([4, 8, 3, 3])
    expected = sampler.sample(
        (4, 1, 28, 28),
        seed=0,
        sample_ids=range(10, 14),
        cond={"y": y},
        uncond={"y": torch.full_like(y, 10)},
    )
    assert torch.equal(got, expected) and model.labels(entries) == y.tolist()
