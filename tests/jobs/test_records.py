"""Records of units: their order, foreign files next to them, damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_maker import block, commit

from fastdiff.jobs.records import read_record, record_name, records, unit_files


def test_records_come_in_the_order_of_their_units(tmp_path: Path) -> None:
    units = [0, 9, 10, 999, 1000, 1001, 12_345, 99_999_999, 100_000_000, 1_234_567_890]
    for unit in np.random.default_rng(1).permutation(units).tolist():
        commit(tmp_path, "npy", block("grey", range(2), unit=unit))
    assert [r["unit"] for r in records(tmp_path)] == units
    assert [u for u, _ in unit_files(tmp_path)] == units
    assert record_name(12_345) == "units/00012/000012345.json"
    assert all(path == tmp_path / record_name(unit) for unit, path in unit_files(tmp_path))


def test_other_entries_are_passed_over(tmp_path: Path) -> None:
    assert list(records(tmp_path)) == []
    commit(tmp_path, "npy", block("grey", range(2), unit=3))
    for name in (
        "units/.nfs0001",
        "units/00000/.000000004.json.77.tmp",
        "units/00000/000000004.json.tmp",
        "units/00000/4.json",
        "units/notes/000000005.json",
        "units/00001/000000006.json",
        "units/00002",
        "units/00000/lost+found/x",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [r["unit"] for r in records(tmp_path)] == [3]


WRONG: list[tuple[Any, str]] = [
    (b"", "no JSON object"),
    (b'{"unit": 3', "no JSON object"),
    (b"[1]", "no JSON object"),
    (b"\xff\xfe", "no JSON object"),
    ({"unit": 4}, "the one of unit 4"),
    ({"first": "0"}, "no whole numbers as first"),
    ({"seed": True}, "no whole numbers as seed"),
    ({"stop": 3}, "shape [2, 5, 4, 1] for the ids 0 to 2"),
    ({"shape": []}, "shape [] for the ids 0 to 1"),
    ({"shape": [2, 0, 4, 1]}, "shape [2, 0, 4, 1] for"),
    ({"dtype": "int32"}, "dtype 'int32'"),
    ({"labels": [1]}, "labels other than 2 whole numbers"),
    ({"labels": [1, "2"]}, "labels other than 2 whole numbers"),
    ({"pixels": "abc"}, "no hash of its pixels"),
    ({"files": []}, "no list of its files"),
    ({"files": [{"name": "x"}]}, "no list of its files"),
    ({"files": None}, "no list of its files"),
]


@pytest.mark.parametrize("change, message", WRONG)
def test_a_damaged_record_is_named(change: Any, message: str, tmp_path: Path) -> None:
    record = commit(tmp_path, "npy", block("grey", range(2), unit=3))
    path = tmp_path / record_name(3)
    assert read_record(path, 3) == record
    path.write_bytes(
        change if isinstance(change, bytes) else json.dumps({**record, **change}).encode()
    )
    with pytest.raises(ValueError) as damaged:
        list(records(tmp_path))
    text = str(damaged.value)
    assert text.startswith(f"fastdiff.jobs: expected the record of unit 3 in {path}, got {message}")
    assert text.endswith(f"Run `fastdiff resume {tmp_path}`.")


def test_a_record_that_goes_meanwhile_is_passed_over(tmp_path: Path) -> None:
    for unit in range(3):
        commit(tmp_path, "npy", block("grey", range(2), unit=unit))
    stream = records(tmp_path)
    assert next(stream)["unit"] == 0
    (tmp_path / record_name(1)).unlink()
    assert [r["unit"] for r in stream] == [2]
