"""A finished run of a tiny network, and helpers that damage it and compare what is left."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from fastdiff.cli import main

RUN = ("--model", "tiny:factory", "--ids", "2-21", "--unit", "4", "--steps", "3", "--threads", "1")
UNITS = 6
SHARD, RECORD = "shards/00000/000000003.npy", "units/00000/000000003.json"


class Cli:
    """Runs commands in this process, with trust in the code that a run's spec names.

    Attributes: out, err: the output of the latest command.
    """

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> int:
        trust = ["--trust"] if arguments[0] in ("resume", "sample", "verify") else []
        status = main([*(str(a) for a in arguments), *trust])
        self.out, self.err = self._capsys.readouterr()
        return status

    def digest(self, folder: Path) -> str:
        """Returns the digest of a dataset that must be intact."""
        assert self("verify", folder, "--json") == 0, self.out
        return json.loads(self.out)["digest"]


def state(folder: Path, without: int | None = None) -> dict[str, tuple[str, int]]:
    """Returns the hash and modification time of every file of the units, except one unit's."""
    paths = [p for kind in ("shards", "units") for p in (folder / kind).rglob("*") if p.is_file()]
    return {
        str(p.relative_to(folder)): (
            hashlib.sha256(p.read_bytes()).hexdigest(),
            p.stat().st_mtime_ns,
        )
        for p in paths
        if without is None or int(p.stem) != without
    }


def pixels(folder: Path) -> dict[str, str]:
    return {name: value[0] for name, value in state(folder).items() if name.startswith("shards/")}


def flip(path: Path, position: int = -1, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
