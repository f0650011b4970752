"""Names and texts from someone else's folder have no power over the terminal, in any command."""

from __future__ import annotations

import ast
import dataclasses
import json
import shutil
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff import Sampler, Schedule, cli
from fastdiff.backend import choice, library
from fastdiff.jobs import Folder, Job, RunSpec
from fastdiff.models import MLP

# clears the screen, sets the title, writes right to left, begins a line of its own
EVIL = "x\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066\r\nfastdiff: all is well\x7f"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset and a model folder in which every name and text is hostile."""
    top = tmp_path_factory.mktemp("hostile") / EVIL
    top.mkdir()
    job = Job.plan("fashion-mnist", ids=(0, 5), unit=4, steps=1, guidance_scale=1.0, threads=1)
    model = {**job.spec.model, "name": f"{EVIL}:factory"}
    info = {**job.spec.plan.info, "solver": EVIL}
    plan = dataclasses.replace(job.spec.plan, info=info)
    data = Folder.create(top / f"data{EVIL}", dataclasses.replace(job.spec, model=model, plan=plan))
    record = data.path / "units" / "00000" / "000000000.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"unit": EVIL, "first": EVIL}))
    for name in (EVIL, f"units/{EVIL}", f"units/00000/{EVIL}"):
        (data.path / name).touch()
    data.fail(1, {"what": EVIL})
    (data.path / "log").mkdir()
    event = {"event": "unit", "unix": 4e9, "images_per_second": 1.0}
    (data.path / "log" / f"{EVIL}.jsonl").write_text(json.dumps(event) + "\n")
    torch.manual_seed(0)
    network = top / f"model{EVIL}"
    mlp = MLP(width=8, depth=1, emb=8)
    Sampler(mlp, Schedule.cosine(10), steps=2).save_pretrained(network)
    config = json.loads((network / "config.json").read_text())
    (network / "config.json").write_text(json.dumps({**config, "data": {"name": EVIL}}))
    return {"data": data.path, "model": network, "top": top}


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command and returns what it printed, which has no control characters."""

    def run(*arguments: str | Path) -> str:
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit:
            pass  # wrong arguments
        text = "".join(capsys.readouterr())
        bad = {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")}
        assert not bad, text
        assert not any(line.startswith("fastdiff: all is well") for line in text.splitlines())
        return text

    return run


COMMANDS: dict[str, tuple[str, ...]] = {
    "info": ("info", "{data}"),
    "info --json": ("info", "{data}", "--json"),
    "info of a model": ("info", "{model}"),
    "verify": ("verify", "{data}"),
    "verify --json": ("verify", "{data}", "--json"),
    "verify --recompute": ("verify", "{data}", "--recompute", "1"),
    "resume": ("resume", "{data}"),
    "sample": ("sample", "--out", "{data}"),
    "sample --spec": ("sample", "--spec", "{data}", "--ids", "0"),
    "sample --model": ("sample", "--model", "{top}", "--out", "{top}/new"),
    "sample --model of code": ("sample", "--model", f"{EVIL}:f", "--out", "{top}/new"),
    "sample --conditions": ("sample", "--conditions", "{top}/none", "--out", "{top}/new"),
    "sample --classes": ("sample", "--classes", EVIL, "--out", "{top}/new"),
    "export": ("export", "{data}", "--format", "npy", "--out", "{top}/out"),
    "eval": ("eval", "{model}"),
    "eval of the data": ("eval", "{model}", "--data", "moons", "--images", "2", "--times", "1"),
    "eval of a dataset": ("eval", "{data}", "--data", "moons"),
    "bench": ("bench", "--model", "{data}"),
    "train": ("train", "--data", "fashion-mnist-full", "--data-root", "{data}", "--out", "{top}/o"),
    "plan": ("plan", "--option", f"{EVIL}=1"),
    "wrong arguments": ("info", "{data}", EVIL),
    "a wrong command": (EVIL,),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_show_control_characters_escaped(
    name: str, made: dict[str, Path], printed: Callable[..., str]
) -> None:
    arguments = [a.format(**made) if "{" in a else a for a in COMMANDS[name]]
    assert "x1b" in (text := printed(*arguments)) or "u001b" in text, text


def test_a_hidden_name_is_still_told_from_another(
    made: dict[str, Path], printed: Callable[..., str]
) -> None:
    text = printed("verify", made["data"])
    assert (
        "x\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202e\\u2066\\r\\nfastdiff: all is well\\x7f" in text
    )
    assert "unit 1 failed: x\\x1b[2J" in text


def test_doctor(
    made: dict[str, Path], printed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(made["model"] / "config.json", made["top"] / "lib.so")
    monkeypatch.setenv("FASTDIFF_CUDA_LIB", str(made["top"] / "lib.so"))
    # without their caches, which other tests need as they are
    monkeypatch.setattr(library, "load", library.load.__wrapped__)
    monkeypatch.setattr(choice, "_state", choice._state.__wrapped__)
    assert "x1b" in printed("doctor") and "x1b" in printed("doctor", "--json")


def test_warnings(
    made: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: Any) -> int:
        print(warnings.formatwarning(EVIL, UserWarning, "file", 1))
        return 0

    monkeypatch.setattr("fastdiff.cli.solvers.run", run)
    before = warnings.formatwarning
    cli.main(["solvers"])
    assert "x1b" in (text := capsys.readouterr().out) and "\x1b" not in text
    assert warnings.formatwarning is before


def test_nothing_else_prints() -> None:
    """A new line of output goes through fastdiff.cli.output too."""
    for file in sorted(Path(cli.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and file.name != "output.py":
                function = ast.unparse(node.func)
                assert function != "print" and ".write" not in function.replace("write_", ""), (
                    f"{file.name}:{node.lineno}: use fastdiff.cli.output.say"
                )


def test_the_spec_is_as_it_was_made(made: dict[str, Path]) -> None:
    """The dataset is hostile in its words alone: every check of its form passes."""
    value = json.loads((made["data"] / "spec.json").read_text())
    assert RunSpec.from_json(value, "here").model["name"] == f"{EVIL}:factory"
