"""What all commands have in common: the status of wrong arguments, --quiet and --json."""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path

import pytest

from fastdiff.cli import COMMANDS, main, parser_of

# wrong arguments that argparse itself cannot see, for each command that has any
WRONG: dict[str, list[list[str]]] = {
    "train": [
        ["--steps", "1"],  # without --out
        ["--out", "run", "--data", "nowhere"],
        ["--out", "run", "--data", "moons", "--steps", "0"],
        ["--out", "run", "--data", "moons", "--option", "colour=red"],
        ["--out", "run", "--minutes", "0"],
        ["--out", "run", "--resume"],
        ["--out", "run", "--data", "moons", "--plot", "run.pdf"],
        ["--out", "run", "--device", "gpu"],
        ["--out", "run", "--threads", "0"],
        ["--options", "--data", "nowhere"],
    ],
    "data": [["latents", "--vae", "nowhere", "--out", "x.npy", "--data", "fashion-mnist"]],
    "sample": [["--num", "3"], ["--out", "run", "--steps", "0"], ["--dry-run", "--solver", "x"]],
    "resume": [["nowhere"]],
    "info": [["nowhere"]],
    "verify": [["nowhere"]],
    "merge": [["out", "nowhere", "elsewhere"]],
    "export": [["nowhere", "--format", "npz", "--out", "x.npz"]],
    "eval": [
        ["nowhere"],
        ["uniform"],
        ["uniform", "--data", "fashion-mnist", "--times", "0"],
        ["uniform", "--data", "fashion-mnist", "--images", "5", "--first", "60000"],
        ["uniform", "--data", "fashion-mnist", "--option", "colour=red"],
        ["uniform", "--data", "fashion-mnist", "--plot", "missing/x.png"],
    ],
    "metrics": [["nowhere", "fashion-mnist:test"], ["fashion-mnist:test"]],
    "ema": [["nowhere", "--sigma-rel", "0.1", "--out", "x"]],
    "bench": [["--model", "nowhere"], ["--steps", "0"]],
    "plan": [
        ["--solver", "nothing"],
        ["--steps", "0"],
        ["--option", "colour=red"],
        ["--schedule-option", "colour=red"],
        ["--option", "eta"],
        ["--plot", "x.pdf"],
    ],
}


@pytest.mark.parametrize(
    "arguments", [[name, *rest] for name, lists in WRONG.items() for rest in lists], ids=" ".join
)
def test_wrong_arguments_end_with_2(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With one sentence on stderr, nothing on stdout, and no file."""
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"fastdiff {arguments[0]}: ")
    assert ", got " in said.err
    assert said.err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_no_command_is_left_out() -> None:
    """The others take nothing but choices, which argparse checks."""
    assert WRONG.keys() == COMMANDS.keys() - {"solvers", "doctor"}


def flags(name: str) -> set[str]:
    """Returns the flags of a command, with those of its own commands."""
    found, parsers = set[str](), [_sub(parser_of([name]))[name]]
    while parsers:
        parser = parsers.pop()
        found |= set(parser._option_string_actions)
        parsers += _sub(parser).values()
    return found


def _sub(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}  # type: ignore[arg-type]


def test_every_command_that_shows_its_progress_has_quiet() -> None:
    """Bars and lines of progress are tqdm's, or go through an argument `progress`."""
    for name in COMMANDS:
        module = inspect.getmodule(_sub(parser_of([name]))[name].get_default("run"))
        assert module is not None
        source = inspect.getsource(module)
        shows = any(word in source for word in ("tqdm", "progress=", "measuring")) or name in (
            "resume",
            "train",
        )
        assert ("--quiet" in flags(name)) == shows, name


def test_quiet_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--quiet leaves stderr empty; --json prints one JSON value and nothing else on stdout."""
    run, other, out = (str(tmp_path / name) for name in ("run", "other", "out"))
    few = ["--steps", "1", "--guidance", "1", "--unit", "2", "--quiet", "--json"]
    npz = [str(tmp_path / "run.npz"), str(tmp_path / "other.npz")]
    bench = ["--steps", "1", "--batch", "1", "--seconds", "0.01", "--threads", "1"]

    def value(*arguments: str) -> dict[str, object]:
        assert main(arguments) == 0
        said = capsys.readouterr()
        assert said.err == "", said.err
        return json.loads(said.out)  # type: ignore[no-any-return]

    made = value("sample", "--out", run, "--ids", "0-2", *few)
    expected = {"complete": True, "units": 2, "done": 2, "made": 2, "images": 3, "failed": {}}
    assert made.items() >= {**expected, "folder": run, "stopped": False}.items()
    assert value("sample", "--out", run, "--ids", "0-4", *few)["made"] == 2
    assert value("resume", run, "--quiet", "--json")["made"] == 0
    value("sample", "--out", other, "--ids", "4-5", *few)
    joined = value("merge", out, run, other, "--quiet", "--json")
    assert joined["images"] == 6 and joined["complete"] is True
    for folder, file in zip((run, other), npz, strict=True):
        written = value("export", folder, "--format", "npz", "--out", file, "--quiet", "--json")
        assert written == {"samples": 5 if folder == run else 2, "format": "npz", "out": file}
    again = ["sample", "--spec", run, "--ids", "1", "--out", str(tmp_path / "alone"), "--json"]
    assert value(*again) == [  # type: ignore[comparison-overlap]
        {"sample": 1, "file": str(tmp_path / "alone" / "000001.png"), "same": True}
    ]
    assert [row["name"] for row in value("bench", *bench, "--quiet", "--json")["benchmarks"]]  # type: ignore[attr-defined]
    uniform = ["eval", "uniform", "--data", "fashion-mnist", "--images", "2", "--quiet", "--json"]
    assert len(value(*uniform)["results"]) == 1  # type: ignore[arg-type]


def test_train_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--model", "vae", "--data", "moons", "--steps", "1", "--widths", "8"]
    for name, more in (("loud", []), ("quiet", ["--quiet"])):
        assert main([*train, "--out", str(tmp_path / name), *more]) == 0
        said = capsys.readouterr()
        assert "loss" in said.out and ("step 1/1" in said.err) == (name == "loud")


def test_notes_do_not_mix_with_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--num", "1", "--unit", "2", "--steps", "1", "--guidance", "1", "--json"]
    assert main(["sample", "--out", str(tmp_path / "run"), *few]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["images"] == 1 and "computing 2 samples for 1" in said.err
