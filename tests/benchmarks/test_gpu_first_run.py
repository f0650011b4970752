"""scripts/gpu_first_run.sh without a GPU: a dry run, the tests it selects, kills and lost GPUs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from patience import PATIENCE

from benchmarks.gpu.checkpoint import Checkpoint
from benchmarks.gpu.first_run import calls, profiled, sanitized
from benchmarks.gpu.first_run.stages import ROOT, STAGES, SUITES, Stage
from benchmarks.rows import load

PATH = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_first_run

    return gpu_first_run


def test_a_dry_run_passes_and_every_stage_leaves_its_results(tmp_path: Path) -> None:
    command = ["sh", "scripts/gpu_first_run.sh", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--patience", "10", "--minutes", "60"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    log = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr + log[-6000:]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {*(f"{stage.name}.json" for stage in STAGES), "run.log"}
    assert len(files) <= 8 and all(re.fullmatch(r"[\w.-]+", name) for name in files)
    for stage in STAGES:
        found = json.loads((tmp_path / f"{stage.name}.json").read_text(encoding="utf-8"))
        assert found["finished"] and found["stage"]["ended"] == "finished", stage.name
        assert found["benchmarks"] and not found["failed"], stage.name
        assert found["stage"].get("left_out") or found["skipped"], (
            f"{stage.name} left something out"
        )
        assert f"{stage.name} " in done.stdout
    rows = {row["what"]: row for row in load(tmp_path / "e-speed.json").rows}
    wanted = {"copy", "step ddim", "step ddpm", "step ddim guided", "randn", "q_sample"}
    wanted |= {"gaussian_kl", "discretized_gaussian_nll", "group_norm_silu", "graph step ddim"}
    wanted |= {"host unbound step", "host bound step", "host randn", "host torch.randn"}
    assert wanted <= rows.keys()
    assert rows["step ddim"]["peers"].keys() >= {"torch eager", "diffusers"}
    assert rows["step ddim"]["copy_GB_per_s"] > 0
    assert load(tmp_path).rows, "a page can be made of the folder"


def collected(tests: list[str], settings: dict[str, str]) -> list[str]:
    """Returns the ids of the tests that pytest collects."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PATH} | settings,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_every_suite_selects_the_tests_that_the_table_states() -> None:
    """They are collected as on a GPU, in one process. A number in the table is up to 10 % low."""
    tests = [path for suite in SUITES.values() for path in suite.tests]
    assert not any(path.startswith("-") for path in tests), "a pattern of -k may select nothing"
    assert len(set(tests)) == len(tests)
    settings = {k: v for suite in SUITES.values() for k, v in suite.settings.items()}
    ids = collected(tests, settings)
    for name, suite in SUITES.items():
        number = sum(one.startswith(suite.tests) for one in ids)
        assert number >= suite.selects > 0.9 * number, f"{name}: state {number} in stages.py"
    assert len(ids) > 2000


def test_the_table_fits_into_one_command_of_ten_minutes() -> None:
    """The stages have the names and the order that the notes promise, and time for the last one."""
    assert "".join(stage.name[0] for stage in STAGES) == "abcdefg"
    assert sum(stage.seconds or 0 for stage in STAGES) == 500
    assert [stage.name for stage in STAGES if stage.seconds is None] == ["g-sanitizer"]
    used = {command[1] for s in STAGES for command in s.commands if "suites" in command[0]}
    assert used == SUITES.keys(), "no suite is forgotten"


def suite_of(folder: Path, tests: str, states: int = 0) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns a stage's command that runs these tests as a suite, and its environment."""
    (folder / "test_mine.py").write_text(textwrap.dedent(tests), encoding="utf-8")
    (folder / "conftest.py").write_text("", encoding="utf-8")
    (folder / "mine.py").write_text(
        "import sys\n"
        "from benchmarks.gpu.checkpoint import Checkpoint\n"
        "from benchmarks.gpu.first_run import suites\n"
        "from benchmarks.gpu.first_run.stages import SUITES, Suite, arguments\n"
        "args = arguments(None).parse_args()\n"
        f"SUITES['mine'] = Suite(({str(folder / 'test_mine.py')!r}, '-c', '/dev/null'),"
        f" {states}, ())\n"
        "sys.exit(suites.run('mine', Checkpoint(args.file, 'x-mine', {}), args.device))\n",
        encoding="utf-8",
    )
    return ("mine",), os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{PATH}"}


