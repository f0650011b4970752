"""Other runs, other models, and samples that are not finite: each is refused or named."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from damaged_runs import RECORD, RUN, Cli, pixels, state

from fastdiff import Schedule
from fastdiff.jobs import Folder
from fastdiff.jobs.formats import FORMATS


def test_folders_of_other_things(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert cli("sample", "--out", tmp_path, *RUN) == 2
    assert (
        cli.err
        == f"fastdiff sample: fastdiff.jobs: expected {tmp_path} to be new, empty or a run's, got"
        " 'thesis.tex' and no spec.json in it. Name another folder.\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert (
        cli("sample", "--out", tmp_path / "thesis.tex", *RUN) == 2
        and "to be a folder, got a file" in cli.err
    )


def test_other_specs_are_refused_with_their_differences(run: Path, cli: Cli) -> None:
    before = state(run)
    assert cli("sample", "--out", run, *RUN, "--seed", "1", "--steps", "4", "--format", "png") == 3
    assert (
        cli.err == f"fastdiff sample: fastdiff.jobs: expected the run of {run}, got another in 3"
        " settings.\n"
        "  seed: 0 there, 1 here\n  steps: 3 there, 4 here\n  format: 'npy' there, 'png' here\n"
        f"Name another --out, or continue it as it was started: `fastdiff resume {run}`.\n"
    )
    assert (
        cli("sample", "--out", run, "--ids", "2-20") == 3
        and "  ids: (2, 21) there, (2, 20) here\n" in cli.err
    )
    assert state(run) == before and cli("sample", "--out", run, *RUN) == 0


def test_other_weights_and_other_code_are_refused(
    run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / RECORD).unlink()
    before = state(run)
    monkeypatch.setenv("TINY_WEIGHTS", "1")
    for command in (
        ("resume", run),
        ("sample", "--out", run, *RUN),
        ("verify", run, "--recompute", "1"),
    ):
        assert cli(*command) == 3
        assert re.fullmatch(
            rf"fastdiff \w+: fastdiff\.jobs: expected the run of {run}, got another in a"
            r" setting\.\n"
            r"  model\.weights_sha256: '[0-9a-f]{64}' there, '[0-9a-f]{64}' here\n",
            cli.err,
        ), cli.err
    monkeypatch.delenv("TINY_WEIGHTS")
    module = tmp_path / "edited.py"
    module.write_text("from tiny import factory as make\n\n\ndef factory():\n    return make()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert cli("sample", "--out", "other", *RUN, "--model", "edited:factory") == 0
    module.write_text(module.read_text() + "# a word\n")
    assert cli("resume", "other") == 3 and "model.source_sha256: " in cli.err
    assert state(run) == before and cli("resume", run) == 0


def test_a_unit_without_finite_samples(
    tmp_path: Path, undisturbed: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample 9 of unit 2 is NaN from the second step: tried twice, named, left out, made later."""
    run = tmp_path / "run"
    levels = Folder(undisturbed).spec.plan.levels
    assert levels is not None
    sigma = float(levels[1][1])
    assert sigma == pytest.approx(float(Schedule.linear(100).sigma[66]), rel=1e-12)
    what = f"sample 9 is not finite after step 1, sigma {sigma:g}"
    monkeypatch.setenv("TINY_NAN", "9@66")
    assert cli("sample", "--out", run, *RUN) == 5
    assert (
        f"unit 2 failed: {what}\n" in cli.out
        and "5 of 6 units are in" in cli.out
        and what in cli.err
    )
    failed = json.loads((run / "failed/000000002.json").read_text())
    assert failed == {"unit": 2, "what": what, "sample_id": 9, "step": 1, "sigma": sigma}
    [log] = (run / "log").iterdir()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in events if e.get("unit") == 2] == ["begin", "unfinite", "failed"]
    others = {name: value for name, value in pixels(undisturbed).items() if "000000002" not in name}
    assert pixels(run) == others
    assert (
        cli("verify", run) == 4
        and f"unit 2 failed: {what}\n" in cli.out
        and "(--retry-failed)" in cli.out
    )
    assert cli("info", run) == 0 and "0 missing, 1 failed, 0 corrupt" in cli.out and what in cli.out
    assert cli("resume", run) == 5 and cli.out.startswith(f"unit 2 failed: {what}\n0 images"), (
        "tried again unasked"
    )
    assert cli("resume", run, "--retry-failed") == 5 and len(list((run / "log").iterdir())) == 3
    monkeypatch.delenv("TINY_NAN")
    assert cli("resume", run) == 5
    assert cli("resume", run, "--retry-failed") == 0 and cli.out.startswith("4 images")
    assert cli.digest(run) == cli.digest(undisturbed) and pixels(run) == pixels(undisturbed)


def test_samples_that_are_not_finite_once(
    tmp_path: Path, undisturbed: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("TINY_NAN", "9@66 once")
    assert cli("sample", "--out", run, *RUN) == 0
    [log] = (run / "log").iterdir()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in events if e.get("unit") == 2] == ["begin", "unfinite", "unit"]
    assert cli.digest(run) == cli.digest(undisturbed) and not (run / "failed").exists()


def test_samples_outside_the_run_need_not_be_finite(
    tmp_path: Path, undisturbed: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample 1 is computed with unit 0, whose ids in the run are 2 and 3."""
    monkeypatch.setenv("TINY_NAN", "1@66")
    assert cli("sample", "--out", tmp_path / "run", *RUN) == 0
    assert cli.digest(tmp_path / "run") == cli.digest(undisturbed)


def test_a_unit_that_another_worker_could_make(run: Path, undisturbed: Path, cli: Cli) -> None:
    """A unit that failed for one worker and was made by another is done."""
    (run / "failed").mkdir()
    (run / "failed/000000002.json").write_text(
        json.dumps({"unit": 2, "what": "sample 9 is not finite"})
    )
    (run / "failed/000000003.json").write_text("{")  # damaged
    (run / RECORD).unlink()
    assert (
        cli("resume", run) == 5
        and cli.out.startswith("unit 3 failed: ")
        and "unit 2" not in cli.out
    )
    assert f"{run / 'failed/000000003.json'} is not as it was written" in cli.out
    assert cli("resume", run, "--retry-failed") == 0 and cli.digest(run) == cli.digest(undisturbed)


def test_the_digest_is_of_the_samples_alone(undisturbed: Path, tmp_path: Path, cli: Cli) -> None:
    """A line per unit of first id, stop id and the SHA-256 of the pixels, in every format."""
    expected = hashlib.sha256(b"fastdiff dataset 1\n")
    for unit, (first, stop) in enumerate([(2, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 22)]):
        array = np.load(undisturbed / f"shards/00000/{unit:09d}.npy")
        expected.update(f"{first} {stop} {hashlib.sha256(array.tobytes()).hexdigest()}\n".encode())
    assert cli.digest(undisturbed) == expected.hexdigest()
    pictures = [name for name, fmt in FORMATS.items() if fmt.holds((8, 8, 1), "uint8")]
    for format in pictures:
        assert cli("sample", "--out", tmp_path / format, *RUN, "--format", format) == 0
        assert cli.digest(tmp_path / format) == expected.hexdigest()
