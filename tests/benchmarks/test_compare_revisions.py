"""benchmarks/compare_revisions.py: two checkouts measured in turns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import compare_revisions
from benchmarks.compare_revisions import Row

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "compare_revisions.py"


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_a_checkout_compared_with_itself() -> None:
    run = compare(
        str(ROOT), str(ROOT), "--rounds", "1", "--processes", "2", "--only", "drop-in DDIM"
    )
    assert run.returncode == 0, run.stderr
    head, line = run.stdout.splitlines()
    assert "old / new" in head and "DIFFERENT" not in line
    assert line.startswith("drop-in DDIMScheduler")
    ratio = float(line.split()[-3])
    assert 0.5 < ratio < 2.0, "the same code takes about the same CPU time"


def test_rows_of_every_kind() -> None:
    kinds = [name.split()[0] for name in compare_revisions.workloads()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "reverse_step": 4,
        "loop": 12,
        "drop-in": 3,
        "sampling": 2,
    }


def test_a_row_reports_neighbouring_ratios_and_other_results() -> None:
    text = str(Row("loop", [2e-6, 4e-6, 8e-6], [1e-6, 2e-6, 8e-6], same=False))
    assert "2.000 [1.400, 2.000]" in text and text.endswith("DIFFERENT RESULT")
    assert "DIFFERENT" not in str(Row("loop", [1.0, 1.0], [1.0, 1.0], same=True))


def test_pairs_of_processes_are_pooled() -> None:
    row = Row("loop", [2.0], [1.0], same=True).joined(Row("loop", [3.0], [1.0], same=False))
    assert row == Row("loop", [2.0, 3.0], [1.0, 1.0], same=False)


def test_what_is_no_checkout(tmp_path: Path) -> None:
    run = compare(str(tmp_path), str(ROOT))
    assert run.returncode == 2 and "expected a checkout of fastdiff" in run.stderr


def test_a_checkout_that_does_not_import(tmp_path: Path) -> None:
    (tmp_path / "fastdiff").mkdir()
    (tmp_path / "fastdiff" / "__init__.py").write_text("raise ImportError('no library')\n")
    run = compare(str(tmp_path), str(ROOT))
    assert run.returncode == 1 and "no library" in run.stderr and "got none" in run.stderr