def ran(
    script: ModuleType, folder: Path, tests: str, seconds: float = 120, states: int = 0
) -> tuple[Checkpoint, str]:
    """Runs tests as a stage; returns its file and its log."""
    command, env = suite_of(folder, tests, states)
    with open(folder / "run.log", "w+", encoding="utf-8") as log:
        runner = script.Runner(folder, "cuda", env, log)
        found = runner.stage(Stage("x-mine", seconds, "tests of mine", (command,)), seconds)
        log.seek(0)
        return found, log.read()


def names(found: Any) -> set[str]:
    return {name.split("::")[-1] for name in found}


def test_a_stage_that_is_killed_leaves_what_it_had(script: ModuleType, tmp_path: Path) -> None:
    """All of its processes end in time, and the file names the test that did not."""
    begin = time.monotonic()
    found, log = ran(
        script,
        tmp_path,
        f"""
        import os, time, pathlib
        def test_a(record_property): record_property("bytes", 3)
        def test_b(): assert 1 == 2, "wrong by one"
        def test_c():
            pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
            time.sleep(600)
        def test_d(): pass
        """,
        seconds=25,
    )
    assert time.monotonic() - begin < 45
    found = Checkpoint(found.file, "x-mine", {})  # what is on the disk
    assert names(found.rows) - {"test_d"} == {"test_a"}, log
    assert next(row for name, row in found.rows.items() if "test_a" in name)["bytes"] == 3
    assert names(found.failed) == {"test_b"} and "wrong by one" in str(found.failed)
    assert found.now is not None and "test_c" in found.now
    assert found.stage["ended"] == "killed after 25 s" and not found.finished
    assert "killed after 25 s" in "\n".join(script.summary(found))
    stat = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    if Path("/proc/self").exists():  # a dead process may wait for its parent as a zombie, Z
        assert not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_lost_gpu_or_a_crash_costs_one_test(script: ModuleType, tmp_path: Path) -> None:
    """After a CUDA error every call of that process fails: another process goes on."""
    pytest.importorskip("xdist")
    found, log = ran(
        script,
        tmp_path,
        """
        import os
        lost = False
        def test_a():
            global lost
            lost = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        def test_b(): assert not lost
        def test_c(): os._exit(11)
        def test_d(): assert not lost
        """,
    )
    assert names(found.rows) == {"test_b", "test_d"}, (found.failed, log)
    failed = {name.split("::")[-1]: reason for name, reason in found.failed.items()}
    assert failed.keys() == {"test_a", "test_c"}
    assert "illegal memory access" in failed["test_a"] and "crashed" in failed["test_c"]
    assert found.stage["ended"] == "finished"


def test_fewer_tests_than_stated_fail_the_stage(script: ModuleType, tmp_path: Path) -> None:
    found, log = ran(script, tmp_path, "def test_a(): pass\n", states=3)
    assert found.stage["suites"]["mine"]["selected"] == 1, log
    assert "at least the 3 tests that the table states, got 1" in found.failed["suite mine"]


def test_a_broken_file_of_tests_is_a_failure(script: ModuleType, tmp_path: Path) -> None:
    found, log = ran(script, tmp_path, "import no_such_module\n")
    assert "no_such_module" in str(found.failed), log


def test_a_command_that_dies_at_once_is_a_failure(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PATH}"}
    with open(tmp_path / "run.log", "w", encoding="utf-8") as log:
        runner = script.Runner(tmp_path, "cuda", env, log)
        found = runner.stage(Stage("x-dying", 60, "", (("dying",),)), 60)
    assert found.failed == {"dying": "the process ended with status 3"}
    assert json.loads((tmp_path / "x-dying.json").read_text())["failed"] == found.failed


