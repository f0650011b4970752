"""Values on the command line mean the same in every command that reads them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from fastdiff.cli import COMMANDS, main, options, parser_of
from fastdiff.cli.exit_status import UsageError

VALUES = [
    ("0.5", 0.5),
    ("-3", -3),
    ("1e-3", 1e-3),
    ("true", True),
    ("False", False),
    ("none", None),
    ("null", None),
    ("1,2", [1, 2]),
    ("[1, 2]", [1, 2]),
    ("8,none,x", [8, None, "x"]),
    ('{"a": 1}', {"a": 1}),
    ("karras", "karras"),
    ("a=b", "a=b"),
    ('"1,2"', "1,2"),
    ("", ""),
]
# (command, flag, arguments that it needs); of commands with such a flag, all: see the test below
FLAGS = {
    ("sample", "--option"): ["--out", "x"],
    ("plan", "--option"): [],
    ("plan", "--schedule-option"): [],
    ("train", "--option"): ["--out", "x", "--data", "moons"],
    ("eval", "--option"): ["uniform", "--data", "moons"],
}


class Reached(Exception):
    """Carries what a command passed to its work."""


def actions(command: str) -> list[argparse.Action]:
    """The flags of a command."""
    subparsers = next(
        action
        for action in parser_of((command,))._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return list(subparsers.choices[command]._actions)


def passed(
    command: str, flag: str, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The options that a command passes to its work for these texts."""

    def reach(**found: Any) -> Any:
        raise Reached(found)

    if command == "sample":
        monkeypatch.setattr("fastdiff.cli.sample.Job.plan", reach)
    elif flag == "--schedule-option":
        monkeypatch.setattr("fastdiff.cli.plan._schedule", lambda name, size, found: reach(**found))
    elif command == "plan":
        monkeypatch.setattr("fastdiff.cli.plan.make_plan", lambda schedule, **found: reach(**found))
    elif command == "train":
        monkeypatch.setattr(
            "fastdiff.theory.systems.presets.make", lambda name, data, **found: reach(**found)
        )
    else:
        monkeypatch.setattr(
            "fastdiff.theory.evaluation.Request", lambda **found: reach(**found["options"])
        )
    arguments = [part for text in texts for part in (flag, text)]
    with pytest.raises(Reached) as reached:
        main([command, *FLAGS[command, flag], *arguments])
    found: dict[str, Any] = reached.value.args[0]
    return found


def test_every_flag_is_listed_here_and_explains_the_rule() -> None:
    found = set()
    for command in COMMANDS:
        for action in actions(command):
            if action.metavar == "NAME=VALUE":
                found.add((command, action.option_strings[0]))
                assert action.help is not None and action.help.endswith(options.RULE)
    assert found == set(FLAGS)


@pytest.mark.parametrize("text, value", VALUES)
def test_a_value(text: str, value: Any) -> None:
    found = options.parse_value(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("command, flag", FLAGS)
def test_values_mean_the_same_in_every_command(
    command: str, flag: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"name-{i}={text}" for i, (text, _) in enumerate(VALUES)]
    found = passed(command, flag, texts, monkeypatch)
    mine = {k: v for k, v in found.items() if k.startswith("name_")}
    assert mine == {f"name_{i}": value for i, (_, value) in enumerate(VALUES)}


@pytest.mark.parametrize("command, flag", FLAGS)
@pytest.mark.parametrize(
    "texts, sentence",
    [
        (["word"], "expected {flag} NAME=VALUE, got 'word'."),
        (["=1"], "expected {flag} NAME=VALUE, got '=1'."),
        (["a=1", "a=2"], "expected {flag} a once, got it twice."),
        (["a_b=1", "a-b=1"], "expected {flag} a_b once, got it twice."),
    ],
)
def test_a_wrong_option_is_a_usage_error(
    command: str, flag: str, texts: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part for text in texts for part in (flag, text)]
    assert main([command, *FLAGS[command, flag], *arguments]) == 2
    assert capsys.readouterr().err == f"fastdiff {command}: {sentence.format(flag=flag)}\n"


@pytest.mark.parametrize(
    "arguments, name",
    [
        (["sample", "--out", "x", "--steps", "3", "--option", "steps=4"], "steps"),
        (["plan", "--option", "steps=4"], "steps"),
        (["train", "--out", "x", "--latent", "8", "--option", "latent=4"], "latent"),
    ],
)
def test_a_setting_by_its_flag_and_by_option(
    arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert f"expected {name} once, got it by a flag and by --option." in capsys.readouterr().err


def test_shapes() -> None:
    assert options.parse_shape("3,32,32") == (3, 32, 32) and options.parse_shape("7") == (7,)
    for wrong in ("", "3x3", "3,", ",3", "3,0", "-3", "3, 3", "03", "٣"):
        with pytest.raises(UsageError, match="expected --shape as numbers like 3,32,32, got "):
            options.parse_shape(wrong)


@pytest.mark.parametrize("command", ["sample", "bench"])
def test_shapes_are_read_alike(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", "x"] if command == "sample" else []
    assert main([command, *out, "--shape", "3,0"]) == 2
    said = capsys.readouterr().err
    assert said == f"fastdiff {command}: expected --shape as numbers like 3,32,32, got '3,0'.\n"


def test_ranges_of_ids() -> None:
    assert options.parse_id_range("0-49999") == (0, 49999) and options.parse_id_range("7") == (7, 7)
    for wrong in ("", "7-", "-7", "7-6", "a-b", "1-2-3", "٣"):
        with pytest.raises(UsageError, match="expected --ids A-B with A <= B"):
            options.parse_id_range(wrong)
