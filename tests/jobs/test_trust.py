"""A dataset's own code runs only where the caller has trusted it or named it, and never ends a
command that has not done its work.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damaged_runs import Cli

from fastdiff import jobs
from fastdiff.cli import main
from fastdiff.jobs import Folder, Job, ray
from fastdiff.jobs.job import check_trust
from fastdiff.jobs.models import open_model
from fastdiff.jobs.verify import verify
from fastdiff.user_code import origin

USAGE, FAILED = 2, 1
CODE = """
import sys
from pathlib import Path

import torch

from fastdiff import Schedule
from fastdiff.jobs import Model

HERE = Path(__file__).parent
with open(HERE / "imported", "a") as file:
    file.write("x")
if (HERE / "exit at import").exists():
    sys.exit(0)


def network(x, t, y):
    if (HERE / "exit in the network").exists():
        sys.exit(0)
    return 0.1 * x + 0.01 * y[:, None]


def factory():
    if (HERE / "exit in the factory").exists():
        sys.exit()
    return Model(network, (3,), schedule=Schedule.linear(100), num_classes=5)
"""
ASKED = ("--ids", "0-7", "--unit", "4", "--steps", "2", "--threads", "1")


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """(a dataset of two units, the module in its folder that its spec names)."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "dataset"
    folder.mkdir()
    monkeypatch.chdir(folder)
    name = f"their_code_{tmp_path.name.replace('-', '_')}"
    module = tmp_path / f"{name}.py"
    module.write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["sample", "--out", str(folder / "run"), "--model", f"{name}:factory", *ASKED]
    assert main(command) == 0
    (tmp_path / "imported").unlink()
    sys.modules.pop(name)
    sys.path.remove(str(tmp_path))
    own = folder / module.name  # the same source: the model's identity is that of the run
    shutil.move(module, own)
    yield folder / "run", own
    sys.modules.pop(name, None)


def commands(run: Path) -> dict[str, tuple[str, ...]]:
    return {
        "resume": ("resume", str(run)),
        "sample": ("sample", "--out", str(run)),
        "sample --spec": ("sample", "--spec", str(run), "--ids", "1-1", "--out", str(run.parent)),
        "verify": ("verify", str(run), "--recompute", "1"),
    }


NAMES = ("resume", "sample", "sample --spec", "verify")


@pytest.mark.parametrize("name", NAMES)
def test_code_of_a_dataset_is_not_run_without_trust(
    name: str, dataset: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, module = dataset
    shutil.rmtree(run / "units" / "00000") if name in ("resume", "sample") else None
    command = commands(run)[name]
    assert main([*command]) == USAGE
    said = capsys.readouterr().err
    assert f"would import {module.stem!r} from {module} and run it" in said
    assert f"expected trust in the code that {run} names" in said and len(said.splitlines()) == 1
    assert not (module.parent / "imported").exists()
    assert main([*command, "--trust"]) == 0
    assert (module.parent / "imported").exists()


def test_naming_the_model_again_is_trust(dataset: tuple[Path, Path]) -> None:
    run, module = dataset
    named = ("--model", f"{module.stem}:factory")
    assert main([*commands(run)["sample"], *named]) == 0
    assert main([*commands(run)["sample --spec"], *named]) == 0
    assert main(["verify", str(run)]) == 0, "without --recompute nothing is run"


def test_functions_ask_for_trust(dataset: tuple[Path, Path]) -> None:
    run, module = dataset
    folder, sentence = Folder(run), re.escape(f"would import {module.stem!r} from {module}")
    calls: list[Any] = [
        lambda: Job.open(folder.spec),
        lambda: jobs.run(run),
        lambda: list(jobs.finished(run)),
        lambda: jobs.run(folder.spec, run),
        lambda: verify(folder, recompute=1),
        lambda: ray.run_pool(folder),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=sentence):
            call()
    assert not (module.parent / "imported").exists()
    assert jobs.run(run, trust=True).complete
    assert verify(folder, recompute=2, trust=True).recomputed == [0, 1]


def test_models_that_are_no_code_need_no_trust(tmp_path: Path) -> None:
    job = Job.plan("fashion-mnist", ids=(0, 1), steps=1, threads=1)
    check_trust(job.spec, False, "the spec")
    assert Job.open(job.spec).spec.hash == job.spec.hash


@pytest.mark.parametrize("where", ["at import", "in the factory", "in the network"])
@pytest.mark.parametrize("name", NAMES)
def test_an_exit_of_the_model_s_code_is_a_failure(
    name: str, where: str, dataset: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`sys.exit(0)`, which says that all is well, leaves the work undone."""
    run, module = dataset
    if name in ("resume", "sample"):
        shutil.rmtree(run / "units" / "00000")
    (module.parent / f"exit {where}").touch()
    assert main([*commands(run)[name], "--trust"]) in (FAILED, USAGE)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("fastdiff ") and "got an exit with the status" in said


def test_an_exit_anywhere_else_is_a_failure_too(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    def leave(*_: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("fastdiff.cli.info.run", leave)
    assert cli("info", "nowhere") == FAILED
    assert "expected the command to return, got an exit with the status 0" in cli.err


def test_the_origin_of_a_module_is_found_without_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "their_package" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "models.py").write_text("raise RuntimeError('imported')")
    monkeypatch.chdir(tmp_path)
    assert origin("their_package.inner.models:make") == str(package / "models.py")
    assert origin("their_package:make") == str(package.parent / "__init__.py")
    assert origin("their_package.absent:make") == "nowhere"
    assert origin("absent_package.models:make") == "nowhere"
    assert origin("json.decoder:make").endswith("decoder.py")
    with pytest.raises(ImportError, match="RuntimeError: imported"):
        open_model("their_package.inner.models:make")