def test_a_piece_goes_on_after_a_crash(script: ModuleType, tmp_path: Path) -> None:
    """The row in which the process died is a failure; the next process measures the others."""
    (tmp_path / "rows.py").write_text(
        textwrap.dedent(
            """
            import os, sys
            from benchmarks.gpu.checkpoint import Checkpoint
            from benchmarks.gpu.first_run.stages import arguments
            checkpoint = Checkpoint(arguments(None).parse_args().file, "x-rows", {})
            for name in "abc":
                if name in checkpoint:
                    continue
                checkpoint.begin(name)
                if name == "b":
                    os._exit(139)
                checkpoint.row(name, {})
            """
        ),
        encoding="utf-8",
    )
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PATH}"}
    with open(tmp_path / "run.log", "w", encoding="utf-8") as log:
        runner = script.Runner(tmp_path, "cuda", env, log)
        found = runner.stage(Stage("x-rows", 60, "", (("rows",),), again=True), 60)
    assert list(found.rows) == ["a", "c"] and list(found.failed) == ["b"] and found.finished


def test_without_a_gpu_the_run_says_so_and_stops(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(script, "build", lambda env: None)
    monkeypatch.setattr(sys, "argv", ["gpu_first_run.py", "--out", str(tmp_path)])
    assert script.main() == 2
    assert "Pass --device cpu" in capsys.readouterr().err
    assert [path.name for path in sorted(tmp_path.glob("*.json"))] == ["a-versions.json"]
    found = json.loads((tmp_path / "a-versions.json").read_text(encoding="utf-8"))
    assert {"versions", "tools", "backend cpu"} <= {b["name"] for b in found["benchmarks"]}
    assert {"torch's GPU", "backend triton", "backend cuda"} <= found["failed"].keys()


NCU = """==PROF== Connected to process 1234
done step ddpm exact
==PROF== Disconnected from process 1234
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","1234","reverse_step_kernel","gpu__time_duration.sum","nsecond","151,232"
"0","1234","reverse_step_kernel","dram__bytes_read.sum","byte","402653184"
"1","1234","second","launch__registers_per_thread","register/thread","40"
"""


def test_counters_are_read_from_ncu(tmp_path: Path) -> None:
    found = profiled.launches(NCU)
    assert found == [
        {
            "kernel": "reverse_step_kernel",
            "gpu__time_duration.sum": 151232.0,
            "dram__bytes_read.sum": 402653184.0,
        },
        {"kernel": "second", "launch__registers_per_thread": 40.0},
    ]
    assert profiled.launches("==ERROR== no permission\n") == []
    assert {name for name, _ in profiled.KERNELS} <= set(calls.NAMES)
    wanted = profiled.command("randn", "triton", "/bin/ncu")
    assert wanted[wanted.index("--clock-control") + 1] == "none", "the clocks are left alone"


def test_a_kernel_that_ncu_does_not_see_is_a_failure(tmp_path: Path) -> None:
    stand_in = tmp_path / "ncu"
    stand_in.write_text('#!/bin/sh\necho "done randn"\n', encoding="utf-8")
    stand_in.chmod(0o755)
    with pytest.raises(RuntimeError, match="done randn"):
        profiled.profile("randn", "cpu", str(stand_in))


@pytest.mark.parametrize(
    "ending, failed",
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", set()),
        ("echo '========= ERROR SUMMARY: 2 errors'; exit 99", {"memcheck cpu"}),
        ("true", {"memcheck cpu"}),
    ],
    ids=["clean", "errors", "no summary"],
)
def test_what_the_sanitizer_finds_is_a_failure(
    ending: str, failed: set[str], tmp_path: Path
) -> None:
    """Ops that end under the tool are rows; one with a wrong result is a failure of its own."""
    stand_in = tmp_path / "compute-sanitizer"
    stand_in.write_text(
        "#!/bin/sh\n"
        "echo 'done randn'\n"
        "echo 'failed q_sample: AssertionError: expected NumPy bits'\n"
        f"{ending}\n",
        encoding="utf-8",
    )
    stand_in.chmod(0o755)
    checkpoint = Checkpoint(tmp_path / "g.json", "g-sanitizer", {})
    sanitized.Runs(checkpoint).run("memcheck", "cpu", str(stand_in))
    assert set(checkpoint.failed) - failed == {"memcheck cpu: q_sample"}
    assert failed <= checkpoint.failed.keys()
    assert "memcheck cpu: randn" in checkpoint.rows
    assert ("memcheck cpu" in checkpoint.rows) == (not failed)
