"""The short run of `make test-quick`: the first cases, near the changed files, for a time."""

from __future__ import annotations

from pathlib import PurePosixPath as Path

import pytest
import quick

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    "test, files, expected",
    [
        ("tests/ops/test_step.py", ["tests/ops/test_step.py"], 100),
        ("tests/ops/test_randn.py", ["fastdiff/ops/randn.py"], 2),
        ("tests/ops/test_step.py", ["fastdiff/ops/randn.py", "README.md"], 1),
        (
            "tests/integrations/diffusers/test_edits.py",
            ["fastdiff/integrations/diffusers/ddim.py"],
            2,
        ),
        ("tests/ops/test_step.py", ["kernels/fastdiff_kernels/reverse_step.py"], 1),
        ("tests/jobs/test_ray.py", ["csrc/cpu/randn.cpp"], 0),
        ("tests/jobs/test_ray.py", [], 0),
    ],
)
def test_nearness(test: str, files: list[str], expected: int) -> None:
    assert quick.nearness(Path(test), map(Path, files)) == expected


def test_changed_files_are_those_of_this_tree() -> None:
    assert all((quick.ROOT / name).parts for name in quick.changed())


def test_first_cases_near_the_changes_and_not_after_the_time(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite of two folders whose second one tests a changed file."""
    pytester.makeconftest(
        "import pathlib, time, quick\n"
        "from quick import pytest_addoption, pytest_runtest_protocol, pytest_terminal_summary\n"
        "quick.ROOT = pathlib.Path(__file__).parent\n"
        "quick.changed = lambda: [pathlib.PurePosixPath('fastdiff', 'b', 'x.py')]\n"
        "def pytest_collection_modifyitems(config, items):\n"
        "    quick.choose(config, items)\n"
        "    quick._began = time.monotonic()\n"
    )
    for folder in ("a", "b"):
        place = pytester.path / "tests" / folder
        place.mkdir(parents=True)
        (place / f"test_{folder}.py").write_text(
            "import time, pytest\n"
            "@pytest.mark.parametrize('n', range(3))\n"
            f"def test_first(n): {'time.sleep(0.6)' if folder == 'b' else 'pass'}\n",
            encoding="utf-8",
        )
    monkeypatch.setenv("PYTHONPATH", str(quick.ROOT / "tests"))
    done = pytester.runpytest_subprocess(
        "--seconds", "0.5", "-v", "-p", "no:cacheprovider", "tests"
    )
    done.stdout.fnmatch_lines(["*test_b.py::test_first*0* PASSED*", "*did not run*"])
    assert "test_a.py" not in done.stdout.str() and done.ret == 0
    done.assert_outcomes(passed=1, deselected=4)
